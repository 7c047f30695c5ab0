//! From a verified frame to its answer: the handler is called, or the protocol's own messages (HANDSHAKE,
//! HEARTBEAT, DISCONNECT, CANCEL) are answered, or the frame is refused.

use std::any::Any;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::connection::{Connection, Phase};
use super::context::Shared;
use super::cut_off;
use super::handler::{Handler, HandlerTable, Origin, Outcome, Request, RequestParts, Responder};
use super::inbox::Inbox;
use super::outgoing::Outgoing;
use super::session::{Decision, same_secret};
use super::vec_pool::VecPool;
use crate::config::SMALL_FRAME_BYTES;
use crate::shm::Control;
use crate::stats::{Transport, WorkerStats};
use crate::sys::socket;
use crate::uring::Key;
use crate::wire::{
    self, ErrorCode, Flags, Header, Hello, PoolReport, ProtocolVersion, Refusal, accepted_header,
    capability, msg_type,
};

/// What a dispatch needs besides the connection and the table of handlers.
pub(super) struct Dispatcher {
    /// The number of the worker, for its place in the line for room.
    worker: usize,
    pub(super) shared: Arc<Shared>,
    pub(super) inbox: Arc<Inbox>,
    pub(super) stats: Arc<WorkerStats>,
    /// The worker's spare buffers; `None` while they are lent to a connection.
    pool: Option<Box<VecPool>>,
    /// The buffer into which payloads are decompressed.
    pub(super) inflated: Vec<u8>,
    /// How many bytes were decompressed in this round.
    pub(super) inflated_bytes: u64,
    pub(super) draining: bool,
    /// Requests answered by their handlers at once, since latencies were last recorded; by transport.
    pub(super) answered_inline: [u64; 2],
    /// What a HANDSHAKE_ACK offers to clients on this machine, if shared memory is offered.
    control: Option<Arc<Control>>,
}

/// A compressed HANDSHAKE may decompress to this much: its longest record, and room for the others.
const HANDSHAKE_BYTES_MAX: u32 = 128 * 1024;
/// How much of a client's identity goes into the log, in characters.
const IDENTITY_CHARS_MAX: usize = 80;
/// How many bytes may be decompressed in one round, or one message of any length: others wait meanwhile.
const INFLATED_ROUND_BYTES: u64 = 256 * 1024;
/// A decompression buffer larger than this is freed after use.
const KEPT_BYTES_MAX: usize = 64 * 1024;

impl Dispatcher {
    pub(super) fn new(
        worker: usize,
        shared: Arc<Shared>,
        stats: Arc<WorkerStats>,
        control: Option<Arc<Control>>,
    ) -> Dispatcher {
        let inbox = shared.inboxes[worker].clone();
        Dispatcher {
            worker,
            shared,
            inbox,
            stats,
            pool: Some(Box::default()),
            inflated: Vec::new(),
            inflated_bytes: 0,
            draining: false,
            answered_inline: [0; 2],
            control,
        }
    }

    /// The worker's spare buffers.
    #[inline]
    pub(super) fn pool(&mut self) -> &mut VecPool {
        self.pool.get_or_insert_default()
    }

    /// Handles one frame whose header and CRC are good. Returns false if it was not handled and is to
    /// wait: it would decompress to more than there is room or time for now.
    ///
    /// What most requests need is inlined, and the rest is apart: when a request went through four
    /// functions, passing it on took as long as handling it.
    #[inline(always)]
    pub(super) fn frame(
        &mut self,
        handlers: &HandlerTable,
        key: Key,
        connection: &mut Connection,
        header: &Header,
        payload: &[u8],
        arrived_ns: u64,
    ) -> bool {
        debug_assert!(connection.takes_requests());
        if header.flags.contains(Flags::COMPRESSED) {
            return self.compressed(handlers, key, connection, header, payload, arrived_ns);
        }
        let handler = handlers.get(header.msg_type);
        let decision = self.decide(connection, header, handler.is_some());
        self.count_requests(connection, header, 1);
        match (decision, handler) {
            (Decision::Dispatch, Some(handler)) => {
                self.call(key, connection, handler, header, payload, arrived_ns);
            }
            _ => self.carry_out(decision, connection, header, payload),
        }
        true
    }

