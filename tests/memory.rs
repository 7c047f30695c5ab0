//! What long messages took of a daemon's memory is given back while their clients stay connected and are silent, in
//! every mode.

mod support;

use std::time::{Duration, Instant};

use lapce_ai::ipc::{Client, Transport, msg_type};
use support::*;

/// What a daemon may have taken more than before the load: it keeps a few small buffers.
const KEPT_BYTES_MAX: u64 = 500_000;

/// Bytes of memory that the daemon shares with no file.
fn taken_bytes(daemon: &Daemon) -> u64 {
    let status = format!("/proc/{}/status", daemon.child.id());
    let status = std::fs::read_to_string(status).unwrap();
    let kib = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace()
            .nth(1)
            .unwrap()
            .parse::<u64>()
            .unwrap()
    };
    1024 * (kib("RssAnon") + kib("RssShmem"))
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
        let start = Instant::now();
        while taken_bytes(&daemon) > before + KEPT_BYTES_MAX {
            let kept = taken_bytes(&daemon) - before;
            assert!(start.elapsed() < Duration::from_secs(20), "{mode}: {kept}");
            std::thread::sleep(Duration::from_millis(20));
        }
        drop(clients);
        assert_eq!(daemon.stop(), 0);
    }
}
