//! The operating system, one subject a file, each with a safe face.
#![allow(unsafe_code)]

pub mod affinity;
pub(crate) mod clock;
pub(crate) mod demote;
pub mod futex;
pub(crate) mod memory;
pub(crate) mod pause;
pub mod prefetch;
pub(crate) mod process;
pub(crate) mod record_lock;
pub(crate) mod segment;
pub(crate) mod sigbus;
pub(crate) mod socket;

/// How often a system call may be interrupted by signals before it is given up.
const INTERRUPTED_MAX: u32 = 64;
