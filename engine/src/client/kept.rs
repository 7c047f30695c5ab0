//! Answers that came while something else was waited for, kept until they are collected.

use std::collections::VecDeque;

use super::Error;
use super::answer::{Answer, AnswerRef};
use crate::spare_buffers::SpareBuffers;
use crate::wire::append;

/// About what an answer takes besides its payload.
const ANSWER_BYTES: usize = 64;

/// How much memory spare buffers may hold. To map megabytes anew for each answer costs more than the answer.
const SPARE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// How many spare buffers of each kind there may be.
const SPARE_MAX: usize = 1024;
/// Larger buffers than this are for long payloads only.
const SMALL_BYTES_MAX: usize = 32 * 1024;

/// How much unused capacity the buffers of all kept answers may have together: a spare buffer may be a
/// thousand times as large as the payload that it is used for.
const IDLE_BYTES_MAX: usize = SPARE_BYTES_MAX;

fn idle_bytes(answer: &Answer) -> usize {
    let payload = answer.result.as_ref();
    payload.map_or(0, |payload| payload.capacity() - payload.len())
}

/// Answers in the order in which they came, up to a limit.
#[derive(Debug)]
pub(super) struct Kept {
    answers: VecDeque<Answer>,
    bytes: usize,
    bytes_max: usize,
    /// Unused capacity of their buffers, which `bytes` does not count.
    idle_bytes: usize,
    /// Small buffers for the next payloads.
    spare: SpareBuffers,
    /// Large ones, apart, so that none is taken for a short payload and missing for a long one.
    spare_large: SpareBuffers,
}

impl Kept {
    pub(super) fn new(bytes_max: usize) -> Kept {
        Kept {
            answers: VecDeque::new(),
            bytes: 0,
            bytes_max,
            idle_bytes: 0,
            spare: SpareBuffers::default(),
            spare_large: SpareBuffers::default(),
        }
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.answers.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.answers.len()
    }

    /// Whether an answer with a payload of this length may still be kept. A single one always may: it may be
    /// the one that is waited for.
    pub(super) fn has_room(&self, payload_bytes: usize) -> bool {
        self.answers.is_empty() || self.bytes + payload_bytes + ANSWER_BYTES <= self.bytes_max
    }

    /// Whether more is kept than allowed, so that answers must be collected before more are asked for.
    pub(super) fn is_full(&self) -> bool {
        self.bytes > self.bytes_max
    }

    /// What is kept for this request: `Some(true)` is an answer, `Some(false)` an error.
    pub(super) fn has(&self, id: u64) -> Option<bool> {
        let of_it = self.answers.iter().find(|answer| answer.id == id)?;
        Some(of_it.result.is_ok())
    }

    /// The error of an answer for which there was no room.
    pub(super) fn overrun(&self) -> Error {
        Error::Unread {
            max: self.bytes_max,
        }
    }

    /// Keeps an answer. The caller has checked that there is room, but not for errors: there is at most one
    /// for each request in flight, and no more are begun while this is full.
    pub(super) fn push(&mut self, mut answer: Answer) {
        self.bytes += answer.payload_bytes() + ANSWER_BYTES;
        if self.idle_bytes + idle_bytes(&answer) > IDLE_BYTES_MAX
            && let Ok(payload) = &mut answer.result
        {
            payload.shrink_to_fit();
        }
        self.idle_bytes += idle_bytes(&answer);
        self.answers.push_back(answer);
    }

    /// As [`Kept::push`], with a copy of the answer.
    pub(super) fn push_copy(&mut self, answer: &AnswerRef<'_>) {
        let result = match &answer.result {
            Ok(payload) => {
                let mut copy = self.spare(payload.len());
                append(&mut copy, payload);
                Ok(copy)
            }
            Err(error) => Err(error.copy()),
        };
        self.push(Answer {
            id: answer.id,
            msg_type: answer.msg_type,
            last: answer.last,
            result,
        });
    }

    /// An empty buffer for about so many bytes; its capacity may be less.
    pub(super) fn spare(&mut self, payload_bytes: usize) -> Vec<u8> {
        self.spares(payload_bytes).0.pop().unwrap_or_default()
    }

    /// Takes back the buffer of an answer that nobody needs any more.
    pub(super) fn give_back(&mut self, buffer: Vec<u8>) {
        let (spares, others_bytes) = self.spares(buffer.capacity());
        spares.push(buffer, SPARE_MAX, SPARE_BYTES_MAX - others_bytes);
    }

