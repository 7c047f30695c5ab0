//! The client's state: the connection, the requests in flight, the answers that wait.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use super::address::Address;
use super::builder::Options;
use super::channel::Channel;
use super::connect;
use super::flights::Flights;
use super::wait::{WaitPolicy, left};
use super::{Answer, AnswerRef, ClientStats, Error};
use crate::stats::Transport;
use crate::sys::clock;
use crate::wire::{self, ErrorCode, Flags, HEADER_BYTES, msg_type};

/// Queued requests are sent when they pass this, without waiting for a flush.
const QUEUE_BYTES: usize = 32 * 1024;
/// Empty looks at the socket between two looks at the clock.
const LOOKS: u32 = 32;
/// A connection that was not used for this long may have ended unnoticed.
const STALE_NS: u64 = 5_000_000;
/// The longest pause between two attempts to connect.
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// The shortest.
const BACKOFF_MIN: Duration = Duration::from_millis(5);

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) options: Options,
    pub(super) address: Address,
    channel: Option<Channel>,
    flights: Flights,
    /// Answers that came while something else was waited for.
    pub(super) ready: VecDeque<Answer>,
    policy: WaitPolicy,
    pub(super) stats: ClientStats,
    inflated: Vec<u8>,
    last_used_ns: u64,
    pub(super) closed: bool,
    transport: Transport,
}

impl Inner {
    pub(super) fn connect(options: Options, address: Address) -> Result<Inner, Error> {
        let channel = connect::open(&options, &address)?;
        Ok(Inner {
            flights: Flights::new(options.max_inflight),
            policy: WaitPolicy::new(options.idle),
            transport: channel.link.transport(),
            options,
            address,
            channel: Some(channel),
            ready: VecDeque::new(),
            stats: ClientStats::default(),
            inflated: Vec::new(),
            last_used_ns: clock::now_ns(),
            closed: false,
        })
    }

    pub(super) fn transport(&self) -> Transport {
        self.channel
            .as_ref()
            .map_or(self.transport, |channel| channel.link.transport())
    }

    pub(super) fn in_flight(&self) -> usize {
        self.flights.count()
    }

    pub(super) fn is_in_flight(&self, id: u64) -> bool {
        self.flights.contains(id)
    }

    pub(super) fn deadline_ns(&self) -> u64 {
        clock::now_ns().saturating_add(self.options.timeout.as_nanos() as u64)
    }

    fn timeout(&self) -> Error {
        Error::Timeout {
            after: self.options.timeout,
        }
    }

    /// Makes sure that there is a connection, making a new one if the old one is gone.
    fn ready_to_send(&mut self, deadline_ns: u64) -> Result<&mut Channel, Error> {
        if self.closed {
            return Err(Error::Closed);
        }
        if self.flights.count() == 0 {
            let now_ns = clock::now_ns();
            let stale = now_ns.saturating_sub(self.last_used_ns) > STALE_NS;
            self.last_used_ns = now_ns;
            // A server that was restarted in the meantime is noticed before a request is lost.
            if stale
                && let Some(channel) = &self.channel
                && channel.queued_bytes() == 0
                && channel.link.has_ended()
            {
                self.channel = None;
            }
        }
        if self.channel.is_none() {
            self.reconnect(deadline_ns)?;
        }
        Ok(self.channel.as_mut().expect("connected above"))
    }

    /// Connects again: at once, then after pauses that double, until the deadline.
    fn reconnect(&mut self, deadline_ns: u64) -> Result<(), Error> {
        if !self.options.reconnect {
            return Err(Error::ConnectionLost {
                may_have_run: false,
                source: None,
            });
        }
        let mut pause = BACKOFF_MIN;
        loop {
            match connect::open(&self.options, &self.address) {
                Ok(channel) => {
                    self.transport = channel.link.transport();
                    self.channel = Some(channel);
                    self.stats.reconnects += 1;
                    return Ok(());
                }
                // Refused for good: trying again would not help.
                Err(
                    error @ Error::Remote {
                        code: Some(ErrorCode::Unauthorized),
                        ..
                    },
                ) => {
                    return Err(error);
                }
                Err(error) => {
                    let now_ns = clock::now_ns();
                    if now_ns >= deadline_ns {
                        return Err(error);
                    }
                    // Half of the pause is left to chance, so that clients do not come in step.
                    let jitter = now_ns % (pause.as_nanos() as u64 / 2);
                    let pause_now = pause / 2 + Duration::from_nanos(jitter);
                    std::thread::sleep(pause_now.min(left(deadline_ns, now_ns)));
                    pause = (pause * 2).min(BACKOFF_MAX);
                }
            }
        }
    }

