//! The client with real servers that restart, and with false ones that break the protocol.

mod support;

use std::net::{SocketAddr, TcpListener};
use std::thread::JoinHandle;
use std::time::Duration;

use lapce_ai::ipc::{
    Client, ClientBuilder, ConnectionPool, Error, ErrorCode, Server, Transport, msg_type,
};
use support::*;

const WORK: u16 = 0x0100;

fn builder() -> ClientBuilder {
    Client::builder().timeout(PATIENCE).shm_upgrade(false)
}

fn connect(address: SocketAddr) -> Client {
    builder().connect(&address.to_string()).unwrap()
}

/// A false server: runs `serve` for the first connection.
fn fake(serve: impl FnOnce(Peer) + Send + 'static) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let thread = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        drop(listener);
        serve(Peer::over(stream));
    });
    (address, thread)
}

fn response(msg_type: u16, msg_id: u64, payload: &[u8]) -> Vec<u8> {
    frame(RESPONSE, msg_type, msg_id, payload)
}

/// Listens again on a port that was in use a moment ago.
fn restart(address: SocketAddr) -> Server {
    let mut server = None;
    eventually("the port is free", || {
        server = support::server().bind(address.to_string()).start().ok();
        server.is_some()
    });
    server.unwrap()
}

#[test]
fn the_bytes_on_the_wire() {
    let (address, server) = fake(|mut peer| {
        let request = peer.receive();
        assert_eq!((request.flags, request.msg_type), (REQUEST, WORK));
        assert_ne!(request.msg_id, 0);
        assert_eq!(request.payload, b"question");
        let mut answer = response(WORK, request.msg_id, b"answer");
        // Noise that means nothing to anybody: a message of a provider's, an old answer.
        answer.extend(frame(0, 0x0777, 0, b"one-way"));
        answer.extend(response(WORK, 999_999, b"of somebody else"));
        peer.send(&answer);
        let one_way = peer.receive();
        assert_eq!((one_way.flags, one_way.msg_type), (0, 0x0200));
        assert_eq!(one_way.payload, b"news");
        let next = peer.receive();
        assert_ne!(next.msg_id, request.msg_id);
        peer.send(&response(ECHO, next.msg_id, b"x"));
        // Dropping the client says goodbye.
        let goodbye = peer.receive();
        assert_eq!((goodbye.flags, goodbye.msg_type), (0, DISCONNECT));
        peer.expect_end();
    });
    let client = connect(address);
    assert_eq!(client.call(WORK, b"question").unwrap(), b"answer");
    client.send(0x0200, b"news").unwrap();
    assert_eq!(client.call(ECHO, b"x").unwrap(), b"x");
    drop(client);
    server.join().unwrap();
}

#[test]
fn answers_out_of_order_find_their_requests() {
    let (address, server) = fake(|mut peer| {
        let requests: Vec<_> = (0..50).map(|_| peer.receive()).collect();
        for request in requests.iter().rev() {
            let mut payload = request.payload.clone();
            payload.push(1);
            peer.send(&response(WORK, request.msg_id, &payload));
        }
        while peer.try_receive().is_some() {}
    });
    let client = connect(address);
    let ids: Vec<_> = (0..50u64)
        .map(|n| (n, client.submit(WORK, &pattern(n, 30)).unwrap()))
        .collect();
    // Collected in an order of their own.
    for (n, id) in ids.into_iter().filter(|(n, _)| n % 3 > 0) {
        let answer = client.wait(id).unwrap();
        assert!(answer[..30] == pattern(n, 30) && answer[30..] == [1]);
    }
    let mut rest = 0;
    while let Some(answer) = client.poll().unwrap() {
        assert_eq!(answer.result.unwrap().len(), 31);
        rest += 1;
    }
    assert_eq!((rest, client.in_flight()), (17, 0));
    drop(client);
    server.join().unwrap();
}

