//! Frames four at a time, each in a chain of the `crc32` instruction of its own: what keeps its unit
//! busy while each chain waits for its last result.
//!
//! The unit does one step per cycle, so there is nothing to gain but what stands between the steps:
//! frames that are equally long, as they mostly are, go through code without anything else. Of
//! others, each sums its odd bytes first, for which one more step will do; then all consist of
//! words.

use std::arch::x86_64::_mm_crc32_u64;

use super::row::pick;
use super::sse42::{take_u32, take_u64};
use super::{HEADER_BYTES, SHORT_BYTES_MAX};

/// The longest frames that are summed so; for longer ones, other kernels are better.
pub(super) const LEN_MAX: usize = SHORT_BYTES_MAX;

/// The registers of four frames.
type States = [u64; 4];

/// Runs the 8 bytes at `offset` of each of `starts` through the registers.
///
/// # Safety
/// Each of `starts` may be read for 8 bytes at `offset`.
#[inline]
#[target_feature(enable = "sse4.2")]
unsafe fn step(states: &mut States, starts: &[*const u8; 4], offset: usize) {
    for (state, start) in states.iter_mut().zip(starts) {
        // SAFETY: the caller's promise; nothing is copied.
        let word = unsafe { take_u64::<false>(std::ptr::null_mut(), start.add(offset)) };
        *state = _mm_crc32_u64(*state, word);
    }
}

/// The registers after the headers, whose CRC fields count as zero.
///
/// # Safety
/// Each of `starts` may be read for `HEADER_BYTES`.
#[inline]
#[target_feature(enable = "sse4.2")]
unsafe fn headers(starts: &[*const u8; 4]) -> States {
    let mut states = [u64::from(u32::MAX); 4];
    // SAFETY: all within the header.
    unsafe {
        step(&mut states, starts, 0);
        step(&mut states, starts, 8);
        for (state, start) in states.iter_mut().zip(starts) {
            let word = take_u32::<false>(std::ptr::null_mut(), start.add(16));
            *state = _mm_crc32_u64(*state, u64::from(word));
        }
    }
    states
}

/// Runs the words from `from` to `to` through the registers.
///
/// # Safety
/// Each of `starts` may be read from `from` to `to`, which are multiples of 8.
#[inline]
#[target_feature(enable = "sse4.2")]
unsafe fn words(states: &mut States, starts: &[*const u8; 4], from: usize, to: usize) {
    let mut at = from;
    // SAFETY: all below `to`.
    unsafe {
        // Five are what a frame of 64 bytes has after its header.
        while at + 40 <= to {
            step(states, starts, at);
            step(states, starts, at + 8);
            step(states, starts, at + 16);
            step(states, starts, at + 24);
            step(states, starts, at + 32);
            at += 40;
        }
        while at < to {
            step(states, starts, at);
            at += 8;
        }
    }
}

/// Runs the first `odd` bytes after a header, fewer than 8, through the register that the header
/// left.
///
/// Zeros change nothing in a register of zero. So the bytes, added to as many of the register, go
/// last in a word of which the rest is zero; the register's other bytes move down by as many.
///
/// # Safety
/// `start` may be read for `HEADER_BYTES + odd`.
#[inline]
#[target_feature(enable = "sse4.2")]
unsafe fn odd_bytes(state: u64, start: *const u8, odd: usize) -> u64 {
    let bits = 8 * odd as u32;
    // SAFETY: the 8 bytes that end with the odd ones: the others are of the header.
    let word =
        unsafe { take_u64::<false>(std::ptr::null_mut(), start.add(HEADER_BYTES - 8 + odd)) };
    let rest = 64 - bits;
    let last = (word.unbounded_shr(rest) ^ state).unbounded_shl(rest);
    _mm_crc32_u64(0, last) ^ (state >> bits)
}

/// The CRCs of four frames of a header and `WORDS` words. With the length known, nothing is left of the
/// loops and of what counts in them.
///
/// # Safety
/// Each of `starts` may be read for that many bytes.
#[inline]
#[target_feature(enable = "sse4.2")]
unsafe fn four<const WORDS: usize>(starts: [*const u8; 4]) -> [u32; 4] {
    // SAFETY: the caller's promise.
    let states = unsafe {
        let mut states = headers(&starts);
        for word in 0..WORDS {
            step(&mut states, &starts, HEADER_BYTES + 8 * word);
        }
        states
    };
    states.map(|state| !(state as u32))
}

