//! What is said once in a while, with how often it happened: it can happen many times a second.

use std::sync::atomic::{AtomicU64, Ordering};

/// Between two times that it is said.
const PAUSE_NS: u64 = 10_000_000_000;

pub(super) struct Rarely {
    /// Not before this it is said again.
    next_ns: AtomicU64,
    untold: AtomicU64,
}

impl Rarely {
    pub(super) const fn new() -> Rarely {
        Rarely {
            next_ns: AtomicU64::new(0),
            untold: AtomicU64::new(0),
        }
    }

    /// How many were not told, if it is to be said now.
    pub(super) fn due(&self, now_ns: u64) -> Option<u64> {
        // Relaxed, here and below: counts, by which nothing else is seen.
        let next_ns = self.next_ns.load(Ordering::Relaxed);
        let told = now_ns >= next_ns
            && self
                .next_ns
                .compare_exchange(
                    next_ns,
                    now_ns + PAUSE_NS,
                    Ordering::Relaxed,
                    Ordering::Relaxed,
                )
                .is_ok();
        match told {
            true => Some(self.untold.swap(0, Ordering::Relaxed)),
            false => {
                self.untold.fetch_add(1, Ordering::Relaxed);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_damages_one_connection_after_the_other_fills_no_log() {
        let damaged = Rarely::new();
        let start_ns = 1 << 40;
        assert_eq!(damaged.due(start_ns), Some(0));
        for moment in 0..1000 {
            assert_eq!(damaged.due(start_ns + moment), None);
        }
        assert_eq!(damaged.due(start_ns + PAUSE_NS), Some(1000));
        assert_eq!(damaged.due(start_ns + 2 * PAUSE_NS), Some(0));
    }
}
