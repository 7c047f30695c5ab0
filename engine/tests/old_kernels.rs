//! The ways that older kernels take, with the abilities of newer ones switched off; several
//! workers; and each waiting mode.
//!
//! The switch is read from the environment, so each run is a process of its own: this test binary
//! once more, with one test.

mod support;

use std::process::{Command, Stdio};
use std::time::Duration;

use lapce_ai::ipc::{Client, Deferred, IdleMode, Limits, Request, Responder, Server, Transport};
use support::*;

const WITHOUT: &str = "LAPCE_IPC_URING_WITHOUT";
const CHILD: &str = "LAPCE_IPC_TEST_CHILD";
const LATER: u16 = 0x0100;

fn run_without(features: &str) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_smoke", "--nocapture"])
        .env(WITHOUT, features)
        .env(CHILD, "1")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "without {features}: {}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn without_everything() {
    run_without("multishot_receive,multishot_accept,defer_taskrun,futex_wait");
}

#[test]
fn without_multishot_receive() {
    run_without("multishot_receive");
}

#[test]
fn without_multishot_accept() {
    run_without("multishot_accept");
}

#[test]
fn without_defer_taskrun() {
    run_without("defer_taskrun");
}

#[test]
fn without_futex_wait() {
    run_without("futex_wait");
}

#[test]
fn without_multishot_at_all() {
    run_without("multishot_receive,multishot_accept");
}

#[test]
fn with_everything() {
    run_without("");
}

#[test]
fn child_smoke() {
    if std::env::var_os(CHILD).is_none() {
        return; // only as the child of the tests above
    }
    // Two spinning workers would leave the clients no CPU on a small machine.
    smoke(IdleMode::Spin, 1);
    for idle in [IdleMode::Adaptive, IdleMode::Park] {
        for workers in [1, 2] {
            smoke(idle, workers);
        }
    }
    stalled();
    flooded();
}

#[test]
fn an_unknown_ability_is_refused_at_start() {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_that_does_not_start", "--nocapture"])
        .env(WITHOUT, "warp_drive")
        .env(CHILD, "1")
        .output()
        .unwrap();
    assert!(output.status.success());
}

#[test]
fn child_that_does_not_start() {
    if std::env::var_os(CHILD).is_none() {
        return; // only as the child of the test above
    }
    let error = server().start().unwrap_err();
    assert!(error.to_string().contains("warp_drive"), "{error}");
}

fn start(idle: IdleMode, workers: usize) -> Server {
    let limits = Limits {
        max_connections: 220,
        frame_timeout_ms: 1500,
        ..Limits::default()
    };
    server()
        .workers(workers)
        .idle(idle)
        .limits(limits)
        .legacy(true)
        .handler(LATER, |request: Request<'_>, responder: Responder<'_>| {
            let (deferred, payload): (Deferred, _) =
                (responder.detach(), request.payload().to_vec());
            std::thread::spawn(move || deferred.reply(payload));
        })
        .start()
        .unwrap()
}

