//! Carry-less multiplication of four 16-byte lanes at a time (VPCLMULQDQ on 64-byte vectors).
//!
//! Multiplying a lane by the right power of x carries it any distance forward, so all lanes of a
//! short message can be carried onto its last lane independently of each other, each with its own
//! factor: the time of a message is that of one multiplication and one reduction however many
//! lanes there are. Long messages first fold 256 bytes at a time into four vectors.

use std::arch::asm;
use std::arch::x86_64::*;

use super::batch::Messages;
use super::gf::FACTORS;
use super::kernel::Kernel;
use super::sse42;

/// From here on vectors beat the `crc32` instruction within a batch, where waiting costs nothing and
/// only the number of steps counts.
const BATCH_VECTOR_MIN: usize = 48;
/// From here on the message is folded into four vectors first.
const LOOP_MIN: usize = 512;

/// Loads 64 bytes at `OFFSET` and, with `COPY`, stores them at the same offset of `dst`.
///
/// # Safety
/// AVX-512F is there; 64 bytes are readable (and writable) there.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn take<const COPY: bool, const OFFSET: usize>(dst: *mut u8, src: *const u8) -> __m512i {
    // SAFETY: the caller vouches for the memory. In assembly when copying: another process may be
    // writing to it, and what is summed has to be what is stored.
    unsafe {
        if COPY {
            let value: __m512i;
            asm!(
                "vmovdqu64 {v}, [{s} + {o}]",
                "vmovdqu64 [{d} + {o}], {v}",
                v = out(zmm_reg) value,
                s = in(reg) src,
                d = in(reg) dst,
                o = const OFFSET,
                options(nostack, preserves_flags),
            );
            value
        } else {
            _mm512_loadu_si512(src.add(OFFSET).cast())
        }
    }
}

/// As [`take`] for the 8-byte words that `mask` names; the other words are zero.
///
/// # Safety
/// As [`take`], for the words in `mask`.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn take_some<const COPY: bool>(dst: *mut u8, src: *const u8, mask: __mmask8) -> __m512i {
    // SAFETY: as in `take`; masked words are neither read nor written.
    unsafe {
        if COPY {
            let value: __m512i;
            asm!(
                "vmovdqu64 {v}{{{k}}}{{z}}, [{s}]",
                "vmovdqu64 [{d}]{{{k}}}, {v}",
                v = out(zmm_reg) value,
                k = in(kreg) mask,
                s = in(reg) src,
                d = in(reg) dst,
                options(nostack, preserves_flags),
            );
            value
        } else {
            _mm512_maskz_loadu_epi64(mask, src.cast())
        }
    }
}

/// The factors of four lanes, the first of which has `lanes` lanes after it.
#[inline]
#[target_feature(enable = "avx512f")]
fn factors(lanes: usize) -> __m512i {
    // SAFETY: 64 bytes may be read where `at` points.
    unsafe { _mm512_loadu_si512(FACTORS.at(lanes).cast()) }
}

/// `sum` + `value` carried forward by `factors`.
#[inline]
#[target_feature(enable = "avx512f,vpclmulqdq")]
fn carry(sum: __m512i, value: __m512i, factors: __m512i) -> __m512i {
    let first = _mm512_clmulepi64_epi128::<0x00>(value, factors);
    let second = _mm512_clmulepi64_epi128::<0x11>(value, factors);
    _mm512_ternarylogic_epi64::<0x96>(sum, first, second)
}

/// Four lanes whose sum, followed by nothing, has the CRC register that `state` has after `len`
/// bytes; copies the bytes to `dst` if `COPY`.
///
/// # Safety
/// As [`run`].
#[inline]
#[target_feature(enable = "sse4.2,pclmulqdq,avx512f,avx512vl,vpclmulqdq")]
unsafe fn sum<const COPY: bool>(
    mut dst: *mut u8,
    mut src: *const u8,
    len: usize,
    state: u32,
) -> __m512i {
    // SAFETY: every load and store lies within the `left` bytes at `src` and `dst`.
    unsafe {
        let odd = len & 15;
        let state = sse42::below_16::<COPY>(dst, src, odd, state);
        (dst, src) = (dst.wrapping_add(odd), src.wrapping_add(odd));
        let mut left = len - odd;
        let seed = _mm_cvtsi32_si128(state as i32);
        let mut sum;
        if left >= LOOP_MIN {
            let mut x0 = take::<COPY, 0>(dst, src);
            let mut x1 = take::<COPY, 64>(dst, src);
            let mut x2 = take::<COPY, 128>(dst, src);
            let mut x3 = take::<COPY, 192>(dst, src);
            x0 = _mm512_xor_si512(x0, _mm512_zextsi128_si512(seed));
            (dst, src, left) = (dst.wrapping_add(256), src.wrapping_add(256), left - 256);
            let by_256 = _mm512_broadcast_i32x4(_mm_loadu_si128(FACTORS.at(16).cast()));
            while left > 256 {
                x0 = carry(take::<COPY, 0>(dst, src), x0, by_256);
                x1 = carry(take::<COPY, 64>(dst, src), x1, by_256);
                x2 = carry(take::<COPY, 128>(dst, src), x2, by_256);
                x3 = carry(take::<COPY, 192>(dst, src), x3, by_256);
                (dst, src, left) = (dst.wrapping_add(256), src.wrapping_add(256), left - 256);
            }
            let lanes = left / 16;
            sum = carry(_mm512_setzero_si512(), x0, factors(lanes + 15));
            sum = carry(sum, x1, factors(lanes + 11));
            sum = carry(sum, x2, factors(lanes + 7));
            sum = carry(sum, x3, factors(lanes + 3));
        } else {
            // Carried apart from the first lane: the message need not wait for the seed.
            let factor = _mm_loadl_epi64(FACTORS.at(left / 16 - 1).cast());
            sum = _mm512_zextsi128_si512(_mm_clmulepi64_si128::<0x00>(seed, factor));
        }
        while left > 64 {
            sum = carry(sum, take::<COPY, 0>(dst, src), factors(left / 16 - 1));
            (dst, src, left) = (dst.wrapping_add(64), src.wrapping_add(64), left - 64);
        }
        // 16, 32, 48 or 64 bytes are left; the last 16 are where everything else is carried to.
        let words = (0xFF_u32 >> (8 - left / 8)) as __mmask8;
        let x = take_some::<COPY>(dst, src, words);
        sum = carry(sum, x, factors(left / 16 - 1));
        sum = _mm512_mask_xor_epi64(sum, words & !(words >> 2), sum, x);
        sum
    }
}

