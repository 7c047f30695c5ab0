//! Messages that are longer than one of the sides takes.

use super::APP;
use super::shm::{address, builder, instance};
use crate::client::{Client, Error};
use crate::config::Limits;
use crate::server::Server;
use crate::wire::{ErrorCode, Refusal, msg_type};
use crate::worker::{Request, Responder};

const SERVERS: usize = 2000;
const CLIENTS: u32 = 1200;

/// Each side knows the other's limit, so that a message too long costs nothing but itself.
#[test]
fn only_the_message_itself_is_refused() {
    let instance = instance();
    let server = builder(&instance)
        .limits(Limits {
            max_message_bytes: SERVERS as u32,
            ..Limits::default()
        })
        .handler(APP, |_: Request<'_>, responder: Responder<'_>| {
            responder.reply(&[7; SERVERS]);
        })
        .start()
        .unwrap();
    for address in [address(&server), format!("shm:{instance}")] {
        let client = Client::connect(&address).unwrap();
        let max = client.peer_limits().max_message_bytes;
        assert_eq!(max, Some(SERVERS as u32), "{address}");
        assert!(client.call(APP, b"").unwrap() == [7; SERVERS]);
        let other = client.submit(msg_type::ECHO, b"other").unwrap();
        let error = client.call(msg_type::ECHO, &[0; SERVERS + 1]).unwrap_err();
        assert!(
            matches!(error, Error::TooLarge { max: 2000, .. }),
            "{error}"
        );
        assert_eq!(client.wait(other).unwrap(), b"other");

        let client = Client::builder()
            .max_message_bytes(CLIENTS)
            .connect(&address)
            .unwrap();
        let other = client.submit(msg_type::ECHO, b"other").unwrap();
        let error = client.call(APP, b"").unwrap_err();
        assert_eq!(error.code(), Some(ErrorCode::HandlerFailed), "{error}");
        assert_eq!(client.wait(other).unwrap(), b"other");
        assert_eq!(client.stats().reconnects, 0);
    }
}

/// Who was refused raises the limit and starts the server anew; the client finds that out, and the reverse.
#[test]
fn a_server_started_anew_may_take_more_or_less() {
    let instance = instance();
    let start = |address: &str, max_message_bytes| {
        let limits = Limits {
            max_message_bytes,
            ..Limits::default()
        };
        let builder = builder(&instance).bind(address).limits(limits);
        builder.start().unwrap()
    };
    let is_refused = |client: &Client| {
        let called = client.call(msg_type::ECHO, &[7; SERVERS + 1]);
        matches!(called, Err(Error::TooLarge { max: 2000, .. }))
    };
    let mut server = start("127.0.0.1:0", SERVERS as u32);
    let tcp = address(&server);
    for address in [&tcp, &format!("shm:{instance}")] {
        // With a token, which this server does not ask for, there is a HANDSHAKE over TCP.
        let client = Client::builder().shm_upgrade(false).auth_token("token");
        let client = client.connect(address).unwrap();
        assert!(is_refused(&client));
        server.stop();
        server = start(&tcp, SERVERS as u32 + 1);
        let answer = client.call(msg_type::ECHO, &[7; SERVERS + 1]).unwrap();
        assert!(answer == [7; SERVERS + 1]);
        server.stop();
        server = start(&tcp, SERVERS as u32);
        assert!(is_refused(&client), "{address}");
        assert_eq!(client.call(msg_type::ECHO, b"short").unwrap(), b"short");
        assert_eq!(client.stats().reconnects, 2);
    }
}

/// Without a handshake the server does not know how little that is.
#[test]
fn an_error_longer_than_answers_may_be_is_shown() {
    let server = Server::builder()
        .bind("127.0.0.1:0")
        .workers(1)
        .start()
        .unwrap();
    let client = Client::builder()
        .max_message_bytes(8)
        .shm_upgrade(false)
        .connect(&server.local_addr().unwrap().to_string())
        .unwrap();
    let error = client.call(APP, b"1").unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::UnknownType), "{error:?}");
    assert!(client.is_connected());
}

/// A server that was not told may answer at any length: then the text says whose limit it is.
#[test]
fn the_clients_own_limit_is_called_that() {
    for refusal in [
        Refusal::TooLarge {
            length: 3000,
            max: 1000,
        },
        Refusal::InflatesTooFar {
            size: 3000,
            max: 1000,
        },
    ] {
        let text = Error::ServerViolation(refusal).to_string();
        assert!(
            text.contains("3000 bytes, this client takes 1000")
                && text.contains("ClientBuilder::max_message_bytes"),
            "{text}"
        );
    }
}
