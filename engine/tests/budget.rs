//! `max_buffered_bytes` holds whatever way a message comes: its header cut, compressed, slowly, or from
//! somebody who has not shown credentials.

mod support;

use std::time::{Duration, Instant};

use lapce_ai::ipc::{IdleMode, Limits, Request, Responder, Server, ServerBuilder, Transport};
use support::*;

const MIB: usize = 1 << 20;
const COMPRESSED: u8 = 0x01;
/// Long enough for a server to do what it must not.
const WHILE: Duration = Duration::from_millis(300);

/// Room for one message of 16 MiB, and little beside.
fn limits(frame_timeout_ms: u64) -> Limits {
    Limits {
        max_message_bytes: 16 * MIB as u32,
        max_buffered_bytes: 17 * MIB as u64,
        frame_timeout_ms,
        ..Limits::default()
    }
}

/// A server that has no more, and little patience.
fn tight(configure: impl FnOnce(ServerBuilder) -> ServerBuilder) -> Server {
    configure(server().limits(limits(1000))).start().unwrap()
}

/// A compressed ECHO.
fn packed(msg_id: u64, plain: &[u8]) -> Vec<u8> {
    let mut payload = (plain.len() as u32).to_le_bytes().to_vec();
    payload.extend(lz4(plain));
    frame(REQUEST | COMPRESSED, ECHO, msg_id, &payload)
}

fn has_answer(peer: &Peer) -> bool {
    peer.stream.set_nonblocking(true).unwrap();
    let has = peer.stream.peek(&mut [0]).is_ok();
    peer.stream.set_nonblocking(false).unwrap();
    has
}

#[test]
fn a_cut_header_does_not_go_past_the_line() {
    let server = tight(|server| server);
    let payload = pattern(1, 10 * MIB);
    let long = echo(1, &payload);
    for cut in [1, 23, 24, 25] {
        let mut first = Peer::connect(address(&server));
        let mut second = Peer::connect(address(&server));
        let before = server.stats().bytes_in(Transport::Tcp);
        let taken = |bytes: usize| {
            let all = before + bytes as u64;
            eventually("it is taken", || {
                server.stats().bytes_in(Transport::Tcp) == all
            });
        };
        // One after the other: with a header in which nothing is cut, the first asks for room too.
        first.send(&long[..cut]);
        taken(cut);
        second.send(&long[..cut]);
        taken(2 * cut);
        first.send(&long[cut..100_000]);
        taken(cut + 100_000);
        let mut rest = second.try_clone();
        std::thread::scope(|scope| {
            scope.spawn(|| rest.send(&long[cut..]));
            std::thread::sleep(WHILE);
            assert!(
                !has_answer(&second),
                "cut at {cut}: it has taken room that was not there"
            );
            let mut writer = first.try_clone();
            scope.spawn({
                let long = &long;
                move || writer.send(&long[100_000..])
            });
            first.expect_echo(1, &payload);
            second.expect_echo(1, &payload);
        });
    }
}

#[test]
fn what_a_message_decompresses_to_counts() {
    let server = tight(|server| server);
    let plain = vec![7; 16 * MIB];
    let packed = packed(1, &plain);
    let peers: Vec<_> = (0..8)
        .map(|_| {
            let mut peer = Peer::connect(address(&server));
            peer.send(&packed);
            peer
        })
        .collect();
    std::thread::sleep(WHILE);
    // Others, with short ones, are served meanwhile.
    Peer::connect(address(&server)).expect_alive();
    let handled = server.stats().requests(Transport::Tcp);
    assert!(handled <= 3, "{handled} answers of 16 MiB at once");
    std::thread::scope(|scope| {
        for mut peer in peers {
            let plain = &plain;
            scope.spawn(move || peer.expect_echo(1, plain));
        }
    });
}