    /// As [`Dispatcher::frame`], for a run: `bytes` holds frames of `frame_bytes` each, which all begin like
    /// `first`, the header of the first. Returns how many were handled: not all if more than
    /// `outgoing_bytes_max` bytes of answers wait to be sent, or if the connection takes no more requests.
    ///
    /// The decision and the handler, which follow from flags and type, are found out once for all.
    #[inline]
    pub(super) fn run(
        &mut self,
        handlers: &HandlerTable,
        key: Key,
        connection: &mut Connection,
        first: &Header,
        (bytes, frame_bytes): (&[u8], usize),
        (arrived_ns, outgoing_bytes_max): (u64, usize),
    ) -> usize {
        let version = connection.version();
        let handler = handlers.get(first.msg_type);
        let decision = self.decide(connection, first, handler.is_some());
        let plain = version == ProtocolVersion::V2 && !first.flags.contains(Flags::COMPRESSED);
        if let (Decision::Dispatch, Some(handler), true) = (decision, handler, plain) {
            let mut done = 0;
            // Each pass handles at least one frame, or ends the loop.
            while done * frame_bytes < bytes.len()
                && connection.out.unsent_bytes() <= outgoing_bytes_max
                && (done == 0 || !self.inbox.is_pressed())
            {
                let frames = bytes[done * frame_bytes..].chunks_exact(frame_bytes);
                let limits = (arrived_ns, outgoing_bytes_max);
                done += self.calls(key, connection, handler, first, frames, limits);
            }
            self.count_requests(connection, first, done as u64);
            return done;
        }
        let mut done = 0;
        for frame in bytes.chunks_exact(frame_bytes) {
            if !connection.takes_requests()
                || connection.out.unsent_bytes() > outgoing_bytes_max
                || done > 0 && self.inbox.is_pressed()
            {
                break;
            }
            let header = accepted_header(version, frame);
            let payload = &frame[frame_bytes - first.length as usize..];
            if !self.frame(handlers, key, connection, &header, payload, arrived_ns) {
                break;
            }
            done += 1;
        }
        done
    }

    #[inline(always)]
    fn decide(&self, connection: &Connection, header: &Header, served: bool) -> Decision {
        connection.session.decide(header, served, self.draining)
    }

    #[inline(always)]
    fn count_requests(&self, connection: &Connection, header: &Header, count: u64) {
        if header.flags.contains(Flags::REQUEST) {
            self.stats.requests(connection.transport(), count);
            if connection.version() == ProtocolVersion::V1 {
                self.stats.legacy_requests(count);
            }
        }
    }

    /// As [`Dispatcher::frame`], for a frame whose payload is compressed.
    #[cold]
    fn compressed(
        &mut self,
        handlers: &HandlerTable,
        key: Key,
        connection: &mut Connection,
        header: &Header,
        payload: &[u8],
        arrived_ns: u64,
    ) -> bool {
        let plain = Header {
            flags: header.flags.without(Flags::COMPRESSED),
            ..*header
        };
        let served = handlers.get(header.msg_type).is_some();
        let decision = self.decide(connection, &plain, served);
        let is_read = matches!(
            decision,
            Decision::Dispatch | Decision::Heartbeat | Decision::Handshake
        );
        if !is_read {
            return self.frame(handlers, key, connection, &plain, payload, arrived_ns);
        }
        let max = match decision {
            // A peer that may not be admitted yet must not cost more than this.
            Decision::Handshake => HANDSHAKE_BYTES_MAX.min(self.shared.limits.max_message_bytes),
            _ => self.shared.limits.max_message_bytes,
        };
        if let Some(bytes) = wire::uncompressed_bytes(payload, max)
            && !self.may_inflate(key, connection, bytes.into())
        {
            return false;
        }
        let mut inflated = std::mem::take(&mut self.inflated);
        match wire::decompress(payload, max, &mut inflated) {
            Ok(()) => {
                self.frame(handlers, key, connection, &plain, &inflated, arrived_ns);
            }
            Err(refusal) => {
                self.count_requests(connection, header, 1);
                self.refuse_frame(connection, header, &refusal);
            }
        }
        if inflated.capacity() > KEPT_BYTES_MAX {
            inflated = Vec::new();
        }
        self.inflated = inflated;
        true
    }

