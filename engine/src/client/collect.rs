//! Handing answers out: waiting for one request's answer, giving kept answers to a sink, and the parts of a
//! stream as an iterator.

use super::answer::{Answer, AnswerRef};
use super::deadline::Deadline;
use super::inner::{Inner, Keep, timeout};
use super::{Client, Error};
use crate::wire::append;

/// Payloads of this length or more are moved instead of copied, if they have a buffer of their own.
const MOVED_BYTES_MIN: usize = 32 * 1024;

pub(super) const NOT_IN_FLIGHT: Error = Error::InvalidRequest("no such request is in flight");

/// Waits for all parts of the answer to one request and appends them to `to`. However this ends, the request
/// is over: it is answered, failed, or forgotten.
pub(super) fn collect(
    inner: &mut Inner,
    id: u64,
    deadline: &mut Deadline,
    to: &mut Vec<u8>,
) -> Result<(), Error> {
    if inner.take_answer_soon(id, to) {
        return Ok(());
    }
    let mut outcome = None;
    let joined_max = inner.options.max_unread_bytes;
    let overruns =
        |to: &Vec<u8>, payload: &[u8]| !to.is_empty() && to.len() + payload.len() > joined_max;
    // Each pass takes an answer that is here or waits for one; ends with the last part or the deadline.
    loop {
        while !inner.ready.is_empty()
            && let Some(answer) = inner.ready.take(id)
        {
            let payload = answer.result?;
            if overruns(to, &payload) {
                inner.forget(id);
                return Err(Error::Unread { max: joined_max });
            }
            if to.is_empty() && payload.len() >= MOVED_BYTES_MIN {
                inner.ready.give_back(std::mem::replace(to, payload));
            } else {
                append(to, &payload);
                inner.ready.give_back(payload);
            }
            if answer.last {
                return Ok(());
            }
        }
        if !inner.flights.contains(id) {
            return Err(NOT_IN_FLIGHT);
        }
        if deadline.is_over() {
            inner.forget(id);
            return Err(timeout(deadline));
        }
        let mut is_first = to.is_empty();
        let mut held = false;
        let waited = inner.wait_until(deadline, |inner| {
            if inner.take_answer(id, to) {
                outcome = Some(Ok(()));
                return Ok(1);
            }
            inner.take_received(&mut |answer| {
                if answer.id != id {
                    return Keep::Queue;
                }
                // A long first part is kept whole and moved later; what follows it is kept behind it.
                held |= is_first
                    && answer
                        .result
                        .as_ref()
                        .is_ok_and(|it| it.len() >= MOVED_BYTES_MIN);
                if held {
                    return Keep::Held;
                }
                match &answer.result {
                    // The request is over: the rest of what arrived at once is dropped.
                    _ if outcome.is_some() => {}
                    Ok(payload) if overruns(to, payload) => {
                        outcome = Some(Err(Error::Unread { max: joined_max }));
                    }
                    Ok(payload) => {
                        is_first = false;
                        append(to, payload);
                        if answer.last {
                            outcome = Some(Ok(()));
                        }
                    }
                    Err(error) => outcome = Some(Err(error.copy())),
                }
                Keep::Done
            })
        });
        if let Some(outcome) = outcome.take() {
            if outcome.is_err() {
                inner.forget(id);
            }
            return outcome;
        }
        // What became of this request counts more than how the waiting ended: its answer may have come, or
        // the reason why there is none.
        if let Err(error) = waited {
            let says_more = matches!(error, Error::ServerViolation(_));
            match inner.ready.has(id) {
                Some(true) => {}
                Some(false) if !says_more => {}
                _ => {
                    inner.forget(id);
                    return Err(error);
                }
            }
        }
    }
}

/// Gives all kept answers to the user's sink; returns how many there were.
pub(super) fn take_kept(inner: &mut Inner, sink: &mut dyn FnMut(AnswerRef<'_>)) -> usize {
    let mut given = 0;
    while let Some(answer) = inner.ready.pop() {
        let Answer {
            id,
            msg_type,
            last,
            result,
        } = answer;
        let (result, payload) = match result {
            Ok(payload) => (Ok(()), payload),
            Err(error) => (Err(error), Vec::new()),
        };
        sink(AnswerRef {
            id,
            msg_type,
            last,
            result: result.map(|()| &payload[..]),
        });
        inner.ready.give_back(payload);
        given += 1;
    }
    given
}

/// The parts of an answer that is a stream, as they come; see [`Client::call_stream`]. Each part
/// may take as long as the client's timeout. After an error there are no more. To end a stream early, drop this: that
/// cancels it. If [`Client::cancel`] did so, the next item is [`Error::InvalidRequest`], since the answer is not whole.
#[derive(Debug)]
pub struct Parts<'a> {
    client: &'a Client,
    id: Option<u64>,
}

impl<'a> Parts<'a> {
    pub(super) fn new(client: &'a Client, id: u64) -> Parts<'a> {
        Parts {
            client,
            id: Some(id),
        }
    }

    /// The id of the request, for [`Client::cancel`]; `None` once the stream has ended.
    pub fn id(&self) -> Option<u64> {
        self.id
    }
}

impl Iterator for Parts<'_> {
    type Item = Result<Vec<u8>, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let part = self.client.wait_part(self.id?);
        let more_follow = part.as_ref().is_ok_and(|answer| !answer.last);
        self.id = self.id.filter(|_| more_follow);
        Some(part.and_then(|answer| answer.result))
    }
}

impl Drop for Parts<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.client.inner.borrow_mut().forget(id);
        }
    }
}
