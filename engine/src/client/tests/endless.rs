//! Answers without end.

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::APP;
use super::peer::{Peer, Stream};
use crate::client::{Client, Error};
use crate::wire::{Flags, msg_type};

/// Answers the first request with parts without end, and takes no notice of the rest.
fn flood(mut stream: Stream, part: usize) {
    let first = stream.next().unwrap();
    let mut bytes = Vec::new();
    for _ in 0..(64 * 1024 / (part + 24)).max(1) {
        crate::wire::encode_to(
            &mut bytes,
            Flags::RESPONSE | Flags::STREAM,
            APP,
            first.id(),
            &vec![1; part],
        );
    }
    let end = Instant::now() + Duration::from_secs(30);
    while Instant::now() < end && stream.write_all(&bytes).is_ok() {}
}

/// The client is slower than the parts come, so that there are always some.
#[test]
fn a_call_beside_a_stream_ends_in_time() {
    let peer = Peer::serve(|stream| flood(stream, 1));
    let client = Client::builder()
        .max_unread_bytes(128 << 20)
        .shm_upgrade(false)
        .connect(peer.address())
        .unwrap();
    let parts = client.call_stream(APP, b"").unwrap();
    let begin = Instant::now();
    let error = client
        .call_within(APP, b"", Duration::from_millis(100))
        .unwrap_err();
    let took = begin.elapsed();
    assert!(matches!(error, Error::Timeout { .. }), "{error:?}");
    assert!(took < Duration::from_secs(1), "{took:?}");
    drop(parts);
    drop(client);
}

/// Whether a CANCEL of this request comes before the client's end.
fn is_cancelled(stream: &mut Stream, id: u64) -> bool {
    let mut cancelled = false;
    while let Some(frame) = stream.next() {
        cancelled |= frame.header.msg_type == msg_type::CANCEL && frame.id() == id;
    }
    cancelled
}

/// A stream whose answers were thrown away is not wanted any more.
#[test]
fn a_stream_that_overran_is_cancelled() {
    let cancelled = Arc::new(Mutex::new(false));
    let sees = cancelled.clone();
    let peer = Peer::serve(move |mut stream| {
        let endless = stream.next().unwrap();
        let other = stream.next().unwrap();
        for _ in 0..100 {
            stream.write_frame(
                Flags::RESPONSE | Flags::STREAM,
                APP,
                endless.id(),
                &[0; 1000],
            );
        }
        stream.answer(&other);
        *sees.lock().unwrap() = is_cancelled(&mut stream, endless.id());
    });
    let client = Client::builder()
        .max_unread_bytes(20_000)
        .shm_upgrade(false)
        .connect(peer.address())
        .unwrap();
    let parts = client.call_stream(APP, b"").unwrap();
    assert_eq!(client.call(APP, b"other").unwrap(), b"other");
    let parts: Vec<_> = parts.collect();
    assert!(matches!(parts.last(), Some(Err(Error::Unread { .. }))));
    drop(client);
    peer.join();
    assert!(*cancelled.lock().unwrap());
}

#[test]
fn a_damaged_part_cancels_the_rest() {
    let cancelled = Arc::new(Mutex::new(false));
    let sees = cancelled.clone();
    let peer = Peer::serve(move |mut stream| {
        let endless = stream.next().unwrap();
        stream.write_frame(
            Flags::RESPONSE | Flags::STREAM | Flags::COMPRESSED,
            APP,
            endless.id(),
            &[0xFF; 100],
        );
        *sees.lock().unwrap() = is_cancelled(&mut stream, endless.id());
    });
    let client = Client::builder()
        .shm_upgrade(false)
        .connect(peer.address())
        .unwrap();
    let parts: Vec<_> = client.call_stream(APP, b"").unwrap().collect();
    let Some(Err(error @ Error::ServerViolation(_))) = parts.last() else {
        panic!("{parts:?}");
    };
    assert!(!error.is_connection_lost() && client.is_connected());
    drop(client);
    peer.join();
    assert!(*cancelled.lock().unwrap());
}

#[test]
fn a_stream_that_is_joined_has_a_limit() {
    let peer = Peer::serve(|stream| flood(stream, 60_000));
    let client = Client::builder()
        .max_unread_bytes(10 << 20)
        .timeout(Duration::from_secs(1))
        .shm_upgrade(false)
        .connect(peer.address())
        .unwrap();
    let mut answer = Vec::new();
    let error = client.call_into(APP, b"", &mut answer).unwrap_err();
    assert!(
        matches!(error, Error::Unread { max } if max == 10 << 20),
        "{error:?}"
    );
    assert!(answer.len() <= 10 << 20);
    drop(client);
}

/// Frames of whatever kind, and never the answer to the HANDSHAKE.
#[test]
fn a_server_that_never_stops_sending_is_not_listened_to_for_longer_than_allowed() {
    let mut bytes = Vec::new();
    for id in 0..(4 << 20) / 24 {
        crate::wire::encode_to(&mut bytes, Flags::RESPONSE, APP, id, b"");
    }
    let peer = Peer::serve(move |mut stream| {
        let end = Instant::now() + Duration::from_secs(10);
        while Instant::now() < end && stream.write_all(&bytes).is_ok() {}
    });
    for _ in 0..3 {
        let begin = Instant::now();
        let error = Client::builder()
            .auth_token("secret")
            .connect_timeout(Duration::from_millis(100))
            .connect(peer.address())
            .unwrap_err();
        let took = begin.elapsed();
        assert!(matches!(error, Error::ConnectFailed { .. }), "{error:?}");
        assert!(took < Duration::from_secs(1), "{took:?}");
    }
}

#[test]
fn what_only_looks_like_the_answer_to_the_handshake_is_none() {
    // Whatever comes sent back, an answer to another request, and a message that answers nothing.
    for (flags, other_id) in [
        (Flags::REQUEST, false),
        (Flags::RESPONSE, true),
        (Flags::NONE, false),
    ] {
        let peer = Peer::serve(move |mut stream| {
            let Some(hello) = stream.next() else {
                return;
            };
            let id = if other_id { 7 } else { hello.id() };
            stream.write_frame(flags, msg_type::HANDSHAKE, id, b"");
            while stream.next().is_some() {}
        });
        let error = Client::builder()
            .auth_token("secret")
            .connect_timeout(Duration::from_millis(100))
            .connect(peer.address())
            .unwrap_err();
        assert!(matches!(error, Error::ConnectFailed { .. }), "{error:?}");
    }
}
