//! The `crc32` instruction of SSE4.2: 8 bytes each, one per cycle, its result three cycles later.
//!
//! The whole kernel for short input and for processors without carry-less multiplication; the
//! vector kernels use its parts for what is shorter than a vector.

use std::arch::asm;
use std::arch::x86_64::{_mm_crc32_u8, _mm_crc32_u16, _mm_crc32_u32, _mm_crc32_u64};

use super::HEADER_BYTES;
use super::batch::{one_by_one, parts};
use super::kernel::Kernel;

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

/// The longest payloads that are summed side by side; for longer ones, other kernels are better.
pub(super) const BATCH_MAX: usize = 255;

/// The CRCs of four frames of no more than `BATCH_MAX` bytes of payload: what they have in common
/// word by word in four chains, which keeps the unit busy while each chain waits for its last
/// result, then the rest of each.
///
/// Written out without closures: those would not be inlined through functions that lack SSE4.2.
#[inline]
#[target_feature(enable = "sse4.2")]
pub(super) fn four(frames: &[&[u8]; 4], crcs: &mut [u32; 4]) {
    let [f0, f1, f2, f3] = frames;
    let ((h0, b0), (h1, b1)) = (parts(f0), parts(f1));
    let ((h2, b2), (h3, b3)) = (parts(f2), parts(f3));
    // SAFETY: `at` stays within `common`, which is no more than the length of any of the four;
    // nothing is copied.
    let (common, states) = unsafe {
        let mut c0 = u64::from(header(h0));
        let mut c1 = u64::from(header(h1));
        let mut c2 = u64::from(header(h2));
        let mut c3 = u64::from(header(h3));
        let common = (b0.len().min(b1.len())).min(b2.len().min(b3.len())) & !7;
        let null = std::ptr::null_mut();
        let mut at = 0;
        while at < common {
            c0 = _mm_crc32_u64(c0, take_u64::<false>(null, b0.as_ptr().add(at)));
            c1 = _mm_crc32_u64(c1, take_u64::<false>(null, b1.as_ptr().add(at)));
            c2 = _mm_crc32_u64(c2, take_u64::<false>(null, b2.as_ptr().add(at)));
            c3 = _mm_crc32_u64(c3, take_u64::<false>(null, b3.as_ptr().add(at)));
            at += 8;
        }
        (common, [c0 as u32, c1 as u32, c2 as u32, c3 as u32])
    };
    *crcs = [!states[0], !states[1], !states[2], !states[3]];
    // Usually they are equally long, to the word.
    if (b0.len() | b1.len() | b2.len() | b3.len()) != common {
        finish([b0, b1, b2, b3], common, crcs);
    }
}

/// Appends to each of `crcs` what its payload has after `common` bytes.
#[inline(never)]
#[target_feature(enable = "sse4.2")]
fn finish(payloads: [&[u8]; 4], common: usize, crcs: &mut [u32; 4]) {
    for (payload, crc) in payloads.iter().zip(crcs) {
        let rest = &payload[common..];
        // SAFETY: this function has the feature; `rest` is a slice and nothing is copied.
        let state = unsafe { run::<false>(std::ptr::null_mut(), rest.as_ptr(), rest.len(), !*crc) };
        *crc = !state;
    }
}

/// The length of the longest of four payloads.
#[inline(always)]
pub(super) fn longest(frames: &[&[u8]; 4]) -> usize {
    let [a, b, c, d] = frames;
    let (ab, cd) = (a.len().max(b.len()), c.len().max(d.len()));
    ab.max(cd).saturating_sub(HEADER_BYTES)
}

/// The CRCs of frames, four at a time while they are short, else by `kernel`.
#[target_feature(enable = "sse4.2")]
pub(super) fn batch(frames: &[[&[u8]; 4]], crcs: &mut [[u32; 4]], kernel: Kernel) {
    for (frames, crcs) in frames.iter().zip(crcs) {
        if longest(frames) <= BATCH_MAX {
            four(frames, crcs);
        } else {
            one_by_one(frames, crcs, kernel);
        }
    }
}