    /// Whether a payload may be decompressed to this size in this round. If there is no room for it in the
    /// budget, the connection joins the line.
    fn may_inflate(&mut self, key: Key, connection: &mut Connection, bytes: u64) -> bool {
        if self.inflated_bytes > 0 && self.inflated_bytes + bytes > INFLATED_ROUND_BYTES {
            return false;
        }
        // The room reserved for the compressed message counts.
        let missing = bytes.saturating_sub(connection.handling_bytes);
        if bytes > SMALL_FRAME_BYTES as u64 && missing > 0 {
            if !self.shared.room.reserve(missing) {
                connection.waits_for_room = true;
                // For all of it: the room that the message has now is given back at the end of the round.
                self.shared.room.wait(self.worker, key, bytes);
                return false;
            }
            connection.handling_bytes += missing;
        }
        self.inflated_bytes += bytes;
        true
    }

    /// Carries out a decision that calls no handler: the protocol's own messages, and refusals.
    #[cold]
    fn carry_out(
        &mut self,
        decision: Decision,
        connection: &mut Connection,
        header: &Header,
        payload: &[u8],
    ) {
        match decision {
            Decision::Dispatch => unreachable!("decided only where there is a handler"),
            Decision::Heartbeat
                if payload.len() > connection.session.peer_message_bytes_max as usize =>
            {
                let code = ErrorCode::HandlerFailed;
                self.error(
                    connection,
                    header,
                    code,
                    "the payload is longer than you take",
                );
            }
            Decision::Heartbeat => {
                if let Some(report) = PoolReport::decode(payload) {
                    let registry = &self.shared.registry;
                    registry.pool_report(report.pool_id, report.acquired, report.reused);
                }
                self.answer(connection, header, header.msg_type, payload);
                self.answered_inline[connection.transport().index()] += 1;
            }
            Decision::Handshake => self.handshake(connection, header, payload),
            Decision::Disconnect => {
                if header.flags.contains(Flags::REQUEST) {
                    self.answer(connection, header, header.msg_type, &[]);
                }
                connection.phase = Phase::Finishing;
            }
            Decision::Error(code, text) => self.error(connection, header, code, text),
            Decision::Refuse(refusal) => {
                self.refuse_frame(connection, header, &refusal);
                cut_off::refused(connection, refusal.code(), &refusal);
            }
            Decision::Cancel => connection.out.cancel(header.msg_id),
            Decision::Ignore => {}
        }
    }

    /// Calls a handler for one request, unless other threads owe the connection too many answers.
    #[inline(always)]
    fn call(
        &mut self,
        key: Key,
        connection: &mut Connection,
        handler: &dyn Handler,
        header: &Header,
        payload: &[u8],
        arrived_ns: u64,
    ) {
        let transport = connection.transport();
        let kind = (connection.version(), transport);
        let answer_bytes_max = connection.session.peer_message_bytes_max;
        let Connection { out, peer, .. } = connection;
        std::mem::swap(&mut out.lent_pool, &mut self.pool);
        let origin = self.origin(key, kind, peer, (arrived_ns, answer_bytes_max));
        if out.owed.count() >= self.shared.limits.max_inflight_per_connection {
            owes_too_much(&origin, header, out);
            std::mem::swap(&mut out.lent_pool, &mut self.pool);
            return self.stats.error(ErrorCode::Overloaded);
        }
        let request = RequestParts {
            header,
            payload,
            origin: &origin,
        };
        // If the handler panics, its responder is dropped, and answers HANDLER_FAILED.
        let caught = catch_unwind(AssertUnwindSafe(|| {
            handler.handle(Request::new(&request), Responder::new(&request, out));
        }));
        if let Err(panic) = caught {
            forget_panic(panic);
        }
        std::mem::swap(&mut out.lent_pool, &mut self.pool);
        self.answered_inline[transport.index()] += self.settled(out.outcome);
    }

