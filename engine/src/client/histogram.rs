//! Round trips as the client sees them.

use hdrhistogram::Histogram;

/// The longest round trip told apart, 100 s, in nanoseconds.
const LONGEST_NS: u64 = 100_000_000_000;

pub(super) fn new() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST_NS, 2).expect("constant bounds are valid")
}
