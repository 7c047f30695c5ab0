//! The client's state (the connection, the requests in flight, the answers that were kept), and waiting for
//! answers. [`super::send`] sends, [`super::receive`] takes what comes, [`super::loss`] deals with lost
//! connections, [`super::reconnect`] makes new ones.

use std::time::Duration;

use hdrhistogram::Histogram;

use super::address::Address;
use super::answer::{AnswerRef, ClientStats, PeerLimits};
use super::backoff::Backoff;
use super::builder::Options;
use super::channel::Channel;
use super::connect::{self, Opened};
use super::deadline::{self, Deadline};
use super::flights::Flights;
use super::kept::Kept;
use super::lengths::Lengths;
use super::reserve::Reserved;
use super::wait::WaitPolicy;
use super::{Error, histogram};
use crate::stats::Transport;
use crate::sys::clock;
use crate::wire::{Flags, msg_type};

/// How often the connection is looked at in vain between two looks at the clock.
const LOOKS: u32 = 32;
/// A connection that was not used for this long may have ended unnoticed, so it is looked at before the
/// next request. By the coarse clock, which is exact to a timer tick.
const STALE_NS: u64 = 5_000_000;

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) options: Options,
    pub(super) address: Address,
    /// The connection; `None` while there is none.
    pub(super) channel: Option<Channel>,
    /// The requests in flight.
    pub(super) flights: Flights,
    /// Answers that came while something else was waited for.
    pub(super) ready: Kept,
    /// Frames that the lost connection did not send, to be sent over the next one.
    pub(super) unsent: Vec<u8>,
    /// The last of them lacks its payload: that is in the memory of the caller whose request it is, and that
    /// call is about to append it.
    pub(super) unsent_lacks_payload: bool,
    /// The last connection to a `shm:` address was lost because /dev/shm has no memory: the next would lack it too.
    pub(super) lacked_memory: bool,
    pub(super) backoff: Backoff,
    pub(super) policy: WaitPolicy,
    pub(super) stats: ClientStats,
    pub(super) peer: PeerLimits,
    pub(super) lengths: Lengths,
    pub(super) round_trips: Option<Histogram<u64>>,
    /// The buffer into which payloads are decompressed.
    pub(super) inflated: Vec<u8>,
    /// Requests that ended before the last part of their answers came: the server is to be told.
    pub(super) unwanted: Vec<u64>,
    /// The request whose payload is being written in place.
    pub(super) reserved: Option<Reserved>,
    /// The timeout of the options.
    timeout_ns: u64,
    /// When the connection was last used, by the coarse clock.
    last_used_ns: u64,
    /// Where the last one-way message begins in the stream of bytes sent.
    pub(super) last_one_way_at: u64,
    /// The transport of the connection, or of the last one.
    pub(super) transport: Transport,
}

impl Inner {
    pub(super) fn connect(
        options: Options,
        address: Address,
        limit: Duration,
    ) -> Result<Inner, Error> {
        let mut deadline = Deadline::after(options.connect_timeout.min(limit));
        let Opened { channel, peer } = connect::open(&options, &address, deadline.at_ns())?;
        Ok(Inner {
            flights: Flights::new(options.max_inflight),
            policy: WaitPolicy::new(options.idle.here()),
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
            lacked_memory: false,
            backoff: Backoff::default(),
            stats: ClientStats::default(),
            peer,
            inflated: Vec::new(),
            unwanted: Vec::new(),
            reserved: None,
            last_used_ns: clock::coarse_ns(),
            last_one_way_at: 0,
        })
    }

    #[inline]
    pub(super) fn deadline(&self) -> Deadline {
        Deadline::after_ns(self.timeout_ns)
    }

    /// Makes sure that there is a connection for a payload of this length: makes a new one if the old one is gone.
    pub(super) fn ready_to_send(
        &mut self,
        length: usize,
        deadline: &mut Deadline,
    ) -> Result<&mut Channel, Error> {
        if self.flights.count() == 0 && !self.was_used_lately() {
            self.last_used_ns = clock::coarse_ns();
            self.look_for_the_end();
        }
        self.connected(deadline)?;
        // The new server may take less.
        self.fits(length)?;
        Ok(self.channel.as_mut().expect("connected above"))
    }

