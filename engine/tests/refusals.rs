//! protocol.md's table of errors: what is refused, in which words, and what becomes of the
//! connection.

mod support;

use std::io::Write;
use std::time::Duration;

use lapce_ai::ipc::{ErrorCode, Limits, Request, Responder, Server};
use support::*;

const VERSION_TEXT: &str = "Protocol version mismatch: expected 2, got 1";

/// Sends a good request and then `bad`: the request is answered, then the refusal comes about the
/// connection itself, then the end.
fn refused(server: &Server, bad: &[u8]) -> (u16, String) {
    let mut peer = Peer::connect(address(server));
    let mut bytes = echo(1, b"good");
    bytes.extend(bad);
    peer.send(&bytes);
    peer.expect_echo(1, b"good");
    let refusal = peer.receive();
    assert_eq!((refusal.flags, refusal.msg_id), (0, 0));
    peer.expect_end();
    refusal.error()
}

#[test]
fn bad_magic() {
    let server = echo_server();
    let mut bad = echo(2, b"x");
    bad[0] = b'G';
    let (code, text) = refused(&server, &bad);
    assert_eq!(code, 1);
    assert!(text.starts_with("Bad magic"), "{text}");
    // The first byte is enough to know: nothing more is waited for, in any place of the four.
    for at in 0..4 {
        let mut bad = echo(2, b"")[..at + 1].to_vec();
        bad[at] ^= 0xFF;
        assert_eq!(refused(&server, &bad).0, 1, "byte {at}");
    }
    // As the first thing on a connection.
    let mut peer = Peer::connect(address(&server));
    peer.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!(peer.receive().error().0, 1);
    peer.expect_end();
    assert_eq!(server.stats().errors(ErrorCode::BadMagic), 6);
}

#[test]
fn version_mismatch() {
    let server = echo_server();
    for (version, text) in [
        (1, VERSION_TEXT.to_owned()),
        (3, VERSION_TEXT.replace("got 1", "got 3")),
        (0, VERSION_TEXT.replace("got 1", "got 0")),
        (255, VERSION_TEXT.replace("got 1", "got 255")),
    ] {
        let mut bad = echo(2, b"x");
        bad[4] = version;
        seal(&mut bad);
        assert_eq!(refused(&server, &bad), (2, text.clone()));
        // Known after five bytes.
        assert_eq!(refused(&server, &bad[..5]), (2, text));
    }
}

#[test]
fn crc_mismatch() {
    let server = echo_server();
    let mut bad = echo(2, b"some payload");
    let right = u32::from_le_bytes(bad[20..24].try_into().unwrap());
    bad[20..24].copy_from_slice(&0x1234_5678u32.to_le_bytes());
    let text = format!("CRC32 mismatch: expected 0x12345678, got 0x{right:08X}");
    assert_eq!(refused(&server, &bad), (3, text));
    // A damaged payload, a damaged id, a damaged type: the header is covered too.
    for at in [6, 8 + 4, 24, 24 + 11] {
        let mut bad = echo(2, b"some payload");
        let expected = u32::from_le_bytes(bad[20..24].try_into().unwrap());
        bad[at] ^= 0x40;
        let mut sealed = bad.clone();
        seal(&mut sealed);
        let got = u32::from_le_bytes(sealed[20..24].try_into().unwrap());
        let text = format!("CRC32 mismatch: expected 0x{expected:08X}, got 0x{got:08X}");
        assert_eq!(refused(&server, &bad), (3, text), "byte {at}");
    }
    // Good frames behind a damaged one are not looked at.
    let mut bytes = bad;
    bytes.extend(echo(3, b"unreachable"));
    assert_eq!(refused(&server, &bytes).0, 3);
    // One that came in pieces.
    let mut bad = echo(2, &pattern(2, 100_000));
    bad[50_000] ^= 1;
    assert_eq!(refused(&server, &bad).0, 3);
}

