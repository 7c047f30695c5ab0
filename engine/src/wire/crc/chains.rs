//! Three chains of the `crc32` instruction, joined by carry-less multiplication: for messages too
//! short for vectors.
//!
//! One chain takes 3 cycles for every 8 bytes, though the unit could start a step every cycle. Cut
//! in three, a message is done in little more than a third of the time: the first two parts are
//! multiplied by the power of x that carries them onto the last word of the third. There is code
//! for every number of words, so that nothing is left of loops and the factors are constants.

use std::arch::x86_64::*;

use super::gf::FACTORS;
use super::sse42;

/// The most bytes that there is code for.
pub(super) const LEN_MAX: usize = 199;

/// From here on, in words and counting those summed already, three chains beat one. A chain that
/// comes late gains less.
const fn words_min(lead: usize) -> usize {
    if lead == 0 { 9 } else { 10 }
}

/// Joining a chain costs as much time as this many words of another.
const JOIN_WORDS: usize = 5;

/// What a register before `words` more words adds to the last of them.
#[inline]
#[target_feature(enable = "sse4.2,pclmulqdq")]
pub(super) fn join(state: u32, words: usize) -> u64 {
    let factor = _mm_cvtsi64_si128(FACTORS.word(words) as i64);
    let product = _mm_clmulepi64_si128::<0x00>(_mm_cvtsi32_si128(state as i32), factor);
    _mm_cvtsi128_si64(product) as u64
}

/// Runs `WORDS` words through `state`, `LEAD` words having gone into it just before: it comes late
/// by as much, so its own part of the message is shorter by as much.
///
/// # Safety
/// As [`run`].
#[inline]
#[target_feature(enable = "sse4.2,pclmulqdq")]
unsafe fn words<const COPY: bool, const LEAD: usize, const WORDS: usize>(
    mut dst: *mut u8,
    mut src: *const u8,
    state: u32,
) -> u32 {
    // SAFETY: the parts make up `WORDS` words.
    unsafe {
        if WORDS + LEAD < words_min(LEAD) {
            return sse42::words::<COPY>(&mut dst, &mut src, WORDS, state);
        }
        let third = (WORDS + LEAD - JOIN_WORDS) / 3;
        let short = third.saturating_sub(LEAD);
        let rest = WORDS - short - third;
        let first = sse42::words::<COPY>(&mut dst, &mut src, short, state);
        let second = sse42::words::<COPY>(&mut dst, &mut src, third, 0);
        let joined = join(first, third + rest) ^ join(second, rest);
        let state = sse42::words::<COPY>(&mut dst, &mut src, rest - 1, 0);
        let word = sse42::take_u64::<COPY>(dst, src) ^ joined;
        _mm_crc32_u64(u64::from(state), word) as u32
    }
}

/// Picks the code for `$len / 8` words.
macro_rules! pick {
    ($lead:literal, $dst:ident, $src:ident, $len:ident, $state:ident: $($words:literal)*) => {{
        let state = match $len / 8 {
            $($words => words::<COPY, $lead, $words>($dst, $src, $state),)*
            _ => {
                // Not reached: see `LEN_MAX`. Right all the same.
                return sse42::run::<COPY>($dst, $src, $len, $state);
            }
        };
        let whole = $len & !7;
        sse42::last::<COPY>($dst.wrapping_add(whole), $src.wrapping_add(whole), $len, state)
    }};
}

/// Runs `len` bytes through `state`, copying them to `dst` if `COPY`.
///
/// # Safety
/// The processor has the features named; `src` is readable and, with `COPY`, `dst` is writable for
/// `len` bytes; they do not overlap. Without `COPY`, nobody writes to `src` meanwhile.
#[target_feature(enable = "sse4.2,pclmulqdq")]
pub(super) unsafe fn run<const COPY: bool>(
    dst: *mut u8,
    src: *const u8,
    len: usize,
    state: u32,
) -> u32 {
    // SAFETY: the caller's promises.
    unsafe {
        pick!(0, dst, src, len, state:
            0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24)
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
    unsafe {
        pick!(3, dst, src, len, state:
            0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24)
    }
}
