//! A bounded queue from many threads to one, in which nobody waits for a thread that is kept from running.
//!
//! Of a queue with places in a circle (crossbeam's `ArrayQueue`) a push first claims a place, then writes there. While
//! it is between the two, whoever takes spins at that place, and so does a push once the queue is full, until the
//! system lets the first thread run again: with more busy threads than CPUs that takes hundreds of milliseconds, the
//! more since those that spin use up the CPU time. Here what is behind such a place is taken meanwhile. What one thread
//! pushes stays in order, also if another thread goes on after it.

use super::queue_sync::{Atomic, Mutex, MutexGuard, Ordering, Place, PoisonError};

/// A place in the circle. Position p is at place p modulo their number.
struct Slot<T> {
    /// p: the place is free for position p, or claimed for it and not written. p + 1: position p is written. It is free
    /// for p + n, of n places, when that was taken.
    stamp: Atomic,
    value: Place<T>,
}

/// On cache lines of its own: all who push write it.
#[repr(align(128))]
struct Tail(Atomic);

pub(crate) struct Queue<T> {
    slots: Box<[Slot<T>]>,
    /// The next position to be claimed.
    tail: Tail,
    /// How many positions were looked at by whoever takes, less those that had to be left out: for a guess, from other
    /// threads, at how much there is.
    taken: Atomic,
    /// Of whoever takes: so no thread that pushes waits for it.
    taking: Mutex<Taking>,
}

/// How far it was taken.
struct Taking {
    /// The first position that was not looked at.
    next: u64,
    /// Those before it that were claimed and not written, in order. No more than there are places.
    left_out: Vec<u64>,
}

/// What is to be taken next.
enum Found {
    Next,
    /// By the index in [`Taking::left_out`].
    LeftOut(usize),
}

impl<T> Queue<T> {
    /// # Panics
    /// If the number of places is no power of two, or 1, with which a stamp would have two meanings.
    pub(crate) fn new(places: usize) -> Queue<T> {
        assert!(places.is_power_of_two() && places > 1);
        let slot = |position| Slot {
            stamp: Atomic::new(position),
            value: Place::new(),
        };
        Queue {
            slots: (0..places as u64).map(slot).collect(),
            tail: Tail(Atomic::new(0)),
            taken: Atomic::new(0),
            taking: Mutex::new(Taking {
                next: 0,
                left_out: Vec::with_capacity(places),
            }),
        }
    }

    fn slot(&self, position: u64) -> &Slot<T> {
        &self.slots[position as usize & (self.slots.len() - 1)]
    }

    /// Whether a position is written, and not taken.
    fn is_written(&self, position: u64) -> bool {
        // Acquire: pairs with the release in `push`.
        self.slot(position).stamp.load(Ordering::Acquire) == position + 1
    }

    /// Adds a value, or returns it if there is no place.
    pub(crate) fn push(&self, value: T) -> Result<(), T> {
        let mut tail = self.tail.0.load(Ordering::Relaxed);
        // Each pass claims a place or finds that another thread has claimed one, or that there is none.
        loop {
            let slot = self.slot(tail);
            // Acquire: pairs with the release in `pop`.
            if slot.stamp.load(Ordering::Acquire) != tail {
                let now = self.tail.0.load(Ordering::Relaxed);
                if now == tail {
                    return Err(value);
                }
                tail = now;
                continue;
            }
            // Relaxed: what it claims is handed over by the stamp.
            let claimed = self.tail.0.compare_exchange_weak(
                tail,
                tail + 1,
                Ordering::Relaxed,
                Ordering::Relaxed,
            );
            match claimed {
                Ok(_) => {
                    // SAFETY: the place was free for this position, and only this thread has claimed it; nobody else
                    // touches it before the stamp says that it is written.
                    unsafe { slot.value.put(value) };
                    // Release: pairs with the acquire in `is_written`.
                    slot.stamp.store(tail + 1, Ordering::Release);
                    return Ok(());
                }
                Err(now) => tail = now,
            }
        }
    }

    /// Takes a value, if one is written.
    pub(crate) fn pop(&self) -> Option<T> {
        let mut taking = self.taking();
        let position = match self.find(&mut taking)? {
            Found::Next => {
                taking.next += 1;
                taking.next - 1
            }
            Found::LeftOut(index) => taking.left_out.remove(index),
        };
        let slot = self.slot(position);
        // SAFETY: it is written, and only who has the lock takes it.
        let value = unsafe { slot.value.take() };
        // Release: pairs with the acquire in `push`.
        slot.stamp
            .store(position + self.slots.len() as u64, Ordering::Release);
        let taken = taking.next - taking.left_out.len() as u64;
        self.taken.store(taken, Ordering::Relaxed);
        value
    }

