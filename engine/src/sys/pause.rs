//! How long to wait between two looks at cache lines that another core is about to write.
//!
//! Each look takes a line away from whoever is writing to it. A small record lies in two lines, and with Intel's
//! processors a consumer that looks every 10 ns takes the first one away before the second has come, so that its
//! producer has to fetch it again: many round trips took 100 ns longer, some 300. At one look in 30 ns hardly any do
//! (Granite Rapids, 64 bytes: p50 0.82, p99 0.8 times), and from 80 ns on looking late costs more than that saves. On
//! AMD's there is nothing to mend: p99 is near p50 with a look every PAUSE.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use crate::processor::is_intel;

/// Between two looks on processors for which it matters.
const GAP: Duration = Duration::from_nanos(30);
/// PAUSE takes 10 ns on some of them and 50 on others.
const PAUSES_MAX: u32 = 8;
/// PAUSEs timed at once, and how often: the fastest time counts, in case that something came in between.
const TIMED: u32 = 64;
const TIMES: u32 = 5;

/// How many times to execute PAUSE between two looks at lines that come together. Found out once.
pub(crate) fn between_looks() -> u32 {
    static PAUSES: LazyLock<u32> = LazyLock::new(|| match is_intel() {
        true => pauses_in(GAP, fastest()),
        false => 1,
    });
    *PAUSES
}

/// Executes PAUSE so many times.
#[inline(always)]
pub(crate) fn pause(times: u32) {
    for _ in 0..times {
        std::hint::spin_loop();
    }
}

/// How many PAUSEs come nearest to `gap`, if [`TIMED`] of them take `timed`.
fn pauses_in(gap: Duration, timed: Duration) -> u32 {
    let pauses = gap.as_nanos() * u128::from(TIMED) / timed.as_nanos().max(1);
    pauses.clamp(1, u128::from(PAUSES_MAX)) as u32
}

fn fastest() -> Duration {
    let times = (0..TIMES).map(|_| {
        let start = Instant::now();
        for _ in 0..TIMED {
            std::hint::spin_loop();
        }
        start.elapsed()
    });
    times.min().unwrap_or(GAP * TIMED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gap_is_filled_and_at_least_one_pause_remains() {
        let timed = |ns: u64| Duration::from_nanos(ns) * TIMED;
        assert_eq!(pauses_in(GAP, timed(10)), 3);
        assert_eq!(pauses_in(GAP, timed(45)), 1);
        assert_eq!(pauses_in(GAP, timed(200)), 1);
        assert_eq!(pauses_in(GAP, timed(1)), PAUSES_MAX);
        assert_eq!(pauses_in(GAP, Duration::ZERO), PAUSES_MAX);
        assert!((1..=PAUSES_MAX).contains(&between_looks()));
    }
}
