//! Where the word that tells of a message lies: in the record itself, or on a cache line of its own.
//! The same round trip between two processes through each layout, without the engine.

use std::io;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use hdrhistogram::Histogram;
use lapce_ai::ipc::monotonic_ns;

use crate::bare::{self, Bare, until};
use crate::context::{Context, Failure, wrong_answer};
use crate::floors::ECHO_BYTES;
use crate::row::{Row, latencies};
use crate::sys::Shared;

const ROUNDS: u32 = 20_000;
const QUICK_ROUNDS: u32 = 5_000;
/// Round trips timed together, and how many times.
const BLOCK: usize = 64;
const BLOCKS: u32 = 500;
const RUNS: usize = 15;
const QUICK_RUNS: usize = 5;
/// A word of 8 bytes and the data, in whole cache lines, as in the engine's ring.
const WORD: usize = 8;
const ALIGN: usize = 64;
/// A frame without a payload: with its word it lies in one cache line.
const SMALL_BYTES: usize = 24;
const SLOTS: u32 = 64;
/// As many records as the engine's ring uses before it turns back.
const FEW_SLOTS: u32 = 2;
/// One direction: its slots, and the word after the last.
const RING: usize = 3 * Shared::PAGE;
const BYTES: usize = Shared::PAGE + 2 * RING;

/// Where the word lies that the consumer polls.
#[derive(Clone, Copy, PartialEq)]
enum Tells {
    /// On a line of its own: a flag, or the index of the tail.
    Apart,
    /// In the record. The producer puts 0 where the next will be before it commits.
    InRecord,
    /// In the record. What an earlier one left there is known from the next by its stamp.
    Stamped,
}

struct Layout {
    name: &'static str,
    tells: Tells,
    slots: u32,
    bytes: usize,
    /// The consumer asks for lines of the record that it does not poll, while it polls; the
    /// producer for all that it will write, before it writes. As the engine's ring does.
    prefetch: bool,
}

const fn layout(name: &'static str, tells: Tells, slots: u32) -> Layout {
    Layout {
        name,
        tells,
        slots,
        bytes: ECHO_BYTES,
        prefetch: false,
    }
}

impl Layout {
    const fn small(self) -> Layout {
        let bytes = SMALL_BYTES;
        Layout { bytes, ..self }
    }

    const fn prefetched(self) -> Layout {
        let prefetch = true;
        Layout { prefetch, ..self }
    }

    const fn record_bytes(&self) -> usize {
        (WORD + self.bytes).next_multiple_of(ALIGN)
    }
}

const FLOOR: &str = "flag apart, one slot";
const COMMIT: &str = "commit word in the record";
const STAMP: &str = "stamped commit word in the record";
const TAIL: &str = "tail index apart";
const ALL: [Layout; 13] = [
    layout(FLOOR, Tells::Apart, 1),
    layout(COMMIT, Tells::InRecord, SLOTS),
    layout(TAIL, Tells::Apart, SLOTS),
    layout(STAMP, Tells::Stamped, FEW_SLOTS),
    layout(TAIL, Tells::Apart, FEW_SLOTS),
    layout(COMMIT, Tells::InRecord, SLOTS).prefetched(),
    layout(TAIL, Tells::Apart, SLOTS).prefetched(),
    layout(COMMIT, Tells::InRecord, FEW_SLOTS).prefetched(),
    layout(STAMP, Tells::Stamped, FEW_SLOTS).prefetched(),
    layout(TAIL, Tells::Apart, FEW_SLOTS).prefetched(),
    layout(COMMIT, Tells::InRecord, FEW_SLOTS).small(),
    layout(STAMP, Tells::Stamped, FEW_SLOTS).small(),
    layout(TAIL, Tells::Apart, FEW_SLOTS).small(),
];

/// One direction. Index 0 leads to the server.
struct Ring<'a> {
    shared: &'a Shared,
    layout: &'a Layout,
    index: usize,
}

impl Ring<'_> {
    #[inline]
    fn record(&self, round: u32) -> usize {
        let slot = (round % self.layout.slots) as usize;
        Shared::PAGE + self.index * RING + slot * self.layout.record_bytes()
    }

    #[inline]
    fn produce<const N: usize>(&self, round: u32, bytes: &[u8; N]) {
        let record = self.record(round);
        if self.layout.prefetch {
            self.shared.prefetch_to_write(record);
            self.shared.prefetch_to_write(record + WORD + N - 1);
        }
        self.shared.write(record + WORD, bytes);
        match self.layout.tells {
            // Release, here and below: pairs with the load in `consume`.
            Tells::Apart => self.shared.word(self.index).store(round, Release),
            Tells::InRecord => {
                let next = self.record(round + 1);
                self.shared.word_at(next).store(0, Relaxed);
                self.shared.word_at(record).store(round, Release);
            }
            Tells::Stamped => self.shared.word_at(record).store(round, Release),
        }
    }

    #[inline]
    fn consume<const N: usize>(&self, round: u32, bytes: &mut [u8; N]) {
        let record = self.record(round);
        let word = match self.layout.tells {
            Tells::Apart => self.shared.word(self.index),
            Tells::InRecord | Tells::Stamped => self.shared.word_at(record),
        };
        until(|| {
            if self.layout.prefetch {
                if self.layout.tells == Tells::Apart {
                    self.shared.prefetch(record);
                }
                self.shared.prefetch(record + WORD + N - 1);
            }
            word.load(Acquire) == round
        });
        self.shared.read(record + WORD, bytes);
    }
}

