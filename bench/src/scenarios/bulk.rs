//! Large messages over shared memory: 1 MiB each way, beside the copies that no transport through
//! shared memory into private buffers can do without, two each way.

use std::io;
use std::sync::atomic::Ordering::{Acquire, Release};

use lapce_ai::ipc::{IdleMode, Transport, monotonic_ns};

use crate::bare::{self, Bare, until};
use crate::context::{Context, Failure, bytes_text, wrong_answer};
use crate::payloads;
use crate::row::{Judged, Row};
use crate::sys::Shared;
use crate::{engine, load};

const MESSAGE: usize = 1 << 20;
const PIECE: usize = 32 * 1024;
/// A memcpy of more than this is one `rep movsb` with the C library of most machines, which some
/// processors carry out slowly when the other core has the lines.
const STEP: usize = 2 * 1024;
const REQUEST: usize = Shared::PAGE;
const ANSWER: usize = REQUEST + MESSAGE;
const BYTES: usize = ANSWER + MESSAGE;
const WINDOWS: [u64; 3] = [1, 4, 8];
const WARM_UP: u32 = 20;
/// About what a message takes: how many fit a run.
const ROUND_NS: u64 = 250_000;
const RUNS: usize = 5;
/// What the engine, which also checks every byte's CRC, may lose to the plain floor.
const RATIO_MIN: f64 = 0.7;

const SCENARIO: &str = "bulk";
const PLAIN: &str = "two memcpys each way";
const ENGINE: &str = "shm spin";

#[derive(Clone, Copy)]
enum Way {
    /// The other side is told after each piece, which is copied in so many bytes at a time.
    Floor {
        piece: usize,
        step: usize,
    },
    Engine(u64),
}

pub fn run(context: &mut Context) -> Result<(), Failure> {
    let (cpu, duration) = (context.host.server_cpu, context.duration);
    let runs = if context.quick { 3 } else { RUNS };
    let mut bare = Bare::start(cpu, "bulk", BYTES)?;
    let floors = [(MESSAGE, MESSAGE), (PIECE, PIECE), (PIECE, STEP)];
    let mut ways = floors
        .map(|(piece, step)| Way::Floor { piece, step })
        .to_vec();
    ways.extend(WINDOWS.map(Way::Engine));
    let rows = ways.iter().map(|way| match *way {
        Way::Floor { piece: MESSAGE, .. } => Row::new(SCENARIO, PLAIN, "whole", 1.0),
        Way::Floor { piece, step } => {
            let mut case = format!("in pieces of {}, overlapping", bytes_text(piece));
            if step < piece {
                case += &format!(", {} a memcpy", bytes_text(step));
            }
            Row::new(SCENARIO, PLAIN, case, 1.0)
        }
        Way::Engine(window) => Row::new(SCENARIO, ENGINE, case(window), window as f64),
    });
    context.measure_in_turn(rows.collect(), runs, |_, index, row| {
        let rate = match ways[index] {
            Way::Floor { piece, step } => {
                copies(&mut bare, piece, step, duration.as_nanos() as u64)?
            }
            Way::Engine(window) => {
                let served = engine::start(cpu, IdleMode::Spin)?;
                let builder = engine::builder(IdleMode::Spin).max_inflight(window as usize);
                let client = engine::connect(&served, Transport::Shm, builder)?;
                load::windowed(&client, MESSAGE, window, duration)?
            }
        };
        row.push("messages", "/s", rate);
        row.push("each", "µs", 1e6 / rate);
        row.push("both ways", "MB/s", rate * 2.0 * MESSAGE as f64 / 1e6);
        Ok(())
    })?;
    promises(context);
    Ok(())
}

fn case(window: u64) -> String {
    format!("window {window}")
}

fn promises(context: &mut Context) {
    let Some((way, floor)) = fastest(&context.rows) else {
        return;
    };
    let way = way.to_owned();
    for window in WINDOWS {
        let row = context.find(SCENARIO, ENGINE, &case(window));
        let Some(engine) = row.and_then(|row| row.judged("messages")) else {
            continue;
        };
        let ratio = engine.value / floor.value;
        context.judge(
            format!(
                "1 MiB over shm at least 0.7 times as fast as two memcpys each way, {}",
                case(window)
            ),
            format!(
                "{ratio:.2} times: {:.0} against {:.0} a second, copied {way}",
                engine.value, floor.value
            ),
            engine,
            Some(floor),
            ratio >= RATIO_MIN,
        );
    }
}

