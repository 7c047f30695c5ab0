//! One connection that asks for much, and others that wait for their turn: for milliseconds, not longer.

mod support;

use std::io::Write;
use std::net::TcpStream;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lapce_ai::ipc::{Client, Deferred, IdleMode, Request, Responder, Server};
use support::*;

/// Set for a process that a test starts.
const CHILD: &str = "LAPCE_IPC_TEST_CHILD";
/// A round trip takes microseconds; a machine that does other work needs room.
const TURN_MAX: Duration = Duration::from_millis(60);

/// A connection that asks now and then, and how long it waited at most.
struct Other {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Duration>,
}

impl Other {
    fn start(server: &Server) -> Other {
        let stop = Arc::new(AtomicBool::new(false));
        let mut peer = Peer::connect(address(server));
        let asked = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut longest = Duration::ZERO;
            while !asked.load(Ordering::Relaxed) {
                let start = Instant::now();
                peer.expect_alive();
                longest = longest.max(start.elapsed());
                std::thread::sleep(Duration::from_micros(300));
            }
            longest
        });
        Other { stop, thread }
    }

    fn longest(self) -> Duration {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// A server whose handler takes some time.
fn busy_server(takes: Duration, shm: Option<&str>) -> Server {
    let mut builder = server();
    if let Some(instance) = shm {
        builder = builder.shm(instance);
    }
    let handler = move |_: Request<'_>, responder: Responder<'_>| {
        let start = Instant::now();
        while start.elapsed() < takes {}
        responder.reply(b"");
    };
    builder.handler(WORK, handler).start().unwrap()
}

/// Sends these bytes until the connection ends.
fn flood(server: &Server, bytes: Vec<u8>) -> JoinHandle<()> {
    let mut stream = TcpStream::connect(address(server)).unwrap();
    std::thread::spawn(move || while stream.write_all(&bytes).is_ok() {})
}

/// The machine may stall, once or twice; a server that keeps others waiting does so every time.
fn soon_in_one_of_five(limit: Duration, longest: impl Fn() -> Duration) {
    let mut all = Vec::new();
    while all.len() < 5 {
        let longest = longest();
        if longest < limit {
            return;
        }
        all.push(longest);
    }
    panic!("{all:?}");
}

/// How long another waits for its answers, at most, while one floods the server.
fn longest_beside(server: Server, flooding: JoinHandle<()>) -> Duration {
    std::thread::sleep(Duration::from_millis(300));
    let other = Other::start(&server);
    std::thread::sleep(Duration::from_secs(1));
    let longest = other.longest();
    drop(server);
    flooding.join().unwrap();
    longest
}

#[test]
fn many_small_messages_are_handled_in_turns() {
    soon_in_one_of_five(TURN_MAX, || {
        let server = busy_server(Duration::from_micros(10), None);
        let flooding = flood(&server, frame(0, WORK, 0, b"").repeat(4000));
        longest_beside(server, flooding)
    });
}

#[test]
fn many_small_messages_over_shared_memory_are_handled_in_turns() {
    soon_in_one_of_five(TURN_MAX, || {
        let instance = format!("fair{}", std::process::id());
        let server = busy_server(Duration::from_micros(30), Some(&instance));
        let flooding = std::thread::spawn(move || {
            let builder = Client::builder().reconnect(false);
            let client = builder.connect(&format!("shm:{instance}")).unwrap();
            while client.send(WORK, b"").is_ok() {}
        });
        longest_beside(server, flooding)
    });
}

/// That one connection's were quick says nothing of another's: two hundred of these were handled before
/// anybody looked at the clock.
#[test]
fn slow_ones_behind_many_quick_ones_are_handled_in_turns() {
    soon_in_one_of_five(2 * TURN_MAX, || {
        let slow = |_: Request<'_>, responder: Responder<'_>| {
            std::thread::sleep(Duration::from_millis(1));
            responder.reply(b"");
        };
        let quick = |_: Request<'_>, responder: Responder<'_>| responder.reply(b"");
        let builder = server().handler(WORK, slow).handler(WORK + 1, quick);
        let server = builder.start().unwrap();
        let flooding = flood(&server, frame(0, WORK + 1, 0, b"").repeat(4000));
        let mut peer = Peer::connect(address(&server));
        let other = Other::start(&server);
        for _ in 0..4 {
            std::thread::sleep(Duration::from_millis(400));
            peer.send(&frame(0, WORK, 0, b"").repeat(200));
        }
        std::thread::sleep(Duration::from_millis(400));
        let longest = other.longest();
        drop(server);
        flooding.join().unwrap();
        longest
    });
}

/// A worker that spins receives from the one that speaks alone by calls of its own: it must look for the others too,
/// whether that one goes on or is silent.
#[test]
fn beside_one_that_speaks_alone_others_are_served() {
    for goes_on in [false, true] {
        let (builder, taken) = handing_over();
        let server = builder.idle(IdleMode::Spin).start().unwrap();
        let soon = |mut peer: Peer| {
            let limit = Some(Duration::from_secs(10));
            peer.stream.set_read_timeout(limit).unwrap();
            peer.expect_alive();
            peer
        };
        let mut alone = Peer::connect(address(&server));
        let mut owed = soon(Peer::connect(address(&server)));
        let speaks = goes_on.then(|| Other::start(&server));
        for id in 1..=100 {
            owed.send(&request(WORK, id, b""));
            let deferred = taken.recv_timeout(PATIENCE).unwrap();
            for _ in 0..4 {
                alone.expect_alive();
            }
            let mut other = soon(Peer::connect(address(&server)));
            for _ in 0..4 {
                alone.expect_alive();
            }
            other.finish_sending();
            other.expect_end();
            for _ in 0..4 {
                alone.expect_alive();
            }
            deferred.reply(b"late").unwrap();
            assert_eq!(owed.receive().msg_id, id);
        }
        speaks.map(Other::longest);
    }
}

/// One answer is not read, and does not keep the server from what waits for its turn when the client goes:
/// some thirty of these messages were handled.
#[test]
fn what_waits_for_its_turn_is_handled_though_its_client_has_gone() {
    const MESSAGES: usize = 3_000;
    let instance = format!("gone{}", std::process::id());
    let (sender, handled) = mpsc::channel();
    let work = move |_: Request<'_>, _: Responder<'_>| {
        let start = Instant::now();
        while start.elapsed() < Duration::from_micros(50) {}
        sender.send(()).unwrap();
    };
    // More than a ring holds.
    let long = |_: Request<'_>, responder: Responder<'_>| responder.reply(&[1; 400_000]);
    let builder = server().handler(WORK, work).handler(WORK + 1, long);
    let _server = builder.shm(&instance).start().unwrap();
    let client = Client::connect(&format!("shm:{instance}")).unwrap();
    client.submit(WORK + 1, b"").unwrap();
    for _ in 0..MESSAGES {
        client.send(WORK, b"").unwrap();
    }
    drop(client);
    for number in 0..MESSAGES {
        let came = handled.recv_timeout(Duration::from_secs(10));
        assert_eq!(came, Ok(()), "{number}");
    }
}

/// Rings that got cold while what had come over them was handled, since others' were to be looked at, and
/// whose clients have said all they have to say: a part of it stayed there for ever.
#[test]
fn more_rings_than_are_hot_are_all_handled_to_the_end() {
    const CLIENTS: u64 = 60;
    let instance = format!("rings{}", std::process::id());
    let handled = Arc::new(AtomicU64::new(0));
    let count = handled.clone();
    let work = move |_: Request<'_>, _: Responder<'_>| {
        let start = Instant::now();
        while start.elapsed() < Duration::from_micros(5) {}
        count.fetch_add(1, Ordering::Relaxed);
    };
    let _server = server().handler(WORK, work).shm(&instance).start().unwrap();
    let sending: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let (messages, to) = (1500 + number * 37, format!("shm:{instance}"));
            std::thread::spawn(move || {
                let client = Client::connect(&to).unwrap();
                for _ in 0..messages {
                    client.send(WORK, &[7; 100]).unwrap();
                }
                (client, messages)
            })
        })
        .collect();
    let sent: Vec<_> = sending.into_iter().map(|it| it.join().unwrap()).collect();
    let all: u64 = sent.iter().map(|(_, messages)| messages).sum();
    eventually("all are handled", || handled.load(Ordering::Relaxed) == all);
}