/// A little of everything.
fn smoke(idle: IdleMode, workers: usize) {
    let server = start(idle, workers);
    let name = address(&server).to_string();
    // Calls, one after the other, of all sizes.
    let client = Client::builder()
        .idle(idle)
        .timeout(PATIENCE)
        .connect(&name)
        .unwrap();
    for (n, size) in [0, 1, 100, 16_384, 70_000, 1_000_000, 10 * 1024 * 1024]
        .into_iter()
        .enumerate()
    {
        let payload = pattern(n as u64, size);
        assert!(client.call(ECHO, &payload).unwrap() == payload);
    }
    // After a pause long enough to fall asleep.
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(client.call(LATER, b"later").unwrap(), b"later");
    // Pipelined on several connections, with deferred ones in between.
    let threads: Vec<_> = (0..4u64)
        .map(|seed| {
            let name = name.clone();
            std::thread::spawn(move || pipeline(idle, &name, seed))
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    limits(&server);
    let mut waiting = Peer::connect(address(&server));
    waiting.expect_alive();
    server.stop();
    waiting.expect_gone();
}

fn pipeline(idle: IdleMode, name: &str, seed: u64) {
    let client = Client::builder()
        .idle(idle)
        .timeout(PATIENCE)
        .connect(name)
        .unwrap();
    let mut sent = std::collections::HashMap::new();
    let mut done = 0;
    let mut next = 0u64;
    while done < 1500 {
        while next < 1500 && sent.len() < 100 {
            let payload = pattern(seed * 10_000 + next, (next * 17 % 900) as usize);
            let msg_type = if next % 50 == 7 { LATER } else { ECHO };
            let id = client.submit(msg_type, &payload).unwrap();
            sent.insert(id, payload);
            next += 1;
        }
        done += client
            .wait_with(|answer| {
                let expected = sent.remove(&answer.id).expect("once each");
                assert!(answer.result.unwrap() == expected);
            })
            .unwrap();
    }
    assert!(sent.is_empty());
}

fn limits(server: &Server) {
    // Refusals, closed in an orderly way.
    let mut peer = Peer::connect(address(server));
    let mut bad = echo(2, b"damaged");
    bad[26] ^= 1;
    peer.send(&[echo(1, b"good"), bad].concat());
    peer.expect_echo(1, b"good");
    assert_eq!(peer.receive().error().0, 3);
    peer.expect_end();
    let mut legacy = Peer::connect(address(server));
    legacy.send(&frame_v1(ECHO, 1, b"old"));
    assert_eq!(legacy.try_receive_v1().unwrap().payload, b"old");
    drop((peer, legacy));
    // Coming and going.
    let before = server.stats().connections_total(Transport::Tcp);
    for _ in 0..200 {
        let mut peer = Peer::connect(address(server));
        peer.send(&echo(1, b"x")[..7]);
    }
    eventually("all came, and all but one are gone", || {
        let stats = server.stats();
        stats.connections_total(Transport::Tcp) == before + 200
            && stats.connections(Transport::Tcp) == 1
    });
    // Too many at once.
    let mut peers: Vec<_> = (0..219).map(|_| Peer::connect(address(server))).collect();
    for peer in &mut peers {
        peer.expect_alive();
    }
    let mut refused = Peer::connect(address(server));
    assert_eq!(refused.receive().error().0, 8);
    refused.expect_end();
    for peer in &mut peers {
        peer.expect_alive();
    }
    drop((peers, refused));
    eventually("places are free", || {
        server.stats().connections(Transport::Tcp) == 1
    });
}

/// A peer that never reads while others speak: however its receives are stopped, they stay so.
fn flooded() {
    const FLOOD: usize = 100 * 1024 * 1024;
    let server = start(IdleMode::Adaptive, 1);
    let name = address(&server).to_string();
    for _ in 0..3 {
        let peer = Peer::connect(address(&server));
        let mut writer = peer.try_clone();
        let sent = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let progress = sent.clone();
        let writing = std::thread::spawn(move || {
            let bytes = echo(1, &[7; 3000]).repeat(10);
            for _ in 0..FLOOD / bytes.len() {
                if std::io::Write::write_all(&mut writer.stream, &bytes).is_err() {
                    return;
                }
                progress.fetch_add(bytes.len(), std::sync::atomic::Ordering::Relaxed);
            }
        });
        pipeline(IdleMode::Adaptive, &name, 9);
        std::thread::sleep(Duration::from_millis(300));
        let sent = sent.load(std::sync::atomic::Ordering::Relaxed);
        assert!(sent < FLOOD / 2, "the server took {sent} bytes");
        peer.stream.shutdown(std::net::Shutdown::Both).unwrap();
        writing.join().unwrap();
    }
}

/// Half a frame, and a late reader.
fn stalled() {
    let server = start(IdleMode::Adaptive, 1);
    let mut half = Peer::connect(address(&server));
    half.send(&echo(1, b"half")[..20]);
    let mut peer = Peer::connect(address(&server));
    let mut writer = peer.try_clone();
    let writing = std::thread::spawn(move || {
        for id in 1..=4000 {
            writer.send(&echo(id, &pattern(id, 3000)));
        }
    });
    std::thread::sleep(Duration::from_millis(300));
    for id in 1..=4000 {
        peer.expect_echo(id, &pattern(id, 3000));
    }
    writing.join().unwrap();
    assert_eq!(half.receive().error().0, 11);
    half.expect_end();
}