/// What a call gets when the server answers with these bytes.
fn answered_with(answer: impl FnOnce(Frame) -> Vec<u8> + Send + 'static) -> Error {
    let (address, server) = fake(|mut peer| {
        let request = peer.receive();
        peer.send(&answer(request));
        peer.expect_gone();
    });
    let client = builder()
        .reconnect(false)
        .connect(&address.to_string())
        .unwrap();
    let error = client.call(WORK, b"x").unwrap_err();
    // The connection is of no more use, and everybody is told so.
    assert!(!client.is_connected());
    assert!(client.call(WORK, b"x").is_err());
    server.join().unwrap();
    error
}

#[test]
fn a_server_that_breaks_the_protocol_is_not_listened_to() {
    let bad_crc = |request: Frame| {
        let mut bytes = response(WORK, request.msg_id, b"damaged");
        bytes[25] ^= 0x10;
        bytes
    };
    let bad_magic = |request: Frame| {
        let mut bytes = response(WORK, request.msg_id, b"x");
        bytes[1] = b'?';
        bytes
    };
    let bad_version = |request: Frame| {
        let mut bytes = response(WORK, request.msg_id, b"x");
        bytes[4] = 3;
        seal(&mut bytes);
        bytes
    };
    let bad_flags = |request: Frame| frame(REQUEST | RESPONSE, WORK, request.msg_id, b"x");
    let bad_type = |request: Frame| response(0, request.msg_id, b"x");
    let too_large = |request: Frame| {
        let mut bytes = response(WORK, request.msg_id, b"");
        bytes[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
        bytes
    };
    let http = |_: Frame| b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec();
    type Breaking = Box<dyn FnOnce(Frame) -> Vec<u8> + Send>;
    let answers: [(Breaking, ErrorCode); 7] = [
        (Box::new(bad_crc), ErrorCode::CrcMismatch),
        (Box::new(bad_magic), ErrorCode::BadMagic),
        (Box::new(bad_version), ErrorCode::VersionMismatch),
        (Box::new(bad_flags), ErrorCode::BadFlags),
        (Box::new(bad_type), ErrorCode::BadFlags),
        (Box::new(too_large), ErrorCode::TooLarge),
        (Box::new(http), ErrorCode::BadMagic),
    ];
    for (answer, code) in answers {
        let error = answered_with(answer);
        assert!(
            matches!(&error, Error::ServerViolation(refusal) if refusal.code() == code),
            "{code}: {error:?}"
        );
    }
}

#[test]
fn an_error_answer_keeps_the_connection() {
    let (address, server) = fake(|mut peer| {
        let request = peer.receive();
        peer.send(&frame(RESPONSE, ERROR, request.msg_id, b"\x08\0later"));
        let request = peer.receive();
        peer.send(&frame(
            RESPONSE,
            ERROR,
            request.msg_id,
            b"\xFF\xFFof the future",
        ));
        let request = peer.receive();
        peer.send(&response(WORK, request.msg_id, b"fine"));
        peer.expect_gone();
    });
    let client = connect(address);
    let error = client.call(WORK, b"").unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::Overloaded));
    assert!(error.is_safe_to_repeat() && error.to_string() == "later");
    match client.call(WORK, b"").unwrap_err() {
        Error::Remote {
            code: None,
            message,
        } => assert_eq!(message, "of the future"),
        other => panic!("{other:?}"),
    }
    assert_eq!(client.call(WORK, b"").unwrap(), b"fine");
    drop(client);
    server.join().unwrap();
}

#[test]
fn a_server_that_ends_in_the_middle_of_an_answer() {
    for cut in [0, 1, 23, 24, 100] {
        let (address, server) = fake(move |mut peer| {
            let request = peer.receive();
            peer.send(&response(WORK, request.msg_id, &pattern(1, 1000))[..cut]);
        });
        let client = builder()
            .reconnect(false)
            .connect(&address.to_string())
            .unwrap();
        match client.call(WORK, b"x") {
            Err(error @ Error::ConnectionLost { may_have_run, .. }) => {
                assert!(may_have_run && !error.is_safe_to_repeat(), "{error:?}");
            }
            other => panic!("{other:?}"),
        }
        server.join().unwrap();
    }
}

