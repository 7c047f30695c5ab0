//! Carry-less multiplication of four 16-byte lanes at a time (VPCLMULQDQ on 64-byte vectors).
//!
//! Multiplying a lane by the right power of x carries it any distance forward, so all lanes of a
//! short message can be carried onto its last lane independently of each other, each with its own
//! factor: the time of a message is that of one multiplication and one reduction however many
//! lanes there are. Long messages first fold 256 bytes at a time into four vectors.

use std::arch::asm;
use std::arch::x86_64::*;
use std::ops::Range;

use super::batch::{one_by_one, parts};
use super::gf::FACTORS;
use super::kernel::Kernel;
use super::{HEADER_BYTES, header_words, side_by_side, sse42};

/// The payload lengths at which four frames' vectors beat their `crc32` chains.
const BATCH_VECTORS: Range<usize> = side_by_side::LEN_MAX - HEADER_BYTES + 1..LOOP_MIN;
/// From here on the message is folded into four vectors first.
const LOOP_MIN: usize = 592;
/// Bytes folded at a time by vectors and chains together.
const BLOCK: usize = 1024 + 256;
/// From here on the message's loads, or its stores if it is copied, begin at a cache line: those that cross
/// from one to the next take twice as long. (Intel: 1 MiB 0.8 of the time; 64 KiB, copied, 0.87.)
const ALIGN_MIN: usize = 8192;
/// Bytes left for after the last block: one fold by vectors alone and what has to follow that.
const REST_MIN: usize = 256 + 32;

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

/// Folds 256 bytes into four vectors, carrying these by `by`.
///
/// # Safety
/// As [`take`], for 256 bytes.
#[inline]
#[target_feature(enable = "avx512f,vpclmulqdq")]
unsafe fn fold<const COPY: bool>(x: &mut [__m512i; 4], dst: *mut u8, src: *const u8, by: __m512i) {
    // SAFETY: 256 bytes.
    unsafe {
        x[0] = carry(take::<COPY, 0>(dst, src), x[0], by);
        x[1] = carry(take::<COPY, 64>(dst, src), x[1], by);
        x[2] = carry(take::<COPY, 128>(dst, src), x[2], by);
        x[3] = carry(take::<COPY, 192>(dst, src), x[3], by);
    }
}

/// Folds a block, of which the last 256 bytes go through four chains of the `crc32` instruction at
/// the same time: they use units that the multiplication leaves idle. The vectors are left where
/// the chains start, and what the chains come to is returned: it belongs to the first lane after
/// the block. `lane` is the same from the block before, in which case `first_by` is 512 bytes.
///
/// # Safety
/// As [`take`] without a copy, for `BLOCK` bytes.
#[inline]
#[target_feature(enable = "sse4.2,pclmulqdq,avx512f,vpclmulqdq")]
unsafe fn fold_block(
    x: &mut [__m512i; 4],
    src: *const u8,
    first_by: __m512i,
    by: __m512i,
    lane: __m128i,
) -> __m128i {
    let null = std::ptr::null_mut();
    let mut chains = [0; 4];
    // SAFETY: four times 256 bytes for the vectors, then 64 bytes for each chain, make up a block;
    // 16 bytes may be read where `at` points.
    unsafe {
        for n in 0..4 {
            let by = if n == 0 { first_by } else { by };
            fold::<false>(x, null, src.wrapping_add(256 * n), by);
            if n == 0 {
                x[0] = _mm512_xor_si512(x[0], _mm512_zextsi128_si512(lane));
            }
            for (m, chain) in chains.iter_mut().enumerate() {
                for word in 0..2 {
                    let at = 1024 + 64 * m + 16 * n + 8 * word;
                    let word = sse42::take_u64::<false>(null, src.wrapping_add(at));
                    *chain = _mm_crc32_u64(*chain, word);
                }
            }
        }
        let mut lane = _mm_cvtsi64_si128(chains[3] as i64);
        for (m, chain) in chains[..3].iter().enumerate() {
            let factor = _mm_loadl_epi64(FACTORS.at(4 * (3 - m)).cast());
            let chain = _mm_cvtsi64_si128(*chain as i64);
            lane = _mm_xor_si128(lane, _mm_clmulepi64_si128::<0x00>(chain, factor));
        }
        lane
    }
}

