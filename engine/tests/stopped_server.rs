//! Servers that stop reading, or go for good: no call outlives its timeout, no answer that came is lost, and
//! nothing that was carried out is said to be safe to repeat.

mod support;

use std::net::{SocketAddr, TcpListener};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use lapce_ai::ipc::{Client, Error};
use support::*;

const WORK: u16 = 0x0100;
/// More than sockets hold.
const LONG: usize = 10 << 20;

fn client(address: SocketAddr, timeout_ms: u64) -> Client {
    Client::builder()
        .shm_upgrade(false)
        .timeout(Duration::from_millis(timeout_ms))
        .connect(&address.to_string())
        .unwrap()
}

/// A server for one connection, and how it is told to go on. It ends when nobody can tell it any more.
fn server_of_one(
    serve: impl FnOnce(Peer, Receiver<()>) + Send + 'static,
) -> (SocketAddr, Sender<()>, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (go_on, told) = channel();
    let thread = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        drop(listener);
        serve(Peer::over(stream), told);
    });
    (address, go_on, thread)
}

#[test]
fn what_was_carried_out_is_not_safe_to_repeat() {
    let (address, go_on, server) = server_of_one(|mut peer, _| {
        assert_eq!(peer.receive().payload, b"first");
    });
    let lost = client(address, 500);
    let first = lost.submit(WORK, b"first").unwrap();
    lost.flush().unwrap();
    server.join().unwrap();
    std::thread::sleep(Duration::from_millis(20));
    // This one is not sent, and nobody will take it.
    lost.submit(WORK, b"second").unwrap();
    let error = lost.wait(first).unwrap_err();
    assert!(!error.is_safe_to_repeat(), "{error}");
    drop(go_on);
    // The same of several attempts of which the first was.
    let (address, _go_on, _server) = server_of_one(|mut peer, _| drop(peer.receive()));
    let error = client(address, 300)
        .call_idempotent(WORK, b"x")
        .unwrap_err();
    assert!(!error.is_safe_to_repeat(), "{error}");
}

#[test]
fn an_answer_that_came_is_not_lost_to_what_cannot_be_sent() {
    let (address, go_on, server) = server_of_one(|mut peer, told| {
        let request = peer.receive();
        told.recv().unwrap();
        std::thread::sleep(Duration::from_millis(50));
        peer.send(&frame(RESPONSE, WORK, request.msg_id, b"the answer"));
        // It reads no more.
        let _ = told.recv();
    });
    let client = client(address, 500);
    let first = client.submit(WORK, b"first").unwrap();
    client.flush().unwrap();
    let late = client.submit(WORK, &vec![7; LONG]);
    assert!(matches!(late, Err(Error::Timeout { .. })), "{late:?}");
    go_on.send(()).unwrap();
    assert_eq!(client.wait(first).unwrap(), b"the answer");
    drop((client, go_on));
    server.join().unwrap();
}

/// Calls that could not be sent in time are over: they take no place, and little memory.
#[test]
fn calls_that_could_not_be_sent_leave_nothing() {
    let (address, go_on, server) = server_of_one(|_peer, told| {
        let _ = told.recv();
    });
    let client = client(address, 10);
    let payload = vec![7; LONG / 4];
    let before = resident_bytes();
    let mut not_sent = 0;
    for _ in 0..50 {
        for error in [
            client.call(WORK, &payload).unwrap_err(),
            client.send(WORK, &payload).unwrap_err(),
        ] {
            // Once the socket's buffers are full and one is sent by half, the others stay behind it.
            match error {
                Error::NotSent { .. } => not_sent += 1,
                error => assert!(matches!(error, Error::Timeout { .. }), "{error:?}"),
            }
        }
    }
    assert!(not_sent > 50, "{not_sent}");
    assert_eq!(client.in_flight(), 0);
    let grown = resident_bytes().saturating_sub(before);
    assert!(
        grown < 5 * LONG as u64,
        "{grown} bytes for what was given up"
    );
    drop(go_on);
    server.join().unwrap();
}
