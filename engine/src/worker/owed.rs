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
    cancelled: bool,
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
        self.all.push(Duty {
            msg_id,
            number,
            cancelled: false,
        });
        number
    }

    /// What is owed to the requests with this id is not wanted any more. The numbers of what was.
    pub(super) fn cancel(&mut self, msg_id: u64) -> impl Iterator<Item = u64> {
        self.all.iter_mut().filter_map(move |duty| {
            let is_new = duty.msg_id == msg_id && !std::mem::replace(&mut duty.cancelled, true);
            is_new.then_some(duty.number)
        })
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

    /// Adds what is not there yet.
    pub(super) fn add(&self, new: impl Iterator<Item = u64>) {
        self.with(|numbers| numbers.extend(new));
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
        assert_eq!(numbers(&mut owed, 6), [other]);
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
