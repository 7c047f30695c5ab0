//! Clients killed with SIGKILL at random points, beside one that must notice nothing.
//!
//! 30 of them; `LAPCE_IPC_KILLS=1000` makes it a thousand.

mod support;

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lapce_ai::ipc::{Client, Transport, msg_type};
use support::{COMMAND, Daemon, SERVER, Scratch, config, run, text};

/// A client is killed after less than this, or than the time of so many whole lives if they take longer. Starting up
/// and attaching takes a few milliseconds, so some are killed before, some while they attach and most while they send
/// and receive.
const LIFE_MAX_US: u64 = 30_000;
/// On a machine that emulates another one, no client has attached after 30 ms.
const LIVES: u64 = 3;
/// Longer than anything takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// engine/src/shm/control.rs and slots.rs: the slots of the control segment, each beginning with its stage, 0 if free.
const SLOTS_AT: usize = 2 * 4096;
const SLOT_BYTES: usize = 128;
const SLOTS: usize = 64;

struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// What a killed client must not leave behind.
#[derive(Debug, PartialEq, Eq)]
struct Held {
    descriptors: usize,
    slots: usize,
    segments: Vec<String>,
    connections: u64,
}

fn held(daemon: &Daemon) -> Held {
    let part = format!("lapce_ipc_v2_{}", daemon.instance);
    let mut segments: Vec<String> = std::fs::read_dir("/dev/shm")
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().into_string().ok())
        .filter(|name| name.starts_with(&part))
        .collect();
    segments.sort();
    // The request for the metrics is a connection of the server too, so the descriptors come first.
    let descriptors = daemon.descriptors();
    Held {
        descriptors,
        slots: slots_taken(&daemon.control()),
        segments,
        connections: metric(daemon, "lapce_ipc_connections{transport=\"shm\"}"),
    }
}

fn slots_taken(control: &Path) -> usize {
    let bytes = std::fs::read(control).unwrap();
    let states = bytes[SLOTS_AT..].chunks_exact(SLOT_BYTES).take(SLOTS);
    assert_eq!(states.len(), SLOTS);
    states.filter(|slot| slot[0] != 0).count()
}

fn metric(daemon: &Daemon, name: &str) -> u64 {
    let metrics = daemon.get("/metrics");
    let line = metrics.lines().find_map(|line| line.strip_prefix(name));
    let value = line.unwrap_or_else(|| panic!("{name} in {metrics}"));
    value.trim().parse().unwrap()
}

/// How long the clients here may live at most.
fn life_max_us(daemon: &Daemon) -> u64 {
    let address = format!("shm:{}", daemon.instance);
    let begin = Instant::now();
    let output = run(COMMAND, &["ping", &address, "--count", "1"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    LIFE_MAX_US.max(LIVES * begin.elapsed().as_micros() as u64)
}

/// One client of a random kind, killed at a random point before `life_max_us`.
fn kill_one(daemon: &Daemon, random: &mut Random, life_max_us: u64) {
    let address = match random.below(3) {
        // Attached by way of TCP, which stays as the lifeline.
        0 => daemon.address.clone(),
        _ => format!("shm:{}", daemon.instance),
    };
    let window = ["1", "64"][random.below(2) as usize];
    // In one record, in a few, in more than a ring holds: those wait for room when they are killed.
    let size = ["64", "5000", "400000"][random.below(3) as usize];
    let idle = ["spin", "adaptive", "park"][random.below(3) as usize];
    let mut victim = Command::new(COMMAND)
        .args(["ping", &address, "--count", "1000000000"])
        .args(["--window", window, "--size", size, "--idle", idle])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_micros(random.below(life_max_us)));
    victim.kill().unwrap();
    victim.wait().unwrap();
}

#[test]
fn killed_clients_leave_nothing_and_disturb_nobody() {
    let kills = std::env::var("LAPCE_IPC_KILLS").map_or(30, |text| text.parse::<u64>().unwrap());
    let seed = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64 | 1;
    eprintln!("{kills} kills, seed {seed}");
    let mut random = Random(seed);

    let scratch = Scratch::new();
    let text = config(&scratch, "protocol_version = 2", "");
    let file = scratch.write("lapce-ipc.toml", &text);
    let daemon = Daemon::start(SERVER, &file, &scratch.instance(), &[]);
    // It may not hide a lost connection behind a new one.
    let witness = Client::builder()
        .reconnect(false)
        .timeout(PATIENCE)
        .connect(&format!("shm:{}", daemon.instance))
        .unwrap();
    assert_eq!(witness.transport(), Transport::Shm);
    witness.ping().unwrap();
    let before = held(&daemon);
    let life_max_us = life_max_us(&daemon);
    let before_total = metric(&daemon, "lapce_ipc_connections_total{transport=\"shm\"}");

    let stop = AtomicBool::new(false);
    let (calls, witness) = std::thread::scope(|scope| {
        let calls = scope.spawn(|| {
            let mut calls = 0u64;
            let mut answer = Vec::new();
            // Ends when all are killed, or with an error.
            while !stop.load(Ordering::Relaxed) {
                let payload = calls.to_le_bytes();
                answer.clear();
                witness
                    .call_into(msg_type::ECHO, &payload, &mut answer)
                    .unwrap_or_else(|error| panic!("after {calls} calls: {error}"));
                assert_eq!(answer, payload);
                calls += 1;
            }
            (calls, witness)
        });
        for _ in 0..kills {
            if calls.is_finished() {
                break;
            }
            kill_one(&daemon, &mut random, life_max_us);
        }
        stop.store(true, Ordering::Relaxed);
        calls.join().expect("the witness saw an error")
    });

    let total = metric(&daemon, "lapce_ipc_connections_total{transport=\"shm\"}");
    let attached = total - before_total;
    eprintln!("{attached} of them had attached; the witness made {calls} calls");
    assert!(attached > 0, "none lived long enough");
    let begin = Instant::now();
    let mut after = held(&daemon);
    // The server learns of deaths by itself; nobody connects meanwhile.
    while after != before && begin.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(50));
        after = held(&daemon);
    }
    assert_eq!(after, before);
    witness.ping().unwrap();
    drop(witness);
    assert_eq!(daemon.stop(), 0);
}
