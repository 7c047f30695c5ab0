//! Answers that came while something else was waited for.

use std::collections::VecDeque;

use super::Error;
use super::answer::Answer;

/// What an answer takes besides its payload, about.
const ANSWER_BYTES: usize = 64;

/// Answers in the order in which they came, up to a limit.
#[derive(Debug)]
pub(super) struct Kept {
    answers: VecDeque<Answer>,
    bytes: usize,
    bytes_max: usize,
}

impl Kept {
    pub(super) fn new(bytes_max: usize) -> Kept {
        Kept {
            answers: VecDeque::new(),
            bytes: 0,
            bytes_max,
        }
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.answers.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.answers.len()
    }

    /// Whether an answer with a payload of this length may still be kept.
    pub(super) fn has_room(&self, payload_bytes: usize) -> bool {
        self.bytes + payload_bytes + ANSWER_BYTES <= self.bytes_max
    }

    /// The error of an answer for which there was no room.
    pub(super) fn overrun(&self) -> Error {
        Error::Unread {
            max: self.bytes_max,
        }
    }

    /// Keeps an answer. The caller has asked for room, except for errors: there is at most one for
    /// each request in flight.
    pub(super) fn push(&mut self, answer: Answer) {
        self.bytes += answer.payload_bytes() + ANSWER_BYTES;
        self.answers.push_back(answer);
    }

    fn removed(&mut self, answer: Answer) -> Answer {
        self.bytes -= answer.payload_bytes() + ANSWER_BYTES;
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
        // Each turn takes one.
        while self.take(id).is_some() {}
    }

    pub(super) fn clear(&mut self) {
        self.answers.clear();
        self.bytes = 0;
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
        kept.push(Answer::failed(1, Error::Closed));
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
}
