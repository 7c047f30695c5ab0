//! The client loop of everything that echoes over a stream: it spins, as ours does in `spin`.

use std::io::{self, Read};
use std::net::TcpStream;
use std::time::Duration;

use lapce_ai::ipc::monotonic_ns;

use super::round_trips::RoundTrips;
use super::window::{Clock, WINDOW};
use crate::child::Served;
use crate::context::{Context, Failure, wrong_answer};
use crate::floors::{ECHO_BYTES, read_spinning, write_spinning};
use crate::payloads::{payload, stamp};
use crate::row::Row;

const WARM_UP: u64 = 300;
/// Answers after which a window's clock starts.
const WARM_UP_WINDOW: u64 = 2_000;
/// How long nothing may come.
const PATIENCE_NS: u64 = 10_000_000_000;

/// How a payload is asked to be echoed, and how it comes back.
pub struct Framing {
    pub payload_bytes: usize,
    pub request: fn(&[u8]) -> Vec<u8>,
    pub answer: fn(&[u8]) -> Vec<u8>,
}

const PLAIN: Framing = Framing {
    payload_bytes: ECHO_BYTES,
    request: <[u8]>::to_vec,
    answer: <[u8]>::to_vec,
};

/// A peer that is a server of this binary.
pub fn library(context: &mut Context, kind: &'static str) -> Result<(), Failure> {
    let cpu = context.host.server_cpu.to_string();
    let duration = context.duration;
    for windowed in [false, true] {
        context.measure(row(kind, windowed), |row| {
            let served = Served::start(&["--kind", kind, "--cpu", &cpu])?;
            let stream = TcpStream::connect(served.address())?;
            run(row, stream, &PLAIN, windowed, duration)
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

/// One run over a stream.
pub fn run(
    row: &mut Row,
    mut stream: TcpStream,
    framing: &Framing,
    windowed: bool,
    duration: Duration,
) -> Result<(), Failure> {
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    let lap = Lap::new(framing);
    let duration_ns = duration.as_nanos() as u64;
    if windowed {
        let clock = Clock::new(WARM_UP_WINDOW, duration_ns);
        row.push("requests", "/s", window(&mut stream, &lap, clock)?);
    } else {
        let trips = RoundTrips::new(WARM_UP, duration_ns);
        row.push_latencies(one_by_one(&mut stream, &lap, trips)?.into_histogram());
    }
    Ok(())
}

/// As many requests as a window has, each different, and their answers; made beforehand, so that the
/// client only writes and compares. They follow each other round and round.
struct Lap {
    request_bytes: usize,
    answer_bytes: usize,
    /// Twice, so that a window that begins anywhere is one piece.
    requests: Vec<u8>,
    answers: Vec<u8>,
}

impl Lap {
    fn new(framing: &Framing) -> Lap {
        let mut message = payload(framing.payload_bytes);
        let (mut requests, mut answers) = (Vec::new(), Vec::new());
        for number in 0..WINDOW as u64 {
            stamp(&mut message, number);
            requests.extend((framing.request)(&message));
            answers.extend((framing.answer)(&message));
        }
        Lap {
            request_bytes: requests.len() / WINDOW,
            answer_bytes: answers.len() / WINDOW,
            requests: requests.repeat(2),
            answers,
        }
    }

    /// So many requests from this one on, a window at most.
    fn requests(&self, first: usize, count: usize) -> &[u8] {
        let start = first % WINDOW * self.request_bytes;
        &self.requests[start..start + count * self.request_bytes]
    }

    fn answer(&self, number: usize) -> &[u8] {
        let start = number % WINDOW * self.answer_bytes;
        &self.answers[start..start + self.answer_bytes]
    }

    /// Whether these are the bytes of the answers from `at` on, which moves behind them.
    fn take(&self, mut got: &[u8], at: &mut usize) -> bool {
        while !got.is_empty() {
            let expected = &self.answers[*at..];
            let count = got.len().min(expected.len());
            if got[..count] != expected[..count] {
                return false;
            }
            got = &got[count..];
            *at = if count == expected.len() {
                0
            } else {
                *at + count
            };
        }
        true
    }
}

fn one_by_one(
    stream: &mut TcpStream,
    lap: &Lap,
    mut trips: RoundTrips,
) -> Result<RoundTrips, Failure> {
    let mut got = vec![0; lap.answer_bytes];
    for number in 0.. {
        let request = lap.requests(number, 1);
        let start = monotonic_ns();
        write_spinning(stream, request)?;
        read_spinning(stream, &mut got)?;
        let now = monotonic_ns();
        if got != lap.answer(number) {
            return Err(wrong_answer().into());
        }
        if trips.took(start, now)? {
            break;
        }
    }
    Ok(trips)
}

/// A window in flight, refilled with one write for all answers that have come.
fn window(stream: &mut TcpStream, lap: &Lap, mut clock: Clock) -> Result<f64, Failure> {
    let mut got = vec![0; lap.answers.len()];
    let (mut at, mut partial) = (0, 0);
    let mut answered = 0;
    let mut last = monotonic_ns();
    write_spinning(stream, lap.requests(0, WINDOW))?;
    loop {
        let count = match stream.read(&mut got) {
            Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if monotonic_ns() - last > PATIENCE_NS {
                    return Err(io::Error::from(io::ErrorKind::TimedOut).into());
                }
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        if !lap.take(&got[..count], &mut at) {
            return Err(wrong_answer().into());
        }
        let whole = (partial + count) / lap.answer_bytes;
        partial = (partial + count) % lap.answer_bytes;
        // The requests sent are a window ahead, which is a lap: the next has the same place in it.
        write_spinning(stream, lap.requests(answered, whole))?;
        answered += whole;
        last = monotonic_ns();
        if let Some(rate) = clock.rate(answered as u64, last) {
            return Ok(rate);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::redis;

    #[test]
    fn all_requests_of_a_window_differ_and_so_do_their_answers() {
        for framing in [&PLAIN, &redis::FRAMING] {
            let lap = Lap::new(framing);
            for number in 1..WINDOW {
                for other in 0..number {
                    assert_ne!(lap.requests(number, 1), lap.requests(other, 1));
                    assert_ne!(lap.answer(number), lap.answer(other));
                }
            }
            // The window that begins in the middle goes on with the first.
            let window = lap.requests(WINDOW + 200, WINDOW);
            assert_eq!(&window[..lap.request_bytes], lap.requests(200, 1));
            assert!(window.ends_with(lap.requests(199, 1)));
        }
    }

    #[test]
    fn answers_come_in_any_pieces_but_in_order() {
        let lap = Lap::new(&PLAIN);
        let answers = |order: fn(usize) -> usize| {
            let numbers = (0..3 * WINDOW).map(order);
            let bytes: Vec<u8> = numbers
                .flat_map(|number| lap.answer(number).to_vec())
                .collect();
            let mut at = 0;
            bytes.chunks(1000).all(|piece| lap.take(piece, &mut at)) && at == 0
        };
        assert!(answers(|number| number));
        assert!(!answers(|number| number ^ 1), "two changed places");
        assert!(!answers(|number| number ^ 128), "far from each other");
        let mut at = 0;
        assert!(lap.take(&lap.answers.repeat(2), &mut at));
    }
}
