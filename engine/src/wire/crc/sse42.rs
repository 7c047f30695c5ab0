//! The `crc32` instruction of SSE4.2: 8 bytes each, one per cycle, its result three cycles later.
//!
//! The whole kernel for short input and for processors without carry-less multiplication; the
//! vector kernels use its parts for what is shorter than a vector.

use std::arch::asm;
use std::arch::x86_64::{
    __m128i, _mm_crc32_u8, _mm_crc32_u16, _mm_crc32_u32, _mm_crc32_u64, _mm_cvtsi128_si64,
    _mm_extract_epi64,
};

use super::WITHOUT_CRC;

/// Loads an integer and, with `COPY`, stores it at `dst`. In assembly when copying: the source or
/// the destination may be memory that another process changes meanwhile, and the value summed has
/// to be the value stored, so the compiler must not read twice.
macro_rules! take {
    ($name:ident, $int:ty, $class:ident, $register:literal) => {
        #[inline(always)]
        pub(super) unsafe fn $name<const COPY: bool>(dst: *mut u8, src: *const u8) -> $int {
            // SAFETY: the caller vouches for the bytes at `src` and, with COPY, at `dst`.
            unsafe {
                if COPY {
                    let value: $int;
                    asm!(
                        concat!("mov {v", $register, "}, [{s}]"),
                        concat!("mov [{d}], {v", $register, "}"),
                        v = out($class) value,
                        s = in(reg) src,
                        d = in(reg) dst,
                        options(nostack, preserves_flags),
                    );
                    value
                } else {
                    src.cast::<$int>().read_unaligned()
                }
            }
        }
    };
}
take!(take_u64, u64, reg, "");
take!(take_u32, u32, reg, ":e");
take!(take_u16, u16, reg, ":x");
take!(take_u8, u8, reg_byte, "");

/// Copies four words and returns them. One piece of assembly, since each has its addresses worked
/// out anew.
///
/// # Safety
/// 32 bytes are readable at `src` and writable at `dst`.
#[inline(always)]
unsafe fn copy_4_u64(dst: *mut u8, src: *const u8) -> [u64; 4] {
    let (a, b, c, d): (u64, u64, u64, u64);
    // SAFETY: the caller vouches for the bytes.
    unsafe {
        asm!(
            "mov {a}, [{src}]",
            "mov {b}, [{src} + 8]",
            "mov {c}, [{src} + 16]",
            "mov {d}, [{src} + 24]",
            "mov [{dst}], {a}",
            "mov [{dst} + 8], {b}",
            "mov [{dst} + 16], {c}",
            "mov [{dst} + 24], {d}",
            a = out(reg) a,
            b = out(reg) b,
            c = out(reg) c,
            d = out(reg) d,
            src = in(reg) src,
            dst = in(reg) dst,
            options(nostack, preserves_flags),
        );
    }
    [a, b, c, d]
}

/// Runs the last `len & 7` bytes of something through `state`.
///
/// # Safety
/// As [`run`], for `len & 7` bytes.
#[inline]
#[target_feature(enable = "sse4.2")]
pub(super) unsafe fn last<const COPY: bool>(
    mut dst: *mut u8,
    mut src: *const u8,
    len: usize,
    mut state: u32,
) -> u32 {
    // SAFETY: each step takes as many bytes as its bit of `len` counts.
    unsafe {
        if len & 4 != 0 {
            state = _mm_crc32_u32(state, take_u32::<COPY>(dst, src));
            (dst, src) = (dst.wrapping_add(4), src.wrapping_add(4));
        }
        if len & 2 != 0 {
            state = _mm_crc32_u16(state, take_u16::<COPY>(dst, src));
            (dst, src) = (dst.wrapping_add(2), src.wrapping_add(2));
        }
        if len & 1 != 0 {
            state = _mm_crc32_u8(state, take_u8::<COPY>(dst, src));
        }
    }
    state
}