#[test]
fn compressed_ones_in_a_row_come_back_in_order() {
    let server = tight(|server| server);
    let mut peer = Peer::connect(address(&server));
    let plain = |id: u64| vec![id as u8; 100 * 1024 * (1 + id as usize % 5)];
    let mut writer = peer.try_clone();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for id in (1..200).step_by(2) {
                writer.send(&[packed(id, &plain(id)), echo(id + 1, b"between")].concat());
            }
        });
        for id in (1..200).step_by(2) {
            peer.expect_echo(id, &plain(id));
            peer.expect_echo(id + 1, b"between");
        }
    });
}

/// Who holds room and sends as little as is allowed is cut off once others wait for it.
#[test]
fn a_slow_sender_does_not_hold_the_room_for_ever() {
    let server = tight(|server| server);
    let long = echo(1, &pattern(1, 16 * MIB));
    let mut slow = Peer::connect(address(&server));
    slow.send(&long[..100_000]);
    std::thread::sleep(Duration::from_millis(50));
    let mut waits = Peer::connect(address(&server));
    let mut writer = waits.try_clone();
    let payload = pattern(2, 16 * MIB);
    std::thread::scope(|scope| {
        scope.spawn(|| writer.send(&echo(2, &payload)));
        let mut at = 100_000;
        while !has_answer(&waits) {
            // It may be closed by now.
            let _ = std::io::Write::write(&mut slow.stream, &long[at..at + 4096]);
            at = (at + 4096).min(long.len() - 5000);
            std::thread::sleep(Duration::from_millis(50));
        }
        waits.expect_echo(2, &payload);
    });
    let (code, text) = slow.receive().error();
    assert_eq!(
        (code, text.contains("frame_timeout_ms")),
        (11, true),
        "{text}"
    );
}

#[test]
fn nobody_holds_room_without_credentials() {
    let server = tight(|server| server.auth_token(b"open sesame"));
    let long = echo(2, &pattern(1, MIB));
    let mut stranger = Peer::connect(address(&server));
    stranger.send(&long[..70_000]);
    assert_eq!(stranger.receive().error().0, 7);
    // In one go with its HANDSHAKE it is welcome.
    let mut hello = vec![1, 0, 1, 0, 2, 4, 0, 11, 0];
    hello.extend(b"open sesame");
    let mut friend = Peer::connect(address(&server));
    let mut writer = friend.try_clone();
    std::thread::scope(|scope| {
        scope.spawn(|| writer.send(&[request(HANDSHAKE, 1, &hello), long.clone()].concat()));
        assert_eq!(friend.receive().msg_type, HANDSHAKE_ACK);
        friend.expect_echo(2, &long[24..]);
    });
}

#[test]
fn who_shows_no_credentials_is_not_waited_for() {
    let server = tight(|server| server.auth_token(b"open sesame"));
    let mut hello = vec![1, 0, 1, 0, 2, 4, 0, 11, 0];
    hello.extend(b"open sesame");
    let mut friend = Peer::connect(address(&server));
    friend.send(&request(HANDSHAKE, 1, &hello));
    assert_eq!(friend.receive().msg_type, HANDSHAKE_ACK);
    let mut stranger = Peer::connect(address(&server));
    assert_eq!(stranger.receive().error().0, 7);
    stranger.expect_end();
    friend.expect_alive();
}

/// Begins a message of so many bytes, for which there is room, and holds that.
fn holder(server: &Server, bytes: usize) -> Peer {
    let mut peer = Peer::connect(address(server));
    peer.send(&echo(1, &vec![1; bytes])[..1000]);
    std::thread::sleep(Duration::from_millis(100));
    peer
}

