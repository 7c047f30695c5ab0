//! How long a worker has not looked into its inbox, as those see it who wait for that: so that nobody waits for
//! ever for a worker whose handler waits for a lock that the waiting thread holds.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Between two looks of those who wait, at most this counts: if they were kept from running, so was the worker.
const COUNTED_NS_MAX: u64 = 50_000_000;
/// After this long without a look nobody has waited, and what was seen before says nothing of now.
const FORGOTTEN_NS: u64 = 1_000_000_000;

#[derive(Default)]
pub(super) struct Silence {
    /// How often the worker has looked into its inbox. Only it writes.
    looks: AtomicU64,
    /// Shared by all who wait, so that each of a thread's many answers need not wait anew.
    seen: Mutex<Seen>,
    /// As of which look the worker was given up.
    given_up: AtomicU64,
}

#[derive(Default)]
struct Seen {
    /// One more than there had been.
    looks: u64,
    at_ns: u64,
    lasted_ns: u64,
}

impl Silence {
    /// The worker has looked into its inbox.
    pub(super) fn end(&self) {
        // Relaxed, here and below: a count, which orders nothing else.
        let looks = self.looks.load(Ordering::Relaxed);
        self.looks.store(looks + 1, Ordering::Relaxed);
    }

    /// For those who wait, to be called again and again: how long it has lasted since one of them first called.
    pub(super) fn lasts_ns(&self, now_ns: u64) -> u64 {
        let looks = self.looks.load(Ordering::Relaxed) + 1;
        let mut seen = self.seen();
        let passed_ns = now_ns.saturating_sub(seen.at_ns);
        seen.lasted_ns = match seen.looks == looks && passed_ns < FORGOTTEN_NS {
            true => seen.lasted_ns + passed_ns.min(COUNTED_NS_MAX),
            false => 0,
        };
        (seen.looks, seen.at_ns) = (looks, now_ns);
        seen.lasted_ns
    }

    /// The worker is given up until it looks again, if it still has not for so long.
    pub(super) fn give_up(&self, lasted_ns_min: u64) {
        let seen = self.seen();
        if seen.lasted_ns >= lasted_ns_min {
            self.given_up.store(seen.looks, Ordering::Relaxed);
        }
    }

    pub(super) fn is_given_up(&self) -> bool {
        self.given_up.load(Ordering::Relaxed) == self.looks.load(Ordering::Relaxed) + 1
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_lasts_from_the_first_who_waits_to_the_workers_next_look() {
        const MS: u64 = 1_000_000;
        let silence = Silence::default();
        let lasts_ms = |now_ms: u64| silence.lasts_ns(now_ms * MS) / MS;
        assert_eq!(lasts_ms(5_000), 0);
        assert_eq!(lasts_ms(5_010), 10);
        assert_eq!(lasts_ms(5_030), 30);
        silence.end();
        assert_eq!(lasts_ms(5_040), 0);
        assert_eq!(lasts_ms(5_060), 20);
        // The process was stopped, or nobody waited any more.
        assert_eq!(lasts_ms(5_900), 70);
        assert_eq!(lasts_ms(7_000), 0);
        assert!(!silence.is_given_up());
        silence.give_up(1);
        assert!(!silence.is_given_up());
        silence.give_up(0);
        assert!(silence.is_given_up());
        silence.end();
        assert!(!silence.is_given_up());
    }
}
