//! The clock of a peer's closed loop.

use hdrhistogram::Histogram;

use crate::context::Failure;
use crate::row::latencies;

/// Times the round trips of a peer, after a number of them that do not count.
pub struct RoundTrips {
    histogram: Histogram<u64>,
    warm_up: u64,
    duration_ns: u64,
    taken: u64,
    begun_ns: u64,
}

impl RoundTrips {
    pub fn new(warm_up: u64, duration_ns: u64) -> RoundTrips {
        RoundTrips {
            histogram: latencies(),
            warm_up,
            duration_ns,
            taken: 0,
            begun_ns: 0,
        }
    }

    /// One took from `start_ns` to `end_ns`. True: the time is over.
    pub fn took(&mut self, start_ns: u64, end_ns: u64) -> Result<bool, Failure> {
        if self.taken == self.warm_up {
            self.begun_ns = end_ns;
        }
        let counts = self.taken >= self.warm_up;
        self.taken += 1;
        if counts {
            self.histogram.record(end_ns - start_ns)?;
        }
        Ok(counts && end_ns - self.begun_ns > self.duration_ns)
    }

    pub fn into_histogram(self) -> Histogram<u64> {
        self.histogram
    }
}

#[cfg(test)]
mod tests {
    use super::RoundTrips;

    #[test]
    fn what_comes_after_the_warm_up_counts_until_the_time_is_over() {
        let mut trips = RoundTrips::new(2, 100);
        let ends: Vec<bool> = [10, 1000, 2000, 2050, 2101]
            .into_iter()
            .map(|end_ns| trips.took(end_ns - 7, end_ns).unwrap())
            .collect();
        assert_eq!(ends, [false, false, false, false, true]);
        let histogram = trips.into_histogram();
        assert_eq!((histogram.len(), histogram.max()), (3, 7));
    }
}
