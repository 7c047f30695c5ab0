//! What a handler gets and how it answers: the public [`Request`] and [`Responder`], and the table of
//! handlers.

use std::net::SocketAddr;
use std::sync::Arc;

use super::deferred::Deferred;
use super::inbox::Inbox;
use super::outgoing::Outgoing;
use crate::stats::Transport;
use crate::uring::Key;
use crate::wire::{ErrorCode, Flags, Header, ProtocolVersion};

/// A function that serves one message type. It runs on a worker thread, several at a time on different
/// workers, and must not block: all other connections of that worker wait. Work that takes long goes to
/// another thread with [`Responder::detach`]. A handler that panics answers HANDLER_FAILED; the server goes
/// on.
pub trait Handler: Send + Sync + 'static {
    /// Handles one request.
    fn handle(&self, request: Request<'_>, responder: Responder<'_>);
}

impl<F> Handler for F
where
    F: Fn(Request<'_>, Responder<'_>) + Send + Sync + 'static,
{
    fn handle(&self, request: Request<'_>, responder: Responder<'_>) {
        self(request, responder)
    }
}

/// Handlers by message type.
pub(crate) struct HandlerTable {
    /// For each message type one more than its handler's index, or 0 if nobody serves it. Fresh zeroed
    /// memory, so only the pages of types in use become resident.
    by_type: Vec<u16>,
    /// In boxes, not in `Arc`s: to find what is in an `Arc<dyn Handler>`, its alignment must be loaded from
    /// the vtable first.
    handlers: Vec<Box<dyn Handler>>,
}

impl HandlerTable {
    pub(crate) fn new() -> HandlerTable {
        HandlerTable {
            by_type: vec![0; 1 << 16],
            handlers: Vec::new(),
        }
    }

    /// Registers or replaces the handler of a type.
    pub(crate) fn insert(&mut self, msg_type: u16, handler: Box<dyn Handler>) {
        self.handlers.push(handler);
        self.by_type[usize::from(msg_type)] =
            u16::try_from(self.handlers.len()).expect("no more handlers than types");
    }

    #[inline]
    pub(super) fn get(&self, msg_type: u16) -> Option<&dyn Handler> {
        let index = self.by_type[usize::from(msg_type)];
        (index > 0).then(|| &*self.handlers[usize::from(index) - 1])
    }
}

/// One message from a client. The payload is private memory that nobody changes while the handler
/// runs.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// A reference, so that a request is passed on in a register: to move a struct that was just built took
    /// ten nanoseconds, waiting for its stores.
    parts: &'a RequestParts<'a>,
}

/// What a request consists of.
#[derive(Debug)]
pub(super) struct RequestParts<'a> {
    pub(super) header: &'a Header,
    pub(super) payload: &'a [u8],
    pub(super) origin: &'a Origin<'a>,
}

/// What is the same for all requests of a run, built once for all of them.
pub(super) struct Origin<'a> {
    pub(super) key: Key,
    pub(super) version: ProtocolVersion,
    pub(super) transport: Transport,
    pub(super) peer: Option<&'a SocketAddr>,
    pub(super) arrived_ns: u64,
    pub(super) inbox: &'a Arc<Inbox>,
    /// The longest payload of an answer: what server and client both accept.
    pub(super) max_message_bytes: u32,
}

impl std::fmt::Debug for Origin<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Origin")
            .field("transport", &self.transport)
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}