    /// As [`Dispatcher::call`], for whole version 2 frames that begin like `first`. Ends early when a
    /// handler panics, or more than `outgoing_bytes_max` bytes of answers wait. Returns for how many
    /// frames the handler was called.
    #[inline(always)]
    fn calls<'a>(
        &mut self,
        key: Key,
        connection: &mut Connection,
        handler: &dyn Handler,
        first: &Header,
        frames: impl Iterator<Item = &'a [u8]>,
        (arrived_ns, outgoing_bytes_max): (u64, usize),
    ) -> usize {
        let transport = connection.transport();
        let kind = (connection.version(), transport);
        let answer_bytes_max = connection.session.peer_message_bytes_max;
        let Connection { out, peer, .. } = connection;
        std::mem::swap(&mut out.lent_pool, &mut self.pool);
        let origin = self.origin(key, kind, peer, (arrived_ns, answer_bytes_max));
        let owed_max = self.shared.limits.max_inflight_per_connection;
        let (mut answered, mut done) = (0, 0);
        let mut header = *first;
        let caught = catch_unwind(AssertUnwindSafe(|| {
            for frame in frames {
                let payload = header.next_alike(frame);
                done += 1;
                if out.owed.count() >= owed_max {
                    owes_too_much(&origin, &header, out);
                    self.stats.error(ErrorCode::Overloaded);
                } else {
                    let request = RequestParts {
                        header: &header,
                        payload,
                        origin: &origin,
                    };
                    handler.handle(Request::new(&request), Responder::new(&request, out));
                    answered += self.settled(out.outcome);
                }
                if out.unsent_bytes() > outgoing_bytes_max || self.inbox.is_pressed() {
                    break;
                }
            }
        }));
        std::mem::swap(&mut out.lent_pool, &mut self.pool);
        if let Err(panic) = caught {
            forget_panic(panic);
            answered += self.settled(out.outcome);
        }
        self.answered_inline[transport.index()] += answered;
        done
    }

    /// What is the same for all requests of a run.
    #[inline(always)]
    fn origin<'a>(
        &'a self,
        key: Key,
        (version, transport): (ProtocolVersion, Transport),
        peer: &'a Option<SocketAddr>,
        (arrived_ns, answer_bytes_max): (u64, u32),
    ) -> Origin<'a> {
        Origin {
            key,
            version,
            transport,
            peer: peer.as_ref(),
            arrived_ns,
            inbox: &self.inbox,
            max_message_bytes: self.shared.limits.max_message_bytes.min(answer_bytes_max),
        }
    }

    /// Counts a failure, if the outcome is one. Returns how many answers were given: one or none.
    #[inline(always)]
    fn settled(&self, outcome: Outcome) -> u64 {
        match outcome == Outcome::Answered {
            true => 1,
            false => self.not_answered(outcome),
        }
    }

    #[cold]
    fn not_answered(&self, outcome: Outcome) -> u64 {
        match outcome {
            Outcome::Answered => 1,
            Outcome::Failed(code) => {
                self.stats.error(code);
                1
            }
            Outcome::Open | Outcome::Detached => 0,
        }
    }

    fn answer(
        &mut self,
        connection: &mut Connection,
        request: &Header,
        msg_type: u16,
        payload: &[u8],
    ) {
        let version = connection.version();
        let flags = Flags::RESPONSE | (request.flags & Flags::PRIORITY);
        connection.out.frame(
            self.pool(),
            version,
            flags,
            msg_type,
            request.msg_id,
            payload,
        );
    }

    /// Answers a request with an error. About a one-way message, which has no answer, an ERROR without an
    /// id is sent.
    pub(super) fn error(
        &mut self,
        connection: &mut Connection,
        request: &Header,
        code: ErrorCode,
        text: &str,
    ) {
        self.stats.error(code);
        let version = connection.version();
        write_error(
            &mut connection.out,
            self.pool(),
            version,
            request,
            code,
            text,
        );
    }

    fn refuse_frame(&mut self, connection: &mut Connection, request: &Header, refusal: &Refusal) {
        self.error(connection, request, refusal.code(), &refusal.to_string());
    }

    /// Tells the peer that its bytes are no acceptable frame, and ends the connection.
    pub(super) fn refuse_connection(
        &mut self,
        connection: &mut Connection,
        refusal: &Refusal,
        msg_id: u64,
    ) {
        self.stats.error(refusal.code());
        let version = connection.version();
        let text = refusal.to_string();
        connection
            .out
            .error(self.pool(), version, refusal.code(), &text, msg_id, false);
        cut_off::refused(connection, refusal.code(), refusal);
    }

    /// Checks what a client says of itself, admits it, and says what this server is.
    fn handshake(&mut self, connection: &mut Connection, header: &Header, payload: &[u8]) {
        let hello = match Hello::decode(payload) {
            Ok(hello) => hello,
            Err(refusal) => return self.refuse_frame(connection, header, &refusal),
        };
        if !hello.speaks(wire::VERSION) {
            let got = hello.highest_version();
            let refusal = Refusal::VersionMismatch { got };
            self.refuse_frame(connection, header, &refusal);
            return cut_off::refused(connection, refusal.code(), &refusal);
        }
        if let Some(token) = &self.shared.auth_token
            && !same_secret(hello.credentials.unwrap_or_default(), token)
        {
            let text = match hello.credentials {
                None => {
                    "this server asks for credentials, and the HANDSHAKE has none: set the client's auth token"
                }
                Some(_) => "the credentials are not this server's: check the client's auth token",
            };
            self.error(connection, header, ErrorCode::Unauthorized, text);
            return cut_off::refused(connection, ErrorCode::Unauthorized, &text);
        }
        connection.session.authenticate_by_ns = 0;
        if let Some(identity) = hello.identity {
            // Quoted and cut, since it may hold anything and be of any length.
            let name: String = identity.chars().take(IDENTITY_CHARS_MAX).collect();
            match connection.peer {
                Some(peer) => log::debug!("{peer} says it is {name:?}"),
                None => log::debug!("a client over shared memory says it is {name:?}"),
            }
        }
        if let Some(max) = hello.max_message_bytes {
            connection.peer_takes(max);
        }
        let mut encoded = self.pool().take();
        // Shared memory is offered to clients that ask for it over TCP from this machine.
        let local = connection.transport() == Transport::Tcp
            && connection
                .peer
                .is_some_and(|peer| socket::is_loopback(peer.ip()));
        let offer = self
            .control
            .as_ref()
            .filter(|_| local && hello.capabilities & capability::SHM != 0);
        let host_id = offer.map(|control| control.host_id());
        let ack = Hello {
            versions: &[wire::VERSION],
            capabilities: capability::COMPRESSION
                | if offer.is_some() { capability::SHM } else { 0 },
            identity: Some(concat!("lapce-ipc/", env!("CARGO_PKG_VERSION"))),
            credentials: None,
            shm_segment: offer.map(|control| control.name.as_str()),
            host_id: host_id.as_deref(),
            max_message_bytes: Some(self.shared.limits.max_message_bytes),
        };
        ack.encode(&mut encoded);
        self.answer(connection, header, msg_type::HANDSHAKE_ACK, &encoded);
        self.pool().give(encoded);
    }
}

