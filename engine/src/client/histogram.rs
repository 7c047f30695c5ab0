//! Round trips as the client sees them.

use hdrhistogram::Histogram;

use crate::sys::clock;

/// The longest round trip told apart, 100 s, in nanoseconds.
const LONGEST_NS: u64 = 100_000_000_000;

pub(super) fn new() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST_NS, 2).expect("constant bounds are valid")
}

/// The time, if round trips are recorded; otherwise 0: nobody wants to know.
#[inline(always)]
pub(super) fn clock_ns(round_trips: &Option<Histogram<u64>>) -> u64 {
    match round_trips {
        Some(_) => clock::now_ns(),
        None => 0,
    }
}

/// Not in line: most clients have none, and what ends a request is.
#[inline(never)]
pub(super) fn record(round_trips: &mut Histogram<u64>, took_ns: u64) {
    round_trips.saturating_record(took_ns.max(1));
}
