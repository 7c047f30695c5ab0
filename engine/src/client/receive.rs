//! Receiving: from bytes that arrived to answers, which go to a sink. The sink says whether an answer is
//! dealt with or to be kept ([`Keep`]).

use hdrhistogram::Histogram;

use super::Error;
use super::answer::{Answer, AnswerRef, ClientStats};
use super::channel::{Channel, Incoming};
use super::flights::Found;
use super::histogram;
use super::inner::{Inner, Keep};
use super::kept::Kept;
use super::link::Link;
use super::loss::lost_error;
use crate::wire::{self, ErrorCode, Flags, Header, Refusal, msg_type};

/// How often the ring is watched for an answer before the waiting proper begins: about three microseconds in
/// all, so that a client is not in the way for long if the worker needs its CPU.
const SOON_WATCHES: u32 = 16;

impl Inner {
    /// Takes what has arrived, without waiting, and gives each answer to `sink`. Returns how many there
    /// were.
    #[inline]
    pub(super) fn take_received<S>(&mut self, sink: &mut S) -> Result<usize, Error>
    where
        S: FnMut(AnswerRef<'_>) -> Keep,
    {
        let Some(channel) = self.channel.as_mut() else {
            return Ok(self.take_failed(&mut |answer| sink(answer)));
        };
        match channel.fill() {
            Ok(0) => Ok(0),
            Ok(_) => self.take_frames(sink),
            Err(error) => {
                self.lost(Some(error));
                Ok(self.take_failed(&mut |answer| sink(answer)))
            }
        }
    }

    /// If the answer to the only request in flight has come and is a plain one, appends it to `to`. False if
    /// not; then nothing was done, and [`Inner::take_received`] is to look.
    ///
    /// This avoids the receive buffer, by way of which the bytes would be copied twice; the second copy would
    /// wait for the first, since it reads in wide pieces what was just stored word by word.
    #[inline]
    pub(super) fn take_answer(&mut self, id: u64, to: &mut Vec<u8>) -> bool {
        if self.flights.count() != 1 {
            return false;
        }
        let (Some(channel), Some(flight)) = (self.channel.as_mut(), self.flights.find(id)) else {
            return false;
        };
        if !channel.take_answer(id, to) {
            return false;
        }
        let now_ns = histogram::clock_ns(&self.round_trips);
        end(flight, &mut self.stats, &mut self.round_trips, now_ns);
        self.backoff.worked();
        true
    }

    /// As [`Inner::take_answer`], but watches the ring for a few microseconds, without the clock and whatever
    /// else a longer wait needs. False if the answer is still to be waited for.
    #[inline]
    pub(super) fn take_answer_soon(&mut self, id: u64, to: &mut Vec<u8>) -> bool {
        if !self.policy.spins() || !self.ready.is_empty() {
            return false;
        }
        for _ in 0..SOON_WATCHES {
            let channel = self.channel.as_ref();
            let link = channel.filter(|channel| channel.queued_bytes() == 0);
            let Some(Link::Shm(link)) = link.map(|channel| &channel.link) else {
                return false;
            };
            if link.watch() {
                let is_here = self.take_answer(id, to);
                if is_here {
                    // So soon that the clock was not looked at.
                    self.policy.waited(0);
                }
                return is_here;
            }
        }
        false
    }

    /// Gives the answers in the receive buffer to `sink`. Returns how many.
    ///
    /// Generic over the sink, which plain answers, most of all, reach in one place: there the compiler puts
    /// the sink's code in line, and an answer does not go through memory.
    pub(super) fn take_frames<S>(&mut self, sink: &mut S) -> Result<usize, Error>
    where
        S: FnMut(AnswerRef<'_>) -> Keep,
    {
        let mut answers = 0;
        let now_ns = histogram::clock_ns(&self.round_trips);
        // Bounded by what was received.
        loop {
            answers += self.take_plain(sink, now_ns)?;
            match self.take_other(&mut |answer| sink(answer), now_ns)? {
                Some(taken) => answers += taken,
                None => return Ok(answers),
            }
        }
    }

    /// Gives the answers that come next to `sink`, as long as they are plain ones. What follows from flags and
    /// type is found out once for a row of frames. Returns how many there were.
    #[inline(always)]
    fn take_plain<S>(&mut self, sink: &mut S, now_ns: u64) -> Result<usize, Error>
    where
        S: FnMut(AnswerRef<'_>) -> Keep,
    {
        let mut answers = 0;
        // Bounded by what was received.
        while let Some(channel) = self.channel.as_mut() {
            let mut row = match channel.row() {
                Ok(Some(row)) => row,
                Ok(None) => break,
                Err(refusal) => return Err(self.cannot_be_read(refusal)),
            };
            let mut header = row.first();
            let is_answer =
                header.flags.contains(Flags::RESPONSE) && header.msg_type != msg_type::ERROR;
            if !is_answer || header.flags.contains(Flags::COMPRESSED) {
                break;
            }
            let is_last = !header.flags.contains(Flags::STREAM);
            while let Some(frame) = row.next() {
                let payload = header.next_alike(frame);
                // An answer that nobody waits for any more.
                let Some(flight) = self.flights.find(header.msg_id) else {
                    continue;
                };
                let (stats, round_trips) = (&mut self.stats, &mut self.round_trips);
                // The request ends before the sink gets the answer, because the sink may panic.
                let kept = match is_last {
                    true => end(flight, stats, round_trips, now_ns),
                    false => Some(flight),
                };
                if hand_out(&mut self.ready, sink, &header, is_last, payload)
                    && let Some(flight) = kept
                {
                    end(flight, stats, round_trips, now_ns);
                    self.unwanted.push(header.msg_id);
                }
                answers += 1;
            }
            if answers > 0 {
                self.backoff.worked();
            }
        }
        Ok(answers)
    }

    /// Takes the next frame, whatever it is. If it is an answer, `sink` gets it. Returns how many answers that
    /// were, or `None` if there is no whole frame.
    #[inline(never)]
    fn take_other(&mut self, sink: Sink<'_>, now_ns: u64) -> Result<Option<usize>, Error> {
        let Some(channel) = self.channel.as_mut() else {
            return Ok(None);
        };
        let incoming = match channel.next() {
            Ok(None) => {
                if !self.unwanted.is_empty() {
                    self.cancel_unwanted();
                }
                return Ok(None);
            }
            Ok(Some(incoming)) => incoming,
            Err(refusal) => return Err(self.cannot_be_read(refusal)),
        };
        let header = incoming.header;
        let v1 = channel.is_v1();
        let payload = channel.payload(&incoming);
        let is_error = header.msg_type == msg_type::ERROR;
        if is_error && !v1 && !header.flags.contains(Flags::RESPONSE) {
            let Some(error) = about_the_connection(payload) else {
                return Ok(Some(0));
            };
            let somebody_is_told = self.flights.count() > 0;
            self.closed_by_server(&error);
            return match somebody_is_told {
                true => Ok(Some(self.take_failed(sink))),
                false => Err(error),
            };
        }
        // No answer, or one that nobody waits for any more.
        if !(v1 || header.flags.contains(Flags::RESPONSE)) {
            return Ok(Some(0));
        }
        let Some(flight) = self.flights.find(header.msg_id) else {
            return Ok(Some(0));
        };
        let last = v1 || is_error || !header.flags.contains(Flags::STREAM);
        let (stats, round_trips) = (&mut self.stats, &mut self.round_trips);
        // As in `take_plain`.
        let kept = match last {
            true => end(flight, stats, round_trips, now_ns),
            false => Some(flight),
        };
        let ready = &mut self.ready;
        let is_over = if is_error || header.flags.contains(Flags::COMPRESSED) {
            let max = self.options.max_message_bytes;
            match open(&header, payload, max, &mut self.inflated) {
                Ok(payload) => hand_out(ready, &mut *sink, &header, last, payload),
                Err(error) => hand_out_error(ready, sink, &header, error),
            }
        } else if incoming.lies_apart() {
            hand_over(ready, sink, channel, &incoming, last)
        } else {
            hand_out(ready, &mut *sink, &header, last, payload)
        };
        if is_over && let Some(flight) = kept {
            end(flight, stats, round_trips, now_ns);
            self.unwanted.push(header.msg_id);
        }
        self.backoff.worked();
        Ok(Some(1))
    }

    /// What the server sent is no frame: the connection is lost.
    #[cold]
    fn cannot_be_read(&mut self, refusal: Refusal) -> Error {
        let channel = self.channel.as_ref();
        let lacks_memory = channel.is_some_and(|channel| channel.link.lacks_memory());
        self.lost(Some(std::io::ErrorKind::InvalidData.into()));
        match lacks_memory {
            // Zeros, in place of what the server sent.
            true => lost_error(true, Some(&std::io::ErrorKind::StorageFull.into())),
            false => Error::ServerViolation(refusal),
        }
    }
}

/// Who gets answers, where they are not plain ones.
pub(super) type Sink<'a> = &'a mut dyn FnMut(AnswerRef<'_>) -> Keep;

/// While answers are given to a user's closure: if that panics, the answers that follow are kept for the
/// next call.
pub(super) struct ToCaller<'a>(pub(super) &'a mut Inner);

impl Drop for ToCaller<'_> {
    #[inline]
    fn drop(&mut self) {
        if std::thread::panicking() && self.0.channel.is_some() {
            // An error is one of the connection; the next call finds out.
            let _ = self.0.take_frames(&mut |_: AnswerRef<'_>| Keep::Queue);
        }
    }
}

/// Ends a request whose last answer is here, and counts it. Returns `None`: nothing is left of the request.
#[inline]
fn end<'a>(
    flight: Found<'a>,
    stats: &mut ClientStats,
    round_trips: &mut Option<Histogram<u64>>,
    now_ns: u64,
) -> Option<Found<'a>> {
    stats.received += 1;
    if let Some(round_trips) = round_trips {
        histogram::record(round_trips, now_ns.saturating_sub(flight.began_ns()));
    }
    flight.end();
    None
}

/// The payload of an answer that is compressed, or the error that it is, or both.
#[cold]
fn open<'a>(
    header: &Header,
    payload: &'a [u8],
    max_message_bytes: u32,
    inflated: &'a mut Vec<u8>,
) -> Result<&'a [u8], Error> {
    let plain = match header.flags.contains(Flags::COMPRESSED) {
        false => payload,
        true => {
            wire::decompress(payload, max_message_bytes, inflated)
                .map_err(Error::ServerViolation)?;
            &inflated[..]
        }
    };
    match header.msg_type == msg_type::ERROR {
        false => Ok(plain),
        true => Err(remote_error(plain)),
    }
}

