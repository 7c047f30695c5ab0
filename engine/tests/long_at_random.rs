//! Messages of many lengths over shared memory, most of them around what fits so many records, in any order, over
//! several connections, with little room, with pauses on either side and with calls that run out of time: each comes
//! as it was sent, at most once, and is refused by nobody.

mod support;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lapce_ai::ipc::{
    Client, Error, Flags, IdleMode, Limits, Request, Responder, Server, Transport, msg_type,
};
use support::*;

const ONE_WAY: u16 = 0x0101;
const CLIENTS: u64 = 3;
const STEPS: u64 = 120;
const LONGEST: usize = 200_000;
/// The longest payload that fits into one record, and how much more fits into each after it.
const FIRST: usize = 32_736;
const NEXT: usize = 32_760;
/// The same of the pieces in which longer ones go.
const PIECE: usize = 8_160;
const NEXT_PIECE: usize = 8_184;
const TOKEN: &str = "long at random";

impl Random {
    fn length(&mut self) -> usize {
        match self.below(5) {
            0 => 8 + self.below(100) as usize,
            1 => 8 + self.below(LONGEST as u64 - 7) as usize,
            2 => LONGEST,
            3 => PIECE + self.below(15) as usize * NEXT_PIECE - 8 + self.below(17) as usize,
            _ => FIRST + self.below(4) as usize * NEXT - 8 + self.below(17) as usize,
        }
    }

    fn pause(&mut self) {
        if self.below(8) == 0 {
            std::thread::sleep(Duration::from_micros(self.below(3000)));
        }
    }
}

/// A payload that says what it has to be.
fn payload(number: u64, length: usize) -> Vec<u8> {
    let mut bytes = number.to_le_bytes().to_vec();
    bytes.extend(pattern(number, length - 8));
    bytes
}

/// The number of a payload, which is as it was made.
fn number_of(got: &[u8]) -> u64 {
    let number = u64::from_le_bytes(got[..8].try_into().unwrap());
    assert!(got == payload(number, got.len()), "of {} bytes", got.len());
    number
}

fn start(seed: u64, idle: IdleMode, one_way: &Arc<Mutex<Vec<u64>>>) -> Server {
    let random = Arc::new(AtomicU64::new(seed << 32));
    let pause = move || Random(random.fetch_add(2, Ordering::Relaxed)).pause();
    let pause_too = pause.clone();
    let one_way = one_way.clone();
    let mut limits = Limits {
        max_message_bytes: LONGEST as u32,
        ..Limits::default()
    };
    if seed.is_multiple_of(2) {
        limits.max_buffered_bytes = 2 * LONGEST as u64;
    }
    let builder = server()
        .idle(idle)
        .workers(1 + seed as usize % 2)
        .limits(limits)
        .shm(format!("random{seed}_{}", std::process::id()))
        .handler(
            WORK,
            move |request: Request<'_>, responder: Responder<'_>| {
                number_of(request.payload());
                pause();
                responder.reply(request.payload());
            },
        )
        .handler(ONE_WAY, move |request: Request<'_>, _: Responder<'_>| {
            let number = number_of(request.payload());
            one_way.lock().unwrap().push(number);
            pause_too();
        });
    builder.auth_token(TOKEN).start().unwrap()
}

/// Does whatever comes next, some of it in no time. Returns the one-way messages that were sent for certain.
fn talk(address: &str, seed: u64, idle: IdleMode) -> Vec<u64> {
    let mut random = Random(seed << 32);
    let hurried = seed.is_multiple_of(3);
    let timeout = if hurried {
        Duration::from_micros(300)
    } else {
        PATIENCE
    };
    let builder = Client::builder()
        .idle(idle)
        .auth_token(TOKEN)
        .timeout(timeout);
    let builder = builder.connect_timeout(PATIENCE).reconnect(false);
    let client = builder.connect(address).unwrap();
    let in_time = |error: Error| match error {
        Error::Timeout { .. } | Error::NotSent { .. } if hurried => {}
        error => panic!("{error}"),
    };
    let mut sent = Vec::new();
    let mut in_flight = HashMap::new();
    for number in (seed << 32..).take(STEPS as usize) {
        random.pause();
        let length = random.length();
        let bytes = payload(number, length);
        match random.below(6) {
            0 => match client.send(ONE_WAY, &bytes) {
                Ok(()) => sent.push(number),
                Err(error) => in_time(error),
            },
            1 => match client.call(WORK, &bytes) {
                Ok(answer) => assert!(answer == bytes, "{length}"),
                Err(error) => in_time(error),
            },
            2 if let Some(&id) = in_flight.keys().next() => {
                let (number, length) = in_flight.remove(&id).unwrap();
                match random.below(4) {
                    0 => client.cancel(id).unwrap_or_else(in_time),
                    _ => match client.wait(id) {
                        Ok(answer) => assert!(answer == payload(number, length), "{length}"),
                        Err(error) => in_time(error),
                    },
                }
            }
            kind => {
                let flags = if kind == 3 {
                    Flags::PRIORITY
                } else {
                    Flags::NONE
                };
                let msg_type = if kind == 4 { WORK } else { msg_type::ECHO };
                match client.submit_with(flags, msg_type, &bytes) {
                    Ok(id) => drop(in_flight.insert(id, (number, length))),
                    Err(error) => in_time(error),
                }
            }
        }
    }
    for (id, (number, length)) in in_flight {
        match client.wait(id) {
            Ok(answer) => assert!(answer == payload(number, length), "{length}"),
            Err(error) => in_time(error),
        }
    }
    // Whatever is left of those that had no time goes before this.
    while let Err(error) = client.call_within(WORK, &payload(1, 8), PATIENCE) {
        in_time(error);
    }
    assert_eq!(client.transport(), Transport::Shm);
    sent
}

fn run(seed: u64) {
    let idle = [IdleMode::Adaptive, IdleMode::Park, IdleMode::Spin][seed as usize % 3];
    let one_way = Arc::default();
    let server = start(seed, idle, &one_way);
    let address = address(&server).to_string();
    let sent: Vec<u64> = std::thread::scope(|scope| {
        let talk = |number| talk(&address, seed * CLIENTS + number, idle);
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| scope.spawn(move || talk(number)))
            .collect();
        let sent = clients
            .into_iter()
            .flat_map(|client| client.join().unwrap());
        sent.collect()
    });
    let stats = server.stats();
    assert_eq!(stats.errors_total(), 0);
    server.stop();
    let came = one_way.lock().unwrap();
    let each: HashSet<u64> = came.iter().copied().collect();
    assert_eq!(each.len(), came.len(), "each once");
    assert!(sent.iter().all(|number| each.contains(number)));
}

#[test]
fn each_comes_as_it_was_sent() {
    for seed in 0..seeds(6) {
        run(seed);
    }
}
