//! Memory that the library allocates and the program holds.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::mem::ManuallyDrop;
use std::ptr;

use crate::error::Fault;
use crate::guard;

/// lapce_ipc_buffer
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Buffer {
    data: *mut u8,
    length: usize,
    capacity: usize,
}

impl Buffer {
    /// Refuses one that cannot be ours: before an answer is taken that would have no place then.
    #[inline]
    pub(crate) fn check(&self) -> Result<(), Fault> {
        let Buffer {
            data,
            length,
            capacity,
        } = *self;
        let is_whole = length <= capacity && capacity <= isize::MAX as usize && capacity > 0;
        match is_whole || data.is_null() {
            true => Ok(()),
            false => Err(Fault::Invalid(
                "a buffer is damaged: initialise it with LAPCE_IPC_BUFFER_INIT",
            )),
        }
    }

    /// Takes the memory out, leaving the buffer empty.
    ///
    /// # Safety
    /// The buffer is all zero, or as [`Buffer::set`] left it.
    pub(crate) unsafe fn take(&mut self) -> Result<Vec<u8>, Fault> {
        self.check()?;
        let Buffer {
            data,
            length,
            capacity,
        } = *self;
        if data.is_null() {
            return Ok(Vec::new());
        }
        *self = Buffer {
            data: ptr::null_mut(),
            length: 0,
            capacity: 0,
        };
        // SAFETY: these are a Vec's parts, taken apart in `set` and unchanged since: the caller's
        // promise, and theirs alone now that the buffer is empty.
        Ok(unsafe { Vec::from_raw_parts(data, length, capacity) })
    }

    /// Puts memory in the place of what is there, which is freed.
    ///
    /// # Safety
    /// As [`Buffer::take`].
    pub(crate) unsafe fn replace(&mut self, bytes: Vec<u8>) -> Result<(), Fault> {
        // SAFETY: the caller's promise.
        drop(unsafe { self.take() }?);
        self.set(bytes);
        Ok(())
    }

    /// Puts memory into an empty buffer.
    pub(crate) fn set(&mut self, bytes: Vec<u8>) {
        debug_assert!(self.data.is_null());
        let mut bytes = ManuallyDrop::new(bytes);
        *self = Buffer {
            // A Vec that holds no memory has a pointer that is none.
            data: match bytes.capacity() {
                0 => ptr::null_mut(),
                _ => bytes.as_mut_ptr(),
            },
            length: bytes.len(),
            capacity: bytes.capacity(),
        };
    }
}

// SAFETY: the name is this library's own.
#[unsafe(no_mangle)]
unsafe extern "C" fn lapce_ipc_buffer_free(buffer: *mut Buffer) {
    if buffer.is_null() {
        return;
    }
    let _: c_int = guard::run(|| {
        // SAFETY: the header asks for a buffer of ours.
        let buffer = unsafe { guard::place(buffer, "the buffer") }?;
        // SAFETY: as above.
        drop(unsafe { buffer.take() }?);
        Ok(())
    });
}