fn wait_for_answer(peer: &Peer, limit: Duration) {
    let start = Instant::now();
    while !has_answer(peer) {
        assert!(start.elapsed() < limit, "no answer");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Nobody holds room for a message while one before it waits for room.
#[test]
fn a_compressed_one_and_a_long_one_behind_it() {
    let server = tight(|server| server);
    let long = vec![5; 15 * MIB + MIB / 2];
    let mut peer = Peer::connect(address(&server));
    let mut writer = peer.try_clone();
    std::thread::scope(|scope| {
        let bytes = [packed(1, &vec![0; 2 * MIB]), echo(2, &long)].concat();
        scope.spawn(move || writer.send(&bytes));
        peer.expect_echo(1, &vec![0; 2 * MIB]);
        peer.expect_echo(2, &long);
    });
}

#[test]
fn nobody_stands_in_line_twice() {
    let server = tight(|server| server);
    let (first, second) = (holder(&server, 10 * MIB), holder(&server, 6 * MIB));
    let long = echo(2, &vec![5; 5 * MIB]);
    let mut peer = Peer::connect(address(&server));
    peer.send(&[packed(1, &vec![0; 5 * MIB / 2]), long[..1000].to_vec()].concat());
    std::thread::sleep(Duration::from_millis(100));
    drop(second);
    peer.expect_echo(1, &vec![0; 5 * MIB / 2]);
    drop(first);
    peer.send(&long[1000..]);
    peer.expect_echo(2, &long[24..]);
    Peer::connect(address(&server)).expect_alive();
}

/// All room would be held by those who wait for room.
#[test]
fn seven_who_wait_do_not_block_all() {
    let server = server()
        .handler(0x0100, |_: Request<'_>, responder: Responder<'_>| {
            std::thread::sleep(WHILE);
            responder.reply(b"");
        })
        .start()
        .unwrap();
    let mut peers: Vec<_> = (0..7).map(|_| Peer::connect(address(&server))).collect();
    // So that what they send is found in one round.
    let mut busy = Peer::connect(address(&server));
    busy.send(&request(0x0100, 1, b""));
    std::thread::sleep(WHILE / 6);
    let packed = packed(1, &vec![0; 2 * MIB]);
    for (index, peer) in peers.iter_mut().enumerate() {
        let long = if index < 6 { 10 * MIB - 100 } else { 3 * MIB };
        let begun = &echo(2, &vec![0; long])[..1000];
        peer.send(&[&packed, begun].concat());
    }
    for peer in &mut peers {
        peer.expect_echo(1, &vec![0; 2 * MIB]);
    }
    drop(peers);
    let mut other = Peer::connect(address(&server));
    other.send(&echo(9, &vec![9; 100_000]));
    other.expect_echo(9, &vec![9; 100_000]);
}

#[test]
fn those_before_a_long_one_do_not_wait_for_its_room() {
    let server = tight(|server| {
        server.handler(0x0100, |_: Request<'_>, responder: Responder<'_>| {
            responder.reply(&[7; 500_000]);
        })
    });
    let _holder = holder(&server, 15 * MIB);
    let mut bytes: Vec<u8> = (1..=8).flat_map(|id| request(0x0100, id, b"")).collect();
    bytes.extend(&echo(9, &vec![5; 5 * MIB])[..1000]);
    let mut peer = Peer::connect(address(&server));
    peer.send(&bytes);
    for id in 1..=8 {
        assert_eq!(peer.receive().msg_id, id);
    }
}

/// Both who wait can go at once; the second is on a worker that sleeps, and was not the first when it lay
/// down. Without a word it sleeps until it looks by itself, four seconds later.
#[test]
fn the_next_in_line_may_be_another_workers() {
    let server = tight(|server| server.workers(2).idle(IdleMode::Park));
    let pause = || std::thread::sleep(Duration::from_millis(100));
    // In turn to one worker and the other.
    let mut peers: Vec<_> = (0..4)
        .map(|_| {
            pause();
            Peer::connect(address(&server))
        })
        .collect();
    peers[1].send(&echo(1, &vec![1; 16 * MIB])[..1000]);
    pause();
    peers[3].send(&echo(1, &vec![1; 5 * MIB])[..1000]);
    pause();
    peers[0].send(&echo(2, &vec![2; 200_000]));
    std::thread::sleep(WHILE);
    assert!(!has_answer(&peers[0]));
    drop(peers.remove(1));
    wait_for_answer(&peers[0], Duration::from_secs(3));
    peers[0].expect_echo(2, &vec![2; 200_000]);
}

/// All kinds in any order, from many at once, cut anywhere: whatever waits for whatever, all are answered.
#[test]
fn a_crowd_gets_all_its_answers() {
    const CONNECTIONS: u64 = 12;
    const MESSAGES: u64 = 40;
    // They all do what they should, however slow the machine is.
    let server = tight(|server| server.workers(2).limits(limits(60_000)));
    std::thread::scope(|scope| {
        for connection in 0..CONNECTIONS {
            let server = &server;
            scope.spawn(move || {
                let mut random = connection.wrapping_mul(0x9E37_79B9_7F4A_7C15) + 1;
                let mut below = |limit: usize| {
                    random = random.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(1);
                    (random >> 33) as usize % limit
                };
                let messages: Vec<_> = (1..=MESSAGES)
                    .map(|id| {
                        let long = below(5 * MIB);
                        match below(5) {
                            0 => (echo(id, &vec![3; long]), vec![3; long]),
                            1 => (packed(id, &vec![4; long]), vec![4; long]),
                            2 => {
                                // Little of it can be left out.
                                let plain = pattern(id, long / 8);
                                (packed(id, &plain), plain)
                            }
                            _ => (echo(id, &pattern(id, 300)), pattern(id, 300)),
                        }
                    })
                    .collect();
                let bytes: Vec<u8> = messages
                    .iter()
                    .flat_map(|(frame, _)| frame.clone())
                    .collect();
                let mut peer = Peer::connect(address(server));
                let mut writer = peer.try_clone();
                let cuts: Vec<usize> = (0..64).map(|_| 1 + below(400_000)).collect();
                std::thread::scope(|scope| {
                    scope.spawn(move || {
                        let mut rest = &bytes[..];
                        for cut in cuts.iter().cycle() {
                            let (piece, behind) = rest.split_at(rest.len().min(*cut));
                            if piece.is_empty() {
                                break;
                            }
                            writer.send(piece);
                            rest = behind;
                        }
                    });
                    for (id, (_, plain)) in (1..).zip(&messages) {
                        peer.expect_echo(id, plain);
                    }
                });
            });
        }
    });
}

/// While what came before waits for its turn nothing more is received: that is not the sender's time. Such
/// a sender was closed for being slow once somebody else waited for room.
#[test]
fn who_waits_for_its_turn_is_no_slow_sender() {
    const BEFORE: u64 = 2_500;
    let server = tight(|server| {
        server.handler(0x0100, |_: Request<'_>, responder: Responder<'_>| {
            let start = Instant::now();
            while start.elapsed() < Duration::from_millis(1) {}
            responder.reply(b"");
        })
    });
    let long = pattern(1, 10 * MIB);
    let mut bytes: Vec<u8> = (1..=BEFORE)
        .flat_map(|id| request(0x0100, id, b""))
        .collect();
    bytes.extend(echo(9_999, &long));
    let mut peer = Peer::connect(address(&server));
    let mut other = Peer::connect(address(&server));
    let mut writers = [peer.try_clone(), other.try_clone()];
    std::thread::scope(|scope| {
        let [first, second] = &mut writers;
        // It may be closed by the server.
        scope.spawn(|| std::io::Write::write_all(&mut first.stream, &bytes));
        std::thread::sleep(WHILE / 6);
        scope.spawn(|| second.send(&echo(1, &long)));
        for id in 1..=BEFORE {
            let got = peer.receive();
            assert_eq!((got.msg_id, got.msg_type), (id, 0x0100), "{got:?}");
        }
        peer.expect_echo(9_999, &long);
        other.expect_echo(1, &long);
    });
}
