//! Record locks, by which processes that share a file prove something to each other.
//!
//! - *Which process it is.* The kernel tells the pid of a lock's holder ([`holder`]), which the holder cannot choose: it
//!   is the pid as the asking process sees it. Such a lock belongs to a process, which loses it when it ends, or closes
//!   any descriptor of the file.
//! - *That it has not let go.* A lock on one byte by an open file description ([`hold_byte`]) lasts until that is closed:
//!   when the process ends, or executes another program.

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

/// Sets a lock, or asks which lock is in its way.
fn control(file: &File, command: libc::c_int, lock: &mut libc::flock) -> io::Result<()> {
    // SAFETY: a descriptor of the caller's; the kernel reads and writes one record of ours.
    match unsafe { libc::fcntl(file.as_raw_fd(), command, std::ptr::from_mut(lock)) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Locks the file for this process. Fails if another process has locked it.
pub(crate) fn hold(file: &File) -> io::Result<()> {
    control(file, libc::F_SETLK, &mut whole_file())
}

/// The process that has locked the file, which may be this one. An error says why there is none that this process can
/// watch.
pub(crate) fn holder(file: &File) -> io::Result<u32> {
    let mut lock = whole_file();
    // Asked for the open file description, not for this process, whose own lock would not be in its way.
    control(file, libc::F_OFD_GETLK, &mut lock)?;
    let reason = match (libc::c_int::from(lock.l_type), lock.l_pid) {
        (libc::F_UNLCK, _) => "the process that asked for it is gone",
        (_, pid) if pid > 0 => return Ok(pid as u32),
        _ => "the process that asked for it is in a PID namespace that is not seen from here",
    };
    Err(io::Error::new(io::ErrorKind::NotFound, reason))
}

fn one_byte(at: u64) -> libc::flock {
    let mut lock = whole_file();
    // An offset is not negative. No file is as long as that, which does not matter to a lock.
    lock.l_start = (at & i64::MAX as u64) as libc::off_t;
    lock.l_len = 1;
    lock
}

/// Locks a byte, which need not exist, until this open file description is closed: at the latest when the process ends or
/// executes another program. (A forked child has the description open too.)
pub(crate) fn hold_byte(file: &File, at: u64) -> io::Result<()> {
    control(file, libc::F_OFD_SETLK, &mut one_byte(at))
}

/// Whether this byte is locked by another open file description.
pub(crate) fn is_byte_held(file: &File, at: u64) -> io::Result<bool> {
    let mut lock = one_byte(at);
    control(file, libc::F_OFD_GETLK, &mut lock)?;
    Ok(libc::c_int::from(lock.l_type) != libc::F_UNLCK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_is_held_as_long_as_the_file_is_open() {
        let path = std::env::temp_dir().join(format!("lapce_ipc_byte_{}", std::process::id()));
        let file = File::create(&path).unwrap();
        let open = || File::options().write(true).open(&path).unwrap();
        let (one, other, third) = (open(), open(), open());
        std::fs::remove_file(&path).unwrap();
        for at in [7, u64::MAX] {
            hold_byte(&one, at).unwrap();
            assert!(hold_byte(&other, at).is_err());
            assert!(is_byte_held(&file, at).unwrap());
            assert!(!is_byte_held(&file, at - 1).unwrap());
        }
        // Of nobody else's closing it.
        drop((other, third));
        assert!(is_byte_held(&file, 7).unwrap());
        drop(one);
        assert!(!is_byte_held(&file, 7).unwrap());
    }

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
