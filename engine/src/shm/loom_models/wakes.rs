//! No wake-up is lost: the futex of these models has no timer, so a lost one is a deadlock.

use std::sync::Arc;
use std::time::Duration;

use loom::thread;

use super::ends::Ends;
use super::layout::RECORD_MAX;
use super::sync::{Ordering, Segment, futex};
use super::{check, connection, doorbell, pattern, take};

/// The bit of the models' only connection.
const BIT: usize = 5;

/// As `ClientEnd::wake_server`.
fn wake_server(ends: &Ends, control: &Segment) {
    if ends.peer_needs_waking() {
        doorbell::set_ready(control, 0, BIT);
        doorbell::ring(control.word32(0));
    }
}

/// As the client's sleep; ends before the limit, or never.
fn client_sleeps(ends: &Ends, control: &Segment, for_room: bool) {
    ends.sleep(for_room, Duration::MAX, || wake_server(ends, control));
}

/// The server's worker with one connection.
struct Server {
    ends: Ends,
    control: Arc<Segment>,
    asleep: doorbell::Asleep,
    /// It looks at the connection by itself. A cold one is not looked at until it rings.
    hot: bool,
}

impl Server {
    fn new(ends: Ends, control: &Arc<Segment>) -> Server {
        Server {
            ends,
            control: control.clone(),
            asleep: doorbell::Asleep::new(),
            hot: true,
        }
    }

    /// As `Worker::cool`, `park` and `take_rung`. Says whether the connection rang.
    fn sleep(&mut self) -> bool {
        let rx = &self.ends.rx;
        if self.hot {
            rx.wait_on(None);
            if rx.has_record() || self.ends.peer_closed() {
                rx.wait_no_more();
                return false;
            }
            self.hot = false;
        }
        let word = self.control.word32(0);
        self.asleep.fall_asleep(word);
        if !doorbell::has_ready(&self.control, 0) {
            futex::wait(word, doorbell::SLEEPING, None);
        }
        self.asleep.wake_up(word);
        let mut rung = false;
        doorbell::take_ready(&self.control, 0, |bit| {
            assert_eq!(bit, BIT);
            rung = true;
        });
        if rung && !self.hot {
            rx.wait_no_more();
            self.hot = true;
        }
        rung
    }

    /// Takes the next record, when it is there.
    fn wait_for(&mut self, expected: &[u8]) {
        while !self.hot || !take(&mut self.ends.rx, expected) {
            self.sleep();
        }
    }
}

/// The client sends and the server sleeps; `count` requests, one after the other, each answered.
fn echo(count: usize) {
    let (mut client, server) = connection();
    let control = Arc::new(Segment::control());
    let mut server = Server::new(server, &control);
    let caller = thread::spawn(move || {
        for seed in 0..count {
            assert!(client.tx.push(&pattern(20, seed), client.rx.position()));
            wake_server(&client, &control);
            while !take(&mut client.rx, &pattern(20, seed)) {
                client_sleeps(&client, &control, false);
            }
            client.rx.publish();
        }
    });
    for seed in 0..count {
        server.wait_for(&pattern(20, seed));
        let ends = &mut server.ends;
        assert!(ends.tx.push(&pattern(20, seed), ends.rx.position()));
        ends.wake_peer();
    }
    caller.join().unwrap();
}

#[test]
fn a_request_and_its_answer_wake_the_sleepers() {
    check(4, || echo(1));
}

#[test]
fn so_do_the_next() {
    check(2, || echo(2));
}

/// The client fills the ring and sleeps for room; the server, awake, makes it.
#[test]
fn a_client_that_waits_for_room_is_woken() {
    check(3, || {
        let (mut client, server) = connection();
        let control = Arc::new(Segment::control());
        let mut server = Server::new(server, &control);
        // Three of the longest records fill the ring.
        for seed in 0..3 {
            assert!(client.tx.push(&pattern(RECORD_MAX, seed), 0));
        }
        let producer = thread::spawn(move || {
            // Ends when the server has taken one.
            while !client.tx.push(&pattern(RECORD_MAX, 3), 0) {
                client_sleeps(&client, &control, true);
            }
            wake_server(&client, &control);
        });
        for seed in 0..4 {
            server.wait_for(&pattern(RECORD_MAX, seed));
            server.ends.wake_peer();
        }
        producer.join().unwrap();
    });
}

/// The server's answers fill the ring and it sleeps; the client makes room.
#[test]
fn a_server_that_waits_for_room_is_woken() {
    check(3, || {
        let (mut client, server) = connection();
        let control = Arc::new(Segment::control());
        let mut server = Server::new(server, &control);
        for seed in 0..3 {
            assert!(server.ends.tx.push(&pattern(RECORD_MAX, seed), 0));
        }
        let consumer = thread::spawn(move || {
            for seed in 0..4 {
                while !take(&mut client.rx, &pattern(RECORD_MAX, seed)) {
                    client_sleeps(&client, &control, false);
                }
                client.rx.publish();
                wake_server(&client, &control);
            }
        });
        let last = pattern(RECORD_MAX, 3);
        // Ends when the client has taken one.
        loop {
            // As `Outgoing::flush_to_ring`: once more after it has said that it wants room, and
            // again when the connection rings.
            let tx = &mut server.ends.tx;
            if tx.push(&last, 0) {
                break;
            }
            tx.want_room(true);
            if tx.push(&last, 0) {
                break;
            }
            while !server.sleep() {}
        }
        server.ends.tx.want_room(false);
        server.ends.wake_peer();
        consumer.join().unwrap();
    });
}

/// A side that goes in an orderly way wakes the other.
#[test]
fn the_end_wakes_a_server() {
    check(4, || {
        let (client, server) = connection();
        let control = Arc::new(Segment::control());
        let mut server = Server::new(server, &control);
        // As `ClientEnd::drop`.
        let client = thread::spawn(move || {
            client.close();
            doorbell::set_ready(&control, 0, BIT);
            doorbell::ring(control.word32(0));
        });
        while !server.hot || !server.ends.peer_closed() {
            server.sleep();
        }
        client.join().unwrap();
    });
}

#[test]
fn the_end_wakes_a_client() {
    check(4, || {
        let (client, server) = connection();
        let control = Segment::control();
        let server = thread::spawn(move || server.close_and_wake());
        while !client.peer_closed() {
            client_sleeps(&client, &control, false);
        }
        server.join().unwrap();
    });
}

/// Somebody rings for what the worker does not look at once more, then for what it does.
#[test]
fn a_ring_for_nothing_does_not_silence_the_next() {
    check(4, || {
        let shared = Arc::new((doorbell::Asleep::new(), Segment::control()));
        let there = loom::sync::Arc::new(loom::sync::atomic::AtomicBool::new(false));
        let ringer = thread::spawn({
            let (shared, there) = (shared.clone(), there.clone());
            move || {
                let (asleep, control) = &*shared;
                asleep.ring(control.word32(0));
                there.store(true, Ordering::Release);
                asleep.ring(control.word32(0));
            }
        });
        let (asleep, control) = &*shared;
        let word = control.word32(0);
        // As `Worker::park`.
        while !there.load(Ordering::Acquire) {
            asleep.fall_asleep(word);
            if !there.load(Ordering::Acquire) {
                futex::wait(word, doorbell::SLEEPING, None);
            }
            asleep.wake_up(word);
        }
        ringer.join().unwrap();
    });
}