/// The register that one lane comes to.
#[inline]
#[target_feature(enable = "sse4.2")]
fn register(lane: __m128i) -> u32 {
    let state = _mm_crc32_u64(0, _mm_cvtsi128_si64(lane) as u64);
    _mm_crc32_u64(state, _mm_extract_epi64::<1>(lane) as u64) as u32
}

/// Runs `len` bytes through `state`, copying them to `dst` if `COPY`.
///
/// # Safety
/// The processor has the features named; `src` is readable and, with `COPY`, `dst` is writable for
/// `len` bytes, at least 47; they do not overlap. Without `COPY`, nobody writes to `src` meanwhile.
#[target_feature(enable = "sse4.2,pclmulqdq,avx512f,avx512vl,vpclmulqdq")]
pub(super) unsafe fn run<const COPY: bool>(
    dst: *mut u8,
    src: *const u8,
    len: usize,
    state: u32,
) -> u32 {
    // SAFETY: the caller's promises.
    let lanes = unsafe { sum::<COPY>(dst, src, len, state) };
    let half = _mm256_xor_si256(
        _mm512_castsi512_si256(lanes),
        _mm512_extracti64x4_epi64::<1>(lanes),
    );
    register(_mm_xor_si128(
        _mm256_castsi256_si128(half),
        _mm256_extracti128_si256::<1>(half),
    ))
}

/// Runs a frame: its header, then `len` bytes of payload as [`run`] does.
///
/// # Safety
/// As [`run`].
#[target_feature(enable = "sse4.2,pclmulqdq,avx512f,avx512vl,vpclmulqdq")]
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

/// As [`run`] without a copy for message `i`, up to the lanes.
///
/// # Safety
/// The processor has the features named; the message has at least 47 bytes.
#[inline]
#[target_feature(enable = "sse4.2,pclmulqdq,avx512f,avx512vl,vpclmulqdq")]
unsafe fn sum_of<'a>(messages: impl Messages<'a>, i: usize) -> __m512i {
    let bytes = messages.bytes(i);
    // SAFETY: the caller's promises; `bytes` is a slice and nothing is copied.
    unsafe {
        let state = messages.state_sse42(i);
        sum::<false>(std::ptr::null_mut(), bytes.as_ptr(), bytes.len(), state)
    }
}

/// The registers after four messages, all long enough for vectors: their lanes are added up side by
/// side, as a transposition would have it.
///
/// # Safety
/// As [`sum_of`], for messages `i` to `i + 3`.
#[inline]
#[target_feature(enable = "sse4.2,pclmulqdq,avx512f,avx512vl,vpclmulqdq")]
unsafe fn four<'a>(messages: impl Messages<'a>, i: usize) -> [u32; 4] {
    // SAFETY: the caller's promises.
    let (s0, s1, s2, s3) = unsafe {
        (
            sum_of(messages, i),
            sum_of(messages, i + 1),
            sum_of(messages, i + 2),
            sum_of(messages, i + 3),
        )
    };
    let s01 = _mm512_xor_si512(
        _mm512_shuffle_i64x2::<0x44>(s0, s1),
        _mm512_shuffle_i64x2::<0xEE>(s0, s1),
    );
    let s23 = _mm512_xor_si512(
        _mm512_shuffle_i64x2::<0x44>(s2, s3),
        _mm512_shuffle_i64x2::<0xEE>(s2, s3),
    );
    let all = _mm512_xor_si512(
        _mm512_shuffle_i64x2::<0x88>(s01, s23),
        _mm512_shuffle_i64x2::<0xDD>(s01, s23),
    );
    [
        register(_mm512_castsi512_si128(all)),
        register(_mm512_extracti32x4_epi32::<1>(all)),
        register(_mm512_extracti32x4_epi32::<2>(all)),
        register(_mm512_extracti32x4_epi32::<3>(all)),
    ]
}

/// The CRCs of `messages`, four at a time.
#[target_feature(enable = "sse4.2,pclmulqdq,avx512f,avx512vl,vpclmulqdq")]
pub(super) fn batch<'a>(messages: impl Messages<'a>, crcs: &mut [u32]) {
    let mut i = 0;
    while i + 4 <= crcs.len() {
        let shortest = (messages.bytes(i).len().min(messages.bytes(i + 1).len()))
            .min(messages.bytes(i + 2).len().min(messages.bytes(i + 3).len()));
        let ends = if shortest >= BATCH_VECTOR_MIN {
            // SAFETY: this function has the features, and `shortest` speaks for all four.
            unsafe { four(messages, i) }
        } else {
            sse42::four(messages, i)
        };
        crcs[i..i + 4].copy_from_slice(&[!ends[0], !ends[1], !ends[2], !ends[3]]);
        i += 4;
    }
    while i < crcs.len() {
        crcs[i] = !messages.end_by(Kernel::Avx512, i);
        i += 1;
    }
}