impl<'a> Request<'a> {
    pub(super) fn new(parts: &'a RequestParts<'a>) -> Request<'a> {
        Request { parts }
    }

    /// The message type.
    pub fn msg_type(&self) -> u16 {
        self.parts.header.msg_type
    }

    /// The id that the requester chose, unique among its requests in flight. 0 for a one-way message that
    /// has none.
    pub fn msg_id(&self) -> u64 {
        self.parts.header.msg_id
    }

    /// The payload, decompressed if it came compressed; at most the server's `max_message_bytes`.
    pub fn payload(&self) -> &'a [u8] {
        self.parts.payload
    }

    /// Whether the requester waits for an answer. False for a one-way message, whose answer is dropped.
    pub fn expects_answer(&self) -> bool {
        self.parts.header.flags.contains(Flags::REQUEST)
    }

    /// Whether more frames of this request follow (flag STREAM).
    pub fn is_stream_part(&self) -> bool {
        self.parts.header.flags.contains(Flags::STREAM)
    }

    /// The transport over which it came.
    pub fn transport(&self) -> Transport {
        self.parts.origin.transport
    }

    /// The client's address; `None` for shared memory.
    pub fn peer(&self) -> Option<SocketAddr> {
        self.parts.origin.peer.copied()
    }
}

impl std::fmt::Debug for Request<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.parts.fmt(f)
    }
}

/// What an answer needs to know of its request.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReplyTo {
    pub(super) key: Key,
    pub(super) msg_type: u16,
    pub(super) msg_id: u64,
    /// Its number among the answers owed to the connection: see [`super::owed`].
    pub(super) number: u64,
    pub(super) version: ProtocolVersion,
    pub(super) priority: bool,
    /// False for a one-way message, whose answers go nowhere.
    pub(super) wanted: bool,
    /// Without an answer, the request has failed. False for one-way messages, and for parts of a stream,
    /// which may be left unanswered.
    pub(super) is_due: bool,
    pub(super) arrived_ns: u64,
    pub(super) transport: Transport,
}

pub(super) fn answer_flags(priority: bool, last: bool) -> Flags {
    let mut flags = Flags::RESPONSE;
    if priority {
        flags = flags | Flags::PRIORITY;
    }
    if !last {
        flags = flags | Flags::STREAM;
    }
    flags
}

/// What the requester is told instead of an answer that could not be received.
#[cold]
pub(super) fn too_long_text(bytes: usize, max_message_bytes: u32) -> String {
    format!("the answer has {bytes} bytes, more than max_message_bytes ({max_message_bytes})")
}

/// What the requester is told when a responder is dropped without an answer that is due.
pub(super) fn no_answer_text() -> &'static str {
    match std::thread::panicking() {
        true => "the handler panicked",
        false => "the handler gave no answer",
    }
}

/// What became of a request when its handler returned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Nothing yet: the handler still runs, or dropped the responder without a word.
    #[default]
    Open,
    Answered,
    Failed(ErrorCode),
    /// A [`Deferred`] will answer.
    Detached,
}

/// How a handler answers: with one payload ([`Responder::reply`]), with the parts of a stream and then the
/// last, with an error, or later ([`Responder::detach`]).
///
/// Dropped without an answer, it answers HANDLER_FAILED, unless no answer is due: to a one-way message, or to
/// a part of a request that is a stream. If the client is gone, answers are dropped.
pub struct Responder<'a> {
    /// Two references, for the same reason as a request has one.
    request: &'a RequestParts<'a>,
    out: &'a mut Outgoing,
}

impl RequestParts<'_> {
    /// False for a one-way message, whose answers go nowhere.
    fn is_wanted(&self) -> bool {
        self.header.flags.contains(Flags::REQUEST)
    }

    /// False also for a part of a stream, which may be left unanswered.
    fn is_due(&self) -> bool {
        self.is_wanted() && !self.header.flags.contains(Flags::STREAM)
    }

    fn reply_to(&self, number: u64) -> ReplyTo {
        ReplyTo {
            key: self.origin.key,
            msg_type: self.header.msg_type,
            msg_id: self.header.msg_id,
            number,
            version: self.origin.version,
            priority: self.header.flags.contains(Flags::PRIORITY),
            wanted: self.is_wanted(),
            is_due: self.is_due(),
            arrived_ns: self.origin.arrived_ns,
            transport: self.origin.transport,
        }
    }
}

