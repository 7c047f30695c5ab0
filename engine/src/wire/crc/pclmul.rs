//! Carry-less multiplication of one 16-byte lane at a time (PCLMULQDQ), for x86-64 processors
//! that cannot do it on wider vectors.

use std::arch::x86_64::*;

use super::chains;
use super::gf::FACTORS;
use super::sse42;

/// Bytes in the lanes: eight independent ones cover the multiplication's latency.
const STEP: usize = 128;
/// Chains beside the lanes, one more than cover the latency of the `crc32` instruction.
const CHAINS: usize = 4;
/// Bytes of each.
const CHAIN: usize = 96;
/// Bytes folded at a time, by chains and lanes together.
const BLOCK: usize = CHAINS * CHAIN + STEP;
/// From here on folding is better than three chains alone.
const FOLD_MIN: usize = 1024;
/// The most words that each of three chains may have: the first is carried over two of them, as
/// many lanes.
const THIRD_WORDS_MAX: usize = 35;
/// From here on three chains are better than one.
const THIRDS_MIN: usize = 72;

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

/// Folds a block: 384 bytes in four chains of the `crc32` instruction, then 128 bytes in the lanes,
/// which are carried over the chains. The chains use a unit that the multiplication leaves idle;
/// what they come to belongs to the first lane after them.
///
/// # Safety
/// As [`run`] without a copy, for `BLOCK` bytes.
#[inline]
#[target_feature(enable = "sse4.2,pclmulqdq")]
unsafe fn fold_block(lanes: &mut [__m128i; STEP / 16], src: *const u8) {
    let null = std::ptr::null_mut();
    let mut chains = [0; CHAINS];
    // SAFETY: the chains and the lanes make up a block; 16 bytes may be read where `at` points.
    unsafe {
        for (n, lane) in lanes.iter_mut().enumerate() {
            let at = CHAINS * CHAIN + 16 * n;
            let next = _mm_loadu_si128(src.wrapping_add(at).cast());
            *lane = carry(next, *lane, BLOCK / 16);
            // Their steps are spread over those of the lanes.
            for word in CHAIN / 8 * n / 8..CHAIN / 8 * (n + 1) / 8 {
                for (m, chain) in chains.iter_mut().enumerate() {
                    let at = CHAIN * m + 8 * word;
                    let word = sse42::take_u64::<false>(null, src.wrapping_add(at));
                    *chain = _mm_crc32_u64(*chain, word);
                }
            }
        }
        let mut sum = _mm_cvtsi64_si128(chains[CHAINS - 1] as i64);
        for (m, chain) in chains[..CHAINS - 1].iter().enumerate() {
            let factor = _mm_loadl_epi64(FACTORS.at(CHAIN / 16 * (CHAINS - 1 - m)).cast());
            let chain = _mm_cvtsi64_si128(*chain as i64);
            sum = _mm_xor_si128(sum, _mm_clmulepi64_si128::<0x00>(chain, factor));
        }
        lanes[0] = _mm_xor_si128(lanes[0], sum);
    }
}

/// Runs whole blocks and the 128 bytes before them through `state`.
///
/// # Safety
/// As [`run`] without a copy, for `STEP + blocks * BLOCK` bytes.
#[target_feature(enable = "sse4.2,pclmulqdq")]
unsafe fn fold(mut src: *const u8, blocks: usize, state: u32) -> u32 {
    // SAFETY: every load lies within those bytes.
    unsafe {
        let mut lanes = [_mm_setzero_si128(); STEP / 16];
        for (n, lane) in lanes.iter_mut().enumerate() {
            *lane = _mm_loadu_si128(src.wrapping_add(16 * n).cast());
        }
        lanes[0] = _mm_xor_si128(lanes[0], _mm_cvtsi32_si128(state as i32));
        src = src.wrapping_add(STEP);
        for _ in 0..blocks {
            fold_block(&mut lanes, src);
            src = src.wrapping_add(BLOCK);
        }
        let mut sum = lanes[STEP / 16 - 1];
        for (n, lane) in lanes[..STEP / 16 - 1].iter().enumerate() {
            sum = carry(sum, *lane, STEP / 16 - 1 - n);
        }
        sse42::register(sum)
    }
}

/// Runs three times `words` words through `state`, in three chains side by side.
///
/// # Safety
/// As [`run`], for `24 * words` bytes; `words` is from 1 to `THIRD_WORDS_MAX`.
#[inline]
#[target_feature(enable = "sse4.2,pclmulqdq")]
unsafe fn thirds<const COPY: bool>(
    mut dst: *mut u8,
    mut src: *const u8,
    words: usize,
    state: u32,
) -> u32 {
    let third = 8 * words;
    let (mut dst2, mut src2) = (dst.wrapping_add(third), src.wrapping_add(third));
    let (mut dst3, mut src3) = (dst2.wrapping_add(third), src2.wrapping_add(third));
    let (mut first, mut second, mut last) = (state, 0, 0);
    // SAFETY: each chain takes `words` words, the last of them apart.
    unsafe {
        let mut left = words - 1;
        while left > 0 {
            // Copying, it saves address arithmetic to take four words at a time.
            let count = if COPY && left >= 4 { 4 } else { 1 };
            first = sse42::words::<COPY>(&mut dst, &mut src, count, first);
            second = sse42::words::<COPY>(&mut dst2, &mut src2, count, second);
            last = sse42::words::<COPY>(&mut dst3, &mut src3, count, last);
            left -= count;
        }
        first = sse42::words::<COPY>(&mut dst, &mut src, 1, first);
        second = sse42::words::<COPY>(&mut dst2, &mut src2, 1, second);
        let joined = chains::join(first, 2 * words) ^ chains::join(second, words);
        let word = sse42::take_u64::<COPY>(dst3, src3) ^ joined;
        _mm_crc32_u64(u64::from(last), word) as u32
    }
}

/// Runs `len` bytes through `state`, copying them to `dst` if `COPY`.
///
/// # Safety
/// The processor has the features named; `src` is readable and, with `COPY`, `dst` is writable for
/// `len` bytes; they do not overlap. Without `COPY`, nobody writes to `src` meanwhile.
#[target_feature(enable = "sse4.2,pclmulqdq")]
pub(super) unsafe fn run<const COPY: bool>(
    mut dst: *mut u8,
    mut src: *const u8,
    len: usize,
    mut state: u32,
) -> u32 {
    let mut left = len;
    // SAFETY: every part lies within the `left` bytes at `src` and `dst`.
    unsafe {
        // When copying, the lanes' stores would cost more than the lanes save.
        if !COPY && left >= FOLD_MIN {
            let blocks = (left - STEP) / BLOCK;
            state = fold(src, blocks, state);
            let done = STEP + blocks * BLOCK;
            (src, left) = (src.wrapping_add(done), left - done);
        }
        // As long as it is worth joining them; fewer words than that go one by one. Each turn
        // takes at least 24 of the bytes.
        while left >= THIRDS_MIN {
            let words = (left / 24).min(THIRD_WORDS_MAX);
            state = thirds::<COPY>(dst, src, words, state);
            let done = 24 * words;
            (dst, src, left) = (dst.wrapping_add(done), src.wrapping_add(done), left - done);
        }
        sse42::run::<COPY>(dst, src, left, state)
    }
}

/// Runs a frame: its header, then `len` bytes of payload as [`run`] does.
///
/// # Safety
/// As [`run`].
#[target_feature(enable = "sse4.2,pclmulqdq")]
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
