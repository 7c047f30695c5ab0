//! Segments: files in /dev/shm that are mapped, which is memory that another process may write to at any time.

use std::ffi::CString;
use std::fs::{File, Permissions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64};

use super::{INTERRUPTED_MAX, sigbus};

/// How many segments a process can have mapped.
pub(crate) const MAPPED_MAX: usize = sigbus::PLACES;

/// Where segments live.
const DIRECTORY: &str = "/dev/shm";

/// Only this user may open a segment.
const MODE: u32 = 0o600;

/// A mapped segment. Its bytes are reached through atomics and raw pointers only, never through
/// references to plain data: the other side may change them at any time.
#[derive(Debug)]
pub(crate) struct Segment {
    base: NonNull<u8>,
    bytes: usize,
    /// Keeps the mapping in the table of the SIGBUS handler. Dropped before the mapping goes: see Drop.
    guard: Option<sigbus::Guard>,
    /// Device and inode: tells whether two processes opened the same file.
    identity: (u64, u64),
    /// The file, if it is kept at its length: see [`Segment::keep_length`].
    kept: Option<File>,
}

// SAFETY: the mapping belongs to no thread, and all access is by atomics or by raw copies whose
// callers keep to the ring's protocol.
unsafe impl Send for Segment {}
// SAFETY: as above.
unsafe impl Sync for Segment {}

/// The path of a segment.
pub(crate) fn path(name: &str) -> String {
    format!("{DIRECTORY}/{name}")
}

/// The names of all that is there.
pub(crate) fn names() -> impl Iterator<Item = String> {
    let entries = std::fs::read_dir(DIRECTORY).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok())
}

fn open_file(path: String, flags: i32) -> io::Result<File> {
    let path = CString::new(path).map_err(|_| io::ErrorKind::InvalidInput)?;
    let flags = flags | libc::O_RDWR | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    // SAFETY: a valid path; the descriptor is ours alone.
    unsafe {
        let fd = libc::open(path.as_ptr(), flags, MODE);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(File::from(OwnedFd::from_raw_fd(fd)))
    }
}

fn no_segment(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, reason)
}

/// Opens the file of that name, whatever its contents, if it belongs to this user.
pub(crate) fn open_ours(name: &str) -> io::Result<File> {
    // NONBLOCK: a pipe of that name is refused, not waited for.
    let file =
        open_file(path(name), libc::O_NONBLOCK).map_err(|error| match error.raw_os_error() {
            Some(libc::ELOOP) => no_segment("it is a symbolic link, which is never followed"),
            Some(libc::EISDIR | libc::ENXIO) => no_segment("it is no file"),
            // Who has it says more than that it may not be opened.
            Some(libc::EACCES) => std::fs::symlink_metadata(path(name))
                .map_or(Ok(()), |meta| check_owner(&meta))
                .err()
                .unwrap_or(error),
            _ => error,
        })?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(no_segment("it is no file"));
    }
    check_owner(&meta)?;
    Ok(file)
}

fn check_owner(meta: &std::fs::Metadata) -> io::Result<()> {
    // SAFETY: no arguments, no memory.
    let us = unsafe { libc::geteuid() };
    if meta.uid() == us {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::PermissionDenied,
        format!(
            "it belongs to user {}, this process is user {us}",
            meta.uid()
        ),
    ))
}

/// Whether the path still leads to the file with this device and inode.
pub(crate) fn is_at(path: &str, identity: (u64, u64)) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|meta| (meta.dev(), meta.ino()) == identity)
}

/// Device and inode of an open file.
pub(crate) fn identity(file: &File) -> io::Result<(u64, u64)> {
    file.metadata().map(|meta| (meta.dev(), meta.ino()))
}

/// Fails if this process may not make files so long: the attempt would end it, by SIGXFSZ.
fn check_length(bytes: usize) -> io::Result<()> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: writes one rlimit of ours.
    let failed = unsafe { libc::getrlimit(libc::RLIMIT_FSIZE, &mut limit) };
    if failed == 0 && limit.rlim_cur < bytes as u64 {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!(
                "this process may not make files longer than {} bytes, a segment has {bytes}: raise its limit (ulimit -f, LimitFSIZE=)",
                limit.rlim_cur
            ),
        ));
    }
    Ok(())
}

