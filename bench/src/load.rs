//! The client loops over the engine: closed, windowed, and at a fixed rate.

use std::collections::VecDeque;
use std::time::Duration;

use hdrhistogram::Histogram;
use lapce_ai::ipc::{AnswerRef, Client, monotonic_ns, msg_type};

use crate::context::{Failure, wrong_answer};
use crate::payloads::{Payloads, payload, stamp};
use crate::row::latencies;
use crate::tally::Tally;

/// Calls before the clock starts.
const WARM_UP: u64 = 500;
/// Comparing a message longer than this takes as long as carrying it, or longer.
const LARGE: usize = 65_536;
const WARM_UP_LARGE: u64 = 10;
/// How much of a large message is compared while the clock runs, and in which steps.
const SAMPLE: usize = 64;
const SAMPLE_STEP: usize = 32_768;

fn warm_up(bytes: usize) -> u64 {
    if bytes > LARGE {
        WARM_UP_LARGE
    } else {
        WARM_UP
    }
}

/// Whether samples of a large message are as expected: its ends, and what lies between in steps.
pub fn samples_match(got: &[u8], expected: &[u8]) -> bool {
    let tail = got.len().saturating_sub(SAMPLE);
    got.len() == expected.len()
        && got[tail..] == expected[tail..]
        && got
            .chunks(SAMPLE_STEP)
            .zip(expected.chunks(SAMPLE_STEP))
            .all(|(got, expected)| {
                let count = got.len().min(SAMPLE);
                got[..count] == expected[..count]
            })
}

/// One request in flight: the latency of each call.
pub fn closed(
    client: &Client,
    bytes: usize,
    duration: Duration,
) -> Result<Histogram<u64>, Failure> {
    let mut sent = payload(bytes);
    let mut answer = Vec::with_capacity(bytes);
    let mut histogram = latencies();
    let warm_up = warm_up(bytes);
    let mut end = u64::MAX;
    let mut tally = Tally::default();
    // Ends when the time is over; each call has the client's timeout.
    for number in 0.. {
        stamp(&mut sent, number);
        tally.sent += 1;
        let start = monotonic_ns();
        client.call_into(msg_type::ECHO, &sent, &mut answer)?;
        let now = monotonic_ns();
        if answer != sent {
            return Err(wrong_answer().into());
        }
        tally.right += 1;
        if number >= warm_up {
            histogram.record(now - start)?;
        } else if number + 1 == warm_up {
            end = now + duration.as_nanos() as u64;
        }
        if now >= end {
            break;
        }
    }
    Ok(histogram)
}

/// Checks the answers of one connection, which come in the order of the requests.
///
/// Whether messages are large is known to the compiler: with many small ones in flight, what this does for
/// each is a part of what is measured.
struct InOrder<const LARGE_ONES: bool> {
    expected: Payloads,
    next: u64,
    wrong: u64,
    tally: Tally,
    /// Of large messages only samples are compared now.
    samples: bool,
}

impl<const LARGE_ONES: bool> InOrder<LARGE_ONES> {
    fn new(bytes: usize) -> InOrder<LARGE_ONES> {
        assert_eq!(bytes > LARGE, LARGE_ONES);
        InOrder {
            expected: Payloads::new(bytes),
            next: 0,
            wrong: 0,
            tally: Tally::default(),
            samples: false,
        }
    }

    fn check(&self) -> Result<(), Failure> {
        match self.wrong {
            0 => Ok(()),
            _ => Err(wrong_answer().into()),
        }
    }

    #[inline(always)]
    fn take(&mut self, answer: &AnswerRef<'_>) {
        let expected = self.expected.of(self.next);
        self.next += 1;
        let right = answer
            .result
            .as_ref()
            .is_ok_and(|got| match LARGE_ONES && self.samples {
                true => samples_match(got, expected),
                false => *got == expected,
            });
        self.wrong += u64::from(!right);
    }

    /// Waits for answers. Called from several places, lest the client's code is there for each of them.
    #[inline(never)]
    fn wait(&mut self, client: &Client) -> Result<(), Failure> {
        client.wait_with(|answer| self.take(&answer))?;
        self.check()
    }
}

