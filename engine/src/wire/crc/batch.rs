//! Many messages in one call. One message alone leaves the units idle while each step waits for
//! the last; several at once fill the gaps, and the call is paid once.

use super::kernel::Kernel;

/// The CRCs of messages of which the start is summed already: `crcs[i]` becomes
/// `append(seed, bytes)` for `messages[i] = (seed, bytes)`. Made for many short ones.
///
/// # Panics
/// If the lengths of the two slices differ.
pub fn batch(messages: &[(u32, &[u8])], crcs: &mut [u32]) {
    Kernel::best().batch(Seeded(messages), crcs);
}

/// The CRCs of frames, given as header and payload: `crcs[i]` becomes `frame_crc` of `frames[i]`.
///
/// # Panics
/// If the lengths of the two slices differ.
pub fn frame_batch(frames: &[(&[u8; 24], &[u8])], crcs: &mut [u32]) {
    Kernel::best().batch(Framed(frames), crcs);
}

/// Where a kernel gets its messages from: the register before message `i`, and its bytes.
pub(super) trait Messages<'a>: Copy {
    fn count(self) -> usize;
    fn bytes(self, i: usize) -> &'a [u8];
    /// # Safety
    /// The processor has SSE4.2.
    #[cfg(target_arch = "x86_64")]
    unsafe fn state_sse42(self, i: usize) -> u32;
    /// The register after message `i`.
    fn end_by(self, kernel: Kernel, i: usize) -> u32;
}

#[derive(Clone, Copy)]
pub(super) struct Seeded<'a>(pub(super) &'a [(u32, &'a [u8])]);

#[derive(Clone, Copy)]
pub(super) struct Framed<'a>(pub(super) &'a [(&'a [u8; 24], &'a [u8])]);

impl<'a> Messages<'a> for Seeded<'a> {
    #[inline(always)]
    fn count(self) -> usize {
        self.0.len()
    }
    #[inline(always)]
    fn bytes(self, i: usize) -> &'a [u8] {
        self.0[i].1
    }
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn state_sse42(self, i: usize) -> u32 {
        !self.0[i].0
    }
    fn end_by(self, kernel: Kernel, i: usize) -> u32 {
        let (seed, bytes) = self.0[i];
        // SAFETY: `bytes` is a slice, nothing is copied, and `kernel` is one that is available.
        unsafe { kernel.run::<false>(std::ptr::null_mut(), bytes.as_ptr(), bytes.len(), !seed) }
    }
}

impl<'a> Messages<'a> for Framed<'a> {
    #[inline(always)]
    fn count(self) -> usize {
        self.0.len()
    }
    #[inline(always)]
    fn bytes(self, i: usize) -> &'a [u8] {
        self.0[i].1
    }
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn state_sse42(self, i: usize) -> u32 {
        // SAFETY: the caller vouches for SSE4.2.
        unsafe { super::sse42::header(self.0[i].0) }
    }
    fn end_by(self, kernel: Kernel, i: usize) -> u32 {
        let (header, bytes) = self.0[i];
        // SAFETY: as for `Seeded`.
        unsafe { kernel.frame::<false>(header, std::ptr::null_mut(), bytes.as_ptr(), bytes.len()) }
    }
}

impl Kernel {
    pub(super) fn batch<'a>(self, messages: impl Messages<'a>, crcs: &mut [u32]) {
        assert_eq!(messages.count(), crcs.len(), "a CRC for every message");
        match self {
            // SAFETY: a kernel is only ever chosen where it is available.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => unsafe { super::avx512::batch(messages, crcs) },
            // SAFETY: as above; PCLMULQDQ counts as available only where SSE4.2 is.
            #[cfg(target_arch = "x86_64")]
            Self::Pclmul | Self::Sse42 => unsafe { super::sse42::batch(messages, crcs) },
            _ => {
                for (i, crc) in crcs.iter_mut().enumerate() {
                    *crc = !messages.end_by(self, i);
                }
            }
        }
    }
}
