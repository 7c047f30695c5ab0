//! Many frames in one call. One frame alone leaves the units idle while each step waits for the
//! last; several at once fill the gaps, and the call is paid once.

use super::kernel::Kernel;
use super::{CRC_AT, HEADER_BYTES, ID_AT, header_words};

/// How many frames are listed at once where a row's are summed as any others are.
const LIST: usize = 16;

/// The CRCs of frames, given whole, as they lie on the wire: `crcs[i]` becomes `frame_crc` of
/// `frames[i]`. Whatever their CRC fields hold counts as zero.
///
/// # Panics
/// If the lengths of the two slices differ, or a frame is shorter than a header.
pub fn frame_batch(frames: &[&[u8]], crcs: &mut [u32]) {
    Kernel::best().batch(frames, crcs);
}

/// How many frames of `frame_bytes` each, from the first on, begin as it does up to the payload's length
/// and have the CRC that they say. With `with_ids`, an id of 0 ends them too.
///
/// # Panics
/// If a frame is shorter than a header.
pub fn count_good(bytes: &[u8], frame_bytes: usize, with_ids: bool) -> usize {
    Kernel::best().count_good(bytes, frame_bytes, with_ids)
}

/// Puts their CRCs into frames of `frame_bytes` each that lie one behind the other.
///
/// # Panics
/// If `bytes` end within a frame, or one is shorter than a header.
pub fn seal_row(bytes: &mut [u8], frame_bytes: usize) {
    Kernel::best().seal_row(bytes, frame_bytes);
}

/// A whole frame's header and payload.
#[inline(always)]
pub(super) fn parts(frame: &[u8]) -> (&[u8; HEADER_BYTES], &[u8]) {
    frame.split_first_chunk().expect("a frame has a header")
}

impl Kernel {
    pub(super) fn batch(self, frames: &[&[u8]], crcs: &mut [u32]) {
        assert_eq!(frames.len(), crcs.len(), "a CRC for every frame");
        let (fours, rest) = frames.as_chunks::<4>();
        let (four_crcs, rest_crcs) = crcs.as_chunks_mut::<4>();
        #[cfg(target_arch = "x86_64")]
        let first = |fours: &[[&[u8]; 4]], crcs: &mut [[u32; 4]]| match self.prefers_lanes() {
            // SAFETY: only kernels that have the features prefer lanes.
            true => unsafe { super::lanes::batch(self, fours, crcs) },
            false => 0,
        };
        match self {
            // SAFETY: a kernel is only ever chosen where it is available.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => unsafe { super::avx512::batch(fours, four_crcs, first) },
            // SAFETY: as above; PCLMULQDQ counts as available only where SSE4.2 is.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 | Self::Pclmul | Self::Sse42 => unsafe {
                super::side_by_side::batch(fours, four_crcs, first, |four, crcs| {
                    one_by_one(four, crcs, self);
                });
            },
            _ => {
                for (four, crcs) in fours.iter().zip(four_crcs) {
                    one_by_one(four, crcs, self);
                }
            }
        }
        one_by_one(rest, rest_crcs, self);
    }

    pub(super) fn count_good(self, bytes: &[u8], frame_bytes: usize, with_ids: bool) -> usize {
        assert!(frame_bytes >= HEADER_BYTES, "a frame has a header");
        #[cfg(target_arch = "x86_64")]
        if self.has_crc32() {
            // SAFETY: only kernels that need SSE4.2 have its instruction; and as in `batch`.
            let good = unsafe {
                self.prefers_lanes()
                    .then(|| super::lanes::good(self, bytes, frame_bytes, with_ids))
                    .flatten()
                    .or_else(|| super::row::good(bytes, frame_bytes, with_ids))
            };
            if let Some(good) = good {
                return good;
            }
        }
        let begins_alike = |frame: &&[u8]| {
            let has_id = frame[ID_AT..CRC_AT] != [0; CRC_AT - ID_AT];
            frame[..ID_AT] == bytes[..ID_AT] && (has_id || !with_ids)
        };
        let mut good = 0;
        // Each turn takes as many frames as are listed, or ends the loop.
        for bytes in bytes.chunks(LIST * frame_bytes) {
            let frames = bytes.chunks_exact(frame_bytes).take_while(begins_alike);
            let (crcs, alike) = self.list(frames);
            let frames = bytes.chunks_exact(frame_bytes);
            for (frame, crc) in frames.zip(&crcs[..alike]) {
                if frame[CRC_AT..HEADER_BYTES] != crc.to_le_bytes() {
                    return good;
                }
                good += 1;
            }
            if alike < LIST {
                break;
            }
        }
        good
    }

    pub(super) fn seal_row(self, bytes: &mut [u8], frame_bytes: usize) {
        assert!(frame_bytes >= HEADER_BYTES, "a frame has a header");
        assert!(bytes.len().is_multiple_of(frame_bytes), "whole frames");
        #[cfg(target_arch = "x86_64")]
        if self.has_crc32() {
            // SAFETY: as in `count_good`.
            let done = unsafe {
                self.prefers_lanes()
                    .then(|| super::lanes::seal(self, bytes, frame_bytes))
                    .flatten()
                    .or_else(|| super::row::seal(bytes, frame_bytes))
            };
            if done.is_some() {
                return;
            }
        }
        for bytes in bytes.chunks_mut(LIST * frame_bytes) {
            let (crcs, _) = self.list(bytes.chunks_exact(frame_bytes));
            for (frame, crc) in bytes.chunks_exact_mut(frame_bytes).zip(crcs) {
                frame[CRC_AT..HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
            }
        }
    }

    /// The CRCs of up to [`LIST`] frames, and how many those are.
    fn list<'a>(self, frames: impl Iterator<Item = &'a [u8]>) -> ([u32; LIST], usize) {
        let mut listed: [&[u8]; LIST] = [&[]; LIST];
        let mut crcs = [0; LIST];
        let mut count = 0;
        for (place, frame) in listed.iter_mut().zip(frames) {
            *place = frame;
            count += 1;
        }
        self.batch(&listed[..count], &mut crcs[..count]);
        (crcs, count)
    }

    #[cfg(target_arch = "x86_64")]
    fn has_crc32(self) -> bool {
        matches!(self, Self::Avx512 | Self::Avx2 | Self::Pclmul | Self::Sse42)
    }
}

/// As [`Kernel::batch`], for what is better not summed side by side. `kernel` is one that is
/// available.
pub(super) fn one_by_one(frames: &[&[u8]], crcs: &mut [u32], kernel: Kernel) {
    for (frame, crc) in frames.iter().zip(crcs) {
        let (header, bytes) = parts(frame);
        // SAFETY: the kernel is available; `bytes` is a slice and nothing is copied.
        *crc = !unsafe {
            kernel.frame::<false>(
                header_words(header),
                std::ptr::null_mut(),
                bytes.as_ptr(),
                bytes.len(),
            )
        };
    }
}