#[test]
fn too_large() {
    let limits = Limits {
        max_message_bytes: 1000,
        ..Limits::default()
    };
    let server = server().limits(limits).start().unwrap();
    let mut peer = Peer::connect(address(&server));
    peer.send(&echo(1, &[7; 1000]));
    peer.expect_echo(1, &[7; 1000]);
    let (code, text) = refused(&server, &echo(2, &[7; 1001]));
    assert_eq!(code, 4);
    assert!(text.contains("1001") && text.contains("1000"), "{text}");
    // By the header alone, before any payload is there.
    assert_eq!(refused(&server, &echo(2, &[7; 1001])[..12]).0, 4);
    let mut huge = echo(2, b"");
    huge[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(refused(&server, &huge).0, 4);
}

#[test]
fn the_refusal_reaches_a_peer_that_goes_on_sending() {
    let server = echo_server();
    let mut peer = Peer::connect(address(&server));
    let mut bad = echo(2, b"");
    bad[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
    peer.send(&bad);
    let mut writer = peer.try_clone();
    let sending = std::thread::spawn(move || {
        let junk = vec![0; 64 * 1024];
        for _ in 0..64 {
            if writer.stream.write_all(&junk).is_err() {
                break;
            }
        }
        // The other side waits for our end before it closes; so it is not reset.
        let _ = writer.stream.shutdown(std::net::Shutdown::Write);
    });
    assert_eq!(peer.receive().error().0, 4);
    peer.expect_end();
    sending.join().unwrap();
}

/// An answer that another thread gives after the refusal must not end the connection before the peer has
/// read what it is owed.
#[test]
fn a_late_answer_takes_nothing_from_a_refused_peer() {
    const ANSWERS: usize = 40;
    const ANSWER_BYTES: usize = 25_600;
    let (taken, late) = std::sync::mpsc::channel();
    let server = server()
        .handler(0x0100, |request: Request<'_>, responder: Responder<'_>| {
            responder.reply(&request.payload().repeat(64));
        })
        .handler(0x0101, move |_: Request<'_>, responder: Responder<'_>| {
            // The test may have ended already.
            let _ = taken.send(responder.detach());
        })
        .start()
        .unwrap();
    let mut peer = Peer::connect(address(&server));
    let mut bytes = request(0x0101, 1, b"");
    for id in 0..ANSWERS as u64 {
        bytes.extend(request(0x0100, 2 + id, &[7; ANSWER_BYTES / 64]));
    }
    bytes.extend(b"no frame at all");
    peer.send(&bytes);
    let deferred = late.recv_timeout(PATIENCE).unwrap();
    eventually("the refusal is counted", || {
        server.stats().errors(ErrorCode::BadMagic) > 0
    });
    std::thread::sleep(Duration::from_millis(50));
    assert!(deferred.reply("late").is_ok());
    for _ in 0..5 {
        std::thread::sleep(Duration::from_millis(20));
        peer.send(b"more");
    }
    for id in 0..ANSWERS as u64 {
        let answer = peer.receive();
        assert_eq!(
            (answer.msg_id, answer.payload.len()),
            (2 + id, ANSWER_BYTES)
        );
    }
    assert_eq!(peer.receive().error().0, 1);
}

#[test]
fn unknown_type_keeps_the_connection() {
    let server = echo_server();
    let mut peer = Peer::connect(address(&server));
    for (id, msg_type) in [
        (1, 0x0001),
        (2, 0x0100),
        (3, 0xFFFF),
        (4, REGISTER),
        (5, UNREGISTER),
        (6, CANCEL),
        (7, HANDSHAKE_ACK),
        (8, 0x00FF),
        (9, ERROR),
    ] {
        peer.send(&request(msg_type, id, b"\x00\x01"));
        let got = peer.receive();
        assert_eq!((got.flags, got.msg_id), (RESPONSE, id));
        assert_eq!(got.error().0, 5, "{msg_type:#06x}");
    }
    // One-way: there is no request to answer, so the connection is told.
    peer.send(&frame(0, UNREGISTER, 0, b""));
    let got = peer.receive();
    assert_eq!((got.flags, got.msg_id, got.error().0), (0, 0, 5));
    peer.expect_alive();
    assert_eq!(server.stats().errors(ErrorCode::UnknownType), 10);
}

#[test]
fn bad_flags() {
    let server = echo_server();
    for bits in [
        0x02,
        0x40,
        0x80,
        REQUEST | 0x02,
        REQUEST | RESPONSE,
        0x30 | STREAM,
    ] {
        let bad = frame(bits, ECHO, 2, b"");
        assert_eq!(refused(&server, &bad).0, 6, "{bits:#04x}");
        assert_eq!(refused(&server, &bad[..6]).0, 6, "{bits:#04x}");
    }
    assert_eq!(refused(&server, &request(0, 2, b"")).0, 6);
    assert_eq!(refused(&server, &frame(0, 0, 0, b"")).0, 6);
    assert_eq!(refused(&server, &echo(0, b"")).0, 6);
}

#[test]
fn the_checks_run_in_their_order() {
    let limits = Limits {
        max_message_bytes: 1000,
        ..Limits::default()
    };
    let server = server().limits(limits).start().unwrap();
    // Everything is wrong at first; repairing the earliest fault shows the next.
    let mut bad = frame(0xFF, 0, 0, &[0; 1001]);
    bad[0] = 0;
    bad[4] = 9;
    bad[20..24].fill(0x55);
    assert_eq!(refused(&server, &bad).0, 1);
    bad[0] = 0x49;
    assert_eq!(refused(&server, &bad).0, 2);
    bad[4] = 2;
    assert_eq!(refused(&server, &bad).0, 6);
    bad[5] = 0;
    let (code, text) = refused(&server, &bad);
    assert!(code == 6 && text.contains("type"), "{text}");
    bad[6..8].copy_from_slice(&ECHO.to_le_bytes());
    assert_eq!(refused(&server, &bad).0, 4);
    bad[8..12].copy_from_slice(&1000u32.to_le_bytes());
    assert_eq!(refused(&server, &bad).0, 3);
}

#[test]
fn bad_payload_keeps_the_connection() {
    let server = echo_server();
    let mut peer = Peer::connect(address(&server));
    let mut refuse = |flags: u8, msg_type: u16, payload: &[u8]| {
        peer.send(&frame(flags, msg_type, 3, payload));
        let got = peer.receive();
        assert_eq!((got.flags, got.msg_id), (RESPONSE, 3));
        assert_eq!(got.error().0, 14, "{payload:?}");
    };
    let packed = |size: u32, block: &[u8]| [&size.to_le_bytes()[..], block].concat();
    let good = lz4(&[5; 300]);
    for payload in [
        packed(300, &[0xFF; 40]),
        packed(299, &good),
        packed(301, &good),
        packed(u32::MAX, &good),
        packed(10 * 1024 * 1024 + 1, &good),
        packed(300, &good[..good.len() - 1]),
        vec![1, 2],
        vec![],
    ] {
        refuse(REQUEST | COMPRESSED, ECHO, &payload);
    }
    for payload in [
        &b"\x01"[..],
        b"\x01\0\x05\0\x02",
        b"\x02\0\x01\0\x02",
        b"\x03\0\x01\0\xFF",
    ] {
        refuse(REQUEST, HANDSHAKE, payload);
    }
    peer.expect_alive();
}

#[test]
fn a_handshake_without_our_version_is_a_mismatch() {
    let server = echo_server();
    let mut peer = Peer::connect(address(&server));
    peer.send(&request(HANDSHAKE, 1, b"\x01\0\x01\0\x01"));
    let got = peer.receive();
    assert_eq!(got.error(), (2, VERSION_TEXT.to_owned()));
    peer.expect_end();
}

#[test]
fn good_frames_before_a_bad_one_are_answered_whatever_their_number() {
    let server = echo_server();
    for count in [1u64, 15, 16, 17, 100, 1000] {
        let mut peer = Peer::connect(address(&server));
        let mut bytes = Vec::new();
        for id in 1..=count {
            bytes.extend(echo(id, &pattern(id, 40)));
        }
        let mut bad = echo(count + 1, b"damaged");
        bad[30] ^= 1;
        bytes.extend(bad);
        bytes.extend(echo(count + 2, b"unreachable"));
        peer.send(&bytes);
        for id in 1..=count {
            peer.expect_echo(id, &pattern(id, 40));
        }
        assert_eq!(peer.receive().error().0, 3);
        peer.expect_end();
    }
}

#[test]
fn priority_does_not_reach_over_a_bad_frame() {
    let server = echo_server();
    let mut peer = Peer::connect(address(&server));
    let mut bad = echo(4, b"damaged");
    bad[30] ^= 1;
    // In one segment, so that they wait together.
    let bytes = [
        echo(1, b"a"),
        frame(REQUEST | PRIORITY, ECHO, 2, b"b"),
        echo(3, b"c"),
        bad,
        frame(REQUEST | PRIORITY, ECHO, 5, b"unreachable"),
    ];
    peer.send(&bytes.concat());
    let ids = [(); 3].map(|()| peer.receive().msg_id);
    assert_eq!(ids, [2, 1, 3]);
    assert_eq!(peer.receive().error().0, 3);
    peer.expect_end();
}

#[test]
fn one_connections_fault_is_nobody_elses() {
    let server = echo_server();
    let mut good = Peer::connect(address(&server));
    for id in 1..200 {
        let mut bad = Peer::connect(address(&server));
        bad.stream.write_all(&[id as u8; 30]).unwrap();
        good.send(&echo(id, &pattern(id, 100)));
        good.expect_echo(id, &pattern(id, 100));
    }
}
