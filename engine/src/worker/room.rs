//! The memory budget `max_buffered_bytes`: how much of it is held, and who waits for room.
//!
//! A long message *reserves* its room before it is gathered. If there is none, its connection waits in
//! line: first come, first served, over all workers. While somebody waits, nobody else reserves, or a stream
//! of shorter messages would keep a long one waiting for ever. What is held already, answers that nobody
//! has read yet, is *charged*, whether there is room or not. Half of the budget is theirs, whatever long
//! messages hold.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::uring::Key;

/// A connection that waits for room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Waiter {
    worker: usize,
    key: Key,
    bytes: u64,
}

/// Shared by the workers of a server. Its lock is taken only while somebody waits, for a few instructions,
/// and only by workers.
pub(crate) struct Room {
    bytes_max: u64,
    held_bytes: AtomicU64,
    /// Those among them that are charged.
    charged_bytes: AtomicU64,
    /// Answers that wait in the workers' inboxes beyond what their queues take: to be charged.
    expected_bytes: AtomicU64,
    /// The length of `queue`, so that it need not be locked to see that nobody waits.
    waiters: AtomicUsize,
    /// First come, first served. Bounded by the number of connections: each waits once.
    queue: Mutex<VecDeque<Waiter>>,
}

impl Room {
    pub(crate) fn new(bytes_max: u64) -> Room {
        Room {
            bytes_max,
            held_bytes: AtomicU64::new(0),
            charged_bytes: AtomicU64::new(0),
            expected_bytes: AtomicU64::new(0),
            waiters: AtomicUsize::new(0),
            queue: Mutex::new(VecDeque::new()),
        }
    }

    /// Reserves room for a message, if there is enough and nobody waits in line.
    pub(super) fn reserve(&self, bytes: u64) -> bool {
        // Relaxed: with somebody who begins to wait at this moment, either order is right.
        self.waiters.load(Ordering::Relaxed) == 0 && self.take(bytes)
    }

    /// Joins the line. The worker must `call` afterwards, before it sleeps: bytes released before this rang
    /// for nobody.
    pub(super) fn wait(&self, worker: usize, key: Key, bytes: u64) {
        assert!(bytes <= self.bytes_max, "the longest message always fits");
        let mut queue = self.queue();
        queue.push_back(Waiter { worker, key, bytes });
        // SeqCst: pairs with the loads in `someone_can_go`. Either this worker's `call` sees the released
        // bytes, or the worker that released them sees that somebody waits.
        self.waiters.store(queue.len(), Ordering::SeqCst);
    }

    /// Leaves the line: the connection closes.
    pub(super) fn leave(&self, worker: usize, key: Key) {
        let mut queue = self.queue();
        queue.retain(|waiter| (waiter.worker, waiter.key) != (worker, key));
        self.waiters.store(queue.len(), Ordering::SeqCst);
    }

    /// If the first in line is a connection of this worker and there is room for it now, reserves that and
    /// takes it out of the line.
    pub(super) fn call(&self, worker: usize) -> Option<(Key, u64)> {
        if self.waiters.load(Ordering::SeqCst) == 0 {
            return None;
        }
        let mut queue = self.queue();
        let first = *queue.front()?;
        if first.worker != worker || !self.take(first.bytes) {
            return None;
        }
        queue.pop_front();
        self.waiters.store(queue.len(), Ordering::SeqCst);
        Some((first.key, first.bytes))
    }

    /// The worker of the first in line, if there is room for it now: that worker must be woken.
    pub(super) fn someone_can_go(&self) -> Option<usize> {
        if self.waiters.load(Ordering::SeqCst) == 0 {
            return None;
        }
        let first = *self.queue().front()?;
        let held = self.held_bytes.load(Ordering::SeqCst);
        (held + first.bytes <= self.bytes_max).then_some(first.worker)
    }

    /// Whether somebody stands in line.
    pub(super) fn is_waited_for(&self) -> bool {
        self.waiters.load(Ordering::Relaxed) > 0
    }

    /// Whether the budget would be exceeded by answers, with so many bytes of them that are not charged yet: not
    /// while they have less than half of it, or who uploads would decide whose answers are dropped.
    pub(super) fn is_overdrawn_by(&self, bytes: usize) -> bool {
        // Relaxed: a little more or less does not matter.
        let expected = self.expected_bytes.load(Ordering::Relaxed);
        // Twice, for what its worker takes at once is in memory as a message and encoded.
        let bytes = (2 * expected).max(bytes as u64);
        self.held_bytes.load(Ordering::Relaxed) + bytes > self.bytes_max
            && self.charged_bytes.load(Ordering::Relaxed) + bytes > self.bytes_max / 2
    }

