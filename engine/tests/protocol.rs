//! protocol.md, row by row: version 2 frames, flags and types as an independent peer sees them.

mod support;

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lapce_ai::ipc::{ErrorCode, Request, Responder};
use support::*;

const ONE_WAY: u16 = 0x0100;

#[test]
fn the_documented_heartbeat_byte_for_byte() {
    let server = echo_server();
    let mut peer = Peer::connect(address(&server));
    let bytes = [
        0x49, 0x41, 0x50, 0x4c, 0x02, 0x10, 0x05, 0x00, 0x00, 0x00, 0x00, 0x00, 0x01, 0x00, 0x00,
        0x00, 0x00, 0x00, 0x00, 0x00, 0xa5, 0x0f, 0x06, 0xdf,
    ];
    assert_eq!(request(HEARTBEAT, 1, b""), bytes);
    peer.send(&bytes);
    let answer = frame(RESPONSE, HEARTBEAT, 1, b"");
    let mut got = vec![0; answer.len()];
    peer.stream.read_exact(&mut got).unwrap();
    assert_eq!(got, answer);
    peer.send(&request(HEARTBEAT, 2, b"payload"));
    assert_eq!(
        peer.receive(),
        Frame {
            flags: RESPONSE,
            msg_type: HEARTBEAT,
            msg_id: 2,
            payload: b"payload".to_vec()
        }
    );
}

#[test]
fn sizes_up_to_the_limit() {
    const MAX: usize = 10 * 1024 * 1024;
    let server = echo_server();
    let mut peer = Peer::connect(address(&server));
    let around = |size: usize| [size - 1, size, size + 1];
    let mut sizes = vec![0, 1, 2, 3, 7, 8, 15, 16, 17, 63, 64, 65, 1000, 100_000];
    // The receive buffers' size, with and without a header, and powers of two.
    sizes.extend(around(16 * 1024 - V2_HEADER_BYTES));
    sizes.extend(around(16 * 1024));
    sizes.extend(around(64 * 1024 - V2_HEADER_BYTES));
    sizes.extend(around(64 * 1024));
    sizes.extend(around(1024 * 1024));
    sizes.extend([MAX - 1, MAX]);
    for (index, size) in sizes.into_iter().enumerate() {
        let (id, payload) = (index as u64 + 1, pattern(index as u64, size));
        peer.send(&echo(id, &payload));
        peer.expect_echo(id, &payload);
    }
}

#[test]
fn one_byte_at_a_time() {
    let server = echo_server();
    let mut peer = Peer::connect(address(&server));
    for id in 1..=3 {
        let payload = pattern(id, 150);
        for byte in echo(id, &payload) {
            peer.send(&[byte]);
            std::thread::sleep(Duration::from_micros(200));
        }
        peer.expect_echo(id, &payload);
    }
}

#[test]
fn frames_cut_anywhere() {
    let server = echo_server();
    let mut peer = Peer::connect(address(&server));
    let mut bytes = Vec::new();
    let payloads: Vec<_> = (0..40)
        .map(|n| pattern(n, (n as usize * 37) % 600))
        .collect();
    for (id, payload) in (1..).zip(&payloads) {
        bytes.extend(echo(id, payload));
    }
    let mut rest = &bytes[..];
    let mut step = 1;
    while !rest.is_empty() {
        let (piece, tail) = rest.split_at(step.min(rest.len()));
        peer.send(piece);
        std::thread::sleep(Duration::from_micros(300));
        rest = tail;
        step = step * 7 % 211 + 1;
    }
    for (id, payload) in (1..).zip(&payloads) {
        peer.expect_echo(id, payload);
    }
}

#[test]
fn two_thousand_pipelined_answers_in_order() {
    let server = echo_server();
    let mut peer = Peer::connect(address(&server));
    let payload = |id: u64| pattern(id, (id * 31 % 512) as usize);
    let mut bytes = Vec::new();
    for id in 1..=2000 {
        bytes.extend(echo(id, &payload(id)));
    }
    let mut writer = peer.try_clone();
    let sending = std::thread::spawn(move || writer.send(&bytes));
    for id in 1..=2000 {
        peer.expect_echo(id, &payload(id));
    }
    sending.join().unwrap();
}

