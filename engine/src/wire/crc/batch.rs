//! Many frames in one call. One frame alone leaves the units idle while each step waits for the
//! last; several at once fill the gaps, and the call is paid once.

use super::kernel::Kernel;
use super::{HEADER_BYTES, header_words};

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

/// As [`frame_batch`], of frames of `frame_bytes` each that lie one behind the other.
///
/// # Panics
/// If `bytes` are not that many frames, or a frame is shorter than a header.
pub fn frame_row(bytes: &[u8], frame_bytes: usize, crcs: &mut [u32]) {
    Kernel::best().row(bytes, frame_bytes, crcs);
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

    pub(super) fn row(self, bytes: &[u8], frame_bytes: usize, crcs: &mut [u32]) {
        assert_eq!(
            bytes.len(),
            crcs.len() * frame_bytes,
            "a CRC for every frame"
        );
        if self.equal_row(bytes, frame_bytes, crcs) {
            return;
        }
        let rows = bytes.chunks(LIST * frame_bytes);
        for (bytes, crcs) in rows.zip(crcs.chunks_mut(LIST)) {
            let mut frames: [&[u8]; LIST] = [&[]; LIST];
            for (frame, bytes) in frames.iter_mut().zip(bytes.chunks(frame_bytes)) {
                *frame = bytes;
            }
            self.batch(&frames[..crcs.len()], crcs);
        }
    }

    /// As [`Kernel::row`], if there are four frames or more, of a length that there is code for.
    #[cfg(target_arch = "x86_64")]
    fn equal_row(self, bytes: &[u8], frame_bytes: usize, crcs: &mut [u32]) -> bool {
        if !self.is_side_by_side() || crcs.len() < 4 {
            return false;
        }
        let last_four = &bytes[(crcs.len() - 4) * frame_bytes..];
        let (fours, rest) = crcs.as_chunks_mut::<4>();
        // SAFETY: only kernels that need SSE4.2 sum side by side.
        let row =
            |bytes, crcs: &mut _| unsafe { super::side_by_side::row(bytes, frame_bytes, crcs) };
        if !row(&bytes[..4 * fours.len() * frame_bytes], fours) {
            return false;
        }
        if !rest.is_empty() {
            // To sum some of the last four again is faster than the others alone.
            let mut last = [[0; 4]];
            row(last_four, &mut last);
            rest.copy_from_slice(&last[0][4 - rest.len()..]);
        }
        true
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn equal_row(self, _: &[u8], _: usize, _: &mut [u32]) -> bool {
        false
    }

    #[cfg(target_arch = "x86_64")]
    fn is_side_by_side(self) -> bool {
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
