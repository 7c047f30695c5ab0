//! Copies between private memory and a ring.

use super::layout::WORD;
use super::ring::LINE;
use crate::wire::{HEADER_BYTES, Header, STEP_BYTES, crc};

/// How much of a frame's payload is in the first line of a record that begins with the frame.
const HEAD_BYTES: usize = LINE - WORD - HEADER_BYTES;

/// From here on a frame's payload goes into a ring as a string, where that is fast.
const PAYLOAD_STRING_MIN: usize = 1024;
/// The same of bytes that are summed already. Answers in a row stay below it: their lines come back soon.
const STRING_MIN: usize = 12 * 1024;

/// Copies `length` bytes in steps: see [`STEP_BYTES`].
///
/// # Safety
/// `from` is readable and `to` writable for `length` bytes, and they do not overlap. One of them
/// may be memory that another process writes to: then the bytes are whatever they are.
#[inline]
pub(super) unsafe fn copy(from: *const u8, to: *mut u8, length: usize) {
    let mut at = 0;
    // Each turn copies at least one byte.
    while at < length {
        let step = (length - at).min(STEP_BYTES);
        // SAFETY: the step ends within `length`.
        unsafe { std::ptr::copy_nonoverlapping(from.add(at), to.add(at), step) };
        at += step;
    }
}

/// Copies a record's data, which are private, into a ring, those in the record's first line last.
///
/// The consumer polls that line, and so takes it away from whoever writes to it before the commit: then it has to be
/// fetched twice. (Granite Rapids: p99 of 64 bytes 0.81 times, of 128 and 256 bytes 0.75 and 0.82, p50 of 16 KiB 0.92.)
///
/// # Safety
/// `to` is writable for as many bytes, which do not overlap.
#[inline]
pub(super) unsafe fn copy_in(bytes: &[u8], to: *mut u8) {
    let (head, rest) = bytes.split_at(bytes.len().min(LINE - WORD));
    // SAFETY: the caller's promise.
    unsafe {
        let to_rest = to.add(head.len());
        match goes_as_string(bytes.len()) {
            true => copy_string(rest, to_rest),
            false => copy(rest.as_ptr(), to_rest, rest.len()),
        }
        stores_stay_in_order();
        copy(head.as_ptr(), to, head.len());
    }
}

/// Keeps the compiler from writing later what comes before. That is about speed; what makes a record visible is its
/// commit.
#[inline(always)]
fn stores_stay_in_order() {
    std::sync::atomic::compiler_fence(std::sync::atomic::Ordering::Release);
}

/// As [`copy_in`], of a piece of a frame, with the CRC: `sum` is that of what came before, and the result that of both.
///
/// # Safety
/// As [`copy_in`].
#[inline]
pub(super) unsafe fn copy_summed_in(bytes: &[u8], to: *mut u8, sum: u32) -> u32 {
    // SAFETY: the caller's promise. The bytes are private: read twice, they are the same.
    unsafe {
        if bytes.len() >= PAYLOAD_STRING_MIN && strings_are_fast() {
            let sum = crc::append(sum, bytes);
            copy_string(bytes, to);
            sum
        } else {
            crc::copy_raw(to, bytes.as_ptr(), bytes.len(), sum)
        }
    }
}

/// Whether [`copy_in`] copies so many bytes as a string.
#[inline]
pub(super) fn goes_as_string(bytes: usize) -> bool {
    bytes >= STRING_MIN && strings_are_fast()
}

/// As [`copy_in`], of the payload of a frame with which a record begins; returns the CRC of the frame.
///
/// # Safety
/// As [`copy_in`].
#[inline(always)]
pub(super) unsafe fn copy_payload_in(header: &Header, payload: &[u8], to: *mut u8) -> u32 {
    let words = header.to_words();
    // SAFETY: the caller's promise. The payload is private: read twice, it is the same.
    unsafe {
        if payload.len() <= HEAD_BYTES {
            return crc::frame_copy_raw(words, to, payload.as_ptr(), payload.len());
        }
        copy_behind_head(payload, to);
        stores_stay_in_order();
        let crc = crc::frame_words_crc(words, payload);
        std::ptr::copy_nonoverlapping(payload.as_ptr(), to, HEAD_BYTES);
        crc
    }
}