impl<const LARGE_ONES: bool> Drop for InOrder<LARGE_ONES> {
    fn drop(&mut self) {
        self.tally.right = self.next - self.wrong;
    }
}

/// A window of requests in flight: requests a second. Large messages are compared whole before and
/// after the timed part, and by samples within it.
pub fn windowed(
    client: &Client,
    bytes: usize,
    window: u64,
    duration: Duration,
) -> Result<f64, Failure> {
    match bytes > LARGE {
        true => windowed_of::<true>(client, bytes, window, duration),
        false => windowed_of::<false>(client, bytes, window, duration),
    }
}

fn windowed_of<const LARGE_ONES: bool>(
    client: &Client,
    bytes: usize,
    window: u64,
    duration: Duration,
) -> Result<f64, Failure> {
    let mut sent = Payloads::new(bytes);
    let mut check = InOrder::<LARGE_ONES>::new(bytes);
    let warm_up = warm_up(bytes).max(2 * window);
    let mut begun: Option<(u64, u64)> = None;
    loop {
        while check.tally.sent < check.next + window {
            client.submit(msg_type::ECHO, sent.of(check.tally.sent))?;
            check.tally.sent += 1;
        }
        check.wait(client)?;
        let now = monotonic_ns();
        match begun {
            None if check.next >= warm_up => {
                begun = Some((now, check.next));
                check.samples = true;
            }
            Some((start, first)) if now - start >= duration.as_nanos() as u64 => {
                while check.next < check.tally.sent {
                    check.wait(client)?;
                }
                let answers = (check.next - first) as f64;
                let end = monotonic_ns();
                check.samples = false;
                client.submit(msg_type::ECHO, sent.of(check.tally.sent))?;
                check.tally.sent += 1;
                check.wait(client)?;
                return Ok(answers / ((end - start) as f64 / 1e9));
            }
            _ => {}
        }
    }
}

/// How much slower than asked for a fixed rate is. A period that divides the kernel's tick (4 ms,
/// say) would meet each tick at the same place, in one run all of them and in the next none; so it
/// drifts through all of them.
const DRIFT: f64 = 1.004;

/// When a request is due, in ns from the start.
pub fn due_ns(number: u64, rate: f64) -> u64 {
    (number as f64 * DRIFT * 1e9 / rate) as u64
}

/// Requests at a fixed rate: latency from when each was due, so that a stall counts for all whom
/// it delays. The client polls without sleeping, and at most `inflight_max` are on their way.
pub fn at_rate(
    client: &Client,
    bytes: usize,
    rate: f64,
    inflight_max: usize,
    duration: Duration,
) -> Result<Histogram<u64>, Failure> {
    closed(client, bytes, Duration::from_millis(1))?;
    let mut sent = Payloads::new(bytes);
    let mut check = InOrder::<false>::new(bytes);
    let total = (rate * duration.as_secs_f64()).ceil().max(1.0) as u64;
    let mut due = VecDeque::with_capacity(inflight_max);
    let mut histogram = latencies();
    let start = monotonic_ns();
    let give_up = start + duration.as_nanos() as u64 + 20_000_000_000;
    while check.next < total {
        let now = monotonic_ns();
        if now > give_up {
            return Err("the rate was not reached by far".into());
        }
        while check.tally.sent < total && due.len() < inflight_max {
            let at = start + due_ns(check.tally.sent, rate);
            if at > now {
                break;
            }
            client.submit(msg_type::ECHO, sent.of(check.tally.sent))?;
            check.tally.sent += 1;
            due.push_back(at);
        }
        client.poll_with(|answer| {
            check.take(&answer);
            let at = due.pop_front().unwrap_or(start);
            histogram.saturating_record(monotonic_ns() - at);
        })?;
    }
    check.check()?;
    Ok(histogram)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_see_both_ends_and_each_step() {
        let expected = payload(1 << 20);
        assert!(samples_match(&expected, &expected));
        for at in [0, SAMPLE_STEP, 5 * SAMPLE_STEP + SAMPLE - 1, (1 << 20) - 1] {
            let mut got = expected.clone();
            got[at] ^= 1;
            assert!(!samples_match(&got, &expected), "{at}");
        }
        assert!(!samples_match(&expected[1..], &expected));
        assert!(!samples_match(&[], &expected));
    }
}
