//! Telling the processor that another core is the next to read a cache line.

use std::sync::OnceLock;

use super::found;

/// Whether [`demote`] does anything. (CLDEMOTE: Intel's servers since Sapphire Rapids.) Found out once, since a virtual
/// machine takes microseconds to answer.
pub(crate) fn is_supported() -> bool {
    static SUPPORTED: OnceLock<bool> = OnceLock::new();
    *found::once(&SUPPORTED, is_there)
}

#[cfg(target_arch = "x86_64")]
fn is_there() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    const LEAF: u32 = 7;
    const CLDEMOTE_IN_ECX: u32 = 1 << 25;
    __cpuid(0).eax >= LEAF && __cpuid_count(LEAF, 0).ecx & CLDEMOTE_IN_ECX != 0
}

#[cfg(not(target_arch = "x86_64"))]
fn is_there() -> bool {
    false
}

/// Moves the line of `address` from this core's caches towards the one that all share, where others find it sooner.
/// Only a hint: an address that is not mapped does no harm.
#[inline(always)]
pub(crate) fn demote<T>(address: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, which accesses nothing as far as the program can tell. Processors that lack it take it
    // for a NOP.
    unsafe {
        core::arch::asm!("cldemote [{0}]", in(reg) address, options(nostack, preserves_flags));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}
