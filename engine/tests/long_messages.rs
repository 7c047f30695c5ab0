//! Long messages over shared memory that have to wait for room in the server's budget: whatever comes
//! first, they are handled whole, once, and nothing in them is taken for something else.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use lapce_ai::ipc::{Client, Limits, Request, Responder, Server, ServerBuilder, msg_type};
use support::*;

const MIB: usize = 1 << 20;
const COUNTED: u16 = 0x0100;
const LONG_ANSWER: u16 = 0x0101;

/// A server with room for one long message and little beside, and its instance.
fn tight(name: &str, configure: impl FnOnce(ServerBuilder) -> ServerBuilder) -> (Server, String) {
    let instance = format!("{name}{}", std::process::id());
    let limits = Limits {
        max_message_bytes: 4 * MIB as u32,
        max_buffered_bytes: 5 * MIB as u64,
        ..Limits::default()
    };
    let server = configure(server().limits(limits).shm(&instance));
    (server.start().unwrap(), format!("shm:{instance}"))
}

fn connect(address: &str) -> Client {
    let builder = Client::builder().timeout(PATIENCE).shm_upgrade(false);
    builder.connect(address).unwrap()
}

#[test]
fn they_take_turns() {
    let (_server, address) = tight("turns", |server| server);
    std::thread::scope(|scope| {
        for number in 0..4_u8 {
            let address = &address;
            scope.spawn(move || {
                let client = connect(address);
                let payload = vec![number; 3 * MIB];
                for _ in 0..20 {
                    let answer = client.call(msg_type::ECHO, &payload).unwrap();
                    assert!(answer == payload, "the payload comes back as it was");
                }
            });
        }
    });
}

/// Payloads that consist of frames, whichever byte the server might begin to read them at.
#[test]
fn what_is_in_them_is_never_handled() {
    let handled = Arc::new(AtomicU64::new(0));
    let count = handled.clone();
    let (_server, address) = tight("inner", |server| {
        server.handler(COUNTED, move |_: Request<'_>, _: Responder<'_>| {
            count.fetch_add(1, Ordering::Relaxed);
        })
    });
    let inner = frame(0, COUNTED, 0, b"smuggled").repeat(3 * MIB / 32);
    std::thread::scope(|scope| {
        for number in 0..4_usize {
            let (address, mut payload) = (&address, inner.clone());
            scope.spawn(move || {
                let client = connect(address);
                payload.rotate_right(8 * number);
                for _ in 0..8 {
                    payload.rotate_right(4);
                    let answer = client.call(msg_type::ECHO, &payload).unwrap();
                    assert!(answer == payload, "the payload comes back as it was");
                }
            });
        }
    });
    assert_eq!(handled.load(Ordering::Relaxed), 0);
}

/// A message that was sent whole is handled, though its sender went while it waited.
#[test]
fn one_way_and_then_gone() {
    let handled = Arc::new(AtomicU64::new(0));
    let count = handled.clone();
    let (server, shm) = tight("gone", |server| {
        server
            .handler(COUNTED, move |_: Request<'_>, _: Responder<'_>| {
                count.fetch_add(1, Ordering::Relaxed);
            })
            .handler(LONG_ANSWER, |_: Request<'_>, responder: Responder<'_>| {
                responder.reply(&vec![1; 4 * MIB]);
            })
    });
    // Answers that are not read take the room.
    let reader = connect(&shm);
    for _ in 0..3 {
        reader.submit(LONG_ANSWER, b"").unwrap();
    }
    reader.flush().unwrap();
    std::thread::sleep(Duration::from_millis(100));
    for address in [shm, address(&server).to_string()] {
        connect(&address).send(COUNTED, &vec![2; 100_000]).unwrap();
    }
    // Long enough for a ring to get cold while it waits.
    std::thread::sleep(Duration::from_millis(300));
    while reader.in_flight() > 0 {
        reader.wait_with(|_| ()).unwrap();
    }
    eventually("both are handled", || handled.load(Ordering::Relaxed) == 2);
}

/// Others have a shorter one under way at almost every moment: the long one, which needs nearly all of the
/// room, does not wait for a moment without.
#[test]
fn shorter_ones_that_come_later_do_not_go_first() {
    let instance = format!("in_line{}", std::process::id());
    let limits = Limits {
        max_message_bytes: MIB as u32,
        max_buffered_bytes: MIB as u64 + 60 * 1024,
        ..Limits::default()
    };
    let server = server()
        .limits(limits)
        .shm(&instance)
        .handler(COUNTED, |_: Request<'_>, _: Responder<'_>| ())
        .start()
        .unwrap();
    let short = frame(0, COUNTED, 0, &vec![1; 70 * 1024]);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let mut peer = Peer::connect(address(&server));
            let (short, stop) = (&short, &stop);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    peer.send(short);
                }
            });
        }
        std::thread::sleep(Duration::from_millis(100));
        let payload = pattern(2, MIB);
        let mut answers = Vec::new();
        for address in [format!("shm:{instance}"), address(&server).to_string()] {
            let client = connect(&address);
            answers.extend((0..5).map(|_| client.call(msg_type::ECHO, &payload)));
        }
        stop.store(true, Ordering::Relaxed);
        for answer in answers {
            assert!(
                answer.unwrap() == payload,
                "the payload comes back as it was"
            );
        }
    });
}
