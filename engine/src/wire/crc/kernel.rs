//! Which kernel runs: found out once, then one relaxed load and one predictable branch per call.

#[cfg(target_arch = "x86_64")]
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::atomic::{AtomicU8, Ordering};

#[cfg(target_arch = "aarch64")]
use super::aarch64;
use super::software;
use super::{WITHOUT_CRC, Words};
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512, chains, pclmul, sse42};
#[cfg(target_arch = "x86_64")]
use crate::processor::is_intel;

/// The kernels, on every architecture. One of another architecture is never available.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kernel {
    Software = 1,
    Sse42 = 2,
    Pclmul = 3,
    Avx2 = 4,
    Avx512 = 5,
    Aarch64 = 6,
}

/// The best kernel's number, 0 before it is known. Relaxed throughout: the number is all there is
/// to see, and threads that race to find it out find the same.
static BEST: AtomicU8 = AtomicU8::new(0);
/// What is shorter than this goes to the chains: what is only summed, and what is copied. 0 before that
/// is known, and where there are no chains.
#[cfg(target_arch = "x86_64")]
static CHAINS_END: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];

/// Rows of short frames go through lanes and not through chains. False before that is known.
#[cfg(target_arch = "x86_64")]
static LANES: AtomicBool = AtomicBool::new(false);

/// Runs `len` bytes through `state` by the best kernel, copying them to `dst` if `COPY`.
///
/// Inlined, and by comparisons, as far as a short message goes: a jump through a table took a fifth of
/// its time.
///
/// # Safety
/// As [`Kernel::run`] of one that is available.
#[inline(always)]
pub(super) unsafe fn run<const COPY: bool>(
    dst: *mut u8,
    src: *const u8,
    len: usize,
    state: u32,
) -> u32 {
    // SAFETY: the end of the chains' lengths is not 0 only where a kernel was found that has their
    // features, and the best kernel is available; the caller's promises.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        {
            let end = CHAINS_END[usize::from(COPY)].load(Ordering::Relaxed);
            if len < end {
                return chains::run::<COPY>(dst, src, len, state);
            }
            if is_avx512_behind(end) {
                return avx512::run::<COPY>(dst, src, len, state);
            }
        }
        other_run::<COPY>(dst, src, len, state)
    }
}

/// Whether what is not shorter than `end`, as it was read, is for AVX-512. Not if the end was not known then, though the
/// kernel is by now, since another thread has just found it: short messages would go where only long ones may.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn is_avx512_behind(end: usize) -> bool {
    end != 0 && BEST.load(Ordering::Relaxed) == Kernel::Avx512 as u8
}

#[inline(never)]
unsafe fn other_run<const COPY: bool>(dst: *mut u8, src: *const u8, len: usize, state: u32) -> u32 {
    // SAFETY: the best kernel is available; the caller's promises.
    unsafe { Kernel::best().run::<COPY>(dst, src, len, state) }
}

/// Runs a header, its CRC field taken as zero, and `len` bytes of payload through a fresh register
/// by the best kernel, copying the payload to `dst` if `COPY`. Inlined as [`run`] is.
///
/// # Safety
/// As [`Kernel::frame`] of one that is available.
#[inline(always)]
pub(super) unsafe fn frame<const COPY: bool>(
    header: Words,
    dst: *mut u8,
    src: *const u8,
    len: usize,
) -> u32 {
    #[cfg(target_arch = "x86_64")]
    let [first, second, third] = header;
    // SAFETY: as in `run`.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        {
            let end = CHAINS_END[usize::from(COPY)].load(Ordering::Relaxed);
            if len < end {
                return chains::frame::<COPY>(first, second, third, dst, src, len);
            }
            if is_avx512_behind(end) {
                return avx512::frame::<COPY>(first, second, third, dst, src, len);
            }
        }
        other_frame::<COPY>(header, dst, src, len)
    }
}

#[inline(never)]
unsafe fn other_frame<const COPY: bool>(
    header: Words,
    dst: *mut u8,
    src: *const u8,
    len: usize,
) -> u32 {
    // SAFETY: the best kernel is available; the caller's promises.
    unsafe { Kernel::best().frame::<COPY>(header, dst, src, len) }
}

impl Kernel {
    /// Best last.
    pub(super) const ALL: [Self; 6] = [
        Self::Software,
        Self::Sse42,
        Self::Pclmul,
        Self::Avx2,
        Self::Avx512,
        Self::Aarch64,
    ];

    #[inline(always)]
    pub(super) fn best() -> Self {
        match BEST.load(Ordering::Relaxed) {
            5 => Self::Avx512,
            4 => Self::Avx2,
            3 => Self::Pclmul,
            2 => Self::Sse42,
            6 => Self::Aarch64,
            1 => Self::Software,
            _ => Self::find(),
        }
    }

    #[cold]
    #[inline(never)]
    fn find() -> Self {
        let best = Self::ALL
            .into_iter()
            .rfind(|kernel| kernel.is_available())
            .unwrap_or(Self::Software);
        BEST.store(best as u8, Ordering::Relaxed);
        #[cfg(target_arch = "x86_64")]
        LANES.store(is_intel(), Ordering::Relaxed);
        #[cfg(target_arch = "x86_64")]
        for copying in [false, true] {
            let end = best.chains_len_max(copying).map_or(0, |max| max + 1);
            CHAINS_END[usize::from(copying)].store(end, Ordering::Relaxed);
        }
        best
    }

