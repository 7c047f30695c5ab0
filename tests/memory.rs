//! What long messages took of a daemon's memory is given back while their clients stay connected and are silent, in
//! every mode.

mod support;

use std::time::{Duration, Instant};

use lapce_ai::ipc::{Client, Transport, msg_type};
use support::*;

/// What a daemon may have taken more than before the load: it keeps a few small buffers.
const KEPT_BYTES_MAX: u64 = 500_000;

/// Bytes of memory that the daemon shares with no file: its own, and that of its rings.
fn taken_bytes(daemon: &Daemon) -> u64 {
    bytes_of(daemon, "RssAnon") + bytes_of(daemon, "RssShmem")
}

fn bytes_of(daemon: &Daemon, name: &str) -> u64 {
    let status = format!("/proc/{}/status", daemon.child.id());
    let status = std::fs::read_to_string(status).unwrap();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap();
    let kib = line.split_whitespace().nth(1).unwrap();
    1024 * kib.parse::<u64>().unwrap()
}

/// Waits until the daemon has given memory back.
fn expect_given_back(mode: &str, taken_bytes: impl Fn() -> u64, before: u64) {
    let start = Instant::now();
    loop {
        // It may be less than before: of the rings, too, all pages are given back.
        let kept = taken_bytes().saturating_sub(before);
        if kept <= KEPT_BYTES_MAX {
            return;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "{mode}: {kept}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn silence_after_long_messages_takes_no_memory() {
    let long = vec![7; 1 << 20];
    for mode in ["spin", "adaptive", "park"] {
        let scratch = Scratch::new();
        let keys = format!("{NEW}\nidle = \"{mode}\"");
        let daemon = start(&scratch, &config(&scratch, &keys, COMPATIBILITY), &[]);
        let shm = format!("shm:{}", scratch.instance());
        let clients = [daemon.address.as_str(), &shm].map(|address| {
            let builder = Client::builder().shm_upgrade(false);
            builder.connect(address).unwrap()
        });
        assert_eq!(
            clients.each_ref().map(Client::transport),
            [Transport::Tcp, Transport::Shm]
        );
        for client in &clients {
            client.call(msg_type::ECHO, b"first").unwrap();
        }
        let before = taken_bytes(&daemon);
        for client in &clients {
            for _ in 0..20 {
                assert_eq!(client.call(msg_type::ECHO, &long).unwrap(), long);
            }
        }
        expect_given_back(mode, || taken_bytes(&daemon), before);
        drop(clients);
        assert_eq!(daemon.stop(), 0);
    }
}

/// Where they waited for room in the ring is given back too, although the daemon had rested when they were read.
#[test]
fn silence_after_answers_that_were_read_late_takes_no_memory() {
    let payload = vec![7; 250_000];
    for mode in ["spin", "adaptive", "park"] {
        let scratch = Scratch::new();
        let keys = format!("{NEW}\nidle = \"{mode}\"");
        let daemon = start(&scratch, &config(&scratch, &keys, COMPATIBILITY), &[]);
        let client = Client::builder()
            .connect(&format!("shm:{}", scratch.instance()))
            .unwrap();
        client.call(msg_type::ECHO, b"first").unwrap();
        let own_bytes = || bytes_of(&daemon, "RssAnon");
        let before = own_bytes();
        // As many as the daemon takes while none is read.
        let ids: Vec<u64> = (0..4)
            .map(|_| client.submit(msg_type::ECHO, &payload).unwrap())
            .collect();
        client.flush().unwrap();
        std::thread::sleep(Duration::from_millis(100));
        for id in ids {
            assert_eq!(client.wait(id).unwrap(), payload);
        }
        expect_given_back(mode, own_bytes, before);
        drop(client);
        assert_eq!(daemon.stop(), 0);
    }
}
