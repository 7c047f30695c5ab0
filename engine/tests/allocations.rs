//! In the steady state a message costs no heap allocation, neither on the server nor in the
//! client. Counted by an allocator of this test binary's own, over all threads.

#![allow(unsafe_code)] // a global allocator cannot be written without

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use lapce_ai::ipc::{Client, IdleMode, Server, msg_type};
use support::*;

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: everything is handed on to the system's allocator as it came; counting does not touch
// the memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as above; `memory` came from the system's allocator, as all of ours does.
        unsafe { System.realloc(memory, layout, size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Tests of this file run one at a time: the count is the process's.
static ALONE: Mutex<()> = Mutex::new(());

/// A test thread of the harness may still be on its way out, so the least of some tries counts: if
/// messages allocated, every try would show it.
fn least_allocations(tries: usize, mut work: impl FnMut()) -> u64 {
    (0..tries)
        .map(|_| {
            let before = ALLOCATIONS.load(Ordering::Relaxed);
            work();
            ALLOCATIONS.load(Ordering::Relaxed) - before
        })
        .min()
        .unwrap()
}

/// Messages of one try.
const MESSAGES: u64 = 1000;

fn pair(idle: IdleMode) -> (Server, Client) {
    let server = server().idle(idle).start().unwrap();
    let client = Client::builder()
        .idle(idle)
        .timeout(PATIENCE)
        .connect(&address(&server).to_string())
        .unwrap();
    (server, client)
}

#[test]
fn calls() {
    let _alone = ALONE.lock().unwrap_or_else(|poison| poison.into_inner());
    for idle in [IdleMode::Spin, IdleMode::Adaptive, IdleMode::Park] {
        let (_server, client) = pair(idle);
        for size in [0, 64, 1000, 4096] {
            let payload = pattern(size, size as usize);
            let mut answer = Vec::new();
            let mut call = || {
                client
                    .call_into(msg_type::ECHO, &payload, &mut answer)
                    .unwrap();
                assert!(answer == payload);
            };
            (0..MESSAGES).for_each(|_| call());
            let least = least_allocations(5, || (0..MESSAGES).for_each(|_| call()));
            assert_eq!(least, 0, "for {MESSAGES} calls of {size} bytes, {idle}");
        }
    }
}

#[test]
fn pipelining() {
    let _alone = ALONE.lock().unwrap_or_else(|poison| poison.into_inner());
    let (_server, client) = pair(IdleMode::Spin);
    // Sizes of which receive buffers hold no whole number, so that frames are cut in two.
    for (size, window) in [(64, 256), (1000, 64), (4096, 16)] {
        let payload = pattern(size, size as usize);
        let run = || {
            let (mut submitted, mut done) = (0, 0);
            while done < MESSAGES {
                while submitted < MESSAGES && submitted - done < window {
                    client.submit(msg_type::ECHO, &payload).unwrap();
                    submitted += 1;
                }
                done += client
                    .wait_with(|answer| assert!(answer.result.unwrap() == payload))
                    .unwrap() as u64;
            }
        };
        (0..5).for_each(|_| run());
        let least = least_allocations(5, run);
        assert_eq!(
            least, 0,
            "for {MESSAGES} messages of {size} bytes, {window} at a time"
        );
    }
}

#[test]
fn several_connections() {
    let _alone = ALONE.lock().unwrap_or_else(|poison| poison.into_inner());
    let (server, first) = pair(IdleMode::Spin);
    let mut clients = vec![first];
    for _ in 0..39 {
        let client = Client::builder()
            .idle(IdleMode::Spin)
            .timeout(PATIENCE)
            .connect(&address(&server).to_string())
            .unwrap();
        clients.push(client);
    }
    // Each speaks in sizes of its own, and they change: buffers go from one to the other.
    let payloads: Vec<_> = [0, 64, 4096].map(|size| pattern(5, size)).into();
    let run = || {
        for round in 0..30 {
            for (index, client) in clients.iter().enumerate() {
                let payload = &payloads[(index + round) % payloads.len()];
                (0..3).for_each(|_| {
                    client.submit(msg_type::ECHO, payload).unwrap();
                });
                client.flush().unwrap();
            }
            for (index, client) in clients.iter().enumerate() {
                let payload = &payloads[(index + round) % payloads.len()];
                let mut done = 0;
                while done < 3 {
                    done += client
                        .wait_with(|answer| assert!(answer.result.unwrap() == payload))
                        .unwrap();
                }
            }
        }
    };
    (0..5).for_each(|_| run());
    let least = least_allocations(5, run);
    assert_eq!(least, 0, "for 3600 messages on 40 connections");
}

#[test]
fn the_counter_counts() {
    let _alone = ALONE.lock().unwrap_or_else(|poison| poison.into_inner());
    let (_server, client) = pair(IdleMode::Spin);
    let least = least_allocations(3, || {
        // `call` makes a Vec for each answer.
        (0..100).for_each(|_| drop(client.call(msg_type::ECHO, b"x").unwrap()));
    });
    assert!(least >= 100, "{least}");
}