/// The CRCs of frames of a header and `WORDS` words, as `four` computes them: of as many fours from the first on
/// as have that length; says how many.
///
/// Without features of its own, so that it has those of whoever calls it, and `four` can be put in line.
#[inline(always)]
pub(super) fn equal_by<const WORDS: usize>(
    frames: &[[&[u8]; 4]],
    crcs: &mut [[u32; 4]],
    four: impl Fn([*const u8; 4]) -> [u32; 4],
) -> usize {
    let mut count = 0;
    let mut rest = frames;
    while let Some((frames, more)) = rest.split_first() {
        if frames
            .iter()
            .any(|frame| frame.len() != HEADER_BYTES + 8 * WORDS)
        {
            break;
        }
        crcs[count] = four(frames.map(<[u8]>::as_ptr));
        count += 1;
        rest = more;
    }
    count
}

#[inline]
#[target_feature(enable = "sse4.2")]
fn equal<const WORDS: usize>(frames: &[[&[u8]; 4]], crcs: &mut [[u32; 4]]) -> usize {
    // SAFETY: all four have that length.
    equal_by::<WORDS>(frames, crcs, |starts| unsafe { four::<WORDS>(starts) })
}

/// The CRCs of the first fours of frames, if these are all as long, and of a length that there is code
/// for; says how many.
///
/// # Panics
/// If there are no frames.
#[inline]
#[target_feature(enable = "sse4.2")]
fn equals(frames: &[[&[u8]; 4]], crcs: &mut [[u32; 4]]) -> usize {
    pick!(frames[0][0].len(), equal(frames, crcs)).unwrap_or(0)
}

/// The CRCs of four frames, if they are short enough to be summed here; otherwise `crcs` is left
/// as it is, and the answer is false.
///
/// # Panics
/// If a frame is shorter than a header.
#[inline(never)]
#[target_feature(enable = "sse4.2")]
fn unequal(frames: &[&[u8]; 4], crcs: &mut [u32; 4]) -> bool {
    let [a, b, c, d] = frames.map(<[u8]>::len);
    if a.max(b).max(c.max(d)) > LEN_MAX {
        return false;
    }
    let shortest = a.min(b).min(c.min(d));
    assert!(shortest >= HEADER_BYTES, "a frame has a header");
    // Without the odd bytes, which are left out at the start: counted from behind them.
    let common = shortest & !7;
    let mut starts = frames.map(<[u8]>::as_ptr);
    // SAFETY: a frame is a header, its odd bytes, and words up to its end; of header and words,
    // the shortest has `common` bytes.
    unsafe {
        let mut states = headers(&starts);
        if (a | b | c | d) & 7 != 0 {
            for ((state, start), frame) in states.iter_mut().zip(&mut starts).zip(frames) {
                let odd = frame.len() & 7;
                *state = odd_bytes(*state, *start, odd);
                *start = start.add(odd);
            }
        }
        words(&mut states, &starts, HEADER_BYTES, common);
        for ((state, start), frame) in states.iter_mut().zip(&starts).zip(frames) {
            let mut at = common;
            while at + 8 <= frame.len() {
                let word = take_u64::<false>(std::ptr::null_mut(), start.add(at));
                *state = _mm_crc32_u64(*state, word);
                at += 8;
            }
        }
        *crcs = states.map(|state| !(state as u32));
    }
    true
}

/// The CRCs of frames: as `first` takes them, which says how many; then four at a time while they are short,
/// else by `others`.
///
/// # Panics
/// If a frame is shorter than a header.
#[inline]
#[target_feature(enable = "sse4.2")]
pub(super) fn batch(
    frames: &[[&[u8]; 4]],
    crcs: &mut [[u32; 4]],
    first: impl Fn(&[[&[u8]; 4]], &mut [[u32; 4]]) -> usize,
    others: impl Fn(&[&[u8]; 4], &mut [u32; 4]),
) {
    let mut at = 0;
    // Each turn takes at least one four.
    while at < frames.len() {
        at += first(&frames[at..], &mut crcs[at..]);
        if at == frames.len() {
            break;
        }
        match equals(&frames[at..], &mut crcs[at..]) {
            0 => {
                if !unequal(&frames[at], &mut crcs[at]) {
                    others(&frames[at], &mut crcs[at]);
                }
                at += 1;
            }
            count => at += count,
        }
    }
}
