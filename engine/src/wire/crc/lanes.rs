//! Frames of one length four at a time, each in a 16-byte lane of one of two vectors, the length known to
//! the compiler.
//!
//! A chain of the `crc32` instruction ([`super::row`]) takes as many steps as a frame has words, and
//! Intel's processors do one step in a cycle. Here a frame's words are multiplied and added up, lane by lane, and
//! only what these come to goes through a chain, with the last word if their number is odd: to seal 88 bytes takes
//! 1.4 ns instead of 2.7 (Granite Rapids). On Zen 5, which does two steps in a cycle, there is nothing to gain.
//!
//! What counts is how many operations there are for the three units that vectors, and steps, have in common. So
//! what a frame's register starts with, and that it is inverted at the end, is one constant with which the chain
//! starts; and with AVX-512 three summands are added up at once (which the compiler sees by itself).
//!
//! Tried there: vectors of four lanes take longer, since to have four lanes side by side keeps the unit busy
//! that multiplies, and what was stored as 64 bytes is slow to be read in parts. So does a chain that waits for
//! its own vector: the steps that wait take the places of those that could be done.

use std::arch::asm;
use std::arch::x86_64::*;

use super::gf::{self, FACTORS};
use super::kernel::Kernel;
use super::row::{self, Begin, half, pick, word};
use super::side_by_side::equal_by;
use super::{CRC_AT, HEADER_BYTES, WITHOUT_CRC};

/// Frames side by side.
const FRAMES: usize = 4;
/// Words of a lane.
const LANE_WORDS: usize = LANE / 8;
/// Bytes of a lane.
const LANE: usize = 16;
/// What of the header's second lane is not the CRC.
const SECOND_LANE_WITHOUT_CRC: [i64; 2] = [WITHOUT_CRC as i64, -1];

/// A value as it is, of which the compiler does not know where it comes from. What it knows to be in a vector already
/// it takes out of there, and what goes side by side into memory it puts together in a vector first: that keeps the
/// unit busy that multiplies.
#[inline(always)]
fn opaque(mut value: u32) -> u32 {
    // SAFETY: no instruction.
    unsafe {
        asm!("/* {0:e} */", inout(reg) value, options(pure, nomem, nostack, preserves_flags));
    }
    value
}

/// How many lanes a frame has that consist of whole words. One word may be left.
const fn lanes(words: usize) -> usize {
    (HEADER_BYTES / 8 + words) / LANE_WORDS
}

/// What the register starts with that the last lane is put through.
///
/// It stands for the one that all of a frame goes through, carried over the lanes before, and for the inversion at
/// the end, taken back over all that follows.
const fn initial(words: usize) -> u32 {
    let before = LANE_WORDS * (lanes(words) - 1);
    let behind = HEADER_BYTES / 8 + words - before;
    gf::times_x(u32::MAX, 64 * before as u32) ^ gf::over_x(u32::MAX, 64 * behind as u32)
}

/// Lanes of all frames as they come out of the vectors.
#[repr(align(64))]
struct Sums([u64; FRAMES * LANE_WORDS]);

/// 16 bytes at `at` of each of two frames.
///
/// # Safety
/// AVX2 is there; both may be read for 16 bytes at `at`.
#[inline(always)]
unsafe fn load(starts: [*const u8; 2], at: usize) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe {
        let [low, high] = starts.map(|start| _mm_loadu_si128(start.add(at).cast()));
        _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(low), high)
    }
}

/// Adds up the lanes of two frames, carried onto the last of them.
///
/// # Safety
/// The features of [`avx2`] are there; both may be read for as many lanes as [`lanes`] says.
#[inline(always)]
unsafe fn sum<const WORDS: usize>(starts: [*const u8; 2]) -> __m256i {
    let last = const { lanes(WORDS) - 1 };
    // SAFETY: the caller's promise; 16 bytes may be read where the factors lie.
    unsafe {
        let mut sum = load(starts, LANE * last);
        for lane in 0..last {
            let mut x = load(starts, LANE * lane);
            if lane == 1 {
                let [low, high] = SECOND_LANE_WITHOUT_CRC;
                x = _mm256_and_si256(x, _mm256_set_epi64x(high, low, high, low));
            }
            let factors = _mm_loadu_si128(FACTORS.at(last - lane).cast());
            let factors = _mm256_broadcastsi128_si256(factors);
            let first = _mm256_clmulepi64_epi128::<0x00>(x, factors);
            let second = _mm256_clmulepi64_epi128::<0x11>(x, factors);
            sum = _mm256_xor_si256(sum, _mm256_xor_si256(first, second));
        }
        sum
    }
}

