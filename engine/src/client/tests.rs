//! The client against servers that behave as no good server does.

mod absent;
mod cancel;
mod endless;
mod garbage;
mod killed;
mod lengths;
mod long;
mod loss;
mod peer;
mod refused;
mod shm;
mod taken_back;

use std::io::Write;
use std::time::{Duration, Instant};

use super::{Client, Error};
use crate::ipc::{IdleMode, Responder, Server};
use crate::wire::{ErrorCode, Flags, ProtocolVersion, Refusal, msg_type};
use peer::Peer;

const APP: u16 = 0x0100;

fn connect(peer: &Peer) -> Client {
    Client::builder()
        .timeout(Duration::from_secs(20))
        .shm_upgrade(false)
        .connect(peer.address())
        .unwrap()
}

#[test]
fn every_waiting_mode_gets_its_answers() {
    for idle in [IdleMode::Spin, IdleMode::Adaptive, IdleMode::Park] {
        let peer = Peer::serve(|mut stream| {
            // Ends with the client.
            while let Some(frame) = stream.next() {
                // Long enough for each mode to go through all that it does.
                std::thread::sleep(Duration::from_millis(2));
                stream.answer(&frame);
            }
        });
        let client = Client::builder()
            .idle(idle)
            .shm_upgrade(false)
            .connect(peer.address())
            .unwrap();
        for number in 0..5u8 {
            assert_eq!(client.call(APP, &[number; 100]).unwrap(), [number; 100]);
        }
        assert_eq!(client.stats().received, 5);
    }
}

#[test]
fn answers_one_byte_at_a_time() {
    let peer = Peer::serve(|mut stream| {
        while let Some(frame) = stream.next() {
            for byte in frame.response() {
                // Nobody is left for the answer to the goodbye.
                let _ = stream.write_all(&[byte]);
            }
        }
    });
    let client = connect(&peer);
    for length in [0, 1, 23, 24, 25, 300] {
        let payload = vec![length as u8; length];
        assert_eq!(client.call(APP, &payload).unwrap(), payload);
    }
}

#[test]
fn answers_in_any_order() {
    let peer = Peer::serve(|mut stream| {
        let mut frames = stream.take(100);
        frames.reverse();
        for frame in &frames {
            stream.answer(frame);
        }
        stream.until_closed();
    });
    let client = connect(&peer);
    let ids: Vec<u64> = (0..100u32)
        .map(|number| client.submit(APP, &number.to_le_bytes()).unwrap())
        .collect();
    for (number, &id) in ids.iter().enumerate() {
        assert_eq!(client.wait(id).unwrap(), (number as u32).to_le_bytes());
        assert!(matches!(client.wait(id), Err(Error::InvalidRequest(_))));
    }
    assert_eq!(client.in_flight(), 0);
    assert!(matches!(client.wait_any(), Err(Error::InvalidRequest(_))));
}

#[test]
fn polling_takes_what_is_there_and_waits_for_nothing() {
    let peer = Peer::serve(|mut stream| {
        while let Some(frame) = stream.next() {
            stream.answer(&frame);
        }
    });
    let client = connect(&peer);
    assert!(client.poll().unwrap().is_none());
    let mut wanted: Vec<u64> = (0..50).map(|_| client.submit(APP, b"x").unwrap()).collect();
    while !wanted.is_empty() {
        if let Some(answer) = client.poll().unwrap() {
            assert!(answer.last && answer.result.unwrap() == b"x");
            wanted.retain(|&id| id != answer.id);
        }
    }
    for _ in 0..50 {
        client.submit(APP, b"y").unwrap();
    }
    let mut got = 0;
    while got < 50 {
        got += client
            .wait_with(|answer| assert_eq!(answer.result.unwrap(), b"y"))
            .unwrap();
    }
    assert_eq!(client.poll_with(|_| panic!("nothing is left")).unwrap(), 0);
}

#[test]
fn more_requests_than_may_be_in_flight_wait_for_answers() {
    let peer = Peer::serve(|mut stream| {
        while let Some(frame) = stream.next() {
            stream.answer(&frame);
        }
    });
    let client = Client::builder()
        .max_inflight(4)
        .shm_upgrade(false)
        .connect(peer.address())
        .unwrap();
    let ids: Vec<u64> = (0..100u8)
        .map(|number| {
            assert!(client.in_flight() <= 4);
            client.submit(APP, &[number]).unwrap()
        })
        .collect();
    for (number, id) in ids.into_iter().enumerate() {
        assert_eq!(client.wait(id).unwrap(), [number as u8]);
    }
}

