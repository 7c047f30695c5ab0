//! Requests that arrive together and begin alike are found, verified and handled as one row: what is
//! wrong with one of them must concern no other.

mod support;

use lapce_ai::ipc::{Client, ErrorCode, Responder, Server};
use support::*;

const WORK: u16 = 0x0100;
const FRAMES: u64 = 40;

/// Odd numbers are answered with themselves; a handler panics at every multiple of 10, before or after
/// its answer.
fn picky_server() -> Server {
    let handler = |request: lapce_ai::ipc::Request<'_>, responder: Responder<'_>| {
        let number = u64::from_le_bytes(request.payload().try_into().unwrap());
        match number % 20 {
            0 => panic!("on purpose"),
            10 => {
                responder.reply(request.payload());
                panic!("on purpose, too late to matter");
            }
            1 => responder.error(ErrorCode::ProviderLost, "ends in 1"),
            _ => responder.reply(request.payload()),
        }
    };
    server().handler(WORK, handler).start().unwrap()
}

fn expected(number: u64) -> Option<u16> {
    match number % 20 {
        0 => Some(ErrorCode::HandlerFailed as u16),
        1 => Some(ErrorCode::ProviderLost as u16),
        _ => None,
    }
}

#[test]
fn a_damaged_frame_ends_the_row_before_it() {
    let server = echo_server();
    for payload_bytes in [0, 8, 64, 65, 500] {
        for bad in [0, 1, 3, 4, 15, 16, 17, FRAMES - 1] {
            let payload = pattern(bad, payload_bytes);
            let mut bytes = Vec::new();
            for id in 0..FRAMES {
                let begin = bytes.len();
                bytes.extend(echo(1 + id, &payload));
                if id == bad {
                    // The id, which is read frame by frame.
                    bytes[begin + 15] ^= 4;
                }
            }
            let mut peer = Peer::connect(address(&server));
            peer.send(&bytes);
            for id in 0..bad {
                peer.expect_echo(1 + id, &payload);
            }
            let refusal = peer.receive();
            assert_eq!((refusal.flags, refusal.msg_id), (0, 0));
            assert_eq!(refusal.error().0, ErrorCode::CrcMismatch as u16);
            peer.expect_end();
        }
    }
}

#[test]
fn what_is_no_frame_ends_the_row_before_it() {
    let server = echo_server();
    let mut bytes = Vec::new();
    for id in 1..=FRAMES {
        bytes.extend(echo(id, b"row"));
    }
    let mut without_id = echo(1, b"row");
    without_id[12..20].fill(0);
    seal(&mut without_id);
    bytes.extend(without_id);
    bytes.extend(echo(FRAMES + 1, b"row"));
    let mut peer = Peer::connect(address(&server));
    peer.send(&bytes);
    for id in 1..=FRAMES {
        peer.expect_echo(id, b"row");
    }
    let refusal = peer.receive();
    assert_eq!((refusal.flags, refusal.msg_id), (0, 0));
    peer.expect_end();
}

#[test]
fn a_failure_in_a_row_fails_one_request_over_tcp() {
    let server = picky_server();
    let mut peer = Peer::connect(address(&server));
    let mut bytes = Vec::new();
    for number in 0..FRAMES {
        bytes.extend(request(WORK, 1 + number, &number.to_le_bytes()));
    }
    peer.send(&bytes);
    for number in 0..FRAMES {
        let answer = peer.receive();
        assert_eq!(answer.msg_id, 1 + number);
        match expected(number) {
            Some(code) => assert_eq!(answer.error().0, code),
            None => assert_eq!(answer.payload, number.to_le_bytes()),
        }
    }
    let stats = server.stats();
    assert_eq!(stats.errors(ErrorCode::HandlerFailed), FRAMES / 20);
    assert_eq!(stats.errors(ErrorCode::ProviderLost), FRAMES / 20);
}

#[test]
fn a_failure_in_a_row_fails_one_request_over_shared_memory() {
    let instance = format!("rows{}", std::process::id());
    let server = {
        let handler = |request: lapce_ai::ipc::Request<'_>, responder: Responder<'_>| match request
            .payload()[0]
            % 5
        {
            0 => panic!("on purpose"),
            _ => responder.reply(request.payload()),
        };
        let server = server().shm(&instance).handler(WORK, handler);
        server.start().unwrap()
    };
    let client = Client::connect(&format!("shm:{instance}")).unwrap();
    for _ in 0..50 {
        for number in 0..FRAMES as u8 {
            client.submit(WORK, &[number; 64]).unwrap();
        }
        let mut number = 0u8;
        while client.in_flight() > 0 {
            client
                .poll_with(|answer| {
                    match number % 5 {
                        0 => assert!(answer.result.is_err()),
                        _ => assert_eq!(answer.result.unwrap(), [number; 64]),
                    }
                    number += 1;
                })
                .unwrap();
        }
        assert_eq!(u64::from(number), FRAMES);
    }
    drop(client);
    drop(server);
}

/// A kind of frame, and what comes of it: flags and type of its answer.
#[derive(Clone, Copy)]
struct Kind {
    flags: u8,
    msg_type: u16,
    payload_bytes: usize,
    answer: Option<(u8, u16)>,
}

