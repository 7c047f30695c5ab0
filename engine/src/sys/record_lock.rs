//! Proof of which process is at the other end of a file: a record lock names its holder, and the
//! holder cannot choose the name. The kernel gives the number as the asking process counts
//! processes, and takes the lock back when its holder ends.
//!
//! A process loses its record locks of a file when it closes any descriptor of it.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

fn whole_file() -> libc::flock {
    // SAFETY: an all-zero record is valid: from the beginning, and a length of 0 means all.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::F_WRLCK as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock
}

/// Locks the file for this process, unless another process has it.
pub(crate) fn hold(file: &File) -> io::Result<()> {
    let lock = whole_file();
    // SAFETY: a descriptor of the caller's; the record is only read.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLK, &lock) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// The process that holds the file, this one included. An error says why nobody that can be watched
/// from here does.
pub(crate) fn holder(file: &File) -> io::Result<u32> {
    let mut lock = whole_file();
    // Asked as the open file, not as this process, whose own lock would be in nobody's way.
    // SAFETY: a descriptor of the caller's; the kernel fills in the record.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &mut lock) } == -1 {
        return Err(io::Error::last_os_error());
    }
    let reason = match (libc::c_int::from(lock.l_type), lock.l_pid) {
        (libc::F_UNLCK, _) => "the process that asked for it is gone",
        (_, pid) if pid > 0 => return Ok(pid as u32),
        _ => "the process that asked for it is in a PID namespace that is not seen from here",
    };
    Err(io::Error::new(io::ErrorKind::NotFound, reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_is_known_as_long_as_it_holds() {
        let path = std::env::temp_dir().join(format!("lapce_ipc_lock_{}", std::process::id()));
        let file = File::create(&path).unwrap();
        let other = File::options().write(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(holder(&file).unwrap_err().kind(), io::ErrorKind::NotFound);
        hold(&other).unwrap();
        assert_eq!(holder(&file).unwrap(), std::process::id());
        drop(other);
        assert_eq!(holder(&file).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
