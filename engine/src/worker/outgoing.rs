//! Frames on their way out of one connection: answers are encoded here, and go into the ring or to the
//! kernel.
//!
//! Over TCP, the answers of a round are gathered in `staged` and sent by one send at its end. Over shared
//! memory, the answer to a request that came alone is encoded straight into the ring; several answers are
//! gathered, their CRCs computed together ("sealed", see [`Unsealed`]), and moved into the ring in pieces.
//! What does not fit into the ring waits in `staged` and `behind` until the client has made room.

use std::collections::VecDeque;
use std::sync::Arc;

use super::deferred::ConnectionShared;
use super::handler::Outcome;
use super::owed::Owed;
use super::vec_pool::VecPool;
use crate::shm::{Ends, LongFrame, MUCH_BYTES, RECORD_MAX};
use crate::wire::{
    self, ErrorCode, Flags, HEADER_BYTES, Header, ProtocolVersion, Unsealed, legacy, msg_type,
};

/// Answers gathered for a ring go into it in pieces, each half as long as the requests that lately came
/// at once: so the client works on the first piece while the second is written, and its next requests come
/// before the worker has run out. Shorter pieces than the least cost more than they gain; longer ones than
/// the most do not stay in the first-level cache until their CRCs are computed and they are copied.
const PIECE_BYTES_MIN: usize = 1024;
const PIECE_BYTES_MAX: usize = 8192;
/// The greatest number of bytes that came at once is forgotten slowly, by one part in this many for each
/// run: answers in pieces make the next requests come in pieces too, which must not shrink the pieces.
const LATELY_PARTS: usize = 64;

/// What waits goes into the ring in records of this length at most, or in longer ones while there are more than
/// [`MUCH_BYTES`] of it: the client soon has the first, and is soon done when the last has come. (An ECHO of 64 KiB
/// takes 0.83 of the time that it takes with one length for all.)
const RECORD_BYTES: usize = RECORD_MAX / 2;

/// A buffer that has room for this much, and something in it, does not grow any further, if another can follow it in
/// `behind`. All buffers of the pool come to be as large as the largest: with this and the same in `ROUND_BYTES`, 64
/// requests of 1 KiB in flight leave 0.25 MB in the process; with 64 KiB it was 0.55, at the same rate.
const GROWS_BYTES_MAX: usize = 32 * 1024;

/// Encoded frames that wait to be sent, and how much of them has been sent.
#[derive(Default)]
pub(crate) struct Outgoing {
    /// Encoded frames, sent from the front.
    pub(super) staged: Vec<u8>,
    /// Bytes handed to the kernel whose send has not completed.
    pub(super) sending_bytes: usize,
    /// How much of `staged` is in the ring already (shared memory only).
    pub(super) staged_sent: usize,
    /// Answers are gathered, because several are expected in this round, and go into the ring in pieces of
    /// this many bytes: a client that polls takes the ring's cache lines away with every record, so few
    /// records are better. 0: answers go one by one.
    piece_bytes: usize,
    /// The most bytes of requests that lately came at once.
    lately_bytes: usize,
    /// The ring was full when it was last tried in this round.
    pub(super) ring_full: bool,
    /// The frame of whose payload the front of `staged` is the rest: its beginning is in the ring already (shared
    /// memory only).
    begun: Option<LongFrame>,
    /// What comes after `staged`, in further buffers, so that long frames are not copied when one buffer
    /// would grow (shared memory only). Empty while `staged` is empty.
    behind: VecDeque<Vec<u8>>,
    behind_bytes: usize,
    /// The rings of a shared-memory connection.
    pub(super) ends: Option<Box<Ends>>,
    /// Bytes encoded since the worker last took this number for its statistics.
    pub(super) encoded_bytes: u64,
    /// The outcome of the request that is being handled, or was handled last.
    pub(super) outcome: Outcome,
    /// Answers that other threads owe.
    pub(super) owed: Owed,
    /// What those threads share with this connection; `None` before the first request was detached.
    pub(super) shared: Option<Arc<ConnectionShared>>,
    /// The worker's spare buffers, while a handler may answer here: see [`Outgoing::with_lent_pool`].
    pub(super) lent_pool: Option<Box<VecPool>>,
    repeat: Repeat,
    /// The longest payload that the peer accepts, if it has said so.
    pub(super) peer_bytes_max: Option<u32>,
    /// Ids of version 1 requests whose handlers have sent a part of a stream.
    legacy_streams: Vec<u64>,
    /// Which frames at the end of `staged` have no CRC yet.
    unsealed: Unsealed,
}

