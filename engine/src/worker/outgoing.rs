//! Frames on their way out of one connection.

use std::collections::VecDeque;
use std::sync::Arc;

use super::deferred::ConnectionShared;
use super::handler::Outcome;
use super::owed::Owed;
use super::vec_pool::VecPool;
use crate::shm::{Ends, RECORD_MAX};
use crate::wire::{
    self, ErrorCode, Flags, HEADER_BYTES, Header, ProtocolVersion, Unsealed, legacy, msg_type,
};

/// Answers gathered for a ring go in pieces of half as many bytes as requests come with at once lately:
/// so the client works on the first while the next is written, and its next requests come while the
/// worker still has some. Not in smaller ones, since each has its price, nor in larger ones than lie in
/// the cache until they are summed and copied.
const PIECE_BYTES_MIN: usize = 1024;
const PIECE_BYTES_MAX: usize = 8192;
/// Pieces make requests come in pieces, so what is remembered of more at once fades by this part only.
const LATELY_PARTS: usize = 64;

/// A buffer that holds so much does not grow any more where another can follow it.
const GROWS_BYTES_MAX: usize = 64 * 1024;

/// Encoded frames that wait to be sent, and how much of them is under way.
#[derive(Default)]
pub(crate) struct Outgoing {
    /// Encoded frames, to be sent from the front.
    pub(super) staged: Vec<u8>,
    /// Bytes handed to the kernel whose send has not completed.
    pub(super) sending_bytes: usize,
    /// How much of `staged` is in the ring already (shared memory only).
    pub(super) staged_sent: usize,
    /// Several answers are on their way in this round: they are summed together, and go into the ring
    /// in pieces of so many bytes, since a client that waits takes the ring's lines away with every
    /// single record. 0: they go one by one.
    piece_bytes: usize,
    /// With how many bytes requests came at once lately, at most.
    lately_bytes: usize,
    /// The ring was full when it was last tried in this round.
    pub(super) ring_full: bool,
    /// What comes after `staged`, in buffers of their own, lest long frames are moved as one buffer
    /// grows (shared memory only). None while `staged` is empty.
    behind: VecDeque<Vec<u8>>,
    behind_bytes: usize,
    /// The rings of a shared-memory connection.
    pub(super) ends: Option<Box<Ends>>,
    /// Bytes encoded since the worker last asked, for its statistics.
    pub(super) encoded_bytes: u64,
    /// What became of the request that is being handled, or was last.
    pub(super) outcome: Outcome,
    /// Answers that other threads owe.
    pub(super) owed: Owed,
    pub(super) shared: Option<Arc<ConnectionShared>>,
    /// The worker's buffers, while a handler may answer here: see [`Outgoing::with_lent_pool`].
    pub(super) lent_pool: Option<Box<VecPool>>,
    repeat: Repeat,
    /// The longest payload that the peer takes, if it has said so: at least that of a short error.
    pub(super) peer_bytes_max: Option<u32>,
    /// Requests of version 1 that were answered with a part of a stream.
    legacy_streams: Vec<u64>,
    /// Of the frames at the end of `staged`.
    unsealed: Unsealed,
}

/// Whether an answer can leave from its request's buffer.
#[derive(Default)]
enum Repeat {
    /// It is not known to.
    #[default]
    No,
    /// If its payload is this one: where that begins and how long it is.
    Possible(usize, usize),
    /// It will, with this header.
    Wanted(Header),
}

impl Outgoing {
    /// Bytes held in memory for this connection.
    pub(super) fn buffered_bytes(&self) -> usize {
        self.staged.len() - self.staged_sent + self.behind_bytes + self.sending_bytes
    }

    /// Whether so much is unread of what may be that requests wait for the reader. With less they go on.
    pub(super) fn waits_for_reader(&self, bytes_max: usize) -> bool {
        self.buffered_bytes() > bytes_max / 2
    }

    pub(super) fn is_empty(&self) -> bool {
        self.staged.is_empty() && self.sending_bytes == 0
    }

    /// Gathers the answers to come, which are to so many bytes of requests.
    pub(super) fn gather(&mut self, requests_bytes: usize) {
        let faded = self.lately_bytes - self.lately_bytes / LATELY_PARTS;
        self.lately_bytes = requests_bytes.max(faded);
        self.piece_bytes = match self.ends {
            Some(_) => (self.lately_bytes / 2).clamp(PIECE_BYTES_MIN, PIECE_BYTES_MAX),
            None => usize::MAX,
        };
    }

    /// Answers go one by one from now on.
    pub(super) fn stop_gathering(&mut self) {
        self.piece_bytes = 0;
    }

