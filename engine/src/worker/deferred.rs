//! Answers that come later, from another thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use super::handler::ReplyTo;
use super::inbox::{Inbox, Message};
use super::owed::Cancelled;
use crate::wire::ErrorCode;

/// Answers wait in memory up to this many bytes per connection; then whoever has another waits.
const WAITING_BYTES_MAX: usize = 1024 * 1024;

/// What a connection shares with the answers that other threads prepare for it.
#[derive(Debug, Default)]
pub(super) struct ConnectionShared {
    /// The connection is gone: nobody will read the answer.
    pub(super) closed: AtomicBool,
    /// Bytes of answers in the worker's inbox.
    queued_bytes: AtomicUsize,
    /// Bytes that the worker holds for the connection, as it last said.
    pub(super) staged_bytes: AtomicUsize,
    pub(super) cancelled: Cancelled,
}

#[derive(Debug)]
pub(super) enum Body {
    Part(Vec<u8>),
    Last(Vec<u8>),
    Error(ErrorCode, String),
    /// There is no answer, and none is due.
    Nothing,
}

/// A part of an answer on its way to the worker.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(super) to: ReplyTo,
    pub(super) body: Body,
}

/// The requester cannot get the answer any more, or does not want it: its connection is gone, it has
/// cancelled the request, or the server has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone;

impl std::fmt::Display for Gone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the requester has gone or cancelled the request: the answer was dropped")
    }
}

impl std::error::Error for Gone {}

/// The duty to answer one request, from any thread. Dropped without an answer it answers
/// HANDLER_FAILED, unless none is due: to a one-way message, or to a part of a request that is a stream. The methods may wait while the worker is busy, or while the requester does not
/// read its answers; they never wait for longer than the connection lives. Called within a handler they do
/// not wait for the requester: what they send is kept in memory until the handler returns.
#[derive(Debug)]
pub struct Deferred {
    to: ReplyTo,
    inbox: Arc<Inbox>,
    connection: Arc<ConnectionShared>,
    answered: bool,
    max_message_bytes: u32,
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

    /// Answers. An answer longer than the server's `max_message_bytes` becomes HANDLER_FAILED.
    pub fn reply(mut self, payload: impl Into<Vec<u8>>) -> Result<(), Gone> {
        let payload = payload.into();
        self.answered = true;
        if payload.len() > self.max_message_bytes as usize {
            let text = format!(
                "the answer has {} bytes, more than max_message_bytes ({})",
                payload.len(),
                self.max_message_bytes
            );
            return self.send(Body::Error(ErrorCode::HandlerFailed, text));
        }
        if !self.to.wanted {
            // It goes nowhere, so nobody has to read before.
            return self.send(Body::Last(Vec::new()));
        }
        // Gone: it is told so below, and the worker that nothing is owed any more.
        let _ = self.wait_for_reader();
        self.send(Body::Last(payload))
    }

    /// Sends one part of an answer that is a stream; [`Deferred::reply`] sends the last. Waits
    /// while the requester is far behind in reading. A part longer than `max_message_bytes` is cut
    /// into several.
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
        self.wait_for_reader()?;
        self.send(Body::Part(payload))
    }

    /// Waits while much waits for the requester to read it.
    fn wait_for_reader(&self) -> Result<(), Gone> {
        let mut pause_us = 20;
        // Ends when the requester reads, or its connection is closed for not reading. A worker does not
        // wait: the requester may be its own, and others are.
        while self.waiting_bytes() > WAITING_BYTES_MAX && !Inbox::is_on_worker() {
            if self.is_gone() {
                return Err(Gone);
            }
            std::thread::sleep(Duration::from_micros(pause_us));
            pause_us = (pause_us * 2).min(5_000);
        }
        Ok(())
    }

    /// Answers with an error; the connection stays.
    pub fn error(mut self, code: ErrorCode, text: impl Into<String>) -> Result<(), Gone> {
        self.answered = true;
        self.send(Body::Error(code, text.into()))
    }

    /// Whether the requester can no longer be reached or has cancelled its request, so that the work may
    /// as well stop. Over TCP, that a client has closed its connection or died is only seen once something
    /// is sent to it: before that it might have closed its sending side alone, and wait for what it is owed.
    pub fn is_gone(&self) -> bool {
        self.is_unreachable() || self.is_cancelled()
    }

    fn is_unreachable(&self) -> bool {
        self.connection.closed.load(Ordering::Acquire) || self.inbox.is_closed()
    }

    fn is_cancelled(&self) -> bool {
        self.connection.cancelled.contains(self.to.number)
    }

    fn waiting_bytes(&self) -> usize {
        self.connection.queued_bytes.load(Ordering::Relaxed)
            + self.connection.staged_bytes.load(Ordering::Relaxed)
    }

    fn send(&self, body: Body) -> Result<(), Gone> {
        if self.is_unreachable() {
            return Err(Gone);
        }
        if self.is_cancelled() {
            if !matches!(body, Body::Part(_)) {
                // The worker is told that nothing is owed any more.
                let _ = self.deliver(Body::Nothing);
            }
            return Err(Gone);
        }
        self.deliver(body)
    }

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
    /// The worker took an answer out of its inbox.
    pub(super) fn taken(&self, body: &Body) {
        self.queued_bytes.fetch_sub(body.len(), Ordering::Relaxed);
    }
}

impl Drop for Deferred {
    fn drop(&mut self) {
        if !self.answered {
            let text = match std::thread::panicking() {
                true => "the handler panicked",
                false => "the handler gave no answer",
            };
            let body = match self.to.is_due {
                true => Body::Error(ErrorCode::HandlerFailed, text.into()),
                false => Body::Nothing,
            };
            // Gone: nobody to tell.
            let _ = self.send(body);
        }
    }
}
