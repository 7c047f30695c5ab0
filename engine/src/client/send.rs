//! Sending: from requests and one-way messages to bytes in the ring or the socket.

use super::Error;
use super::channel::Channel;
use super::collect::NOT_IN_FLIGHT;
use super::deadline::Deadline;
use super::histogram;
use super::inner::{Inner, Keep, UNREAD, not_sent, timeout};
use crate::sys::clock;
use crate::wire::{Flags, HEADER_BYTES, Header, msg_type as types};

/// Queued frames are sent when they have this many bytes, without waiting for a flush.
const QUEUE_BYTES: usize = 32 * 1024;

const _: () = assert!(HEADER_BYTES < QUEUE_BYTES);

impl Inner {
    /// Queues a request, which is sent with others. Waits for answers if too many requests are in
    /// flight.
    ///
    /// The common case of many requests in flight comes first and in one piece, since there every
    /// instruction counts; everything else is in [`Inner::begin`].
    #[inline(always)]
    pub(super) fn submit(
        &mut self,
        flags: Flags,
        msg_type: u16,
        payload: &[u8],
    ) -> Result<u64, Error> {
        let began_ns = histogram::clock_ns(&self.round_trips);
        if let Some(channel) = &mut self.channel
            && payload.len() < self.lengths.short_end
            && types::is_often_sent(msg_type)
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
        let mut deadline = self.deadline().with_server_only();
        let sent = self.send_queued(&mut deadline);
        self.begun(id, sent)
    }

    /// The outcome of a request that was begun: if its caller is told of a failure, it is not in flight.
    pub(super) fn begun(&mut self, id: u64, sent: Result<(), Error>) -> Result<u64, Error> {
        match sent {
            Ok(()) => Ok(id),
            Err(error) => {
                self.forget(id);
                Err(error)
            }
        }
    }

    /// Sends what is queued if it is much, so that no more is queued while the server does not read.
    fn send_if_much(&mut self, deadline: &mut Deadline) -> Result<(), Error> {
        let channel = self.channel.as_ref();
        match channel.is_some_and(|channel| channel.queued_bytes() >= QUEUE_BYTES) {
            true => self
                .send_queued(deadline)
                .map_err(|error| not_sent(error, UNREAD)),
            false => Ok(()),
        }
    }

    #[inline(never)]
    fn submit_other(&mut self, flags: Flags, msg_type: u16, payload: &[u8]) -> Result<u64, Error> {
        let mut deadline = self.deadline().with_server_only();
        self.submit_within(flags, msg_type, payload, &mut deadline)
    }

    /// As [`Inner::submit`], with a deadline of the caller's.
    pub(super) fn submit_within(
        &mut self,
        flags: Flags,
        msg_type: u16,
        payload: &[u8],
        deadline: &mut Deadline,
    ) -> Result<u64, Error> {
        self.begin(flags, msg_type, payload, When::Later, deadline)
    }

    /// As [`Inner::submit`], and sends the request if that is possible at once: the caller is about to wait
    /// for its answer.
    #[inline]
    pub(super) fn submit_now(
        &mut self,
        msg_type: u16,
        payload: &[u8],
        deadline: &mut Deadline,
    ) -> Result<u64, Error> {
        self.begin(Flags::NONE, msg_type, payload, When::Now, deadline)
    }

