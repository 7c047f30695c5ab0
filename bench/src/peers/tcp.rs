//! The client loop of everything that echoes over a stream: it spins, as ours does in `spin`.

use std::io::{self, Read};
use std::net::TcpStream;
use std::time::Duration;

use lapce_ai::ipc::monotonic_ns;

use super::round_trips::RoundTrips;
use crate::child::Served;
use crate::context::{Context, Failure, wrong_answer};
use crate::floors::{ECHO_BYTES, read_spinning, write_spinning};
use crate::payloads::{payload, stamp};
use crate::row::Row;

pub const WINDOW: usize = 256;
const WARM_UP: u64 = 300;

/// A peer that is a server of this binary.
pub fn library(context: &mut Context, kind: &'static str) -> Result<(), Failure> {
    let cpu = context.host.server_cpu.to_string();
    let duration = context.duration;
    let message = payload(ECHO_BYTES);
    for windowed in [false, true] {
        context.measure(row(kind, windowed), |row| {
            let served = Served::start(&["--kind", kind, "--cpu", &cpu])?;
            let stream = TcpStream::connect(served.address())?;
            run(row, stream, &message, &message, windowed, duration)
        })?;
    }
    Ok(())
}

pub fn row(peer: &str, windowed: bool) -> Row {
    if windowed {
        Row::new("peers", peer, format!("window {WINDOW}"), WINDOW as f64)
    } else {
        Row::new("peers", peer, "round trip", 1.0)
    }
}

/// One run over a stream on which `request` is answered with `answer`. If they are the same, each
/// request differs from the last.
pub fn run(
    row: &mut Row,
    mut stream: TcpStream,
    request: &[u8],
    answer: &[u8],
    windowed: bool,
    duration: Duration,
) -> Result<(), Failure> {
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    if windowed {
        let rate = window(&mut stream, request, answer, duration)?;
        row.push("requests", "/s", rate);
        return Ok(());
    }
    let mut trips = RoundTrips::new(WARM_UP, duration.as_nanos() as u64);
    let mut request = request.to_vec();
    let mut expected = answer.to_vec();
    let stamped = request == expected;
    let mut got = vec![0; expected.len()];
    for number in 0u64.. {
        if stamped {
            stamp(&mut request, number);
            stamp(&mut expected, number);
        }
        let start = monotonic_ns();
        write_spinning(&mut stream, &request)?;
        read_spinning(&mut stream, &mut got)?;
        let now = monotonic_ns();
        if got != expected {
            return Err(wrong_answer().into());
        }
        if trips.took(start, now)? {
            break;
        }
    }
    row.push_latencies(trips.into_histogram());
    Ok(())
}

/// A window in flight, refilled with one write for all answers that have come.
fn window(
    stream: &mut TcpStream,
    request: &[u8],
    answer: &[u8],
    duration: Duration,
) -> Result<f64, Failure> {
    let requests = request.repeat(WINDOW);
    let answers = answer.repeat(WINDOW);
    let mut got = vec![0; answers.len()];
    // Where in the sequence of repeated answers the next byte belongs.
    let (mut at, mut partial, mut answered) = (0, 0, 0u64);
    let start = monotonic_ns();
    let mut stalled = start;
    write_spinning(stream, &requests)?;
    loop {
        let count = match stream.read(&mut got) {
            Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if monotonic_ns() - stalled > 10_000_000_000 {
                    return Err(io::Error::from(io::ErrorKind::TimedOut).into());
                }
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        for &byte in &got[..count] {
            if byte != answers[at] {
                return Err(wrong_answer().into());
            }
            at = (at + 1) % answers.len();
        }
        let whole = (partial + count) / answer.len();
        partial = (partial + count) % answer.len();
        answered += whole as u64;
        let now = monotonic_ns();
        stalled = now;
        if now - start > duration.as_nanos() as u64 {
            return Ok(answered as f64 / ((now - start) as f64 / 1e9));
        }
        write_spinning(stream, &requests[..whole * request.len()])?;
    }
}