    /// Encodes something of about so many bytes behind what waits.
    fn encode(&mut self, pool: &mut VecPool, bytes: usize, encode: impl FnOnce(&mut Vec<u8>)) {
        self.seal();
        if self.staged.capacity() == 0 {
            self.staged = pool.take_for(bytes);
        }
        let last = self.behind.back().unwrap_or(&self.staged);
        let grows = last.len() + bytes > last.capacity() && last.len() >= GROWS_BYTES_MAX;
        if grows && self.ends.is_some() {
            self.behind.push_back(pool.take_for(bytes));
        }
        let (to, is_behind) = match self.behind.back_mut() {
            Some(last) => (last, true),
            None => (&mut self.staged, false),
        };
        let before = to.len();
        encode(to);
        let encoded = to.len() - before;
        self.behind_bytes += if is_behind { encoded } else { 0 };
        self.encoded_bytes += encoded as u64;
    }

    /// Computes the CRCs that are missing.
    #[inline]
    pub(super) fn seal(&mut self) {
        self.unsealed.seal(&mut self.staged);
    }

    /// Throws away what waits for a connection that is gone.
    pub(super) fn forget(&mut self) {
        self.staged = Vec::new();
        self.staged_sent = 0;
        self.unsealed.forget();
        self.behind = VecDeque::new();
        self.behind_bytes = 0;
    }

    /// Encodes one frame.
    pub(super) fn frame(
        &mut self,
        pool: &mut VecPool,
        version: ProtocolVersion,
        flags: Flags,
        msg_type: u16,
        msg_id: u64,
        payload: &[u8],
    ) {
        if !self.gathered(version, flags, msg_type, msg_id, payload)
            && !self.pushed(flags, msg_type, msg_id, payload)
        {
            self.frame_behind(pool, version, flags, msg_type, msg_id, payload);
        }
        self.flush_pieces(pool);
    }

    /// As [`Outgoing::frame`], for a handler's answer.
    ///
    /// Inlined as far as an answer of many goes.
    #[inline(always)]
    pub(super) fn answer(
        &mut self,
        version: ProtocolVersion,
        flags: Flags,
        msg_type: u16,
        msg_id: u64,
        payload: &[u8],
    ) {
        if self.gathered(version, flags, msg_type, msg_id, payload) {
            if self.has_piece() {
                self.with_lent_pool(Outgoing::flush_pieces);
            }
        } else if !self.pushed(flags, msg_type, msg_id, payload) {
            self.with_lent_pool(|out, pool| {
                out.frame_behind(pool, version, flags, msg_type, msg_id, payload);
                out.flush_pieces(pool);
            });
        }
    }

    /// With the worker's buffers, which are lent for as long as a handler may answer: led to by a
    /// reference they would keep a handler from handing its request to other threads.
    #[inline(always)]
    pub(super) fn with_lent_pool(&mut self, use_it: impl FnOnce(&mut Outgoing, &mut VecPool)) {
        let mut pool = self.lent_pool.take();
        use_it(self, pool.get_or_insert_default());
        std::mem::swap(&mut self.lent_pool, &mut pool);
    }

    /// Adds a short frame to those that are summed together. False: it is not to be gathered with
    /// others, or not yet.
    #[inline(always)]
    fn gathered(
        &mut self,
        version: ProtocolVersion,
        flags: Flags,
        msg_type: u16,
        msg_id: u64,
        payload: &[u8],
    ) -> bool {
        let bytes = HEADER_BYTES + payload.len();
        let fits = self.piece_bytes > 0
            && version == ProtocolVersion::V2
            && Unsealed::takes(payload.len())
            && bytes <= self.staged.capacity() - self.staged.len()
            && self.behind.is_empty();
        if fits {
            let staged = &mut self.staged;
            self.unsealed
                .append(staged, flags, msg_type, msg_id, payload);
            self.encoded_bytes += bytes as u64;
        }
        fits
    }

    /// Whether there is enough for a piece, and room in the ring as far as is known.
    #[inline(always)]
    fn has_piece(&self) -> bool {
        self.piece_bytes > 0 && self.buffered_bytes() >= self.piece_bytes && !self.ring_full
    }

    fn flush_pieces(&mut self, pool: &mut VecPool) {
        if self.has_piece() {
            self.flush_to_ring(pool);
        }
    }

    /// Writes one frame straight into the ring, if there is one and nothing waits. False: it did not.
    #[inline(never)]
    fn pushed(&mut self, flags: Flags, msg_type: u16, msg_id: u64, payload: &[u8]) -> bool {
        let bytes = HEADER_BYTES + payload.len();
        if self.piece_bytes > 0 || !self.staged.is_empty() || bytes > RECORD_MAX {
            return false;
        }
        let Some(ends) = &mut self.ends else {
            return false;
        };
        // What waits goes first, so `behind` is empty too. Rings carry version 2 only.
        let header = Header::new(flags, msg_type, msg_id, payload.len() as u32);
        let pushed = ends.tx.push_frame(header, payload, ends.rx.position());
        if pushed {
            self.encoded_bytes += bytes as u64;
        }
        pushed
    }

