//! Copies between private memory and a ring.

use crate::wire::{Header, STEP_BYTES, crc};

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

/// Copies private bytes into a ring.
///
/// # Safety
/// `to` is writable for as many bytes, which do not overlap.
#[inline]
pub(super) unsafe fn copy_in(bytes: &[u8], to: *mut u8) {
    // SAFETY: the caller's promise.
    unsafe {
        match goes_as_string(bytes.len()) {
            true => copy_string(bytes, to),
            false => copy(bytes.as_ptr(), to, bytes.len()),
        }
    }
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

/// As [`copy_in`], of a frame's payload; returns the CRC of the frame.
///
/// # Safety
/// As [`copy_in`].
#[inline(always)]
pub(super) unsafe fn copy_payload_in(header: &Header, payload: &[u8], to: *mut u8) -> u32 {
    // SAFETY: the caller's promise. The payload is private: read twice, it is the same.
    unsafe {
        if payload.len() >= PAYLOAD_STRING_MIN && strings_are_fast() {
            let crc = crc::frame_crc(&header.to_bytes(), payload);
            copy_string(payload, to);
            crc
        } else {
            crc::frame_copy_raw(header.to_words(), to, payload.as_ptr(), payload.len())
        }
    }
}

/// Whether a string copy is the fast way into lines that another core has read. It takes such a line over
/// without fetching what is in it, which vectors do: with Zen 5 1 MiB takes 0.43 of the time when the
/// cores are far apart, 16 KiB 0.79 when they are near. With Zen 3 it takes nine times as long; so only
/// where the processor has what that one has not.
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
            0, 1, 1023, 1024, 1025, 2047, 2048, 2049, 16_384, 32_767, 39_990,
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
}
