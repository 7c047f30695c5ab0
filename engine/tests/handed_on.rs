//! A handler that hands on what it gets to many costs no more memory than its readers leave unread. In a process of its
//! own, whose memory is looked at.

mod support;

use std::io::Read;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use lapce_ai::ipc::{Deferred, Limits, Request, Responder};
use support::*;

const PUBLISH: u16 = 0x0101;
const SUBSCRIBERS: usize = 32;
const MESSAGES: u64 = 3000;
const MESSAGE_BYTES: usize = 4096;
/// Of the 384 MiB that are handed on.
const GROWN_BYTES_MAX: u64 = 128 << 20;

/// More in a round than the worker takes of other threads' answers in one.
#[test]
fn what_is_handed_on_to_many_does_not_pile_up() {
    let limits = Limits {
        max_message_bytes: 1 << 20,
        max_buffered_bytes: 8 << 20,
        ..Limits::default()
    };
    let subscribers: Arc<Mutex<Vec<Deferred>>> = Arc::default();
    let most_bytes = Arc::new(AtomicU64::new(0));
    let server = server()
        .limits(limits)
        .handler(WORK, {
            let subscribers = subscribers.clone();
            move |_: Request<'_>, responder: Responder<'_>| {
                subscribers.lock().unwrap().push(responder.detach());
            }
        })
        .handler(PUBLISH, {
            let (subscribers, most_bytes) = (subscribers.clone(), most_bytes.clone());
            move |request: Request<'_>, responder: Responder<'_>| {
                let handed_on = |to: &mut Deferred| to.stream_part(request.payload()).is_ok();
                subscribers.lock().unwrap().retain_mut(handed_on);
                if request.msg_id().is_multiple_of(64) {
                    most_bytes.fetch_max(resident_bytes(), Ordering::Relaxed);
                }
                responder.reply(b"");
            }
        })
        .start()
        .unwrap();
    std::thread::scope(|scope| {
        for count in 1..=SUBSCRIBERS {
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
        let mut publisher = Peer::connect(address(&server));
        let mut writer = publisher.try_clone();
        let before = resident_bytes();
        scope.spawn(move || {
            for id in 1..=MESSAGES {
                writer.send(&request(PUBLISH, id, &[1; MESSAGE_BYTES]));
            }
        });
        for id in 1..=MESSAGES {
            assert_eq!(publisher.receive().msg_id, id);
        }
        let grown = most_bytes.load(Ordering::Relaxed).saturating_sub(before);
        subscribers.lock().unwrap().clear();
        server.stop();
        assert!(grown < GROWN_BYTES_MAX, "{} MiB", grown >> 20);
    });
}