/// Allocates memory for the file's first bytes now, so that touching them cannot fail for want of it.
fn allocate(file: &File, bytes: usize) -> io::Result<()> {
    if bytes == 0 {
        return Ok(());
    }
    let mut code = libc::EINTR;
    // Older kernels let any signal interrupt this: a profiler's timer, say.
    for _ in 0..INTERRUPTED_MAX {
        // SAFETY: a descriptor of ours; no memory is passed.
        code = unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, bytes as libc::off_t) };
        if code != libc::EINTR {
            break;
        }
    }
    match code {
        0 => Ok(()),
        libc::ENOSPC => Err(io::Error::new(
            io::ErrorKind::StorageFull,
            format!("{DIRECTORY} is full: remove what nobody needs there, or make it larger"),
        )),
        code => Err(io::Error::from_raw_os_error(code)),
    }
}

/// Gives a name to a segment that was made without one. Fails if the name is taken.
pub(crate) fn publish(file: &File, name: &str) -> io::Result<()> {
    let from = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    let to = CString::new(path(name))?;
    // SAFETY: valid paths, which the call only reads.
    let linked = unsafe {
        libc::linkat(
            libc::AT_FDCWD,
            from.as_ptr(),
            libc::AT_FDCWD,
            to.as_ptr(),
            libc::AT_SYMLINK_FOLLOW,
        )
    };
    match linked {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Removes a segment's name. Processes that have the segment mapped keep it.
pub(crate) fn unlink(name: &str) -> io::Result<()> {
    std::fs::remove_file(path(name))
}

/// Maps a file's first bytes.
///
/// # Safety
/// With `MAP_FIXED` among the flags, what is at `address` may be replaced.
unsafe fn map_shared(file: &File, bytes: usize, address: *mut u8, flags: i32) -> *mut libc::c_void {
    // SAFETY: the caller's promise; without the flag, the kernel chooses a free address.
    unsafe {
        libc::mmap(
            address.cast(),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | flags,
            file.as_raw_fd(),
            0,
        )
    }
}

impl Segment {
    /// Makes a new segment of zeros, which only this user may open. Memory for its first `sure_bytes` is allocated now,
    /// and for the rest when that is touched. Fails if the name is taken, or if there is no memory.
    pub(crate) fn create(
        name: &str,
        bytes: usize,
        sure_bytes: usize,
    ) -> io::Result<(Segment, File)> {
        let file = open_file(path(name), libc::O_CREAT | libc::O_EXCL)?;
        match Segment::make(&file, bytes, sure_bytes) {
            Ok(segment) => Ok((segment, file)),
            Err(error) => {
                let _ = unlink(name);
                Err(error)
            }
        }
    }

    /// As [`Segment::create`], without a name; [`publish`] gives it one.
    pub(crate) fn create_unnamed(bytes: usize, sure_bytes: usize) -> io::Result<(Segment, File)> {
        let file = open_file(DIRECTORY.to_owned(), libc::O_TMPFILE)?;
        Ok((Segment::make(&file, bytes, sure_bytes)?, file))
    }

    fn make(file: &File, bytes: usize, sure_bytes: usize) -> io::Result<Segment> {
        assert!(sure_bytes <= bytes);
        // The mode again: the umask may have taken the owner's right to open it away.
        file.set_permissions(Permissions::from_mode(MODE))?;
        check_length(bytes)?;
        file.set_len(bytes as u64)?;
        allocate(file, sure_bytes)?;
        Segment::map(file)
    }

    /// Opens a segment that another process of this user made.
    pub(crate) fn open(name: &str) -> io::Result<(Segment, File)> {
        let file = open_ours(name)?;
        Ok((Segment::map(&file)?, file))
    }

    fn map(file: &File) -> io::Result<Segment> {
        let meta = file.metadata()?;
        let bytes = usize::try_from(meta.len()).map_err(|_| io::ErrorKind::InvalidData)?;
        if bytes == 0 || bytes > 1 << 30 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("it has {bytes} bytes, which no segment has"),
            ));
        }
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let address = unsafe { map_shared(file, bytes, std::ptr::null_mut(), 0) };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(address.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        let mut segment = Segment {
            base,
            bytes,
            guard: None,
            identity: (meta.dev(), meta.ino()),
            kept: None,
        };
        segment.guard = Some(sigbus::guard(base.as_ptr() as usize, bytes)?);
        Ok(segment)
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn identity(&self) -> (u64, u64) {
        self.identity
    }

    /// Keeps the file open, and has faults make it long again when another process has cut it short. Its contents are zeros
    /// then, but it is still shared. See [`Segment::restore_file`].
    pub(crate) fn keep_length(&mut self, file: File) {
        if let Some(guard) = &self.guard {
            guard.keep(file.as_raw_fd());
        }
        self.kept = Some(file);
    }

    /// The file, if it is kept open.
    pub(crate) fn kept(&self) -> Option<&File> {
        self.kept.as_ref()
    }

    /// Repairs a kept file: gives it its length and mode again, and maps it again if pages were replaced because there was
    /// no memory for them. Returns whether anything was wrong since the last call.
    pub(crate) fn restore_file(&self) -> io::Result<bool> {
        let (Some(file), Some(guard)) = (&self.kept, &self.guard) else {
            return Ok(false);
        };
        let mut was_changed = guard.take_restored();
        if guard.poisoned() {
            allocate(file, self.bytes)?;
            // SAFETY: our own mapping, by itself once more, in one step: whoever touches it meanwhile
            // finds the old page or the new.
            let mapped =
                unsafe { map_shared(file, self.bytes, self.base.as_ptr(), libc::MAP_FIXED) };
            if mapped == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            guard.restored();
            was_changed = true;
        }
        let meta = file.metadata()?;
        if meta.len() != self.bytes as u64 {
            file.set_len(self.bytes as u64)?;
            was_changed = true;
        }
        if meta.permissions().mode() & 0o7777 != MODE {
            file.set_permissions(Permissions::from_mode(MODE))?;
            was_changed = true;
        }
        Ok(was_changed)
    }

    /// Whether the file was cut short while mapped, or there was no memory for a page: then some of what is read are zeros
    /// of this process's own.
    #[inline]
    pub(crate) fn poisoned(&self) -> bool {
        self.guard.as_ref().is_some_and(sigbus::Guard::poisoned)
    }

    /// A pointer to `length` bytes at `offset`.
    ///
    /// # Panics
    /// If they do not lie in the segment.
    #[inline]
    pub(crate) fn at(&self, offset: usize, length: usize) -> *mut u8 {
        assert!(
            offset <= self.bytes && length <= self.bytes - offset,
            "outside of the segment"
        );
        // SAFETY: inside the mapping by the assertion.
        unsafe { self.base.as_ptr().add(offset) }
    }

    /// As [`Segment::at`], for reading what is there now. (The loom models check that it may be.)
    #[inline]
    pub(crate) fn at_to_read(&self, offset: usize, length: usize) -> *const u8 {
        self.at(offset, length)
    }

    /// As [`Segment::at`], for writing there now. (The loom models check that it may be.)
    #[inline]
    pub(crate) fn at_to_write(&self, offset: usize, length: usize) -> *mut u8 {
        self.at(offset, length)
    }

    #[inline]
    pub(crate) fn word32(&self, offset: usize) -> &AtomicU32 {
        assert!(offset.is_multiple_of(4));
        // SAFETY: inside the mapping, aligned, and only ever used as an atomic by both sides.
        unsafe { AtomicU32::from_ptr(self.at(offset, 4).cast()) }
    }

    #[inline]
    pub(crate) fn word64(&self, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8));
        // SAFETY: inside the mapping, aligned, and only ever used as an atomic by both sides.
        unsafe { AtomicU64::from_ptr(self.at(offset, 8).cast()) }
    }

    /// Unmaps the pages from this process, which makes it smaller; they come back when touched. The file keeps its memory,
    /// so nothing is lost.
    pub(crate) fn forget_pages(&self) {
        if !self.poisoned() {
            // SAFETY: our own mapping of a shared file: dropping its pages loses no data.
            unsafe {
                libc::madvise(self.base.as_ptr().cast(), self.bytes, libc::MADV_DONTNEED);
            }
        }
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        self.guard = None;
        // SAFETY: our mapping, which nobody uses any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    const BYTES: usize = 3 * 4096;

    fn kept(file: &File) -> Segment {
        let mut segment = Segment::map(file).unwrap();
        segment.keep_length(file.try_clone().unwrap());
        segment
    }

    /// Two threads meet the end of the file at the same moment, and only one can make it long again.
    #[test]
    fn all_who_meet_a_file_cut_short_go_on_sharing_it() {
        let (_first, file) = Segment::create_unnamed(BYTES, BYTES).unwrap();
        let (left, right) = (kept(&file), kept(&file));
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for segment in [&left, &right, &right] {
                let stop = &stop;
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        for at in (0..BYTES).step_by(4096) {
                            segment.word64(at).fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
            for turn in 0..20_000 {
                file.set_len(turn % 3 * 4096).unwrap();
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert!(!left.poisoned() && !right.poisoned());
        for at in (0..BYTES).step_by(4096) {
            left.word64(at).store(u64::MAX, Ordering::Relaxed);
            assert_eq!(right.word64(at).load(Ordering::Relaxed), u64::MAX);
        }
    }
}