#[test]
fn ids_are_the_requesters_own() {
    let server = echo_server();
    let mut peer = Peer::connect(address(&server));
    for id in [1, u64::MAX, 1 << 63, 7, 7, 0x0102_0304_0506_0708] {
        peer.send(&echo(id, b"x"));
        peer.expect_echo(id, b"x");
    }
}

#[test]
fn priority_goes_first_and_is_repeated_in_the_answer() {
    let server = echo_server();
    let mut peer = Peer::connect(address(&server));
    // In one segment, so that they wait together.
    let bytes = [
        echo(1, b"a"),
        echo(2, b"b"),
        frame(REQUEST | PRIORITY, ECHO, 3, b"c"),
    ];
    peer.send(&bytes.concat());
    let order: Vec<_> = (0..3).map(|_| peer.receive()).collect();
    let ids: Vec<_> = order.iter().map(|frame| frame.msg_id).collect();
    assert_eq!(ids, [3, 1, 2]);
    assert_eq!(order[0].flags, RESPONSE | PRIORITY);
    assert_eq!(order[1].flags, RESPONSE);
}

/// Within a connection nothing goes before what it depends on: the end of a stream not before its parts,
/// and a goodbye not before the requests that it ends.
#[test]
fn priority_keeps_what_belongs_together_in_order() {
    let server = echo_server();
    let mut peer = Peer::connect(address(&server));
    let bytes = [
        frame(REQUEST | STREAM, ECHO, 1, b"part"),
        frame(REQUEST | PRIORITY, ECHO, 1, b"end"),
        echo(2, b"last"),
        frame(PRIORITY, DISCONNECT, 0, b""),
    ];
    peer.send(&bytes.concat());
    let order: Vec<_> = (0..3).map(|_| peer.receive()).collect();
    let payloads: Vec<_> = order.iter().map(|got| got.payload.as_slice()).collect();
    assert_eq!(payloads, [&b"part"[..], b"end", b"last"]);
    peer.expect_end();
}

#[test]
fn an_echoed_stream_is_a_stream() {
    let server = echo_server();
    let mut peer = Peer::connect(address(&server));
    peer.send(&frame(REQUEST | STREAM, ECHO, 5, b"one"));
    peer.send(&frame(REQUEST | STREAM, ECHO, 5, b"two"));
    peer.send(&frame(REQUEST, ECHO, 5, b"end"));
    for (flags, payload) in [
        (RESPONSE | STREAM, b"one"),
        (RESPONSE | STREAM, b"two"),
        (RESPONSE, b"end"),
    ] {
        let got = peer.receive();
        assert_eq!(
            (got.flags, got.msg_id, &got.payload[..]),
            (flags, 5, &payload[..])
        );
    }
}

#[test]
fn one_way_messages_reach_their_handler_and_get_no_answer() {
    let sum = Arc::new(AtomicU64::new(0));
    let seen = sum.clone();
    let server = server()
        .handler(
            ONE_WAY,
            move |request: Request<'_>, responder: Responder<'_>| {
                assert!(!request.expects_answer() && !responder.expects_answer());
                seen.fetch_add(request.payload().len() as u64, Ordering::Relaxed);
                responder.reply(b"goes nowhere");
            },
        )
        .start()
        .unwrap();
    let mut peer = Peer::connect(address(&server));
    for id in [0, 9] {
        peer.send(&frame(0, ONE_WAY, id, b"12345"));
        peer.send(&frame(0, ECHO, id, b"nobody asked"));
        peer.send(&frame(0, HEARTBEAT, id, b""));
    }
    // Inline requests are handled in order, so nothing was answered before this.
    peer.expect_alive();
    assert_eq!(sum.load(Ordering::Relaxed), 10);
}

#[test]
fn compressed_payloads_are_unpacked() {
    let server = echo_server();
    let mut peer = Peer::connect(address(&server));
    for (id, plain) in [
        (1, b"".to_vec()),
        (2, b"abc".repeat(1000)),
        (3, vec![0; 10 * 1024 * 1024]),
        (4, pattern(4, 10_000)),
    ] {
        let mut packed = (plain.len() as u32).to_le_bytes().to_vec();
        packed.extend(lz4(&plain));
        peer.send(&frame(REQUEST | COMPRESSED, ECHO, id, &packed));
        let got = peer.receive();
        assert_eq!((got.msg_type, got.msg_id), (ECHO, id));
        let answer = match got.flags {
            RESPONSE => got.payload,
            flags => {
                assert_eq!(flags, RESPONSE | COMPRESSED);
                let size = u32::from_le_bytes(got.payload[..4].try_into().unwrap());
                unlz4(&got.payload[4..], size as usize)
            }
        };
        assert!(answer == plain, "{id}");
    }
}

