//! The io_uring driver: accept, receive into provided buffers, send, wait.
//!
//! [`driver`] owns the io_uring and turns its completions into [`Event`]s; [`features`] asks the kernel what it
//! can do, and nothing else does; [`buffers`] are the receive buffers that all connections of a worker share;
//! [`key`] names connections in completions; [`waker`] replaces futex waits on kernels without them. Nothing
//! here knows the protocol.
#![allow(unsafe_code)]

mod buffers;
mod driver;
mod features;
mod key;
mod waker;

pub(crate) use buffers::{BUFFER_COUNT, Received};
pub(crate) use driver::{Driver, Event};
pub(crate) use features::{Features, RingError, probe};
pub(crate) use key::{GENERATION_MASK, Key};
pub(crate) use waker::DoorbellMemory;
