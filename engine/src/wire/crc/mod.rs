#![allow(unsafe_code)]
//! CRC-32C, alone and in one pass with a copy, by the best kernel that the processor has.
//!
//! A `crc` that goes in or out is a finished CRC-32C (0 for no bytes), so parts chain:
//! `append(crc32c(a), b)` is the CRC of `a` followed by `b`. The kernels work on the register
//! inside, its complement, called `state` there.
//!
//! Per frame there is one call into a kernel ([`frame_crc`], [`frame_append`]): code for a processor
//! feature cannot be inlined into code without it, so the call cannot be saved, only not repeated.

mod batch;
mod exchange;
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
mod gf;
mod kernel;
mod software;

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod chains;
#[cfg(target_arch = "x86_64")]
mod lanes;
#[cfg(target_arch = "x86_64")]
mod pclmul;
#[cfg(target_arch = "x86_64")]
mod row;
#[cfg(target_arch = "x86_64")]
mod side_by_side;
#[cfg(target_arch = "x86_64")]
mod sse42;
#[cfg(test)]
mod tests;

pub use batch::{count_good, frame_batch, seal_row};
pub use exchange::exchange_header;

/// Bytes of a frame header.
const HEADER_BYTES: usize = 24;
/// Where the payload's length, the id and the CRC lie in it.
#[cfg(target_arch = "x86_64")]
const LENGTH_AT: usize = 8;
const ID_AT: usize = 12;
const CRC_AT: usize = 20;
/// Frames up to this length are summed faster several at a time, by [`frame_batch`].
pub(crate) const SHORT_BYTES_MAX: usize = HEADER_BYTES + 255;
/// A frame header as little-endian words: the kernels take it in registers.
type Words = [u64; HEADER_BYTES / 8];
/// What of its last word is not the CRC.
const WITHOUT_CRC: u64 = u32::MAX as u64;

/// A header's bytes as words.
#[inline(always)]
pub(crate) fn header_words(header: &[u8; HEADER_BYTES]) -> Words {
    let (words, _) = header.as_chunks::<8>();
    [words[0], words[1], words[2]].map(u64::from_le_bytes)
}

/// The CRC-32C of `bytes`.
#[inline]
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    append(0, bytes)
}

/// The CRC-32C of what `crc` is the CRC of, followed by `bytes`.
#[inline]
#[must_use]
pub fn append(crc: u32, bytes: &[u8]) -> u32 {
    // SAFETY: `bytes` is readable, nobody writes to it while it is borrowed, and without COPY the
    // destination is not touched.
    !unsafe { kernel::run::<false>(std::ptr::null_mut(), bytes.as_ptr(), bytes.len(), !crc) }
}

/// Copies `len` bytes from `src` to `dst` and returns `append(crc, src)`, in one pass; for memory that another process
/// may be reading or writing at the same time.
///
/// Each byte is read once: the CRC is that of the bytes that end up in `dst`, whatever another
/// process does to `src` meanwhile. No reference to either side is formed.
///
/// # Safety
/// `src` is mapped for reading and `dst` for writing, for `len` bytes each, until this returns;
/// they do not overlap; nothing else in this process writes to `dst` meanwhile.
#[inline]
pub unsafe fn copy_raw(dst: *mut u8, src: *const u8, len: usize, crc: u32) -> u32 {
    // SAFETY: the caller's promises are the kernel's.
    !unsafe { kernel::run::<true>(dst, src, len, !crc) }
}

/// The CRC of a frame header, to append the payload to. The CRC field (the last 4 bytes) counts as
/// zero whatever it holds.
#[inline]
#[must_use]
pub fn header_seed(header: &[u8; HEADER_BYTES]) -> u32 {
    frame_crc(header, &[])
}