/// The protocol's own requests too.
#[test]
fn compressed_heartbeats_and_handshakes_are_unpacked() {
    let server = echo_server();
    let mut peer = Peer::connect(address(&server));
    let packed = |plain: &[u8]| [&(plain.len() as u32).to_le_bytes()[..], &lz4(plain)].concat();
    let plain = b"beat".repeat(100);
    peer.send(&frame(REQUEST | COMPRESSED, HEARTBEAT, 1, &packed(&plain)));
    let got = peer.receive();
    assert_eq!((got.flags, got.msg_type), (RESPONSE, HEARTBEAT));
    assert_eq!(got.payload, plain);
    let hello = packed(b"\x01\0\x01\0\x02");
    peer.send(&frame(REQUEST | COMPRESSED, HANDSHAKE, 2, &hello));
    let got = peer.receive();
    assert_eq!((got.flags, got.msg_type), (RESPONSE, HANDSHAKE_ACK));
    for msg_type in [HEARTBEAT, HANDSHAKE] {
        peer.send(&frame(REQUEST | COMPRESSED, msg_type, 3, &[0; 4]));
        let got = peer.receive();
        assert_eq!((got.flags, got.error().0), (RESPONSE, 14));
    }
    // Nothing is read of it.
    peer.send(&frame(COMPRESSED, DISCONNECT, 0, b"x"));
    peer.expect_end();
}

#[test]
fn disconnect_delivers_the_answers_owed() {
    let (builder, waiting) = handing_over();
    let server = builder.start().unwrap();
    for flags in [0, REQUEST] {
        let mut peer = Peer::connect(address(&server));
        let goodbye_id = if flags == REQUEST { 8 } else { 0 };
        let bytes = [
            echo(1, b"inline"),
            request(WORK, 2, b""),
            frame(flags, DISCONNECT, goodbye_id, b""),
            // After a DISCONNECT nothing is a request any more.
            echo(3, b"too late"),
        ];
        peer.send(&bytes.concat());
        peer.expect_echo(1, b"inline");
        if flags == REQUEST {
            let goodbye = peer.receive();
            assert_eq!(
                (goodbye.flags, goodbye.msg_type, goodbye.msg_id),
                (RESPONSE, DISCONNECT, 8)
            );
        }
        let owed = waiting.recv_timeout(PATIENCE).unwrap();
        owed.reply(b"later".to_vec()).unwrap();
        let got = peer.receive();
        assert_eq!(
            (got.msg_type, got.msg_id, &got.payload[..]),
            (WORK, 2, &b"later"[..])
        );
        peer.expect_end();
    }
}

#[test]
fn half_closing_is_a_goodbye_too() {
    let (builder, waiting) = handing_over();
    let server = builder.start().unwrap();
    let mut peer = Peer::connect(address(&server));
    let large = pattern(1, 3 * 1024 * 1024);
    peer.send(&request(WORK, 1, b""));
    peer.send(&echo(2, &large));
    peer.finish_sending();
    peer.expect_echo(2, &large);
    let owed = waiting.recv_timeout(PATIENCE).unwrap();
    owed.reply(b"done".to_vec()).unwrap();
    assert_eq!(peer.receive().payload, b"done");
    peer.expect_end();
}

#[test]
fn a_connection_that_ends_in_the_middle_of_a_frame_is_just_closed() {
    let server = echo_server();
    for cut in [1, 5, 23, 24, 30] {
        let mut peer = Peer::connect(address(&server));
        peer.send(&echo(1, b"whole"));
        peer.send(&echo(2, b"not whole")[..cut]);
        peer.finish_sending();
        peer.expect_echo(1, b"whole");
        peer.expect_end();
    }
}

fn record(tag: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = tag.to_le_bytes().to_vec();
    bytes.extend((value.len() as u16).to_le_bytes());
    bytes.extend(value);
    bytes
}

