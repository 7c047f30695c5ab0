//! The engine as a C library. `include/lapce_ipc.h` says what each function does, who owns what and
//! which threads may call; here is only how.
//!
//! Handles are numbers in the shape of pointers ([`handles`]): nothing that a program passes as one
//! is ever dereferenced, so that a null, stale or wrong handle is an error and not a crash. Every
//! function runs under [`guard::run`], which turns a panic into an error code.

#![deny(unsafe_op_in_unsafe_fn)]

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
compile_error!("handles are 64-bit numbers, and the engine needs Linux");

mod answer;
mod buffer;
mod client;
mod descriptor;
mod error;
mod fork;
mod guard;
mod handles;
mod log;
mod options;
mod pool;
mod receive;
mod reserve;
mod responder;
mod server;
mod stats;
mod version;
