//! From an address to a channel that is ready for requests.

use std::time::Duration;

use super::Error;
use super::address::Address;
use super::builder::Options;
use super::channel::Channel;
use super::link::Link;
use super::tcp::TcpLink;
use super::wait::left;
use crate::sys::clock;
use crate::wire::{self, Flags, Hello, ProtocolVersion, VERSION, msg_type};

/// The id of the handshake, which no request of the client gets: they count up from 1.
const HANDSHAKE_ID: u64 = u64::MAX;

/// Connects, and says hello where that is needed.
pub(super) fn open(options: &Options, address: &Address) -> Result<Channel, Error> {
    let deadline_ns = clock::now_ns() + options.connect_timeout.as_nanos() as u64;
    match address {
        Address::Tcp(address) => open_tcp(options, address, deadline_ns),
        Address::Shm(_) => Err(Error::SharedMemory("no shared memory".into())),
    }
}

fn open_tcp(options: &Options, address: &str, deadline_ns: u64) -> Result<Channel, Error> {
    let link = TcpLink::connect(address, left(deadline_ns, clock::now_ns()))?;
    let version = options.version;
    let mut channel = Channel::new(Link::Tcp(link), version, options.max_message_bytes);
    if version == ProtocolVersion::V2 && options.auth_token.is_some() {
        say_hello(options, &mut channel, 0, deadline_ns, |_| ())?;
    }
    Ok(channel)
}

/// Sends a HANDSHAKE and gives its acknowledgement to `read`.
fn say_hello<T>(
    options: &Options,
    channel: &mut Channel,
    capabilities: u32,
    deadline_ns: u64,
    read: impl FnOnce(&Hello<'_>) -> T,
) -> Result<T, Error> {
    let hello = Hello {
        versions: &[VERSION],
        capabilities,
        identity: Some(concat!("lapce-ai/", env!("CARGO_PKG_VERSION"))),
        credentials: options.auth_token.as_deref(),
        ..Hello::default()
    };
    let mut payload = Vec::new();
    hello.encode(&mut payload);
    channel.queue(Flags::REQUEST, msg_type::HANDSHAKE, HANDSHAKE_ID, &payload);
    let lost = |source| Error::ConnectionLost {
        may_have_run: false,
        source: Some(source),
    };
    let sent = channel.flush().map_err(lost)?;
    debug_assert!(sent, "a fresh socket has room for a handshake");
    // Ends with an answer, the server's end, or the deadline.
    loop {
        if let Some(incoming) = channel.next().map_err(Error::ServerViolation)? {
            let payload = channel.payload(&incoming);
            match incoming.header.msg_type {
                // A server may answer with the request's own type, as for any request.
                msg_type::HANDSHAKE_ACK | msg_type::HANDSHAKE => {
                    let ack = Hello::decode(payload).map_err(Error::ServerViolation)?;
                    let max = ack.max_message_bytes;
                    let result = read(&ack);
                    // Answers are as long as the server's limit, which may be above ours.
                    channel.set_max_message_bytes(max.unwrap_or(0).max(options.max_message_bytes));
                    return Ok(result);
                }
                msg_type::ERROR => {
                    let (code, message) = wire::decode_error_payload(payload)
                        .map(|(code, text)| (wire::ErrorCode::from_u16(code), text.into_owned()))
                        .unwrap_or((None, "the handshake was refused".into()));
                    return Err(Error::Remote { code, message });
                }
                _ => continue,
            }
        }
        if channel.fill().map_err(lost)? == 0 {
            let limit = left(deadline_ns, clock::now_ns());
            if limit == Duration::ZERO {
                return Err(Error::Timeout {
                    after: options.connect_timeout,
                });
            }
            channel.link.sleep(false, limit).map_err(lost)?;
        }
    }
}
