//! A server that asks for a token.

mod support;

use lapce_ai::ipc::{Client, Error, ErrorCode, ProtocolVersion, Server};
use support::*;

const TOKEN: &[u8] = b"open sesame";

fn guarded() -> Server {
    server().auth_token(TOKEN).legacy(true).start().unwrap()
}

fn hello(credentials: Option<&[u8]>) -> Vec<u8> {
    let mut payload = vec![1, 0, 1, 0, 2];
    if let Some(credentials) = credentials {
        payload.extend([4, 0]);
        payload.extend((credentials.len() as u16).to_le_bytes());
        payload.extend(credentials);
    }
    request(HANDSHAKE, 1, &payload)
}

#[test]
fn the_right_token_opens() {
    let server = guarded();
    let mut peer = Peer::connect(address(&server));
    peer.send(&hello(Some(TOKEN)));
    assert_eq!(peer.receive().msg_type, HANDSHAKE_ACK);
    peer.expect_alive();
    // In one go with the first request.
    let mut peer = Peer::connect(address(&server));
    peer.send(&[hello(Some(TOKEN)), echo(2, b"x")].concat());
    assert_eq!(peer.receive().msg_type, HANDSHAKE_ACK);
    peer.expect_echo(2, b"x");
    // Also of one that is in a hurry.
    let mut peer = Peer::connect(address(&server));
    let hurried = frame(REQUEST | PRIORITY, ECHO, 2, b"x");
    peer.send(&[hello(Some(TOKEN)), hurried].concat());
    assert_eq!(peer.receive().msg_type, HANDSHAKE_ACK);
    assert_eq!(peer.receive().payload, b"x");
}

/// What a server takes as its token, a client can show.
#[test]
fn the_longest_token_opens() {
    let token = vec![b'x'; 65_384];
    let server = server().auth_token(token.clone()).start().unwrap();
    let client = Client::builder().auth_token(token);
    let client = client.connect(&address(&server).to_string()).unwrap();
    assert_eq!(client.call(ECHO, b"x").unwrap(), b"x");
}

#[test]
fn a_wrong_or_missing_token_is_refused_and_closed() {
    let server = guarded();
    let wrong: [Option<&[u8]>; 6] = [
        None,
        Some(b""),
        Some(b"open sesam"),
        Some(b"open sesame!"),
        Some(b"Open sesame"),
        Some(&[0xFF; 60_000]),
    ];
    for token in wrong {
        let mut peer = Peer::connect(address(&server));
        peer.send(&[hello(token), echo(2, b"not served")].concat());
        let got = peer.receive();
        assert_eq!((got.flags, got.msg_id), (RESPONSE, 1));
        let (code, text) = got.error();
        assert_eq!(code, 7);
        assert!(!text.contains("sesame"), "{text}");
        peer.expect_end();
    }
    assert_eq!(server.stats().errors(ErrorCode::Unauthorized), 6);
}

#[test]
fn nothing_comes_before_the_handshake() {
    let server = guarded();
    for (bytes, msg_id) in [
        (echo(9, b"x"), 9),
        (request(HEARTBEAT, 9, b""), 9),
        (request(0x0777, 9, b""), 9),
        (frame(0, 0x0100, 0, b""), 0),
        (frame(0, HANDSHAKE, 0, b""), 0),
    ] {
        let mut peer = Peer::connect(address(&server));
        peer.send(&[bytes, hello(Some(TOKEN))].concat());
        let got = peer.receive();
        assert_eq!((got.msg_id, got.error().0), (msg_id, 7));
        peer.expect_end();
    }
}

#[test]
fn version_1_has_no_way_in() {
    let server = guarded();
    let mut peer = Peer::connect(address(&server));
    peer.send(&frame_v1(ECHO, 3, b"x"));
    let got = peer.try_receive_v1().unwrap();
    assert_eq!((got.msg_id, got.error().0), (3, 7));
    peer.expect_end();
}

#[test]
fn the_client_sends_its_token() {
    let server = guarded();
    let address = address(&server).to_string();
    let client = Client::builder()
        .auth_token(TOKEN)
        .timeout(PATIENCE)
        .connect(&address)
        .unwrap();
    assert_eq!(client.call(ECHO, b"x").unwrap(), b"x");
    match Client::builder().auth_token("wrong").connect(&address) {
        Err(Error::Remote { code, .. }) => assert_eq!(code, Some(ErrorCode::Unauthorized)),
        other => panic!("{other:?}"),
    }
    // Without one it may connect, but not call.
    for version in [ProtocolVersion::V1, ProtocolVersion::V2] {
        let refused = Client::builder()
            .protocol_version(version)
            .timeout(PATIENCE)
            .connect(&address)
            .and_then(|client| client.call(ECHO, b"x"));
        match refused {
            Err(Error::Remote { code, .. }) => assert_eq!(code, Some(ErrorCode::Unauthorized)),
            other => panic!("{other:?}"),
        }
    }
}
