//! Frames of one length that lie one behind the other, each in one chain of the `crc32` instruction, the
//! length known to the compiler.
//!
//! A chain's steps wait for each other, but nothing in a frame waits for the frame before it, so the
//! processor works on as many chains at once as it has room for: eleven steps a frame take less than
//! five cycles here (Zen 5, two steps a cycle), more than four chains written side by side would allow.
//! What then costs is every instruction beside the steps, so a CRC is compared, or put in, where it was
//! just computed.

use std::arch::x86_64::_mm_crc32_u64;

use super::sse42::{take_u32, take_u64};
use super::{CRC_AT, HEADER_BYTES};

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

/// The CRC of a frame of a header and `WORDS` words.
///
/// # Safety
/// `start` may be read for that many bytes.
#[inline]
#[target_feature(enable = "sse4.2")]
unsafe fn frame<const WORDS: usize>(start: *const u8) -> u32 {
    let mut state = u64::from(u32::MAX);
    // SAFETY: the caller's promise; nothing is copied.
    unsafe {
        let word = |at: usize| take_u64::<false>(std::ptr::null_mut(), start.add(at));
        state = _mm_crc32_u64(state, word(0));
        state = _mm_crc32_u64(state, word(8));
        let id = take_u32::<false>(std::ptr::null_mut(), start.add(16));
        state = _mm_crc32_u64(state, u64::from(id));
        for index in 0..WORDS {
            state = _mm_crc32_u64(state, word(HEADER_BYTES + 8 * index));
        }
    }
    !(state as u32)
}

#[inline]
#[target_feature(enable = "sse4.2")]
fn count_good<const WORDS: usize>(bytes: &[u8]) -> usize {
    let frames = bytes.chunks_exact(const { HEADER_BYTES + 8 * WORDS });
    let mut good = 0;
    for bytes in frames {
        let start = bytes.as_ptr();
        // SAFETY: a frame has that length.
        let (crc, said) = unsafe {
            (
                frame::<WORDS>(start),
                take_u32::<false>(std::ptr::null_mut(), start.add(CRC_AT)),
            )
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
fn put_in<const WORDS: usize>(bytes: &mut [u8]) {
    for bytes in bytes.chunks_exact_mut(const { HEADER_BYTES + 8 * WORDS }) {
        // SAFETY: a frame has that length.
        let crc = unsafe { frame::<WORDS>(bytes.as_ptr()) };
        bytes[CRC_AT..HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
    }
}

/// How many of the frames of `frame_bytes` each, from the first on, have the CRC that they say. `None`:
/// there is no code for that length.
#[target_feature(enable = "sse4.2")]
pub(super) fn good(bytes: &[u8], frame_bytes: usize) -> Option<usize> {
    pick!(frame_bytes, count_good(bytes))
}

/// Puts their CRCs into frames of `frame_bytes` each. `None`: nothing was done, there is no code for
/// that length.
#[target_feature(enable = "sse4.2")]
pub(super) fn seal(bytes: &mut [u8], frame_bytes: usize) -> Option<()> {
    pick!(frame_bytes, put_in(bytes))
}