    fn connected(&mut self, deadline: &mut Deadline) -> Result<(), Error> {
        match self.channel.is_none() {
            true => self
                .reconnect(deadline)
                .map_err(|error| not_sent(error, NO_SERVER)),
            false => Ok(()),
        }
    }

    /// With nothing in flight, finds out whether the server has ended the connection meanwhile, before a
    /// request is lost with it. Late answers that nobody waits for are dropped.
    pub(super) fn look_for_the_end(&mut self) {
        debug_assert_eq!(self.flights.count(), 0);
        let drop_all = &mut |_: AnswerRef<'_>| Keep::Done;
        // Ends when nothing is there or the connection is gone. Bounded, should a server never stop sending.
        // What `take_frames` fails with is an error of the connection, which is gone then.
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

    /// Refuses a payload that is longer than client or server takes.
    #[inline]
    pub(super) fn check_length(
        &mut self,
        length: usize,
        deadline: &mut Deadline,
    ) -> Result<(), Error> {
        match length > self.lengths.max as usize {
            true => self.check_length_anew(length, deadline),
            false => Ok(()),
        }
    }

    /// As [`Inner::check_length`], once it is certain that the limit is not that of a server which is gone: one
    /// that was started anew may take more.
    #[cold]
    fn check_length_anew(&mut self, length: usize, deadline: &mut Deadline) -> Result<(), Error> {
        if length <= self.options.max_message_bytes as usize {
            if self.flights.count() == 0 {
                self.look_for_the_end();
            }
            self.connected(deadline)?;
        }
        self.fits(length)
    }

    fn fits(&self, length: usize) -> Result<(), Error> {
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
    pub(super) fn ready_to_submit(
        &mut self,
        length: usize,
        deadline: &mut Deadline,
    ) -> Result<(), Error> {
        let in_flight = self.flights.count() > 0;
        let is_ready = self.channel.is_some()
            && match in_flight {
                true => !self.flights.is_full(),
                false => self.was_used_lately(),
            };
        match is_ready {
            true => Ok(()),
            false => self.get_ready_to_submit(length, deadline),
        }
    }

    /// Whether the connection was used a moment ago. If it was, notes that it is used now.
    #[inline]
    fn was_used_lately(&mut self) -> bool {
        let now_ns = clock::coarse_ns();
        let lately = now_ns.saturating_sub(self.last_used_ns) <= STALE_NS;
        if lately {
            self.last_used_ns = now_ns;
        }
        lately
    }

    fn get_ready_to_submit(&mut self, length: usize, deadline: &mut Deadline) -> Result<(), Error> {
        // Each pass takes at least one answer; most end a request.
        while self.flights.is_full() {
            if self.ready.is_full() {
                return Err(Error::InvalidRequest(
                    "more answers than max_unread_bytes wait: collect some first",
                ));
            }
            self.wait_turn(deadline)
                .map_err(|error| not_sent(error, WINDOW_IS_FULL))?;
        }
        if self.flights.count() == 0 || self.channel.is_none() {
            self.ready_to_send(length, deadline)?;
        }
        Ok(())
    }

    /// Waits until at least one more answer is kept. It may not be the one that the caller waits for; then
    /// this is called again. Fails at the deadline, however many other answers come.
    pub(super) fn wait_turn(&mut self, deadline: &mut Deadline) -> Result<(), Error> {
        match deadline.is_over() {
            true => Err(timeout(deadline)),
            false => self.wait_some(deadline, &mut |_| Keep::Queue),
        }
    }

    /// Waits until at least one answer is given to `sink`, or was kept while queued requests were sent.
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

    /// As [`Inner::wait_some`], with `take` looking for answers: it takes those that are there and returns
    /// how many there were.
    ///
    /// First it spins: for the time that [`super::wait::WaitPolicy`] says, and not if the server's worker
    /// needs this CPU. Then it sleeps, until something comes or the deadline.
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
                self.policy.was_in_the_way(in_the_way);
                // If it was, how long the answer took says nothing.
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
            let look_at_clock = looks == 1 && (spin_ns != u64::MAX || !self.policy.spins());
            let looked_long = looks.is_multiple_of(LOOKS);
            if !look_at_clock && !looked_long {
                continue;
            }
            if self.is_in_the_way() {
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
                // What the lost connection did not send is sent over a new one.
                self.send_waiting(deadline, kept)?;
                if self.ready.len() > kept {
                    return Ok(());
                }
                continue;
            }
            let now_ns = clock::now_ns();
            let received = self.received_bytes();
            if received != received_bytes && began_ns != 0 {
                // A piece of a long answer came: it is worth spinning for the next, as it was for this one.
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

    /// Whether spinning is in vain, because the server's worker needs the CPU on which this thread spins.
    pub(super) fn is_in_the_way(&self) -> bool {
        let channel = self.channel.as_ref();
        channel.is_some_and(|channel| channel.link.is_in_the_way())
    }

    fn received_bytes(&self) -> u64 {
        self.channel.as_ref().map_or(0, Channel::received_bytes)
    }

    /// Nobody wants the answer to this request any more. Tells the server, if that is possible without
    /// waiting, or with what is sent next.
    pub(super) fn forget(&mut self, id: u64) {
        self.ready.forget(id);
        if self.flights.end(id) {
            self.queue_cancel(id);
            match &mut self.channel {
                // If the connection is broken, the next call finds out.
                Some(channel) => drop(channel.flush()),
                None => self.take_back(|header, _| {
                    header.flags.contains(Flags::REQUEST) && header.msg_id == id
                }),
            }
        }
    }

    /// Cancels requests that ended because their answers cannot be kept or read: a server that is not told
    /// would go on sending. Not while a frame is being sent from its caller's memory, or room in the ring is
    /// reserved: then the next time.
    #[cold]
    pub(super) fn cancel_unwanted(&mut self) {
        let lent = |channel: &Channel| channel.lent().is_some();
        if self.reserved.is_some() || self.channel.as_ref().is_some_and(lent) {
            return;
        }
        for id in std::mem::take(&mut self.unwanted) {
            self.queue_cancel(id);
        }
        if let Some(channel) = &mut self.channel {
            // If the connection is broken, the next call finds out.
            let _ = channel.flush();
        }
    }

    fn queue_cancel(&mut self, id: u64) {
        if let Some(channel) = self.channel.as_mut().filter(|channel| !channel.is_v1()) {
            self.last_one_way_at = channel.next_begins_at();
            channel.queue(Flags::NONE, msg_type::CANCEL, id, &[]);
            self.stats.sent += 1;
        }
    }

    /// Forgets everything of the last user. False if the connection cannot be used again.
    pub(super) fn leave_clean(&mut self) -> bool {
        if self.flights.count() > 0 {
            for id in self.flights.all() {
                self.flights.end(id);
                self.queue_cancel(id);
            }
        }
        self.ready.clear();
        self.reserved = None;
        matches!(self.send_some(), Ok(true)) && self.is_connected()
    }

    /// Sends what is queued and a DISCONNECT, if that is possible without waiting: the client ends.
    pub(super) fn say_goodbye(&mut self) {
        if let Some(channel) = &mut self.channel {
            if !channel.is_v1() {
                channel.queue(Flags::NONE, msg_type::DISCONNECT, 0, &[]);
            }
            // Best effort: the server sees the end of the connection anyway.
            let _ = channel.flush();
        }
    }

    /// Whether the connection can be used, as far as is known without asking the server.
    pub(super) fn is_connected(&self) -> bool {
        let channel = self.channel.as_ref();
        channel.is_some_and(|channel| !channel.link.has_ended())
    }
}

/// What to do with an answer after a sink has seen it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keep {
    /// Nothing: the sink has dealt with it.
    Done,
    /// Keep it until it is asked for, if `max_unread_bytes` allows.
    Queue,
    /// Keep it however long it is: the caller takes it next.
    Held,
}

// Why a request could not be queued.
const WINDOW_IS_FULL: &str = "as many requests as may be are in flight (max_inflight), and none was answered; collect answers, or allow more";
const NO_SERVER: &str = "there is no connection to the server, and none could be made";
pub(super) const UNREAD: &str =
    "the server does not read what was sent before; try again when it does";

/// What an error means for a request of which nothing was queued yet: a timeout becomes NotSent.
#[cold]
pub(super) fn not_sent(error: Error, why: &'static str) -> Error {
    match error {
        Error::Timeout { after } => Error::NotSent { after, why },
        other => other,
    }
}

pub(super) fn timeout(deadline: &Deadline) -> Error {
    Error::Timeout {
        after: deadline.timeout(),
    }
}