#[test]
fn neither_side_waits_for_the_other_when_both_are_full() {
    // Answers each part with ten times as much before it reads the next.
    let peer = Peer::serve(|mut stream| {
        while let Some(frame) = stream.next() {
            let long = frame.payload.repeat(10);
            stream.write_frame(Flags::RESPONSE, frame.header.msg_type, frame.id(), &long);
        }
    });
    let client = connect(&peer);
    let ids: Vec<u64> = (0..300u32)
        .map(|number| client.submit(APP, &vec![number as u8; 10_000]).unwrap())
        .collect();
    for (number, id) in ids.into_iter().enumerate() {
        assert_eq!(client.wait(id).unwrap(), vec![number as u8; 100_000]);
    }
}

#[test]
fn a_server_that_never_answers_is_not_waited_for_longer_than_allowed() {
    let peer = Peer::serve(|mut stream| {
        let first = stream.next().unwrap();
        let second = stream.next_request().unwrap();
        // The first answer is late, and nobody's any more.
        stream.answer(&first);
        stream.answer(&second);
        stream.until_closed();
    });
    for idle in [IdleMode::Spin, IdleMode::Adaptive, IdleMode::Park] {
        let client = Client::builder()
            .timeout(Duration::from_millis(30))
            .idle(idle)
            .shm_upgrade(false)
            .connect(peer.address())
            .unwrap();
        let start = Instant::now();
        let error = client.call(APP, b"first").unwrap_err();
        assert!(
            matches!(error, Error::Timeout { .. }) && error.is_retryable(),
            "{error}"
        );
        assert!(!error.is_safe_to_repeat());
        assert!(start.elapsed() >= Duration::from_millis(30));
        assert_eq!(client.in_flight(), 0);
        let id = client.submit(APP, b"second").unwrap();
        // The scheduler may need longer than the timeout.
        let answer = loop {
            match client.wait_any() {
                Err(Error::Timeout { .. }) => {}
                answer => break answer.unwrap(),
            }
        };
        assert_eq!(
            (answer.id, answer.result.unwrap()),
            (id, b"second".to_vec())
        );
    }
}

#[test]
fn streams_come_in_parts_or_joined_and_may_be_left_early() {
    let peer = Peer::serve(|mut stream| {
        while let Some(frame) = stream.next() {
            let (msg_type, id) = (frame.header.msg_type, frame.id());
            for part in [b"a", b"b"] {
                let flags = Flags::RESPONSE | Flags::STREAM;
                stream.write_frame(flags, msg_type, id, part);
            }
            stream.write_frame(Flags::RESPONSE, msg_type, id, b"c");
        }
    });
    let client = connect(&peer);
    let parts: Result<Vec<_>, _> = client.call_stream(APP, b"").unwrap().collect();
    assert_eq!(parts.unwrap(), [b"a", b"b", b"c"]);
    assert_eq!(client.call(APP, b"").unwrap(), b"abc");
    let mut parts = client.call_stream(APP, b"").unwrap();
    assert_eq!(parts.next().unwrap().unwrap(), b"a");
    drop(parts);
    assert_eq!(client.in_flight(), 0);
    // Two at a time.
    let mut one = client.call_stream(APP, b"").unwrap();
    let mut two = client.call_stream(APP, b"").unwrap();
    for part in [b"a", b"b", b"c"] {
        assert_eq!(two.next().unwrap().unwrap(), part);
        assert_eq!(one.next().unwrap().unwrap(), part);
    }
    assert!(one.next().is_none() && two.next().is_none());
    // Taken away by another method.
    let mut parts = client.call_stream(APP, b"").unwrap();
    for _ in 0..3 {
        client.wait_any().unwrap();
    }
    assert!(matches!(parts.next(), Some(Err(Error::InvalidRequest(_)))));
    assert!(parts.next().is_none());
}