    fn find(&self, taking: &mut Taking) -> Option<Found> {
        let mut next = self.is_written(taking.next);
        if next && taking.left_out.is_empty() {
            return Some(Found::Next);
        }
        // Relaxed: what was claimed later is for the next time.
        let tail = self.tail.0.load(Ordering::Relaxed);
        // Each pass leaves one out.
        while !next && taking.next < tail {
            taking.left_out.push(taking.next);
            taking.next += 1;
            next = self.is_written(taking.next);
        }
        let mut found = next.then_some(Found::Next);
        // From the last to the first: who had written at a place had written before what it pushed earlier, which is
        // seen now. So before what is found there is nothing of the same thread.
        for (index, &position) in taking.left_out.iter().enumerate().rev() {
            if self.is_written(position) {
                found = Some(Found::LeftOut(index));
            }
        }
        found
    }

    /// Whether there is nothing to be taken, for whoever takes. (It may be that somebody is about to have written
    /// something.)
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.count() == 0 || self.find(&mut self.taking()).is_none()
    }

    /// About how much there is, with what is not written yet.
    #[inline]
    pub(crate) fn count(&self) -> usize {
        // Relaxed: a guess, or what is ordered by a fence of the caller's.
        let tail = self.tail.0.load(Ordering::Relaxed);
        tail.saturating_sub(self.taken.load(Ordering::Relaxed)) as usize
    }

    /// Leaves what a thread that is kept from running in the middle of a push would leave.
    #[cfg(test)]
    pub(crate) fn claim(&self) -> u64 {
        self.tail.0.fetch_add(1, Ordering::Relaxed)
    }

    fn taking(&self) -> MutexGuard<'_, Taking> {
        self.taking.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn so_many_places_and_no_more() {
        let queue = Queue::new(4);
        // Several times round.
        for round in 0..10 {
            for number in 0..4 {
                queue.push((round, number)).unwrap();
            }
            assert_eq!(queue.push((round, 4)), Err((round, 4)));
            assert_eq!(queue.count(), 4);
            for number in 0..4 {
                assert!(!queue.is_empty());
                assert_eq!(queue.pop(), Some((round, number)));
            }
            assert_eq!(queue.pop(), None);
            assert!(queue.is_empty());
        }
    }

    #[test]
    fn what_is_not_written_yet_is_left_out_and_taken_first_once_it_is() {
        let queue = Queue::new(4);
        let write = |position, value| {
            // SAFETY: claimed, and this is the only thread.
            unsafe { queue.slot(position).value.put(value) };
            let stamp = &queue.slot(position).stamp;
            stamp.store(position + 1, Ordering::Release);
        };
        let first = queue.claim();
        queue.push(1).unwrap();
        let third = queue.claim();
        queue.push(3).unwrap();
        assert!(!queue.is_empty());
        assert_eq!([(); 3].map(|()| queue.pop()), [Some(1), Some(3), None]);
        assert!(queue.is_empty());
        assert_eq!(queue.push(4), Err(4), "the first place is not free");
        write(third, 2);
        assert!(!queue.is_empty());
        write(first, 0);
        assert_eq!(queue.pop(), Some(0));
        queue.push(4).unwrap();
        assert_eq!([(); 3].map(|()| queue.pop()), [Some(2), Some(4), None]);
        assert_eq!(queue.count(), 0);
    }

    /// More threads than CPUs, of which some are stopped between claiming a place and writing there.
    #[test]
    fn what_each_thread_pushes_is_taken_once_and_in_order() {
        const THREADS: usize = 8;
        const EACH: usize = 20_000;
        let queue = Queue::new(64);
        let mut next = [0; THREADS];
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let queue = &queue;
                scope.spawn(move || {
                    for number in 0..EACH {
                        while queue.push((thread, number)).is_err() {
                            std::thread::yield_now();
                        }
                    }
                });
            }
            while next != [EACH; THREADS] {
                match queue.pop() {
                    Some((thread, number)) => {
                        assert_eq!(number, next[thread]);
                        next[thread] += 1;
                    }
                    None => std::thread::yield_now(),
                }
            }
        });
        assert!(queue.is_empty());
    }
}