    /// Begins a request: gets ready, gives it an id, then sends or queues it. Inlined, so that each `when`
    /// has code of its own.
    #[inline(always)]
    fn begin(
        &mut self,
        flags: Flags,
        msg_type: u16,
        payload: &[u8],
        when: When,
        deadline: &mut Deadline,
    ) -> Result<u64, Error> {
        check_type(msg_type)?;
        self.check_length(payload.len(), deadline)?;
        self.ready_to_submit(payload.len(), deadline)?;
        let must_send = |channel: &Channel| {
            // A payload is only sent from the caller's memory if nothing is queued before it.
            channel.takes_lent(payload.len()) || channel.queued_bytes() >= QUEUE_BYTES
        };
        if self.channel.as_ref().is_some_and(must_send) {
            self.send_queued(deadline)
                .map_err(|error| not_sent(error, UNREAD))?;
            self.ready_to_submit(payload.len(), deadline)?;
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
        check_type(msg_type)?;
        self.check_length(payload.len(), deadline)?;
        if !self.flights.contains(id) {
            return Err(NOT_IN_FLIGHT);
        }
        self.send_if_much(deadline)?;
        if self.channel.is_none() {
            self.ready_to_send(payload.len(), deadline)?;
        }
        let more = if last { Flags::NONE } else { Flags::STREAM };
        let channel = self.channel.as_mut().expect("ready to send");
        channel.queue(Flags::REQUEST | more, msg_type, id, payload);
        if channel.queued_bytes() < QUEUE_BYTES {
            return Ok(());
        }
        let sent = self.send_queued(deadline);
        self.queued_last(sent, |header| {
            header.flags.contains(Flags::REQUEST) && header.msg_id == id
        })
    }

    /// The outcome of the frame that was queued last, if it does not begin a request. If sending failed and
    /// the frame waits for the next connection, it is taken back: its caller is told of the failure, and may
    /// send it again.
    fn queued_last(
        &mut self,
        sent: Result<(), Error>,
        is_it: impl Fn(&Header) -> bool,
    ) -> Result<(), Error> {
        if sent.is_err() && self.channel.is_none() {
            self.take_back(|header, is_last| is_last && is_it(header));
        }
        sent
    }

    /// Sends a message that gets no answer, and what was queued before it.
    pub(super) fn send_one_way(
        &mut self,
        msg_type: u16,
        payload: &[u8],
        deadline: &mut Deadline,
    ) -> Result<(), Error> {
        check_type(msg_type)?;
        self.check_length(payload.len(), deadline)?;
        self.send_if_much(deadline)?;
        let channel = self.ready_to_send(payload.len(), deadline)?;
        if channel.is_v1() {
            return Err(Error::InvalidRequest("version 1 has no one-way messages"));
        }
        let begins_at = channel.next_begins_at();
        channel.queue(Flags::NONE, msg_type, 0, payload);
        self.last_one_way_at = begins_at;
        self.stats.sent += 1;
        let sent = self.send_queued(deadline);
        self.queued_last(sent, |header| !header.flags.contains(Flags::REQUEST))
    }

    /// Sends what can be sent without waiting. True if nothing is left.
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

    /// Sending has failed. The server may have said why before it closed the connection, so what it sent is
    /// taken first.
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

    /// Sends everything that is queued. While the server does not read, its answers are taken, or both sides
    /// could wait for each other for ever.
    #[inline]
    pub(super) fn send_queued(&mut self, deadline: &mut Deadline) -> Result<(), Error> {
        if self.send_some()? {
            return Ok(());
        }
        self.send_waiting(deadline, usize::MAX)
    }

    /// As [`Inner::send_queued`], if not all can be sent at once. Ends as soon as more than `kept` answers are
    /// kept.
    #[cold]
    pub(super) fn send_waiting(
        &mut self,
        deadline: &mut Deadline,
        kept: usize,
    ) -> Result<(), Error> {
        // Ends with everything sent, an answer, or at the deadline.
        loop {
            if self.ready.len() > kept {
                return Ok(());
            }
            if self.channel.is_none() {
                self.reconnect(deadline)?;
            }
            if self.send_some()? {
                return Ok(());
            }
            if self.channel.is_none() {
                continue;
            }
            let taken = self.take_received(&mut |_| Keep::Queue)?;
            let now_ns = clock::now_ns();
            let Some(left) = deadline.left(now_ns) else {
                return Err(timeout(deadline));
            };
            if taken == 0
                && let Some(channel) = self.channel.as_mut()
                && let Err(error) = channel.link.sleep(true, left)
            {
                self.broken_while_sending(error)?;
            }
        }
    }
}

/// Refuses message types that are invalid or the protocol's own: the server would close the connection, or
/// take the message for one of the protocol's.
#[inline(always)]
pub(super) fn check_type(msg_type: u16) -> Result<(), Error> {
    match types::may_be_sent(msg_type) {
        true => Ok(()),
        false => Err(Error::ReservedType(msg_type)),
    }
}

/// When a request is to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    /// At once, if possible: somebody is about to wait for the answer.
    Now,
    /// Together with others.
    Later,
}