#[test]
fn answers_that_nobody_collects_are_bounded() {
    let peer = Peer::serve(|mut stream| {
        let endless = stream.next().unwrap();
        let other = stream.next().unwrap();
        for _ in 0..1000 {
            let flags = Flags::RESPONSE | Flags::STREAM;
            stream.write_frame(flags, APP, endless.id(), &[0; 1000]);
        }
        stream.answer(&other);
        stream.until_closed();
    });
    let client = Client::builder()
        .max_unread_bytes(20_000)
        .shm_upgrade(false)
        .connect(peer.address())
        .unwrap();
    let parts = client.call_stream(APP, b"").unwrap();
    assert_eq!(client.call(APP, b"other").unwrap(), b"other");
    let parts: Vec<_> = parts.collect();
    let (last, others) = parts.split_last().unwrap();
    assert!(matches!(last, Err(Error::Unread { max: 20_000 })));
    assert!(others.len() < 20 && others.iter().all(Result::is_ok));
}

#[test]
fn damage_on_the_way_is_noticed() {
    let peer = Peer::serve(|mut stream| {
        let frame = stream.next().unwrap();
        let mut response = frame.response();
        *response.last_mut().unwrap() ^= 1;
        stream.write_all(&response).unwrap();
        stream.until_closed();
    });
    let client = connect(&peer);
    let error = client.call(APP, b"x").unwrap_err();
    let Error::ServerViolation(Refusal::CrcMismatch { expected, got }) = error else {
        panic!("{error}");
    };
    assert_eq!(
        error.to_string(),
        format!(
            "The server broke the protocol: CRC32 mismatch: expected 0x{expected:08X}, got 0x{got:08X}"
        )
    );
    assert!(error.is_connection_lost() && !client.is_connected());
    assert!(client.poll().unwrap().is_none(), "reported once");
}

#[test]
fn the_servers_refusal_is_shown_in_its_own_words() {
    let text = "CRC32 mismatch: expected 0x12345678, got 0x87654321";
    let peer = Peer::serve(move |mut stream| {
        stream.next().unwrap();
        stream.write_error(Flags::NONE, 0, ErrorCode::CrcMismatch, text);
    });
    let client = connect(&peer);
    let error = client.call(APP, b"x").unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::CrcMismatch));
    assert_eq!(error.to_string(), text);
    assert!(!client.is_connected());
}

#[test]
fn an_answer_that_does_not_inflate_costs_its_request_only() {
    let peer = Peer::serve(|mut stream| {
        let frame = stream.next().unwrap();
        let flags = Flags::RESPONSE | Flags::COMPRESSED;
        stream.write_frame(flags, APP, frame.id(), b"no");
        let frame = stream.next().unwrap();
        let mut packed = Vec::new();
        assert!(crate::wire::compress(&[9; 10_000], &mut packed));
        stream.write_frame(flags, APP, frame.id(), &packed);
        stream.until_closed();
    });
    let client = connect(&peer);
    let error = client.call(APP, b"").unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::BadPayload));
    assert_eq!(client.call(APP, b"").unwrap(), [9; 10_000]);
    assert_eq!(client.stats().reconnects, 0);
}

#[test]
fn cancelling_tells_the_server_and_forgets() {
    let peer = Peer::serve(|mut stream| {
        let frame = stream.next().unwrap();
        let cancel = stream.next().unwrap();
        assert_eq!(cancel.header.msg_type, msg_type::CANCEL);
        assert_eq!(cancel.header.flags, Flags::NONE);
        assert_eq!(cancel.id(), frame.id());
        // Too late: already answered.
        stream.answer(&frame);
        let frame = stream.next().unwrap();
        stream.answer(&frame);
        let goodbye = stream.next().unwrap();
        assert_eq!(goodbye.header.msg_type, msg_type::DISCONNECT);
        assert!(stream.next().is_none());
    });
    let client = connect(&peer);
    let id = client.submit(APP, b"unwanted").unwrap();
    client.flush().unwrap();
    client.cancel(id).unwrap();
    assert_eq!(client.in_flight(), 0);
    client.cancel(id).unwrap();
    assert_eq!(client.call(APP, b"wanted").unwrap(), b"wanted");
    client.close();
    peer.join();
}

