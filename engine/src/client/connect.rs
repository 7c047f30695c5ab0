//! From an address to a connection that is ready for requests: TCP, the upgrade to shared memory, and the
//! HANDSHAKE.

use std::io;
use std::time::Duration;

use super::Error;
use super::address::Address;
use super::answer::PeerLimits;
use super::builder::Options;
use super::channel::Channel;
use super::link::Link;
use super::receive::remote_error;
use super::shm::ShmLink;
use super::tcp::TcpLink;
use crate::shm::{ShmError, join};
use crate::sys::clock;
use crate::wire::{
    ErrorCode, Flags, Hello, ProtocolVersion, VERSION, capability, control_segment_name,
    is_control_segment_name, msg_type,
};

/// The id of the HANDSHAKE. No request gets it: their ids count up from 1.
const HANDSHAKE_ID: u64 = u64::MAX;

/// The longest HANDSHAKE_ACK that is accepted, even if the client's limit is lower.
const HELLO_BYTES_MAX: u32 = 4096;
/// An upgrade to shared memory of which a step takes longer than this is given up.
const UPGRADE_NS: u64 = 1_000_000_000;

/// A new connection.
pub(super) struct Opened {
    pub(super) channel: Channel,
    pub(super) peer: PeerLimits,
}

/// Connects, with a HANDSHAKE if one is needed.
pub(super) fn open(
    options: &Options,
    address: &Address,
    deadline_ns: u64,
) -> Result<Opened, Error> {
    match address {
        Address::Tcp(address) => open_tcp(options, address, deadline_ns),
        Address::Shm(instance) => {
            let name = control_segment_name(instance);
            open_shm(options, &name, None, deadline_ns)
        }
    }
}

fn open_tcp(options: &Options, address: &str, deadline_ns: u64) -> Result<Opened, Error> {
    let link = TcpLink::connect(address, deadline_ns)?;
    let version = options.version;
    let upgrade = options.shm_upgrade && link.is_local();
    let mut channel = Channel::new(Link::Tcp(link), version, options.max_message_bytes);
    let mut peer = PeerLimits::default();
    if version == ProtocolVersion::V1 || !(upgrade || options.auth_token.is_some()) {
        return Ok(Opened { channel, peer });
    }
    let capabilities = if upgrade { capability::SHM } else { 0 };
    let needed = options.auth_token.is_some();
    let hello_ns = match needed {
        true => deadline_ns,
        false => deadline_ns.min(clock::now_ns() + UPGRADE_NS),
    };
    let hello = say_hello(
        options,
        &mut channel,
        address,
        capabilities,
        hello_ns,
        |ack| {
            peer.max_message_bytes = ack.max_message_bytes;
            let segment = ack.shm_segment.filter(|name| is_control_segment_name(name));
            segment
                .map(str::to_owned)
                .zip(ack.host_id.map(<[u8]>::to_vec))
        },
    );
    let offer = match hello {
        Ok(offer) => offer,
        Err(error) if needed => return Err(error),
        // A server that knows no HANDSHAKE: only the upgrade is lost.
        Err(Error::Remote {
            code: Some(ErrorCode::UnknownType),
            ..
        }) => None,
        // One that does not answer. An answer that still comes is dropped, since no request has its id.
        Err(Error::ConnectFailed { source, .. })
            if source.kind() == io::ErrorKind::TimedOut && clock::now_ns() < deadline_ns =>
        {
            None
        }
        // One that closes the connection because of it.
        Err(Error::ConnectFailed { .. }) => {
            let link = Link::Tcp(TcpLink::connect(address, deadline_ns)?);
            channel = Channel::new(link, version, options.max_message_bytes);
            None
        }
        Err(error) => return Err(error),
    };
    if let Some((segment, host_id)) = offer {
        let limit_ns = deadline_ns.min(clock::now_ns() + UPGRADE_NS);
        // After an upgrade the TCP connection is not needed, since each side watches the other's process. If
        // the upgrade fails, it is used.
        if let Ok(opened) = open_shm(options, &segment, Some(&host_id), limit_ns) {
            return Ok(opened);
        }
    }
    Ok(Opened { channel, peer })
}

fn open_shm(
    options: &Options,
    segment: &str,
    host_id: Option<&[u8]>,
    deadline_ns: u64,
) -> Result<Opened, Error> {
    if options.version == ProtocolVersion::V1 {
        return Err(Error::InvalidRequest(
            "shared memory carries version 2 only: connect to HOST:PORT for version 1",
        ));
    }
    let limit = Duration::from_nanos(deadline_ns.saturating_sub(clock::now_ns()));
    // Both sides write their limits on messages into the segment, so no HANDSHAKE is needed for that.
    let own_max = options.max_message_bytes;
    let end = join(segment, host_id, own_max, limit).map_err(shared_memory_error)?;
    let server_max = end.server_bytes_max;
    let mut peer = PeerLimits {
        max_message_bytes: (server_max > 0).then_some(server_max),
    };
    let link = Link::Shm(Box::new(ShmLink::new(end)));
    let mut channel = Channel::new(link, options.version, own_max.max(server_max));
    if options.auth_token.is_some() {
        peer = say_hello(options, &mut channel, segment, 0, deadline_ns, |ack| {
            PeerLimits {
                max_message_bytes: ack.max_message_bytes,
            }
        })?;
    }
    Ok(Opened { channel, peer })
}

fn shared_memory_error(error: ShmError) -> Error {
    match error {
        ShmError::Refused(code) => Error::Remote {
            code: u16::try_from(code).ok().and_then(ErrorCode::from_u16),
            message: error.to_string(),
        },
        error => Error::SharedMemory(error.to_string()),
    }
}

/// Sends a HANDSHAKE, waits for the HANDSHAKE_ACK and gives it to `read`.
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
        max_message_bytes: Some(options.max_message_bytes),
        ..Hello::default()
    };
    let mut payload = Vec::new();
    hello.encode(&mut payload);
    channel.queue(Flags::REQUEST, msg_type::HANDSHAKE, HANDSHAKE_ID, &payload);
    // The HANDSHAKE_ACK is accepted however low the client's own limit is.
    channel.set_max_message_bytes(options.max_message_bytes.max(HELLO_BYTES_MAX));
    // Ends with an answer, the server's end, or the deadline.
    loop {
        let sent = channel.flush().map_err(failed)?;
        if let Some(incoming) = channel.next().map_err(Error::ServerViolation)? {
            let header = incoming.header;
            let answers = header.flags.contains(Flags::RESPONSE) && header.msg_id == HANDSHAKE_ID;
            let is_about_the_connection = header.msg_type == msg_type::ERROR && header.msg_id == 0;
            // All else is skipped, as it is later on: who sends back whatever comes is no server.
            if !answers && !is_about_the_connection {
                continue;
            }
            let payload = channel.payload(&incoming);
            match header.msg_type {
                // Some servers answer with the request's own type, as to any request.
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
        let received = channel.fill().map_err(failed)?;
        // Also if something came: a server that never stops sending would keep us here.
        let left_ns = deadline_ns.saturating_sub(clock::now_ns());
        if left_ns == 0 {
            return Err(failed(io::Error::new(
                io::ErrorKind::TimedOut,
                "no answer to the handshake",
            )));
        }
        if received == 0 {
            let limit = Duration::from_nanos(left_ns);
            channel.link.sleep(!sent, limit).map_err(failed)?;
        }
    }
}
