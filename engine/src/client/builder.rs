//! The builder of a client, and its options.

use std::time::Duration;

use super::address::Address;
use super::inner::Inner;
use super::{Client, Error};
use crate::config::{IdleMode, Limits};
use crate::wire::ProtocolVersion;

/// The most requests in flight that may be asked for.
const MAX_INFLIGHT_MAX: usize = 1 << 20;

/// The longest auth token: it travels in a record of the HANDSHAKE, whose length has 16 bits.
const AUTH_TOKEN_BYTES_MAX: usize = u16::MAX as usize;
/// The default of [`ClientBuilder::max_unread_bytes`].
const MAX_UNREAD_BYTES: usize = 64 * 1024 * 1024;

#[derive(Clone)]
pub(super) struct Options {
    pub(super) version: ProtocolVersion,
    pub(super) timeout: Duration,
    pub(super) connect_timeout: Duration,
    pub(super) idle: IdleMode,
    pub(super) auth_token: Option<Vec<u8>>,
    pub(super) shm_upgrade: bool,
    pub(super) reconnect: bool,
    pub(super) reconnect_timeout: Duration,
    pub(super) max_inflight: usize,
    pub(super) max_message_bytes: u32,
    pub(super) max_unread_bytes: usize,
    pub(super) record_round_trips: bool,
}

// By hand, so that the token is not shown.
impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options")
            .field("version", &self.version)
            .field("timeout", &self.timeout)
            .field("connect_timeout", &self.connect_timeout)
            .field("idle", &self.idle)
            .field("auth_token", &self.auth_token.as_ref().map(|_| "..."))
            .field("shm_upgrade", &self.shm_upgrade)
            .field("reconnect", &self.reconnect)
            .field("reconnect_timeout", &self.reconnect_timeout)
            .field("max_inflight", &self.max_inflight)
            .field("max_message_bytes", &self.max_message_bytes)
            .field("max_unread_bytes", &self.max_unread_bytes)
            .finish_non_exhaustive()
    }
}

impl Default for Options {
    fn default() -> Options {
        Options {
            version: ProtocolVersion::V2,
            timeout: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(5),
            idle: IdleMode::default(),
            auth_token: None,
            shm_upgrade: true,
            reconnect: true,
            reconnect_timeout: Duration::MAX,
            max_inflight: 1024,
            max_message_bytes: Limits::default().max_message_bytes,
            max_unread_bytes: MAX_UNREAD_BYTES,
            record_round_trips: false,
        }
    }
}

/// Sets the options of a [`Client`] and connects it.
///
/// ```
/// # use lapce_ai::ipc::{IdleMode, Server};
/// # let server = Server::builder().bind("127.0.0.1:0").start()?;
/// # let address = server.local_addr().unwrap().to_string();
/// use std::time::Duration;
/// use lapce_ai::ipc::{Client, ProtocolVersion};
///
/// let client = Client::builder()
///     .protocol_version(ProtocolVersion::V2)
///     .timeout(Duration::from_secs(1))
///     .connect(&address)?;
/// client.ping()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct ClientBuilder {
    options: Options,
}

impl ClientBuilder {
    /// The protocol version to speak. Version 2 by default; version 1 goes over TCP only.
    pub fn protocol_version(mut self, version: ProtocolVersion) -> ClientBuilder {
        self.options.version = version;
        self
    }

    /// How long a call may take, reconnecting included. The system's look-up of a host's name is not: it
    /// cannot be interrupted. 30 s by default.
    pub fn timeout(mut self, timeout: Duration) -> ClientBuilder {
        self.options.timeout = timeout;
        self
    }

    /// How long one attempt to connect may take, handshake included; over TCP at least 1 ms for each address
    /// of the host. 5 s by default.
    pub fn connect_timeout(mut self, timeout: Duration) -> ClientBuilder {
        self.options.connect_timeout = timeout;
        self
    }

    /// How to wait for answers: spinning, sleeping or both. [`IdleMode::Adaptive`] by default.
    pub fn idle(mut self, idle: IdleMode) -> ClientBuilder {
        self.options.idle = idle;
        self
    }

    /// The auth token that the server asks for; at most 65,535 bytes. None by default.
    pub fn auth_token(mut self, token: impl Into<Vec<u8>>) -> ClientBuilder {
        self.options.auth_token = Some(token.into());
        self
    }

    /// Whether a TCP connection to this machine is upgraded to shared memory if that is possible. On by
    /// default. If it is off and there is no token, the connection begins without a handshake: then neither
    /// side knows how long the other's messages may be.
    pub fn shm_upgrade(mut self, upgrade: bool) -> ClientBuilder {
        self.options.shm_upgrade = upgrade;
        self
    }