    /// Whether this processor can run it.
    pub(super) fn is_available(self) -> bool {
        match self {
            Self::Software => true,
            #[cfg(target_arch = "x86_64")]
            Self::Sse42 => is_x86_feature_detected!("sse4.2"),
            #[cfg(target_arch = "x86_64")]
            Self::Pclmul => Self::Sse42.is_available() && is_x86_feature_detected!("pclmulqdq"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                Self::Pclmul.is_available()
                    && is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("vpclmulqdq")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                Self::Pclmul.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("vpclmulqdq")
            }
            #[cfg(target_arch = "aarch64")]
            Self::Aarch64 => std::arch::is_aarch64_feature_detected!("crc"),
            #[allow(unreachable_patterns)]
            _ => false,
        }
    }

    /// Up to how many bytes chains are better. Vectors save stores where they copy.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn chains_len_max(self, copying: bool) -> Option<usize> {
        match self {
            Self::Avx512 if copying => Some(167),
            Self::Avx2 if copying => Some(111),
            Self::Avx512 | Self::Avx2 | Self::Pclmul => Some(chains::LEN_MAX),
            _ => None,
        }
    }

    /// Whether [`super::lanes`] is better than chains for rows of short frames, and can be run.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(super) fn prefers_lanes(self) -> bool {
        self.has_lanes() && LANES.load(Ordering::Relaxed)
    }

    /// Whether a processor that has this kernel can run [`super::lanes`].
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(super) fn has_lanes(self) -> bool {
        matches!(self, Self::Avx512 | Self::Avx2)
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn leaves_to_chains(self, len: usize, copying: bool) -> bool {
        self.chains_len_max(copying).is_some_and(|max| len <= max)
    }

    /// Runs `len` bytes through `state`, copying them to `dst` if `COPY`.
    ///
    /// # Safety
    /// The kernel is available; `src` is readable and, with `COPY`, `dst` is writable for `len`
    /// bytes; they do not overlap. Without `COPY`, nobody writes to `src` meanwhile.
    #[inline(always)]
    pub(super) unsafe fn run<const COPY: bool>(
        self,
        dst: *mut u8,
        src: *const u8,
        len: usize,
        state: u32,
    ) -> u32 {
        // SAFETY: the caller's promises are those of every kernel.
        unsafe {
            match self {
                #[cfg(target_arch = "x86_64")]
                kernel if kernel.leaves_to_chains(len, COPY) => {
                    chains::run::<COPY>(dst, src, len, state)
                }
                #[cfg(target_arch = "x86_64")]
                Self::Avx512 => avx512::run::<COPY>(dst, src, len, state),
                #[cfg(target_arch = "x86_64")]
                Self::Avx2 => avx2::run::<COPY>(dst, src, len, state),
                #[cfg(target_arch = "x86_64")]
                Self::Pclmul => pclmul::run::<COPY>(dst, src, len, state),
                #[cfg(target_arch = "x86_64")]
                Self::Sse42 => sse42::run::<COPY>(dst, src, len, state),
                #[cfg(target_arch = "aarch64")]
                Self::Aarch64 => aarch64::run::<COPY>(dst, src, len, state),
                _ => software::run::<COPY>(dst, src, len, state),
            }
        }
    }

    /// Runs a header, its CRC field taken as zero, and `len` bytes of payload through a fresh
    /// register, copying the payload to `dst` if `COPY`.
    ///
    /// # Safety
    /// As [`run`](Self::run).
    #[inline(always)]
    pub(super) unsafe fn frame<const COPY: bool>(
        self,
        [first, second, third]: Words,
        dst: *mut u8,
        src: *const u8,
        len: usize,
    ) -> u32 {
        // SAFETY: the caller's promises are those of every kernel.
        unsafe {
            match self {
                #[cfg(target_arch = "x86_64")]
                kernel if kernel.leaves_to_chains(len, COPY) => {
                    chains::frame::<COPY>(first, second, third, dst, src, len)
                }
                #[cfg(target_arch = "x86_64")]
                Self::Avx512 => avx512::frame::<COPY>(first, second, third, dst, src, len),
                #[cfg(target_arch = "x86_64")]
                Self::Avx2 => avx2::frame::<COPY>(first, second, third, dst, src, len),
                #[cfg(target_arch = "x86_64")]
                Self::Pclmul => pclmul::frame::<COPY>(first, second, third, dst, src, len),
                #[cfg(target_arch = "x86_64")]
                Self::Sse42 => sse42::frame::<COPY>(first, second, third, dst, src, len),
                _ => {
                    let header = [first, second, third & WITHOUT_CRC].map(u64::to_le_bytes);
                    let (null, bytes) = (std::ptr::null_mut(), header.as_flattened());
                    let state = self.run::<false>(null, bytes.as_ptr(), bytes.len(), u32::MAX);
                    self.run::<COPY>(dst, src, len, state)
                }
            }
        }
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::super::{crc32c, frame_crc};
    use super::*;

    /// As a thread finds it that comes while another one finds the kernel.
    #[test]
    fn a_kernel_that_is_known_before_its_limits() {
        let header = [7; 24];
        let expected = (crc32c(b"short"), frame_crc(&header, b""));
        let ends = [0, 1].map(|copying| CHAINS_END[copying].swap(0, Ordering::Relaxed));
        let crcs = (crc32c(b"short"), frame_crc(&header, b""));
        for (end, known) in CHAINS_END.iter().zip(ends) {
            end.store(known, Ordering::Relaxed);
        }
        assert_eq!(crcs, expected);
    }
}
