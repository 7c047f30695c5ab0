//! The client's state: the connection, the requests in flight, the answers that wait. Sending and
//! waiting are here; [`super::receive`] takes what comes, [`super::loss`] deals with what is lost,
//! [`super::reconnect`] makes a new connection.

use hdrhistogram::Histogram;

use super::address::Address;
use super::answer::{Answer, AnswerRef, ClientStats, PeerLimits};
use super::backoff::Backoff;
use super::builder::Options;
use super::channel::Channel;
use super::connect::{self, Opened};
use super::deadline::{self, Deadline};
use super::flights::Flights;
use super::kept::Kept;
use super::reconnect::Lengths;
use super::reserve::Reserved;
use super::wait::WaitPolicy;
use super::{Error, histogram};
use crate::stats::Transport;
use crate::sys::clock;
use crate::wire::{Flags, HEADER_BYTES, msg_type};

/// Queued requests are sent when they pass this, without waiting for a flush.
const QUEUE_BYTES: usize = 32 * 1024;
/// Empty looks at the connection between two looks at the clock.
const LOOKS: u32 = 32;
/// A connection that was not used for this long may have ended unnoticed. By the coarse clock, so for a
/// tick more perhaps; where ticks are longer than this, each costs the first call after it a look.
const STALE_NS: u64 = 5_000_000;

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) options: Options,
    pub(super) address: Address,
    pub(super) channel: Option<Channel>,
    pub(super) flights: Flights,
    /// Answers that came while something else was waited for.
    pub(super) ready: Kept,
    /// Frames that the lost connection did not send, for the next one.
    pub(super) unsent: Vec<u8>,
    /// The last of them lacks its payload, which is lent by a caller who is about to add it.
    pub(super) unsent_lacks_payload: bool,
    pub(super) backoff: Backoff,
    pub(super) policy: WaitPolicy,
    pub(super) stats: ClientStats,
    pub(super) peer: PeerLimits,
    pub(super) lengths: Lengths,
    pub(super) round_trips: Option<Histogram<u64>>,
    pub(super) inflated: Vec<u8>,
    /// The request whose payload is being written in place.
    pub(super) reserved: Option<Reserved>,
    /// The options' timeout.
    timeout_ns: u64,
    /// By the coarse clock.
    last_used_ns: u64,
    pub(super) closed: bool,
    pub(super) transport: Transport,
}

impl Inner {
    pub(super) fn connect(options: Options, address: Address) -> Result<Inner, Error> {
        let mut deadline = Deadline::after(options.connect_timeout);
        let Opened { channel, peer } = connect::open(&options, &address, deadline.at_ns())?;
        Ok(Inner {
            flights: Flights::new(options.max_inflight),
            policy: WaitPolicy::new(options.idle),
            transport: channel.link.transport(),
            ready: Kept::new(options.max_unread_bytes),
            lengths: Lengths::new(&options, &peer),
            timeout_ns: deadline::nanos(options.timeout),
            round_trips: options.record_round_trips.then(histogram::new),
            options,
            address,
            channel: Some(channel),
            unsent: Vec::new(),
            unsent_lacks_payload: false,
            backoff: Backoff::default(),
            stats: ClientStats::default(),
            peer,
            inflated: Vec::new(),
            reserved: None,
            last_used_ns: clock::coarse_ns(),
            closed: false,
        })
    }

    pub(super) fn transport(&self) -> Transport {
        self.channel
            .as_ref()
            .map_or(self.transport, |channel| channel.link.transport())
    }

    #[inline]
    pub(super) fn deadline(&self) -> Deadline {
        Deadline::after_ns(self.timeout_ns)
    }

    /// Makes sure that there is a connection, making a new one if the old one is gone.
    pub(super) fn ready_to_send(&mut self, deadline: &mut Deadline) -> Result<&mut Channel, Error> {
        if self.closed {
            return Err(Error::Closed);
        }
        if self.flights.count() == 0 && !self.was_used_lately() {
            self.last_used_ns = clock::coarse_ns();
            self.look_for_the_end();
        }
        if self.channel.is_none() {
            self.reconnect(deadline)?;
        }
        Ok(self.channel.as_mut().expect("connected above"))
    }

