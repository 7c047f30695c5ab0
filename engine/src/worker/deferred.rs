//! Answers that come later, usually from another thread: a handler detaches its responder, and the
//! [`Deferred`] that it gets sends the answer through the worker's inbox.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use super::handler::{ReplyTo, no_answer_text, too_long_text};
use super::inbox::{FULL_NS_MAX, Inbox, Message, Patience};
use super::owed::Cancelled;
use crate::wire::ErrorCode;

/// Up to this many bytes of answers wait in memory for one connection; then threads that have another
/// answer wait (backpressure).
const WAITING_BYTES_MAX: usize = 1024 * 1024;
/// They do not wait for the reader if its worker has not looked into its inbox for so long. Longer than
/// [`FULL_NS_MAX`]: who does not read would get more with every slow handler.
const BEHIND_NS_MAX: u64 = 100_000_000;

/// What a connection shares with the threads that prepare answers for it.
#[derive(Default)]
pub(super) struct ConnectionShared {
    /// The connection is gone: nobody will read an answer.
    pub(super) closed: AtomicBool,
    /// Bytes of answers to it in the worker's inbox.
    queued_bytes: AtomicUsize,
    /// Bytes that the worker holds for the connection, as of the end of the last round that settled it.
    pub(super) staged_bytes: AtomicUsize,
    pub(super) cancelled: Cancelled,
}

/// What an answer consists of.
#[derive(Debug)]
pub(super) enum Body {
    /// A part of a stream that others follow.
    Part(Vec<u8>),
    /// The whole answer, or the last part of a stream.
    Last(Vec<u8>),
    /// An error instead.
    Error(ErrorCode, String),
    /// No answer, because none is due or wanted: the worker is only told that nothing is owed any more.
    Nothing,
}

/// An answer, or a part of one, on its way to the worker.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(super) to: ReplyTo,
    pub(super) body: Body,
}

/// The answer was dropped: the requester's connection is gone, the requester has cancelled the request or was
/// too far behind in reading, or the server has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone;

impl std::fmt::Display for Gone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(
            "the answer was dropped: the requester has gone, has cancelled the request or reads it too slowly, or the server has stopped",
        )
    }
}

impl std::error::Error for Gone {}

/// The duty to answer one request, from any thread: what [`crate::ipc::Responder::detach`] returns.
///
/// [`Deferred::stream_part`] and [`Deferred::reply`] wait while the worker's inbox is full, and while more than
/// 1 MiB of answers wait for the requester to read them (backpressure). They never wait for longer than the
/// connection lives: a requester that does not read is cut off after [`crate::ipc::Limits::send_stall_ms`]. Called
/// within a handler they do not wait, so a lock may be held that other handlers take; what they send is kept in
/// memory until it is read, but see [`Deferred::stream_part`].
///
/// Another thread had better not hold such a lock meanwhile: the handler waits for it, and its worker serves nobody.
/// So that this ends, a thread does not wait for a worker that has stood still for 10 ms, or 100 ms if it waits for
/// the requester: what it sends is kept in memory then, up to 100 kB for each millisecond that the worker has stood
/// still. Over all workers that is about half of [`crate::ipc::Limits::max_buffered_bytes`], or less if readers leave
/// answers unread. When that is used up it waits until the worker has stood still for a second; then its requests that
/// somebody answers end with HANDLER_FAILED, until it goes on.
///
/// Dropped without an answer, it answers HANDLER_FAILED, unless no answer is due: to a one-way message, or to
/// a part of a request that is a stream.
#[derive(Debug)]
pub struct Deferred {
    to: ReplyTo,
    inbox: Arc<Inbox>,
    connection: Arc<ConnectionShared>,
    /// The last answer was sent.
    answered: bool,
    max_message_bytes: u32,
}

impl std::fmt::Debug for ConnectionShared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConnectionShared").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Inbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inbox").finish_non_exhaustive()
    }
}

