//! Connections that are lost, and what becomes of requests.

use std::io::Write;
use std::net::Shutdown;
use std::time::Duration;

use super::peer::{Peer, until_ended};
use super::{APP, address, connect, server};
use crate::client::{Client, Error};
use crate::pool::ConnectionPool;
use crate::server::Server;
use crate::wire::msg_type;

#[test]
fn an_idempotent_request_is_sent_again_until_it_is_answered() {
    let peer = Peer::serve_numbered(|number, mut stream| {
        let frame = stream.next().unwrap();
        if number >= 3 {
            stream.answer(&frame);
            stream.until_closed();
        }
    });
    let client = connect(&peer);
    assert_eq!(client.call_idempotent(APP, b"again").unwrap(), b"again");
    assert_eq!(client.stats().reconnects, 3);
}

#[test]
fn what_was_not_sent_goes_over_the_next_connection() {
    let peer = Peer::serve_numbered(|number, mut stream| {
        if number == 0 {
            // Answers one, and is gone before the next comes.
            let frame = stream.next().unwrap();
            stream.answer(&frame);
            stream.shutdown(Shutdown::Both);
            return;
        }
        while let Some(frame) = stream.next() {
            stream.answer(&frame);
        }
    });
    let client = connect(&peer);
    assert_eq!(client.call(APP, b"one").unwrap(), b"one");
    until_ended(&client);
    std::thread::sleep(Duration::from_millis(10));
    assert_eq!(client.call(APP, b"two").unwrap(), b"two");
    assert_eq!(client.stats().reconnects, 1);
}

#[test]
fn frames_of_a_lost_connection_are_told_apart() {
    // Takes one frame and resets the connection with the rest unread.
    let peer = Peer::serve_numbered(|number, mut stream| {
        if number == 0 {
            stream.next().unwrap();
            return;
        }
        while let Some(frame) = stream.next() {
            stream.answer(&frame);
        }
    });
    let client = connect(&peer);
    // More than the socket's buffers hold, so that some are surely not sent.
    let payload = vec![1; 1 << 20];
    let mut ids = Vec::new();
    for _ in 0..64 {
        ids.push(client.submit(APP, &payload).unwrap());
    }
    let (mut lost, mut answered) = (0, 0);
    for (index, id) in ids.into_iter().enumerate() {
        match client.wait(id) {
            Ok(answer) => {
                assert_eq!(answer, payload);
                answered += 1;
            }
            Err(Error::ConnectionLost { may_have_run, .. }) => {
                assert!(may_have_run, "the others were sent again");
                assert_eq!(
                    answered, 0,
                    "request {index} was sent before an earlier one"
                );
                lost += 1;
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!(
        lost >= 1 && answered >= 1,
        "{lost} lost, {answered} answered"
    );
    assert_eq!(client.stats().reconnects, 1);
}

#[test]
fn without_reconnecting_everything_fails_with_what_became_of_it() {
    let mut peer = Peer::serve(|mut stream| {
        let frame = stream.next().unwrap();
        stream.answer(&frame);
    });
    let client = Client::builder()
        .reconnect(false)
        .shm_upgrade(false)
        .connect(peer.address())
        .unwrap();
    client.call(APP, b"x").unwrap();
    peer.stop();
    until_ended(&client);
    std::thread::sleep(Duration::from_millis(10));
    for _ in 0..2 {
        for error in [
            client.call(APP, b"x").unwrap_err(),
            client.send(APP, b"x").unwrap_err(),
        ] {
            let safe = matches!(
                error,
                Error::ConnectionLost {
                    may_have_run: false,
                    ..
                }
            );
            assert!(safe && error.is_safe_to_repeat(), "{error}");
        }
    }
    assert_eq!(client.in_flight(), 0);
}

#[test]
fn a_pool_does_not_hand_out_what_has_ended() {
    let peer = Peer::serve_numbered(|number, mut stream| {
        if number == 0 {
            let first = stream.next().unwrap();
            let second = stream.next().unwrap();
            stream.answer(&second);
            let cancel = stream.next().unwrap();
            assert_eq!(cancel.header.msg_type, msg_type::CANCEL);
            // On its way already.
            stream.answer(&first);
            return;
        }
        while let Some(frame) = stream.next() {
            stream.answer(&frame);
        }
    });
    let pool = ConnectionPool::builder()
        .endpoint(peer.address())
        .client(Client::builder().shm_upgrade(false).reconnect(false))
        .build()
        .unwrap();
    let connection = pool.get().unwrap();
    connection.submit(APP, b"left").unwrap();
    connection.call(APP, b"x").unwrap();
    drop(connection);
    std::thread::sleep(Duration::from_millis(100));
    let connection = pool.get().unwrap();
    let outcome = connection.call(APP, b"y");
    assert_eq!(outcome.unwrap(), b"y");
    drop(connection);
    drop(pool);
}

#[test]
fn nobody_there() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap().to_string();
    drop(free);
    let error = Client::connect(&address).unwrap_err();
    assert!(matches!(error, Error::ConnectFailed { .. }), "{error}");
    assert!(
        error.to_string().contains("is lapce_ipc_server running"),
        "{error}"
    );
    assert!(error.is_safe_to_repeat() && error.is_retryable());
}

#[test]
fn a_server_that_closes_in_the_middle_of_an_answer() {
    let peer = Peer::serve(|mut stream| {
        let frame = stream.next().unwrap();
        let response = frame.response();
        stream.write_all(&response[..response.len() - 1]).unwrap();
    });
    let client = connect(&peer);
    let error = client.call(APP, b"payload").unwrap_err();
    assert!(
        matches!(
            error,
            Error::ConnectionLost {
                may_have_run: true,
                ..
            }
        ),
        "{error}"
    );
    assert!(error.is_connection_lost() && error.is_retryable() && !error.is_safe_to_repeat());
    assert!(error.to_string().contains("may or may not"), "{error}");
    assert_eq!(client.in_flight(), 0);
    assert!(client.poll().unwrap().is_none());
}

#[test]
fn a_restarted_server_is_found_again() {
    let first = server();
    let address = address(&first);
    let client = Client::connect(&address).unwrap();
    client.ping().unwrap();
    first.stop();
    let restart = {
        let address = address.clone();
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(30));
            Server::builder().bind(address).workers(1).start().unwrap()
        })
    };
    until_ended(&client);
    std::thread::sleep(Duration::from_millis(10));
    client.ping().unwrap();
    assert_eq!(client.stats().reconnects, 1);
    drop(restart.join().unwrap());
}