    /// The spare buffers of the kind for so many bytes, and how much memory those of the other kind hold.
    fn spares(&mut self, bytes: usize) -> (&mut SpareBuffers, usize) {
        match bytes {
            0..=SMALL_BYTES_MAX => (&mut self.spare, self.spare_large.bytes()),
            _ => (&mut self.spare_large, self.spare.bytes()),
        }
    }

    fn removed(&mut self, answer: Answer) -> Answer {
        self.bytes -= answer.payload_bytes() + ANSWER_BYTES;
        self.idle_bytes -= idle_bytes(&answer);
        answer
    }

    pub(super) fn pop(&mut self) -> Option<Answer> {
        let answer = self.answers.pop_front()?;
        Some(self.removed(answer))
    }

    /// The oldest answer to this request.
    pub(super) fn take(&mut self, id: u64) -> Option<Answer> {
        let index = self.answers.iter().position(|answer| answer.id == id)?;
        let answer = self.answers.remove(index)?;
        Some(self.removed(answer))
    }

    /// Drops the answers to this request.
    pub(super) fn forget(&mut self, id: u64) {
        // Each pass takes one.
        while self.take(id).is_some() {}
    }

    pub(super) fn clear(&mut self) {
        self.answers.clear();
        (self.bytes, self.idle_bytes) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_and_bytes_are_kept() {
        let mut kept = Kept::new(3 * ANSWER_BYTES + 10);
        let answer = |id, bytes| Answer {
            id,
            msg_type: 1,
            last: true,
            result: Ok(vec![0; bytes]),
        };
        kept.push(answer(1, 4));
        kept.push(answer(2, 6));
        assert!(kept.has_room(0) && !kept.has_room(1));
        kept.push(Answer::failed(1, Error::ReservedType(0)));
        assert!(!kept.has_room(0));
        assert!(matches!(kept.overrun(), Error::Unread { max } if max == 3 * ANSWER_BYTES + 10));
        assert!(kept.take(1).unwrap().result.is_ok());
        assert!(kept.take(1).unwrap().result.is_err());
        assert!(kept.take(1).is_none());
        assert_eq!(kept.len(), 1);
        kept.forget(2);
        assert!(kept.is_empty() && kept.pop().is_none());
        assert_eq!(kept.bytes, 0);
    }

    #[test]
    fn short_answers_do_not_keep_long_buffers() {
        let mut kept = Kept::new(4 << 20);
        for _ in 0..8000 {
            // Of a longer answer that was collected meanwhile.
            kept.give_back(Vec::with_capacity(SMALL_BYTES_MAX));
            kept.push_copy(&AnswerRef {
                id: 1,
                msg_type: 1,
                last: false,
                result: Ok(b"x"),
            });
        }
        let held = |answer: &Answer| answer.result.as_ref().map_or(0, Vec::capacity);
        let held: usize = kept.answers.iter().map(held).sum();
        assert!(
            held <= IDLE_BYTES_MAX + kept.bytes,
            "{held} for {}",
            kept.bytes
        );
        kept.forget(1);
        assert_eq!((kept.bytes, kept.idle_bytes), (0, 0));
    }

    #[test]
    fn buffers_are_used_again_and_have_a_limit() {
        let mut kept = Kept::new(usize::MAX / 2);
        let answer = AnswerRef {
            id: 1,
            msg_type: 1,
            last: true,
            result: Ok(&[7; 100]),
        };
        kept.push_copy(&answer);
        let first = kept.pop().unwrap().result.unwrap();
        assert_eq!(first, [7; 100]);
        let place = first.as_ptr();
        kept.give_back(first);
        kept.push_copy(&answer);
        let second = kept.pop().unwrap().result.unwrap();
        assert_eq!((second.as_ptr(), &second[..]), (place, &[7; 100][..]));
        for _ in 0..3 {
            kept.give_back(Vec::with_capacity(SPARE_BYTES_MAX / 2));
        }
        assert_eq!(
            kept.spare.bytes() + kept.spare_large.bytes(),
            SPARE_BYTES_MAX
        );
        for _ in 0..2 * SPARE_MAX {
            kept.give_back(Vec::new());
        }
        assert_eq!(kept.spare.len(), SPARE_MAX);
    }
}