impl Deferred {
    pub(super) fn new(
        to: ReplyTo,
        inbox: Arc<Inbox>,
        connection: Arc<ConnectionShared>,
        max_message_bytes: u32,
    ) -> Deferred {
        Deferred {
            to,
            inbox,
            connection,
            answered: false,
            max_message_bytes,
        }
    }

    /// Answers with this payload. One that is longer than `max_message_bytes`, the server's or what the
    /// client said in its handshake, becomes HANDLER_FAILED, since it could not be received. So does, within a
    /// handler, the answer to one who is too far behind in reading, as at [`Deferred::stream_part`].
    ///
    /// # Errors
    /// [`Gone`]; nobody gets the answer.
    pub fn reply(mut self, payload: impl Into<Vec<u8>>) -> Result<(), Gone> {
        let payload = payload.into();
        if std::mem::replace(&mut self.answered, true) {
            return Err(Gone);
        }
        if payload.len() > self.max_message_bytes as usize {
            let text = too_long_text(payload.len(), self.max_message_bytes);
            return self.send(Body::Error(ErrorCode::HandlerFailed, text));
        }
        if !self.to.wanted {
            // A one-way message's answer goes nowhere, so there is nobody to wait for.
            return self.send(Body::Last(Vec::new()));
        }
        // If the requester is gone, `send` says so, and tells the worker that nothing is owed any more.
        if self.has_room() == Ok(false) {
            return self.send_no_room();
        }
        self.send(Body::Last(payload))
    }

    /// Sends one part of an answer that is a stream; [`Deferred::reply`] sends the last. Waits while more
    /// than 1 MiB of answers wait to be read. A part longer than `max_message_bytes` is cut into several.
    ///
    /// Within a handler it does not wait. There, once more than [`crate::ipc::Limits::max_buffered_bytes`] are
    /// buffered over all connections, and more than half of that are answers, the stream of a requester that is
    /// more than 1 MiB behind ends with HANDLER_FAILED. So a handler may hand on to many what it gets, and the
    /// slowest reader does not cost all memory. What one round sends beyond 512 parts counts twice.
    ///
    /// # Errors
    /// [`Gone`]: nobody gets the rest of the stream, so it may as well end.
    pub fn stream_part(&mut self, payload: impl Into<Vec<u8>>) -> Result<(), Gone> {
        let payload = payload.into();
        let piece_bytes_max = (self.max_message_bytes as usize).max(1);
        if payload.len() <= piece_bytes_max {
            return self.stream_piece(payload);
        }
        payload
            .chunks(piece_bytes_max)
            .try_for_each(|piece| self.stream_piece(piece.to_vec()))
    }

    fn stream_piece(&mut self, payload: Vec<u8>) -> Result<(), Gone> {
        if self.answered {
            return Err(Gone);
        }
        if !self.has_room()? {
            // A part that was left out would not be missed: the stream ends here.
            self.answered = true;
            return self.send_no_room();
        }
        self.send(Body::Part(payload))
    }

    fn send_no_room(&self) -> Result<(), Gone> {
        let text = match self.inbox.is_given_up() {
            true => "the server has stood still for longer than a second: see its log",
            false => "answers that were not read passed max_buffered_bytes: read faster",
        };
        let _ = self.send(Body::Error(ErrorCode::HandlerFailed, text.into()));
        Err(Gone)
    }