    /// With nothing in flight, notices a server that has ended in the meantime before a request is
    /// lost to it. Late answers that nobody waits for are thrown away.
    pub(super) fn look_for_the_end(&mut self) {
        debug_assert_eq!(self.flights.count(), 0);
        let drop_all = &mut |_: AnswerRef<'_>| Keep::Done;
        // Ends when nothing is there, or the connection is not; bounded, should a server never
        // stop sending. An error is one of the connection, which is gone then.
        for _ in 0..1024 {
            let Some(channel) = self.channel.as_mut() else {
                return;
            };
            match channel.fill() {
                Ok(0) => {
                    if channel.link.has_ended() {
                        self.lost(None);
                    }
                    return;
                }
                Ok(_) => drop(self.take_frames(drop_all)),
                Err(error) => self.lost(Some(error)),
            }
        }
    }

    pub(super) fn check_length(&self, length: usize) -> Result<(), Error> {
        match length > self.lengths.max as usize {
            true => Err(Error::TooLarge {
                length,
                max: self.lengths.max,
            }),
            false => Ok(()),
        }
    }

    /// Makes sure that there is a connection and that one more request may be in flight.
    #[inline(always)]
    pub(super) fn ready_to_submit(&mut self, deadline: &mut Deadline) -> Result<(), Error> {
        let in_flight = self.flights.count() > 0;
        let is_ready = self.channel.is_some()
            && match in_flight {
                true => !self.flights.is_full(),
                false => self.was_used_lately(),
            };
        match is_ready {
            true => Ok(()),
            false => self.get_ready_to_submit(deadline),
        }
    }

    /// Whether the connection was used a moment ago; it is used now.
    #[inline]
    fn was_used_lately(&mut self) -> bool {
        let now_ns = clock::coarse_ns();
        let lately = now_ns.saturating_sub(self.last_used_ns) <= STALE_NS;
        if lately {
            self.last_used_ns = now_ns;
        }
        lately
    }

    fn get_ready_to_submit(&mut self, deadline: &mut Deadline) -> Result<(), Error> {
        // Each turn takes at least one answer; most end a request.
        while self.flights.is_full() {
            if self.ready.is_full() {
                return Err(Error::InvalidRequest(
                    "more answers than max_unread_bytes wait: collect some first",
                ));
            }
            self.wait_some(deadline, &mut |_| Keep::Queue)?;
        }
        if self.flights.count() == 0 || self.channel.is_none() {
            self.ready_to_send(deadline)?;
        }
        Ok(())
    }

    /// Queues a request, which is sent with others. Waits for answers if too many requests are in
    /// flight.
    ///
    /// First what most are that come among many; for them each instruction counts, so all else is apart.
    #[inline]
    pub(super) fn submit(
        &mut self,
        flags: Flags,
        msg_type: u16,
        payload: &[u8],
    ) -> Result<u64, Error> {
        let began_ns = histogram::clock_ns(&self.round_trips);
        if let Some(channel) = &mut self.channel
            && payload.len() < self.lengths.short_end
            && let Some(id) = self
                .flights
                .begin_beside_others(channel.next_begins_at(), began_ns)
        {
            self.stats.sent += 1;
            return match channel.queue_short(flags | Flags::REQUEST, msg_type, id, payload) {
                true => self.send_if_many(id),
                false => Ok(id),
            };
        }
        self.submit_other(flags, msg_type, payload)
    }

    #[inline(never)]
    fn send_if_many(&mut self, id: u64) -> Result<u64, Error> {
        let channel = self.channel.as_mut().expect("queued to it");
        channel.seal();
        if channel.queued_bytes() < QUEUE_BYTES {
            return Ok(id);
        }
        let mut deadline = self.deadline();
        let sent = self.send_queued(&mut deadline);
        self.begun(id, sent)
    }

