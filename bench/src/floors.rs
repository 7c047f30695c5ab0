//! What the machine itself costs: nothing built on it can be faster. Measured right before and
//! right after every run, because shared machines change their state by themselves.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use lapce_ai::bench_internals::futex;

use crate::away;
use crate::bare::{self, Bare, until};
use crate::row::latencies;
use crate::sys::{Shared, WORD_STRIDE};

/// Bytes of an echo: a header of 24 bytes and a payload of 64.
pub const ECHO_BYTES: usize = 88;
const LINE_ROUNDS: u32 = 10_000;
const SHM_ROUNDS: u32 = 10_000;
const TCP_ROUNDS: u32 = 500;
const FUTEX_ROUNDS: u32 = 60;
/// So many places in turn: how fast a page is depends on where the machine keeps it. Odd, so that each of the four
/// floors comes to all of them.
const PLACES: usize = 15;
/// Memory of the floors.
const BYTES: usize = PLACES * Place::BYTES;
/// The longest sleep on a futex: the other side may have ended.
pub const WAIT_MAX: Option<Duration> = Some(Duration::from_secs(1));
/// Spins on a socket before the CPU is offered to others.
const SPINS_MAX: u32 = 100_000;

/// Medians in nanoseconds of a round trip.
#[derive(Clone, Copy, Debug, Default)]
pub struct Floors {
    pub line: f64,
    pub shm: f64,
    pub tcp: f64,
    pub futex: f64,
}

impl Floors {
    pub fn named(&self) -> [(&'static str, f64); 4] {
        [
            ("cache line there and back", self.line),
            ("bare shared-memory echo, 88 B", self.shm),
            ("bare TCP echo, both spinning, 88 B", self.tcp),
            ("futex wake there and back", self.futex),
        ]
    }

    /// Whether the machine changed between the two: the memory between the CPUs, which is the
    /// steadiest of the four, is off by half.
    pub fn moved(&self, after: &Floors) -> bool {
        let ratio = after.line / self.line;
        !(1.0 / 1.5..=1.5).contains(&ratio)
    }
}

/// Where a floor is measured: the words, a request's bytes and an answer's, each in a page of its own.
#[derive(Clone, Copy)]
struct Place(usize);

impl Place {
    const BYTES: usize = 3 * Shared::PAGE;

    fn words(self, shared: &Shared) -> (&AtomicU32, &AtomicU32) {
        let begin = self.0 * Place::BYTES;
        (shared.word_at(begin), shared.word_at(begin + WORD_STRIDE))
    }

    fn request(self) -> usize {
        self.0 * Place::BYTES + Shared::PAGE
    }

    fn answer(self) -> usize {
        self.0 * Place::BYTES + 2 * Shared::PAGE
    }
}

/// The client's side, and the process of the other side.
pub struct Probe {
    bare: Bare,
    stream: TcpStream,
    place: Place,
}

impl Probe {
    pub fn start(server_cpu: usize) -> io::Result<Probe> {
        let bare = Bare::start(server_cpu, "floor", BYTES)?;
        let stream = TcpStream::connect(bare.served.address())?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let place = Place(0);
        Ok(Probe {
            bare,
            stream,
            place,
        })
    }

    /// Tells the other side what comes, and moves on to the next place.
    pub fn begin(&mut self, what: &str, rounds: u32) -> io::Result<()> {
        let index = (self.place.0 + 1) % PLACES;
        self.place = Place(index);
        let (mine, other) = self.words();
        // Relaxed: the other side reads them after the line that tells it.
        mine.store(0, Relaxed);
        other.store(0, Relaxed);
        self.bare.begin(&format!("{what} {rounds} {index}"))
    }

    /// What this side says and what the other says, where [`Probe::begin`] moved to.
    pub fn words(&self) -> (&AtomicU32, &AtomicU32) {
        self.place.words(&self.bare.shared)
    }

    pub fn write_request(&self, bytes: &[u8]) {
        self.bare.shared.write(self.place.request(), bytes);
    }

    pub fn read_answer(&self, bytes: &mut [u8]) {
        self.bare.shared.read(self.place.answer(), bytes);
    }

    pub fn measure(&mut self) -> io::Result<Floors> {
        Ok(Floors {
            line: self.line()?,
            shm: self.shm()?,
            tcp: self.tcp()?,
            futex: self.futex()?,
        })
    }

    fn line(&mut self) -> io::Result<f64> {
        self.begin("line", LINE_ROUNDS)?;
        let (mine, other) = self.words();
        Ok(median(times(LINE_ROUNDS, |round| {
            mine.store(round, Release); // pairs with the load in `serve`
            until(|| other.load(Acquire) == round);
        })))
    }