    /// Whether the next request makes a new connection if the last one was lost. On by default.
    pub fn reconnect(mut self, reconnect: bool) -> ClientBuilder {
        self.options.reconnect = reconnect;
        self
    }

    /// How long a call may go on trying to reach a server that is gone. The call's timeout by default, which
    /// also bounds this. With zero, a call makes one attempt, as [`Client::submit`] does, and fails at once
    /// with [`Error::Unavailable`] in the pause after a failed one.
    ///
    /// ```
    /// # let server = lapce_ai::ipc::Server::builder().bind("127.0.0.1:0").start()?;
    /// # let address = server.local_addr().unwrap().to_string();
    /// use std::time::Duration;
    /// use lapce_ai::ipc::{Client, msg_type};
    ///
    /// let client = Client::builder().reconnect_timeout(Duration::ZERO).connect(&address)?;
    /// client.ping()?;
    /// server.stop();
    /// // At once, although a call may take 30 s.
    /// let error = loop {
    ///     match client.call(msg_type::ECHO, b"x") {
    ///         Err(error) if error.is_safe_to_repeat() => break error,
    ///         _ => {}
    ///     }
    /// };
    /// assert!(error.is_retryable());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn reconnect_timeout(mut self, timeout: Duration) -> ClientBuilder {
        self.options.reconnect_timeout = timeout;
        self
    }

    /// How many requests may be in flight, 1 to 1,048,576. Submitting more waits for answers. 1,024 by
    /// default.
    pub fn max_inflight(mut self, requests: usize) -> ClientBuilder {
        self.options.max_inflight = requests;
        self
    }

    /// The longest payload that is sent and accepted, in bytes; at least 1. 10 MiB by default.
    pub fn max_message_bytes(mut self, bytes: u32) -> ClientBuilder {
        self.options.max_message_bytes = bytes;
        self
    }

    /// How many bytes of answers may wait to be collected while others are waited for. An answer beyond that
    /// is dropped, and its request fails with [`Error::Unread`]; a single answer may be longer. It is also the
    /// longest stream that is joined ([`Client::call`]). 64 MiB by default.
    pub fn max_unread_bytes(mut self, bytes: usize) -> ClientBuilder {
        self.options.max_unread_bytes = bytes;
        self
    }

    /// Whether to keep a histogram of round trips, for [`Client::round_trips`]. Off by default: it reads the
    /// clock twice for each request.
    pub fn record_round_trips(mut self, record: bool) -> ClientBuilder {
        self.options.record_round_trips = record;
        self
    }

    /// Connects to HOST:PORT, `shm:` or `shm:INSTANCE`. One attempt.
    ///
    /// # Errors
    /// [`Error::InvalidAddress`], [`Error::ConnectFailed`], [`Error::SharedMemory`], the
    /// server's own [`Error::Remote`] if it refuses the auth token, or [`Error::InvalidRequest`] naming the
    /// setting that is out of its range.
    pub fn connect(self, address: &str) -> Result<Client, Error> {
        self.connect_within(address, Duration::MAX)
    }

    /// As [`ClientBuilder::connect`], within `limit` if that is shorter than the connect timeout.
    pub(crate) fn connect_within(self, address: &str, limit: Duration) -> Result<Client, Error> {
        let address = Address::parse(address)?;
        self.check()?;
        Ok(Client::new(Inner::connect(self.options, address, limit)?))
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        let Options {
            auth_token,
            max_inflight,
            max_message_bytes,
            ..
        } = &self.options;
        let token_bytes = auth_token.as_ref().map_or(0, Vec::len);
        let wrong = if token_bytes > AUTH_TOKEN_BYTES_MAX {
            "an auth token has at most 65535 bytes"
        } else if !(1..=MAX_INFLIGHT_MAX).contains(max_inflight) {
            "a client's max_inflight is 1 to 1048576 requests"
        } else if *max_message_bytes == 0 {
            "a client's max_message_bytes is at least 1"
        } else {
            return Ok(());
        };
        Err(Error::InvalidRequest(wrong))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::ConnectionPool;

    #[test]
    fn settings_out_of_range_are_refused() {
        for (builder, setting) in [
            (Client::builder().max_inflight(0), "max_inflight"),
            (Client::builder().max_inflight(usize::MAX), "max_inflight"),
            (Client::builder().max_message_bytes(0), "max_message_bytes"),
            (Client::builder().auth_token([0; 65_536]), "token"),
        ] {
            for error in [
                builder.clone().connect("127.0.0.1:1").unwrap_err(),
                ConnectionPool::builder()
                    .client(builder)
                    .build()
                    .unwrap_err(),
            ] {
                assert!(
                    matches!(error, Error::InvalidRequest(what) if what.contains(setting)),
                    "{error}"
                );
            }
        }
        let least = Client::builder().max_inflight(1).max_message_bytes(1);
        least.check().unwrap();
    }
}