    /// The outcome of a request that was begun: one whose caller is told of a failure is not in flight.
    fn begun(&mut self, id: u64, sent: Result<(), Error>) -> Result<u64, Error> {
        match sent {
            Ok(()) => Ok(id),
            Err(error) => {
                self.forget(id);
                Err(error)
            }
        }
    }

    /// Makes sure that what waits to be sent is little: while a server does not read, no more is queued.
    fn send_if_much(&mut self, deadline: &mut Deadline) -> Result<(), Error> {
        let channel = self.channel.as_ref();
        match channel.is_some_and(|channel| channel.queued_bytes() >= QUEUE_BYTES) {
            true => self.send_queued(deadline),
            false => Ok(()),
        }
    }

    #[inline(never)]
    fn submit_other(&mut self, flags: Flags, msg_type: u16, payload: &[u8]) -> Result<u64, Error> {
        let mut deadline = self.deadline();
        self.begin(flags, msg_type, payload, When::Later, &mut deadline)
    }

    /// As [`Inner::submit`], and sends it if that is possible at once: somebody is about to wait for
    /// the answer.
    #[inline]
    pub(super) fn submit_now(
        &mut self,
        msg_type: u16,
        payload: &[u8],
        deadline: &mut Deadline,
    ) -> Result<u64, Error> {
        self.begin(Flags::NONE, msg_type, payload, When::Now, deadline)
    }

    /// Code of its own for each of the two.
    #[inline(always)]
    fn begin(
        &mut self,
        flags: Flags,
        msg_type: u16,
        payload: &[u8],
        when: When,
        deadline: &mut Deadline,
    ) -> Result<u64, Error> {
        self.check_length(payload.len())?;
        self.ready_to_submit(deadline)?;
        let must_send = |channel: &Channel| {
            // Only what follows nothing that is queued is sent from the caller's memory.
            channel.takes_lent(payload.len()) || channel.queued_bytes() >= QUEUE_BYTES
        };
        if self.channel.as_ref().is_some_and(must_send) {
            self.send_queued(deadline)?;
            self.ready_to_submit(deadline)?;
        }
        let began_ns = histogram::clock_ns(&self.round_trips);
        let channel = self.channel.as_mut().expect("ready to send");
        let id = self.flights.begin(channel.next_begins_at(), began_ns);
        let flags = flags | Flags::REQUEST;
        self.stats.sent += 1;
        if when == When::Now && channel.send_in_place(flags, msg_type, id, payload) {
            return Ok(id);
        }
        if channel.lend(flags, msg_type, id, payload) {
            let sent = self.send_lent(payload, deadline);
            return self.begun(id, sent);
        }
        channel.queue(flags, msg_type, id, payload);
        if channel.queued_bytes() >= QUEUE_BYTES {
            let sent = self.send_queued(deadline);
            return self.begun(id, sent);
        }
        Ok(id)
    }

    /// Queues one more part of a request that is a stream.
    pub(super) fn submit_part(
        &mut self,
        id: u64,
        msg_type: u16,
        payload: &[u8],
        last: bool,
        deadline: &mut Deadline,
    ) -> Result<(), Error> {
        self.check_length(payload.len())?;
        if !self.flights.contains(id) {
            return Err(Error::InvalidRequest("no such request is in flight"));
        }
        self.send_if_much(deadline)?;
        if self.channel.is_none() {
            self.ready_to_send(deadline)?;
        }
        let more = if last { Flags::NONE } else { Flags::STREAM };
        let channel = self.channel.as_mut().expect("ready to send");
        channel.queue(Flags::REQUEST | more, msg_type, id, payload);
        if channel.queued_bytes() >= QUEUE_BYTES {
            self.send_queued(deadline)?;
        }
        Ok(())
    }

    /// Sends a message that gets no answer, and what was queued before it.
    pub(super) fn send_one_way(
        &mut self,
        msg_type: u16,
        msg_id: u64,
        payload: &[u8],
        deadline: &mut Deadline,
    ) -> Result<(), Error> {
        self.check_length(payload.len())?;
        self.send_if_much(deadline)?;
        let channel = self.ready_to_send(deadline)?;
        if channel.is_v1() {
            return Err(Error::InvalidRequest("version 1 has no one-way messages"));
        }
        channel.queue(Flags::NONE, msg_type, msg_id, payload);
        self.stats.sent += 1;
        self.send_queued(deadline)
    }

