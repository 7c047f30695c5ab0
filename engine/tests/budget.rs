//! `max_buffered_bytes` holds whatever way a message comes: its header cut, compressed, slowly, or from
//! somebody who has not shown credentials.

mod support;

use std::time::Duration;

use lapce_ai::ipc::{Limits, Server, ServerBuilder};
use support::*;

const MIB: usize = 1 << 20;
const COMPRESSED: u8 = 0x01;
/// Long enough for a server to do what it must not.
const WHILE: Duration = Duration::from_millis(300);

/// A server with room for one message of 16 MiB, and little beside.
fn tight(configure: impl FnOnce(ServerBuilder) -> ServerBuilder) -> Server {
    let limits = Limits {
        max_message_bytes: 16 * MIB as u32,
        max_buffered_bytes: 17 * MIB as u64,
        frame_timeout_ms: 1000,
        ..Limits::default()
    };
    configure(server().limits(limits)).start().unwrap()
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
        for peer in [&mut first, &mut second] {
            peer.send(&long[..cut]);
        }
        std::thread::sleep(Duration::from_millis(20));
        first.send(&long[cut..100_000]);
        std::thread::sleep(Duration::from_millis(20));
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
    let handled = server.stats().requests(lapce_ai::ipc::Transport::Tcp);
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