/// Answers that are all there at once are summed and copied in turns too.
#[test]
fn long_answers_that_come_together_are_delivered_in_turns() {
    const ANSWERS: u64 = 250;
    soon_in_one_of_five(TURN_MAX, || {
        let (sender, taken) = mpsc::channel::<Deferred>();
        let server = serving(move |_, responder| sender.send(responder.detach()).unwrap());
        let mut peers: Vec<_> = (0..ANSWERS)
            .map(|_| Peer::connect(address(&server)))
            .collect();
        let all: Vec<_> = peers
            .iter_mut()
            .map(|peer| {
                peer.send(&request(WORK, 1, b""));
                let deferred = taken.recv_timeout(PATIENCE).unwrap();
                (deferred, vec![1; 1 << 20])
            })
            .collect();
        let other = Other::start(&server);
        std::thread::sleep(Duration::from_millis(100));
        for (deferred, payload) in all {
            deferred.reply(payload).unwrap();
        }
        for peer in &mut peers {
            assert_eq!(peer.receive().payload.len(), 1 << 20);
        }
        other.longest()
    });
}

/// Without multishot receive (before Linux 6.0) those who always send had all the receive buffers.
#[test]
fn on_an_old_kernel_too_everybody_gets_a_buffer() {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_with_more_who_send_than_buffers"])
        .env(CHILD, "1")
        .env(
            "LAPCE_IPC_URING_WITHOUT",
            "multishot_receive,multishot_accept,defer_taskrun,futex_wait",
        )
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
}

#[test]
fn child_with_more_who_send_than_buffers() {
    if std::env::var_os(CHILD).is_none() {
        return; // only as the child of the test above
    }
    let server = busy_server(Duration::from_micros(20), None);
    let bytes = frame(0, WORK, 0, &[7; 16_000]).repeat(8);
    let flooding: Vec<_> = (0..24).map(|_| flood(&server, bytes.clone())).collect();
    std::thread::sleep(Duration::from_millis(300));
    let mut peer = Peer::connect(address(&server));
    let short = Some(Duration::from_secs(5));
    peer.stream.set_read_timeout(short).unwrap();
    for _ in 0..20 {
        peer.expect_alive();
    }
    drop(server);
    for thread in flooding {
        thread.join().unwrap();
    }
}
