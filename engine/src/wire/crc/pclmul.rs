//! Carry-less multiplication of one 16-byte lane at a time (PCLMULQDQ), for x86-64 processors
//! without the 64-byte vectors of AVX-512.

use std::arch::asm;
use std::arch::x86_64::*;

use super::gf::FACTORS;
use super::sse42;

/// Bytes folded at a time: eight independent lanes cover the multiplication's latency.
const STEP: usize = 128;

/// # Safety
/// 16 bytes are readable at `src` and, with `COPY`, writable at `dst`.
#[inline]
#[target_feature(enable = "sse2")]
unsafe fn take<const COPY: bool>(dst: *mut u8, src: *const u8) -> __m128i {
    // SAFETY: the caller vouches for the memory. In assembly when copying: another process may be
    // writing to it, and what is summed has to be what is stored.
    unsafe {
        if COPY {
            let value: __m128i;
            asm!(
                "movdqu {v}, [{s}]",
                "movdqu [{d}], {v}",
                v = out(xmm_reg) value,
                s = in(reg) src,
                d = in(reg) dst,
                options(nostack, preserves_flags),
            );
            value
        } else {
            _mm_loadu_si128(src.cast())
        }
    }
}

/// `sum` + `value` carried forward by the factors for `lanes`.
#[inline]
#[target_feature(enable = "sse2,pclmulqdq")]
fn carry(sum: __m128i, value: __m128i, lanes: usize) -> __m128i {
    // SAFETY: 16 bytes may be read where `at` points.
    let factors = unsafe { _mm_loadu_si128(FACTORS.at(lanes).cast()) };
    let first = _mm_clmulepi64_si128::<0x00>(value, factors);
    let second = _mm_clmulepi64_si128::<0x11>(value, factors);
    _mm_xor_si128(_mm_xor_si128(sum, first), second)
}

/// Runs `len` bytes through `state`, copying them to `dst` if `COPY`.
///
/// # Safety
/// The processor has the features named; `src` is readable and, with `COPY`, `dst` is writable for
/// `len` bytes, at least 128; they do not overlap. Without `COPY`, nobody writes to `src` meanwhile.
#[target_feature(enable = "sse4.2,pclmulqdq")]
pub(super) unsafe fn run<const COPY: bool>(
    mut dst: *mut u8,
    mut src: *const u8,
    len: usize,
    state: u32,
) -> u32 {
    // SAFETY: every load and store lies within the `left` bytes at `src` and `dst`.
    unsafe {
        let mut lanes = [_mm_setzero_si128(); STEP / 16];
        for (n, lane) in lanes.iter_mut().enumerate() {
            *lane = take::<COPY>(dst.wrapping_add(16 * n), src.wrapping_add(16 * n));
        }
        lanes[0] = _mm_xor_si128(lanes[0], _mm_cvtsi32_si128(state as i32));
        let mut left = len - STEP;
        while left >= STEP {
            (dst, src, left) = (dst.wrapping_add(STEP), src.wrapping_add(STEP), left - STEP);
            for (n, lane) in lanes.iter_mut().enumerate() {
                let next = take::<COPY>(dst.wrapping_add(16 * n), src.wrapping_add(16 * n));
                *lane = carry(next, *lane, STEP / 16);
            }
        }
        (dst, src) = (dst.wrapping_add(STEP), src.wrapping_add(STEP));
        let mut sum = lanes[STEP / 16 - 1];
        for (n, lane) in lanes[..STEP / 16 - 1].iter().enumerate() {
            sum = carry(sum, *lane, STEP / 16 - 1 - n);
        }
        let state = _mm_crc32_u64(0, _mm_cvtsi128_si64(sum) as u64);
        let state = _mm_crc32_u64(state, _mm_extract_epi64::<1>(sum) as u64);
        sse42::run::<COPY>(dst, src, left, state as u32)
    }
}

/// Runs a frame: its header, then `len` bytes of payload as [`run`] does.
///
/// # Safety
/// As [`run`].
#[target_feature(enable = "sse4.2,pclmulqdq")]
pub(super) unsafe fn frame<const COPY: bool>(
    header: &[u8; 24],
    dst: *mut u8,
    src: *const u8,
    len: usize,
) -> u32 {
    let state = sse42::header(header);
    // SAFETY: the caller's promises.
    unsafe { run::<COPY>(dst, src, len, state) }
}
