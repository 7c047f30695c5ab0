//! The answers that other threads owe to a connection, by the ids of their requests, and which of those
//! the requester has cancelled.
//!
//! A requester may use an id again once it has cancelled the request, which it is not told the end of: so
//! each duty has a number of its own.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The worker's list. Bounded by `max_inflight_per_connection`.
#[derive(Debug, Default)]
pub(super) struct Owed {
    /// One entry for each answer, so an id that is used twice stands here twice.
    all: Vec<Duty>,
    /// Of the next duty.
    number: u64,
}

#[derive(Clone, Copy, Debug)]
struct Duty {
    msg_id: u64,
    number: u64,
}

impl Owed {
    #[inline(always)]
    pub(super) fn count(&self) -> u32 {
        self.all.len() as u32
    }

    /// An answer is owed from now on. Returns the duty's number.
    pub(super) fn add(&mut self, msg_id: u64) -> u64 {
        let number = self.number;
        self.number += 1;
        self.all.push(Duty { msg_id, number });
        number
    }

    /// The numbers of what is owed to the requests with this id.
    pub(super) fn numbers(&self, msg_id: u64) -> impl Iterator<Item = u64> {
        let of_it = self.all.iter().filter(move |duty| duty.msg_id == msg_id);
        of_it.map(|duty| duty.number)
    }

    /// The last answer to a request has come.
    pub(super) fn remove(&mut self, number: u64) {
        let at = self.all.iter().position(|duty| duty.number == number);
        self.all
            .swap_remove(at.expect("one last answer for each request taken away"));
    }
}

/// The numbers of answers that are owed and not wanted any more: told by the worker to those who prepare
/// them.
#[derive(Debug, Default)]
pub(super) struct Cancelled {
    /// The length of the list, for those who need not look into it.
    count: AtomicUsize,
    /// Held for a look or an entry, by the worker and by the threads that answer.
    numbers: Mutex<Vec<u64>>,
}

impl Cancelled {
    pub(super) fn contains(&self, number: u64) -> bool {
        // Relaxed: a cancellation is seen by and by; the list itself is read under the lock.
        self.count.load(Ordering::Relaxed) > 0 && self.with(|numbers| numbers.contains(&number))
    }

    pub(super) fn add(&self, number: u64) {
        self.with(|numbers| {
            if !numbers.contains(&number) {
                numbers.push(number);
            }
        });
    }

    pub(super) fn remove(&self, number: u64) {
        self.with(|numbers| numbers.retain(|&other| other != number));
    }

    fn with<T>(&self, look: impl FnOnce(&mut Vec<u64>) -> T) -> T {
        // Nothing in here panics half way.
        let mut numbers = match self.numbers.lock() {
            Ok(numbers) => numbers,
            Err(poisoned) => poisoned.into_inner(),
        };
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
        assert_eq!(owed.numbers(5).collect::<Vec<_>>(), [first, second]);
        owed.remove(first);
        assert_eq!(owed.numbers(5).collect::<Vec<_>>(), [second]);
        assert_eq!(owed.numbers(6).collect::<Vec<_>>(), [other]);
        owed.remove(second);
        assert_eq!(owed.numbers(5).count(), 0);
        assert_eq!(owed.count(), 1);
    }

    #[test]
    fn what_is_cancelled_is_so_until_it_is_done() {
        let cancelled = Cancelled::default();
        assert!(!cancelled.contains(5));
        cancelled.add(5);
        cancelled.add(5);
        cancelled.add(6);
        assert!(cancelled.contains(5) && cancelled.contains(6) && !cancelled.contains(7));
        cancelled.remove(5);
        assert!(!cancelled.contains(5) && cancelled.contains(6));
    }
}
