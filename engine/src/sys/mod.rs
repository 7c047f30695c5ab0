//! The operating system, one subject a file, each with a safe face. And a queue between threads.
#![allow(unsafe_code)]

pub mod affinity;
pub(crate) mod clock;
pub(crate) mod demote;
mod found;
pub mod futex;
#[cfg(all(test, loom))]
mod loom_models;
pub(crate) mod memory;
pub(crate) mod pause;
pub mod prefetch;
pub(crate) mod process;
pub(crate) mod queue;
mod queue_sync;
pub(crate) mod record_lock;
pub(crate) mod segment;
pub(crate) mod sigbus;
pub(crate) mod socket;

/// Whether a system call failed for want of descriptors, memory or threads, which says nothing of what it was asked.
pub(crate) fn is_shortage(error: &std::io::Error) -> bool {
    let shortages = [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::EAGAIN];
    error
        .raw_os_error()
        .is_some_and(|errno| shortages.contains(&errno))
}

/// How often a system call may be interrupted by signals before it is given up.
const INTERRUPTED_MAX: u32 = 64;
