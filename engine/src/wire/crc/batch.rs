//! Many frames in one call. One frame alone leaves the units idle while each step waits for the
//! last; several at once fill the gaps, and the call is paid once.

use super::kernel::Kernel;
use super::{HEADER_BYTES, header_words};

/// The CRCs of frames, given whole, as they lie on the wire: `crcs[i]` becomes `frame_crc` of
/// `frames[i]`. Whatever their CRC fields hold counts as zero.
///
/// # Panics
/// If the lengths of the two slices differ, or a frame is shorter than a header.
pub fn frame_batch(frames: &[&[u8]], crcs: &mut [u32]) {
    Kernel::best().batch(frames, crcs);
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
