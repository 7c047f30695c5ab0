//! Whether a worker without work goes on spinning or sleeps.

use std::time::Duration;

use crate::config::IdleMode;

/// After work, spin for at least this long: a busy peer's next message comes within it.
const SPIN_NS_MIN: u64 = 20_000;
/// When arrivals are further apart than this on average, spinning costs more than it gains.
const GAP_NS_MAX: u64 = 125_000;
/// Spin for this many average gaps: of random arrivals, one in 3,000 takes longer.
const GAPS: u64 = 8;
/// A longer gap than this counts as this long: it is a pause, not a sample of the traffic.
const PAUSE_NS: u64 = 2_000_000;

/// A spin that was too short for the gap becomes this many times as long as the gap.
const MISSED_GAPS: u64 = 2;

/// Learns the average gap between arrivals, and the gaps that are longer but would have been worth a spin.
///
/// Those are the gaps between long messages: the pieces of one come within microseconds of each other, which makes
/// the average short, and the next one when its client has looked at the answer. (Linux's halt polling learns in this
/// way for how long a virtual CPU polls.)
pub(super) struct IdlePolicy {
    mode: IdleMode,
    /// Since when there is no work. Not since the last was found: a handler may have taken longer than any gap.
    rests_since_ns: Option<u64>,
    /// Moving average of the gaps, weight 1/8.
    gap_ns: u64,
    /// Spin at least this long, because less was too short. Forgotten with each gap for which it is too short too.
    missed_ns: u64,
}

impl IdlePolicy {
    pub(super) fn new(mode: IdleMode) -> IdlePolicy {
        IdlePolicy {
            mode,
            rests_since_ns: None,
            gap_ns: PAUSE_NS,
            missed_ns: 0,
        }
    }

    pub(super) fn mode(&self) -> IdleMode {
        self.mode
    }

    pub(super) fn set_mode(&mut self, mode: IdleMode) {
        self.mode = mode;
    }

    /// There was work, which was found then.
    #[inline]
    pub(super) fn worked(&mut self, now_ns: u64) {
        // Work behind work came after no gap, however long that took.
        if let Some(since_ns) = self.rests_since_ns.take() {
            self.learn(now_ns.saturating_sub(since_ns).min(PAUSE_NS));
        }
    }

    fn learn(&mut self, gap: u64) {
        if gap > self.spin_ns() {
            self.missed_ns = match gap <= GAP_NS_MAX {
                true => gap * MISSED_GAPS,
                false => self.missed_ns / 2,
            };
        }
        self.gap_ns = self.gap_ns - self.gap_ns / 8 + gap / 8;
    }

    /// There is no work.
    #[inline]
    pub(super) fn rests(&mut self, now_ns: u64) {
        self.rests_since_ns.get_or_insert(now_ns);
    }

    /// For how long there has been no work.
    pub(super) fn rested(&self, now_ns: u64) -> Duration {
        let since_ns = self.rests_since_ns.unwrap_or(now_ns);
        Duration::from_nanos(now_ns.saturating_sub(since_ns))
    }

    /// There is no work: whether to sleep now.
    #[inline]
    pub(super) fn should_sleep(&self, now_ns: u64) -> bool {
        match self.mode {
            IdleMode::Spin => false,
            IdleMode::Park => true,
            IdleMode::Adaptive => self
                .rests_since_ns
                .is_some_and(|since_ns| now_ns.saturating_sub(since_ns) >= self.spin_ns()),
        }
    }

    fn spin_ns(&self) -> u64 {
        match self.gap_ns > GAP_NS_MAX {
            true => SPIN_NS_MIN,
            false => (self.gap_ns * GAPS).max(self.missed_ns).max(SPIN_NS_MIN),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(gap_ns: u64, mode: IdleMode) -> (IdlePolicy, u64) {
        let mut policy = IdlePolicy::new(mode);
        let mut now = 0;
        for _ in 0..200 {
            policy.rests(now);
            now += gap_ns;
            policy.worked(now);
        }
        policy.rests(now);
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
    fn gaps_between_long_messages_are_spun_through_and_pauses_are_not() {
        let (mut policy, mut now) = after(1_000, IdleMode::Adaptive);
        let mut message = |policy: &mut IdlePolicy, gap_ns| {
            policy.rests(now);
            now += gap_ns;
            let slept = policy.should_sleep(now);
            policy.worked(now);
            for _ in 0..100 {
                policy.rests(now);
                now += 1_000;
                policy.worked(now);
            }
            slept
        };
        assert!(message(&mut policy, 60_000), "not known yet");
        for _ in 0..100 {
            assert!(!message(&mut policy, 60_000));
        }
        // Long pauses: after a few the spin is as short as before.
        for _ in 0..8 {
            assert!(message(&mut policy, 5_000_000));
        }
        assert!(message(&mut policy, SPIN_NS_MIN));
    }

    #[test]
    fn how_long_handlers_take_is_no_gap() {
        let mut policy = IdlePolicy::new(IdleMode::Adaptive);
        let mut now = 0;
        for count in 0..200 {
            // Of several requests that come at once, or while one is handled.
            for _ in 0..3 {
                policy.worked(now);
                now += 1_000_000;
            }
            policy.rests(now);
            now += 50_000;
            policy.rests(now);
            assert!(count < 100 || !policy.should_sleep(now), "{count}");
        }
        assert!(policy.should_sleep(now + 400_000));
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
            policy.rests(now);
            now += 10_000;
        }
        assert!(!policy.should_sleep(now + 50_000));
    }
}
