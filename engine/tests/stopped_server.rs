//! Servers that stop reading, or go for good: no call outlives its timeout, no answer that came is lost, and
//! nothing that was carried out is said to be safe to repeat.

mod support;

use std::net::{SocketAddr, TcpListener};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use lapce_ai::ipc::{Client, ConnectionPool, Error, Limits, Transport, msg_type};
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
    for _ in 0..50 {
        let call = client.call(WORK, &payload);
        assert!(matches!(call, Err(Error::Timeout { .. })), "{call:?}");
        let sent = client.send(WORK, &payload);
        assert!(matches!(sent, Err(Error::Timeout { .. })), "{sent:?}");
    }
    assert_eq!(client.in_flight(), 0);
    let grown = resident_bytes().saturating_sub(before);
    assert!(
        grown < 5 * LONG as u64,
        "{grown} bytes for what was given up"
    );
    drop(go_on);
    server.join().unwrap();
}

/// One too many is only counted: told about the connection, it would fail the requests that run.
#[test]
fn a_one_way_message_too_many_ends_no_request() {
    let instance = format!("oneway{}", std::process::id());
    let (taken, waiting) = channel();
    let server = server()
        .shm(&instance)
        .limits(Limits {
            max_inflight_per_connection: 2,
            ..Limits::default()
        })
        .handler(
            WORK,
            move |_: lapce_ai::ipc::Request<'_>, responder: lapce_ai::ipc::Responder<'_>| {
                // The test may have ended already.
                let _ = taken.send(responder.detach());
            },
        )
        .start()
        .unwrap();
    for address in [format!("shm:{instance}"), address(&server).to_string()] {
        let builder = Client::builder().timeout(PATIENCE).shm_upgrade(false);
        let client = builder.connect(&address).unwrap();
        let ids = [b"1", b"2"].map(|payload| client.submit(WORK, payload).unwrap());
        client.flush().unwrap();
        let running = [(); 2].map(|()| waiting.recv_timeout(PATIENCE).unwrap());
        client.send(WORK, b"one way").unwrap();
        let refused = client.call(WORK, b"3").unwrap_err();
        assert_eq!(refused.code(), Some(lapce_ai::ipc::ErrorCode::Overloaded));
        for deferred in running {
            deferred.reply("done").unwrap();
        }
        for id in ids {
            assert_eq!(client.wait(id).unwrap(), b"done");
        }
    }
}

/// However little a client takes: its handshake, its pool's reports and what it waits for itself come.
#[test]
fn small_limits() {
    let instance = format!("small{}", std::process::id());
    let server = server().shm(&instance).start().unwrap();
    let address = address(&server).to_string();
    let client = Client::builder().max_message_bytes(16).connect(&address);
    assert_eq!(client.unwrap().transport(), Transport::Shm);
    let pool = ConnectionPool::builder()
        .endpoint(&address)
        .health_check_interval(Duration::from_millis(10))
        .client(Client::builder().max_message_bytes(16))
        .build()
        .unwrap();
    drop(pool.get().unwrap());
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(pool.stats().checks_failed, 0);
    let client = Client::builder()
        .max_unread_bytes(100)
        .connect(&address)
        .unwrap();
    let id = client.submit(msg_type::ECHO, &[7; 500]).unwrap();
    let answer = client.wait_any().unwrap();
    assert_eq!((answer.id, answer.result.unwrap()), (id, vec![7; 500]));
    // Answers that nobody collects are bounded, and so is what is known of those that were thrown away.
    let begun = (0..100_000).find(|_| client.submit(msg_type::ECHO, &[7; 50]).is_err());
    assert!(begun.is_some_and(|count| count < 10_000), "{begun:?}");
}
