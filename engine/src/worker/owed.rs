//! The answers that other threads owe to a connection, and which of them the requester has cancelled.
//!
//! Each has a number of its own. The request's id does not do: a requester may use it again as soon as it
//! has cancelled the request, while the thread still works on the answer.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// The worker's list of owed answers. Bounded by `max_inflight_per_connection`.
#[derive(Debug, Default)]
pub(super) struct Owed {
    /// One entry for each answer; an id that is in use twice has two.
    all: Vec<Duty>,
    /// How many of them are not cancelled.
    wanted: usize,
    /// The number of the next one.
    number: u64,
}

#[derive(Clone, Copy, Debug)]
struct Duty {
    msg_id: u64,
    number: u64,
    cancelled: bool,
}

impl Owed {
    #[inline(always)]
    pub(super) fn count(&self) -> u32 {
        self.all.len() as u32
    }

    /// Whether the requester waits for any of them. What it has cancelled keeps no connection open.
    pub(super) fn is_waited_for(&self) -> bool {
        self.wanted > 0
    }

    /// Notes that an answer is owed. Returns its number.
    pub(super) fn add(&mut self, msg_id: u64) -> u64 {
        let number = self.number;
        self.number += 1;
        self.wanted += 1;
        self.all.push(Duty {
            msg_id,
            number,
            cancelled: false,
        });
        number
    }

    /// Notes that the answers owed to this id are not wanted any more. Returns the numbers of those that
    /// were.
    pub(super) fn cancel(&mut self, msg_id: u64) -> impl Iterator<Item = u64> {
        let Owed { all, wanted, .. } = self;
        all.iter_mut().filter_map(move |duty| {
            let is_new = duty.msg_id == msg_id && !std::mem::replace(&mut duty.cancelled, true);
            *wanted -= usize::from(is_new);
            is_new.then_some(duty.number)
        })
    }

    /// Removes an answer that has come.
    pub(super) fn remove(&mut self, number: u64) {
        let at = self.all.iter().position(|duty| duty.number == number);
        let duty = self
            .all
            .swap_remove(at.expect("one last answer for each request taken away"));
        self.wanted -= usize::from(!duty.cancelled);
    }
}

/// The numbers of owed answers that are not wanted any more: the worker tells them to the threads that
/// prepare the answers.
#[derive(Debug, Default)]
pub(super) struct Cancelled {
    /// The length of the list, so that it need not be locked while it is empty.
    count: AtomicUsize,
    /// Locked for a few instructions, by the worker and by the threads that answer.
    numbers: Mutex<Vec<u64>>,
}

impl Cancelled {
    pub(super) fn contains(&self, number: u64) -> bool {
        // Relaxed: it is enough if a cancellation is seen soon; the list is read under its lock.
        self.count.load(Ordering::Relaxed) > 0 && self.with(|numbers| numbers.contains(&number))
    }

    /// Adds numbers that are not in the list.
    pub(super) fn add(&self, new: impl Iterator<Item = u64>) {
        self.with(|numbers| numbers.extend(new));
    }

    pub(super) fn remove(&self, number: u64) {
        self.with(|numbers| numbers.retain(|&other| other != number));
    }

    fn with<T>(&self, look: impl FnOnce(&mut Vec<u64>) -> T) -> T {
        // Nothing that can panic half-way runs under the lock.
        let mut numbers = self.numbers.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = look(&mut numbers);
        self.count.store(numbers.len(), Ordering::Relaxed);
        seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_answer_is_owed_once() {
        let mut owed = Owed::default();
        let [first, other, second] = [5, 6, 5].map(|id| owed.add(id));
        owed.remove(first);
        let third = owed.add(5);
        let numbers = |owed: &mut Owed, id| {
            let mut all: Vec<_> = owed.cancel(id).collect();
            all.sort_unstable();
            all
        };
        assert_eq!(numbers(&mut owed, 5), [second, third]);
        // Once each.
        assert_eq!(numbers(&mut owed, 5), []);
        let fourth = owed.add(5);
        assert_eq!(numbers(&mut owed, 5), [fourth]);
        assert!(owed.is_waited_for());
        assert_eq!(numbers(&mut owed, 6), [other]);
        assert!(!owed.is_waited_for());
        for number in [fourth, third, second] {
            owed.remove(number);
        }
        assert_eq!(owed.count(), 1);
    }

    #[test]
    fn what_is_cancelled_is_so_until_it_is_done() {
        let cancelled = Cancelled::default();
        assert!(!cancelled.contains(5));
        cancelled.add([5, 6].into_iter());
        assert!(cancelled.contains(5) && cancelled.contains(6) && !cancelled.contains(7));
        cancelled.remove(5);
        assert!(!cancelled.contains(5) && cancelled.contains(6));
    }
}