/// Copies what of a payload is not in its record's first line, and writes nothing into that.
///
/// # Safety
/// As [`copy_in`]; the payload has more than [`HEAD_BYTES`].
#[inline(always)]
unsafe fn copy_behind_head(payload: &[u8], to: *mut u8) {
    let rest = &payload[HEAD_BYTES..];
    let (from, length) = (rest.as_ptr(), rest.len());
    // SAFETY: within the rest, and as much of `to` behind the head; the halves make up the rest.
    unsafe {
        let to = to.add(HEAD_BYTES);
        match length {
            // In place, since most messages are as short as this.
            33..=64 => crc::copy_halves::<32>(from, to, length),
            17..=32 => crc::copy_halves::<16>(from, to, length),
            9..=16 => crc::copy_halves::<8>(from, to, length),
            5..=8 => crc::copy_halves::<4>(from, to, length),
            3..=4 => crc::copy_halves::<2>(from, to, length),
            1..=2 => crc::copy_halves::<1>(from, to, length),
            _ if payload.len() >= PAYLOAD_STRING_MIN && strings_are_fast() => copy_string(rest, to),
            _ => copy(from, to, length),
        }
    }
}

/// Whether a string copy is the fast way into lines that another core has read. It takes such a line over
/// without fetching what is in it, which vectors do: with Zen 5 1 MiB takes 0.43 of the time when the
/// cores are far apart, 16 KiB 0.79 when they are near; with Granite Rapids 4 KiB takes 0.75. With Zen 3 it takes
/// nine times as long; so only where the processor has what that one has not.
#[inline]
fn strings_are_fast() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("vpclmulqdq");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// As [`copy_in`].
///
/// # Safety
/// As [`copy_in`].
#[cfg(target_arch = "x86_64")]
#[inline]
unsafe fn copy_string(bytes: &[u8], to: *mut u8) {
    // SAFETY: `bytes` is readable and by the caller's promise `to` is writable for its length; the direction
    // flag is clear between statements, which is what the ABI asks for.
    unsafe {
        std::arch::asm!(
            "rep movsb",
            inout("rcx") bytes.len() => _,
            inout("rsi") bytes.as_ptr() => _,
            inout("rdi") to => _,
            options(nostack, preserves_flags),
        );
    }
}

#[cfg(not(target_arch = "x86_64"))]
unsafe fn copy_string(bytes: &[u8], to: *mut u8) {
    // SAFETY: the caller's promise.
    unsafe { copy(bytes.as_ptr(), to, bytes.len()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Flags;

    #[test]
    fn all_ways_copy_all_bytes_and_no_more() {
        let bytes: Vec<u8> = (0..40_000_u32).map(|n| (n * 7 / 3) as u8).collect();
        for length in [
            0, 1, 31, 32, 33, 55, 56, 57, 63, 64, 65, 95, 96, 97, 1023, 1024, 1025, 2047, 2048,
            2049, 16_384, 32_767, 39_990,
        ] {
            let from = &bytes[3..3 + length];
            for (way, name) in [(0, "steps"), (1, "string"), (2, "in"), (3, "payload")] {
                let mut to = vec![0xA5; length + 2];
                let header = Header::new(Flags::REQUEST, 0x0100, 7, length as u32);
                // SAFETY: there is room for `length` bytes behind the first.
                unsafe {
                    let at = to.as_mut_ptr().add(1);
                    match way {
                        0 => copy(from.as_ptr(), at, length),
                        1 => copy_string(from, at),
                        2 => copy_in(from, at),
                        _ => {
                            let crc = copy_payload_in(&header, from, at);
                            assert_eq!(crc, crc::frame_crc(&header.to_bytes(), from));
                        }
                    }
                }
                assert_eq!(to[1..=length], *from, "{name} of {length}");
                assert_eq!((to[0], to[length + 1]), (0xA5, 0xA5), "{name} of {length}");
            }
        }
    }

    /// The consumer polls the first line, so it is not to be touched before all else is written.
    #[test]
    fn what_is_behind_the_head_goes_there_alone() {
        let bytes: Vec<u8> = (1..=2100_u32).map(|n| (n % 251) as u8 + 1).collect();
        for length in HEAD_BYTES + 1..=bytes.len() {
            let mut to = vec![0; length + 1];
            // SAFETY: there is room for `length` bytes.
            unsafe { copy_behind_head(&bytes[..length], to.as_mut_ptr()) };
            assert_eq!(to[..HEAD_BYTES], [0; HEAD_BYTES], "{length}");
            assert_eq!(to[HEAD_BYTES..length], bytes[HEAD_BYTES..length]);
            assert_eq!(to[length], 0, "{length}");
        }
    }
}
