//! In tests only: how often the workers of this process slept, for the soak test of wake-ups.

#[cfg(test)]
use std::sync::atomic::{AtomicU64, Ordering};

#[cfg(test)]
pub(crate) static SLEEPS: AtomicU64 = AtomicU64::new(0);
/// Sleeps that a timer ended although a client had rung.
#[cfg(test)]
pub(crate) static LATE: AtomicU64 = AtomicU64::new(0);

/// A sleep has ended. `late` finds out, in tests, whether a wake-up was lost: a client had rung, and a timer
/// ended the sleep.
#[inline(always)]
pub(super) fn slept(late: impl FnOnce() -> bool) {
    #[cfg(test)]
    {
        SLEEPS.fetch_add(1, Ordering::Relaxed);
        LATE.fetch_add(u64::from(late()), Ordering::Relaxed);
    }
    #[cfg(not(test))]
    let _ = late;
}
