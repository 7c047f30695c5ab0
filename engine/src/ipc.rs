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
//!
//! # In an async program
//!
//! Calls block, so they go where blocking is allowed, with a pool for the connections. A server has threads of its
//! own; a handler hands the request to a task, which answers when it is done. [`Deferred::reply`] and
//! [`Deferred::stream_part`] wait if their reader is more than 1 MiB behind: a task that sends much does that in
//! `spawn_blocking` too. With tokio:
//!
//! ```
//! use lapce_ai::ipc::{ConnectionPool, Request, Responder, Server};
//! use tokio::task::spawn_blocking;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let runtime = tokio::runtime::Runtime::new()?;
//! let tasks = runtime.handle().clone();
//! let server = Server::builder()
//!     .bind("127.0.0.1:0")
//!     .handler(0x0100, move |request: Request<'_>, responder: Responder<'_>| {
//!         let (question, answer) = (request.payload().to_vec(), responder.detach());
//!         tasks.spawn(async move { answer.reply(question.to_ascii_uppercase()) });
//!     })
//!     .start()?;
//! let pool = ConnectionPool::builder()
//!     .endpoint(server.local_addr().unwrap().to_string())
//!     .build()?;
//! runtime.block_on(async move {
//!     let answer = spawn_blocking(move || pool.get()?.call(0x0100, b"hello")).await??;
//!     assert_eq!(answer, b"HELLO");
//!     Ok(())
//! })
//! # }
//! ```
//!
//! A task that pipelines owns a [`Client`], submits, and calls [`Client::poll`] when [`Client::poll_fd`] is readable
//! (over TCP) or a [`Watch`] tells (over shared memory); ask for the descriptor anew each time, since a reconnect changes
//! it. The future that holds a `&Client` is not `Send`: run it on a thread with a runtime of its own. If something is left
//! to send and the connection is gone, `poll` waits until there is a new one: [`ClientBuilder::reconnect_timeout`] bounds
//! that.
//!
//! # Memory
//!
//! The engine frees the memory of long messages, but the C library's allocator keeps what handlers and their threads free:
//! a server whose threads answered documents of 5 MiB, eight at a time, kept 24 MB. With [`keep_process_small`] called
//! first in `main` it was 3.6 MB.

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
