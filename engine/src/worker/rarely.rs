//! A rate limit for log lines about things that can happen many times a second.

use std::sync::atomic::{AtomicU64, Ordering};

/// The least time between two log lines.
const PAUSE_NS: u64 = 10_000_000_000;

/// Lets one log line pass every ten seconds, and counts those that it does not.
pub(super) struct Rarely {
    /// When the next may pass.
    next_ns: AtomicU64,
    /// How many did not since the last one that did.
    untold: AtomicU64,
}

impl Rarely {
    pub(super) const fn new() -> Rarely {
        Rarely {
            next_ns: AtomicU64::new(0),
            untold: AtomicU64::new(0),
        }
    }

    /// Whether a line may be logged now: then how many were suppressed since the last one.
    pub(super) fn due(&self, now_ns: u64) -> Option<u64> {
        // Relaxed, here and below: counts, which order nothing else.
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