    /// Sends what can be sent without waiting. True: nothing is left.
    #[inline]
    pub(super) fn send_some(&mut self) -> Result<bool, Error> {
        let Some(channel) = self.channel.as_mut() else {
            return Ok(self.unsent.is_empty());
        };
        match channel.flush() {
            Ok(sent) => Ok(sent),
            Err(error) => {
                self.broken_while_sending(error)?;
                Ok(self.unsent.is_empty())
            }
        }
    }

    /// The system takes no more bytes for this connection. The server may have said why before it
    /// closed, so what it sent comes first.
    fn broken_while_sending(&mut self, error: std::io::Error) -> Result<(), Error> {
        // Bounded, should a server never stop sending.
        for _ in 0..1024 {
            if self.channel.is_none() {
                return Ok(());
            }
            if self.take_received(&mut |_| Keep::Queue)? == 0 {
                break;
            }
        }
        self.lost(Some(error));
        Ok(())
    }

    /// Sends everything that is queued. While the server does not read, its answers are taken, so
    /// that neither side waits for the other for ever.
    #[inline]
    pub(super) fn send_queued(&mut self, deadline: &mut Deadline) -> Result<(), Error> {
        if self.send_some()? {
            return Ok(());
        }
        self.send_waiting(deadline, usize::MAX)
    }

    /// As [`Inner::send_queued`], where not all can be sent at once; but ends as soon as more than so many
    /// answers are kept.
    #[cold]
    fn send_waiting(&mut self, deadline: &mut Deadline, kept: usize) -> Result<(), Error> {
        // Ends with everything sent, an answer, or at the deadline.
        loop {
            if self.ready.len() > kept {
                return Ok(());
            }
            if self.channel.is_none() {
                if self.closed {
                    return Err(Error::Closed);
                }
                self.reconnect(deadline)?;
            }
            if self.send_some()? {
                return Ok(());
            }
            if self.channel.is_none() || self.take_received(&mut |_| Keep::Queue)? > 0 {
                continue;
            }
            let now_ns = clock::now_ns();
            let Some(left) = deadline.left(now_ns) else {
                return Err(timeout(deadline));
            };
            if let Some(channel) = self.channel.as_mut()
                && let Err(error) = channel.link.sleep(true, left)
            {
                self.broken_while_sending(error)?;
            }
        }
    }