const KINDS: [Kind; 11] = {
    const fn kind(flags: u8, msg_type: u16, payload_bytes: usize, answer: u8) -> Kind {
        Kind {
            flags,
            msg_type,
            payload_bytes,
            answer: if answer == 0 {
                None
            } else {
                Some((answer, msg_type))
            },
        }
    }
    const UNKNOWN: u16 = 0x7777;
    [
        kind(REQUEST, ECHO, 64, RESPONSE),
        kind(REQUEST, ECHO, 8, RESPONSE),
        kind(REQUEST, ECHO, 0, RESPONSE),
        kind(REQUEST, ECHO, 300, RESPONSE),
        kind(REQUEST | PRIORITY, ECHO, 64, RESPONSE | PRIORITY),
        kind(REQUEST | STREAM, ECHO, 64, RESPONSE | STREAM),
        kind(REQUEST | COMPRESSED, ECHO, 64, RESPONSE),
        kind(0, ECHO, 64, 0),
        kind(RESPONSE, ECHO, 64, 0),
        kind(REQUEST, HEARTBEAT, 64, RESPONSE),
        Kind {
            flags: REQUEST,
            msg_type: UNKNOWN,
            payload_bytes: 64,
            answer: Some((RESPONSE, ERROR)),
        },
    ]
};

/// What a caller's closure has got it does not get again, and what it has not it still gets.
#[test]
fn a_sink_that_panics_in_the_middle_of_a_row() {
    const PARTS: u64 = 40;
    let server = server()
        .handler(
            WORK,
            |_: lapce_ai::ipc::Request<'_>, mut responder: Responder<'_>| {
                for part in 0..PARTS {
                    responder.stream_part(&part.to_le_bytes());
                }
                responder.reply(&PARTS.to_le_bytes());
            },
        )
        .start()
        .unwrap();
    for panics_at in [0, 20, PARTS] {
        let builder = Client::builder().timeout(PATIENCE).shm_upgrade(false);
        let client = builder.connect(&address(&server).to_string()).unwrap();
        client.submit(WORK, b"").unwrap();
        client.flush().unwrap();
        // All have come by then, or they come in several rows.
        std::thread::sleep(std::time::Duration::from_millis(50));
        let mut seen = Vec::new();
        let mut turns = 0;
        while client.in_flight() > 0 || turns < 2 {
            turns += 1;
            let take = |answer: lapce_ai::ipc::AnswerRef<'_>| {
                let bytes = answer.result.unwrap().try_into().unwrap();
                seen.push(u64::from_le_bytes(bytes));
                assert_ne!(seen, Vec::from_iter(0..=panics_at), "on purpose");
            };
            let polled = std::panic::AssertUnwindSafe(|| client.poll_with(take).map(drop));
            // The panic of this test's own making.
            let _ = std::panic::catch_unwind(polled);
        }
        assert_eq!(seen, Vec::from_iter(0..=PARTS));
    }
}

/// Whatever follows whatever, in rows of any length and cut anywhere: each request has its own answer,
/// in order but for those with PRIORITY.
#[test]
fn rows_of_all_kinds_in_any_order() {
    let server = echo_server();
    let mut random = Random(0x5EED);
    let mut below = |bound: usize| random.below(bound as u64) as usize;
    for _ in 0..60 {
        let mut peer = Peer::connect(address(&server));
        let (mut bytes, mut urgent, mut others) = (Vec::new(), Vec::new(), Vec::new());
        let mut id = 0;
        for _ in 0..1 + below(20) {
            let kind = KINDS[below(KINDS.len())];
            for _ in 0..1 + below(12) * below(4) {
                id += 1;
                let plain = pattern(id, kind.payload_bytes);
                let payload = match kind.flags & COMPRESSED {
                    0 => plain.clone(),
                    _ => [&(plain.len() as u32).to_le_bytes()[..], &lz4(&plain)].concat(),
                };
                bytes.extend(frame(kind.flags, kind.msg_type, id, &payload));
                if let Some((flags, msg_type)) = kind.answer {
                    let answers = match flags & PRIORITY {
                        0 => &mut others,
                        _ => &mut urgent,
                    };
                    answers.push((flags, msg_type, id, plain));
                }
            }
        }
        let mut sender = peer.try_clone();
        let cuts: Vec<usize> = (0..1 + below(4)).map(|_| 1 + below(3000)).collect();
        let sending = std::thread::spawn(move || {
            let mut rest = &bytes[..];
            for cut in cuts.into_iter().cycle() {
                let (piece, behind) = rest.split_at(cut.min(rest.len()));
                sender.send(piece);
                rest = behind;
                if rest.is_empty() {
                    return;
                }
            }
        });
        let (mut urgent, mut others) = (urgent.into_iter(), others.into_iter());
        for _ in 0..urgent.len() + others.len() {
            let got = peer.receive();
            let expected = match got.flags & PRIORITY {
                0 => others.next(),
                _ => urgent.next(),
            };
            let (flags, msg_type, id, payload) = expected.expect("no more than were asked for");
            assert_eq!((got.flags, got.msg_type, got.msg_id), (flags, msg_type, id));
            match msg_type {
                ERROR => assert_eq!(got.error().0, ErrorCode::UnknownType as u16),
                _ => assert_eq!(got.payload, payload),
            }
        }
        sending.join().unwrap();
        peer.expect_alive();
    }
}
