//! Carry-less multiplication of two 16-byte lanes at a time (VPCLMULQDQ on 32-byte vectors), for
//! processors that have it and not the 64-byte vectors of AVX-512: AMD's from Zen 3 and Intel's
//! without AVX-512 from Alder Lake on.
//!
//! As in [`super::avx512`], all lanes of a short message are carried onto its last lane, each by a
//! factor of its own. Longer messages are folded into vectors first.

use std::arch::asm;
use std::arch::x86_64::*;
use std::ops::Range;

use super::gf::{FACTORS, LANES_MAX};
use super::{pclmul, sse42};

/// Bytes of a lane and of a vector.
const LANE: usize = 16;
const VECTOR: usize = 32;
/// Vectors into which a message is folded: enough to cover the multiplication's latency, when
/// copying, and more where chains take turns with them.
const COPIED: usize = 4;
const SUMMED: usize = 8;
/// Chains beside the vectors: enough to cover the latency of the `crc32` instruction.
const CHAINS: usize = 3;
/// Bytes of each.
const CHAIN: usize = 128;
/// Bytes folded at a time by chains and vectors together: both units have as much to do.
const BLOCK: usize = CHAINS * CHAIN + SUMMED * VECTOR;
/// From here on it is worth folding first.
const FOLD_COPIED_MIN: usize = 400;
const FOLD_SUMMED_MIN: usize = SUMMED * VECTOR + BLOCK + LANE;

/// Where three chains alone are as good, or better when the other thread of the core is busy too.
const THIRDS: Range<usize> = 300..FOLD_SUMMED_MIN;

const _: () = assert!(FOLD_COPIED_MIN <= LANE * LANES_MAX && BLOCK <= LANE * LANES_MAX);

/// Loads a vector at `OFFSET` and, with `COPY`, stores it at the same offset of `dst`.
///
/// # Safety
/// AVX is there; 32 bytes are readable (and writable) there.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn take<const COPY: bool, const OFFSET: usize>(dst: *mut u8, src: *const u8) -> __m256i {
    // SAFETY: the caller vouches for the memory. In assembly when copying: another process may be
    // writing to it, and what is summed has to be what is stored.
    unsafe {
        if COPY {
            let value: __m256i;
            asm!(
                "vmovdqu {v}, [{s} + {o}]",
                "vmovdqu [{d} + {o}], {v}",
                v = out(ymm_reg) value,
                s = in(reg) src,
                d = in(reg) dst,
                o = const OFFSET,
                options(nostack, preserves_flags),
            );
            value
        } else {
            _mm256_loadu_si256(src.add(OFFSET).cast())
        }
    }
}