#[test]
fn no_answer_in_time() {
    let (address, server) = fake(|mut peer| {
        let late = peer.receive();
        let cancelled = peer.receive();
        assert_eq!((cancelled.flags, cancelled.msg_type), (0, CANCEL));
        assert_eq!(
            (cancelled.msg_id, &cancelled.payload[..]),
            (late.msg_id, &b""[..])
        );
        let next = peer.receive();
        // The answer that nobody waits for any more is not taken for another.
        peer.send(&response(WORK, late.msg_id, b"late"));
        peer.send(&response(WORK, next.msg_id, b"next"));
        peer.expect_gone();
    });
    let client = Client::builder()
        .shm_upgrade(false)
        .timeout(Duration::from_millis(300))
        .connect(&address.to_string())
        .unwrap();
    match client.call(WORK, b"") {
        Err(Error::Timeout { after }) => assert_eq!(after, Duration::from_millis(300)),
        other => panic!("{other:?}"),
    }
    assert_eq!(client.in_flight(), 0);
    // A slow machine may pass the limit once more; the answers stay those of their requests.
    match client.call(WORK, b"") {
        Ok(answer) => assert_eq!(answer, b"next"),
        Err(error) => assert!(matches!(error, Error::Timeout { .. }), "{error:?}"),
    }
    drop(client);
    server.join().unwrap();
}

#[test]
fn a_restarted_server_is_found_without_losing_a_call() {
    let mut server = echo_server();
    let address = address(&server);
    let client = connect(address);
    for round in 1..=4u64 {
        for n in 0..50 {
            let payload = pattern(n, 2000);
            assert!(client.call(ECHO, &payload).unwrap() == payload);
        }
        server.stop();
        // Long enough for the client to look before it sends.
        std::thread::sleep(Duration::from_millis(50));
        server = restart(address);
        assert_eq!(client.call(ECHO, b"first again").unwrap(), b"first again");
        assert_eq!(client.stats().reconnects, round);
    }
}

#[test]
fn idempotent_calls_survive_restarts_under_way() {
    let server = echo_server();
    let address = address(&server);
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let threads: Vec<_> = (0..3u64)
        .map(|seed| {
            let stop = stop.clone();
            std::thread::spawn(move || {
                let client = connect(address);
                let (mut calls, mut refused) = (0u64, 0u64);
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let payload = pattern(seed + calls, 500);
                    match client.call_idempotent(ECHO, &payload) {
                        Ok(answer) => assert!(answer == payload),
                        // The server that is ending says so; the caller decides what then.
                        Err(error) => {
                            assert_eq!(error.code(), Some(ErrorCode::ShuttingDown), "{error:?}");
                            refused += 1;
                            std::thread::sleep(Duration::from_millis(20));
                        }
                    }
                    calls += 1;
                }
                (calls, refused, client.stats().reconnects)
            })
        })
        .collect();
    let mut server = server;
    for _ in 0..4 {
        std::thread::sleep(Duration::from_millis(150));
        server.stop();
        server = restart(address);
    }
    std::thread::sleep(Duration::from_millis(150));
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    for thread in threads {
        let (calls, refused, reconnects) = thread.join().unwrap();
        assert!(calls > refused && reconnects >= 1);
    }
}

#[test]
fn what_was_in_flight_at_a_crash_may_have_run() {
    let (address, server) = fake(|mut peer| {
        for _ in 0..5 {
            peer.receive();
        }
        // Gone without an answer.
    });
    let client = builder()
        .reconnect(false)
        .connect(&address.to_string())
        .unwrap();
    let ids: Vec<_> = (0..5).map(|_| client.submit(WORK, b"x").unwrap()).collect();
    client.flush().unwrap();
    for id in ids {
        match client.wait(id) {
            Err(Error::ConnectionLost { may_have_run, .. }) => assert!(may_have_run),
            other => panic!("{other:?}"),
        }
    }
    server.join().unwrap();
    // This one was never sent.
    match client.call(WORK, b"x") {
        Err(error @ Error::ConnectionLost { .. }) => assert!(error.is_safe_to_repeat()),
        other => panic!("{other:?}"),
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
