//! A transport engine: programs exchange small framed messages, through shared memory on one machine
//! and over TCP between machines.
//!
//! Users need only [`ipc`], which is the whole public API. To read the code, start with `worker`, which
//! serves connections, or `client`; docs/architecture.md follows one message through both and explains
//! the words used here.
//!
//! From the ground up, the layers are:
//!
//! | layer | what it does |
//! |---|---|
//! | `wire` | the protocol: bytes in, bytes out; no I/O and no clock |
//! | `sys` | the operating system, behind safe functions |
//! | `shm` | the rings in shared memory, and how a client attaches to a server |
//! | `uring` | the io_uring driver: accept, receive, send, wait |
//! | `stats` | counters and latency histograms |
//! | `config` | limits, idle modes and the daemon's configuration file |
//! | `worker` | the server's event loop, one per thread |
//! | `server` | starting, watching and stopping the workers |
//! | `client` | the blocking client |
//! | `pool` | a pool of clients for many threads |
//!
//! A layer uses only the layers above it in this table (`tests/layers.rs` checks that). Beside them,
//! `process` has what a program around a server needs, `processor` tells whose processor this is, and
//! `spare_buffers` keeps buffers for reuse.

mod client;
mod config;
mod pool;
mod process;
mod processor;
mod server;
mod shm;
mod spare_buffers;
mod stats;
mod sys;
mod uring;
mod wire;
mod worker;

pub mod ipc;

/// What the benchmarks measure in isolation, or build their floors from. Not part of the public API:
/// it may change in any release.
#[doc(hidden)]
pub mod bench_internals {
    pub use crate::sys::{affinity, futex, prefetch};
    pub use crate::wire::crc;
}
