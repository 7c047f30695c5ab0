//! Version 1 frames, served and refused.

mod support;

use lapce_ai::ipc::{Client, Error, ErrorCode, Limits, ProtocolVersion, Request, Responder};
use support::*;

const VERSION_TEXT: &str = "Protocol version mismatch: expected 2, got 1";

#[test]
fn the_header_is_nineteen_bytes_big_endian() {
    let server = server().legacy(true).start().unwrap();
    let mut peer = Peer::connect(address(&server));
    let bytes = [
        0x4C, 0x50, 0x41, 0x49, 1, 0x00, 0xF0, 0, 0, 0, 2, 1, 2, 3, 4, 5, 6, 7, 8, b'h', b'i',
    ];
    assert_eq!(frame_v1(ECHO, 0x0102_0304_0506_0708, b"hi"), bytes);
    peer.send(&bytes);
    let mut got = [0; 21];
    std::io::Read::read_exact(&mut peer.stream, &mut got).unwrap();
    assert_eq!(got, bytes);
}

#[test]
fn everything_is_a_request() {
    let server = server()
        .legacy(true)
        .handler(0x0100, |request: Request<'_>, responder: Responder<'_>| {
            assert!(request.expects_answer());
            responder.reply(&request.payload().repeat(2));
        })
        .handler(0x0101, |_: Request<'_>, _: Responder<'_>| {
            panic!("on purpose")
        })
        .start()
        .unwrap();
    let mut peer = Peer::connect(address(&server));
    let mut bytes = Vec::new();
    let large = pattern(9, 700_000);
    bytes.extend(frame_v1(0x0100, 0, b"ab")); // version 1 has no forbidden id
    bytes.extend(frame_v1(0x0222, 4, b""));
    bytes.extend(frame_v1(0x0101, 5, b""));
    bytes.extend(frame_v1(HEARTBEAT, 6, b"beat"));
    bytes.extend(frame_v1(ECHO, 7, &large));
    peer.send(&bytes);
    let mut next = || peer.try_receive_v1().unwrap();
    let doubled = next();
    assert_eq!(
        (doubled.msg_type, doubled.msg_id, &doubled.payload[..]),
        (0x0100, 0, &b"abab"[..])
    );
    let unknown = next();
    assert_eq!((unknown.msg_id, unknown.error().0), (4, 5));
    let failed = next();
    assert_eq!((failed.msg_id, failed.error().0), (5, 10));
    let beat = next();
    assert_eq!((beat.msg_type, beat.msg_id), (HEARTBEAT, 6));
    assert!(next().payload == large);
    assert_eq!(server.stats().legacy_requests(), 5);
}

#[test]
fn one_byte_at_a_time() {
    let server = server().legacy(true).start().unwrap();
    let mut peer = Peer::connect(address(&server));
    for byte in frame_v1(ECHO, 3, b"slowly") {
        peer.send(&[byte]);
        std::thread::sleep(std::time::Duration::from_micros(300));
    }
    assert_eq!(peer.try_receive_v1().unwrap().payload, b"slowly");
}

