//! Frames of one length that lie one behind the other, each in one chain of the `crc32` instruction, the
//! length known to the compiler.
//!
//! A chain's steps wait for each other, but nothing in a frame waits for the frame before it, so the
//! processor works on as many chains at once as it has room for: eleven steps a frame take less than
//! five cycles here (Zen 5, two steps a cycle), more than four chains written side by side would allow.
//! What then costs is every instruction beside the steps, so a CRC is compared, or put in, where it was
//! just computed.

use std::arch::x86_64::{_mm_crc32_u32, _mm_crc32_u64};

use super::sse42::{take_u32, take_u64};
use super::{CRC_AT, HEADER_BYTES, ID_AT, LENGTH_AT};

/// Calls the code for frames of this length, if there is any; otherwise the answer is `None`.
macro_rules! pick {
    ($frame_bytes:expr, $equal:ident $arguments:tt) => {
        pick!($frame_bytes, $equal $arguments: 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16)
    };
    ($frame_bytes:expr, $equal:ident $arguments:tt: $($words:literal)*) => {
        match $frame_bytes.wrapping_sub(HEADER_BYTES) {
            $(bytes if bytes == 8 * $words => Some($equal::<$words> $arguments),)*
            _ => None,
        }
    };
}
pub(super) use pick;

#[inline(always)]
pub(super) unsafe fn word(start: *const u8, at: usize) -> u64 {
    // SAFETY: the caller vouches for 8 bytes there; nothing is copied.
    unsafe { take_u64::<false>(std::ptr::null_mut(), start.add(at)) }
}

#[inline(always)]
pub(super) unsafe fn half(start: *const u8, at: usize) -> u32 {
    // SAFETY: as in `word`, for 4.
    unsafe { take_u32::<false>(std::ptr::null_mut(), start.add(at)) }
}

/// Runs `WORDS` words of payload through the register that a header left. Returns the CRC.
///
/// # Safety
/// `start` may be read for a header and that many words.
#[inline]
#[target_feature(enable = "sse4.2")]
unsafe fn payload<const WORDS: usize>(mut state: u64, start: *const u8) -> u32 {
    for index in 0..WORDS {
        // SAFETY: the caller's promise.
        state = _mm_crc32_u64(state, unsafe { word(start, HEADER_BYTES + 8 * index) });
    }
    !(state as u32)
}

/// What all frames of a row begin with.
pub(super) struct Begin {
    word: u64,
    length: u32,
}

impl Begin {
    /// What the first one begins with, if there is one.
    pub(super) fn of(bytes: &[u8]) -> Option<Begin> {
        let first = bytes.first_chunk::<HEADER_BYTES>()?.as_ptr();
        // SAFETY: a header is there.
        let (word, length) = unsafe { (word(first, 0), half(first, LENGTH_AT)) };
        Some(Begin { word, length })
    }

    /// Whether a frame begins so, and has an id if it must.
    ///
    /// # Safety
    /// `start` may be read for a header.
    #[inline(always)]
    pub(super) unsafe fn is_of(&self, start: *const u8, with_ids: bool) -> bool {
        // SAFETY: the caller's promise.
        unsafe {
            let other =
                (word(start, 0) ^ self.word) | u64::from(half(start, LENGTH_AT) ^ self.length);
            // Both, since a jump for each costs more than what it may save.
            (other == 0) & ((word(start, ID_AT) != 0) | !with_ids)
        }
    }
}

#[inline]
#[target_feature(enable = "sse4.2")]
fn count_good<const WORDS: usize>(bytes: &[u8], with_ids: bool) -> usize {
    match Begin::of(bytes) {
        Some(begin) => count_more::<WORDS>(bytes, &begin, with_ids),
        None => 0,
    }
}

/// As [`super::count_good`], of frames behind others that began so.
#[inline]
#[target_feature(enable = "sse4.2")]
pub(super) fn count_more<const WORDS: usize>(bytes: &[u8], begin: &Begin, with_ids: bool) -> usize {
    // What is the same in all is summed once.
    let state = _mm_crc32_u64(u64::from(u32::MAX), begin.word);
    let state = u64::from(_mm_crc32_u32(state as u32, begin.length));
    let mut good = 0;
    for frame in bytes.chunks_exact(const { HEADER_BYTES + 8 * WORDS }) {
        let start = frame.as_ptr();
        // SAFETY: a frame has its header and words.
        let (said, crc) = unsafe {
            if !begin.is_of(start, with_ids) {
                break;
            }
            // The CRC field counts as zero.
            let state = _mm_crc32_u32(_mm_crc32_u64(state, word(start, ID_AT)) as u32, 0);
            let crc = payload::<WORDS>(u64::from(state), start);
            (half(start, CRC_AT), crc)
        };
        if crc != said {
            break;
        }
        good += 1;
    }
    good
}

#[inline]
#[target_feature(enable = "sse4.2")]
pub(super) fn put_in<const WORDS: usize>(bytes: &mut [u8]) {
    for frame in bytes.chunks_exact_mut(const { HEADER_BYTES + 8 * WORDS }) {
        let start = frame.as_ptr();
        // SAFETY: a frame has that length.
        let crc = unsafe {
            let state = _mm_crc32_u64(u64::from(u32::MAX), word(start, 0));
            let state = _mm_crc32_u64(state, word(start, 8));
            let state = _mm_crc32_u64(state, u64::from(half(start, 16)));
            payload::<WORDS>(state, start)
        };
        frame[CRC_AT..HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
    }
}

/// As [`super::count_good`]. `None`: there is no code for that length.
#[target_feature(enable = "sse4.2")]
pub(super) fn good(bytes: &[u8], frame_bytes: usize, with_ids: bool) -> Option<usize> {
    pick!(frame_bytes, count_good(bytes, with_ids))
}

/// Puts their CRCs into frames of `frame_bytes` each. `None`: nothing was done, there is no code for
/// that length.
#[target_feature(enable = "sse4.2")]
pub(super) fn seal(bytes: &mut [u8], frame_bytes: usize) -> Option<()> {
    pick!(frame_bytes, put_in(bytes))
}