/// The floor of the promise: the throughput of the copies is that of the fastest way to make them.
fn fastest(rows: &[Row]) -> Option<(&str, Judged)> {
    rows.iter()
        .filter(|row| row.scenario == SCENARIO && row.subject == PLAIN)
        .filter_map(|row| Some((row.case.as_str(), row.judged("messages")?)))
        .max_by(|(_, one), (_, other)| one.value.total_cmp(&other.value))
}

/// Round trips of a message that each side copies into shared memory and out of it: how many a
/// second. A piece is the other side's as soon as it is copied in.
fn copies(bare: &mut Bare, piece: usize, step: usize, ns: u64) -> Result<f64, Failure> {
    let rounds = WARM_UP + (ns / ROUND_NS).max(1) as u32;
    bare.begin(&format!("{piece} {step} {}", rounds + 1))?;
    let (to_server, to_client) = Half::both(&bare.shared, piece, step);
    let mut sent = payloads::payload(MESSAGE);
    let mut got = vec![0; MESSAGE];
    let mut told = 0;
    let (mut start, mut end) = (0, 0);
    // The last round only compares whole what the timed ones compare by samples.
    for round in 0..=rounds {
        match round {
            WARM_UP => start = monotonic_ns(),
            _ if round == rounds => end = monotonic_ns(),
            _ => {}
        }
        payloads::stamp(&mut sent, u64::from(round));
        to_server.copy_in(&sent, told);
        to_client.copy_out(&mut got, told);
        told += (MESSAGE / piece) as u32;
        let right = match (WARM_UP..rounds).contains(&round) {
            true => load::samples_match(&got, &sent),
            false => got == sent,
        };
        if !right {
            return Err(wrong_answer().into());
        }
    }
    Ok(f64::from(rounds - WARM_UP) / ((end - start) as f64 / 1e9))
}

/// One direction.
#[derive(Clone, Copy)]
struct Half<'a> {
    shared: &'a Shared,
    at: usize,
    word: usize,
    piece: usize,
    step: usize,
}

impl<'a> Half<'a> {
    /// To the server, and to the client.
    fn both(shared: &'a Shared, piece: usize, step: usize) -> (Half<'a>, Half<'a>) {
        let to_server = Half {
            shared,
            at: REQUEST,
            word: 0,
            piece,
            step,
        };
        let to_client = Half {
            at: ANSWER,
            word: 1,
            ..to_server
        };
        (to_server, to_client)
    }

    /// `told` is how many pieces the other side was told of before this message.
    fn copy_in(&self, bytes: &[u8], told: u32) {
        for (index, piece) in bytes.chunks(self.piece).enumerate() {
            for (part, bytes) in piece.chunks(self.step).enumerate() {
                let at = self.at + index * self.piece + part * self.step;
                self.shared.write(at, bytes);
            }
            let word = self.shared.word(self.word);
            word.store(told + index as u32 + 1, Release); // pairs with the load in `copy_out`
        }
    }

    fn copy_out(&self, bytes: &mut [u8], told: u32) {
        for (index, piece) in bytes.chunks_mut(self.piece).enumerate() {
            until(|| self.shared.word(self.word).load(Acquire) > told + index as u32);
            for (part, bytes) in piece.chunks_mut(self.step).enumerate() {
                let at = self.at + index * self.piece + part * self.step;
                self.shared.read(at, bytes);
            }
        }
    }
}

/// The other side. A command says how long pieces are, how much is copied at a time, and how many
/// messages come.
pub fn serve(name: &str) -> io::Result<()> {
    let shared = bare::open(name)?;
    println!("ready");
    let mut buffer = vec![0; MESSAGE];
    bare::commands(|command| {
        let numbers: Result<Vec<usize>, _> = command.split(' ').map(str::parse).collect();
        let Ok(&[piece, step, rounds]) = numbers.as_deref() else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let (to_server, to_client) = Half::both(&shared, piece, step);
        let mut told = 0;
        for _ in 0..rounds {
            to_server.copy_out(&mut buffer, told);
            to_client.copy_in(&buffer, told);
            told += (MESSAGE / piece) as u32;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_is_the_fastest_way_to_copy() {
        let rows = [
            ("whole", 12e3),
            ("in pieces", 23e3),
            ("2 KiB a memcpy", 21e3),
        ];
        let mut rows = rows.map(|(case, rate)| {
            let mut row = Row::new(SCENARIO, PLAIN, case, 1.0);
            row.push("messages", "/s", rate);
            row
        });
        let found = |rows: &[Row]| fastest(rows).map(|(way, floor)| (way.to_owned(), floor.value));
        assert_eq!(found(&rows), Some(("in pieces".to_owned(), 23e3)));
        rows[1].subject = ENGINE.to_owned();
        assert_eq!(found(&rows), Some(("2 KiB a memcpy".to_owned(), 21e3)));
    }
}