    /// Whether there is room for another part or answer. A thread waits for it, unless what it waits for may be a
    /// lock of its own: see [`Inbox::patience`].
    ///
    /// A worker does not wait: it may be the one that serves the requester, and it serves others. There is no room
    /// if the requester leaves so much unread that memory would grow without a bound.
    fn has_room(&self) -> Result<bool, Gone> {
        // The worker is quicker than a reader.
        let mut pause_us = if self.inbox.is_overfull() { 1 } else { 20 };
        // Ends when the requester reads, or its connection is closed because it does not; or with the patience.
        loop {
            let is_behind = self.waiting_bytes() > WAITING_BYTES_MAX;
            if !is_behind && !self.inbox.is_overfull() {
                return Ok(true);
            }
            if Inbox::is_on_worker() {
                let is_overdrawn = || self.inbox.room().is_overdrawn_by(self.queued_bytes());
                return Ok(!(self.inbox.is_given_up() || is_behind && is_overdrawn()));
            }
            if self.is_unreachable() || self.is_cancelled() {
                return Err(Gone);
            }
            let (silence_ns_max, pause_us_max) = match is_behind {
                true => (BEHIND_NS_MAX, 5_000),
                false => (FULL_NS_MAX, 1_000),
            };
            match self.inbox.patience(silence_ns_max, true) {
                Patience::Left => {}
                Patience::Over => {
                    self.inbox.goes_on();
                    return Ok(true);
                }
                Patience::Lost => return Ok(false),
            }
            std::thread::sleep(Duration::from_micros(pause_us));
            pause_us = (pause_us * 2).min(pause_us_max);
        }
    }

    /// Answers with an error; the connection stays. A text of more than 4,096 bytes is cut.
    ///
    /// # Errors
    /// [`Gone`]; nobody gets the error.
    pub fn error(mut self, code: ErrorCode, text: impl Into<String>) -> Result<(), Gone> {
        if std::mem::replace(&mut self.answered, true) {
            return Err(Gone);
        }
        self.send(Body::Error(code, text.into()))
    }

    /// Whether the requester can no longer be reached or has cancelled its request, so that the work may as
    /// well stop. Over shared memory the end of a client's process is noticed at once. Over TCP it is noticed
    /// when something is sent to it, or after a few minutes: until then the client may have closed its sending
    /// side alone, and wait for its answers.
    pub fn is_gone(&self) -> bool {
        self.answered || self.is_unreachable() || self.is_cancelled()
    }

    fn is_unreachable(&self) -> bool {
        // Acquire: pairs with the release in `Worker::release`.
        self.connection.closed.load(Ordering::Acquire) || self.inbox.is_closed()
    }

    fn is_cancelled(&self) -> bool {
        self.connection.cancelled.contains(self.to.number)
    }

    fn queued_bytes(&self) -> usize {
        self.connection.queued_bytes()
    }

    fn waiting_bytes(&self) -> usize {
        self.queued_bytes() + self.connection.staged_bytes.load(Ordering::Relaxed)
    }

    fn send(&self, body: Body) -> Result<(), Gone> {
        if self.is_unreachable() {
            return Err(Gone);
        }
        if self.is_cancelled() {
            if !matches!(body, Body::Part(_)) {
                // Tells the worker that nothing is owed any more.
                let _ = self.deliver(Body::Nothing);
            }
            return Err(Gone);
        }
        self.deliver(body)
    }

    /// Sends it through the worker's inbox.
    fn deliver(&self, body: Body) -> Result<(), Gone> {
        let bytes = body.len();
        self.connection
            .queued_bytes
            .fetch_add(bytes, Ordering::Relaxed);
        self.inbox
            .send(Message::Answer(Answer { to: self.to, body }))
            .map_err(|_| Gone)
    }
}

impl Body {
    pub(super) fn len(&self) -> usize {
        match self {
            Body::Part(payload) | Body::Last(payload) => payload.len(),
            Body::Error(_, text) => text.len(),
            Body::Nothing => 0,
        }
    }
}

impl ConnectionShared {
    /// Bytes of answers to it in the worker's inbox.
    pub(super) fn queued_bytes(&self) -> usize {
        // Relaxed: a little more or less does not matter.
        self.queued_bytes.load(Ordering::Relaxed)
    }

    /// The worker took an answer out of its inbox.
    pub(super) fn taken(&self, body: &Body) {
        self.queued_bytes.fetch_sub(body.len(), Ordering::Relaxed);
    }
}

impl Drop for Deferred {
    fn drop(&mut self) {
        if !self.answered {
            let body = match self.to.is_due {
                true => Body::Error(ErrorCode::HandlerFailed, no_answer_text().into()),
                false => Body::Nothing,
            };
            // If the requester is gone, there is nobody to tell.
            let _ = self.send(body);
        }
    }
}
