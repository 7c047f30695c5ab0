//! Handlers: answering inline, later, in parts, wrongly, and not at all; and a server that stops.

mod support;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use lapce_ai::ipc::{Client, Error, ErrorCode, Limits, Request, Responder, ServerError, Transport};
use support::*;

#[test]
fn a_handler_sees_its_request() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let notes = seen.clone();
    let server = serving(move |request, responder| {
        let peer = request.peer().unwrap();
        assert_eq!(request.transport(), Transport::Tcp);
        assert!(request.expects_answer() && !request.is_stream_part());
        notes
            .lock()
            .unwrap()
            .push((request.msg_type(), request.msg_id(), peer));
        responder.reply(request.payload());
    });
    let mut peer = Peer::connect(address(&server));
    peer.send(&request(WORK, 0xABCD, b"x"));
    assert_eq!(peer.receive().payload, b"x");
    let local = peer.stream.local_addr().unwrap();
    assert_eq!(*seen.lock().unwrap(), [(WORK, 0xABCD, local)]);
}

#[test]
fn the_last_handler_registered_counts_and_echo_may_not_be_replaced() {
    let server = server()
        .handler(WORK, |_: Request<'_>, responder: Responder<'_>| {
            responder.reply(b"first")
        })
        .handler(WORK, |_: Request<'_>, responder: Responder<'_>| {
            responder.reply(b"second")
        })
        .start()
        .unwrap();
    assert_eq!(client(&server).call(WORK, b"").unwrap(), b"second");
    for reserved in [0, ERROR, HEARTBEAT, HANDSHAKE, ECHO, 0x00FF] {
        let refused = support::server()
            .handler(reserved, |_: Request<'_>, _: Responder<'_>| {})
            .start();
        assert!(
            matches!(refused, Err(ServerError::ReservedType(t)) if t == reserved),
            "{reserved:#06x}"
        );
    }
}

#[test]
fn a_panicking_handler_fails_its_request_only() {
    let server = serving(|request, responder| match request.payload() {
        b"before" => panic!("on purpose"),
        b"after" => {
            responder.reply(b"fine");
            panic!("on purpose, too late to matter");
        }
        payload => responder.reply(payload),
    });
    let client = client(&server);
    for _ in 0..20 {
        match client.call(WORK, b"before") {
            Err(Error::Remote {
                code: Some(ErrorCode::HandlerFailed),
                message,
            }) => assert!(message.contains("panicked"), "{message}"),
            other => panic!("{other:?}"),
        }
        assert_eq!(client.call(WORK, b"after").unwrap(), b"fine");
        assert_eq!(client.call(WORK, b"other").unwrap(), b"other");
    }
    assert_eq!(server.stats().errors(ErrorCode::HandlerFailed), 20);
    assert_eq!(server.stats().connections_total(Transport::Tcp), 1);
}

/// What it panics with panics too when it is dropped: alone and among several, which are called in another
/// way.
#[test]
fn a_handler_that_panics_with_a_bomb_costs_nobody_else_anything() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("as it is dropped");
        }
    }
    let server = serving(|request, responder| match request.payload() {
        b"bomb" => std::panic::panic_any(Bomb),
        payload => responder.reply(payload),
    });
    let client = client(&server);
    let other = support::client(&server);
    let mut failed = 0;
    for several in [1, 8] {
        let ids: Vec<u64> = (0..several)
            .map(|_| client.submit(WORK, b"bomb").unwrap())
            .collect();
        for id in ids {
            let wanted = Some(ErrorCode::HandlerFailed);
            let answer = client.wait(id);
            assert!(matches!(answer, Err(Error::Remote { code, .. }) if code == wanted));
            failed += 1;
        }
        assert_eq!(other.call(WORK, b"other").unwrap(), b"other");
    }
    assert_eq!(server.stats().errors(ErrorCode::HandlerFailed), failed);
    assert!(!server.handle().wait_for_failure(Duration::ZERO));
}

