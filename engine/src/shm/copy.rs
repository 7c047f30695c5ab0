//! Copies between private memory and a ring.

use crate::wire::STEP_BYTES;

/// Copies `length` bytes in steps: see [`STEP_BYTES`].
///
/// # Safety
/// `from` is readable and `to` writable for `length` bytes, and they do not overlap. One of them
/// may be memory that another process writes to: then the bytes are whatever they are.
#[inline]
pub(super) unsafe fn copy(from: *const u8, to: *mut u8, length: usize) {
    let mut at = 0;
    // Each turn copies at least one byte.
    while at < length {
        let step = (length - at).min(STEP_BYTES);
        // SAFETY: the step ends within `length`.
        unsafe { std::ptr::copy_nonoverlapping(from.add(at), to.add(at), step) };
        at += step;
    }
}