    /// Counts answers that will be charged.
    pub(super) fn expect(&self, bytes: u64) {
        self.expected_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// They are charged now, or nobody wants them any more.
    pub(super) fn no_longer_expect(&self, bytes: u64) {
        self.expected_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Counts bytes of answers that are held already, even beyond the budget.
    pub(super) fn charge(&self, bytes: u64) {
        self.charged_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.held_bytes.fetch_add(bytes, Ordering::SeqCst);
    }

    /// Gives back what was charged, as `release` does what was reserved.
    pub(super) fn discharge(&self, bytes: u64) {
        self.charged_bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.release(bytes);
    }

    /// Gives room back. Afterwards `someone_can_go` says which worker is to be woken.
    pub(super) fn release(&self, bytes: u64) {
        let before = self.held_bytes.fetch_sub(bytes, Ordering::SeqCst);
        assert!(
            before >= bytes,
            "bytes are released once for each time they are reserved"
        );
    }

    fn take(&self, bytes: u64) -> bool {
        self.held_bytes
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |held| {
                (held + bytes <= self.bytes_max).then_some(held + bytes)
            })
            .is_ok()
    }

    fn queue(&self) -> MutexGuard<'_, VecDeque<Waiter>> {
        // Nothing that can panic runs under the lock, so the queue is whole.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(index: u32) -> Key {
        let generation = 0;
        Key { index, generation }
    }

    #[test]
    fn nobody_reserves_past_one_who_waits() {
        let room = Room::new(100);
        assert!(room.reserve(60));
        assert!(!room.reserve(50));
        room.wait(0, key(1), 50);
        assert!(!room.reserve(10), "there is room, but not before the first");
        assert_eq!(room.call(0), None);
        assert_eq!(room.someone_can_go(), None);
        room.release(60);
        assert_eq!(room.someone_can_go(), Some(0));
        assert_eq!(room.call(0), Some((key(1), 50)));
        assert!(room.reserve(10));
        assert!(!room.reserve(41));
        assert!(room.reserve(40));
    }

    #[test]
    fn those_who_wait_go_in_order_over_all_workers() {
        let room = Room::new(100);
        assert!(room.reserve(100));
        room.wait(1, key(7), 80);
        room.wait(0, key(7), 10);
        room.wait(0, key(8), 20);
        room.release(100);
        assert_eq!(room.call(0), None, "worker 1 has the first");
        assert_eq!(room.someone_can_go(), Some(1));
        assert_eq!(room.call(1), Some((key(7), 80)));
        assert_eq!(room.call(1), None);
        assert_eq!(room.someone_can_go(), Some(0));
        assert_eq!(room.call(0), Some((key(7), 10)));
        assert_eq!(room.call(0), None, "no room for the last yet");
        room.leave(0, key(8));
        assert!(room.reserve(10));
    }

    #[test]
    fn one_that_leaves_is_not_waited_for() {
        let room = Room::new(100);
        assert!(room.reserve(90));
        room.wait(0, key(1), 100);
        room.wait(1, key(1), 10);
        assert_eq!(room.someone_can_go(), None);
        room.leave(0, key(1));
        assert_eq!(room.someone_can_go(), Some(1));
        assert_eq!(room.call(1), Some((key(1), 10)));
    }

    #[test]
    fn what_is_held_already_counts_beyond_the_budget() {
        let room = Room::new(100);
        room.charge(150);
        assert!(!room.reserve(1));
        room.discharge(51);
        assert!(room.reserve(1));
        assert!(!room.reserve(1));
    }

    #[test]
    fn half_of_it_is_the_answers() {
        let room = Room::new(100);
        assert!(room.reserve(90));
        room.charge(30);
        assert!(!room.is_overdrawn_by(20));
        assert!(room.is_overdrawn_by(21));
        room.release(90);
        assert!(!room.is_overdrawn_by(70));
        assert!(room.is_overdrawn_by(71));
        room.discharge(30);
        assert!(room.reserve(100));
        assert!(!room.is_overdrawn_by(50));
    }
}
