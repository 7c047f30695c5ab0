//! This process, and whether another one lives.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use super::{INTERRUPTED_MAX, clock};

/// Bytes of this process in memory: VmRSS.
pub(crate) fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

/// User and system time of this process, in seconds.
pub(crate) fn cpu_seconds() -> f64 {
    clock::process_cpu_ns() as f64 / 1e9
}

/// When a process started, in clock ticks since boot. Together with its pid that identifies a process, even after the
/// pid is used again. `None`: there is no such process. An error says nothing about the process: this one has no
/// descriptor left, for example.
pub(crate) fn start_ticks(pid: u32) -> io::Result<Option<u64>> {
    let stat = match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat,
        Err(error) => {
            return match error.raw_os_error() {
                Some(libc::ENOENT) if !std::fs::exists("/proc/self/stat")? => Err(io::Error::new(
                    io::ErrorKind::Unsupported,
                    "/proc is not mounted, and without it nobody can tell whether a process lives",
                )),
                // ESRCH: it has ended since its file was opened.
                Some(libc::ENOENT | libc::ESRCH) => Ok(None),
                _ => Err(error),
            };
        }
    };
    // The command's name, in parentheses, may hold anything; the fields begin behind the last one.
    // The start time is field 22; the first behind the name is field 3.
    let ticks = stat
        .rsplit_once(')')
        .and_then(|(_, fields)| fields.split_whitespace().nth(19)?.parse().ok());
    Ok(Some(ticks.ok_or(io::ErrorKind::InvalidData)?))
}

/// When this process started, in seconds since 1970.
pub(crate) fn start_time_seconds() -> Option<f64> {
    let ticks = start_ticks(std::process::id()).ok()??;
    // SAFETY: no memory is passed.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    let boot = stat.lines().find_map(|line| line.strip_prefix("btime "))?;
    let boot: f64 = boot.trim().parse().ok()?;
    (per_second > 0).then(|| boot + ticks as f64 / per_second as f64)
}

/// A descriptor that names a process and becomes readable when it ends (Linux 5.3).
#[derive(Debug)]
pub(crate) struct PidFd(OwnedFd);

impl PidFd {
    pub(crate) fn open(pid: u32) -> io::Result<PidFd> {
        // SAFETY: no memory is passed; the descriptor is ours alone.
        unsafe {
            let fd = libc::syscall(libc::SYS_pidfd_open, pid as libc::pid_t, 0);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(PidFd(OwnedFd::from_raw_fd(fd as RawFd)))
        }
    }

    /// Whether the process has certainly ended. If that cannot be found out, the answer is false, and the caller asks
    /// again soon.
    pub(crate) fn has_ended(&self) -> bool {
        let mut polled = libc::pollfd {
            fd: self.0.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        for _ in 0..INTERRUPTED_MAX {
            // SAFETY: one pollfd of ours.
            if unsafe { libc::poll(&mut polled, 1, 0) } >= 0 {
                return polled.revents & libc::POLLIN != 0;
            }
            // Even a poll that does not wait fails if a signal is pending.
            if io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
                return false;
            }
        }
        false
    }
}

impl From<PidFd> for OwnedFd {
    fn from(pidfd: PidFd) -> OwnedFd {
        pidfd.0
    }
}

impl AsRawFd for PidFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_measured() {
        assert!(resident_bytes().unwrap() > 100_000);
        assert!(cpu_seconds() > 0.0);
        assert!(start_time_seconds().unwrap() > 1e9);
        assert!(start_ticks(std::process::id()).unwrap().is_some());
        assert!(start_ticks(u32::MAX).unwrap().is_none());
    }

    /// A process without descriptors cannot look, and does not take others for dead because of that.
    #[test]
    fn who_cannot_look_says_so() {
        let pid = std::process::id();
        let none = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        // SAFETY: the limit is that of the child, which makes a few calls and ends; the records are ours.
        unsafe {
            let child = libc::fork();
            if child == 0 {
                libc::setrlimit(libc::RLIMIT_NOFILE, &none);
                let said = start_ticks(pid).map_err(|error| error.raw_os_error());
                libc::_exit(i32::from(said != Err(Some(libc::EMFILE))));
            }
            assert!(child > 0);
            let mut status = 0;
            assert_eq!(libc::waitpid(child, &mut status, 0), child);
            assert_eq!(status, 0);
        }
    }

    /// A timer whose signal comes to this thread, every 50 µs until it is dropped.
    struct Signals(libc::timer_t);

    impl Signals {
        fn start() -> Signals {
            extern "C" fn nothing(_: i32) {}
            // SAFETY: all-zero records, filled in; the handler does nothing; the timer is ours.
            unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = nothing as *const () as usize;
                action.sa_flags = libc::SA_RESTART;
                assert_eq!(
                    libc::sigaction(libc::SIGUSR2, &action, std::ptr::null_mut()),
                    0
                );
                let mut event: libc::sigevent = std::mem::zeroed();
                event.sigev_notify = libc::SIGEV_THREAD_ID;
                event.sigev_signo = libc::SIGUSR2;
                event.sigev_notify_thread_id = libc::gettid();
                let mut timer = std::mem::zeroed();
                assert_eq!(
                    libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, &mut timer),
                    0
                );
                let mut every: libc::itimerspec = std::mem::zeroed();
                every.it_interval.tv_nsec = 50_000;
                every.it_value.tv_nsec = 50_000;
                assert_eq!(
                    libc::timer_settime(timer, 0, &every, std::ptr::null_mut()),
                    0
                );
                Signals(timer)
            }
        }
    }

    impl Drop for Signals {
        fn drop(&mut self) {
            // SAFETY: the timer that was made above.
            unsafe { libc::timer_delete(self.0) };
        }
    }

    #[test]
    fn signals_do_not_make_a_process_look_dead() {
        let pidfd = PidFd::open(std::process::id()).unwrap();
        let _signals = Signals::start();
        for _ in 0..300_000 {
            assert!(!pidfd.has_ended());
        }
    }

    #[test]
    fn a_process_that_ends_is_noticed() {
        let mut child = std::process::Command::new("sleep")
            .arg("100")
            .spawn()
            .unwrap();
        let pidfd = PidFd::open(child.id()).unwrap();
        assert!(!pidfd.has_ended());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(pidfd.has_ended());
    }
}