/// Whether an answer that repeats its request's payload can be sent from the request's buffer.
#[derive(Default)]
enum Repeat {
    /// No.
    #[default]
    No,
    /// Yes, if its payload is the one at this address, of this length.
    Possible(usize, usize),
    /// The handler has answered with that payload: it is to be sent with this header.
    Wanted(Header),
}

impl Outgoing {
    /// Bytes held in memory for this connection: encoded, and neither in the ring nor sent.
    pub(super) fn buffered_bytes(&self) -> usize {
        self.staged.len() - self.staged_sent + self.behind_bytes + self.sending_bytes
    }

    /// What is buffered, and what is in the worker's inbox: answers that handlers have taken away and given
    /// themselves would pass all limits in one round otherwise.
    pub(super) fn unsent_bytes(&self) -> usize {
        let shared = self.shared.as_ref();
        self.buffered_bytes() + shared.map_or(0, |shared| shared.queued_bytes())
    }

    /// Whether more than half of what may be held is held, so that paused requests wait for the peer to
    /// read. With less they are resumed.
    pub(super) fn waits_for_reader(&self, bytes_max: usize) -> bool {
        self.buffered_bytes() > bytes_max / 2
    }

    pub(super) fn is_empty(&self) -> bool {
        self.staged.is_empty() && self.sending_bytes == 0
    }

    /// From now on answers are gathered. `requests_bytes`: how many bytes of requests came at once.
    pub(super) fn gather(&mut self, requests_bytes: usize) {
        let faded = self.lately_bytes - self.lately_bytes / LATELY_PARTS;
        self.lately_bytes = requests_bytes.max(faded);
        self.piece_bytes = match self.ends {
            Some(_) => (self.lately_bytes / 2).clamp(PIECE_BYTES_MIN, PIECE_BYTES_MAX),
            None => usize::MAX,
        };
    }

    /// From now on answers are sent one by one.
    pub(super) fn stop_gathering(&mut self) {
        self.piece_bytes = 0;
    }

