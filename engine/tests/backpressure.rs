//! Peers that do not read, or read late: memory stays bounded, and what is read in the end is
//! whole and in order.

mod support;

use std::io::{ErrorKind, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lapce_ai::ipc::{
    Client, Deferred, ErrorCode, Gone, Limits, Request, Responder, Server, Transport,
};
use support::*;

/// Answers with many times what was asked.
const BLOW_UP: u16 = 0x0100;
const FACTOR: usize = 64;

fn blowing_server(limits: Limits) -> Server {
    server()
        .limits(limits)
        .handler(BLOW_UP, |request: Request<'_>, responder: Responder<'_>| {
            responder.reply(&request.payload().repeat(FACTOR));
        })
        .start()
        .unwrap()
}

/// Writes until the server takes no more for a second; returns how many bytes of it went.
fn write_until_stuck(peer: &mut Peer, bytes: &[u8]) -> usize {
    peer.stream.set_nonblocking(true).unwrap();
    let mut sent = 0;
    let mut last = Instant::now();
    while sent < bytes.len() && last.elapsed() < Duration::from_secs(1) {
        match peer.stream.write(&bytes[sent..]) {
            Ok(count) => {
                sent += count;
                last = Instant::now();
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(error) => panic!("writing failed: {error}"),
        }
    }
    peer.stream.set_nonblocking(false).unwrap();
    sent
}

#[test]
fn a_late_reader_gets_everything_in_order() {
    let server = echo_server();
    for size in [0usize, 100, 3000, 40_000, 300_000] {
        let count = (24 * 1024 * 1024 / (size + 100)).min(60_000) as u64;
        let mut peer = Peer::connect(address(&server));
        let mut writer = peer.try_clone();
        let writing = std::thread::spawn(move || {
            for id in 1..=count {
                writer.send(&echo(id, &pattern(id, size)));
            }
            writer.finish_sending();
        });
        // Long enough for all buffers on the way to fill up.
        std::thread::sleep(Duration::from_millis(300));
        for id in 1..=count {
            peer.expect_echo(id, &pattern(id, size));
        }
        peer.expect_end();
        writing.join().unwrap();
    }
}

#[test]
fn a_late_reader_of_mixed_sizes_gets_everything_in_order() {
    let limits = Limits {
        max_message_bytes: 1024 * 1024,
        max_buffered_bytes: 2 * 1024 * 1024,
        ..Limits::default()
    };
    let server = server().limits(limits).start().unwrap();
    let size = |seed: u64, id: u64| match (seed + id) % 7 {
        0 => 900_000,
        1 => 0,
        2 => 70_000,
        3 => 16_360,
        other => (other * id % 5000) as usize,
    };
    let threads: Vec<_> = (0..3u64)
        .map(|seed| {
            let address = address(&server);
            std::thread::spawn(move || {
                let mut peer = Peer::connect(address);
                let mut writer = peer.try_clone();
                let writing = std::thread::spawn(move || {
                    for id in 1..=120 {
                        writer.send(&echo(id, &pattern(id, size(seed, id))));
                    }
                });
                for id in 1..=120 {
                    if id % 40 == 1 {
                        std::thread::sleep(Duration::from_millis(200));
                    }
                    peer.expect_echo(id, &pattern(id, size(seed, id)));
                }
                writing.join().unwrap();
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn a_refusal_comes_after_the_answers_to_the_frames_before_it() {
    let server = blowing_server(Limits::default());
    let mut peer = Peer::connect(address(&server));
    // More answers than are buffered at once, from requests that arrive together.
    let mut bytes = Vec::new();
    for id in 1..=400 {
        bytes.extend(request(BLOW_UP, id, &pattern(id, 200)));
    }
    let mut bad = echo(401, b"damaged");
    bad[25] ^= 1;
    bytes.extend(bad);
    peer.send(&bytes);
    std::thread::sleep(Duration::from_millis(300));
    for id in 1..=400 {
        let got = peer.receive();
        assert_eq!((got.msg_type, got.msg_id), (BLOW_UP, id));
        assert!(got.payload == pattern(id, 200).repeat(FACTOR));
    }
    assert_eq!(peer.receive().error().0, 3);
    peer.expect_end();
}

#[test]
fn a_reader_that_never_reads_is_not_read_from_and_then_closed() {
    let limits = Limits {
        send_stall_ms: 2500,
        ..Limits::default()
    };
    let server = blowing_server(limits);
    let mut peer = Peer::connect(address(&server));
    let one = request(BLOW_UP, 1, &[7; 4096]);
    let flood = one.repeat(20_000); // 80 MB that ask for 5 GB
    let before = resident_bytes();
    let sent = write_until_stuck(&mut peer, &flood);
    assert!(sent < flood.len(), "the server read it all");
    let grown = resident_bytes().saturating_sub(before);
    // Answers of one round, the stash, and what this process's sockets hold.
    assert!(grown < 64 * 1024 * 1024, "grew by {grown} bytes");
    eventually("the connection is closed", || {
        server.stats().connections(Transport::Tcp) == 0
    });
    peer.expect_gone();
    Peer::connect(address(&server)).expect_alive();
}

#[test]
fn one_that_does_not_read_does_not_hold_up_others() {
    let server = blowing_server(Limits::default());
    let mut stuck = Peer::connect(address(&server));
    let flood = request(BLOW_UP, 1, &[7; 4096]).repeat(5000);
    write_until_stuck(&mut stuck, &flood);
    let client = Client::builder()
        .timeout(PATIENCE)
        .connect(&address(&server).to_string())
        .unwrap();
    for id in 0..500 {
        let payload = pattern(id, 5000);
        assert!(client.call(ECHO, &payload).unwrap() == payload);
    }
}

#[test]
fn half_a_frame_and_stop() {
    let limits = Limits {
        frame_timeout_ms: 300,
        ..Limits::default()
    };
    let server = server().limits(limits).legacy(true).start().unwrap();
    let large = echo(1, &[7; 500_000]);
    for half in [&echo(1, b"")[..1], &echo(1, b"")[..23], &large[..400_000]] {
        let mut peer = Peer::connect(address(&server));
        peer.send(half);
        let got = peer.receive();
        assert_eq!((got.msg_id, got.error().0), (0, 11));
        peer.expect_end();
    }
    let mut peer = Peer::connect(address(&server));
    peer.send(&frame_v1(ECHO, 1, b"hello")[..20]);
    assert_eq!(peer.try_receive_v1().unwrap().error().0, 11);
    peer.expect_end();
    assert_eq!(server.stats().errors(ErrorCode::Timeout), 4);
    // One that is idle between frames is left alone.
    let mut peer = Peer::connect(address(&server));
    peer.expect_alive();
    std::thread::sleep(Duration::from_millis(900));
    peer.expect_alive();
}

#[test]
fn many_large_messages_against_a_small_budget_are_all_answered() {
    let limits = Limits {
        max_message_bytes: 1024 * 1024,
        max_buffered_bytes: 1024 * 1024 + 4096,
        ..Limits::default()
    };
    let server = server().workers(2).limits(limits).start().unwrap();
    let address = address(&server);
    let threads: Vec<_> = (0..8u64)
        .map(|seed| {
            std::thread::spawn(move || {
                let client = Client::builder()
                    .timeout(PATIENCE)
                    .connect(&address.to_string())
                    .unwrap();
                for round in 0..4 {
                    // Small ones before each large one, in one go.
                    let small = pattern(seed, 500);
                    let large = pattern(seed + round, 1024 * 1024 - seed as usize);
                    let ids: Vec<_> = (0..5)
                        .map(|_| client.submit(ECHO, &small).unwrap())
                        .collect();
                    let last = client.submit(ECHO, &large).unwrap();
                    for id in ids {
                        assert!(client.wait(id).unwrap() == small);
                    }
                    assert!(client.wait(last).unwrap() == large);
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn one_that_holds_room_and_goes_away_gives_it_back() {
    let limits = Limits {
        max_message_bytes: 1024 * 1024,
        max_buffered_bytes: 1024 * 1024 + 4096,
        ..Limits::default()
    };
    let server = server().limits(limits).start().unwrap();
    let large = echo(1, &pattern(1, 1024 * 1024));
    for _ in 0..5 {
        let mut holder = Peer::connect(address(&server));
        holder.send(&large[..300_000]);
        let mut waiter = Peer::connect(address(&server));
        let mut writer = waiter.try_clone();
        let bytes = large.clone();
        let writing = std::thread::spawn(move || writer.send(&bytes));
        std::thread::sleep(Duration::from_millis(100));
        drop(holder);
        waiter.expect_echo(1, &pattern(1, 1024 * 1024));
        writing.join().unwrap();
    }
}

/// Ten times what the budget holds at once: room goes round, and what waits for it takes none.
#[test]
fn more_senders_than_the_budget_holds_are_all_answered() {
    const SENDERS: usize = 40;
    let server = server()
        .limits(Limits {
            max_message_bytes: 1024 * 1024,
            max_buffered_bytes: 4 * 1024 * 1024,
            ..Limits::default()
        })
        .start()
        .unwrap();
    let mut waiting: Vec<(u64, Client)> = (0..SENDERS as u64)
        .map(|seed| {
            let client = Client::builder()
                .shm_upgrade(false)
                .connect(&address(&server).to_string())
                .unwrap();
            (seed, client)
        })
        .collect();
    let message = |seed| pattern(seed, 1024 * 1024);
    // Nobody reads before everybody has begun to send.
    for (seed, client) in &waiting {
        client
            .submit(lapce_ai::ipc::msg_type::ECHO, &message(*seed))
            .unwrap();
    }
    let end = Instant::now() + Duration::from_secs(60);
    while !waiting.is_empty() {
        assert!(
            Instant::now() < end,
            "{} senders have no answer",
            waiting.len()
        );
        waiting.retain(|(seed, client)| match client.poll().unwrap() {
            Some(answer) => {
                assert!(answer.result.unwrap() == message(*seed));
                false
            }
            None => true,
        });
    }
}

/// Who sends without pause has the kernel's receive buffers at every look: others have their turn too.
#[test]
fn one_that_always_sends_starves_nobody() {
    for workers in [1, 2] {
        let server = server().workers(workers).start().unwrap();
        let flood = frame(RESPONSE, ECHO, 1, b"ignored").repeat(8 * 1024);
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 * workers {
                let mut peer = Peer::connect(address(&server));
                let (flood, done) = (&flood, &done);
                scope.spawn(move || {
                    while !done.load(Ordering::Relaxed) {
                        peer.send(flood);
                    }
                });
            }
            std::thread::sleep(Duration::from_millis(100));
            let asked = std::thread::spawn({
                let address = address(&server);
                move || {
                    for msg_id in 1..=50 {
                        // Those that are there already, and those that come.
                        let mut peer = Peer::connect(address);
                        for _ in 0..4 {
                            peer.send(&echo(msg_id, b"and me"));
                            peer.expect_echo(msg_id, b"and me");
                        }
                    }
                }
            });
            let asked = asked.join();
            done.store(true, Ordering::Relaxed);
            asked.unwrap();
        });
    }
}

/// A handler that hands on what it gets waits for nobody who reads it.
#[test]
fn who_is_far_behind_in_what_a_handler_hands_on_is_left_out() {
    const PUBLISH: u16 = 0x0101;
    const PARTS: u64 = 2048;
    const PART_BYTES: usize = 32 * 1024;
    let limits = Limits {
        max_message_bytes: 1 << 20,
        max_buffered_bytes: 8 << 20,
        ..Limits::default()
    };
    let subscribers = Kept::default();
    let server = keeping(&subscribers)
        .limits(limits)
        .handler(PUBLISH, {
            let subscribers = subscribers.clone();
            move |request: Request<'_>, _: Responder<'_>| {
                let handed_on = |to: &mut Deferred| to.stream_part(request.payload()).is_ok();
                subscribers.lock().unwrap().retain_mut(handed_on);
            }
        })
        .start()
        .unwrap();
    let [mut slow, mut prompt] = [1, 2].map(|count| {
        let mut peer = Peer::connect(address(&server));
        peer.send(&request(WORK, 1, b""));
        eventually("it is served", || {
            subscribers.lock().unwrap().len() == count
        });
        peer
    });
    let mut publisher = Peer::connect(address(&server));
    for number in 0..PARTS {
        let part = pattern(number, PART_BYTES);
        publisher.send(&frame(0, PUBLISH, 0, &part));
        assert!(prompt.receive().payload == part);
    }
    // It gets what was kept for it, without a gap, and is told.
    let mut kept = 0;
    let end = loop {
        let got = slow.receive();
        if got.flags & STREAM == 0 {
            break got;
        }
        assert!(got.payload == pattern(kept, PART_BYTES));
        kept += 1;
    };
    assert_eq!(end.error().0, ErrorCode::HandlerFailed as u16);
    assert!(kept < PARTS / 2, "sockets hold some beside the budget");
    slow.expect_alive();
    // Whoever feeds the stream is not told that its reader has gone.
    assert!(Gone.to_string().contains("too slowly"), "{Gone}");
}

/// Others' long messages on their way in may hold the whole budget. That is not the fault of a reader who is behind for
/// a moment: half of the budget is for answers.
#[test]
fn uploads_do_not_cost_a_stream_its_reader() {
    const PUBLISH: u16 = 0x0101;
    const UPLOADS: usize = 6;
    // Sockets hold less than half of it.
    const PARTS: u64 = 600;
    const PART_BYTES: usize = 32 * 1024;
    let subscribers = Kept::default();
    let server = keeping(&subscribers)
        .limits(Limits {
            frame_timeout_ms: 60_000,
            ..Limits::default()
        })
        .handler(PUBLISH, {
            let subscribers = subscribers.clone();
            move |request: Request<'_>, responder: Responder<'_>| {
                for to in subscribers.lock().unwrap().iter_mut() {
                    to.stream_part(request.payload()).unwrap();
                }
                responder.reply(b"");
            }
        })
        .start()
        .unwrap();
    // 60 of 64 MiB.
    let long = echo(1, &vec![1; 10 << 20]);
    let uploads = [(); UPLOADS].map(|()| {
        let mut peer = Peer::connect(address(&server));
        peer.send(&long[..100_000]);
        peer
    });
    eventually("they hold their room", || {
        server.stats().bytes_in(Transport::Tcp) == UPLOADS as u64 * 100_000
    });
    let mut reader = Peer::connect(address(&server));
    reader.send(&request(WORK, 1, b""));
    eventually("it is served", || subscribers.lock().unwrap().len() == 1);
    let mut publisher = Peer::connect(address(&server));
    for number in 0..PARTS {
        let part = pattern(number, PART_BYTES);
        publisher.send(&request(PUBLISH, number + 1, &part));
        assert_eq!(publisher.receive().msg_type, PUBLISH);
    }
    for number in 0..PARTS {
        let got = reader.receive();
        assert!(got.payload == pattern(number, PART_BYTES), "part {number}");
    }
    subscribers.lock().unwrap().clear();
    drop(uploads);
}

/// The same with answers that are no streams: who asks a thousand times, and reads none of what they all get.
#[test]
fn who_is_far_behind_in_what_a_handler_answers_to_all_is_left_out() {
    const TELL_ALL: u16 = 0x0101;
    const REQUESTS: u64 = 200;
    const ANSWER_BYTES: usize = 256 * 1024;
    let limits = Limits {
        max_message_bytes: 1 << 20,
        max_buffered_bytes: 8 << 20,
        ..Limits::default()
    };
    let waiting = Kept::default();
    let server = keeping(&waiting)
        .limits(limits)
        .handler(TELL_ALL, {
            let waiting = waiting.clone();
            move |request: Request<'_>, _: Responder<'_>| {
                for deferred in waiting.lock().unwrap().drain(..) {
                    let _ = deferred.reply(request.payload());
                }
            }
        })
        .start()
        .unwrap();
    let mut peer = Peer::connect(address(&server));
    let requests: Vec<_> = (1..=REQUESTS).map(|id| request(WORK, id, b"")).collect();
    peer.send(&requests.concat());
    eventually("they wait", || {
        waiting.lock().unwrap().len() == REQUESTS as usize
    });
    let answer = pattern(1, ANSWER_BYTES);
    Peer::connect(address(&server)).send(&frame(0, TELL_ALL, 0, &answer));
    let mut kept = 0;
    for id in 1..=REQUESTS {
        let got = peer.receive();
        assert_eq!(got.msg_id, id);
        if got.msg_type == ERROR {
            assert_eq!(got.error().0, ErrorCode::HandlerFailed as u16);
        } else {
            assert!(got.payload == answer);
            kept += 1;
        }
    }
    assert!((16..=40).contains(&kept), "{kept} of 256 KiB in 8 MiB");
    peer.expect_alive();
}

/// A handler that takes each request away, and answers it itself, has as much patience with its reader as one
/// that answers at once.
#[test]
fn answers_that_a_handler_took_away_and_gives_itself_wait_for_their_reader() {
    const REQUESTS: u64 = 64;
    const ANSWER_BYTES: usize = 512 * 1024;
    let limits = Limits {
        max_message_bytes: 1 << 20,
        max_buffered_bytes: 4 << 20,
        ..Limits::default()
    };
    let server = server()
        .limits(limits)
        .handler(WORK, |request: Request<'_>, responder: Responder<'_>| {
            let answer = pattern(request.msg_id(), ANSWER_BYTES);
            responder.detach().reply(answer).unwrap();
        })
        .start()
        .unwrap();
    let mut peer = Peer::connect(address(&server));
    let requests: Vec<_> = (1..=REQUESTS).map(|id| request(WORK, id, b"")).collect();
    peer.send(&requests.concat());
    for id in 1..=REQUESTS {
        let got = peer.receive();
        assert_eq!((got.msg_id, got.msg_type), (id, WORK));
        assert!(got.payload == pattern(id, ANSWER_BYTES));
    }
}
