//! How long a client spins for an answer before it sleeps.

use crate::config::IdleMode;

/// In adaptive mode, spin at least this long before sleeping.
const SPIN_NS_MIN: u64 = 20_000;
/// When waits are longer than this on average, spinning is not worth its CPU time.
const WAIT_NS_MAX: u64 = 125_000;
/// Spin for this many average waits.
const WAITS: u64 = 4;
/// A longer wait counts as this long: it says nothing about the next.
const PAUSE_NS: u64 = 2_000_000;

/// Learns how long answers take on average.
#[derive(Debug)]
pub(super) struct WaitPolicy {
    mode: IdleMode,
    /// Moving average of the waits, weight 1/8.
    wait_ns: u64,
    /// The last wait could not be spun through: this thread was on the CPU that the server's worker needs.
    in_the_way: bool,
}

impl WaitPolicy {
    pub(super) fn new(mode: IdleMode) -> WaitPolicy {
        WaitPolicy {
            mode,
            wait_ns: SPIN_NS_MIN,
            in_the_way: false,
        }
    }

    /// Something came after this long.
    #[inline]
    pub(super) fn waited(&mut self, nanos: u64) {
        self.wait_ns = self.wait_ns - self.wait_ns / 8 + nanos.min(PAUSE_NS) / 8;
    }

    /// Whether the wait that ended had to make way for the server's worker. If so, the next begins with that.
    #[inline]
    pub(super) fn was_in_the_way(&mut self, in_the_way: bool) {
        self.in_the_way = in_the_way;
    }

    /// Whether waiting begins with spinning.
    #[inline]
    pub(super) fn spins(&self) -> bool {
        self.mode != IdleMode::Park && !self.in_the_way
    }

    /// How long to spin before sleeping.
    #[inline]
    pub(super) fn spin_ns(&self) -> u64 {
        match self.mode {
            IdleMode::Spin => u64::MAX,
            IdleMode::Park => 0,
            IdleMode::Adaptive if self.wait_ns > WAIT_NS_MAX => SPIN_NS_MIN,
            IdleMode::Adaptive => (self.wait_ns * WAITS).max(SPIN_NS_MIN),
        }
    }
}
