//! Many frames in one call. One frame alone leaves the units idle while each step waits for the
//! last; several at once fill the gaps, and the call is paid once.

use super::kernel::Kernel;
use super::{CRC_AT, HEADER_BYTES, header_words};

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

/// How many of the frames of `frame_bytes` each, which lie one behind the other, have the CRC that they
/// say: of those before the first that has not.
///
/// # Panics
/// If `bytes` end within a frame, or one is shorter than a header.
pub fn count_good(bytes: &[u8], frame_bytes: usize) -> usize {
    Kernel::best().count_good(bytes, frame_bytes)
}

/// Puts their CRCs into frames of `frame_bytes` each that lie one behind the other.
///
/// # Panics
/// If `bytes` end within a frame, or one is shorter than a header.
pub fn seal_row(bytes: &mut [u8], frame_bytes: usize) {
    Kernel::best().seal_row(bytes, frame_bytes);
}

fn check_row(bytes: &[u8], frame_bytes: usize) {
    assert!(frame_bytes >= HEADER_BYTES, "a frame has a header");
    assert!(bytes.len().is_multiple_of(frame_bytes), "whole frames");
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
        match self {
            // SAFETY: a kernel is only ever chosen where it is available.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => unsafe { super::avx512::batch(fours, four_crcs) },
            // SAFETY: as above; PCLMULQDQ counts as available only where SSE4.2 is.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 | Self::Pclmul | Self::Sse42 => unsafe {
                super::side_by_side::batch(fours, four_crcs, |four, crcs| {
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

    pub(super) fn count_good(self, bytes: &[u8], frame_bytes: usize) -> usize {
        check_row(bytes, frame_bytes);
        #[cfg(target_arch = "x86_64")]
        if self.has_crc32() {
            // SAFETY: only kernels that need SSE4.2 have its instruction.
            let good = unsafe { super::row::good(bytes, frame_bytes) };
            if let Some(good) = good {
                return good;
            }
        }
        let mut good = 0;
        for bytes in bytes.chunks(LIST * frame_bytes) {
            let crcs = self.list(bytes, frame_bytes);
            for (frame, crc) in bytes.chunks_exact(frame_bytes).zip(crcs) {
                if frame[CRC_AT..HEADER_BYTES] != crc.to_le_bytes() {
                    return good;
                }
                good += 1;
            }
        }
        good
    }

    pub(super) fn seal_row(self, bytes: &mut [u8], frame_bytes: usize) {
        check_row(bytes, frame_bytes);
        #[cfg(target_arch = "x86_64")]
        if self.has_crc32() {
            // SAFETY: as in `count_good`.
            let done = unsafe { super::row::seal(bytes, frame_bytes) };
            if done.is_some() {
                return;
            }
        }
        for bytes in bytes.chunks_mut(LIST * frame_bytes) {
            let crcs = self.list(bytes, frame_bytes);
            for (frame, crc) in bytes.chunks_exact_mut(frame_bytes).zip(crcs) {
                frame[CRC_AT..HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
            }
        }
    }

    /// The CRCs of up to [`LIST`] frames of `frame_bytes` each that lie one behind the other.
    fn list(self, bytes: &[u8], frame_bytes: usize) -> [u32; LIST] {
        let mut frames: [&[u8]; LIST] = [&[]; LIST];
        let mut crcs = [0; LIST];
        let mut count = 0;
        for (frame, bytes) in frames.iter_mut().zip(bytes.chunks_exact(frame_bytes)) {
            *frame = bytes;
            count += 1;
        }
        self.batch(&frames[..count], &mut crcs[..count]);
        crcs
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