#[test]
fn handshake_is_acknowledged() {
    let server = echo_server();
    let mut peer = Peer::connect(address(&server));
    let hello = [
        record(1, &[2]),
        record(2, &0u32.to_le_bytes()),
        record(3, b"a test"),
        record(0x7777, b"of a future version"),
    ];
    for (id, payload) in [(1, hello.concat()), (2, Vec::new())] {
        peer.send(&request(HANDSHAKE, id, &payload));
        let ack = peer.receive();
        assert_eq!(
            (ack.flags, ack.msg_type, ack.msg_id),
            (RESPONSE, HANDSHAKE_ACK, id)
        );
        // Whole records, among them the version.
        let mut rest = &ack.payload[..];
        let mut versions = None;
        while !rest.is_empty() {
            let tag = u16::from_le_bytes([rest[0], rest[1]]);
            let length = usize::from(u16::from_le_bytes([rest[2], rest[3]]));
            if tag == 1 {
                versions = Some(rest[4..4 + length].to_vec());
            }
            rest = &rest[4 + length..];
        }
        assert_eq!(versions, Some(vec![2]));
    }
    peer.expect_alive();
}

/// Errors too are no longer than the client says it takes, cut between two characters.
#[test]
fn an_error_is_no_longer_than_the_client_takes() {
    let server = server()
        .handler(0x0100, |_, responder: Responder<'_>| {
            responder.error(ErrorCode::HandlerFailed, &"\u{fc}".repeat(1500));
        })
        .handler(0x0101, |_, responder: Responder<'_>| {
            let deferred = responder.detach();
            let _ = deferred.error(ErrorCode::HandlerFailed, "\u{fc}".repeat(1500));
        })
        .start()
        .unwrap();
    let mut peer = Peer::connect(address(&server));
    for msg_type in [0x0100, 0x0101] {
        peer.send(&request(msg_type, 1, b""));
        assert_eq!(peer.receive().payload.len(), 2 + 3000);
    }
    peer.send(&request(HANDSHAKE, 2, &record(7, &1025_u32.to_le_bytes())));
    assert_eq!(peer.receive().msg_type, HANDSHAKE_ACK);
    for msg_type in [0x0100, 0x0101] {
        peer.send(&request(msg_type, 3, b""));
        let error = peer.receive();
        assert_eq!(error.payload.len(), 1024);
        assert!(error.error().1.chars().all(|char| char == '\u{fc}'));
    }
}

#[test]
fn answers_and_errors_from_a_client_are_not_answered() {
    let server = echo_server();
    let mut peer = Peer::connect(address(&server));
    peer.send(&frame(RESPONSE, ECHO, 1, b"x"));
    peer.send(&frame(RESPONSE, ERROR, 1, b"\x01\0x"));
    peer.send(&frame(0, ERROR, 0, b"\x01\0x"));
    peer.expect_alive();
}

#[test]
fn many_connections_at_once() {
    let server = server().workers(2).start().unwrap();
    let address = address(&server);
    let threads: Vec<_> = (0..8u64)
        .map(|seed| {
            std::thread::spawn(move || {
                let mut peers: Vec<_> = (0..8).map(|_| Peer::connect(address)).collect();
                for round in 1..=50 {
                    for (index, peer) in peers.iter_mut().enumerate() {
                        let payload = pattern(seed * 1000 + index as u64, round as usize * 11);
                        peer.stream.write_all(&echo(round, &payload)).unwrap();
                    }
                    for (index, peer) in peers.iter_mut().enumerate() {
                        let payload = pattern(seed * 1000 + index as u64, round as usize * 11);
                        peer.expect_echo(round, &payload);
                    }
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
}

/// A HANDSHAKE that nobody asked for says how long answers may be, to a request with PRIORITY behind it too.
#[test]
fn priority_does_not_overtake_a_handshake() {
    let server = echo_server();
    let mut peer = Peer::connect(address(&server));
    let limit = [
        &7u16.to_le_bytes()[..],
        &4u16.to_le_bytes(),
        &1024u32.to_le_bytes(),
    ]
    .concat();
    let mut bytes = request(HANDSHAKE, 1, &limit);
    bytes.extend(frame(REQUEST | PRIORITY, ECHO, 2, &[1; 3000]));
    peer.send(&bytes);
    assert_eq!(peer.receive().msg_type, HANDSHAKE_ACK);
    assert_eq!(peer.receive().error().0, 10);
}