/// Four lanes whose sum has the CRC register that `state` has after `len` bytes; copies the bytes
/// to `dst` if `COPY`.
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
        if left < LOOP_MIN {
            let rest = rest(left);
            return rest.sum::<COPY>(dst, src, rest.carry_seed(state));
        }
        let by_256 = _mm512_broadcast_i32x4(_mm_loadu_si128(FACTORS.at(16).cast()));
        let by_512 = _mm512_broadcast_i32x4(_mm_loadu_si128(FACTORS.at(32).cast()));
        let seed = _mm512_zextsi128_si512(_mm_cvtsi32_si128(state as i32));
        let mut x = [
            _mm512_xor_si512(take::<COPY, 0>(dst, src), seed),
            take::<COPY, 64>(dst, src),
            take::<COPY, 128>(dst, src),
            take::<COPY, 192>(dst, src),
        ];
        (dst, src, left) = (dst.wrapping_add(256), src.wrapping_add(256), left - 256);
        // When copying, the chains' stores of 8 bytes would cost more than the chains save.
        if !COPY && left >= BLOCK + REST_MIN {
            let mut by = by_256;
            let mut lane = _mm_setzero_si128();
            while left >= BLOCK + REST_MIN {
                lane = fold_block(&mut x, src, by, by_256, lane);
                by = by_512;
                (dst, src, left) = (
                    dst.wrapping_add(BLOCK),
                    src.wrapping_add(BLOCK),
                    left - BLOCK,
                );
            }
            fold::<false>(&mut x, dst, src, by_512);
            x[0] = _mm512_xor_si512(x[0], _mm512_zextsi128_si512(lane));
            (src, left) = (src.wrapping_add(256), left - 256);
        }
        while left > 256 + 16 {
            fold::<COPY>(&mut x, dst, src, by_256);
            (dst, src, left) = (dst.wrapping_add(256), src.wrapping_add(256), left - 256);
        }
        let lanes = left / 16;
        let mut sum = carry(_mm512_setzero_si512(), x[0], factors(lanes + 15));
        sum = carry(sum, x[1], factors(lanes + 11));
        sum = carry(sum, x[2], factors(lanes + 7));
        sum = carry(sum, x[3], factors(lanes + 3));
        rest(left).sum::<COPY>(dst, src, sum)
    }
}

/// What is to be done with a number of lanes, each carried onto the last of them.
struct Rest {
    /// Whole vectors that others follow.
    vectors: usize,
    /// The words in the last vector, which has 1 to 4 lanes.
    words: __mmask8,
    /// Those of its last lane, which stays where it is.
    last: __mmask8,
    /// The factors of its lanes.
    factors: __m512i,
    /// All lanes.
    lanes: usize,
}

/// # Panics
/// In a debug build, if `left` is not a multiple of 16 from 32 up.
#[inline]
#[target_feature(enable = "avx512f")]
fn rest(left: usize) -> Rest {
    debug_assert!(left >= 32 && left.is_multiple_of(16));
    let vectors = (left - 1) / 64;
    let end = left - 64 * vectors;
    let words = (0xFF_u32 >> (8 - end / 8)) as __mmask8;
    Rest {
        vectors,
        words,
        last: words & !(words >> 2),
        factors: factors(end / 16 - 1),
        lanes: left / 16,
    }
}

impl Rest {
    /// `state` before these lanes, carried onto the last. Apart from the first lane, in which it
    /// could be put as well: so that the lanes need not wait for it.
    #[inline]
    #[target_feature(enable = "pclmulqdq,avx512f")]
    fn carry_seed(&self, state: u32) -> __m512i {
        // SAFETY: more than 8 bytes may be read where `at` points.
        let factor = unsafe { _mm_loadl_epi64(FACTORS.at(self.lanes - 1).cast()) };
        let seed = _mm_cvtsi32_si128(state as i32);
        _mm512_zextsi128_si512(_mm_clmulepi64_si128::<0x00>(seed, factor))
    }

    /// `sum` and these lanes, which are at `src`.
    ///
    /// # Safety
    /// As [`run`], for the lanes.
    #[inline]
    #[target_feature(enable = "avx512f,vpclmulqdq")]
    unsafe fn sum<const COPY: bool>(
        &self,
        mut dst: *mut u8,
        mut src: *const u8,
        mut sum: __m512i,
    ) -> __m512i {
        // SAFETY: the vectors and the words of the last one make up the lanes.
        unsafe {
            for n in 0..self.vectors {
                let factors = factors(self.lanes - 1 - 4 * n);
                sum = carry(sum, take::<COPY, 0>(dst, src), factors);
                (dst, src) = (dst.wrapping_add(64), src.wrapping_add(64));
            }
            let x = take_some::<COPY>(dst, src, self.words);
            sum = carry(sum, x, self.factors);
            _mm512_mask_xor_epi64(sum, self.last, sum, x)
        }
    }
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
    unsafe {
        match len < ALIGN_MIN {
            true => end(sum::<COPY>(dst, src, len, state)),
            false => run_aligned::<COPY>(dst, src, len, state),
        }
    }
}

