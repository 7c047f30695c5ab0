//! Calls of a C program through the C library, beside those of a Rust program: both against one
//! server, in turn, with the same clock.

use std::time::Duration;

use hdrhistogram::Histogram;
use lapce_ai::ipc::{IdleMode, Transport, monotonic_ns, msg_type};

use crate::context::{Context, Failure, wrong_answer};
use crate::payloads;
use crate::row::{Row, latencies};
use crate::{c_loop, engine};

const BYTES: usize = 64;
const WARM_UP: usize = 500;
/// Many short runs: a stall of the machine spoils less of them.
const RUNS: usize = 9;
/// Turns of each of the two clients in a run.
const TURNS: u32 = 4;
/// The most calls of a turn; more than a core does in the time.
const CALLS_MAX: usize = 1 << 21;
const RATIO: &str = "C to Rust";
/// What the C library may cost, by the middle of the times.
const RATIO_MAX: f64 = 1.05;

pub fn run(context: &mut Context) -> Result<(), Failure> {
    let cpu = context.host.server_cpu;
    let turn = context.duration / (2 * TURNS);
    let promise =
        "the median of a C program's calls over shm is at most 1.05 times a Rust program's";
    for transport in engine::TRANSPORTS {
        let mut has_c = true;
        let mut ns = vec![0; CALLS_MAX];
        let subject = format!("{transport} spin");
        let row = Row::new("c-client", subject, "64 B", BYTES as f64);
        let doubtful = |rows: &[Row]| match rows[0].judged(RATIO) {
            Some(ratio) if transport == Transport::Shm && ratio.value > RATIO_MAX => vec![0],
            _ => Vec::new(),
        };
        context.measure_until(vec![row], RUNS, doubtful, |_, _, row| {
            let served = engine::start(cpu, IdleMode::Spin)?;
            let address = engine::address(&served, transport);
            let (mut rust, mut c) = (latencies(), latencies());
            let (mut rust_ns, mut c_ns) = (Vec::new(), Vec::new());
            for _ in 0..TURNS {
                let count = rust_loop(&served, transport, turn, &mut ns)?;
                take(&ns[..count], &mut rust, &mut rust_ns)?;
                let Some(count) = c_loop::run(&address, IdleMode::Spin, WARM_UP, turn, &mut ns)?
                else {
                    has_c = false;
                    return Ok(());
                };
                take(&ns[..count], &mut c, &mut c_ns)?;
            }
            let quantile = |all: &Histogram<u64>, part| all.value_at_quantile(part) as f64;
            row.push("Rust p50", "ns", quantile(&rust, 0.5));
            row.push("C p50", "ns", quantile(&c, 0.5));
            row.push("Rust p99", "ns", quantile(&rust, 0.99));
            row.push("C p99", "ns", quantile(&c, 0.99));
            row.push(RATIO, "", middle(&mut c_ns) / middle(&mut rust_ns));
            Ok(())
        })?;
        if !has_c {
            context.rows.pop();
            context.note("c-client skipped: no C compiler when the bench was built");
            context.not_measured(promise, "needs a C compiler when the bench is built");
            return Ok(());
        }
    }
    let row = context.find("c-client", "shm spin", "64 B");
    if let Some(ratio) = row.and_then(|row| row.judged(RATIO)) {
        let measured = format!("{:.3} times", ratio.value);
        context.judge(promise, measured, ratio, None, ratio.value <= RATIO_MAX);
    }
    Ok(())
}

fn take(ns: &[u64], histogram: &mut Histogram<u64>, all: &mut Vec<u64>) -> Result<(), Failure> {
    for &ns in ns {
        histogram.record(ns)?;
    }
    all.extend_from_slice(ns);
    Ok(())
}

/// The mean of the middle half: a median in finer steps than the clock's, which are as long as what
/// is looked for.
fn middle(ns: &mut [u64]) -> f64 {
    ns.sort_unstable();
    let half = &ns[ns.len() / 4..ns.len() - ns.len() / 4];
    half.iter().sum::<u64>() as f64 / half.len() as f64
}

/// What c_loop.c does.
fn rust_loop(
    served: &crate::child::Served,
    transport: Transport,
    duration: Duration,
    ns: &mut [u64],
) -> Result<usize, Failure> {
    let client = engine::connect(served, transport, engine::builder(IdleMode::Spin))?;
    let mut sent = payloads::payload(BYTES);
    let mut answer = Vec::new();
    let mut end = u64::MAX;
    let mut count = 0;
    // Ends when the time is over or the array is full.
    for number in 0.. {
        payloads::stamp(&mut sent, number);
        let start = monotonic_ns();
        client.call_into(msg_type::ECHO, &sent, &mut answer)?;
        let done = monotonic_ns();
        if answer != sent {
            return Err(wrong_answer().into());
        }
        if number >= WARM_UP as u64 {
            ns[count] = done - start;
            count += 1;
        }
        if number + 1 == WARM_UP as u64 {
            end = done + duration.as_nanos() as u64;
        }
        if done >= end || count == ns.len() {
            break;
        }
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_middle_is_finer_than_the_clock() {
        assert_eq!(super::middle(&mut [900, 10, 20, 20, 30, 1, 2, 30]), 20.0);
        assert_eq!(super::middle(&mut [20, 10]), 15.0);
    }
}