/// As [`take`] for one lane.
///
/// # Safety
/// As [`take`], for 16 bytes.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn take_lane<const COPY: bool>(dst: *mut u8, src: *const u8) -> __m128i {
    // SAFETY: as in `take`.
    unsafe {
        if COPY {
            let value: __m128i;
            asm!(
                "vmovdqu {v}, [{s}]",
                "vmovdqu [{d}], {v}",
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

/// The factors of two lanes, the first of which has `lanes` lanes after it.
#[inline]
#[target_feature(enable = "avx2")]
fn factors(lanes: usize) -> __m256i {
    // SAFETY: 32 bytes may be read where `at` points.
    unsafe { _mm256_loadu_si256(FACTORS.at(lanes).cast()) }
}

/// The factors of one lane, twice.
#[inline]
#[target_feature(enable = "avx2")]
fn factors_of_both(lanes: usize) -> __m256i {
    // SAFETY: 16 bytes may be read where `at` points.
    unsafe { _mm256_broadcastsi128_si256(_mm_loadu_si128(FACTORS.at(lanes).cast())) }
}

/// `sum` + `value` carried forward by `factors`.
#[inline]
#[target_feature(enable = "avx2,vpclmulqdq")]
fn carry(sum: __m256i, value: __m256i, factors: __m256i) -> __m256i {
    let first = _mm256_clmulepi64_epi128::<0x00>(value, factors);
    let second = _mm256_clmulepi64_epi128::<0x11>(value, factors);
    _mm256_xor_si256(_mm256_xor_si256(sum, first), second)
}

/// `lane` in the first half of a vector of zeros.
#[inline]
#[target_feature(enable = "avx2")]
fn widened(lane: __m128i) -> __m256i {
    _mm256_inserti128_si256::<0>(_mm256_setzero_si256(), lane)
}

/// The first 128 bytes as vectors.
///
/// # Safety
/// As [`take`], for 128 bytes.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn four<const COPY: bool>(dst: *mut u8, src: *const u8) -> [__m256i; COPIED] {
    // SAFETY: 128 bytes.
    unsafe {
        [
            take::<COPY, 0>(dst, src),
            take::<COPY, 32>(dst, src),
            take::<COPY, 64>(dst, src),
            take::<COPY, 96>(dst, src),
        ]
    }
}

/// One step of each chain, for the word at `src` of the first. In assembly, since the compiler would
/// put one chain's steps behind each other, where each waits for the last.
///
/// # Safety
/// SSE4.2 is there; 8 bytes of each chain are readable.
#[inline]
#[target_feature(enable = "sse4.2")]
unsafe fn step([mut a, mut b, mut c]: [u64; CHAINS], src: *const u8) -> [u64; CHAINS] {
    // SAFETY: the caller's promises.
    unsafe {
        asm!(
            "crc32 {a}, qword ptr [{s}]",
            "crc32 {b}, qword ptr [{s} + {CHAIN}]",
            "crc32 {c}, qword ptr [{s} + 2 * {CHAIN}]",
            a = inout(reg) a,
            b = inout(reg) b,
            c = inout(reg) c,
            s = in(reg) src,
            CHAIN = const CHAIN,
            options(nostack, readonly, preserves_flags),
        );
    }
    [a, b, c]
}

/// Folds a block: 384 bytes in three chains of the `crc32` instruction, then 256 bytes in the
/// vectors, which are carried over the chains. The chains use a unit that the multiplication leaves
/// idle; what they come to belongs to the first lane after them.
///
/// # Safety
/// As [`run`] without a copy, for `BLOCK` bytes.
#[inline]
#[target_feature(enable = "sse4.2,pclmulqdq,avx2,vpclmulqdq")]
unsafe fn fold_block(x: &mut [__m256i; SUMMED], src: *const u8, by: __m256i) {
    let null = std::ptr::null_mut();
    let mut chains = [0; CHAINS];
    // Each vector has its part of the chains' steps beside it.
    const { assert!(CHAIN == 2 * 8 * SUMMED) };
    // SAFETY: the chains and the vectors make up a block; 16 bytes may be read where `at` points.
    unsafe {
        for (n, x) in x.iter_mut().enumerate() {
            let at = CHAINS * CHAIN + VECTOR * n;
            let next = take::<false, 0>(null, src.wrapping_add(at));
            *x = carry(next, *x, by);
            chains = step(chains, src.wrapping_add(2 * 8 * n));
            chains = step(chains, src.wrapping_add(2 * 8 * n + 8));
        }
        let mut sum = _mm_cvtsi64_si128(chains[CHAINS - 1] as i64);
        for (m, chain) in chains[..CHAINS - 1].iter().enumerate() {
            let factor = _mm_loadl_epi64(FACTORS.at(CHAIN / LANE * (CHAINS - 1 - m)).cast());
            let chain = _mm_cvtsi64_si128(*chain as i64);
            sum = _mm_xor_si128(sum, _mm_clmulepi64_si128::<0x00>(chain, factor));
        }
        x[0] = _mm256_xor_si256(x[0], widened(sum));
    }
}

/// Vectors whose lanes the lanes after them follow, each carried onto the last of those.
#[inline]
#[target_feature(enable = "avx2,vpclmulqdq")]
fn join<const N: usize>(x: &[__m256i; N], lanes: usize) -> __m256i {
    let mut sum = _mm256_setzero_si256();
    for (n, x) in x.iter().enumerate() {
        sum = carry(sum, *x, factors(lanes + 2 * (N - n) - 1));
    }
    sum
}

/// Folds as much as is worth it and leaves at least a lane: what that comes to, carried onto the
/// last lane of the rest, and how many bytes it took.
///
/// # Safety
/// As [`run`]; `len` is a multiple of 16 and at least `FOLD_COPIED_MIN`.
#[inline]
#[target_feature(enable = "sse4.2,pclmulqdq,avx2,vpclmulqdq")]
unsafe fn folded<const COPY: bool>(
    dst: *mut u8,
    src: *const u8,
    len: usize,
    state: u32,
) -> (__m256i, usize) {
    let seed = widened(_mm_cvtsi32_si128(state as i32));
    let mut at = 0;
    // SAFETY: all within `len` bytes: what is taken is at most what is left but a lane.
    unsafe {
        // When copying, the chains' stores of 8 bytes would cost more than the chains save.
        if !COPY && len >= FOLD_SUMMED_MIN {
            let [a, b, c, d] = four::<false>(dst, src);
            let [e, f, g, h] = four::<false>(dst, src.wrapping_add(COPIED * VECTOR));
            let mut x = [a, b, c, d, e, f, g, h];
            x[0] = _mm256_xor_si256(x[0], seed);
            at += SUMMED * VECTOR;
            let by = factors_of_both(BLOCK / LANE);
            while len - at >= BLOCK + LANE {
                fold_block(&mut x, src.wrapping_add(at), by);
                at += BLOCK;
            }
            // Into half as many, which go on.
            let by = factors_of_both(COPIED * VECTOR / LANE);
            let mut half = [_mm256_setzero_si256(); COPIED];
            for (n, half) in half.iter_mut().enumerate() {
                *half = carry(x[COPIED + n], x[n], by);
            }
            return fold_rest::<COPY>(half, dst, src, len, at);
        }
        let mut x = four::<COPY>(dst, src);
        x[0] = _mm256_xor_si256(x[0], seed);
        at += COPIED * VECTOR;
        fold_rest::<COPY>(x, dst, src, len, at)
    }
}

/// The rest of [`folded`], from `at` on.
///
/// # Safety
/// As [`folded`].
#[inline]
#[target_feature(enable = "avx2,vpclmulqdq")]
unsafe fn fold_rest<const COPY: bool>(
    mut x: [__m256i; COPIED],
    dst: *mut u8,
    src: *const u8,
    len: usize,
    mut at: usize,
) -> (__m256i, usize) {
    let by = factors_of_both(COPIED * VECTOR / LANE);
    while len - at >= COPIED * VECTOR + LANE {
        // SAFETY: as many bytes are left.
        let next = unsafe { four::<COPY>(dst.wrapping_add(at), src.wrapping_add(at)) };
        for (x, next) in x.iter_mut().zip(next) {
            *x = carry(next, *x, by);
        }
        at += COPIED * VECTOR;
    }
    (join(&x, (len - at) / LANE), at)
}

/// `sum` and the lanes at `src`, all carried onto the last.
///
/// # Safety
/// As [`run`], for that many lanes, at least one and at most `LANES_MAX + 1`.
#[inline]
#[target_feature(enable = "avx2,vpclmulqdq")]
unsafe fn lanes<const COPY: bool>(
    mut dst: *mut u8,
    mut src: *const u8,
    lanes: usize,
    mut sum: __m256i,
) -> __m128i {
    // SAFETY: the vectors and one or two lanes make up the lanes.
    unsafe {
        let mut after = lanes - 1;
        while after >= 2 {
            sum = carry(sum, take::<COPY, 0>(dst, src), factors(after));
            (dst, src) = (dst.wrapping_add(VECTOR), src.wrapping_add(VECTOR));
            after -= 2;
        }
        let last = if after == 1 {
            // The factors of the second lane are zero: it is taken as it is.
            let x = take::<COPY, 0>(dst, src);
            sum = carry(sum, x, factors(1));
            _mm256_extracti128_si256::<1>(x)
        } else {
            take_lane::<COPY>(dst, src)
        };
        let sum = _mm_xor_si128(
            _mm256_castsi256_si128(sum),
            _mm256_extracti128_si256::<1>(sum),
        );
        _mm_xor_si128(sum, last)
    }
}

/// Runs `len` bytes through `state`, copying them to `dst` if `COPY`.
///
/// # Safety
/// The processor has the features named; `src` is readable and, with `COPY`, `dst` is writable for
/// `len` bytes, at least 32; they do not overlap. Without `COPY`, nobody writes to `src` meanwhile.
#[target_feature(enable = "sse4.2,pclmulqdq,avx2,vpclmulqdq")]
pub(super) unsafe fn run<const COPY: bool>(
    mut dst: *mut u8,
    mut src: *const u8,
    len: usize,
    state: u32,
) -> u32 {
    // SAFETY: every part lies within the `left` bytes at `src` and `dst`.
    unsafe {
        if !COPY && THIRDS.contains(&len) {
            return pclmul::run::<COPY>(dst, src, len, state);
        }
        let odd = len % LANE;
        let state = sse42::below_16::<COPY>(dst, src, odd, state);
        (dst, src) = (dst.wrapping_add(odd), src.wrapping_add(odd));
        let mut left = len - odd;
        let sum = if left >= FOLD_COPIED_MIN {
            let (sum, taken) = folded::<COPY>(dst, src, left, state);
            (dst, src) = (dst.wrapping_add(taken), src.wrapping_add(taken));
            left -= taken;
            sum
        } else {
            // Apart from the first lane, in which it could be put as well: so that the lanes need
            // not wait for it. More than 8 bytes may be read where `at` points.
            let factor = _mm_loadl_epi64(FACTORS.at(left / LANE - 1).cast());
            let seed = _mm_cvtsi32_si128(state as i32);
            widened(_mm_clmulepi64_si128::<0x00>(seed, factor))
        };
        sse42::register(lanes::<COPY>(dst, src, left / LANE, sum))
    }
}

/// Runs a frame: its header, then `len` bytes of payload as [`run`] does.
///
/// # Safety
/// As [`run`].
#[target_feature(enable = "sse4.2,pclmulqdq,avx2,vpclmulqdq")]
pub(super) unsafe fn frame<const COPY: bool>(
    first: u64,
    second: u64,
    third: u64,
    dst: *mut u8,
    src: *const u8,
    len: usize,
) -> u32 {
    let state = sse42::header(first, second, third);
    // SAFETY: the caller's promises.
    unsafe { run::<COPY>(dst, src, len, state) }
}
