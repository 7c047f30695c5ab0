//! Requests that wait for a client that reads too little: they take a bounded amount of memory. In a process of its own,
//! where no other test's memory counts.

mod support;

use std::process::Command;
use std::time::{Duration, Instant};

use lapce_ai::ipc::{Client, Request, Responder};
use support::*;

/// Names the server to the process that asks it.
const CHILD: &str = "LAPCE_IPC_TEST_CHILD";

/// Asks for much more than it reads; the server's memory is looked at by the test below, in another process.
#[test]
fn child_that_asks_for_more_than_it_reads() {
    let Some(address) = std::env::var(CHILD).ok() else {
        return; // only as the child of the test below
    };
    let client = Client::builder()
        .max_inflight(1 << 20)
        .reconnect(false)
        .connect(&address)
        .unwrap();
    let start = Instant::now();
    let is_over = || start.elapsed() >= Duration::from_secs(3);
    while !is_over() {
        for _ in 0..20_000 {
            // Each may wait until an answer was read: on a slow machine all of them take more than a minute.
            if is_over() {
                break;
            }
            if client.in_flight() < 900_000 {
                client.submit(WORK, b"").unwrap();
            }
        }
        for _ in 0..50 {
            client.poll_with(|_| ()).unwrap();
        }
    }
    // Without waiting for all that was asked for.
    std::process::exit(0);
}

#[test]
fn requests_that_wait_in_the_server_are_bounded() {
    let instance = format!("waits{}", std::process::id());
    let builder = server()
        .shm(&instance)
        .handler(WORK, |_: Request<'_>, responder: Responder<'_>| {
            responder.reply(&[1; 600_000])
        });
    let server = builder.start().unwrap();
    let mut other = Peer::connect(address(&server));
    let before = resident_bytes();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_that_asks_for_more_than_it_reads"])
        .env(CHILD, format!("shm:{instance}"))
        .spawn()
        .unwrap();
    let mut most = 0;
    while child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(50));
        other.expect_alive();
        most = most.max(resident_bytes().saturating_sub(before));
    }
    assert!(child.wait().unwrap().success());
    assert!(most < 12 << 20, "{most} bytes");
}