/// As [`run`], for `ALIGN_MIN` bytes and more: what lies before the first cache line, and what is left behind the last
/// lane, apart.
///
/// # Safety
/// As [`run`].
#[inline(never)]
#[target_feature(enable = "sse4.2,pclmulqdq,avx512f,avx512vl,vpclmulqdq")]
unsafe fn run_aligned<const COPY: bool>(
    dst: *mut u8,
    src: *const u8,
    len: usize,
    state: u32,
) -> u32 {
    let begin = if COPY { dst.cast_const() } else { src };
    let before = begin.addr().wrapping_neg() % 64;
    let behind = (len - before) % 16;
    let at = |at: usize| (dst.wrapping_add(at), src.wrapping_add(at));
    // SAFETY: the three parts make up `len` bytes, and the second is long.
    unsafe {
        let state = sse42::run::<COPY>(dst, src, before, state);
        let (to, from) = at(before);
        let state = end(sum::<COPY>(to, from, len - before - behind, state));
        let (to, from) = at(len - behind);
        sse42::below_16::<COPY>(to, from, behind, state)
    }
}

/// The register that four lanes come to.
#[inline]
#[target_feature(enable = "sse4.2,avx512f,avx512vl")]
fn end(lanes: __m512i) -> u32 {
    let half = _mm256_xor_si256(
        _mm512_castsi512_si256(lanes),
        _mm512_extracti64x4_epi64::<1>(lanes),
    );
    sse42::register(_mm_xor_si128(
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

/// The CRCs of four frames with `len` bytes of payload: their lanes are added up side by side, as a
/// transposition would have it.
///
/// # Safety
/// The processor has the features named; all four have `len` bytes of payload, which is in `BATCH_VECTORS`.
#[inline]
#[target_feature(enable = "sse4.2,pclmulqdq,avx512f,avx512vl,vpclmulqdq")]
unsafe fn four(frames: &[&[u8]; 4], len: usize, crcs: &mut [u32; 4]) {
    let odd = len & 15;
    let rest = rest(len - odd);
    let null = std::ptr::null_mut();
    let mut sums = [_mm512_setzero_si512(); 4];
    for (frame, sum) in frames.iter().zip(&mut sums) {
        let (header, payload) = parts(frame);
        let src = payload.as_ptr();
        // SAFETY: the caller vouches for `len` bytes; nothing is copied.
        unsafe {
            let [first, second, third] = header_words(header);
            let mut state = sse42::header(first, second, third);
            if odd != 0 {
                state = sse42::below_16::<false>(null, src, odd, state);
            }
            *sum = rest.sum::<false>(null, src.add(odd), rest.carry_seed(state));
        }
    }
    let [s0, s1, s2, s3] = sums;
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
    *crcs = [
        !sse42::register(_mm512_castsi512_si128(all)),
        !sse42::register(_mm512_extracti32x4_epi32::<1>(all)),
        !sse42::register(_mm512_extracti32x4_epi32::<2>(all)),
        !sse42::register(_mm512_extracti32x4_epi32::<3>(all)),
    ];
}

/// The CRCs of frames: as `first` takes them, which says how many; then four at a time if they are short, or equal
/// and not long.
#[target_feature(enable = "sse4.2,pclmulqdq,avx512f,avx512vl,vpclmulqdq")]
pub(super) fn batch(
    frames: &[[&[u8]; 4]],
    crcs: &mut [[u32; 4]],
    first: impl Fn(&[[&[u8]; 4]], &mut [[u32; 4]]) -> usize,
) {
    side_by_side::batch(frames, crcs, first, |frames, crcs| {
        let len = parts(frames[0]).1.len();
        if BATCH_VECTORS.contains(&len) && frames.iter().all(|frame| frame.len() == frames[0].len())
        {
            // SAFETY: this function has the features, and all four lengths are in range.
            unsafe { four(frames, len, crcs) };
        } else {
            one_by_one(frames, crcs, Kernel::Avx512);
        }
    });
}