    fn check_length(&self, payload: &[u8]) -> Result<(), Error> {
        let max = self.options.max_message_bytes;
        if payload.len() > max as usize {
            return Err(Error::TooLarge {
                length: payload.len(),
                max,
            });
        }
        Ok(())
    }

    /// Queues a request, sending earlier ones if there are many. Waits for answers if too many
    /// requests are in flight.
    pub(super) fn submit(
        &mut self,
        flags: Flags,
        msg_type: u16,
        payload: &[u8],
        deadline_ns: u64,
    ) -> Result<u64, Error> {
        self.check_length(payload)?;
        while self.flights.is_full() {
            self.wait_some(deadline_ns, &mut |_| Keep::Queue)?;
        }
        let begins_at = self.ready_to_send(deadline_ns)?.next_begins_at();
        let id = self.flights.begin(begins_at);
        let channel = self.channel.as_mut().expect("ready to send");
        channel.queue(flags | Flags::REQUEST, msg_type, id, payload);
        self.stats.sent += 1;
        if channel.queued_bytes() >= QUEUE_BYTES {
            self.send_queued(deadline_ns)?;
        }
        Ok(id)
    }

    /// Queues a message that gets no answer.
    pub(super) fn submit_one_way(
        &mut self,
        msg_type: u16,
        msg_id: u64,
        payload: &[u8],
        deadline_ns: u64,
    ) -> Result<(), Error> {
        self.check_length(payload)?;
        let channel = self.ready_to_send(deadline_ns)?;
        if channel.is_v1() {
            return Err(Error::InvalidRequest("version 1 has no one-way messages"));
        }
        channel.queue(Flags::NONE, msg_type, msg_id, payload);
        self.stats.sent += 1;
        Ok(())
    }