/// The CRCs of four frames of a header and `WORDS` words.
///
/// # Safety
/// The features of [`avx2`] are there; each of `starts` may be read for that many bytes.
#[inline(always)]
unsafe fn four<const WORDS: usize>(starts: [*const u8; FRAMES]) -> [u32; FRAMES] {
    let [a, b, c, d] = starts;
    let mut sums = Sums([0; FRAMES * LANE_WORDS]);
    // SAFETY: the lanes and the words behind them make up a frame; the two vectors make up the sums.
    unsafe {
        let to = sums.0.as_mut_ptr().cast::<__m256i>();
        _mm256_store_si256(to, sum::<WORDS>([a, b]));
        _mm256_store_si256(to.add(1), sum::<WORDS>([c, d]));
    }
    let mut sums = &raw const sums.0;
    // Through memory: to take words out of vectors keeps the unit busy that multiplies.
    // SAFETY: no instruction. It may read what was stored, as far as the compiler knows.
    unsafe { asm!("/* {} */", inout(reg) sums, options(nostack, preserves_flags)) };
    // SAFETY: as above; `sums` points where it did.
    unsafe {
        let [a0, a1, b0, b1, c0, c1, d0, d1] = *sums;
        [
            end::<WORDS>([a0, a1], a),
            end::<WORDS>([b0, b1], b),
            end::<WORDS>([c0, c1], c),
            end::<WORDS>([d0, d1], d),
        ]
    }
}

/// The CRC of a frame from the sum of its lanes and the word behind them, if there is one.
///
/// # Safety
/// As [`four`].
#[inline(always)]
unsafe fn end<const WORDS: usize>(lane: [u64; LANE_WORDS], start: *const u8) -> u32 {
    // SAFETY: the caller's promise; what is read is a word of the frame.
    unsafe {
        let mut state = u64::from(const { initial(WORDS) });
        for sum in lane {
            state = _mm_crc32_u64(state, sum);
        }
        for at in const { LANE_WORDS * lanes(WORDS) }..const { HEADER_BYTES / 8 + WORDS } {
            state = _mm_crc32_u64(state, word(start, 8 * at));
        }
        opaque(state as u32)
    }
}

/// Where the frames of a group start.
#[inline(always)]
fn starts(group: &[u8]) -> [*const u8; FRAMES] {
    let frame_bytes = group.len() / FRAMES;
    [0, 1, 2, 3].map(|index| group[index * frame_bytes..].as_ptr())
}

/// As [`super::count_good`], for frames of a header and `WORDS` words.
///
/// # Safety
/// The features of [`avx2`] are there.
#[inline(always)]
unsafe fn count_good<const WORDS: usize>(bytes: &[u8], with_ids: bool) -> usize {
    let frame_bytes = HEADER_BYTES + 8 * WORDS;
    let Some(begin) = Begin::of(bytes) else {
        return 0;
    };
    let crc_at = opaque(CRC_AT as u32) as usize;
    let mut good = 0;
    for group in bytes.chunks_exact(FRAMES * frame_bytes) {
        let starts = starts(group);
        // SAFETY: the caller's promise; all have that length, and more than a header.
        let are_good = unsafe {
            let crcs = four::<WORDS>(starts);
            let mut are_of = true;
            let mut other = 0;
            for (start, crc) in starts.into_iter().zip(crcs) {
                are_of &= begin.is_of(start, with_ids);
                other |= half(start, crc_at) ^ crc;
            }
            are_of & (other == 0)
        };
        if !are_good {
            break;
        }
        good += FRAMES;
    }
    let rest = &bytes[good * frame_bytes..];
    // SAFETY: the caller's promise.
    good + unsafe { row::count_more::<WORDS>(rest, &begin, with_ids) }
}

