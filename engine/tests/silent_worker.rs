//! A worker that does not look into its inbox, because a handler of it does not return: perhaps until whoever sends
//! answers to the worker's connections lets go of a lock. Nobody waits for it for ever.

mod support;

use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use lapce_ai::ipc::{Deferred, ErrorCode, Limits, Request, Responder, Server, Transport};
use support::*;

/// A budget that a test can use up.
fn tight() -> Limits {
    Limits {
        max_message_bytes: 1 << 20,
        max_buffered_bytes: 8 << 20,
        ..Limits::default()
    }
}

/// A server that keeps the answers to [`WORK`], and says before it takes the lock for that.
fn telling(workers: usize, limits: Limits, kept: &Kept) -> (Server, Receiver<()>) {
    let (enters, entered) = mpsc::channel();
    let kept = kept.clone();
    let keep = move |_: Request<'_>, responder: Responder<'_>| {
        enters.send(()).unwrap();
        kept.lock().unwrap().push(responder.detach());
    };
    let server = server().workers(workers).limits(limits);
    (server.handler(WORK, keep).start().unwrap(), entered)
}

/// Asks so often. Returns the answers, with a lock for which a handler waits by then.
fn ask<'a>(
    peer: &mut Peer,
    times: u64,
    entered: &Receiver<()>,
    kept: &'a Kept,
) -> MutexGuard<'a, Vec<Deferred>> {
    for id in 1..=times {
        peer.send(&request(WORK, id, b""));
        entered.recv().unwrap();
    }
    eventually("they are kept", || {
        kept.lock().unwrap().len() == times as usize
    });
    let all = kept.lock().unwrap();
    peer.send(&request(WORK, times + 1, b""));
    entered.recv().unwrap();
    all
}

/// Sends parts to the first who has asked, while a handler waits for the lock, and checks that those arrive which
/// were taken. Returns how many, and what ends the stream.
fn stream_with_the_lock(limits: Limits, parts: u64, part_bytes: usize) -> (u64, Frame) {
    let kept = Kept::default();
    let (server, entered) = telling(1, limits, &kept);
    let mut peer = Peer::connect(address(&server));
    let mut all = ask(&mut peer, 1, &entered, &kept);
    let mut taken = 0;
    while taken < parts && all[0].stream_part(pattern(taken, part_bytes)).is_ok() {
        taken += 1;
    }
    all.clear();
    drop(all);
    for number in 0..taken {
        let got = peer.receive();
        assert_eq!((got.flags, got.msg_id), (RESPONSE | STREAM, 1));
        assert!(got.payload == pattern(number, part_bytes), "part {number}");
    }
    let last = peer.receive();
    kept.lock().unwrap().clear();
    (taken, last)
}

#[test]
fn a_thread_with_a_lock_does_not_wait_for_a_place_in_the_inbox() {
    let (taken, last) = stream_with_the_lock(Limits::default(), 3000, 10);
    assert_eq!((taken, last.msg_type), (3000, ERROR));
}

/// It is far behind because its worker waits for the lock.
#[test]
fn a_thread_with_a_lock_does_not_wait_for_a_reader() {
    let (taken, last) = stream_with_the_lock(Limits::default(), 200, 64 * 1024);
    assert_eq!((taken, last.msg_type), (200, ERROR));
}

/// It did for ever. Now it waits for a second, and the requester is told.
#[test]
fn a_thread_with_a_lock_does_not_pass_the_budget() {
    let (taken, last) = stream_with_the_lock(tight(), 1000, 64 * 1024);
    assert!((64..=96).contains(&taken), "{taken} of 64 KiB in 4 MiB");
    let (code, text) = last.error();
    assert_eq!(code, ErrorCode::HandlerFailed as u16);
    assert!(text.contains("a second"), "{text}");
}

