//! The answers that other threads owe to a connection, by the ids of their requests, and which of those
//! the requester has cancelled.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The worker's list. Bounded by `max_inflight_per_connection`.
#[derive(Debug, Default)]
pub(super) struct Owed {
    /// One entry for each answer, so an id that is used twice stands here twice.
    ids: Vec<u64>,
}

impl Owed {
    #[inline(always)]
    pub(super) fn count(&self) -> u32 {
        self.ids.len() as u32
    }

    pub(super) fn add(&mut self, msg_id: u64) {
        self.ids.push(msg_id);
    }

    pub(super) fn contains(&self, msg_id: u64) -> bool {
        self.ids.contains(&msg_id)
    }

    /// The last answer to a request has come.
    pub(super) fn remove(&mut self, msg_id: u64) {
        let at = self.ids.iter().position(|&id| id == msg_id);
        self.ids
            .swap_remove(at.expect("one last answer for each request taken away"));
    }
}

/// Ids of requests whose answers are owed and not wanted any more: told by the worker to those who
/// prepare them.
#[derive(Debug, Default)]
pub(super) struct Cancelled {
    /// The length of the list, for those who need not look into it.
    count: AtomicUsize,
    /// Held for a look or an entry, by the worker and by the threads that answer.
    ids: Mutex<Vec<u64>>,
}

impl Cancelled {
    pub(super) fn contains(&self, msg_id: u64) -> bool {
        // Relaxed: a cancellation is seen by and by; the list itself is read under the lock.
        self.count.load(Ordering::Relaxed) > 0 && self.with(|ids| ids.contains(&msg_id))
    }

    pub(super) fn add(&self, msg_id: u64) {
        self.with(|ids| {
            if !ids.contains(&msg_id) {
                ids.push(msg_id);
            }
        });
    }

    pub(super) fn remove(&self, msg_id: u64) {
        self.with(|ids| ids.retain(|&id| id != msg_id));
    }

    fn with<T>(&self, look: impl FnOnce(&mut Vec<u64>) -> T) -> T {
        // Nothing in here panics half way.
        let mut ids = match self.ids.lock() {
            Ok(ids) => ids,
            Err(poisoned) => poisoned.into_inner(),
        };
        let seen = look(&mut ids);
        self.count.store(ids.len(), Ordering::Relaxed);
        seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_answer_is_owed_once() {
        let mut owed = Owed::default();
        for id in [5, 6, 5] {
            owed.add(id);
        }
        owed.remove(5);
        assert!(owed.contains(5) && owed.contains(6));
        owed.remove(5);
        assert!(!owed.contains(5));
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
