//! From an address to a channel that is ready for requests.

use std::io;
use std::time::Duration;

use super::Error;
use super::address::Address;
use super::answer::PeerLimits;
use super::builder::Options;
use super::channel::Channel;
use super::link::Link;
use super::receive::remote_error;
use super::tcp::TcpLink;
use crate::sys::clock;
use crate::wire::{Flags, Hello, ProtocolVersion, VERSION, msg_type};

/// The id of the handshake, which no request of the client gets: they count up from 1.
const HANDSHAKE_ID: u64 = u64::MAX;

/// A new connection.
pub(super) struct Opened {
    pub(super) channel: Channel,
    pub(super) peer: PeerLimits,
}

/// Connects, and says hello where that is needed.
pub(super) fn open(
    options: &Options,
    address: &Address,
    deadline_ns: u64,
) -> Result<Opened, Error> {
    match address {
        Address::Tcp(address) => open_tcp(options, address, deadline_ns),
        Address::Shm(_) => Err(Error::SharedMemory("no shared memory".into())),
    }
}

fn open_tcp(options: &Options, address: &str, deadline_ns: u64) -> Result<Opened, Error> {
    let link = TcpLink::connect(address, deadline_ns)?;
    let version = options.version;
    let mut channel = Channel::new(Link::Tcp(link), version, options.max_message_bytes);
    let mut peer = PeerLimits::default();
    if version == ProtocolVersion::V2 && options.auth_token.is_some() {
        peer = say_hello(options, &mut channel, address, 0, deadline_ns, |ack| {
            PeerLimits {
                max_message_bytes: ack.max_message_bytes,
            }
        })?;
    }
    Ok(Opened { channel, peer })
}

/// Sends a HANDSHAKE and gives its acknowledgement to `read`.
fn say_hello<T>(
    options: &Options,
    channel: &mut Channel,
    address: &str,
    capabilities: u32,
    deadline_ns: u64,
    read: impl FnOnce(&Hello<'_>) -> T,
) -> Result<T, Error> {
    let failed = |source| Error::ConnectFailed {
        address: address.to_owned(),
        source,
    };
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
    // Ends with an answer, the server's end, or the deadline.
    loop {
        let sent = channel.flush().map_err(failed)?;
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
                msg_type::ERROR => return Err(remote_error(payload)),
                _ => continue,
            }
        }
        if channel.fill().map_err(failed)? == 0 {
            let left_ns = deadline_ns.saturating_sub(clock::now_ns());
            if left_ns == 0 {
                return Err(failed(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "no answer to the handshake",
                )));
            }
            let limit = Duration::from_nanos(left_ns);
            channel.link.sleep(!sent, limit).map_err(failed)?;
        }
    }
}
