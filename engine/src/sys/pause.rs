//! How long to wait between two looks at cache lines that another core is about to write.
//!
//! Each look takes a line away from whoever is writing to it. A small record lies in two lines, and with Intel's
//! processors a consumer that looks every 10 ns takes the first one away before the second has come, so that its
//! producer has to fetch it again: many round trips took 100 ns longer, some 300. At one look in 30 ns hardly any do
//! (Granite Rapids, 64 bytes: p50 0.82, p99 0.8 times), and from 80 ns on looking late costs more than that saves. On
//! AMD's there is nothing to mend: p99 is near p50 with a look every PAUSE.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use super::found;
use crate::processor::is_intel;

/// Between two looks on processors for which it matters.
const GAP: Duration = Duration::from_nanos(30);
/// PAUSE takes 10 ns on some of them and 50 on others.
const PAUSES_MAX: u32 = 8;
/// PAUSEs timed at once, and how often: the fastest time counts, in case that something came in between, but not one of
/// zero, which says that the clock is too coarse or went back.
const TIMED: u32 = 64;
const TIMES: u32 = 5;

/// How many times to execute PAUSE between two looks at lines that come together. Found out once.
pub(crate) fn between_looks() -> u32 {
    static PAUSES: OnceLock<u32> = OnceLock::new();
    *found::once(&PAUSES, || match is_intel() {
        true => pauses_in(GAP, fastest((0..TIMES).map(|_| time()))),
        false => 1,
    })
}

/// Executes PAUSE so many times.
#[inline(always)]
pub(crate) fn pause(times: u32) {
    for _ in 0..times {
        std::hint::spin_loop();
    }
}

/// How many PAUSEs fit into `gap`, at least one, if [`TIMED`] of them take `timed`.
fn pauses_in(gap: Duration, timed: Duration) -> u32 {
    let pauses = gap.as_nanos() * u128::from(TIMED) / timed.as_nanos().max(1);
    pauses.clamp(1, u128::from(PAUSES_MAX)) as u32
}

/// How long [`TIMED`] PAUSEs take; if that cannot be told, as long as makes it one between two looks.
fn fastest(times: impl Iterator<Item = Duration>) -> Duration {
    let told = times.filter(|time| !time.is_zero());
    told.min().unwrap_or(GAP * TIMED)
}

fn time() -> Duration {
    let start = Instant::now();
    pause(TIMED);
    start.elapsed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gap_is_filled_and_at_least_one_pause_remains() {
        let timed = |ns: u64| Duration::from_nanos(ns) * TIMED;
        assert_eq!(pauses_in(GAP, timed(10)), 3);
        assert_eq!(pauses_in(GAP, timed(11)), 2);
        assert_eq!(pauses_in(GAP, timed(45)), 1);
        assert_eq!(pauses_in(GAP, timed(200)), 1);
        assert_eq!(pauses_in(GAP, timed(1)), PAUSES_MAX);
        assert_eq!(pauses_in(GAP, Duration::ZERO), PAUSES_MAX);
        assert!((1..=PAUSES_MAX).contains(&between_looks()));
    }

    #[test]
    fn a_clock_that_stands_still_or_goes_back_does_not_count() {
        let (still, slow) = (Duration::ZERO, Duration::from_nanos(50) * TIMED);
        assert_eq!(pauses_in(GAP, fastest([slow, still].into_iter())), 1);
        assert_eq!(pauses_in(GAP, fastest([still; 5].into_iter())), 1);
    }
}
