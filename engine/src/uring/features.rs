//! What this kernel's io_uring can do, asked once, in one place.
//!
//! 5.15 is the oldest kernel that must work in principle: there the driver polls sockets for
//! readiness and receives with a plain system call, accepts one connection at a time and is woken
//! through an eventfd. Every newer ability is a switch here, so that a test can turn it off.

use std::fmt;
use std::io;

use io_uring::{IoUring, Probe, opcode};

/// The abilities that the driver uses where they are present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Features {
    /// Multishot receive into a provided buffer ring (6.0).
    pub(crate) multishot_receive: bool,
    /// Multishot accept (5.19).
    pub(crate) multishot_accept: bool,
    /// SINGLE_ISSUER with DEFER_TASKRUN: completions are only made inside our own enter (6.1).
    pub(crate) defer_taskrun: bool,
    /// IORING_OP_FUTEX_WAIT (6.7).
    pub(crate) futex_wait: bool,
}

/// Why no ring can be had.
#[derive(Debug)]
pub(crate) enum RingError {
    /// The kernel, or whoever confines this process, forbids io_uring; or (ENOSYS) the kernel was built without it.
    Forbidden(io::Error),
    /// The kernel's io_uring is older than that of 5.15.
    TooOld(&'static str),
    /// Anything else: no memory, no descriptors.
    Setup(io::Error),
}

impl fmt::Display for RingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RingError::Forbidden(error) => {
                write!(
                    f,
                    "io_uring is forbidden here ({error}): set the sysctl kernel.io_uring_disabled to 0, \
                     and in a container allow io_uring_setup, io_uring_enter and io_uring_register in its seccomp profile"
                )?;
                if error.raw_os_error() == Some(libc::ENOSYS) {
                    f.write_str("; if neither forbids it, this kernel has none: it takes Linux 5.15 or later with CONFIG_IO_URING")?;
                }
                Ok(())
            }
            RingError::TooOld(what) => write!(
                f,
                "this kernel's io_uring lacks {what}: Linux 5.15 is the oldest that works"
            ),
            RingError::Setup(error) => write!(f, "io_uring could not be set up: {error}"),
        }
    }
}

impl std::error::Error for RingError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            RingError::Forbidden(error) | RingError::Setup(error) => Some(error),
            RingError::TooOld(_) => None,
        }
    }
}

impl RingError {
    pub(super) fn from_call(error: io::Error) -> RingError {
        match error.raw_os_error() {
            Some(libc::EPERM) | Some(libc::EACCES) => RingError::Forbidden(error),
            // Seccomp profiles answer ENOSYS as often as EPERM, so both get the remedy.
            Some(libc::ENOSYS) => RingError::Forbidden(error),
            _ => RingError::Setup(error),
        }
    }
}

/// Asks the running kernel, with a throw-away ring.
pub(crate) fn probe() -> Result<Features, RingError> {
    let mut ring = IoUring::new(2).map_err(RingError::from_call)?;
    if !ring.params().is_feature_nodrop() {
        return Err(RingError::TooOld("completions that are never dropped"));
    }
    if !ring.params().is_feature_ext_arg() {
        return Err(RingError::TooOld("waits with a time limit"));
    }
    let mut probe = Probe::new();
    ring.submitter()
        .register_probe(&mut probe)
        .map_err(RingError::from_call)?;
    enter(&mut ring)?;
    for (code, what) in [
        (opcode::Accept::CODE, "accept"),
        (opcode::PollAdd::CODE, "poll"),
        (opcode::Send::CODE, "send"),
        (opcode::AsyncCancel::CODE, "cancel"),
    ] {
        if !probe.is_supported(code) {
            return Err(RingError::TooOld(what));
        }
    }
    // Abilities without an opcode of their own are told by an opcode of the same release, or by
    // setting up a ring with the flag: SendZc came with multishot receive (6.0), Socket with
    // multishot accept (5.19).
    let with_defer_taskrun = IoUring::<io_uring::squeue::Entry>::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .build(2);
    let defer_taskrun = match with_defer_taskrun {
        Ok(_) => true,
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => false,
        // A shortage, say, which is no reason to do without for ever.
        Err(error) => return Err(RingError::from_call(error)),
    };
    Ok(Features {
        multishot_receive: probe.is_supported(opcode::SendZc::CODE),
        multishot_accept: probe.is_supported(opcode::Socket::CODE),
        defer_taskrun,
        futex_wait: probe.is_supported(opcode::FutexWait::CODE),
    })
}

/// Has one thing done that does nothing: whoever forbids calls may have forgotten this one.
fn enter(ring: &mut IoUring) -> Result<(), RingError> {
    // SAFETY: it names no memory. The queue of a new ring has room.
    let pushed = unsafe { ring.submission().push(&opcode::Nop::new().build()) };
    pushed.expect("a new ring's queue is empty");
    // Ends when no signal comes in between.
    loop {
        match ring.submit_and_wait(1) {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(RingError::from_call(error)),
        }
    }
}

impl Features {
    /// What 5.15 has: nothing of it.
    #[cfg(test)]
    pub(crate) const OLDEST: Features = Features {
        multishot_receive: false,
        multishot_accept: false,
        defer_taskrun: false,
        futex_wait: false,
    };

    /// Turns off what the comma-separated list names; an unknown name is an error that lists the
    /// known ones. For tests of the ways that older kernels take, on a new one.
    pub(crate) fn without(mut self, names: &str) -> Result<Features, String> {
        for name in names
            .split(',')
            .map(str::trim)
            .filter(|name| !name.is_empty())
        {
            match name {
                "multishot_receive" => self.multishot_receive = false,
                "multishot_accept" => self.multishot_accept = false,
                "defer_taskrun" => self.defer_taskrun = false,
                "futex_wait" => self.futex_wait = false,
                _ => {
                    return Err(format!(
                        "unknown io_uring feature `{name}`: known are multishot_receive, multishot_accept, defer_taskrun, futex_wait"
                    ));
                }
            }
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn switching_off_names_what_it_does_not_know() {
        let all = Features {
            multishot_receive: true,
            multishot_accept: true,
            defer_taskrun: true,
            futex_wait: true,
        };
        assert_eq!(all.without("").unwrap(), all);
        let off = all
            .without("multishot_receive, multishot_accept,defer_taskrun,futex_wait")
            .unwrap();
        assert_eq!(off, Features::OLDEST);
        assert!(
            all.without("warp_drive")
                .unwrap_err()
                .contains("multishot_accept")
        );
    }

    #[test]
    fn a_forbidden_ring_names_the_remedy() {
        for errno in [libc::EPERM, libc::ENOSYS, libc::EACCES] {
            let text = RingError::from_call(io::Error::from_raw_os_error(errno)).to_string();
            assert!(
                text.contains("kernel.io_uring_disabled") && text.contains("seccomp"),
                "{text}"
            );
            assert!(!text.contains('\n'));
            // The answer of a kernel without io_uring too.
            assert_eq!(text.contains("5.15"), errno == libc::ENOSYS, "{text}");
        }
    }
}
