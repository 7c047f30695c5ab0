//! Asking the processor for a cache line before it is needed.
//!
//! Only hints: an address that is not mapped does no harm, and where there is no such instruction
//! nothing happens.

/// Fetches the line of `address`, to be read.
#[inline(always)]
pub fn to_read<T>(address: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, which accesses nothing as far as the program can tell.
    unsafe {
        use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// Fetches the line of `address` and takes it away from other cores, to be written.
#[inline(always)]
pub fn to_write<T>(address: *mut T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: as in `to_read`. Processors that lack it take it for a NOP. (The intrinsic for it
    // becomes a prefetch for reading unless the whole program is compiled for such processors.)
    unsafe {
        core::arch::asm!("prefetchw [{0}]", in(reg) address, options(nostack, preserves_flags));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}
