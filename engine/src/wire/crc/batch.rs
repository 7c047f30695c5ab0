//! Many messages in one call. One message alone leaves the units idle while each step waits for
//! the last; several at once fill the gaps, and the call is paid once.

use super::HEADER_BYTES;
use super::kernel::Kernel;

/// The CRCs of messages of which the start is summed already: `crcs[i]` becomes
/// `append(seed, bytes)` for `messages[i] = (seed, bytes)`. Made for many short ones.
///
/// # Panics
/// If the lengths of the two slices differ.
pub fn batch(messages: &[(u32, &[u8])], crcs: &mut [u32]) {
    Kernel::best().batch(messages, crcs);
}

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
pub(super) fn parts<'a>(frame: &&'a [u8]) -> (&'a [u8; HEADER_BYTES], &'a [u8]) {
    frame.split_first_chunk().expect("a frame has a header")
}

/// What a batch consists of: bytes, and something before them that gives the register to start at.
pub(super) trait Message {
    fn bytes(&self) -> &[u8];

    /// The register before the bytes.
    ///
    /// # Safety
    /// The processor has SSE4.2.
    #[cfg(target_arch = "x86_64")]
    unsafe fn state_sse42(&self) -> u32;

    /// The register after the bytes.
    ///
    /// # Safety
    /// `kernel` is available.
    unsafe fn end_by(&self, kernel: Kernel) -> u32;
}

impl Message for (u32, &[u8]) {
    #[inline(always)]
    fn bytes(&self) -> &[u8] {
        self.1
    }
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn state_sse42(&self) -> u32 {
        !self.0
    }
    #[inline]
    unsafe fn end_by(&self, kernel: Kernel) -> u32 {
        let (seed, bytes) = *self;
        // SAFETY: the caller vouches for the kernel; `bytes` is a slice and nothing is copied.
        unsafe { kernel.run::<false>(std::ptr::null_mut(), bytes.as_ptr(), bytes.len(), !seed) }
    }
}

impl Message for &[u8] {
    #[inline(always)]
    fn bytes(&self) -> &[u8] {
        parts(self).1
    }
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn state_sse42(&self) -> u32 {
        // SAFETY: the caller vouches for SSE4.2.
        unsafe { super::sse42::header(parts(self).0) }
    }
    #[inline]
    unsafe fn end_by(&self, kernel: Kernel) -> u32 {
        let (header, bytes) = parts(self);
        // SAFETY: the caller vouches for the kernel; `bytes` is a slice and nothing is copied.
        unsafe { kernel.frame::<false>(header, std::ptr::null_mut(), bytes.as_ptr(), bytes.len()) }
    }
}

impl Kernel {
    pub(super) fn batch<M: Message>(self, messages: &[M], crcs: &mut [u32]) {
        assert_eq!(messages.len(), crcs.len(), "a CRC for every message");
        let (fours, rest) = messages.as_chunks::<4>();
        let (four_crcs, rest_crcs) = crcs.as_chunks_mut::<4>();
        match self {
            // SAFETY: a kernel is only ever chosen where it is available.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => unsafe { super::avx512::batch(fours, four_crcs) },
            // SAFETY: as above; PCLMULQDQ counts as available only where SSE4.2 is.
            #[cfg(target_arch = "x86_64")]
            Self::Pclmul | Self::Sse42 => unsafe { super::sse42::batch(fours, four_crcs, self) },
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
pub(super) fn one_by_one<M: Message>(messages: &[M], crcs: &mut [u32], kernel: Kernel) {
    for (message, crc) in messages.iter().zip(crcs) {
        // SAFETY: the kernel is available.
        *crc = !unsafe { message.end_by(kernel) };
    }
}