    /// Sends everything that is queued. While the server does not read, its answers are taken, so
    /// that neither side waits for the other for ever.
    pub(super) fn send_queued(&mut self, deadline_ns: u64) -> Result<(), Error> {
        loop {
            let Some(channel) = self.channel.as_mut() else {
                return Ok(());
            };
            match channel.flush() {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) => return self.lost(Some(error)),
            }
            if self.take_received(&mut |_| Keep::Queue)? > 0 {
                continue;
            }
            let now_ns = clock::now_ns();
            if now_ns >= deadline_ns {
                return Err(self.timeout());
            }
            let Some(channel) = self.channel.as_mut() else {
                return Ok(());
            };
            if let Err(error) = channel.link.sleep(true, left(deadline_ns, now_ns)) {
                return self.lost(Some(error));
            }
        }
    }

    /// Waits until at least one answer is given to `sink`.
    pub(super) fn wait_some(
        &mut self,
        deadline_ns: u64,
        sink: &mut dyn FnMut(&AnswerRef<'_>) -> Keep,
    ) -> Result<(), Error> {
        self.send_queued(deadline_ns)?;
        let mut looks = 0;
        let mut began_ns = 0;
        loop {
            if self.take_received(sink)? > 0 {
                if began_ns != 0 {
                    self.policy.waited(clock::now_ns().saturating_sub(began_ns));
                }
                return Ok(());
            }
            looks += 1;
            std::hint::spin_loop();
            if !(looks == 1 && self.policy.spin_ns() != u64::MAX) && looks % LOOKS != 0 {
                continue;
            }
            let now_ns = clock::now_ns();
            if began_ns == 0 {
                began_ns = now_ns;
            }
            if now_ns >= deadline_ns {
                return Err(self.timeout());
            }
            if now_ns - began_ns >= self.policy.spin_ns() {
                let Some(channel) = self.channel.as_mut() else {
                    return Err(Error::ConnectionLost {
                        may_have_run: false,
                        source: None,
                    });
                };
                if let Err(error) = channel.link.sleep(false, left(deadline_ns, now_ns)) {
                    self.lost(Some(error))?;
                }
            }
        }
    }

    /// Takes what has arrived, without waiting, and gives each answer to `sink`. Returns how many.
    #[inline]
    pub(super) fn take_received(
        &mut self,
        sink: &mut dyn FnMut(&AnswerRef<'_>) -> Keep,
    ) -> Result<usize, Error> {
        let Some(channel) = self.channel.as_mut() else {
            return Ok(self.take_failed(sink));
        };
        match channel.fill() {
            Ok(0) => return Ok(0),
            Ok(_) => {}
            Err(error) => {
                self.lost(Some(error))?;
                return Ok(self.take_failed(sink));
            }
        }
        let mut answers = 0;
        // Bounded by what was received.
        loop {
            let channel = self.channel.as_mut().expect("checked above");
            let incoming = match channel.next() {
                Ok(None) => return Ok(answers),
                Ok(Some(incoming)) => incoming,
                Err(refusal) => {
                    self.fail_all(&|| Error::ConnectionLost {
                        may_have_run: true,
                        source: None,
                    });
                    self.channel = None;
                    return Err(Error::ServerViolation(refusal));
                }
            };
            let header = incoming.header;
            let v1 = channel.is_v1();
            let mut payload = channel.payload(&incoming);
            let is_error = header.msg_type == msg_type::ERROR;
            if is_error && !v1 && !header.flags.contains(Flags::RESPONSE) {
                if let Some(error) = about_the_connection(payload) {
                    let error_again = error_copy(&error);
                    self.fail_all(&|| error_copy(&error_again));
                    self.channel = None;
                    return Err(error);
                }
                continue;
            }
            // An answer that nobody waits for any more, or something that is none.
            if !(v1 || header.flags.contains(Flags::RESPONSE))
                || !self.flights.contains(header.msg_id)
            {
                continue;
            }
            if header.flags.contains(Flags::COMPRESSED) {
                let max = self.options.max_message_bytes;
                if let Err(refusal) = wire::decompress(payload, max, &mut self.inflated) {
                    return Err(Error::ServerViolation(refusal));
                }
                payload = &self.inflated;
            }
            let last = v1 || !header.flags.contains(Flags::STREAM);
            let answer = AnswerRef {
                id: header.msg_id,
                msg_type: header.msg_type,
                last,
                result: if is_error {
                    Err(remote_error(payload))
                } else {
                    Ok(payload)
                },
            };
            if let Keep::Queue = sink(&answer) {
                self.ready.push_back(answer.to_owned());
            }
            if last {
                self.flights.end(header.msg_id);
                self.stats.received += 1;
            }
            answers += 1;
        }
    }

    /// Gives failures that were queued when the connection was lost to `sink`.
    fn take_failed(&mut self, sink: &mut dyn FnMut(&AnswerRef<'_>) -> Keep) -> usize {
        let mut given = 0;
        for _ in 0..self.ready.len() {
            let Some(answer) = self.ready.pop_front() else {
                break;
            };
            let view = match answer.result {
                Err(error) => AnswerRef {
                    id: answer.id,
                    msg_type: answer.msg_type,
                    last: answer.last,
                    result: Err(error),
                },
                Ok(payload) => {
                    let kept = Answer {
                        result: Ok(payload),
                        ..answer
                    };
                    self.ready.push_back(kept);
                    continue;
                }
            };
            given += 1;
            if let Keep::Queue = sink(&view) {
                self.ready.push_back(view.to_owned());
            }
        }
        given
    }

    /// Every request in flight fails; the answers wait to be collected.
    fn fail_all(&mut self, error: &dyn Fn() -> Error) {
        for (id, _) in self.flights.all() {
            self.flights.end(id);
            self.ready.push_back(Answer {
                id,
                msg_type: 0,
                last: true,
                result: Err(error()),
            });
        }
    }

    /// The connection is gone. Requests that were sent fail; those that were not move to a new
    /// connection, if one can be had.
    fn lost(&mut self, source: Option<io::Error>) -> Result<(), Error> {
        let Some(channel) = self.channel.take() else {
            return Err(Error::ConnectionLost {
                may_have_run: false,
                source,
            });
        };
        let sent_to = channel.sent_to();
        let kind = source.as_ref().map(io::Error::kind);
        let mut unsent = Vec::new();
        for (id, flight) in self.flights.all() {
            if flight.begins_at >= sent_to {
                unsent.push((id, flight.begins_at));
                continue;
            }
            self.flights.end(id);
            let source = kind.map(io::Error::from);
            let result = Err(Error::ConnectionLost {
                may_have_run: true,
                source,
            });
            self.ready.push_back(Answer {
                id,
                msg_type: 0,
                last: true,
                result,
            });
        }
        let Some(&(_, first)) = unsent.first() else {
            return Ok(());
        };
        let frames = channel.unsent_from(first).to_vec();
        let deadline_ns = self.deadline_ns();
        if let Err(error) = self.reconnect(deadline_ns) {
            for (id, _) in unsent {
                self.flights.end(id);
                let source = kind.map(io::Error::from);
                let result = Err(Error::ConnectionLost {
                    may_have_run: false,
                    source,
                });
                self.ready.push_back(Answer {
                    id,
                    msg_type: 0,
                    last: true,
                    result,
                });
            }
            return Err(error);
        }
        let channel = self.channel.as_mut().expect("reconnected");
        let base = channel.next_begins_at();
        channel.queue_encoded(&frames);
        for (id, begins_at) in unsent {
            self.flights.moved(id, base + (begins_at - first));
        }
        Ok(())
    }

    /// Nobody wants the answer to this request any more.
    pub(super) fn forget(&mut self, id: u64) {
        self.flights.end(id);
        self.ready.retain(|answer| answer.id != id);
    }

    /// Says goodbye, as far as that is possible without waiting.
    pub(super) fn close(&mut self) {
        self.closed = true;
        if let Some(mut channel) = self.channel.take() {
            if !channel.is_v1() {
                channel.queue(Flags::NONE, msg_type::DISCONNECT, 0, &[]);
            }
            // Best effort: the server sees the end of the connection anyway.
            let _ = channel.flush();
        }
        self.fail_all(&|| Error::Closed);
    }

    /// Whether the connection can be used, as far as is known without asking the server.
    pub(super) fn is_connected(&self) -> bool {
        !self.closed
            && self
                .channel
                .as_ref()
                .is_some_and(|channel| !channel.link.has_ended())
    }
}

/// What to do with an answer after the sink has seen it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keep {
    /// It is dealt with.
    Done,
    /// It is somebody else's: keep it until it is asked for.
    Queue,
}

fn remote_error(payload: &[u8]) -> Error {
    match wire::decode_error_payload(payload) {
        Some((code, text)) => Error::Remote {
            code: ErrorCode::from_u16(code),
            message: text.into_owned(),
        },
        None => Error::Remote {
            code: None,
            message: "an error without a code".into(),
        },
    }
}

/// An ERROR without an id: `Some` if it ends the connection. The server's word about a one-way
/// message does not.
fn about_the_connection(payload: &[u8]) -> Option<Error> {
    let error = remote_error(payload);
    let ends = match error.code() {
        Some(ErrorCode::Overloaded | ErrorCode::Timeout) => true,
        Some(code) => code.closes_connection(),
        None => false,
    };
    ends.then_some(error)
}

fn error_copy(error: &Error) -> Error {
    match error {
        Error::Remote { code, message } => Error::Remote {
            code: *code,
            message: message.clone(),
        },
        _ => Error::ConnectionLost {
            may_have_run: true,
            source: None,
        },
    }
}

const _: () = assert!(HEADER_BYTES < QUEUE_BYTES);