    /// Encodes something of about `bytes` bytes behind what waits.
    fn encode(&mut self, pool: &mut VecPool, bytes: usize, encode: impl FnOnce(&mut Vec<u8>)) {
        self.seal();
        if self.staged.capacity() == 0 {
            self.staged = pool.take_for(bytes);
        }
        let last = self.behind.back().unwrap_or(&self.staged);
        let would_grow = last.len() + bytes > last.capacity() && !last.is_empty();
        if would_grow && last.capacity() >= GROWS_BYTES_MAX && self.ends.is_some() {
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

    /// Drops what waits for a connection that is gone.
    pub(super) fn forget(&mut self) {
        self.staged = Vec::new();
        self.staged_sent = 0;
        self.begun = None;
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

    /// As [`Outgoing::frame`], for a handler's answer. The way of an answer that is gathered is inlined.
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

    /// Runs something with the worker's spare buffers, which are lent to this connection while its handler
    /// runs. They are moved here, because a reference to the worker's pool would make [`super::Responder`]
    /// impossible to send to another thread.
    #[inline(always)]
    pub(super) fn with_lent_pool(&mut self, use_it: impl FnOnce(&mut Outgoing, &mut VecPool)) {
        let mut pool = self.lent_pool.take();
        use_it(self, pool.get_or_insert_default());
        std::mem::swap(&mut self.lent_pool, &mut pool);
    }

    /// Adds a short frame to those whose CRCs are computed together. False if it cannot be gathered; then
    /// nothing was done.
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

    /// Whether there is enough for a piece, and the ring was not full when it was last tried.
    #[inline(always)]
    fn has_piece(&self) -> bool {
        self.piece_bytes > 0 && self.buffered_bytes() >= self.piece_bytes && !self.ring_full
    }

    fn flush_pieces(&mut self, pool: &mut VecPool) {
        if self.has_piece() {
            self.flush_to_ring(pool);
        }
    }

    /// Writes one frame straight into the ring, if there is one and nothing waits. False if it did not.
    #[inline(never)]
    fn pushed(&mut self, flags: Flags, msg_type: u16, msg_id: u64, payload: &[u8]) -> bool {
        let bytes = HEADER_BYTES + payload.len();
        if self.piece_bytes > 0 || !self.staged.is_empty() || bytes > RECORD_MAX {
            return false;
        }
        let Some(ends) = &mut self.ends else {
            return false;
        };
        // With `staged`, `behind` is empty too. Rings carry version 2 only.
        let header = Header::new(flags, msg_type, msg_id, payload.len() as u32);
        let pushed = ends.tx.push_frame(header, payload, ends.rx.position());
        if pushed {
            self.encoded_bytes += bytes as u64;
        }
        pushed
    }

    /// Encodes one frame, with its CRC, behind what waits.
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
        let header = Header::new(flags, msg_type, msg_id, payload.len() as u32);
        if self.begins_long(pool, header, payload) {
            return;
        }
        self.encode(pool, HEADER_BYTES + payload.len(), |to| {
            wire::encode_to(to, flags, msg_type, msg_id, payload);
        });
    }

    /// Puts what fits of a long frame into the ring, if there is one and nothing waits, and only the rest behind:
    /// the client reads the first pieces while the next are written, straight from where the payload is. False if
    /// nothing was done.
    fn begins_long(&mut self, pool: &mut VecPool, header: Header, payload: &[u8]) -> bool {
        if HEADER_BYTES + payload.len() <= RECORD_MAX || !self.staged.is_empty() {
            return false;
        }
        let Some(ends) = &mut self.ends else {
            return false;
        };
        let mut frame = LongFrame::new(header);
        let pushed = frame.push(&mut ends.tx, ends.rx.position(), payload);
        if pushed == 0 {
            return false;
        }
        self.encoded_bytes += frame.frame_bytes() as u64;
        let rest = frame.rest(payload);
        if !rest.is_empty() {
            self.staged = pool.take_for(rest.len());
            wire::append(&mut self.staged, rest);
            self.begun = Some(frame);
            self.flush_to_ring(pool);
        }
        true
    }

    /// In version 1 a request has one answer, and a client would take the first part of a stream for all of
    /// it. So parts are dropped, and the last becomes an error.
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

    /// The client cancels its request.
    pub(super) fn cancel(&mut self, msg_id: u64) {
        if let Some(shared) = &self.shared {
            let mut cancelled = self.owed.cancel(msg_id).peekable();
            if cancelled.peek().is_some() {
                shared.cancelled.add(cancelled);
            }
        }
    }

    /// Whether the request with this number was cancelled.
    pub(super) fn is_cancelled(&self, number: u64) -> bool {
        let shared = self.shared.as_ref();
        shared.is_some_and(|shared| shared.cancelled.contains(number))
    }

    /// The last answer to a detached request has come.
    pub(super) fn was_owed(&mut self, number: u64) {
        self.owed.remove(number);
        if let Some(shared) = &self.shared
            && shared.cancelled.contains(number)
        {
            shared.cancelled.remove(number);
        }
    }

    /// The request to be handled next has this payload, in a buffer that holds its frame alone: an answer
    /// that repeats it can be sent from there.
    pub(super) fn lend(&mut self, payload: &[u8]) {
        self.repeat = Repeat::Possible(payload.as_ptr().addr(), payload.len());
    }

    /// If this answer's payload is the request's own, in the same memory, notes that it is to be sent from
    /// there. (It cannot have changed since it was verified: the handler has it by a shared reference.) False
    /// if it is not; then nothing was done.
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

    /// After the handler has run: the header of the answer that is to be sent from the request's buffer.
    pub(super) fn take_repeat(&mut self) -> Option<Header> {
        match std::mem::take(&mut self.repeat) {
            Repeat::Wanted(header) => Some(header),
            _ => None,
        }
    }

    /// Sends a frame that is already encoded. Shared memory only.
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

    /// Moves what waits into the ring, as far as there is room. Shared memory only.
    pub(super) fn flush_to_ring(&mut self, pool: &mut VecPool) {
        self.seal();
        let Some(ends) = &mut self.ends else { return };
        // A second time after asking to be told of room: the client does not announce room that it made
        // before it saw that we ask.
        for _ in 0..2 {
            // Bounded by the ring's room; each pass sends a piece or takes the next buffer.
            loop {
                if let Some(frame) = &mut self.begun {
                    let rest = &self.staged[self.staged_sent..][..frame.rest_bytes()];
                    self.staged_sent += frame.push(&mut ends.tx, ends.rx.position(), rest);
                    if !frame.is_sent() {
                        break;
                    }
                    self.begun = None;
                }
                let rest = &self.staged[self.staged_sent..];
                let most_bytes = match rest.len() > MUCH_BYTES {
                    true => RECORD_MAX,
                    false => RECORD_BYTES,
                };
                let piece = &rest[..rest.len().min(most_bytes)];
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

    /// Encodes an ERROR frame: the answer to a request, or with `answer` false about the connection. The text
    /// is cut to what the peer accepts.
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
