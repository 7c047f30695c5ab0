//! Handlers and threads that hand on to the same requesters, behind locks, on several workers: all that was taken
//! arrives, once and in order, and nothing stands still.

mod support;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lapce_ai::ipc::{Deferred, ErrorCode, Limits, Request, Responder, Server};
use support::*;

const PUBLISH: u16 = 0x0101;
/// Of each worker, besides one that publishes.
const READERS: usize = 8;
const STREAMS: u64 = 16;
/// Of each worker's publisher, and of each thread.
const MESSAGES: u64 = 100;
const THREADS: u64 = 2;

/// A stream that several feed.
struct Stream {
    to: Option<Deferred>,
    sent: u64,
}

impl Stream {
    fn feed(&mut self, bytes: usize) {
        let Some(to) = &mut self.to else { return };
        let mut part = self.sent.to_le_bytes().to_vec();
        part.resize(8 + bytes, 0);
        match to.stream_part(part) {
            Ok(()) => self.sent += 1,
            Err(_) => self.to = None,
        }
    }

    fn end(&mut self) {
        if let Some(to) = self.to.take() {
            let _ = to.reply(self.sent.to_le_bytes());
        }
    }
}

struct Streams {
    all: Mutex<Vec<Arc<Mutex<Stream>>>>,
    /// The list's lock is held while all are fed; else each has one lock.
    one_lock: bool,
    random: AtomicU64,
}

impl Streams {
    fn hand_on(&self) {
        let feed = |all: &[Arc<Mutex<Stream>>]| {
            for stream in all {
                let random = u64::from_le_bytes(self.next(8).try_into().unwrap());
                let bytes = [0, 10, 100, 3000][random as usize % 4];
                if !random.is_multiple_of(5) {
                    stream.lock().unwrap().feed(bytes);
                }
            }
        };
        let all = self.all.lock().unwrap();
        if self.one_lock {
            return feed(&all);
        }
        let all = all.clone();
        feed(&all);
    }

    fn next(&self, bytes: usize) -> Vec<u8> {
        pattern(self.random.fetch_add(1, Ordering::Relaxed), bytes)
    }
}

fn start(workers: usize, streams: &Arc<Streams>) -> Server {
    let [asked, published] = [(); 2].map(|()| streams.clone());
    server()
        .workers(workers)
        .limits(Limits {
            drain_ms: 200,
            ..Limits::default()
        })
        .handler(WORK, move |_: Request<'_>, responder: Responder<'_>| {
            let (to, sent) = (Some(responder.detach()), 0);
            let stream = Arc::new(Mutex::new(Stream { to, sent }));
            asked.all.lock().unwrap().push(stream);
        })
        .handler(PUBLISH, move |_: Request<'_>, _: Responder<'_>| {
            published.hand_on();
        })
        .start()
        .unwrap()
}

/// Reads all streams of a connection to their ends.
fn read(mut peer: Peer, pauses: bool) {
    let mut next = [0; STREAMS as usize];
    let mut ended = 0;
    let mut frames = 0;
    while ended < STREAMS {
        let got = peer.receive();
        frames += 1;
        if pauses && frames % 512 == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        if got.msg_type == ERROR {
            assert_eq!(got.error().0, ErrorCode::HandlerFailed as u16);
            ended += 1;
            continue;
        }
        let number = u64::from_le_bytes(got.payload[..8].try_into().unwrap());
        let next = &mut next[got.msg_id as usize - 1];
        assert_eq!(number, *next, "of stream {}", got.msg_id);
        *next += 1;
        ended += u64::from(got.flags & STREAM == 0);
    }
    peer.expect_alive();
}

fn run(seed: u64) {
    let workers = 2 + seed as usize % 3;
    let stops_midway = seed % 4 == 3;
    let streams = Arc::new(Streams {
        all: Mutex::default(),
        one_lock: seed.is_multiple_of(2),
        random: AtomicU64::new(seed << 32),
    });
    let mut server = Some(start(workers, &streams));
    let at = address(server.as_ref().unwrap());
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for number in 0..workers * READERS {
            let mut peer = Peer::connect(at);
            for id in 1..=STREAMS {
                peer.send(&request(WORK, id, b""));
            }
            peer.expect_alive();
            scope.spawn(move || match stops_midway {
                true => peer.expect_gone(),
                false => read(peer, number % 3 == 0),
            });
        }
        let mut publishers: Vec<_> = (0..workers).map(|_| Peer::connect(at)).collect();
        let feeding: Vec<_> = (0..THREADS)
            .map(|_| scope.spawn(|| (0..MESSAGES).for_each(|_| streams.hand_on())))
            .collect();
        for publisher in &mut publishers {
            publisher.send(&frame(0, PUBLISH, 0, b"").repeat(MESSAGES as usize));
        }
        // Somebody asks on, for the lock that those who feed hold.
        let mut asking = Peer::connect(at);
        let done = &done;
        scope.spawn(move || {
            for id in 1.. {
                if done.load(Ordering::Relaxed) {
                    break;
                }
                let _ = std::io::Write::write_all(&mut asking.stream, &request(WORK, id, b""));
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        match stops_midway {
            true => server.take().unwrap().stop(),
            false => publishers.iter_mut().for_each(Peer::expect_alive),
        }
        for thread in feeding {
            thread.join().unwrap();
        }
        done.store(true, Ordering::Relaxed);
        for stream in streams.all.lock().unwrap().iter() {
            stream.lock().unwrap().end();
        }
    });
}

#[test]
fn all_that_was_taken_arrives_once_and_in_order() {
    for seed in 0..seeds(8) {
        run(seed);
    }
}