/// All workers wait for the lock. What they are sent has one budget, and none is waited for anew because another was
/// meanwhile: that took a second for each stream.
#[test]
fn a_thread_with_a_lock_waits_once_for_each_worker() {
    // Of each worker. All together more than PATIENCE has seconds.
    const STREAMS: u64 = 30;
    const WORKERS: usize = 3;
    const PART_BYTES: usize = 16 * 1024;
    let kept = Kept::default();
    let (server, entered) = telling(WORKERS, tight(), &kept);
    // Connections are spread over the workers in turn.
    let mut peers = [(); WORKERS].map(|()| Peer::connect(address(&server)));
    peers.iter_mut().for_each(Peer::expect_alive);
    for id in 1..=STREAMS {
        for peer in &mut peers {
            peer.send(&request(WORK, id, b""));
            entered.recv().unwrap();
        }
    }
    let all = WORKERS * STREAMS as usize;
    eventually("they are kept", || kept.lock().unwrap().len() == all);
    let mut streams = kept.lock().unwrap();
    for peer in &mut peers {
        peer.send(&request(WORK, STREAMS + 1, b""));
        entered.recv().unwrap();
    }
    let begun = Instant::now();
    let mut taken = 0;
    // Bounded by the budget.
    while !streams.is_empty() {
        streams.retain_mut(|stream| {
            let is_taken = stream.stream_part(vec![0; PART_BYTES]).is_ok();
            taken += usize::from(is_taken);
            is_taken
        });
    }
    drop(streams);
    assert!(begun.elapsed() < PATIENCE);
    // 1 MiB for each connection before anybody goes on, and then half of 8 MiB.
    let bytes = taken * PART_BYTES;
    assert!((4 << 20..8 << 20).contains(&bytes), "{bytes} in 8 MiB");
    for peer in &mut peers {
        let ends = std::iter::from_fn(|| peer.try_receive()).filter(|got| got.msg_type == ERROR);
        for got in ends.take(STREAMS as usize) {
            assert_eq!(got.error().0, ErrorCode::HandlerFailed as u16);
        }
    }
    kept.lock().unwrap().clear();
}

/// What is sent to a worker that stands still grows with the time for which it has: if its handlers are only slow, it
/// is little.
#[test]
fn a_worker_that_stands_still_for_a_moment_is_not_sent_much() {
    const PART_BYTES: usize = 10_000;
    let kept = Kept::default();
    let (server, entered) = telling(1, Limits::default(), &kept);
    let mut peer = Peer::connect(address(&server));
    let all = &mut ask(&mut peer, 1, &entered, &kept);
    let begun = Instant::now();
    for _ in 0..2000 {
        all[0].stream_part(vec![0; PART_BYTES]).unwrap();
    }
    // What waits for the reader, and 100 kB for each millisecond.
    let bytes_max = (1 << 20) + 100_000 * begun.elapsed().as_millis() as usize;
    let bytes = 2000 * PART_BYTES;
    assert!(bytes <= bytes_max, "{bytes}, not at most {bytes_max}");
    all.clear();
}

/// The requests that come at once are not all handled first: what their handlers send would pass the budget.
#[test]
fn what_a_handler_has_sent_is_taken_before_the_next_runs() {
    const PUBLISH: u16 = 0x0101;
    // More than 1 MiB beyond what the inbox takes.
    const PARTS: u64 = 1000;
    let kept = Kept::default();
    let (goes_on, stopped) = mpsc::channel::<()>();
    let stopped = Mutex::new(stopped);
    let server = keeping(&kept)
        .handler(PUBLISH, {
            let kept = kept.clone();
            move |request: Request<'_>, _: Responder<'_>| {
                if request.msg_id() == 3 {
                    let _ = stopped.lock().unwrap().recv();
                }
                for number in 0..PARTS {
                    let part = pattern(number, 4096);
                    kept.lock().unwrap()[0].stream_part(part).unwrap();
                }
            }
        })
        .start()
        .unwrap();
    // Dropped before the server, which waits for the handler.
    let goes_on = goes_on;
    let [mut reader, mut publisher] = [(); 2].map(|()| Peer::connect(address(&server)));
    reader.send(&request(WORK, 1, b""));
    eventually("it is served", || kept.lock().unwrap().len() == 1);
    let all = [1, 2, 3].map(|id| request(PUBLISH, id, b""));
    publisher.send(&all.concat());
    // The first one's parts are taken before the second handler runs, and sent before the third does: as many as the
    // reader has read room for. How fast it reads is the machine's affair, so no more is waited for than the first.
    for number in (0..3 * PARTS).map(|number| number % PARTS) {
        assert!(reader.receive().payload == pattern(number, 4096));
        let _ = goes_on.send(());
    }
    kept.lock().unwrap().clear();
}