/// Puts their CRCs into frames of a header and `WORDS` words.
///
/// # Safety
/// The features of [`avx2`] are there.
#[inline(always)]
unsafe fn put_in<const WORDS: usize>(bytes: &mut [u8]) {
    let frame_bytes = HEADER_BYTES + 8 * WORDS;
    let mut groups = bytes.chunks_exact_mut(FRAMES * frame_bytes);
    for group in &mut groups {
        // SAFETY: the caller's promise; all have that length.
        let crcs = unsafe { four::<WORDS>(starts(group)) };
        for (frame, crc) in group.chunks_exact_mut(frame_bytes).zip(crcs) {
            frame[CRC_AT..HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
        }
    }
    // SAFETY: the caller's promise.
    unsafe { row::put_in::<WORDS>(groups.into_remainder()) };
}

/// What needs more of the processor, compiled for what it may have.
macro_rules! compiled_for {
    ($name:ident, $features:literal) => {
        mod $name {
            use super::*;

            #[target_feature(enable = $features)]
            pub(super) fn good(bytes: &[u8], frame_bytes: usize, with_ids: bool) -> Option<usize> {
                // Of shorter ones a chain has three steps less: what all begin with is summed once.
                // SAFETY: the features are there.
                unsafe {
                    pick!(frame_bytes, count_good(bytes, with_ids): 5 6 7 8 9 10 11 12 13 14 15 16)
                }
            }

            #[target_feature(enable = $features)]
            pub(super) fn seal(bytes: &mut [u8], frame_bytes: usize) -> Option<()> {
                // SAFETY: the features are there.
                unsafe { pick!(frame_bytes, put_in(bytes): 3 4 5 6 7 8 9 10 11 12 13 14 15 16) }
            }

            #[target_feature(enable = $features)]
            pub(super) fn batch(frames: &[[&[u8]; 4]], crcs: &mut [[u32; 4]]) -> Option<usize> {
                let bytes = frames.first()?[0].len();
                pick!(bytes, equal(frames, crcs): 3 4 5 6 7 8 9 10 11 12 13 14 15 16)
            }

            // Here, since a closure has the features of the function around it.
            #[inline]
            #[target_feature(enable = $features)]
            fn equal<const WORDS: usize>(frames: &[[&[u8]; 4]], crcs: &mut [[u32; 4]]) -> usize {
                // SAFETY: the features are there; all four have that length.
                equal_by::<WORDS>(frames, crcs, |starts| unsafe { four::<WORDS>(starts) })
            }
        }
    };
}

compiled_for!(avx2, "sse4.2,pclmulqdq,avx2,vpclmulqdq");
compiled_for!(avx512, "sse4.2,pclmulqdq,avx2,vpclmulqdq,avx512f,avx512vl");

/// As [`super::count_good`]. `None`: there is no code for that length.
///
/// # Safety
/// The kernel is available and [`Kernel::has_lanes`].
#[inline(always)]
pub(super) unsafe fn good(
    kernel: Kernel,
    bytes: &[u8],
    frame_bytes: usize,
    with_ids: bool,
) -> Option<usize> {
    // SAFETY: the kernel's features are there.
    unsafe {
        match kernel {
            Kernel::Avx512 => avx512::good(bytes, frame_bytes, with_ids),
            _ => avx2::good(bytes, frame_bytes, with_ids),
        }
    }
}

/// Puts their CRCs into frames of `frame_bytes` each. `None`: nothing was done, there is no code for
/// that length.
///
/// # Safety
/// As [`good`].
#[inline(always)]
pub(super) unsafe fn seal(kernel: Kernel, bytes: &mut [u8], frame_bytes: usize) -> Option<()> {
    // SAFETY: as in `good`.
    unsafe {
        match kernel {
            Kernel::Avx512 => avx512::seal(bytes, frame_bytes),
            _ => avx2::seal(bytes, frame_bytes),
        }
    }
}

/// The CRCs of the first fours of frames, if these are all as long, and of a length that there is code
/// for; says how many.
///
/// # Safety
/// As [`good`].
#[inline(always)]
pub(super) unsafe fn batch(kernel: Kernel, frames: &[[&[u8]; 4]], crcs: &mut [[u32; 4]]) -> usize {
    // SAFETY: as in `good`.
    let done = unsafe {
        match kernel {
            Kernel::Avx512 => avx512::batch(frames, crcs),
            _ => avx2::batch(frames, crcs),
        }
    };
    done.unwrap_or(0)
}