/// Runs `len & 15` bytes through `state`.
///
/// # Safety
/// As [`run`], for `len & 15` bytes.
#[inline]
#[target_feature(enable = "sse4.2")]
pub(super) unsafe fn below_16<const COPY: bool>(
    mut dst: *mut u8,
    mut src: *const u8,
    len: usize,
    mut state: u32,
) -> u32 {
    // SAFETY: each step takes as many bytes as its bit of `len` counts.
    unsafe {
        if len & 8 != 0 {
            state = _mm_crc32_u64(u64::from(state), take_u64::<COPY>(dst, src)) as u32;
            (dst, src) = (dst.wrapping_add(8), src.wrapping_add(8));
        }
        last::<COPY>(dst, src, len, state)
    }
}

/// Runs `count` words through `state` and moves `dst` and `src` past them.
///
/// # Safety
/// As [`run`], for `8 * count` bytes.
#[inline]
#[target_feature(enable = "sse4.2")]
pub(super) unsafe fn words<const COPY: bool>(
    dst: &mut *mut u8,
    src: &mut *const u8,
    count: usize,
    state: u32,
) -> u32 {
    let mut state = u64::from(state);
    let mut left = count;
    while COPY && left >= 4 {
        // SAFETY: four of the `count` words.
        let words = unsafe { copy_4_u64(*dst, *src) };
        state = _mm_crc32_u64(state, words[0]);
        state = _mm_crc32_u64(state, words[1]);
        state = _mm_crc32_u64(state, words[2]);
        state = _mm_crc32_u64(state, words[3]);
        (*dst, *src) = (dst.wrapping_add(32), src.wrapping_add(32));
        left -= 4;
    }
    for _ in 0..left {
        // SAFETY: one of the `count` words.
        state = _mm_crc32_u64(state, unsafe { take_u64::<COPY>(*dst, *src) });
        (*dst, *src) = (dst.wrapping_add(8), src.wrapping_add(8));
    }
    state as u32
}

/// Runs `len` bytes through `state`, copying them to `dst` if `COPY`.
///
/// # Safety
/// SSE4.2 is there; `src` is readable and, with `COPY`, `dst` is writable for `len` bytes; they do
/// not overlap. Without `COPY`, nobody writes to `src` meanwhile.
#[inline]
#[target_feature(enable = "sse4.2")]
pub(super) unsafe fn run<const COPY: bool>(
    mut dst: *mut u8,
    mut src: *const u8,
    len: usize,
    state: u32,
) -> u32 {
    // SAFETY: `len / 8` words and the `len & 7` bytes after them make up `len`.
    unsafe {
        let state = words::<COPY>(&mut dst, &mut src, len / 8, state);
        last::<COPY>(dst, src, len, state)
    }
}

/// The register after a frame header whose CRC field counts as zero.
#[inline]
#[target_feature(enable = "sse4.2")]
pub(super) fn header(first: u64, second: u64, third: u64) -> u32 {
    let state = _mm_crc32_u64(u64::from(u32::MAX), first);
    let state = _mm_crc32_u64(state, second);
    _mm_crc32_u64(state, third & WITHOUT_CRC) as u32
}

/// The register that one lane comes to.
#[inline]
#[target_feature(enable = "sse4.2")]
pub(super) fn register(lane: __m128i) -> u32 {
    let state = _mm_crc32_u64(0, _mm_cvtsi128_si64(lane) as u64);
    _mm_crc32_u64(state, _mm_extract_epi64::<1>(lane) as u64) as u32
}

/// Runs a frame: its header, then `len` bytes of payload as [`run`] does.
///
/// # Safety
/// As [`run`].
#[target_feature(enable = "sse4.2")]
pub(super) unsafe fn frame<const COPY: bool>(
    first: u64,
    second: u64,
    third: u64,
    dst: *mut u8,
    src: *const u8,
    len: usize,
) -> u32 {
    // SAFETY: the caller's promises.
    unsafe { run::<COPY>(dst, src, len, header(first, second, third)) }
}
