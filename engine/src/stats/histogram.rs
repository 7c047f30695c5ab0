//! A histogram that one thread writes and any thread reads, without a lock.
//!
//! The buckets are those of an HdrHistogram with 64 steps per power of two, so a value is off by
//! at most 1/128. Reading yields a [`hdrhistogram::Histogram`].

use std::sync::atomic::{AtomicU64, Ordering};

use hdrhistogram::Histogram;

const STEPS_LOG2: u32 = 6;
const STEPS: usize = 1 << STEPS_LOG2;
/// The highest value kept apart, 68 s; what is above counts as this.
const VALUE_MAX: u64 = (1 << 36) - 1;
const BUCKETS: usize = (36 - STEPS_LOG2 as usize + 1) * STEPS;
/// Two significant digits, as much as the buckets hold.
const DIGITS: u8 = 2;

pub(crate) struct SharedHistogram {
    counts: Box<[AtomicU64]>,
    sum: AtomicU64,
}

fn bucket(value: u64) -> usize {
    let value = value.min(VALUE_MAX);
    if value < STEPS as u64 {
        return value as usize;
    }
    let shift = value.ilog2() - STEPS_LOG2;
    (shift as usize) * STEPS + (value >> shift) as usize
}

/// The middle of a bucket.
fn value(bucket: usize) -> u64 {
    if bucket < 2 * STEPS {
        return bucket as u64;
    }
    let shift = (bucket / STEPS - 1) as u32;
    let low = ((bucket % STEPS + STEPS) as u64) << shift;
    low + (1 << shift) / 2
}

/// Adds to a counter that only this thread writes: no locked instruction is needed.
pub(super) fn add_single_writer(counter: &AtomicU64, amount: u64) {
    // Relaxed: a statistic orders nothing else.
    counter.store(
        counter.load(Ordering::Relaxed).wrapping_add(amount),
        Ordering::Relaxed,
    );
}

impl SharedHistogram {
    pub(crate) fn new() -> SharedHistogram {
        SharedHistogram {
            counts: (0..BUCKETS).map(|_| AtomicU64::new(0)).collect(),
            sum: AtomicU64::new(0),
        }
    }

    /// Records `count` values of `nanos`. By the owning worker only.
    #[inline]
    pub(crate) fn record(&self, nanos: u64, count: u64) {
        add_single_writer(&self.counts[bucket(nanos)], count);
        add_single_writer(&self.sum, nanos.wrapping_mul(count));
    }

    /// Adds what was recorded to `total`, and returns the sum of all values.
    pub(crate) fn add_to(&self, total: &mut Histogram<u64>) -> u64 {
        for (index, count) in self.counts.iter().enumerate() {
            let count = count.load(Ordering::Relaxed);
            if count > 0 {
                total.saturating_record_n(value(index).max(1), count);
            }
        }
        self.sum.load(Ordering::Relaxed)
    }

    /// An empty histogram of the same range and precision.
    pub(crate) fn empty() -> Histogram<u64> {
        Histogram::new_with_bounds(1, VALUE_MAX, DIGITS).expect("constant bounds are valid")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_lands_within_its_precision() {
        let mut v = 1u64;
        while v < VALUE_MAX {
            for near in [v - 1, v, v + 1] {
                let back = value(bucket(near));
                let error = back.abs_diff(near) as f64 / near.max(1) as f64;
                assert!(error <= 1.0 / 128.0, "{near} came back as {back}");
            }
            v = v * 5 / 4 + 1;
        }
        assert!(bucket(u64::MAX) < BUCKETS);
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn buckets_are_in_the_order_of_values() {
        let mut last = 0;
        for v in 0..100_000u64 {
            let b = bucket(v);
            assert!(b == last || b == last + 1, "{v}");
            last = b;
        }
    }

    #[test]
    fn reading_merges() {
        let (a, b) = (SharedHistogram::new(), SharedHistogram::new());
        a.record(1_000, 99);
        b.record(1_000_000, 1);
        let mut total = SharedHistogram::empty();
        let sum = a.add_to(&mut total) + b.add_to(&mut total);
        assert_eq!(sum, 99 * 1_000 + 1_000_000);
        assert_eq!(total.len(), 100);
        assert!(total.value_at_quantile(0.5).abs_diff(1_000) < 16);
        assert!(total.max().abs_diff(1_000_000) < 16_000);
    }
}
