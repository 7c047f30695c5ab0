//! The blocking client.
//!
//! One call goes like this: [`Client::call`] gives the request an id ([`flights`]) and a frame, which
//! [`send`] queues in the connection's buffers ([`channel`]) or writes straight into the ring; [`inner`]
//! then waits, spinning or sleeping ([`wait`], [`deadline`]); what arrives becomes answers in [`receive`],
//! and [`mod@collect`] hands them out. An answer that nobody waits for at the moment is kept in [`kept`].
//!
//! - A connection: [`address`], [`connect`], [`link`], which is either [`tcp`] or [`shm`].
//! - Messages that do not fit into a record: [`long`]. Payloads written in place, for the C library:
//!   [`reserve`].
//! - A connection that was lost: [`loss`] decides which requests fail, [`reconnect`] and [`backoff`] make a
//!   new one.
//! - Event loops: [`events`], and [`watch`] for shared memory.

mod address;
mod answer;
mod backoff;
mod builder;
mod channel;
mod collect;
mod connect;
mod deadline;
mod error;
mod events;
mod flights;
mod histogram;
mod inner;
mod kept;
mod lengths;
mod link;
mod long;
mod loss;
mod receive;
mod reconnect;
mod reserve;
mod send;
mod shm;
mod tcp;
#[cfg(test)]
mod tests;
mod wait;
mod watch;

use std::cell::RefCell;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

pub(crate) use address::Address;
pub use answer::{Answer, AnswerRef, ClientStats, PeerLimits};
pub use builder::ClientBuilder;
pub use collect::Parts;
use collect::{collect, take_kept};
use deadline::Deadline;
pub use error::Error;
use inner::{Inner, Keep};
use receive::ToCaller;
pub use watch::Watch;

use crate::stats::Transport;
use crate::wire::{Flags, ProtocolVersion, Refusal, msg_type};

/// A connection to a server, for one thread at a time: it can be sent to another thread, not
/// shared. Many threads share a [`crate::ipc::ConnectionPool`].
///
/// A lost connection is made anew by the next request, unless the builder says otherwise. A request
/// that was not sent is then sent; one that may have been carried out fails with
/// [`Error::ConnectionLost`], which says so.
///
/// Every method that waits does so for at most the builder's timeout. A request that is not answered in
/// time is forgotten: the server is told (CANCEL), and an answer that still comes is dropped.
///
/// While the server is gone, methods that wait for an answer ([`Client::call`], [`Client::wait`],
/// [`Client::ping`] and the like), and those that send what is queued ([`Client::flush`], [`Client::poll`]),
/// try again and again to reach it, until the timeout or [`ClientBuilder::reconnect_timeout`].
/// [`Client::submit`], [`Client::submit_part`] and [`Client::send`] do not wait for a server that is gone:
/// they make one attempt, which takes at most the builder's connect timeout. In the pause of at most 80 ms
/// that follows a failed attempt, they fail at once with [`Error::Unavailable`]. Both errors are safe to
/// repeat.
///
/// A call that waits for a server whose process dies ends with an error: at once over TCP, within 50 ms over
/// shared memory.
///
/// ```
/// # let server = lapce_ai::ipc::Server::builder().bind("127.0.0.1:0").start()?;
/// # let address = server.local_addr().unwrap().to_string();
/// use lapce_ai::ipc::{Client, msg_type};
///
/// let client = Client::connect(&address)?;
/// assert_eq!(client.call(msg_type::ECHO, b"hello")?, b"hello");
///
/// // Many requests on their way at once:
/// let ids = [
///     client.submit(msg_type::ECHO, b"one")?,
///     client.submit(msg_type::ECHO, b"two")?,
/// ];
/// assert_eq!(client.wait(ids[1])?, b"two");
/// assert_eq!(client.wait(ids[0])?, b"one");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Client {
    inner: RefCell<Inner>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut debug = f.debug_struct("Client");
        if let Ok(inner) = self.inner.try_borrow() {
            debug
                .field("address", &inner.address)
                .field("transport", &inner.transport)
                .field("in_flight", &inner.flights.count());
        }
        debug.finish_non_exhaustive()
    }
}

