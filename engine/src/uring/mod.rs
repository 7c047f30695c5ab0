//! The io_uring driver: accept, receive into provided buffers, send, wait.
//!
//! [`driver`] is the one file that owns a ring; [`features`] the one place that asks the kernel
//! what it can do. Nothing here knows a protocol: bytes and file descriptors go in, [`Event`]s
//! come out.
#![allow(unsafe_code)]

mod buffers;
mod driver;
mod features;
mod key;
mod waker;

pub(crate) use buffers::{BUFFER_COUNT, Received};
pub(crate) use driver::{Driver, DriverOptions, Event};
pub(crate) use features::{Features, RingError, probe};
pub(crate) use key::{GENERATION_MASK, Key};
pub(crate) use waker::DoorbellMemory;