#[test]
fn refused_where_it_is_not_enabled() {
    let server = echo_server();
    for cut in [V1_HEADER_BYTES, V1_HEADER_BYTES + 3] {
        let mut peer = Peer::connect(address(&server));
        peer.send(&frame_v1(ECHO, 77, b"payload")[..cut]);
        let got = peer.try_receive_v1().unwrap();
        assert_eq!(got.msg_id, 77);
        assert_eq!(got.error(), (2, VERSION_TEXT.to_owned()));
        peer.expect_end();
    }
    // Whatever else is wrong with it.
    let mut peer = Peer::connect(address(&server));
    for piece in frame_v1(0, 78, b"").chunks(8) {
        peer.send(piece);
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let got = peer.try_receive_v1().unwrap();
    assert_eq!((got.msg_id, got.error().0), (78, 2));
    peer.expect_end();
    assert_eq!(server.stats().errors(ErrorCode::VersionMismatch), 3);
}

#[test]
fn refused_in_its_own_words() {
    let limits = Limits {
        max_message_bytes: 1000,
        ..Limits::default()
    };
    let server = server().legacy(true).limits(limits).start().unwrap();
    let mut too_large = frame_v1(ECHO, 5, b"");
    too_large[7..11].copy_from_slice(&1001u32.to_be_bytes());
    let mut wrong_version = frame_v1(ECHO, 5, b"");
    wrong_version[4] = 2;
    let mut mixed = frame_v1(ECHO, 5, b"");
    mixed[0] = 0x49;
    for (bad, code) in [
        (too_large, 4),
        (wrong_version, 2),
        (mixed, 1),
        (frame_v1(0, 5, b""), 6),
    ] {
        let mut peer = Peer::connect(address(&server));
        peer.send(&[frame_v1(ECHO, 1, b"good"), bad].concat());
        assert_eq!(peer.try_receive_v1().unwrap().payload, b"good");
        assert_eq!(peer.try_receive_v1().unwrap().error().0, code);
        peer.expect_end();
    }
    // And a version 2 connection that turns to version 1.
    let mut peer = Peer::connect(address(&server));
    peer.send(&[echo(1, b"good"), frame_v1(ECHO, 2, b"")].concat());
    peer.expect_echo(1, b"good");
    assert_eq!(peer.receive().error().0, 1);
    peer.expect_end();
}

#[test]
fn both_versions_at_once() {
    let server = server().legacy(true).start().unwrap();
    let address = address(&server).to_string();
    let threads: Vec<_> = (0..6u64)
        .map(|index| {
            let address = address.clone();
            std::thread::spawn(move || {
                let version = match index % 2 {
                    0 => ProtocolVersion::V1,
                    _ => ProtocolVersion::V2,
                };
                let client = Client::builder()
                    .protocol_version(version)
                    .timeout(PATIENCE)
                    .connect(&address)
                    .unwrap();
                for round in 0..300 {
                    let payload = pattern(index * 1000 + round, round as usize * 13);
                    assert!(client.call(ECHO, &payload).unwrap() == payload);
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    let clients = server.handle().take_legacy_clients();
    assert_eq!(clients.len(), 1);
    assert_eq!(clients[0].1, 3);
    assert_eq!(server.stats().legacy_requests(), 900);
}

#[test]
fn switched_off_while_running() {
    let server = server().legacy(true).start().unwrap();
    let mut peer = Peer::connect(address(&server));
    peer.send(&frame_v1(ECHO, 1, b"x"));
    assert_eq!(peer.try_receive_v1().unwrap().payload, b"x");
    server.handle().set_legacy(false);
    peer.send(&frame_v1(ECHO, 2, b"x"));
    let got = peer.try_receive_v1().unwrap();
    assert_eq!((got.msg_id, got.error().0), (2, 2));
    peer.expect_end();
}

#[test]
fn the_client_is_told_what_to_do() {
    let server = echo_server();
    let client = Client::builder()
        .protocol_version(ProtocolVersion::V1)
        .connect(&address(&server).to_string())
        .unwrap();
    match client.call(ECHO, b"x") {
        Err(
            error @ Error::Remote {
                code: Some(ErrorCode::VersionMismatch),
                ..
            },
        ) => assert_eq!(error.to_string(), VERSION_TEXT),
        other => panic!("{other:?}"),
    }
}

/// One request, one answer: of a stream, its client would take the first part for it.
#[test]
fn an_answer_in_parts_is_an_error() {
    let server = server()
        .legacy(true)
        .handler(0x0100, |_: Request<'_>, mut responder: Responder<'_>| {
            responder.stream_part(b"one");
            responder.stream_part(b"two");
            responder.reply(b"three");
        })
        .handler(0x0101, |_: Request<'_>, responder: Responder<'_>| {
            let mut later = responder.detach();
            std::thread::spawn(move || {
                later.stream_part(&b"one"[..]).unwrap();
                later.reply(&b"two"[..]).unwrap();
            });
        })
        .start()
        .unwrap();
    let mut peer = Peer::connect(address(&server));
    for msg_id in 1..=4 {
        let msg_type = 0x0100 + msg_id as u16 % 2;
        peer.send(&frame_v1(msg_type, msg_id, b""));
        let answer = peer.try_receive_v1().unwrap();
        assert_eq!(answer.msg_id, msg_id);
        let (code, text) = answer.error();
        assert_eq!(code, 10, "{text}");
        peer.send(&frame_v1(ECHO, 9, b"x"));
        assert_eq!(peer.try_receive_v1().unwrap().payload, b"x");
    }
}
