//! The floor of every fixed rate: for how much of the time a CPU is away, with the kernel's ticks, the hypervisor or
//! whatever else runs there. Both sides do nothing but read the clock, and the gaps between two readings are counted.

use std::io;
use std::sync::atomic::Ordering::Acquire;
use std::time::Duration;

use lapce_ai::ipc::system_monotonic_us;

use crate::bare::until;
use crate::floors::Probe;
use crate::sys::Shared;

/// From when until when, in µs of the clock that all processes share.
type Span = [u64; 2];

/// What a side may tell: no more fits into the page of an answer.
const SPANS_MAX: usize = Shared::PAGE / size_of::<Span>();

impl Probe {
    /// The share of requests that are later than `late_us`, whatever answers them, if they are due at even intervals: those
    /// that are due more than `late_us` before either CPU comes back.
    pub fn late_share(&mut self, duration: Duration, late_us: u64) -> io::Result<f64> {
        let us = u32::try_from(duration.as_micros()).map_err(io::Error::other)?;
        self.begin(&format!("away-{late_us}"), us)?;
        let own = watch(us, late_us);
        let (_, other) = self.words();
        let mut told = 0;
        until(|| {
            told = other.load(Acquire); // pairs with the store in `floors::serve`
            told != 0
        });
        let mut bytes = vec![0; told as usize * size_of::<Span>()];
        self.read_answer(&mut bytes);
        let (words, _) = bytes.as_chunks::<8>();
        let times: Vec<u64> = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
        let (other, _) = times.as_chunks::<2>();
        Ok(late_share(&own, other))
    }
}

/// Watches one CPU for so many µs. Returns the time for which it was watched and, behind that, the times in it that lie
/// more than `late_us` before the end of a gap.
pub fn watch(us: u32, late_us: u64) -> Vec<Span> {
    let mut spans = Vec::with_capacity(SPANS_MAX);
    let start = system_monotonic_us();
    spans.push([start, start]);
    let mut last = start;
    // Ends with the duration: the clock moves on.
    while last - start < u64::from(us) && spans.len() < SPANS_MAX {
        let now = system_monotonic_us();
        if now - last > late_us {
            spans.push([last, now - late_us]);
        }
        last = now;
    }
    spans[0][1] = last;
    spans
}

/// What [`watch`] returned, as the other side reads it.
pub fn told(spans: &[Span]) -> Vec<u8> {
    let times = spans.as_flattened().iter();
    times.flat_map(|us| us.to_le_bytes()).collect()
}

/// The share of the time for which both CPUs were watched in which one of them is late, or both are: Linux has its ticks on
/// all CPUs at the same moments, and a hypervisor may stop a whole machine.
fn late_share(one: &[Span], other: &[Span]) -> f64 {
    let start = one[0][0].max(other[0][0]);
    let end = one[0][1].min(other[0][1]);
    let mut spans = [&one[1..], &other[1..]].concat();
    spans.sort_unstable();
    let (mut counted, mut late) = (start, 0);
    for [from, to] in spans {
        let to = to.min(end);
        late += to.saturating_sub(from.max(counted));
        counted = counted.max(to);
    }
    late as f64 / end.saturating_sub(start).max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_away_at_once_counts_once() {
        let one = [[100, 1100], [150, 250], [900, 1000]];
        assert_eq!(late_share(&one, &one), 0.2);
        assert_eq!(late_share(&one, &[[100, 1100]]), 0.2);
        let other = [[100, 1100], [200, 300], [400, 500]];
        assert_eq!(late_share(&one, &other), 0.35);
        assert_eq!(late_share(&other, &one), 0.35);
        // Only what both have watched.
        assert_eq!(late_share(&one, &[[200, 600], [100, 220]]), 0.125);
        assert_eq!(late_share(&one, &[[2000, 3000], [2000, 2500]]), 0.0);
    }

    #[test]
    fn what_is_told_fits() {
        let never = watch(5000, u64::MAX);
        assert_eq!(never.len(), 1);
        assert!(never[0][1] - never[0][0] >= 5000);
        assert_eq!(late_share(&never, &never), 0.0);
        // Every microsecond is a gap.
        let gaps = watch(u32::MAX, 0);
        assert_eq!((gaps.len(), told(&gaps).len()), (SPANS_MAX, Shared::PAGE));
        assert_eq!(late_share(&gaps, &gaps), 1.0);
    }
}
