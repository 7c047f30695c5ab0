//! From received bytes to answers.

use super::Error;
use super::answer::{Answer, AnswerRef};
use super::inner::{Inner, Keep};
use crate::sys::clock;
use crate::wire::{self, ErrorCode, Flags, msg_type};

impl Inner {
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
            Ok(0) => Ok(0),
            Ok(_) => self.take_frames(sink),
            Err(error) => {
                self.lost(Some(error));
                Ok(self.take_failed(sink))
            }
        }
    }

    /// Gives the answers in the receive buffer to `sink`. Returns how many.
    pub(super) fn take_frames(
        &mut self,
        sink: &mut dyn FnMut(&AnswerRef<'_>) -> Keep,
    ) -> Result<usize, Error> {
        let mut answers = 0;
        let now_ns = match &self.round_trips {
            Some(_) => clock::now_ns(),
            None => 0,
        };
        // Bounded by what was received.
        loop {
            let channel = self.channel.as_mut().expect("only called with a channel");
            let incoming = match channel.next() {
                Ok(None) => return Ok(answers),
                Ok(Some(incoming)) => incoming,
                Err(refusal) => {
                    self.lost(None);
                    return Err(Error::ServerViolation(refusal));
                }
            };
            let header = incoming.header;
            let v1 = channel.is_v1();
            let payload = channel.payload(&incoming);
            let is_error = header.msg_type == msg_type::ERROR;
            if is_error && !v1 && !header.flags.contains(Flags::RESPONSE) {
                if let Some(error) = about_the_connection(payload) {
                    self.channel = None;
                    self.fail_all(&error);
                    return Err(error);
                }
                continue;
            }
            // An answer that nobody waits for any more, or something that is none.
            if !(v1 || header.flags.contains(Flags::RESPONSE)) {
                continue;
            }
            let Some(flight) = self.flights.get(header.msg_id) else {
                continue;
            };
            let began_ns = flight.began_ns;
            let mut last = v1 || !header.flags.contains(Flags::STREAM);
            let compressed = header.flags.contains(Flags::COMPRESSED);
            // Put where it stays: a result that was just made costs ten nanoseconds to move.
            let mut answer = AnswerRef {
                id: header.msg_id,
                msg_type: header.msg_type,
                last,
                result: Ok(payload),
            };
            if compressed {
                let max = self.options.max_message_bytes;
                answer.result = wire::decompress(payload, max, &mut self.inflated)
                    .map(|()| &self.inflated[..])
                    .map_err(Error::ServerViolation);
            }
            if is_error && let Ok(payload) = answer.result {
                answer.result = Err(remote_error(payload));
            }
            // What cannot be read has no second half either.
            last |= answer.result.is_err();
            answer.last = last;
            if let Keep::Queue = sink(&answer) {
                let payload_bytes = answer.result.as_ref().map_or(0, |payload| payload.len());
                if self.ready.has_room(payload_bytes) || answer.result.is_err() {
                    self.ready.push_copy(&answer);
                } else {
                    last = true;
                    let failed = Answer::failed(header.msg_id, self.ready.overrun());
                    self.ready.push(failed);
                }
            }
            if last {
                self.flights.end(header.msg_id);
                self.stats.received += 1;
                if let Some(round_trips) = &mut self.round_trips {
                    round_trips.saturating_record(now_ns.saturating_sub(began_ns).max(1));
                }
            }
            answers += 1;
            self.backoff.worked();
        }
    }
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
