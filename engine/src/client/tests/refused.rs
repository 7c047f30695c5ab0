//! What is refused, by the server or before it hears of it, and whose failure that is.

use std::time::Duration;

use super::peer::Peer;
use super::{APP, connect};
use crate::client::{Client, Error};
use crate::wire::{ErrorCode, Flags, msg_type};

const TEXT: &str = "Bad message type: 0 is not a type";

/// Refuses the connection after so many frames.
fn refusing(frames: usize) -> Peer {
    Peer::serve(move |mut stream| {
        stream.take(frames);
        stream.write_error(Flags::NONE, 0, ErrorCode::BadFlags, TEXT);
    })
}

fn is_lost_with_the_servers_words(error: &Error) -> bool {
    let may_have_run = matches!(
        error,
        Error::ConnectionLost {
            may_have_run: true,
            ..
        }
    );
    may_have_run
        && !error.is_safe_to_repeat()
        && error.code() == Some(ErrorCode::BadFlags)
        && error.to_string().contains(TEXT)
}

#[test]
fn an_error_about_the_connection_is_no_requests_answer() {
    let peer = refusing(3);
    let client = connect(&peer);
    let ids = [0; 3].map(|_| client.submit(APP, b"x").unwrap());
    for id in ids {
        let error = client.wait(id).unwrap_err();
        assert!(is_lost_with_the_servers_words(&error), "{error:?}");
        assert!(error.is_connection_lost());
    }
}

/// Of one request alone the error is the answer only if nothing was sent after it.
#[test]
fn what_was_sent_later_may_be_what_is_refused() {
    let peer = refusing(2);
    let client = connect(&peer);
    let id = client.submit(APP, b"x").unwrap();
    client.send(APP, b"one-way").unwrap();
    let error = client.wait(id).unwrap_err();
    assert!(is_lost_with_the_servers_words(&error), "{error:?}");

    let client = connect(&peer);
    client.send(APP, b"one-way").unwrap();
    let error = client.call(APP, b"x").unwrap_err();
    assert!(matches!(error, Error::Remote { .. }), "{error:?}");
    assert_eq!(error.to_string(), TEXT);
}

/// With nothing in flight, whoever asks next is told.
#[test]
fn a_refused_one_way_message_is_told_of() {
    let peer = refusing(1);
    let client = connect(&peer);
    client.send(APP, b"one-way").unwrap();
    let error = loop {
        if let Err(error) = client.poll() {
            break error;
        }
        std::thread::yield_now();
    };
    assert_eq!(error.code(), Some(ErrorCode::BadFlags));
}

#[test]
fn the_protocols_own_types_are_refused_before_anything_is_sent() {
    let peer = Peer::serve(|mut stream| {
        while let Some(frame) = stream.next() {
            match frame.header.msg_type {
                APP | msg_type::ECHO | msg_type::HEARTBEAT => stream.answer(&frame),
                // What the client says of itself, after all that was asked of it.
                msg_type::DISCONNECT => return,
                msg_type => panic!("0x{msg_type:04X}"),
            }
        }
    });
    let client = connect(&peer);
    let part_of = client.submit_with(Flags::STREAM, APP, b"").unwrap();
    for reserved in [0, 4, 0x10, 0x11, 0x12, 0x20, 0x22, 0xEF, 0xF1, 0xFF] {
        for result in [
            client.call(reserved, b"").map(drop),
            client.call_stream(reserved, b"").map(drop),
            client.submit(reserved, b"").map(drop),
            client.submit_part(part_of, reserved, b"", true),
            client.send(reserved, b""),
            client.reserve(reserved, 1).map(drop),
        ] {
            let error = result.unwrap_err();
            assert!(
                matches!(error, Error::ReservedType(it) if it == reserved),
                "{error:?}"
            );
            assert!(error.is_safe_to_repeat() && !error.is_retryable());
        }
    }
    client.submit_part(part_of, APP, b"", true).unwrap();
    for allowed in [APP, msg_type::ECHO, msg_type::HEARTBEAT] {
        assert_eq!(client.call(allowed, b"x").unwrap(), b"x");
    }
    client.send(APP, b"").unwrap();
    drop(client);
    peer.join();
}

#[test]
fn a_request_that_found_no_place_was_not_sent() {
    let peer = Peer::serve(|mut stream| {
        let frame = stream.next().unwrap();
        assert_eq!(frame.payload, b"first");
        stream.until_closed();
    });
    let client = Client::builder()
        .max_inflight(1)
        .timeout(Duration::from_millis(20))
        .shm_upgrade(false)
        .connect(peer.address())
        .unwrap();
    client.submit(APP, b"first").unwrap();
    for error in [
        client.submit(APP, b"second").unwrap_err(),
        client.call(APP, b"third").unwrap_err(),
    ] {
        assert!(matches!(error, Error::NotSent { .. }), "{error:?}");
        assert!(error.is_safe_to_repeat() && error.is_retryable());
        assert!(error.to_string().contains("max_inflight"), "{error}");
    }
    assert_eq!((client.in_flight(), client.stats().sent), (1, 1));
}
