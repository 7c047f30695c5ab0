//! The unsafe code of the bench: shared memory for the floors, the allocator that counts, and some
//! calls of the system.

#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use lapce_ai::bench_internals::prefetch;

/// Counts every allocation of this process.
pub struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

/// Allocations of this process so far.
pub fn allocations() -> u64 {
    ALLOCATIONS.load(Ordering::Relaxed)
}

// SAFETY: everything is handed on to the system's allocator as it came; counting does not touch
// the memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as above; `memory` came from the system's allocator, as all of ours does.
        unsafe { System.realloc(memory, layout, size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }
}

/// Words lie this far from one another, so that no two share a cache line or a prefetched pair.
pub const WORD_STRIDE: usize = 128;

/// Memory shared by two processes: words in the first page, whatever is wanted after it.
pub struct Shared {
    base: *mut u8,
    bytes: usize,
}

impl Shared {
    /// The first page, which holds the words.
    pub const PAGE: usize = 4096;

    /// Maps all of a file.
    pub fn map(file: &File) -> io::Result<Shared> {
        let bytes = file.metadata()?.len() as usize;
        if bytes < Shared::PAGE {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // SAFETY: a new mapping at an address of the system's choice touches no memory of ours.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_POPULATE,
                file.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Shared {
            base: base.cast(),
            bytes,
        })
    }

    /// One of the words, each on a line of its own.
    #[inline]
    pub fn word(&self, index: usize) -> &AtomicU32 {
        assert!((index + 1) * WORD_STRIDE <= Shared::PAGE);
        self.word_at(index * WORD_STRIDE)
    }

    /// The two first: what the client says, and what the server says.
    #[inline]
    pub fn words(&self) -> (&AtomicU32, &AtomicU32) {
        (self.word(0), self.word(1))
    }

    /// A word anywhere.
    #[inline]
    pub fn word_at(&self, offset: usize) -> &AtomicU32 {
        assert!(offset.is_multiple_of(4) && offset + 4 <= self.bytes);
        // SAFETY: inside the mapping and aligned by the check above. Both processes touch these
        // bytes only as atomics, as long as they use them as a word.
        unsafe { &*self.base.add(offset).cast::<AtomicU32>() }
    }

    /// Copies in. Whoever reads it waits for a word set after this.
    #[inline]
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        assert!(offset <= self.bytes && bytes.len() <= self.bytes - offset);
        // SAFETY: inside the mapping by the check above; the words see to it that the other
        // process does not read there meanwhile.
        unsafe {
            let to = self.base.add(offset);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len());
        }
    }

    /// Copies out, after a word said that it is written.
    #[inline]
    pub fn read(&self, offset: usize, bytes: &mut [u8]) {
        assert!(offset <= self.bytes && bytes.len() <= self.bytes - offset);
        // SAFETY: as in `write`.
        unsafe {
            let from = self.base.add(offset);
            std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len());
        }
    }

    /// Asks the processor for a line that is about to be read.
    #[inline]
    pub fn prefetch(&self, offset: usize) {
        assert!(offset < self.bytes);
        prefetch::to_read(self.base.wrapping_add(offset));
    }

    /// Asks the processor for a line that is about to be written, as the engine's ring does.
    #[inline]
    pub fn prefetch_to_write(&self, offset: usize) {
        assert!(offset < self.bytes);
        prefetch::to_write(self.base.wrapping_add(offset));
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and no borrow of it outlives `self`.
        unsafe { libc::munmap(self.base.cast(), self.bytes) };
    }
}

/// Has this process killed when the one that started it ends: it may be spinning on an answer.
pub fn end_with_parent() {
    // SAFETY: takes no pointer.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
}

/// Sends a signal to a process of ours.
pub fn signal(pid: u32, signal: i32) -> io::Result<()> {
    // SAFETY: takes no pointer.
    match unsafe { libc::kill(pid as libc::pid_t, signal) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Clock ticks a second, the unit of CPU time in /proc.
pub fn ticks_per_second() -> f64 {
    // SAFETY: takes no pointer.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    if ticks > 0 { ticks as f64 } else { 100.0 }
}

/// The most descriptors that this process may open.
pub fn descriptors_max() -> u64 {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is writable and lives through the call.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) };
    limit.rlim_cur
}
