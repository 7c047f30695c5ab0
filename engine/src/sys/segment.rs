//! Files in /dev/shm, mapped: memory that another process may write to at any time.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64};

use super::sigbus;

/// Where segments live.
pub(crate) const DIRECTORY: &str = "/dev/shm";

/// A mapped segment. Its bytes are reached through atomics and raw pointers only, never through
/// references to plain data: the other side may change them at any time.
#[derive(Debug)]
pub(crate) struct Segment {
    base: NonNull<u8>,
    bytes: usize,
    // Before the mapping goes, it leaves the table: see Drop.
    guard: Option<sigbus::Guard>,
    /// Device and inode: tells whether two processes opened the same file.
    identity: (u64, u64),
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

fn open_file(name: &str, flags: i32) -> io::Result<File> {
    let path = CString::new(path(name)).map_err(|_| io::ErrorKind::InvalidInput)?;
    let flags = flags | libc::O_RDWR | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    // SAFETY: a valid path; the descriptor is ours alone.
    unsafe {
        let fd = libc::open(path.as_ptr(), flags, 0o600);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(File::from(OwnedFd::from_raw_fd(fd)))
    }
}

/// Takes a segment's name away. Those who have it mapped keep it.
pub(crate) fn unlink(name: &str) -> io::Result<()> {
    std::fs::remove_file(path(name))
}

impl Segment {
    /// Makes a new segment of zeros that only this user may open. Fails if the name is taken.
    pub(crate) fn create(name: &str, bytes: usize) -> io::Result<(Segment, File)> {
        let file = open_file(name, libc::O_CREAT | libc::O_EXCL)?;
        let made = file
            .set_len(bytes as u64)
            .and_then(|()| Segment::map(&file));
        match made {
            Ok(segment) => Ok((segment, file)),
            Err(error) => {
                let _ = unlink(name);
                Err(error)
            }
        }
    }

    /// Opens a segment that another process of this user made.
    pub(crate) fn open(name: &str) -> io::Result<(Segment, File)> {
        let file = open_file(name, 0)?;
        let meta = file.metadata()?;
        // SAFETY: no arguments, no memory.
        let us = unsafe { libc::geteuid() };
        if meta.uid() != us || !meta.is_file() {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!(
                    "it belongs to user {}, this process is user {us}",
                    meta.uid()
                ),
            ));
        }
        Ok((Segment::map(&file)?, file))
    }

    fn map(file: &File) -> io::Result<Segment> {
        let meta = file.metadata()?;
        let bytes = usize::try_from(meta.len()).map_err(|_| io::ErrorKind::InvalidData)?;
        if bytes == 0 || bytes > 1 << 30 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a segment of this size",
            ));
        }
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(address.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        let mut segment = Segment {
            base,
            bytes,
            guard: None,
            identity: (meta.dev(), meta.ino()),
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

    /// The file was cut short while mapped: what is read now are zeros.
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

    /// Takes this process's view of the pages away; they come back when touched. The memory itself
    /// stays, so nothing is lost.
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