fn rings<'a>(shared: &'a Shared, layout: &'a Layout) -> [Ring<'a>; 2] {
    [0, 1].map(|index| Ring {
        shared,
        layout,
        index,
    })
}

pub fn run(context: &mut Context) -> Result<(), Failure> {
    let (rounds, runs) = match context.quick {
        true => (QUICK_ROUNDS, QUICK_RUNS),
        false => (ROUNDS, RUNS),
    };
    let cpu = context.host.server_cpu;
    let mut pair = None;
    let rows = ALL.iter().map(|layout| {
        let slots = match layout.slots {
            1 => "1 slot".to_owned(),
            slots => format!("{slots} slots"),
        };
        let prefetch = if layout.prefetch { ", prefetched" } else { "" };
        let case = format!("{} B, {slots}{prefetch}", layout.bytes);
        Row::new("ring-layouts", layout.name, case, f64::from(layout.slots))
    });
    let rows = rows.collect();
    context.measure_in_turn(rows, runs, |_, index, row| {
        // Where the pages lie counts as much as the layout: new ones for each run of all layouts.
        if index == 0 {
            pair = None;
        }
        let bare = match &mut pair {
            Some(bare) => bare,
            None => pair.insert(Bare::start(cpu, "layouts", BYTES)?),
        };
        bare.shared.write(Shared::PAGE, &[0; 2 * RING]);
        let all = rounds + BLOCKS * BLOCK as u32;
        bare.begin(&format!("{index} {all}"))?;
        let rings = rings(&bare.shared, &ALL[index]);
        match ALL[index].bytes {
            SMALL_BYTES => measure::<SMALL_BYTES>(&rings, rounds, row),
            _ => measure::<ECHO_BYTES>(&rings, rounds, row),
        }
    })
}

fn measure<const N: usize>(
    rings: &[Ring<'_>; 2],
    rounds: u32,
    row: &mut Row,
) -> Result<(), Failure> {
    row.push("each of a block", "ns", blocks::<N>(rings)?);
    row.push_latencies(single::<N>(rings, rounds)?);
    Ok(())
}

/// Round trips with the clock read once a block, since reading it is as long as the differences
/// looked for: the median block's time a round trip.
fn blocks<const N: usize>([to_server, to_client]: &[Ring<'_>; 2]) -> Result<f64, Failure> {
    let mut times = Vec::with_capacity(BLOCKS as usize);
    let mut sent = [[7; N]; BLOCK];
    let mut got = [[0; N]; BLOCK];
    for block in 0..BLOCKS {
        let first = 1 + block * BLOCK as u32;
        for (round, sent) in (first..).zip(&mut sent) {
            sent[..4].copy_from_slice(&round.to_le_bytes());
        }
        let start = monotonic_ns();
        for (round, (sent, got)) in (first..).zip(sent.iter().zip(&mut got)) {
            to_server.produce(round, sent);
            to_client.consume(round, got);
        }
        times.push(monotonic_ns() - start);
        if got != sent {
            return Err(wrong_answer().into());
        }
    }
    times.sort_unstable();
    Ok(times[times.len() / 2] as f64 / BLOCK as f64)
}

/// Round trips that are timed each, after those of the blocks.
fn single<const N: usize>(
    [to_server, to_client]: &[Ring<'_>; 2],
    rounds: u32,
) -> Result<Histogram<u64>, Failure> {
    let mut histogram = latencies();
    let mut sent = [7; N];
    let mut got = [0; N];
    let first = 1 + BLOCKS * BLOCK as u32;
    for round in first..first + rounds {
        sent[..4].copy_from_slice(&round.to_le_bytes());
        let start = monotonic_ns();
        to_server.produce(round, &sent);
        to_client.consume(round, &mut got);
        histogram.record(monotonic_ns() - start)?;
        if got != sent {
            return Err(wrong_answer().into());
        }
    }
    Ok(histogram)
}

/// The other side. A command says which layout, and how many rounds.
pub fn serve(name: &str) -> io::Result<()> {
    let shared = bare::open(name)?;
    println!("ready");
    bare::commands(|command| {
        let (layout, rounds) = command.split_once(' ').unwrap_or_default();
        let layout: usize = layout.parse().map_err(io::Error::other)?;
        let rounds: u32 = rounds.parse().map_err(io::Error::other)?;
        let layout = ALL.get(layout).ok_or(io::ErrorKind::InvalidInput)?;
        let rings = rings(&shared, layout);
        match layout.bytes {
            SMALL_BYTES => echo::<SMALL_BYTES>(&rings, rounds),
            _ => echo::<ECHO_BYTES>(&rings, rounds),
        }
        Ok(())
    })
}

fn echo<const N: usize>([to_server, to_client]: &[Ring<'_>; 2], rounds: u32) {
    let mut buffer = [0; N];
    for round in 1..=rounds {
        to_server.consume(round, &mut buffer);
        to_client.produce(round, &buffer);
    }
}

const _: () = assert!((SLOTS as usize + 1) * (WORD + ECHO_BYTES).next_multiple_of(ALIGN) <= RING);
