//! A server that is gone: who waits for it, and who does not.
//!
//! The clients have so much time that a wait in the wrong place would never end.

use std::time::Duration;

use super::APP;
use super::peer::{Peer, Stream, until_ended};
use crate::client::{Client, ClientBuilder, Error};

const FOR_EVER: Duration = Duration::from_secs(1 << 20);

fn answer_all(mut stream: Stream) {
    while let Some(frame) = stream.next() {
        stream.answer(&frame);
    }
}

/// A client of a server that answers once.
fn served(builder: ClientBuilder) -> (Client, Peer) {
    let peer = Peer::serve(|mut stream| {
        let frame = stream.next().unwrap();
        stream.answer(&frame);
    });
    let client = builder
        .timeout(FOR_EVER)
        .shm_upgrade(false)
        .connect(peer.address())
        .unwrap();
    client.call(APP, b"x").unwrap();
    (client, peer)
}

/// A client that was connected, and where the server was.
fn orphan(builder: ClientBuilder) -> (Client, String) {
    let (client, mut peer) = served(builder);
    let address = peer.address().to_owned();
    peer.stop();
    until_ended(&client);
    // As old as a client has to be to look whether its server is there before it sends.
    std::thread::sleep(Duration::from_millis(20));
    (client, address)
}

/// Fails in both ways, each time without anything queued.
fn fails_at_once(client: &Client, mut ask: impl FnMut() -> Result<(), Error>) {
    let (mut refused, mut too_early) = (false, false);
    for _ in 0..100_000 {
        let error = ask().unwrap_err();
        assert!(
            error.is_safe_to_repeat() && error.is_retryable(),
            "{error:?}"
        );
        match error {
            Error::ConnectFailed { .. } => refused = true,
            Error::Unavailable { retry_after, .. } => {
                too_early = true;
                std::thread::sleep(retry_after);
            }
            error => panic!("{error:?}"),
        }
        if refused && too_early {
            break;
        }
    }
    assert!(refused && too_early);
    assert_eq!(client.in_flight(), 0);
}

#[test]
fn what_does_not_wait_fails_at_once() {
    let (client, address) = orphan(Client::builder());
    let sent = client.stats().sent;
    fails_at_once(&client, || client.submit(APP, b"x").map(drop));
    fails_at_once(&client, || client.send(APP, b"x"));
    assert_eq!(client.stats().sent, sent);
    // When it is back, it is found.
    let back = Peer::serve_at(&address, |_, stream| answer_all(stream));
    let id = loop {
        match client.submit(APP, b"back") {
            Ok(id) => break id,
            Err(error) => assert!(matches!(error, Error::Unavailable { .. }), "{error:?}"),
        }
    };
    assert_eq!(client.wait(id).unwrap(), b"back");
    drop(client);
    back.join();
}

/// Many at once go another way through the client, which sends them when 32 KiB are queued.
#[test]
fn many_that_are_submitted_do_not_wait_either() {
    let (client, mut peer) = served(Client::builder().max_inflight(1 << 20));
    // In flight, so that the rest comes beside others.
    client.submit(APP, b"first").unwrap();
    peer.stop();
    until_ended(&client);
    // The first 32 KiB may still go into the socket.
    let error = (0..10_000)
        .find_map(|_| client.submit(APP, &[7; 100]).err())
        .unwrap();
    assert!(matches!(error, Error::ConnectFailed { .. }), "{error:?}");
}

#[test]
fn a_call_waits_unless_it_is_told_not_to() {
    let (client, _) = orphan(Client::builder().reconnect_timeout(Duration::ZERO));
    fails_at_once(&client, || client.call(APP, b"x").map(drop));
    fails_at_once(&client, || client.call_idempotent(APP, b"x").map(drop));

    let (client, _) = orphan(Client::builder().reconnect_timeout(Duration::from_millis(30)));
    let error = client.call(APP, b"x").unwrap_err();
    assert!(matches!(error, Error::ConnectFailed { .. }), "{error:?}");

    let (client, address) = orphan(Client::builder());
    let back = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        Peer::serve_at(&address, |_, stream| answer_all(stream))
    });
    assert_eq!(client.call(APP, b"back").unwrap(), b"back");
    drop(client);
    drop(back.join().unwrap());
}

/// With a token, say, an attempt takes a round trip.
#[test]
fn calls_shorter_than_the_pauses_find_a_server_that_is_back() {
    let mut peer = Peer::serve(|mut stream| {
        let hello = stream.next().unwrap();
        stream.answer(&hello);
    });
    let address = peer.address().to_owned();
    let client = Client::builder()
        .timeout(Duration::from_millis(20))
        .auth_token("token")
        .shm_upgrade(false)
        .connect(&address)
        .unwrap();
    peer.stop();
    until_ended(&client);
    // Until the pauses are at their longest.
    for _ in 0..20 {
        client.call(APP, b"x").unwrap_err();
    }
    let back = Peer::serve_at(&address, |_, stream| answer_all(stream));
    let found = (0..1000).any(|_| client.call(APP, b"back").is_ok());
    assert!(found, "{:?}", client.call(APP, b"back"));
    drop(client);
    back.join();
}
