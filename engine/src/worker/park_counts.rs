//! How often the workers of this process slept: for the soak of the wake-ups, in tests only.

#[cfg(test)]
use std::sync::atomic::{AtomicU64, Ordering};

#[cfg(test)]
pub(crate) static SLEEPS: AtomicU64 = AtomicU64::new(0);
/// Sleeps that a timer ended although a client had rung.
#[cfg(test)]
pub(crate) static LATE: AtomicU64 = AtomicU64::new(0);

/// A sleep has ended. `late` says whether no wake-up came for somebody who had rung; it may wait.
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
