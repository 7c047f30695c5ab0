//! The floor of every fixed rate: for how much of the time the CPUs are away, with the kernel's ticks, the hypervisor or
//! whatever else runs there. Both sides do nothing but read the clock, and the gaps between two readings are counted.

use std::io;
use std::sync::atomic::Ordering::Acquire;
use std::time::Duration;

use lapce_ai::ipc::monotonic_ns;

use crate::bare::until;
use crate::floors::Probe;

/// What the shares are told in between processes.
const PARTS: f64 = 1e6;

impl Probe {
    /// The share of requests that are later than `late_ns`, whatever answers them, if they are due at even intervals: those
    /// that are due more than `late_ns` before either CPU comes back.
    pub fn late_share(&mut self, duration: Duration, late_ns: u64) -> io::Result<f64> {
        let us = u32::try_from(duration.as_micros()).map_err(io::Error::other)?;
        self.begin(&format!("away-{late_ns}"), us)?;
        let own = late_share(duration, late_ns);
        let (_, other) = self.words();
        let mut told = 0;
        until(|| {
            told = other.load(Acquire); // pairs with the store in `floors::serve`
            told != 0
        });
        Ok((own + f64::from(told - 1) / PARTS).min(1.0))
    }
}

/// What the other side says of its CPU: never 0.
pub fn told_share(duration: Duration, late_ns: u64) -> u32 {
    1 + (late_share(duration, late_ns) * PARTS) as u32
}

/// The share of the time that lies more than `late_ns` before the end of a gap.
fn late_share(duration: Duration, late_ns: u64) -> f64 {
    let start = monotonic_ns();
    let (mut last, mut late) = (start, 0);
    // Ends with the duration: the clock moves on.
    while u128::from(last - start) < duration.as_nanos() {
        let now = monotonic_ns();
        late += (now - last).saturating_sub(late_ns);
        last = now;
    }
    late as f64 / (last - start) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_between_nothing_and_all() {
        let duration = Duration::from_millis(5);
        let every_gap = late_share(duration, 0);
        assert!((0.99..=1.0).contains(&every_gap), "{every_gap}");
        assert_eq!(late_share(duration, u64::MAX), 0.0);
        assert_eq!(told_share(duration, u64::MAX), 1);
    }
}