#[test]
fn no_answer_is_a_failure() {
    let server = serving(|request, responder| match request.payload() {
        b"inline" => drop(responder),
        b"deferred" => drop(responder.detach()),
        b"thread" => {
            let deferred = responder.detach();
            std::thread::spawn(move || {
                let _deferred = deferred;
                panic!("on purpose");
            });
        }
        payload => responder.reply(payload),
    });
    let client = client(&server);
    for payload in [&b"inline"[..], b"deferred", b"thread"] {
        match client.call(WORK, payload) {
            Err(Error::Remote { code, .. }) => assert_eq!(code, Some(ErrorCode::HandlerFailed)),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(client.call(WORK, b"other").unwrap(), b"other");
}

#[test]
fn a_handlers_own_error_keeps_its_code_and_text() {
    let server = serving(|request, responder| match request.payload() {
        b"inline" => responder.error(ErrorCode::ProviderLost, "the shelf is empty: ask again"),
        _ => responder
            .detach()
            .error(ErrorCode::Timeout, "took too long: ask for less")
            .unwrap(),
    });
    let mut peer = Peer::connect(address(&server));
    peer.send(&request(WORK, 1, b"inline"));
    let got = peer.receive();
    assert_eq!((got.flags, got.msg_id), (RESPONSE, 1));
    assert_eq!(got.error(), (9, "the shelf is empty: ask again".to_owned()));
    peer.send(&request(WORK, 2, b"deferred"));
    let got = peer.receive();
    assert_eq!((got.flags, got.msg_id), (RESPONSE, 2));
    assert_eq!(got.error(), (11, "took too long: ask for less".to_owned()));
    peer.expect_alive();
}

#[test]
fn answers_that_are_too_long_become_errors() {
    let limits = Limits {
        max_message_bytes: 1000,
        ..Limits::default()
    };
    let server = server()
        .limits(limits)
        .handler(
            WORK,
            |request: Request<'_>, mut responder: Responder<'_>| match request.payload() {
                b"inline" => responder.reply(&[1; 1001]),
                b"part" => {
                    assert!(!responder.stream_part(&[1; 1001]));
                    responder.reply(&[1; 1000]);
                }
                b"cut" => {
                    let mut deferred = responder.detach();
                    std::thread::spawn(move || {
                        deferred.stream_part(vec![2; 2500]).unwrap();
                        deferred.reply(vec![3; 10]).unwrap();
                    });
                }
                _ => responder.detach().reply(vec![1; 1001]).unwrap(),
            },
        )
        .start()
        .unwrap();
    let client = client(&server);
    for payload in [&b"inline"[..], b"deferred"] {
        match client.call(WORK, payload) {
            Err(error) => assert_eq!(error.code(), Some(ErrorCode::HandlerFailed)),
            Ok(answer) => panic!("{} bytes", answer.len()),
        }
    }
    assert_eq!(client.call(WORK, b"part").unwrap(), [1; 1000]);
    let joined = client.call(WORK, b"cut").unwrap();
    assert_eq!(joined, [vec![2; 2500], vec![3; 10]].concat());
}

/// What a client has said in its handshake that it takes.
#[test]
fn answers_that_are_too_long_for_the_client() {
    let server = echo_server();
    let mut peer = Peer::connect(address(&server));
    let takes_2000 = [
        &b"\x01\0\x01\0\x02\x07\0\x04\0"[..],
        &2000_u32.to_le_bytes(),
    ]
    .concat();
    peer.send(&request(HANDSHAKE, 1, &takes_2000));
    assert_eq!(peer.receive().msg_type, HANDSHAKE_ACK);
    peer.send(&echo(2, &[7; 2000]));
    peer.expect_echo(2, &[7; 2000]);
    for flags in [REQUEST, REQUEST | STREAM] {
        peer.send(&frame(flags, ECHO, 3, &[7; 2001]));
        assert_eq!(peer.receive().error().0, 10);
    }
    peer.expect_alive();
}

#[test]
fn streams_inline() {
    let server = serving(|request, mut responder| {
        for part in request.payload().chunks(3) {
            assert!(responder.stream_part(part));
        }
        responder.reply(b".");
    });
    let mut peer = Peer::connect(address(&server));
    peer.send(&request(WORK, 5, b"abcdefgh"));
    for (flags, payload) in [
        (RESPONSE | STREAM, &b"abc"[..]),
        (RESPONSE | STREAM, b"def"),
        (RESPONSE | STREAM, b"gh"),
        (RESPONSE, b"."),
    ] {
        let got = peer.receive();
        assert_eq!((got.flags, got.msg_type, got.msg_id), (flags, WORK, 5));
        assert_eq!(got.payload, payload);
    }
    let client = client(&server);
    assert_eq!(client.call(WORK, b"abcdefgh").unwrap(), b"abcdefgh.");
    let parts: Result<Vec<_>, _> = client.call_stream(WORK, b"abcdefgh").unwrap().collect();
    assert_eq!(parts.unwrap(), [&b"abc"[..], b"def", b"gh", b"."]);
}

#[test]
fn a_long_stream_waits_for_a_slow_reader() {
    const PARTS: u64 = 400;
    const PART_BYTES: usize = 64 * 1024;
    let sent = Arc::new(AtomicU64::new(0));
    let progress = sent.clone();
    let server = serving(move |_, responder| {
        let mut deferred = responder.detach();
        let progress = progress.clone();
        std::thread::spawn(move || {
            for n in 0..PARTS {
                deferred.stream_part(pattern(n, PART_BYTES)).unwrap();
                progress.fetch_add(1, Ordering::Relaxed);
            }
            deferred.reply(b"end".to_vec()).unwrap();
        });
    });
    let mut peer = Peer::connect(address(&server));
    peer.send(&request(WORK, 1, b""));
    // It gets ahead by what the sockets and 1 MiB hold, and then stops.
    let mut before = u64::MAX;
    eventually("the stream stops", || {
        std::thread::sleep(Duration::from_millis(300));
        let now = sent.load(Ordering::Relaxed);
        let stopped = now > 0 && now == before;
        before = now;
        stopped
    });
    assert!(sent.load(Ordering::Relaxed) < PARTS, "nothing held it up");
    // Others on the same connection are served meanwhile, once they are read.
    peer.send(&echo(2, b"between"));
    let mut parts = 0;
    let mut echoed = false;
    loop {
        let got = peer.receive();
        if got.msg_id == 2 {
            assert_eq!(got.payload, b"between");
            echoed = true;
        } else if got.flags == RESPONSE | STREAM {
            assert!(got.payload == pattern(parts, PART_BYTES), "part {parts}");
            parts += 1;
        } else {
            assert_eq!((got.flags, &got.payload[..]), (RESPONSE, &b"end"[..]));
            break;
        }
    }
    assert!(echoed && parts == PARTS);
}

#[test]
fn a_stream_to_a_reader_that_went_away_ends() {
    let (outcome, ended) = mpsc::channel();
    let server = serving(move |_, responder| {
        let mut deferred = responder.detach();
        let outcome = outcome.clone();
        std::thread::spawn(move || {
            // Ends when the connection does.
            while deferred.stream_part(vec![1; 100_000]).is_ok() {}
            outcome.send(deferred.is_gone()).unwrap();
        });
    });
    let mut peer = Peer::connect(address(&server));
    peer.send(&request(WORK, 1, b""));
    assert_eq!(peer.receive().payload.len(), 100_000);
    drop(peer);
    assert!(ended.recv_timeout(PATIENCE).unwrap());
}

#[test]
fn requests_in_parts_reach_the_handler_one_by_one() {
    let gathered = Arc::new(Mutex::new(Vec::new()));
    let server = serving(move |request, responder| {
        let mut gathered = gathered.lock().unwrap();
        gathered.extend_from_slice(request.payload());
        if !request.is_stream_part() {
            responder.reply(&std::mem::take(&mut *gathered));
        }
    });
    let mut peer = Peer::connect(address(&server));
    for part in [&b"one "[..], b"two ", b"three "] {
        peer.send(&frame(REQUEST | STREAM, WORK, 4, part));
    }
    peer.send(&frame(REQUEST, WORK, 4, b"four"));
    let got = peer.receive();
    assert_eq!((got.flags, got.msg_id), (RESPONSE, 4));
    assert_eq!(got.payload, b"one two three four");
}

#[test]
fn stopping_under_load_loses_nothing_silently() {
    for workers in [1, 2] {
        // Clients that never pause are cut off at the end of this.
        let limits = Limits {
            drain_ms: 300,
            ..Limits::default()
        };
        let server = server().workers(workers).limits(limits).start().unwrap();
        let address = address(&server).to_string();
        let started = Arc::new(AtomicU64::new(0));
        let over = Arc::new(AtomicBool::new(false));
        let threads: Vec<_> = (0..4u64)
            .map(|seed| {
                let (address, started, over) = (address.clone(), started.clone(), over.clone());
                std::thread::spawn(move || {
                    let client = Client::builder()
                        .timeout(PATIENCE)
                        .reconnect(false)
                        .connect(&address)
                        .unwrap();
                    let (mut submitted, mut answered, mut failed) = (0u64, 0u64, 0u64);
                    let mut payloads = std::collections::HashMap::new();
                    'load: loop {
                        while client.in_flight() < 64 {
                            let payload = pattern(seed * 7 + submitted, (submitted % 700) as usize);
                            match client.submit(ECHO, &payload) {
                                Ok(id) => payloads.insert(id, payload),
                                Err(error) => {
                                    assert!(error.is_connection_lost(), "{error:?}");
                                    break 'load;
                                }
                            };
                            submitted += 1;
                        }
                        started.fetch_add(1, Ordering::Relaxed);
                        let waited = client.wait_with(|answer| {
                            let expected = payloads.remove(&answer.id).expect("once each");
                            match answer.result {
                                Ok(payload) => {
                                    assert!(payload == expected);
                                    answered += 1;
                                }
                                Err(_) => failed += 1,
                            }
                        });
                        if waited.is_err() {
                            break;
                        }
                        if failed > 0 && over.load(Ordering::Relaxed) {
                            break;
                        }
                    }
                    // Whatever has no answer yet gets its error.
                    while client.in_flight() > 0 || !payloads.is_empty() {
                        match client.poll() {
                            Ok(Some(answer)) => {
                                let expected = payloads.remove(&answer.id).expect("once each");
                                match answer.result {
                                    Ok(payload) => {
                                        assert!(payload == expected);
                                        answered += 1;
                                    }
                                    Err(_) => failed += 1,
                                }
                            }
                            Ok(None) => std::thread::sleep(Duration::from_millis(1)),
                            Err(error) => assert!(error.is_connection_lost(), "{error:?}"),
                        }
                    }
                    assert_eq!(submitted, answered + failed);
                    (answered, failed)
                })
            })
            .collect();
        eventually("there is load", || started.load(Ordering::Relaxed) > 200);
        let stats = server.handle();
        server.stop();
        over.store(true, Ordering::Relaxed);
        let mut answered = 0;
        for thread in threads {
            answered += thread.join().unwrap().0;
        }
        let refused = stats.stats().errors(ErrorCode::ShuttingDown);
        let taken = stats.stats().requests(Transport::Tcp);
        assert!(answered <= taken - refused);
    }
}

#[test]
fn a_handler_that_does_not_return_is_noticed() {
    let (enter, entered) = mpsc::channel();
    let (leave, left) = mpsc::channel();
    let left = Mutex::new(left);
    let server = serving(move |_: Request<'_>, responder: Responder<'_>| {
        enter.send(()).unwrap();
        left.lock().unwrap().recv().unwrap();
        responder.reply(b"");
    });
    let handle = server.handle();
    let silent = || {
        std::thread::sleep(Duration::from_millis(20));
        handle.silent_workers()
    };
    eventually("the idle worker answers", || silent().is_empty());
    let client = client(&server);
    client.submit(WORK, b"").unwrap();
    client.flush().unwrap();
    entered.recv().unwrap();
    handle.silent_workers();
    for _ in 0..3 {
        assert_eq!(silent(), [0]);
    }
    leave.send(()).unwrap();
    eventually("it answers again", || silent().is_empty());
}

#[test]
fn a_handler_may_have_some_of_the_stack() {
    let server = serving(|_, responder| {
        let mut scratch = [0u8; 600 * 1024];
        std::hint::black_box(&mut scratch).fill(7);
        responder.reply(&scratch[..4]);
    });
    assert_eq!(client(&server).call(WORK, b"").unwrap(), [7; 4]);
}
