//! Frames on their way out of one connection.

use super::vec_pool::VecPool;
use crate::shm::{Ends, RECORD_MAX};
use crate::wire::{self, ErrorCode, Flags, HEADER_BYTES, Header, ProtocolVersion, legacy};

/// Answers gathered for a ring go in pieces of this size, so that the client works on the first
/// while the next is written.
const PIECE_BYTES: usize = 4096;
/// Encoded frames that wait to be sent, and how much of them is under way.
#[derive(Default)]
pub(crate) struct Outgoing {
    /// Encoded frames, to be sent from the front.
    pub(super) staged: Vec<u8>,
    /// Bytes handed to the kernel whose send has not completed.
    pub(super) sending_bytes: usize,
    /// How much of `staged` is in the ring already (shared memory only).
    pub(super) staged_sent: usize,
    /// Several answers are on their way in this round: they go into the ring together, since a
    /// client that waits takes the ring's lines away with every single record.
    pub(super) gathering: bool,
    /// The ring was full when it was last tried in this round.
    pub(super) ring_full: bool,
    /// The rings of a shared-memory connection.
    pub(super) ends: Option<Box<Ends>>,
    /// Bytes encoded since the worker last asked, for its statistics.
    pub(super) encoded_bytes: u64,
}

impl Outgoing {
    /// Bytes held in memory for this connection.
    pub(super) fn buffered_bytes(&self) -> usize {
        self.staged.len() - self.staged_sent + self.sending_bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.staged.is_empty() && self.sending_bytes == 0
    }

    fn room(&mut self, pool: &mut VecPool, bytes: usize) -> &mut Vec<u8> {
        if self.staged.capacity() == 0 {
            self.staged = pool.take_for(bytes);
        }
        &mut self.staged
    }

    /// Encodes one frame.
    #[inline]
    pub(super) fn frame(
        &mut self,
        pool: &mut VecPool,
        version: ProtocolVersion,
        flags: Flags,
        msg_type: u16,
        msg_id: u64,
        payload: &[u8],
    ) {
        if let Some(ends) = &mut self.ends
            && self.staged.is_empty()
            && !self.gathering
            && HEADER_BYTES + payload.len() <= RECORD_MAX
        {
            // Straight into the ring, in place.
            let header = Header::new(flags, msg_type, msg_id, payload.len() as u32);
            if ends.tx.push_frame(header, payload, ends.rx.position()) {
                self.encoded_bytes += (HEADER_BYTES + payload.len()) as u64;
                return;
            }
        }
        let staged = self.room(pool, payload.len());
        let before = staged.len();
        match version {
            ProtocolVersion::V2 => wire::encode_to(staged, flags, msg_type, msg_id, payload),
            ProtocolVersion::V1 => legacy::encode_to(staged, msg_type, msg_id, payload),
        }
        self.encoded_bytes += (self.staged.len() - before) as u64;
        let waiting = self.staged.len() - self.staged_sent;
        if self.gathering && !self.ring_full && waiting >= PIECE_BYTES {
            self.flush_to_ring(pool);
        }
    }

    /// Moves staged frames into the ring, as far as there is room, in pieces. Shared memory only.
    pub(super) fn flush_to_ring(&mut self, pool: &mut VecPool) {
        let Some(ends) = &mut self.ends else { return };
        // Twice: what the client made room for before it saw that we want some is not announced.
        for _ in 0..2 {
            while self.staged_sent < self.staged.len() {
                let rest = &self.staged[self.staged_sent..];
                let piece = &rest[..rest.len().min(RECORD_MAX)];
                if !ends.tx.push(piece, ends.rx.position()) {
                    break;
                }
                self.staged_sent += piece.len();
            }
            if self.staged_sent == self.staged.len() {
                break;
            }
            ends.tx.want_room(true);
        }
        self.ring_full = self.staged_sent < self.staged.len();
        if !self.ring_full && !self.staged.is_empty() {
            ends.tx.want_room(false);
            pool.give(std::mem::take(&mut self.staged));
            self.staged_sent = 0;
        }
    }

    /// Encodes an ERROR frame: the answer to a request, or (`answer` false) about the connection.
    pub(super) fn error(
        &mut self,
        pool: &mut VecPool,
        version: ProtocolVersion,
        code: ErrorCode,
        text: &str,
        msg_id: u64,
        answer: bool,
    ) {
        let flags = if answer { Flags::RESPONSE } else { Flags::NONE };
        let mut payload = pool.take();
        wire::encode_error_payload(&mut payload, code, text);
        self.frame(
            pool,
            version,
            flags,
            wire::msg_type::ERROR,
            msg_id,
            &payload,
        );
        pool.give(payload);
    }
}
