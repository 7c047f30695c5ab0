//! The blocking client.
//!
//! [`Client`] is the face; [`inner`] holds its state and reconnects; [`channel`] is one
//! connection's buffers; [`link`] is the way its bytes go.

mod address;
mod builder;
mod channel;
mod connect;
mod error;
mod flights;
mod inner;
mod link;
mod tcp;
mod wait;

use std::cell::RefCell;
use std::time::{Duration, Instant};

pub use builder::ClientBuilder;
pub use error::Error;
use inner::{Inner, Keep};

use crate::stats::Transport;
use crate::wire::{Flags, msg_type};

/// A connection to a server, for one thread at a time: it can be sent to another thread, not
/// shared. Many threads share a [`crate::ipc::ConnectionPool`].
///
/// A lost connection is made anew by the next request, unless the builder says otherwise. A request
/// that was not sent is then sent; one that may have been carried out fails with
/// [`Error::ConnectionLost`], which says so.
///
/// ```
/// # let server = lapce_ai::ipc::Server::builder().bind("127.0.0.1:0").start()?;
/// # let address = server.local_addr().unwrap().to_string();
/// use lapce_ai::ipc::{Client, msg_type};
///
/// let client = Client::connect(&address)?;
/// assert_eq!(client.call(msg_type::ECHO, b"hello")?, b"hello");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Client {
    inner: RefCell<Inner>,
}

/// One answer, or one part of a stream of answers.
#[derive(Debug)]
pub struct Answer {
    /// The id that [`Client::submit`] returned.
    pub id: u64,
    /// The message type.
    pub msg_type: u16,
    /// False: more parts follow.
    pub last: bool,
    /// The payload, or why there is none.
    pub result: Result<Vec<u8>, Error>,
}

/// As [`Answer`], borrowed from the receive buffer.
#[derive(Debug)]
pub struct AnswerRef<'a> {
    /// The id that [`Client::submit`] returned.
    pub id: u64,
    /// The message type.
    pub msg_type: u16,
    /// False: more parts follow.
    pub last: bool,
    /// The payload, or why there is none.
    pub result: Result<&'a [u8], Error>,
}

impl AnswerRef<'_> {
    fn to_owned(&self) -> Answer {
        let result = match &self.result {
            Ok(payload) => Ok(payload.to_vec()),
            Err(Error::Remote { code, message }) => Err(Error::Remote {
                code: *code,
                message: message.clone(),
            }),
            Err(Error::ConnectionLost {
                may_have_run,
                source,
            }) => Err(Error::ConnectionLost {
                may_have_run: *may_have_run,
                source: source.as_ref().map(|source| source.kind().into()),
            }),
            Err(_) => Err(Error::Closed),
        };
        Answer {
            id: self.id,
            msg_type: self.msg_type,
            last: self.last,
            result,
        }
    }
}

/// What a client has done since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientStats {
    /// Requests and one-way messages queued.
    pub sent: u64,
    /// Requests answered.
    pub received: u64,
    /// Connections made after the first.
    pub reconnects: u64,
}

impl Client {
    fn new(inner: Inner) -> Client {
        Client {
            inner: RefCell::new(inner),
        }
    }

    /// Connects with the defaults to HOST:PORT, `shm:` or `shm:INSTANCE`.
    pub fn connect(address: &str) -> Result<Client, Error> {
        Client::builder().connect(address)
    }

    /// A builder with the defaults.
    pub fn builder() -> ClientBuilder {
        ClientBuilder::default()
    }

    /// Sends a request and waits for its answer.
    pub fn call(&self, msg_type: u16, payload: &[u8]) -> Result<Vec<u8>, Error> {
        let mut answer = Vec::new();
        self.call_into(msg_type, payload, &mut answer)?;
        Ok(answer)
    }

    /// As [`Client::call`], with the answer replacing what is in `answer`: where that has room,
    /// nothing is allocated. An answer that is a stream comes joined.
    pub fn call_into(
        &self,
        msg_type: u16,
        payload: &[u8],
        answer: &mut Vec<u8>,
    ) -> Result<(), Error> {
        let inner = &mut *self.inner.borrow_mut();
        let deadline_ns = inner.deadline_ns();
        let id = inner.submit(Flags::NONE, msg_type, payload, deadline_ns)?;
        answer.clear();
        collect(inner, id, deadline_ns, answer)
    }

