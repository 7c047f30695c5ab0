//! Whoever no longer wants an answer says so.

use std::time::Duration;

use super::APP;
use super::peer::{Frame, Peer, Stream};
use crate::client::{Client, Error};
use crate::wire::{Flags, msg_type};

fn connect(peer: &Peer, timeout: Duration) -> Client {
    Client::builder()
        .timeout(timeout)
        .shm_upgrade(false)
        .connect(peer.address())
        .unwrap()
}

const PATIENCE: Duration = Duration::from_secs(20);

fn expect_cancel(stream: &mut Stream, request: &Frame) {
    let cancel = stream.next().unwrap();
    assert_eq!(cancel.header.msg_type, msg_type::CANCEL);
    assert_eq!(cancel.header.flags, Flags::NONE);
    assert_eq!((cancel.id(), cancel.payload.len()), (request.id(), 0));
}

fn expect_goodbye(mut stream: Stream) {
    let goodbye = stream.next().unwrap();
    assert_eq!(goodbye.header.msg_type, msg_type::DISCONNECT);
    assert!(stream.next().is_none());
}

#[test]
fn a_stream_that_is_left_early_is_cancelled() {
    let peer = Peer::serve(|mut stream| {
        for _ in 0..2 {
            let request = stream.next().unwrap();
            let flags = Flags::RESPONSE | Flags::STREAM;
            stream.write_frame(flags, APP, request.id(), b"part");
            expect_cancel(&mut stream, &request);
        }
        // One that was read to its end is not.
        let request = stream.next().unwrap();
        stream.answer(&request);
        expect_goodbye(stream);
    });
    let client = connect(&peer, PATIENCE);
    let mut parts = client.call_stream(APP, b"").unwrap();
    assert_eq!(parts.next().unwrap().unwrap(), b"part");
    drop(parts);
    // By its id while it is read: what is missing is not passed over.
    let mut parts = client.call_stream(APP, b"").unwrap();
    assert_eq!(parts.next().unwrap().unwrap(), b"part");
    client.cancel(parts.id().unwrap()).unwrap();
    let part = parts.next().unwrap();
    assert!(matches!(part, Err(Error::InvalidRequest(_))), "{part:?}");
    assert!(parts.next().is_none());
    drop(parts);
    let parts: Result<Vec<_>, _> = client.call_stream(APP, b"").unwrap().collect();
    assert_eq!(parts.unwrap(), [b""]);
    drop(client);
    peer.join();
}

#[test]
fn what_is_not_answered_in_time_is_cancelled() {
    let peer = Peer::serve(|mut stream| {
        for _ in 0..4 {
            let request = stream.next().unwrap();
            expect_cancel(&mut stream, &request);
        }
        expect_goodbye(stream);
    });
    let client = connect(&peer, Duration::from_millis(20));
    let in_time = |result: Result<Vec<u8>, Error>| {
        assert!(matches!(result, Err(Error::Timeout { .. })), "{result:?}");
    };
    in_time(client.call(APP, b""));
    let id = client.submit(APP, b"").unwrap();
    in_time(client.wait(id));
    let id = client.submit(APP, b"").unwrap();
    in_time(client.wait_part(id).map(|_| Vec::new()));
    in_time(client.call_stream(APP, b"").unwrap().next().unwrap());
    drop(client);
    peer.join();
}

#[test]
fn what_a_pools_user_left_behind_is_cancelled() {
    let peer = Peer::serve(|mut stream| {
        let requests = stream.take(2);
        for request in &requests {
            expect_cancel(&mut stream, request);
        }
        expect_goodbye(stream);
    });
    let client = connect(&peer, PATIENCE);
    for _ in 0..2 {
        client.submit(APP, b"").unwrap();
    }
    assert!(client.leave_clean());
    assert_eq!(client.in_flight(), 0);
    drop(client);
    peer.join();
}
