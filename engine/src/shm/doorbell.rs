//! How a sleeping worker is woken: its *doorbell*, a futex word in the control segment; and its *ready bits*,
//! which say which connections have something.
//!
//! The worker announces that it sleeps, looks at all its sources once more, and only then waits. Whoever has
//! published something rings the doorbell, which makes a system call only if the worker sleeps.

use super::sync::{AtomicU32, Ordering, Segment, fence, futex};

/// Values of a doorbell word.
pub(crate) const AWAKE: u32 = 0;
/// The worker sleeps, or is about to.
pub(crate) const SLEEPING: u32 = 1;

/// Where the summary of a worker's ready bits lies, counted from its doorbell: bit n is set if the nth word of
/// ready bits may not be zero.
const AT_SUMMARY: usize = 64;
/// Where the first word of ready bits lies.
const AT_BITS: usize = 128;

/// Wakes the worker if it sleeps. What it is woken for has been published before.
pub(crate) fn ring(word: &AtomicU32) {
    // SeqCst: pairs with the fence in `Asleep::fall_asleep`. Either the worker's second look sees what
    // was published, or this load sees SLEEPING.
    fence(Ordering::SeqCst);
    if word.load(Ordering::Relaxed) == SLEEPING && word.swap(AWAKE, Ordering::AcqRel) == SLEEPING {
        futex::wake(word, 1);
    }
}

/// Whether a worker sleeps, in private memory. Clients may overwrite the doorbell word; the server's own threads
/// still wake the worker.
pub(crate) struct Asleep(AtomicU32);

impl Asleep {
    pub(crate) fn new() -> Asleep {
        Asleep(AtomicU32::new(AWAKE))
    }

    /// As [`ring`], for the server's own threads: it works whatever the word says.
    pub(crate) fn ring(&self, word: &AtomicU32) {
        // SeqCst: pairs with the fence in `fall_asleep`, as in `ring`.
        fence(Ordering::SeqCst);
        // Acquire: pairs with the release in `fall_asleep`, so that the word was set to SLEEPING before it is
        // set to AWAKE below.
        if self.0.load(Ordering::Relaxed) == SLEEPING
            && self.0.swap(AWAKE, Ordering::AcqRel) == SLEEPING
        {
            // Release: pairs with the acquire in `uring::waker`, where that waits in the worker's place.
            word.store(AWAKE, Ordering::Release);
            futex::wake(word, 1);
        }
    }

    /// The worker announces its sleep; it must look at all its sources once more before it waits.
    pub(crate) fn fall_asleep(&self, word: &AtomicU32) {
        word.store(SLEEPING, Ordering::Relaxed);
        // Release: pairs with the acquire in `Asleep::ring`. In the other order, a ring in between the two
        // stores (for something that the second look does not see) would leave a worker asleep that counts as
        // awake.
        self.0.store(SLEEPING, Ordering::Release);
        // SeqCst: pairs with the fences in `ring` and `Asleep::ring`.
        fence(Ordering::SeqCst);
    }

    /// The worker is awake again.
    pub(crate) fn wake_up(&self, word: &AtomicU32) {
        self.0.store(AWAKE, Ordering::Relaxed);
        word.store(AWAKE, Ordering::Relaxed);
    }
}

/// Wakes a worker that may sleep although its word does not say so, because another process overwrote it.
pub(super) fn wake_if_forgotten(word: &AtomicU32) {
    if word.load(Ordering::Relaxed) != SLEEPING {
        futex::wake(word, 1);
    }
}

/// Sets a ready bit of the worker whose words begin at `at`: that connection has something for it.
pub(super) fn set_ready(segment: &Segment, at: usize, bit: usize) {
    // Release (both): pair with the acquire swaps in `take_ready`. The bit first, then the summary.
    segment
        .word64(at + AT_BITS + bit / 64 * 8)
        .fetch_or(1 << (bit % 64), Ordering::Release);
    segment
        .word64(at + AT_SUMMARY)
        .fetch_or(1 << (bit / 64), Ordering::Release);
}

/// Whether some connection has set its ready bit.
#[inline]
pub(super) fn has_ready(segment: &Segment, at: usize) -> bool {
    segment.word64(at + AT_SUMMARY).load(Ordering::Relaxed) != 0
}

/// Takes all ready bits that are set, and calls `each` with the number of each.
pub(super) fn take_ready(segment: &Segment, at: usize, mut each: impl FnMut(usize)) {
    // Acquire (both): pair with the releases in `set_ready`. The summary first: a bit that is set after its
    // word was taken sets the summary again.
    let summary = segment.word64(at + AT_SUMMARY);
    let mut words = summary.swap(0, Ordering::Acquire) & 0xFFFF;
    while words != 0 {
        let word = words.trailing_zeros() as usize;
        words &= words - 1;
        let bits = segment.word64(at + AT_BITS + word * 8);
        let mut bits = bits.swap(0, Ordering::Acquire);
        while bits != 0 {
            each(word * 64 + bits.trailing_zeros() as usize);
            bits &= bits - 1;
        }
    }
}