/// What was not waited for is taken before the next handler runs: if handlers always take long, others' answers would
/// wait behind it for seconds.
#[test]
fn what_was_sent_meanwhile_does_not_wait_for_one_handler_after_the_other() {
    const STOP: u16 = 0x0101;
    // More than the inbox and a round take.
    const PARTS: u64 = 1000;
    let kept = Kept::default();
    let (enters, entered) = mpsc::channel();
    let (goes_on, stopped) = mpsc::channel::<()>();
    let stopped = Mutex::new(stopped);
    let server = keeping(&kept)
        .handler(STOP, move |_: Request<'_>, responder: Responder<'_>| {
            let _ = enters.send(());
            let _ = stopped.lock().unwrap().recv();
            responder.reply(b"");
        })
        .start()
        .unwrap();
    // Dropped before the server, which waits for the handler.
    let goes_on = goes_on;
    let [mut reader, mut stopper] = [(); 2].map(|()| Peer::connect(address(&server)));
    reader.send(&request(WORK, 1, b""));
    eventually("it is served", || kept.lock().unwrap().len() == 1);
    stopper.send(&request(STOP, 1, b""));
    entered.recv().unwrap();
    for _ in 0..PARTS {
        kept.lock().unwrap()[0].stream_part(b"").unwrap();
    }
    // The parts are taken in the round of the second, and sent at its end.
    for id in 2..=3 {
        stopper.send(&request(STOP, id, b""));
        goes_on.send(()).unwrap();
        entered.recv().unwrap();
    }
    for _ in 0..PARTS {
        reader.receive();
    }
    goes_on.send(()).unwrap();
    kept.lock().unwrap().clear();
}

#[test]
fn a_thread_with_a_lock_drops_more_than_the_inbox_takes() {
    const REQUESTS: u64 = 1000;
    let kept = Kept::default();
    let (server, entered) = telling(1, Limits::default(), &kept);
    let mut peer = Peer::connect(address(&server));
    ask(&mut peer, REQUESTS, &entered, &kept).clear();
    for id in 1..=REQUESTS {
        assert_eq!(peer.receive().msg_id, id);
    }
    eventually("the handler returns", || !kept.lock().unwrap().is_empty());
    kept.lock().unwrap().clear();
}

/// Neither does another worker: its connections are served while a handler of the first does not return.
#[test]
fn a_worker_does_not_wait_for_a_handler_of_another() {
    const PUBLISH: u16 = 0x0101;
    const STOP: u16 = 0x0102;
    const SUBSCRIBERS: usize = 30;
    // To all together more than the budget, to none more than a reader may be behind.
    const PARTS: u64 = 60;
    const PART_BYTES: usize = 16 * 1024;
    let kept = Kept::default();
    let (goes_on, stopped) = mpsc::channel::<()>();
    let stopped = Mutex::new(stopped);
    let taken = Arc::new(Mutex::new(vec![0; SUBSCRIBERS]));
    let server = keeping(&kept)
        .workers(2)
        .limits(tight())
        .handler(STOP, move |_: Request<'_>, responder: Responder<'_>| {
            let _ = stopped.lock().unwrap().recv();
            responder.reply(b"");
        })
        .handler(PUBLISH, {
            let (kept, taken) = (kept.clone(), taken.clone());
            move |request: Request<'_>, _: Responder<'_>| {
                let mut all = kept.lock().unwrap();
                for (to, taken) in all.iter_mut().zip(taken.lock().unwrap().iter_mut()) {
                    *taken += u64::from(to.stream_part(request.payload()).is_ok());
                }
            }
        })
        .start()
        .unwrap();
    // Dropped before the server, which waits for the handler.
    let goes_on = goes_on;
    // Connections are spread over the workers in turn.
    let (mut subscribers, mut others): (Vec<_>, Vec<_>) = (0..SUBSCRIBERS)
        .map(|_| {
            let mut both = [(); 2].map(|()| Peer::connect(address(&server)));
            both.iter_mut().for_each(Peer::expect_alive);
            let [mut subscriber, other] = both;
            subscriber.send(&request(WORK, 1, b""));
            subscriber.expect_alive();
            (subscriber, other)
        })
        .unzip();
    let publisher = &mut others[0];
    subscribers[0].send(&request(STOP, 2, b""));
    for number in 0..PARTS {
        publisher.send(&frame(0, PUBLISH, 0, &pattern(number, PART_BYTES)));
        publisher.expect_alive();
    }
    goes_on.send(()).unwrap();
    kept.lock().unwrap().clear();
    // Each gets what was taken for it, in order, and is told of the end.
    let taken = taken.lock().unwrap();
    for (subscriber, &taken) in subscribers.iter_mut().zip(taken.iter()) {
        let mut parts = Vec::new();
        let end = loop {
            let got = subscriber.receive();
            match (got.msg_id, got.flags & STREAM) {
                (1, 0) => break got,
                (1, _) => parts.push(got.payload),
                _ => assert_eq!(got.msg_type, STOP),
            }
        };
        assert_eq!(end.error().0, ErrorCode::HandlerFailed as u16);
        let expected: Vec<_> = (0..taken).map(|n| pattern(n, PART_BYTES)).collect();
        assert!(parts == expected, "{} parts, not {taken}", parts.len());
    }
    // What the inbox takes, 512, and half of the budget.
    let bytes = taken.iter().sum::<u64>() as usize * PART_BYTES;
    assert!((12 << 20..16 << 20).contains(&bytes), "{bytes} in 12 MiB");
}