impl Client {
    fn new(inner: Inner) -> Client {
        Client {
            inner: RefCell::new(inner),
        }
    }

    /// Connects with the defaults to HOST:PORT, `shm:` or `shm:INSTANCE`.
    ///
    /// # Errors
    /// As [`ClientBuilder::connect`].
    pub fn connect(address: &str) -> Result<Client, Error> {
        Client::builder().connect(address)
    }

    /// A builder with the defaults.
    pub fn builder() -> ClientBuilder {
        ClientBuilder::default()
    }

    /// Sends a request and waits for its answer. The parts of an answer that is a stream are joined.
    ///
    /// # Errors
    /// - [`Error::Remote`]: the server answered with an error.
    /// - [`Error::ConnectionLost`], [`Error::Timeout`], [`Error::ConnectFailed`], [`Error::NotSent`]: no
    ///   answer came. [`Error::is_safe_to_repeat`] tells whether the request was certainly not carried out.
    /// - [`Error::TooLarge`], [`Error::ReservedType`], [`Error::InvalidRequest`]: the request cannot be sent.
    /// - [`Error::ServerViolation`], [`Error::Unread`]: the answer cannot be taken.
    pub fn call(&self, msg_type: u16, payload: &[u8]) -> Result<Vec<u8>, Error> {
        let mut answer = Vec::new();
        self.call_into(msg_type, payload, &mut answer)?;
        Ok(answer)
    }

    /// As [`Client::call`], but replaces what is in `answer`: if that has enough capacity, nothing is
    /// allocated. After an error, its contents are unspecified.
    ///
    /// ```
    /// # let server = lapce_ai::ipc::Server::builder().bind("127.0.0.1:0").start()?;
    /// # let address = server.local_addr().unwrap().to_string();
    /// # use lapce_ai::ipc::{Client, msg_type};
    /// let client = Client::connect(&address)?;
    /// let mut answer = Vec::with_capacity(1024);
    /// for number in 0..10u8 {
    ///     client.call_into(msg_type::ECHO, &[number; 100], &mut answer)?;
    ///     assert_eq!(answer, [number; 100]);
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn call_into(
        &self,
        msg_type: u16,
        payload: &[u8],
        answer: &mut Vec<u8>,
    ) -> Result<(), Error> {
        let inner = &mut *self.inner.borrow_mut();
        let mut deadline = inner.deadline();
        call(inner, msg_type, payload, answer, &mut deadline)
    }

