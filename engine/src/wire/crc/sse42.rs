//! The `crc32` instruction of SSE4.2: 8 bytes each, one per cycle, its result three cycles later.
//!
//! The whole kernel for short input and for processors without carry-less multiplication; the
//! vector kernels use its parts for what is shorter than a vector.

use std::arch::asm;
use std::arch::x86_64::{_mm_crc32_u8, _mm_crc32_u16, _mm_crc32_u32, _mm_crc32_u64};

use super::batch::Messages;

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
    for _ in 0..count {
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
pub(super) fn header(header: &[u8; 24]) -> u32 {
    let word = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&header[at..at + 8]);
        u64::from_le_bytes(bytes)
    };
    let state = _mm_crc32_u64(u64::from(u32::MAX), word(0));
    let state = _mm_crc32_u64(state, word(8));
    _mm_crc32_u64(state, word(16) & u64::from(u32::MAX)) as u32
}

/// Four messages at once: their common length word by word in four chains, which keeps the unit
/// busy while each chain waits for its last result, then the rest of each.
///
/// Written out without closures: those would not be inlined through functions that lack SSE4.2.
#[inline]
#[target_feature(enable = "sse4.2")]
pub(super) fn four<'a>(messages: impl Messages<'a>, i: usize) -> [u32; 4] {
    let (m0, m1) = (messages.bytes(i), messages.bytes(i + 1));
    let (m2, m3) = (messages.bytes(i + 2), messages.bytes(i + 3));
    // SAFETY: `at` stays within `common`, which is no more than the length of any of the four; the
    // rest of each is a slice; nothing is copied; this function has the feature.
    unsafe {
        let mut c0 = u64::from(messages.state_sse42(i));
        let mut c1 = u64::from(messages.state_sse42(i + 1));
        let mut c2 = u64::from(messages.state_sse42(i + 2));
        let mut c3 = u64::from(messages.state_sse42(i + 3));
        let common = m0.len().min(m1.len()).min(m2.len()).min(m3.len()) & !7;
        let null = std::ptr::null_mut();
        let mut at = 0;
        while at < common {
            c0 = _mm_crc32_u64(c0, take_u64::<false>(null, m0.as_ptr().add(at)));
            c1 = _mm_crc32_u64(c1, take_u64::<false>(null, m1.as_ptr().add(at)));
            c2 = _mm_crc32_u64(c2, take_u64::<false>(null, m2.as_ptr().add(at)));
            c3 = _mm_crc32_u64(c3, take_u64::<false>(null, m3.as_ptr().add(at)));
            at += 8;
        }
        [
            run::<false>(null, m0.as_ptr().add(at), m0.len() - at, c0 as u32),
            run::<false>(null, m1.as_ptr().add(at), m1.len() - at, c1 as u32),
            run::<false>(null, m2.as_ptr().add(at), m2.len() - at, c2 as u32),
            run::<false>(null, m3.as_ptr().add(at), m3.len() - at, c3 as u32),
        ]
    }
}

/// Runs a frame: its header, then `len` bytes of payload as [`run`] does.
///
/// # Safety
/// As [`run`].
#[target_feature(enable = "sse4.2")]
pub(super) unsafe fn frame<const COPY: bool>(
    header: &[u8; 24],
    dst: *mut u8,
    src: *const u8,
    len: usize,
) -> u32 {
    // SAFETY: the caller's promises.
    unsafe { run::<COPY>(dst, src, len, self::header(header)) }
}

/// The CRCs of `messages`, four at a time.
#[target_feature(enable = "sse4.2")]
pub(super) fn batch<'a>(messages: impl Messages<'a>, crcs: &mut [u32]) {
    let mut i = 0;
    while i + 4 <= crcs.len() {
        let ends = four(messages, i);
        crcs[i..i + 4].copy_from_slice(&[!ends[0], !ends[1], !ends[2], !ends[3]]);
        i += 4;
    }
    while i < crcs.len() {
        let bytes = messages.bytes(i);
        // SAFETY: this function has the feature; `bytes` is a slice and nothing is copied.
        crcs[i] = !unsafe {
            let state = messages.state_sse42(i);
            run::<false>(std::ptr::null_mut(), bytes.as_ptr(), bytes.len(), state)
        };
        i += 1;
    }
}
