//! The provided buffer ring: the receive buffers that all connections of a worker share.
//!
//! The kernel takes a buffer when bytes arrive, not when a receive is armed, so an idle connection
//! holds none. See io_uring_register_buf_ring(3).

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::Submitter;
use io_uring::types::BufRingEntry;

/// How many buffers a worker has; a power of two. A connection that finds none is starved, and armed again
/// when buffers are back.
pub(crate) const BUFFER_COUNT: u16 = 16;
/// The size of each, in bytes. Small messages touch only its first page.
pub(super) const BUFFER_BYTES: usize = 16 * 1024;
/// The one buffer group of a ring.
pub(super) const GROUP: u16 = 0;

/// Bytes that arrived, in a buffer that is ours until it is given back with
/// [`super::Driver::recycle`]. Not `Clone`: whoever holds it is the only one who may read the buffer.
#[derive(Debug)]
pub(crate) struct Received {
    pub(super) buffer: u16,
    pub(super) length: u32,
}

pub(super) struct BufferRing {
    /// One mapping: the ring's entries first (page-aligned, as the kernel wants them), then the buffers.
    base: NonNull<u8>,
    /// How many buffers were ever provided, modulo 2^16.
    tail: u16,
}

const ENTRIES_BYTES: usize = 4096;
/// One buffer more than the ring has: the driver's own (index BUFFER_COUNT).
const MAPPING_BYTES: usize = ENTRIES_BYTES + (BUFFER_COUNT as usize + 1) * BUFFER_BYTES;
const _: () = assert!(BUFFER_COUNT.is_power_of_two());
const _: () = assert!(BUFFER_COUNT as usize * size_of::<BufRingEntry>() <= ENTRIES_BYTES);

impl BufferRing {
    /// Maps the memory. Nothing is resident until it is used.
    pub(super) fn new() -> io::Result<BufferRing> {
        // SAFETY: a fresh private anonymous mapping; no address is asked for, so none is replaced.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                MAPPING_BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(address.cast()).ok_or_else(|| io::Error::other("mapped at 0"))?;
        Ok(BufferRing { base, tail: 0 })
    }

    /// Registers the ring with the kernel and fills it.
    pub(super) fn register(&mut self, submitter: &Submitter<'_>) -> io::Result<()> {
        // SAFETY: the entries are page-aligned, inside our mapping, and live until the driver drops
        // its io_uring, which it does before this ring (field order in Driver).
        unsafe {
            submitter.register_buf_ring_with_flags(
                self.base.as_ptr() as u64,
                BUFFER_COUNT,
                GROUP,
                0,
            )?;
        }
        for buffer in 0..BUFFER_COUNT {
            self.provide(buffer);
        }
        Ok(())
    }

    fn address(&self, buffer: u16) -> *mut u8 {
        assert!(buffer <= BUFFER_COUNT);
        // SAFETY: below MAPPING_BYTES by the assertion.
        unsafe {
            self.base
                .as_ptr()
                .add(ENTRIES_BYTES + buffer as usize * BUFFER_BYTES)
        }
    }

    /// Gives a buffer to the kernel.
    pub(super) fn provide(&mut self, buffer: u16) {
        let address = self.address(buffer) as u64;
        let slot = usize::from(self.tail & (BUFFER_COUNT - 1));
        let entries = self.base.as_ptr().cast::<BufRingEntry>();
        // SAFETY: slot < BUFFER_COUNT, so the entry lies in the mapping; the kernel reads an entry
        // only once the tail passes it. The fields are written through a raw pointer one by one
        // because the last two bytes of entry 0 are the tail itself.
        unsafe {
            let entry = &mut *entries.add(slot);
            entry.set_addr(address);
            entry.set_len(BUFFER_BYTES as u32);
            entry.set_bid(buffer);
        }
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: the tail lies in entry 0 of our mapping, aligned for a u16.
        let tail = unsafe { &*BufRingEntry::tail(entries).cast::<AtomicU16>() };
        // Release: pairs with the kernel's acquire of the tail, so that it sees the entry.
        tail.store(self.tail, Ordering::Release);
    }

    /// The bytes of a buffer that the kernel does not hold, to be filled by a `recv` of our own.
    pub(super) fn free_bytes(&mut self, buffer: u16) -> &mut [u8] {
        // SAFETY: the driver's free list holds only buffers that the kernel was not given, each
        // once, and the borrow of self keeps others away.
        unsafe { std::slice::from_raw_parts_mut(self.address(buffer), BUFFER_BYTES) }
    }

    pub(super) fn bytes(&self, received: &Received) -> &[u8] {
        let length = received.length as usize;
        assert!(length <= BUFFER_BYTES);
        // SAFETY: a Received exists only between the kernel's completion and `recycle`, and in that
        // time the kernel does not write to its buffer.
        unsafe { std::slice::from_raw_parts(self.address(received.buffer), length) }
    }
}

impl Drop for BufferRing {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and the io_uring that knew of it is gone (field order in
        // Driver).
        unsafe { libc::munmap(self.base.as_ptr().cast(), MAPPING_BYTES) };
    }
}