    fn shm(&mut self) -> io::Result<f64> {
        self.begin("shm", SHM_ROUNDS)?;
        let (mine, other) = self.words();
        let mut sent = [7; ECHO_BYTES];
        let mut got = [0; ECHO_BYTES];
        Ok(median(times(SHM_ROUNDS, |round| {
            sent[..4].copy_from_slice(&round.to_le_bytes());
            self.write_request(&sent);
            mine.store(round, Release); // pairs with the load in `serve`
            until(|| other.load(Acquire) == round);
            self.read_answer(&mut got);
            assert_eq!(got, sent);
        })))
    }

    fn tcp(&mut self) -> io::Result<f64> {
        self.tcp_times(TCP_ROUNDS).map(median)
    }

    /// The bare echo over TCP, for about as long as that.
    pub fn tcp_latencies(&mut self, duration: Duration) -> io::Result<Histogram<u64>> {
        let round_trip_ns = self.tcp()?.max(1.0);
        let rounds = duration.as_nanos() as f64 / round_trip_ns;
        let mut histogram = latencies();
        for ns in self.tcp_times(rounds.ceil() as u32)? {
            histogram.saturating_record(ns);
        }
        Ok(histogram)
    }

    fn tcp_times(&mut self, rounds: u32) -> io::Result<Vec<u64>> {
        self.begin("tcp", rounds)?;
        let mut error = None;
        let mut sent = [7; ECHO_BYTES];
        let mut got = [0; ECHO_BYTES];
        let times = times(rounds, |round| {
            sent[..4].copy_from_slice(&round.to_le_bytes());
            let result = write_spinning(&mut self.stream, &sent)
                .and_then(|()| read_spinning(&mut self.stream, &mut got));
            error = error.take().or(result.err());
            assert!(error.is_some() || got == sent);
        });
        error.map_or(Ok(times), Err)
    }

    fn futex(&mut self) -> io::Result<f64> {
        self.begin("futex", FUTEX_ROUNDS)?;
        let (mine, other) = self.words();
        Ok(median(times(FUTEX_ROUNDS, |round| {
            mine.store(round, Release); // pairs with the load in `serve`
            futex::wake(mine, 1);
            // Ends when the other side answers; each wait lasts at most a second.
            while other.load(Acquire) != round {
                futex::wait(other, round - 1, WAIT_MAX);
            }
        })))
    }
}

/// What each round trip took, in ns.
fn times(rounds: u32, mut round_trip: impl FnMut(u32)) -> Vec<u64> {
    (1..=rounds)
        .map(|round| {
            let start = lapce_ai::ipc::monotonic_ns();
            round_trip(round);
            lapce_ai::ipc::monotonic_ns() - start
        })
        .collect()
}

fn median(mut times: Vec<u64>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2] as f64
}

/// Writes all of it to a stream that does not block.
pub fn write_spinning(stream: &mut TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match stream.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::hint::spin_loop(),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Fills `bytes` from a stream that does not block; gives up after ten seconds.
pub fn read_spinning(stream: &mut TcpStream, bytes: &mut [u8]) -> io::Result<()> {
    let mut filled = 0;
    let mut spins = 0u32;
    let mut began = None;
    while filled < bytes.len() {
        match stream.read(&mut bytes[filled..]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                spins += 1;
                if spins.is_multiple_of(SPINS_MAX) {
                    std::thread::yield_now();
                    let began = began.get_or_insert_with(Instant::now);
                    if began.elapsed().as_secs() >= 10 {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The other side. A command says what, and how many times or for how many microseconds.
pub fn serve(name: &str) -> io::Result<()> {
    let shared = bare::open(name)?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("ready {}", listener.local_addr()?);
    let (mut stream, _) = listener.accept()?;
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    let mut buffer = [0; ECHO_BYTES];
    bare::commands(|command| {
        let mut words = command.split(' ');
        let mut next = || words.next().unwrap_or_default();
        let what = next();
        let rounds: u32 = next().parse().map_err(io::Error::other)?;
        let place = Place(next().parse().map_err(io::Error::other)?);
        let (theirs, mine) = place.words(&shared);
        if let Some(late_us) = what.strip_prefix("away-") {
            let spans = away::watch(rounds, late_us.parse().map_err(io::Error::other)?);
            shared.write(place.answer(), &away::told(&spans));
            mine.store(spans.len() as u32, Release); // pairs with the load in `away`
            return Ok(());
        }
        for round in 1..=rounds {
            // Acquire and Release: pair with those of `Probe`, and of `paced`.
            match what {
                "line" => {
                    until(|| theirs.load(Acquire) == round);
                    mine.store(round, Release);
                }
                "shm" => {
                    until(|| theirs.load(Acquire) == round);
                    shared.read(place.request(), &mut buffer);
                    shared.write(place.answer(), &buffer);
                    mine.store(round, Release);
                }
                "tcp" => {
                    read_spinning(&mut stream, &mut buffer)?;
                    write_spinning(&mut stream, &buffer)?;
                }
                _ => {
                    while theirs.load(Acquire) != round {
                        futex::wait(theirs, round - 1, WAIT_MAX);
                    }
                    mine.store(round, Release);
                    futex::wake(mine, 1);
                }
            }
        }
        Ok(())
    })
}