    /// As [`Client::call`], with a timeout of its own instead of the builder's.
    ///
    /// ```
    /// # let server = lapce_ai::ipc::Server::builder()
    /// #     .bind("127.0.0.1:0")
    /// #     .handler(0x0100, |_, responder: lapce_ai::ipc::Responder<'_>| {
    /// #         std::mem::forget(responder.detach());
    /// #     })
    /// #     .start()?;
    /// # let address = server.local_addr().unwrap().to_string();
    /// use lapce_ai::ipc::{Client, Error};
    /// use std::time::Duration;
    ///
    /// let client = Client::connect(&address)?;
    /// // Its handler is in no hurry.
    /// let answer = client.call_within(0x0100, b"soon?", Duration::from_millis(10));
    /// assert!(matches!(answer, Err(Error::Timeout { .. })));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn call_within(
        &self,
        msg_type: u16,
        payload: &[u8],
        timeout: Duration,
    ) -> Result<Vec<u8>, Error> {
        let inner = &mut *self.inner.borrow_mut();
        let mut answer = Vec::new();
        let mut deadline = Deadline::after(timeout);
        call(inner, msg_type, payload, &mut answer, &mut deadline)?;
        Ok(answer)
    }

    /// As [`Client::call`], for a request that does no harm when it is carried out twice: if the connection
    /// is lost before the answer is here, the request is sent again, until the timeout.
    ///
    /// # Errors
    /// As [`Client::call`]; SHUTTING_DOWN too, at once, while a server that is being stopped still answers what
    /// it had begun: pause before calling again. If the request was sent at least once and may have been carried out, the error
    /// says so, even if the last attempt alone was safe to repeat.
    pub fn call_idempotent(&self, msg_type: u16, payload: &[u8]) -> Result<Vec<u8>, Error> {
        let inner = &mut *self.inner.borrow_mut();
        let mut deadline = inner.deadline();
        let mut answer = Vec::new();
        let mut one_may_have_run = false;
        // Ends with an answer, another error, or the deadline; connecting pauses between attempts.
        loop {
            match call(inner, msg_type, payload, &mut answer, &mut deadline) {
                Ok(()) => return Ok(answer),
                Err(Error::ConnectionLost { may_have_run, .. }) if inner.options.reconnect => {
                    one_may_have_run |= may_have_run;
                }
                // That the last attempt was not carried out does not hold for those before it.
                Err(error) if one_may_have_run && error.is_safe_to_repeat() => {
                    let source = match error {
                        Error::ConnectFailed { source, .. } => Some(source),
                        _ => None,
                    };
                    return Err(Error::ConnectionLost {
                        may_have_run: true,
                        source,
                    });
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends a one-way message, which gets no answer. When this returns, the message is in the kernel's send
    /// buffer or in the ring; whether it arrives is not known. Waits (backpressure) while there is no room
    /// for it, but not for a server that is gone.
    ///
    /// ```
    /// # let server = lapce_ai::ipc::Server::builder()
    /// #     .bind("127.0.0.1:0")
    /// #     .handler(0x0100, |_, _| ())
    /// #     .start()?;
    /// # let address = server.local_addr().unwrap().to_string();
    /// # use lapce_ai::ipc::Client;
    /// let client = Client::connect(&address)?;
    /// client.send(0x0100, b"something happened")?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn send(&self, msg_type: u16, payload: &[u8]) -> Result<(), Error> {
        let inner = &mut *self.inner.borrow_mut();
        let mut deadline = inner.deadline().with_server_only();
        inner.send_one_way(msg_type, payload, &mut deadline)
    }

    /// Sends a request whose answer is a stream, and returns its parts one by one as they come. Each part may
    /// take as long as the builder's timeout. Dropping the iterator early cancels the request, as
    /// [`Client::cancel`] does.
    ///
    /// # Errors
    /// As [`Client::call`]; those of the answer are items of the iterator, after which it ends.
    ///
    /// ```
    /// # let server = lapce_ai::ipc::Server::builder()
    /// #     .bind("127.0.0.1:0")
    /// #     .handler(0x0100, |_, mut responder: lapce_ai::ipc::Responder<'_>| {
    /// #         responder.stream_part(b"one ");
    /// #         responder.reply(b"two");
    /// #     })
    /// #     .start()?;
    /// # let address = server.local_addr().unwrap().to_string();
    /// # use lapce_ai::ipc::Client;
    /// let client = Client::connect(&address)?;
    /// let parts: Result<Vec<_>, _> = client.call_stream(0x0100, b"count")?.collect();
    /// assert_eq!(parts?, [b"one ".to_vec(), b"two".to_vec()]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn call_stream(&self, msg_type: u16, payload: &[u8]) -> Result<Parts<'_>, Error> {
        let inner = &mut *self.inner.borrow_mut();
        let mut deadline = inner.deadline();
        let id = inner.submit_within(Flags::NONE, msg_type, payload, &mut deadline)?;
        let sent = inner.send_queued(&mut deadline);
        Ok(Parts::new(self, inner.begun(id, sent)?))
    }

    /// Queues a request and returns its id. It is sent by [`Client::flush`], or when an answer is waited for,
    /// or when 32 KiB are queued. Waits for answers if [`ClientBuilder::max_inflight`] requests are in flight,
    /// and for the server to read if 32 KiB are queued (backpressure), but not for a server that is gone.
    ///
    /// # Errors
    /// [`Error::NotSent`] if that took longer than the timeout, [`Error::Unavailable`] or
    /// [`Error::ConnectFailed`] if there is no server: the request was not queued, and may be submitted
    /// again. [`Error::Timeout`] if it was queued, and part of it perhaps sent, but the server did not read on in
    /// time: it is forgotten then, as by [`Client::cancel`]. So a payload above 32 KiB, which is sent here and
    /// not by [`Client::flush`], may take the whole timeout: an event loop gives it to another thread.
    /// [`Error::TooLarge`], [`Error::ReservedType`] or [`Error::InvalidRequest`] if it cannot be sent.
    // Always in line: a client with many in flight spends a third of its time here (docs/benchmarks.md).
    #[inline(always)]
    pub fn submit(&self, msg_type: u16, payload: &[u8]) -> Result<u64, Error> {
        let inner = &mut *self.inner.borrow_mut();
        inner.submit(Flags::NONE, msg_type, payload)
    }

    /// As [`Client::submit`], with [`Flags::PRIORITY`], or with [`Flags::STREAM`] for a request that
    /// [`Client::submit_part`] continues, or both.
    pub fn submit_with(&self, flags: Flags, msg_type: u16, payload: &[u8]) -> Result<u64, Error> {
        let allowed = Flags::PRIORITY | Flags::STREAM;
        if !allowed.contains(flags) {
            return Err(Error::InvalidRequest(
                "only PRIORITY and STREAM can be asked for",
            ));
        }
        let inner = &mut *self.inner.borrow_mut();
        if flags != Flags::NONE && inner.options.version == ProtocolVersion::V1 {
            return Err(Error::InvalidRequest("version 1 has no flags"));
        }
        inner.submit(flags, msg_type, payload)
    }

    /// Queues the next part of a request that was submitted with [`Flags::STREAM`]. `last` ends the request.
    ///
    /// ```
    /// # let server = lapce_ai::ipc::Server::builder().bind("127.0.0.1:0").start()?;
    /// # let address = server.local_addr().unwrap().to_string();
    /// use lapce_ai::ipc::{Client, Flags, msg_type};
    ///
    /// let client = Client::connect(&address)?;
    /// let id = client.submit_with(Flags::STREAM, msg_type::ECHO, b"first, ")?;
    /// client.submit_part(id, msg_type::ECHO, b"second", true)?;
    /// assert_eq!(client.wait(id)?, b"first, second");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn submit_part(
        &self,
        id: u64,
        msg_type: u16,
        payload: &[u8],
        last: bool,
    ) -> Result<(), Error> {
        let inner = &mut *self.inner.borrow_mut();
        if inner.options.version == ProtocolVersion::V1 {
            return Err(Error::InvalidRequest("version 1 has no streams"));
        }
        let mut deadline = inner.deadline().with_server_only();
        inner.submit_part(id, msg_type, payload, last, &mut deadline)
    }

    /// Sends what is queued. Waits while there is no room for it (backpressure), and for a server that is
    /// gone.
    ///
    /// # Errors
    /// [`Error::Timeout`], or why there is no connection; what is queued then may be sent later.
    pub fn flush(&self) -> Result<(), Error> {
        let inner = &mut *self.inner.borrow_mut();
        let mut deadline = inner.deadline();
        inner.send_queued(&mut deadline)
    }

    /// For the C library: memory for the payload of a request, and its size. It is valid until
    /// [`Client::commit`], [`Client::abort`] or the client's end; nothing else may be sent before.
    #[doc(hidden)]
    pub fn reserve(&self, msg_type: u16, length: usize) -> Result<(*mut u8, usize), Error> {
        let inner = &mut *self.inner.borrow_mut();
        let mut deadline = inner.deadline();
        inner.reserve(msg_type, length, &mut deadline)
    }

    /// For the C library: sends what was written to reserved memory as a request, as
    /// [`Client::submit`] does. The reservation ends, unless the length is more than was reserved.
    #[doc(hidden)]
    pub fn commit(&self, length: usize) -> Result<u64, Error> {
        let inner = &mut *self.inner.borrow_mut();
        let mut deadline = inner.deadline();
        inner.commit(length, &mut deadline)
    }

    /// For the C library: gives up what was reserved.
    #[doc(hidden)]
    pub fn abort(&self) -> Result<(), Error> {
        self.inner.borrow_mut().abort()
    }

    /// For the C library: whether a reservation is open.
    #[doc(hidden)]
    pub fn has_reservation(&self) -> bool {
        self.inner.borrow().reserved.is_some()
    }

    /// The next answer that is here, to any request; `None` if there is none. Sends what is queued as far as
    /// that is possible without waiting. It waits only if the connection was lost and something is left to
    /// be sent over a new one.
    pub fn poll(&self) -> Result<Option<Answer>, Error> {
        let inner = &mut *self.inner.borrow_mut();
        send_for_poll(inner)?;
        if inner.ready.is_empty() {
            inner.take_received(&mut |_| Keep::Queue)?;
        }
        Ok(inner.ready.pop())
    }

    /// Gives all answers that are here to `sink`, straight from the receive buffer; returns how many. As
    /// [`Client::poll`], it does not wait.
    ///
    /// # Panics
    /// If `sink` uses the client.
    ///
    /// ```
    /// # let server = lapce_ai::ipc::Server::builder().bind("127.0.0.1:0").start()?;
    /// # let address = server.local_addr().unwrap().to_string();
    /// # use lapce_ai::ipc::{Client, msg_type};
    /// let client = Client::connect(&address)?;
    /// for _ in 0..100 {
    ///     client.submit(msg_type::ECHO, &[7; 64])?;
    /// }
    /// while client.in_flight() > 0 {
    ///     client.poll_with(|answer| assert_eq!(answer.result.unwrap(), [7; 64]))?;
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn poll_with(&self, mut sink: impl FnMut(AnswerRef<'_>)) -> Result<usize, Error> {
        let inner = &mut *self.inner.borrow_mut();
        send_for_poll(inner)?;
        let kept = take_kept(inner, &mut sink);
        if kept > 0 {
            return Ok(kept);
        }
        ToCaller(inner).0.take_received(&mut |answer| {
            sink(answer);
            Keep::Done
        })
    }

    /// As [`Client::poll_with`], but waits until there is at least one answer.
    ///
    /// # Errors
    /// [`Error::Timeout`]; [`Error::InvalidRequest`] if no request is in flight; [`Error::ServerViolation`];
    /// or why there is no connection. What became of each request is told to `sink`.
    ///
    /// # Panics
    /// If `sink` uses the client.
    pub fn wait_with(&self, mut sink: impl FnMut(AnswerRef<'_>)) -> Result<usize, Error> {
        let inner = &mut *self.inner.borrow_mut();
        let kept = take_kept(inner, &mut sink);
        if kept > 0 {
            return Ok(kept);
        }
        if inner.flights.count() == 0 {
            return Err(NONE_IN_FLIGHT);
        }
        let mut deadline = inner.deadline();
        let mut given = 0;
        ToCaller(inner).0.wait_some(&mut deadline, &mut |answer| {
            given += 1;
            sink(answer);
            Keep::Done
        })?;
        // Some may have come while requests were being sent.
        Ok(given + take_kept(inner, &mut sink))
    }

    /// Waits for the answer to one request. Answers to others are kept for later.
    ///
    /// # Errors
    /// As [`Client::call`]; and [`Error::InvalidRequest`] if no such request is in flight, because
    /// its answer has been collected, say.
    pub fn wait(&self, id: u64) -> Result<Vec<u8>, Error> {
        let inner = &mut *self.inner.borrow_mut();
        let mut deadline = inner.deadline();
        let mut answer = Vec::new();
        collect(inner, id, &mut deadline, &mut answer)?;
        Ok(answer)
    }

    /// Waits for the next answer to any request.
    ///
    /// # Errors
    /// [`Error::Timeout`]; [`Error::InvalidRequest`] if no request is in flight; [`Error::ServerViolation`];
    /// or why there is no connection. What became of the request is in the [`Answer`].
    pub fn wait_any(&self) -> Result<Answer, Error> {
        let inner = &mut *self.inner.borrow_mut();
        let mut deadline = inner.deadline();
        // One turn, unless answers came while requests were being sent.
        loop {
            if let Some(answer) = inner.ready.pop() {
                return Ok(answer);
            }
            if inner.flights.count() == 0 {
                return Err(NONE_IN_FLIGHT);
            }
            inner.wait_some(&mut deadline, &mut |_| Keep::Queue)?;
        }
    }

    /// Tells the server (CANCEL) that the answer to this request is no longer wanted, and forgets the
    /// request. Whether it is carried out is not known. Does not wait, and never fails.
    pub fn cancel(&self, id: u64) -> Result<(), Error> {
        self.inner.borrow_mut().forget(id);
        Ok(())
    }

    /// Sends a HEARTBEAT and waits for its answer; returns how long that took.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn ping(&self) -> Result<Duration, Error> {
        let timeout = self.inner.borrow().options.timeout;
        self.heartbeat(&[], timeout)
    }

    pub(crate) fn heartbeat(&self, payload: &[u8], timeout: Duration) -> Result<Duration, Error> {
        let start = Instant::now();
        let inner = &mut *self.inner.borrow_mut();
        let mut deadline = Deadline::after(timeout);
        let mut answer = Vec::new();
        call(
            inner,
            msg_type::HEARTBEAT,
            payload,
            &mut answer,
            &mut deadline,
        )?;
        if answer != payload {
            return Err(Error::ServerViolation(Refusal::BadPayload(
                "a heartbeat's answer repeats its payload",
            )));
        }
        Ok(start.elapsed())
    }

    /// How the bytes travel; of a lost connection, how they travelled.
    pub fn transport(&self) -> Transport {
        self.inner.borrow().transport
    }

    /// What the server said of its limits when the connection was made.
    pub fn peer_limits(&self) -> PeerLimits {
        self.inner.borrow().peer
    }

    /// How many requests have not been answered in full.
    pub fn in_flight(&self) -> usize {
        self.inner.borrow().flights.count()
    }

    /// Whether the connection is up, as far as is known without asking the server.
    pub fn is_connected(&self) -> bool {
        self.inner.borrow().is_connected()
    }

    /// What this client has done so far.
    pub fn stats(&self) -> ClientStats {
        self.inner.borrow().stats
    }

    /// The times from each request's submission to the last part of its answer, in nanoseconds; `None`
    /// unless [`ClientBuilder::record_round_trips`] was set. The histogram has two significant digits and
    /// counts anything above 100 s as 100 s.
    ///
    /// ```
    /// # let server = lapce_ai::ipc::Server::builder().bind("127.0.0.1:0").start()?;
    /// # let address = server.local_addr().unwrap().to_string();
    /// # use lapce_ai::ipc::Client;
    /// let client = Client::builder().record_round_trips(true).connect(&address)?;
    /// client.ping()?;
    /// let round_trips = client.round_trips().unwrap();
    /// assert_eq!(round_trips.len(), 1);
    /// println!("{} ns", round_trips.value_at_quantile(0.99));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn round_trips(&self) -> Option<Histogram<u64>> {
        self.inner.borrow().round_trips.clone()
    }

    /// Whether the connection of a client with nothing in flight is up. What has arrived and nobody waits for
    /// is dropped, since the connection's end may come after it.
    pub(crate) fn is_alive(&self) -> bool {
        let inner = &mut *self.inner.borrow_mut();
        inner.look_for_the_end();
        inner.channel.is_some()
    }

    /// For the pool: forgets everything of the last user, so that the next one sees nothing of it. False if
    /// the connection cannot be used again.
    pub(crate) fn leave_clean(&self) -> bool {
        self.inner.borrow_mut().leave_clean()
    }

    /// Ends the connection in an orderly way (DISCONNECT). Requests in flight may still be carried out, but
    /// their answers are dropped. Dropping the client does the same.
    pub fn close(self) {
        drop(self);
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.inner.get_mut().say_goodbye();
    }
}

const NONE_IN_FLIGHT: Error = Error::InvalidRequest("no request is in flight");

fn call(
    inner: &mut Inner,
    msg_type: u16,
    payload: &[u8],
    answer: &mut Vec<u8>,
    deadline: &mut Deadline,
) -> Result<(), Error> {
    let id = inner.submit_now(msg_type, payload, deadline)?;
    answer.clear();
    collect(inner, id, deadline, answer)
}

/// Sends what can be sent without waiting; waits only for a new connection, if one is needed.
fn send_for_poll(inner: &mut Inner) -> Result<(), Error> {
    if !inner.send_some()? && inner.channel.is_none() {
        let mut deadline = inner.deadline();
        inner.send_queued(&mut deadline)?;
    }
    Ok(())
}