#[test]
fn a_server_of_the_other_version_is_named() {
    let peer = Peer::serve(|mut stream| {
        stream.wait_for_bytes();
        let mut answer = Vec::new();
        crate::wire::legacy::encode_to(&mut answer, msg_type::ERROR, 0, b"?");
        stream.write_all(&answer).unwrap();
        stream.until_closed();
    });
    let error = connect(&peer).call(APP, b"").unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::VersionMismatch));
    assert!(
        error
            .to_string()
            .ends_with("Protocol version mismatch: expected 2, got 1"),
        "{error}"
    );
}

fn server() -> Server {
    Server::builder()
        .bind("127.0.0.1:0")
        .workers(1)
        .legacy(true)
        .handler(APP, |_, mut responder: Responder<'_>| {
            responder.stream_part(b"one ");
            responder.reply(b"two");
        })
        .start()
        .unwrap()
}

fn address(server: &Server) -> String {
    server.local_addr().unwrap().to_string()
}

#[test]
fn both_versions_with_the_real_server() {
    let server = server();
    for version in [ProtocolVersion::V1, ProtocolVersion::V2] {
        let client = Client::builder()
            .protocol_version(version)
            .record_round_trips(true)
            .connect(&address(&server))
            .unwrap();
        for length in [0, 1, 100, 70_000, 1 << 20] {
            let payload = vec![5; length];
            assert_eq!(client.call(msg_type::ECHO, &payload).unwrap(), payload);
        }
        let error = client.call(0x0999, b"").unwrap_err();
        assert_eq!(error.code(), Some(ErrorCode::UnknownType));
        let ids: Vec<u64> = (0..2000u32)
            .map(|number| {
                client
                    .submit(msg_type::ECHO, &number.to_le_bytes())
                    .unwrap()
            })
            .collect();
        for (number, id) in ids.into_iter().enumerate() {
            assert_eq!(client.wait(id).unwrap(), (number as u32).to_le_bytes());
        }
        assert_eq!(client.round_trips().unwrap().len(), 2006);
        let one_way = client.send(0x0100, b"");
        match version {
            ProtocolVersion::V1 => assert!(matches!(one_way, Err(Error::InvalidRequest(_)))),
            ProtocolVersion::V2 => one_way.unwrap(),
        }
    }
}

#[test]
fn the_real_servers_refusals() {
    let limits = crate::config::Limits {
        max_message_bytes: 1000,
        ..Default::default()
    };
    let server = Server::builder()
        .bind("127.0.0.1:0")
        .workers(1)
        .limits(limits)
        .auth_token("secret")
        .start()
        .unwrap();
    let address = address(&server);
    // Refused with the handshake of the upgrade, or with the first request where there is none.
    let error = Client::connect(&address).unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::Unauthorized));
    let error = Client::builder()
        .shm_upgrade(false)
        .connect(&address)
        .unwrap()
        .call(APP, b"")
        .unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::Unauthorized));
    let error = Client::builder()
        .auth_token("wrong")
        .connect(&address)
        .unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::Unauthorized));
    let builder = Client::builder().auth_token("secret");
    assert!(!format!("{builder:?}").contains("secret"));
    let client = builder.connect(&address).unwrap();
    assert_eq!(client.peer_limits().max_message_bytes, Some(1000));
    client.call(msg_type::ECHO, &[0; 1000]).unwrap();
    let error = client.call(msg_type::ECHO, &[0; 1001]).unwrap_err();
    assert!(matches!(
        error,
        Error::TooLarge {
            length: 1001,
            max: 1000
        }
    ));
    client.ping().unwrap();
    assert_eq!(client.stats().reconnects, 0);
    // Version 1 is off.
    let old = Client::builder()
        .protocol_version(ProtocolVersion::V1)
        .connect(&address)
        .unwrap();
    let error = old.call(msg_type::ECHO, b"").unwrap_err();
    assert_eq!(
        error.to_string(),
        "Protocol version mismatch: expected 2, got 1"
    );
}

#[test]
fn a_client_can_be_sent_to_another_thread() {
    fn is_send<T: Send>(value: T) -> T {
        value
    }
    let server = server();
    let client = is_send(Client::connect(&address(&server)).unwrap());
    let client = std::thread::spawn(move || {
        client.ping().unwrap();
        client
    })
    .join()
    .unwrap();
    client.ping().unwrap();
}
