//! The floors at a fixed rate: what latency from when a request was due is on this machine, with
//! nothing of the engine in between. One request at a time: one that is due while another is on its
//! way waits for it, and its latency counts from when it was due.

use std::io;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::time::Duration;

use hdrhistogram::Histogram;
use lapce_ai::bench_internals::futex;
use lapce_ai::ipc::monotonic_ns;

use crate::bare::until;
use crate::context::{Failure, wrong_answer};
use crate::floors::{ECHO_BYTES, Probe, WAIT_MAX};
use crate::load::due_ns;
use crate::row::latencies;

/// Round trips before the clock starts.
const WARM_UP: u32 = 1000;

impl Probe {
    /// The bare echo through shared memory, both sides spinning.
    pub fn echo_at_rate(
        &mut self,
        rate: f64,
        duration: Duration,
    ) -> Result<Histogram<u64>, Failure> {
        self.at_rate("shm", WARM_UP, rate, duration, |probe, round| {
            let (mine, other) = probe.words();
            let mut sent = [7; ECHO_BYTES];
            let mut got = [0; ECHO_BYTES];
            sent[..4].copy_from_slice(&round.to_le_bytes());
            probe.write_request(&sent);
            mine.store(round, Release); // pairs with the load in `floors::serve`
            until(|| other.load(Acquire) == round);
            probe.read_answer(&mut got);
            let now = monotonic_ns();
            (got == sent).then_some(now).ok_or_else(wrong_answer)
        })
    }

    /// A futex wake there and back; the other side sleeps between requests, and so does this one
    /// while it waits for the answer.
    pub fn futex_at_rate(
        &mut self,
        rate: f64,
        duration: Duration,
    ) -> Result<Histogram<u64>, Failure> {
        self.at_rate("futex", 10, rate, duration, |probe, round| {
            let (mine, other) = probe.words();
            mine.store(round, Release); // pairs with the load in `floors::serve`
            futex::wake(mine, 1);
            // Ends when the other side answers; each wait lasts at most a second.
            while other.load(Acquire) != round {
                futex::wait(other, round - 1, WAIT_MAX);
            }
            Ok(monotonic_ns())
        })
    }

    /// `round_trip` says when its answer was there.
    fn at_rate(
        &mut self,
        what: &str,
        warm_up: u32,
        rate: f64,
        duration: Duration,
        mut round_trip: impl FnMut(&mut Probe, u32) -> io::Result<u64>,
    ) -> Result<Histogram<u64>, Failure> {
        let total = (rate * duration.as_secs_f64()).ceil().max(1.0) as u32;
        self.begin(what, warm_up + total)?;
        for round in 1..=warm_up {
            round_trip(self, round)?;
        }
        let mut histogram = latencies();
        let start = monotonic_ns();
        for number in 0..total {
            let due = start + due_ns(u64::from(number), rate);
            until(|| monotonic_ns() >= due);
            let answered = round_trip(self, warm_up + 1 + number)?;
            histogram.saturating_record(answered - due);
        }
        Ok(histogram)
    }
}
