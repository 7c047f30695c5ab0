//! The `crc32cx` instruction of ARMv8.1 (optional before).

use std::arch::aarch64::{__crc32cb, __crc32cd};
use std::arch::asm;

/// Runs `len` bytes through `state`, copying them to `dst` if `COPY`.
///
/// # Safety
/// The processor has the feature; `src` is readable and, with `COPY`, `dst` is writable for `len`
/// bytes; they do not overlap. Without `COPY`, nobody writes to `src` meanwhile.
// Whether the intrinsics are unsafe to call here depends on the version of the compiler.
#[allow(unused_unsafe)]
#[target_feature(enable = "crc")]
pub(super) unsafe fn run<const COPY: bool>(
    dst: *mut u8,
    src: *const u8,
    len: usize,
    mut state: u32,
) -> u32 {
    let mut at = 0;
    while len - at >= 8 {
        // SAFETY: 8 bytes from `at` are within `len`. In assembly when copying: another process
        // may be writing there, and what is summed has to be what is stored.
        let word = unsafe {
            if COPY {
                let word: u64;
                asm!(
                    "ldr {v}, [{s}]",
                    "str {v}, [{d}]",
                    v = out(reg) word,
                    s = in(reg) src.add(at),
                    d = in(reg) dst.add(at),
                    options(nostack, preserves_flags),
                );
                word
            } else {
                src.add(at).cast::<u64>().read_unaligned()
            }
        };
        // SAFETY: this function has the feature.
        state = unsafe { __crc32cd(state, u64::from_le(word)) };
        at += 8;
    }
    while at < len {
        // SAFETY: `at` is within `len`; volatile for the reason given above.
        let byte = unsafe {
            let byte = src.add(at).read_volatile();
            if COPY {
                dst.add(at).write_volatile(byte);
            }
            byte
        };
        // SAFETY: this function has the feature.
        state = unsafe { __crc32cb(state, byte) };
        at += 1;
    }
    state
}