/// What such a worker's handlers took before is in its statistics, though it reads the clock anew while it waits.
#[test]
fn a_wait_for_another_worker_does_not_make_its_handlers_seem_quick() {
    const PUBLISH: u16 = 0x0101;
    const STOP: u16 = 0x0102;
    const TOOK: Duration = Duration::from_millis(20);
    let kept = Kept::default();
    let (goes_on, stopped) = mpsc::channel::<()>();
    let stopped = Mutex::new(stopped);
    let server = keeping(&kept)
        .workers(2)
        .handler(STOP, move |_: Request<'_>, _: Responder<'_>| {
            let _ = stopped.lock().unwrap().recv();
        })
        .handler(PUBLISH, {
            let kept = kept.clone();
            move |_: Request<'_>, responder: Responder<'_>| {
                std::thread::sleep(TOOK);
                // More than the inbox takes.
                for _ in 0..1000 {
                    kept.lock().unwrap()[0].stream_part(b"").unwrap();
                }
                responder.reply(b"");
            }
        })
        .start()
        .unwrap();
    // Dropped before the server, which waits for the handler.
    let goes_on = goes_on;
    // Connections are spread over the workers in turn.
    let [mut subscriber, mut publisher] = [(); 2].map(|()| Peer::connect(address(&server)));
    subscriber.send(&request(WORK, 1, b""));
    eventually("it is served", || kept.lock().unwrap().len() == 1);
    subscriber.send(&frame(0, STOP, 0, b""));
    publisher.send(&request(PUBLISH, 1, b""));
    publisher.receive();
    publisher.expect_alive();
    let longest_ns = || server.stats().latency(Transport::Tcp).max();
    eventually("it is counted", || longest_ns() > 0);
    assert!(u128::from(longest_ns()) >= TOOK.as_nanos());
    drop(goes_on);
    kept.lock().unwrap().clear();
}

/// How long a worker does nothing else after a handler of it has sent much to one that does not look.
fn pause_after_much() -> Duration {
    const PUBLISH: u16 = 0x0101;
    const STOP: u16 = 0x0102;
    // More than its queue takes.
    const SUBSCRIBERS: usize = 1000;
    let kept = Kept::default();
    let (goes_on, stopped) = mpsc::channel::<()>();
    let stopped = Mutex::new(stopped);
    let publish = {
        let kept = kept.clone();
        move |_: Request<'_>, responder: Responder<'_>| {
            for to in kept.lock().unwrap().iter_mut() {
                let _ = to.stream_part(vec![1; 24 * 1024]);
            }
            responder.reply(b"");
        }
    };
    let server = keeping(&kept)
        .workers(2)
        .handler(STOP, move |_: Request<'_>, _: Responder<'_>| {
            let _ = stopped.lock().unwrap().recv();
        })
        .handler(PUBLISH, publish)
        .start()
        .unwrap();
    let [mut subscriber, mut publisher] = [(); 2].map(|()| Peer::connect(address(&server)));
    subscriber.expect_alive();
    publisher.expect_alive();
    for id in 1..=SUBSCRIBERS as u64 {
        subscriber.send(&request(WORK, id, b""));
    }
    eventually("all are kept", || kept.lock().unwrap().len() == SUBSCRIBERS);
    subscriber.send(&frame(0, STOP, 0, b""));
    std::thread::sleep(Duration::from_millis(20));
    publisher.send(&request(PUBLISH, 1, b""));
    publisher.receive();
    let begin = Instant::now();
    publisher.expect_alive();
    let pause = begin.elapsed();
    drop(goes_on);
    kept.lock().unwrap().clear();
    pause
}

/// It has other clients, who would wait with it. The pace at which threads may go on, by which it would be 120 ms and more, is
/// not its own.
#[test]
fn a_worker_goes_on_soon_however_much_it_has_sent() {
    let quickest = (0..3).map(|_| pause_after_much()).min().unwrap();
    assert!(quickest < Duration::from_millis(100), "{quickest:?}");
}
