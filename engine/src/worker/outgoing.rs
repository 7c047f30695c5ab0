//! Frames on their way out of one connection.

use crate::shm::{Ends, RECORD_MAX};
use crate::wire::{self, ErrorCode, Flags, HEADER_BYTES, Header, ProtocolVersion, legacy};

/// Answers gathered for a ring go in pieces of this size, so that the client works on the first
/// while the next is written.
const PIECE_BYTES: usize = 4096;
/// Buffers above this are not kept for the next user.
const KEPT_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Buffers up to this are small: a round's answers to full receive buffers fit.
const SMALL_BYTES_MAX: usize = 256 * 1024;
/// How many are kept.
const KEPT_MAX: usize = 256;
/// How much memory they may hold if one more small one is kept.
const KEPT_SMALL_TOTAL_BYTES_MAX: usize = 1024 * 1024;
/// The same for a large one: megabytes that are mapped anew for each message cost more than the
/// message.
const KEPT_TOTAL_BYTES_MAX: usize = 4 * 1024 * 1024;
/// How many small ones a sleeping worker keeps.
const KEPT_ASLEEP_MAX: usize = 2;
/// How large those may be.
const KEPT_ASLEEP_BYTES_MAX: usize = 16 * 1024;

/// Buffers that connections borrow while they have something to send, so that an idle connection
/// holds none and a busy one allocates none.
#[derive(Default)]
pub(crate) struct VecPool {
    kept: Vec<Vec<u8>>,
    kept_bytes: usize,
}

impl VecPool {
    pub(super) fn take(&mut self) -> Vec<u8> {
        let buffer = self.kept.pop().unwrap_or_default();
        self.kept_bytes -= buffer.capacity();
        buffer
    }

    /// A buffer with no more room than this.
    pub(super) fn take_small(&mut self, bytes_max: usize) -> Vec<u8> {
        let small = |buffer: &Vec<u8>| buffer.capacity() <= bytes_max;
        match self.kept.iter().rposition(small) {
            Some(index) => {
                let buffer = self.kept.swap_remove(index);
                self.kept_bytes -= buffer.capacity();
                buffer
            }
            None => Vec::new(),
        }
    }

    pub(super) fn give(&mut self, mut buffer: Vec<u8>) {
        let bytes = buffer.capacity();
        let total_bytes_max = match bytes {
            0..=SMALL_BYTES_MAX => KEPT_SMALL_TOTAL_BYTES_MAX,
            _ => KEPT_TOTAL_BYTES_MAX,
        };
        if bytes > 0
            && bytes <= KEPT_BYTES_MAX
            && self.kept_bytes + bytes <= total_bytes_max
            && self.kept.len() < KEPT_MAX
        {
            self.kept_bytes += bytes;
            buffer.clear();
            self.kept.push(buffer);
        }
    }

    /// Gives memory back: the worker goes to sleep. A few small buffers stay, so that being woken
    /// for every message does not mean to allocate for every message.
    pub(super) fn release(&mut self) {
        let mut stay = 0;
        self.kept.retain(|buffer| {
            let stays = stay < KEPT_ASLEEP_MAX && buffer.capacity() <= KEPT_ASLEEP_BYTES_MAX;
            stay += usize::from(stays);
            stays
        });
        self.kept_bytes = self.kept.iter().map(Vec::capacity).sum();
    }
}

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

    fn room(&mut self, pool: &mut VecPool) -> &mut Vec<u8> {
        if self.staged.capacity() == 0 {
            self.staged = pool.take();
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
        let staged = self.room(pool);
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
