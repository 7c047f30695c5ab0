//! The public API.
//!
//! - [`Server`] answers requests on threads of its own. Each message type has a [`Handler`], which gets
//!   a [`Request`] and answers through its [`Responder`], or later through a [`Deferred`].
//! - [`Client`] is one connection, for one thread at a time; many threads share a [`ConnectionPool`].
//!   An [`Error`] says whether the request may have been carried out.
//! - [`Config`] is the daemon's configuration file; [`Limits`] bounds what peers can make a server use.
//! - [`Snapshot`], [`ClientStats`], [`PoolStats`] and [`ProcessStats`] are the statistics.
//! - [`Watch`] tells an event loop of answers that come through shared memory.
//!
//! Both transports carry the same frames: a [`Header`] of 24 bytes with [`Flags`], a message type
//! ([`msg_type`]), an id and a CRC-32C, then the payload. docs/protocol.md has every byte.
//!
//! What an operator should know, a damaged segment or a connection that was cut off, say, goes to the crate
//! [`log`]: nothing shows unless the program installs a logger, `env_logger` for example.
//!
//! Sizes are in bytes of payload unless said otherwise, times in the unit that the name ends with.

pub use crate::client::{
    Answer, AnswerRef, Client, ClientBuilder, ClientStats, Error, Parts, PeerLimits, Watch,
};
pub use crate::config::{
    BadLimit, Config, ConfigError, IdleMode, Limits, UnknownIdleMode, read_token,
};
pub use crate::pool::{
    ConnectionPool, ConnectionPoolBuilder, PoolConfig, PoolStats, PooledConnection,
};
pub use crate::process::{
    ProcessStats, keep_process_small, monotonic_ns, process_stats, release_startup_pages,
    system_monotonic_us, wait_for_port,
};
pub use crate::server::{Server, ServerBuilder, ServerError, ServerHandle};
pub use crate::stats::{Snapshot, Transport};
pub use crate::wire::{
    ErrorCode, Flags, Header, ProtocolVersion, Refusal, is_instance_name, msg_type,
};
pub use crate::worker::{Deferred, Gone, Handler, Request, Responder};
