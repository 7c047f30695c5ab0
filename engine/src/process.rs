//! For programs around a server: what the process uses, how to keep it small, clocks, and waiting for a port.

use std::io;
use std::time::{Duration, Instant};

use crate::sys::{memory, process, socket};

/// How long a port may still be in use by a process that has ended.
const PORT_PATIENCE: Duration = Duration::from_secs(1);
const PORT_PAUSE: Duration = Duration::from_millis(2);

/// What this process uses, as the Prometheus client libraries define it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ProcessStats {
    /// Bytes in memory, shared pages included (VmRSS).
    pub resident_bytes: u64,
    /// User and system time, in seconds.
    pub cpu_seconds: f64,
    /// Start, in seconds since 1970.
    pub start_time_seconds: f64,
}

/// Measures this process. What /proc does not tell is 0.
pub fn process_stats() -> ProcessStats {
    ProcessStats {
        resident_bytes: process::resident_bytes().unwrap_or(0),
        cpu_seconds: process::cpu_seconds(),
        start_time_seconds: process::start_time_seconds().unwrap_or(0.0),
    }
}

/// For a program that must stay small and may have many connections; call it first in `main`. Fixes the allocator's
/// thresholds, has only code that runs brought into memory, and raises the soft limit of open descriptors to the hard one.
/// It affects the whole process.
pub fn keep_process_small() {
    memory::tune_allocator();
    memory::narrow_mappings();
    if let Err(error) = socket::raise_fd_limit() {
        log::warn!("the limit of open descriptors stays as it is: {error}");
    }
}

/// For a program that has just started: gives back the memory that only its start needed.
pub fn release_startup_pages() {
    memory::release_startup_pages();
}

/// Calls `bind` until the port is not in use, for a second at most, and returns its result. The kernel closes the sockets
/// in a process's io_urings a moment after the process is gone, and its successor has to wait for that. Any other error is
/// returned at once.
pub fn wait_for_port<T>(mut bind: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let start = Instant::now();
    // Ends with the patience.
    loop {
        match bind() {
            Err(error)
                if error.kind() == io::ErrorKind::AddrInUse && start.elapsed() < PORT_PATIENCE =>
            {
                std::thread::sleep(PORT_PAUSE);
            }
            outcome => return outcome,
        }
    }
}

/// Microseconds of CLOCK_MONOTONIC, for comparing with another program's, as systemd does.
pub fn system_monotonic_us() -> u64 {
    crate::sys::clock::monotonic_ns() / 1000
}

/// Nanoseconds of a monotonic clock that takes a few nanoseconds to read. It starts from the same zero as CLOCK_MONOTONIC,
/// but the two drift apart, so it is for differences within this process; see [`system_monotonic_us`].
pub fn monotonic_ns() -> u64 {
    crate::sys::clock::now_ns()
}