    /// Encodes one frame, its CRC too, behind what waits.
    fn frame_behind(
        &mut self,
        pool: &mut VecPool,
        version: ProtocolVersion,
        flags: Flags,
        msg_type: u16,
        msg_id: u64,
        payload: &[u8],
    ) {
        if version == ProtocolVersion::V1 {
            return self.legacy_frame(pool, flags, msg_type, msg_id, payload);
        }
        self.encode(pool, HEADER_BYTES + payload.len(), |to| {
            wire::encode_to(to, flags, msg_type, msg_id, payload);
        });
    }

    /// In version 1 a request has one answer: of a stream its client would take the first part for it.
    fn legacy_frame(
        &mut self,
        pool: &mut VecPool,
        flags: Flags,
        msg_type: u16,
        msg_id: u64,
        payload: &[u8],
    ) {
        let begun = self.legacy_streams.iter().position(|&id| id == msg_id);
        if flags.contains(Flags::STREAM) {
            if begun.is_none() {
                self.legacy_streams.push(msg_id);
            }
            return;
        }
        let (mut answer_type, mut error) = (msg_type, Vec::new());
        if let Some(at) = begun {
            self.legacy_streams.swap_remove(at);
            let text =
                "this answer comes in parts, which version 1 does not have: ask with version 2";
            wire::encode_error_payload(&mut error, ErrorCode::HandlerFailed, text);
            answer_type = msg_type::ERROR;
        }
        let payload = if begun.is_some() { &error } else { payload };
        self.encode(pool, legacy::HEADER_BYTES + payload.len(), |to| {
            legacy::encode_to(to, answer_type, msg_id, payload);
        });
    }

    /// The requester does not want the answer to this request any more.
    pub(super) fn cancel(&mut self, msg_id: u64) {
        if let Some(shared) = &self.shared {
            let mut cancelled = self.owed.cancel(msg_id).peekable();
            if cancelled.peek().is_some() {
                shared.cancelled.add(cancelled);
            }
        }
    }

    /// Whether the answer with this number is not wanted any more.
    pub(super) fn is_cancelled(&self, number: u64) -> bool {
        let shared = self.shared.as_ref();
        shared.is_some_and(|shared| shared.cancelled.contains(number))
    }

    /// The last answer to a request that was taken away has come.
    pub(super) fn was_owed(&mut self, number: u64) {
        self.owed.remove(number);
        if let Some(shared) = &self.shared
            && shared.cancelled.contains(number)
        {
            shared.cancelled.remove(number);
        }
    }

    /// The request that is handled now has this payload, in a frame of its own.
    pub(super) fn lend(&mut self, payload: &[u8]) {
        self.repeat = Repeat::Possible(payload.as_ptr().addr(), payload.len());
    }

    /// Notes the last answer to a request, if its payload is that of the request itself, in the same
    /// memory: borrowed since it was checked, it is unchanged. False: nothing was done.
    #[inline]
    pub(super) fn repeats(
        &mut self,
        flags: Flags,
        msg_type: u16,
        msg_id: u64,
        payload: &[u8],
    ) -> bool {
        let Repeat::Possible(at, length) = self.repeat else {
            return false;
        };
        let same = payload.as_ptr().addr() == at && payload.len() == length;
        if same {
            self.repeat = Repeat::Wanted(Header::new(flags, msg_type, msg_id, length as u32));
        }
        same
    }

    /// After the handler: the header of the answer for which the request's buffer is to be used.
    pub(super) fn take_repeat(&mut self) -> Option<Header> {
        match std::mem::take(&mut self.repeat) {
            Repeat::Wanted(header) => Some(header),
            _ => None,
        }
    }

    /// Sends a frame that is encoded already. Shared memory only.
    pub(super) fn send_frame(&mut self, pool: &mut VecPool, frame: Vec<u8>) {
        self.seal();
        self.encoded_bytes += frame.len() as u64;
        if self.staged.is_empty() {
            pool.give(std::mem::replace(&mut self.staged, frame));
        } else {
            self.behind_bytes += frame.len();
            self.behind.push_back(frame);
        }
        self.flush_to_ring(pool);
    }

    /// Moves staged frames into the ring, as far as there is room, in pieces. Shared memory only.
    pub(super) fn flush_to_ring(&mut self, pool: &mut VecPool) {
        self.seal();
        let Some(ends) = &mut self.ends else { return };
        // Twice: what the client made room for before it saw that we want some is not announced.
        for _ in 0..2 {
            // Bounded by the ring's room; each turn sends a piece or takes the next buffer.
            loop {
                let rest = &self.staged[self.staged_sent..];
                let piece = &rest[..rest.len().min(RECORD_MAX)];
                if !piece.is_empty() {
                    if !ends.tx.push(piece, ends.rx.position()) {
                        break;
                    }
                    self.staged_sent += piece.len();
                } else if let Some(next) = self.behind.pop_front() {
                    self.behind_bytes -= next.len();
                    pool.give(std::mem::replace(&mut self.staged, next));
                    self.staged_sent = 0;
                } else {
                    break;
                }
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
        let text_bytes_max = self
            .peer_bytes_max
            .map_or(text.len(), |max| max as usize - 2);
        let text = &text[..text.floor_char_boundary(text_bytes_max)];
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