/// Drops the payload of a handler's panic. Its destructor may panic in turn.
#[cold]
fn forget_panic(panic: Box<dyn Any + Send>) {
    if let Err(another) = catch_unwind(AssertUnwindSafe(|| drop(panic))) {
        std::mem::forget(another);
    }
}

/// Answers a request with OVERLOADED, because other threads owe its connection as many answers as they
/// may. A one-way message gets nothing: an ERROR without an id would be taken for the connection's end.
#[cold]
fn owes_too_much(origin: &Origin<'_>, request: &Header, out: &mut Outgoing) {
    if !request.flags.contains(Flags::REQUEST) {
        return;
    }
    let text = "too many requests of this connection are being worked on (limits.max_inflight_per_connection), cancelled ones among them";
    let code = ErrorCode::Overloaded;
    out.with_lent_pool(|out, pool| write_error(out, pool, origin.version, request, code, text));
}

/// Writes an ERROR: as the answer to a request, or without an id if there was none.
fn write_error(
    out: &mut Outgoing,
    pool: &mut VecPool,
    version: ProtocolVersion,
    request: &Header,
    code: ErrorCode,
    text: &str,
) {
    let is_request = request.flags.contains(Flags::REQUEST);
    let msg_id = if is_request { request.msg_id } else { 0 };
    out.error(pool, version, code, text, msg_id, is_request);
}