    /// Waits until at least one answer is given to `sink`, or was kept while requests were sent.
    #[inline]
    pub(super) fn wait_some<S>(
        &mut self,
        deadline: &mut Deadline,
        sink: &mut S,
    ) -> Result<(), Error>
    where
        S: FnMut(AnswerRef<'_>) -> Keep,
    {
        self.wait_until(deadline, |inner| inner.take_received(sink))
    }

    /// As [`Inner::wait_some`], for answers that `take` takes: it looks whether there are any, and
    /// says how many there were.
    #[inline]
    pub(super) fn wait_until(
        &mut self,
        deadline: &mut Deadline,
        mut take: impl FnMut(&mut Inner) -> Result<usize, Error>,
    ) -> Result<(), Error> {
        let kept = self.ready.len();
        if !self.send_some()? {
            self.send_waiting(deadline, kept)?;
        }
        if self.ready.len() > kept {
            return Ok(());
        }
        let mut looks: u32 = 0;
        let mut began_ns = 0;
        let mut in_the_way = false;
        let mut received_bytes = self.received_bytes();
        // Ends with an answer or at the deadline.
        loop {
            if take(self)? > 0 {
                // How long the answer took says nothing if it was kept from being made.
                if began_ns != 0 && !in_the_way {
                    let waited_ns = clock::now_ns().saturating_sub(began_ns);
                    self.policy.waited(waited_ns);
                }
                return Ok(());
            }
            looks = looks.wrapping_add(1);
            match &self.channel {
                Some(channel) => channel.link.watch(),
                None => std::hint::spin_loop(),
            }
            let mut spin_ns = self.policy.spin_ns();
            let look_at_clock = looks == 1 && spin_ns != u64::MAX;
            let looked_long = looks.is_multiple_of(LOOKS);
            if !look_at_clock && !looked_long {
                continue;
            }
            if looked_long && spin_ns != u64::MAX && self.is_in_the_way() {
                in_the_way = true;
                spin_ns = 0;
            }
            if self.channel.is_none() {
                if self.flights.count() == 0 {
                    return Err(Error::ConnectionLost {
                        may_have_run: false,
                        source: None,
                    });
                }
                // What the lost connection did not send goes over a new one.
                self.send_waiting(deadline, kept)?;
                if self.ready.len() > kept {
                    return Ok(());
                }
                continue;
            }
            let now_ns = clock::now_ns();
            let received = self.received_bytes();
            if received != received_bytes && began_ns != 0 {
                // A piece of a long answer: the next is worth spinning for as the first was.
                received_bytes = received;
                self.policy.waited(now_ns.saturating_sub(began_ns));
                began_ns = now_ns;
            }
            if began_ns == 0 {
                began_ns = now_ns;
            }
            let Some(left) = deadline.left(now_ns) else {
                return Err(timeout(deadline));
            };
            if now_ns.saturating_sub(began_ns) >= spin_ns
                && let Some(channel) = self.channel.as_mut()
                && let Err(error) = channel.link.sleep(false, left)
            {
                self.lost(Some(error));
            }
        }
    }

    /// Whether waiting awake is in vain, since it keeps the server from running.
    pub(super) fn is_in_the_way(&self) -> bool {
        let channel = self.channel.as_ref();
        channel.is_some_and(|channel| channel.link.is_in_the_way())
    }

    fn received_bytes(&self) -> u64 {
        self.channel.as_ref().map_or(0, Channel::received_bytes)
    }

    /// Nobody wants the answer to this request any more.
    pub(super) fn forget(&mut self, id: u64) {
        self.flights.end(id);
        self.ready.forget(id);
    }

    /// Forgets whatever the last user left behind. False: the connection cannot be handed on.
    pub(super) fn leave_clean(&mut self) -> bool {
        if self.flights.count() > 0 {
            for (id, _) in self.flights.all() {
                self.flights.end(id);
            }
        }
        self.ready.clear();
        self.reserved = None;
        matches!(self.send_some(), Ok(true)) && self.is_connected()
    }

    /// Says goodbye, as far as that is possible without waiting.
    pub(super) fn close(&mut self) {
        self.closed = true;
        self.unsent = Vec::new();
        if let Some(mut channel) = self.channel.take() {
            if !channel.is_v1() {
                channel.queue(Flags::NONE, msg_type::DISCONNECT, 0, &[]);
            }
            // Best effort: the server sees the end of the connection anyway.
            let _ = channel.flush();
        }
        self.fail_all(&Error::Closed);
    }

    /// Whether the connection can be used, as far as is known without asking the server.
    pub(super) fn is_connected(&self) -> bool {
        !self.closed
            && self
                .channel
                .as_ref()
                .is_some_and(|channel| !channel.link.has_ended())
    }

    pub(super) fn keep(&mut self, answer: Answer) {
        self.ready.push(answer);
    }
}

/// When a request is to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    /// Somebody is about to wait for the answer.
    Now,
    /// With others.
    Later,
}

/// What to do with an answer after the sink has seen it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keep {
    /// It is dealt with.
    Done,
    /// It is somebody else's: keep it until it is asked for.
    Queue,
    /// Keep it, however long it is, for who takes it next.
    Held,
}

pub(super) fn timeout(deadline: &Deadline) -> Error {
    Error::Timeout {
        after: deadline.timeout(),
    }
}

const _: () = assert!(HEADER_BYTES < QUEUE_BYTES);