/// Gives an answer to `sink`, and keeps a copy if the sink says so. Returns whether the request is over:
/// because this was the last part, or because there is no room to keep it.
///
/// The answer is passed by value all the way to the caller. Behind a reference, it would be read in wide
/// pieces right after it was written in narrow ones, and the processor waits for such stores.
#[inline(always)]
fn hand_out<S>(ready: &mut Kept, sink: &mut S, header: &Header, last: bool, payload: &[u8]) -> bool
where
    S: FnMut(AnswerRef<'_>) -> Keep + ?Sized,
{
    let answer = || AnswerRef {
        id: header.msg_id,
        msg_type: header.msg_type,
        last,
        result: Ok(payload),
    };
    let keep = sink(answer());
    if keep == Keep::Done {
        return last;
    }
    if keep == Keep::Held || ready.has_room(payload.len()) {
        ready.push_copy(&answer());
        return last;
    }
    ready.push(Answer::failed(header.msg_id, ready.overrun()));
    true
}

/// As [`hand_out`], for an answer that is an error or cannot be read: it is always the last.
#[cold]
fn hand_out_error(ready: &mut Kept, sink: Sink<'_>, header: &Header, error: Error) -> bool {
    let answer = |error| AnswerRef {
        id: header.msg_id,
        msg_type: header.msg_type,
        last: true,
        result: Err(error),
    };
    if sink(answer(error.copy())) != Keep::Done {
        ready.push_copy(&answer(error));
    }
    true
}

/// As [`hand_out`], for a long answer, which has a buffer of its own: that buffer is kept, not a copy.
fn hand_over(
    ready: &mut Kept,
    sink: Sink<'_>,
    channel: &mut Channel,
    incoming: &Incoming,
    last: bool,
) -> bool {
    let header = &incoming.header;
    let payload = channel.payload(incoming);
    let payload_bytes = payload.len();
    let keep = sink(AnswerRef {
        id: header.msg_id,
        msg_type: header.msg_type,
        last,
        result: Ok(payload),
    });
    if keep == Keep::Done {
        return last;
    }
    if keep == Keep::Queue && !ready.has_room(payload_bytes) {
        ready.push(Answer::failed(header.msg_id, ready.overrun()));
        return true;
    }
    let spare = ready.spare(payload_bytes);
    ready.push(Answer {
        id: header.msg_id,
        msg_type: header.msg_type,
        last,
        result: Ok(channel.exchange_payload(spare)),
    });
    last
}

/// What an ERROR frame says.
pub(super) fn remote_error(payload: &[u8]) -> Error {
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

/// An ERROR that is no answer to a request: `Some` if it means that the server ends the connection. One about
/// a one-way message does not.
fn about_the_connection(payload: &[u8]) -> Option<Error> {
    let error = remote_error(payload);
    let ends = match error.code() {
        Some(ErrorCode::Overloaded | ErrorCode::Timeout) => true,
        Some(code) => code.closes_connection(),
        None => false,
    };
    ends.then_some(error)
}
