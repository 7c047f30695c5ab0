//! A handler that hands on what it gets to many costs no more memory than its readers leave unread. In a process of its
//! own, whose memory is looked at.

mod support;

use std::io::Read;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::ThreadId;

use lapce_ai::ipc::{Deferred, Limits, Request, Responder};
use support::*;

const PUBLISH: u16 = 0x0101;
/// Of each worker.
const SUBSCRIBERS: usize = 32;
/// Of each publisher; there is one for each worker.
const MESSAGES: u64 = 3000;
const MESSAGE_BYTES: usize = 4096;
/// Of the 384 MiB that each publisher hands on.
const GROWN_BYTES_MAX: u64 = 128 << 20;

/// More in a round than the worker takes of other threads' answers in one. First to the worker's own connections,
/// then to those of another worker, which hands on to this one's.
#[test]
fn what_is_handed_on_to_many_does_not_pile_up() {
    hand_on(1);
    hand_on(2);
}

fn hand_on(workers: usize) {
    let limits = Limits {
        max_message_bytes: 1 << 20,
        max_buffered_bytes: 8 << 20,
        ..Limits::default()
    };
    // With each, which worker serves it.
    type Subscriber = (ThreadId, Arc<Mutex<Deferred>>);
    let subscribers: Arc<Mutex<Vec<Subscriber>>> = Arc::default();
    let most_bytes = Arc::new(AtomicU64::new(0));
    let worker = || std::thread::current().id();
    let server = server()
        .workers(workers)
        .limits(limits)
        .handler(WORK, {
            let subscribers = subscribers.clone();
            move |_: Request<'_>, responder: Responder<'_>| {
                let to = Arc::new(Mutex::new(responder.detach()));
                subscribers.lock().unwrap().push((worker(), to));
            }
        })
        .handler(PUBLISH, {
            let (subscribers, most_bytes) = (subscribers.clone(), most_bytes.clone());
            move |request: Request<'_>, responder: Responder<'_>| {
                let all = subscribers.lock().unwrap().clone();
                for (served_by, to) in all {
                    if workers == 1 || served_by != worker() {
                        // Who reads too slowly on a busy machine is left out.
                        let _ = to.lock().unwrap().stream_part(request.payload());
                    }
                }
                if request.msg_id().is_multiple_of(64) {
                    most_bytes.fetch_max(resident_bytes(), Ordering::Relaxed);
                }
                responder.reply(b"");
            }
        })
        .start()
        .unwrap();
    std::thread::scope(|scope| {
        for count in 1..=workers * SUBSCRIBERS {
            let mut peer = Peer::connect(address(&server));
            peer.send(&request(WORK, 1, b""));
            eventually("it is served", || {
                subscribers.lock().unwrap().len() == count
            });
            scope.spawn(move || {
                let mut read = vec![0; 64 * 1024];
                while peer.stream.read(&mut read).unwrap() > 0 {}
            });
        }
        let before = resident_bytes();
        // Connections are spread over the workers in turn.
        let publishers: Vec<_> = (0..workers)
            .map(|_| Peer::connect(address(&server)))
            .collect();
        for publisher in &publishers {
            let mut writer = publisher.try_clone();
            scope.spawn(move || {
                for id in 1..=MESSAGES {
                    writer.send(&request(PUBLISH, id, &[1; MESSAGE_BYTES]));
                }
            });
        }
        for mut publisher in publishers {
            for id in 1..=MESSAGES {
                let got = publisher.receive();
                assert_eq!((got.msg_id, got.msg_type), (id, PUBLISH));
            }
        }
        let grown = most_bytes.load(Ordering::Relaxed).saturating_sub(before);
        subscribers.lock().unwrap().clear();
        server.stop();
        assert!(grown < GROWN_BYTES_MAX, "{workers}: {} MiB", grown >> 20);
    });
}