    /// As [`Client::call`] for a request that does no harm when it is carried out twice: if the
    /// connection is lost before the answer is here, it is sent again, until the timeout.
    pub fn call_idempotent(&self, msg_type: u16, payload: &[u8]) -> Result<Vec<u8>, Error> {
        let mut answer = Vec::new();
        let start = Instant::now();
        loop {
            match self.call_into(msg_type, payload, &mut answer) {
                Ok(()) => return Ok(answer),
                Err(error @ Error::ConnectionLost { .. }) => {
                    let inner = self.inner.borrow();
                    if !inner.options.reconnect || start.elapsed() >= inner.options.timeout {
                        return Err(error);
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends a message that gets no answer. It is handed to the system when this returns; whether
    /// it arrives is not known.
    pub fn send(&self, msg_type: u16, payload: &[u8]) -> Result<(), Error> {
        let inner = &mut *self.inner.borrow_mut();
        let deadline_ns = inner.deadline_ns();
        inner.submit_one_way(msg_type, 0, payload, deadline_ns)?;
        inner.send_queued(deadline_ns)
    }

    /// Sends a request whose answer is a stream, and returns its parts one by one as they come.
    /// Dropping the iterator early forgets the rest.
    pub fn call_stream(&self, msg_type: u16, payload: &[u8]) -> Result<Parts<'_>, Error> {
        let id = self.submit(msg_type, payload)?;
        self.flush()?;
        Ok(Parts {
            client: self,
            id: Some(id),
        })
    }

    /// Queues a request and returns its id. It is sent by [`Client::flush`], or when an answer is
    /// waited for, or when much is queued. Waits for answers if too many requests are in flight.
    pub fn submit(&self, msg_type: u16, payload: &[u8]) -> Result<u64, Error> {
        self.submit_with(Flags::NONE, msg_type, payload)
    }

    /// As [`Client::submit`], with PRIORITY or STREAM.
    pub fn submit_with(&self, flags: Flags, msg_type: u16, payload: &[u8]) -> Result<u64, Error> {
        let allowed = Flags::PRIORITY | Flags::STREAM;
        if !allowed.contains(flags) {
            return Err(Error::InvalidRequest(
                "only PRIORITY and STREAM can be asked for",
            ));
        }
        let inner = &mut *self.inner.borrow_mut();
        let deadline_ns = inner.deadline_ns();
        inner.submit(flags, msg_type, payload, deadline_ns)
    }

    /// Sends what is queued.
    pub fn flush(&self) -> Result<(), Error> {
        let inner = &mut *self.inner.borrow_mut();
        let deadline_ns = inner.deadline_ns();
        inner.send_queued(deadline_ns)
    }

    /// The next answer that is here, to whichever request, without waiting.
    pub fn poll(&self) -> Result<Option<Answer>, Error> {
        self.flush()?;
        let inner = &mut *self.inner.borrow_mut();
        if inner.ready.is_empty() {
            inner.take_received(&mut |_| Keep::Queue)?;
        }
        Ok(inner.ready.pop_front())
    }

    /// Gives all answers that are here to `sink`, straight from the receive buffer; returns how
    /// many. Nothing is waited for and nothing allocated.
    pub fn poll_with(&self, mut sink: impl FnMut(AnswerRef<'_>)) -> Result<usize, Error> {
        self.flush()?;
        let inner = &mut *self.inner.borrow_mut();
        let queued = take_queued(inner, &mut sink);
        if queued > 0 {
            return Ok(queued);
        }
        inner.take_received(&mut |answer| give(&mut sink, answer))
    }

    /// As [`Client::poll_with`], but waits until there is at least one answer.
    pub fn wait_with(&self, mut sink: impl FnMut(AnswerRef<'_>)) -> Result<usize, Error> {
        let inner = &mut *self.inner.borrow_mut();
        let queued = take_queued(inner, &mut sink);
        if queued > 0 {
            return Ok(queued);
        }
        if inner.in_flight() == 0 {
            return Err(Error::InvalidRequest("no request is in flight"));
        }
        let deadline_ns = inner.deadline_ns();
        let mut given = 0;
        inner.wait_some(deadline_ns, &mut |answer| {
            given += 1;
            give(&mut sink, answer)
        })?;
        Ok(given)
    }

    /// Waits for the answer to one request. Answers to others are kept for later.
    pub fn wait(&self, id: u64) -> Result<Vec<u8>, Error> {
        let inner = &mut *self.inner.borrow_mut();
        let deadline_ns = inner.deadline_ns();
        let mut answer = Vec::new();
        collect(inner, id, deadline_ns, &mut answer)?;
        Ok(answer)
    }

    /// Waits for the next answer to whichever request.
    pub fn wait_any(&self) -> Result<Answer, Error> {
        let inner = &mut *self.inner.borrow_mut();
        if inner.ready.is_empty() {
            if inner.in_flight() == 0 {
                return Err(Error::InvalidRequest("no request is in flight"));
            }
            let deadline_ns = inner.deadline_ns();
            inner.wait_some(deadline_ns, &mut |_| Keep::Queue)?;
        }
        Ok(inner.ready.pop_front().expect("waited for one"))
    }

    /// Tells the server that the answer to this request is no longer wanted, and forgets it.
    pub fn cancel(&self, id: u64) -> Result<(), Error> {
        let inner = &mut *self.inner.borrow_mut();
        if !inner.is_in_flight(id) {
            inner.forget(id);
            return Ok(());
        }
        inner.forget(id);
        let deadline_ns = inner.deadline_ns();
        inner.submit_one_way(msg_type::CANCEL, id, &[], deadline_ns)?;
        inner.send_queued(deadline_ns)
    }

    /// One HEARTBEAT there and back; returns how long it took.
    pub fn ping(&self) -> Result<Duration, Error> {
        self.heartbeat(&[])
    }

    pub(crate) fn heartbeat(&self, payload: &[u8]) -> Result<Duration, Error> {
        let start = Instant::now();
        let answer = self.call(msg_type::HEARTBEAT, payload)?;
        if answer != payload {
            return Err(Error::InvalidRequest(
                "the server answered a heartbeat with other bytes",
            ));
        }
        Ok(start.elapsed())
    }

    /// How the bytes travel now.
    pub fn transport(&self) -> Transport {
        self.inner.borrow().transport()
    }

    /// Requests whose answers have not come.
    pub fn in_flight(&self) -> usize {
        self.inner.borrow().in_flight()
    }

    /// Whether the connection is up, as far as is known without asking the server.
    pub fn is_connected(&self) -> bool {
        self.inner.borrow().is_connected()
    }

    /// What was done so far.
    pub fn stats(&self) -> ClientStats {
        self.inner.borrow().stats
    }

    /// Ends the connection in an orderly way. Requests in flight fail with [`Error::Closed`].
    /// Dropping the client does the same.
    pub fn close(self) {
        drop(self);
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.inner.get_mut().close();
    }
}

fn give(sink: &mut impl FnMut(AnswerRef<'_>), answer: &AnswerRef<'_>) -> Keep {
    let result = match &answer.result {
        Ok(payload) => Ok(*payload),
        Err(_) => match answer.to_owned().result {
            Err(error) => Err(error),
            Ok(_) => unreachable!("an error stays one"),
        },
    };
    let AnswerRef {
        id, msg_type, last, ..
    } = *answer;
    sink(AnswerRef {
        id,
        msg_type,
        last,
        result,
    });
    Keep::Done
}

fn take_queued(inner: &mut Inner, sink: &mut impl FnMut(AnswerRef<'_>)) -> usize {
    let queued = inner.ready.len();
    for answer in inner.ready.drain(..) {
        let Answer {
            id,
            msg_type,
            last,
            result,
        } = answer;
        match result {
            Ok(payload) => sink(AnswerRef {
                id,
                msg_type,
                last,
                result: Ok(&payload),
            }),
            Err(error) => sink(AnswerRef {
                id,
                msg_type,
                last,
                result: Err(error),
            }),
        }
    }
    queued
}

/// Waits for all parts of the answer to one request and appends them to `to`.
fn collect(inner: &mut Inner, id: u64, deadline_ns: u64, to: &mut Vec<u8>) -> Result<(), Error> {
    let mut outcome = None;
    // Each turn takes an answer that is here or waits for one; ends with the last or the deadline.
    loop {
        while let Some(index) = inner.ready.iter().position(|answer| answer.id == id) {
            let answer = inner.ready.remove(index).expect("found above");
            match answer.result {
                Ok(payload) => to.extend_from_slice(&payload),
                Err(error) => return Err(error),
            }
            if answer.last {
                return Ok(());
            }
        }
        if !inner.is_in_flight(id) {
            return Err(Error::InvalidRequest("no such request is in flight"));
        }
        let waited = inner.wait_some(deadline_ns, &mut |answer| {
            if answer.id != id {
                return Keep::Queue;
            }
            match &answer.result {
                Ok(payload) => {
                    to.extend_from_slice(payload);
                    if answer.last {
                        outcome = Some(Ok(()));
                    }
                }
                Err(_) => outcome = Some(answer.to_owned().result.map(drop)),
            }
            Keep::Done
        });
        if let Some(outcome) = outcome.take() {
            return outcome;
        }
        if let Err(error) = waited {
            if matches!(error, Error::Timeout { .. }) {
                inner.forget(id);
            }
            return Err(error);
        }
    }
}

/// The parts of an answer that is a stream; see [`Client::call_stream`].
#[derive(Debug)]
pub struct Parts<'a> {
    client: &'a Client,
    id: Option<u64>,
}

impl Iterator for Parts<'_> {
    type Item = Result<Vec<u8>, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let id = self.id?;
        let inner = &mut *self.client.inner.borrow_mut();
        let deadline_ns = inner.deadline_ns();
        loop {
            if let Some(index) = inner.ready.iter().position(|answer| answer.id == id) {
                let answer = inner.ready.remove(index).expect("found above");
                if answer.last || answer.result.is_err() {
                    self.id = None;
                }
                return Some(answer.result);
            }
            if let Err(error) = inner.wait_some(deadline_ns, &mut |_| Keep::Queue) {
                // A lost connection has queued the failure of this request.
                if !matches!(error, Error::ConnectionLost { .. }) || inner.ready.is_empty() {
                    inner.forget(id);
                    self.id = None;
                    return Some(Err(error));
                }
            }
        }
    }
}

impl Drop for Parts<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.client.inner.borrow_mut().forget(id);
        }
    }
}