impl<'a> Responder<'a> {
    /// From now on and until the responder ends, `out.outcome` is this request's.
    pub(super) fn new(request: &'a RequestParts<'a>, out: &'a mut Outgoing) -> Responder<'a> {
        out.outcome = Outcome::Open;
        Responder { request, out }
    }

    /// Answers with this payload. An answer longer than `max_message_bytes`, the server's or what the
    /// client said in its handshake, becomes HANDLER_FAILED, since it could not be received.
    pub fn reply(mut self, payload: &[u8]) {
        if self.too_long(payload) {
            let text = too_long_text(payload.len(), self.request.origin.max_message_bytes);
            return self.error(ErrorCode::HandlerFailed, &text);
        }
        self.write(payload, true);
        self.out.outcome = Outcome::Answered;
    }

    /// Sends one part of an answer that is a stream; [`Responder::reply`] sends the last. Parts are
    /// buffered until the handler returns: a long stream belongs on another thread, with
    /// [`Responder::detach`]. Returns false if the part is longer than `max_message_bytes`; then
    /// nothing was sent.
    pub fn stream_part(&mut self, payload: &[u8]) -> bool {
        if self.too_long(payload) {
            return false;
        }
        self.write(payload, false);
        true
    }

    /// Answers with an error; the connection stays. A text of more than 4,096 bytes is cut.
    pub fn error(mut self, code: ErrorCode, text: &str) {
        if self.request.is_wanted() {
            self.write_error(code, text);
        }
        self.out.outcome = Outcome::Failed(code);
    }

    /// Makes the duty to answer independent of this call: the handler returns without an answer, and the
    /// [`Deferred`] answers later, from any thread. A connection may have
    /// [`crate::ipc::Limits::max_inflight_per_connection`] requests detached; further ones are answered with
    /// OVERLOADED before their handlers are called.
    pub fn detach(self) -> Deferred {
        self.out.outcome = Outcome::Detached;
        let number = self.out.owed.add(self.request.header.msg_id);
        let origin = self.request.origin;
        let shared = self.out.shared.get_or_insert_default().clone();
        let (inbox, max) = (origin.inbox.clone(), origin.max_message_bytes);
        Deferred::new(self.request.reply_to(number), inbox, shared, max)
    }

    /// Whether the requester waits for an answer.
    pub fn expects_answer(&self) -> bool {
        self.request.is_wanted()
    }

    fn too_long(&self, payload: &[u8]) -> bool {
        payload.len() > self.request.origin.max_message_bytes as usize
    }

    #[inline(always)]
    fn write(&mut self, payload: &[u8], last: bool) {
        let RequestParts { header, origin, .. } = self.request;
        if self.request.is_wanted() {
            let flags = answer_flags(header.flags.contains(Flags::PRIORITY), last);
            let (msg_type, msg_id) = (header.msg_type, header.msg_id);
            if last && self.out.repeats(flags, msg_type, msg_id, payload) {
                return;
            }
            self.out
                .answer(origin.version, flags, msg_type, msg_id, payload);
        }
    }

    fn write_error(&mut self, code: ErrorCode, text: &str) {
        let RequestParts { header, origin, .. } = self.request;
        self.out.with_lent_pool(|out, pool| {
            out.error(pool, origin.version, code, text, header.msg_id, true);
        });
    }
}

impl Drop for Responder<'_> {
    fn drop(&mut self) {
        if self.out.outcome != Outcome::Open {
            return;
        }
        if !self.request.is_due() {
            self.out.outcome = Outcome::Answered;
            return;
        }
        self.write_error(ErrorCode::HandlerFailed, no_answer_text());
        self.out.outcome = Outcome::Failed(ErrorCode::HandlerFailed);
    }
}

impl std::fmt::Debug for Responder<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Responder")
            .field("to", self.request.header)
            .finish_non_exhaustive()
    }
}

/// A handler may pass them to scoped threads.
const _: fn() = || {
    fn can_be_sent<T: Send>() {}
    fn can_be_shared<T: Sync>() {}
    can_be_sent::<Request<'_>>();
    can_be_shared::<Request<'_>>();
    can_be_sent::<Responder<'_>>();
};
