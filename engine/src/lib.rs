//! A transport engine for programs on one machine, and between machines over TCP.
//!
//! Start at [`ipc`]: it is the whole public face. The layers below it are laid out from the ground
//! up, and each uses only those before it: `wire`, `sys`, `shm`, `uring`, `stats`, `worker`, then
//! `server`, `client`, `pool` and `config`.

mod client;
mod config;
mod pool;
mod process;
mod server;
mod shm;
mod spare_buffers;
mod stats;
mod sys;
mod uring;
mod wire;
mod worker;

pub mod ipc;

/// Parts that the benchmarks measure by themselves, or build their floors of. Not part of the public face: no promise of
/// any kind is made about it.
#[doc(hidden)]
pub mod bench_internals {
    pub use crate::sys::{affinity, futex, prefetch};
    pub use crate::wire::crc;
}