/// Puts a CRC into a frame's header.
#[inline]
pub fn put(header: &mut [u8; HEADER_BYTES], crc: u32) {
    header[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
}

/// The CRC of a frame. The header's CRC field counts as zero whatever it holds.
#[inline]
#[must_use]
pub fn frame_crc(header: &[u8; HEADER_BYTES], payload: &[u8]) -> u32 {
    frame_words_crc(header_words(header), payload)
}

/// As [`frame_crc`], of a header as words.
#[inline(always)]
#[must_use]
pub fn frame_words_crc(header: Words, payload: &[u8]) -> u32 {
    let (from, length) = (payload.as_ptr(), payload.len());
    // SAFETY: as in `append`.
    !unsafe { kernel::frame::<false>(header, std::ptr::null_mut(), from, length) }
}

/// Appends a frame to `to`: the header, whose CRC field is 0, with its CRC put in, then the payload,
/// copied and summed in one pass.
#[inline]
pub fn frame_append(to: &mut Vec<u8>, header: Words, payload: &[u8]) {
    // SAFETY: all of the payload is copied, to room for it that nobody else has.
    unsafe {
        append_parts(to, header, payload.len(), |rest| {
            frame_copy_raw(header, rest, payload.as_ptr(), payload.len())
        });
    }
}

/// As [`frame_append`], but the CRC field is left as it is, for [`seal_row`] or [`frame_batch`].
#[inline(always)]
pub fn frame_append_unsummed(to: &mut Vec<u8>, header: Words, payload: &[u8]) {
    // SAFETY: as in `frame_append`.
    unsafe {
        append_parts(to, header, payload.len(), |rest| {
            copy_short(payload, rest);
            0
        });
    }
}

/// As much as two copies of this many bytes may take together is copied in place: the call of `memcpy`, and
/// what has to be kept for after it, cost more.
const HALF_BYTES: usize = 32;

/// Copies a payload, a short one as a rule.
///
/// # Safety
/// `to` is writable for as many bytes, which do not overlap.
#[inline(always)]
unsafe fn copy_short(payload: &[u8], to: *mut u8) {
    let (from, length) = (payload.as_ptr(), payload.len());
    // SAFETY: within the payload, and as much of `to`.
    unsafe {
        if (HALF_BYTES..=2 * HALF_BYTES).contains(&length) {
            copy_halves::<HALF_BYTES>(from, to, length);
        } else {
            std::ptr::copy_nonoverlapping(from, to, length);
        }
    }
}

/// Copies the first `BYTES` and the last, which may overlap: all of what is at most twice as long.
///
/// # Safety
/// `from` is readable and `to` writable for `length` bytes, `BYTES` at least, and they do not overlap.
#[inline(always)]
pub unsafe fn copy_halves<const BYTES: usize>(from: *const u8, to: *mut u8, length: usize) {
    let last = length - BYTES;
    // SAFETY: both within `length`.
    unsafe {
        std::ptr::copy_nonoverlapping(from, to, BYTES);
        std::ptr::copy_nonoverlapping(from.add(last), to.add(last), BYTES);
    }
}

/// Makes room for a frame at the end of `to`, has the payload written by `put`, which returns the CRC,
/// and puts the header before it.
///
/// # Safety
/// `put` writes `payload_bytes` bytes to where it is told.
#[inline(always)]
unsafe fn append_parts(
    to: &mut Vec<u8>,
    mut header: Words,
    payload_bytes: usize,
    put: impl FnOnce(*mut u8) -> u32,
) {
    to.reserve(HEADER_BYTES + payload_bytes);
    // SAFETY: `to` has room for header and payload behind its end (reserved), and all of that is
    // written before it counts as part of it (by the caller's promise).
    unsafe {
        let head = to.as_mut_ptr().add(to.len());
        header[2] |= u64::from(put(head.add(HEADER_BYTES))) << 32;
        for (index, word) in header.into_iter().enumerate() {
            head.cast::<u64>().add(index).write_unaligned(word.to_le());
        }
        to.set_len(to.len() + HEADER_BYTES + payload_bytes);
    }
}

/// Copies a frame's payload from `src` to `dst` and returns the CRC of the whole frame, in one
/// pass. The header, as little-endian words, is only summed, its CRC field counting as zero whatever
/// it holds.
///
/// # Safety
/// As [`copy_raw`].
// Lest the header goes through memory: whoever reads it there waits for it.
#[inline(always)]
pub unsafe fn frame_copy_raw(header: Words, dst: *mut u8, src: *const u8, len: usize) -> u32 {
    // SAFETY: the caller's promises are the kernel's.
    !unsafe { kernel::frame::<true>(header, dst, src, len) }
}
