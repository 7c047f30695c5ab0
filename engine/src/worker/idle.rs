//! Whether a worker without work goes on spinning or sleeps.

use crate::config::IdleMode;

/// After work, spin for at least this long: a busy peer's next message comes within it.
const SPIN_NS_MIN: u64 = 20_000;
/// When arrivals are further apart than this on average, spinning costs more than it gains.
const GAP_NS_MAX: u64 = 125_000;
/// Spin for this many average gaps: of random arrivals, one in 3,000 takes longer.
const GAPS: u64 = 8;
/// A longer gap than this counts as this long: it is a pause, not a sample of the traffic.
const PAUSE_NS: u64 = 2_000_000;

/// Learns the average gap between arrivals.
pub(super) struct IdlePolicy {
    mode: IdleMode,
    last_work_ns: u64,
    /// Moving average of the gaps, weight 1/8.
    gap_ns: u64,
}

impl IdlePolicy {
    pub(super) fn new(mode: IdleMode, now_ns: u64) -> IdlePolicy {
        IdlePolicy {
            mode,
            last_work_ns: now_ns,
            gap_ns: PAUSE_NS,
        }
    }

    pub(super) fn mode(&self) -> IdleMode {
        self.mode
    }

    pub(super) fn set_mode(&mut self, mode: IdleMode) {
        self.mode = mode;
    }

    /// There was work.
    #[inline]
    pub(super) fn worked(&mut self, now_ns: u64) {
        let gap = now_ns.saturating_sub(self.last_work_ns).min(PAUSE_NS);
        self.gap_ns = self.gap_ns - self.gap_ns / 8 + gap / 8;
        self.last_work_ns = now_ns;
    }

    /// There is no work: whether to sleep now.
    #[inline]
    pub(super) fn should_sleep(&self, now_ns: u64) -> bool {
        match self.mode {
            IdleMode::Spin => false,
            IdleMode::Park => true,
            IdleMode::Adaptive => now_ns.saturating_sub(self.last_work_ns) >= self.spin_ns(),
        }
    }

    fn spin_ns(&self) -> u64 {
        if self.gap_ns > GAP_NS_MAX {
            SPIN_NS_MIN
        } else {
            (self.gap_ns * GAPS).max(SPIN_NS_MIN)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(gap_ns: u64, mode: IdleMode) -> (IdlePolicy, u64) {
        let mut policy = IdlePolicy::new(mode, 0);
        let mut now = 0;
        for _ in 0..200 {
            now += gap_ns;
            policy.worked(now);
        }
        (policy, now)
    }

    #[test]
    fn adaptive_spins_through_frequent_traffic_only() {
        // 20,000 a second: even a gap of seven times the average is spun through.
        let (policy, now) = after(50_000, IdleMode::Adaptive);
        assert!(!policy.should_sleep(now + 350_000));
        assert!(policy.should_sleep(now + 500_000));
        // 1,000 a second: not worth a core.
        let (policy, now) = after(1_000_000, IdleMode::Adaptive);
        assert!(!policy.should_sleep(now + SPIN_NS_MIN / 2));
        assert!(policy.should_sleep(now + SPIN_NS_MIN));
    }

    #[test]
    fn the_other_modes_do_not_learn() {
        let (policy, now) = after(50_000, IdleMode::Spin);
        assert!(!policy.should_sleep(now + 10_000_000_000));
        let (policy, now) = after(50_000, IdleMode::Park);
        assert!(policy.should_sleep(now));
    }

    #[test]
    fn a_pause_is_forgotten_quickly() {
        let (mut policy, mut now) = after(10_000, IdleMode::Adaptive);
        now += 10_000_000_000;
        for _ in 0..40 {
            policy.worked(now);
            now += 10_000;
        }
        assert!(!policy.should_sleep(now + 50_000));
    }
}
