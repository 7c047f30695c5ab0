//! How a worker that sleeps is woken, and by which of its connections.
//!
//! The sleeper publishes that it sleeps, looks at all its sources once more, then waits; whoever
//! has published something wakes only a sleeper.

use super::sync::{AtomicU32, Ordering, Segment, fence, futex};

/// Values of a doorbell word.
pub(crate) const AWAKE: u32 = 0;
/// The worker sleeps, or is about to.
pub(crate) const SLEEPING: u32 = 1;

/// Where a worker's words lie, from the doorbell on: which of the words of bits are not zero, and
/// the first of those.
const AT_SUMMARY: usize = 64;
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

/// That a worker sleeps, in memory of its own process: clients may overwrite its word, and it hears the
/// process's other threads all the same.
pub(crate) struct Asleep(AtomicU32);

impl Asleep {
    pub(crate) fn new() -> Asleep {
        Asleep(AtomicU32::new(AWAKE))
    }

    /// As [`ring`], whatever the word says.
    pub(crate) fn ring(&self, word: &AtomicU32) {
        // SeqCst: pairs with the fence in `fall_asleep`, as in `ring`.
        fence(Ordering::SeqCst);
        // Acquire: pairs with the release in `fall_asleep`: the word is SLEEPING by then, so that AWAKE
        // is what stays.
        if self.0.load(Ordering::Relaxed) == SLEEPING
            && self.0.swap(AWAKE, Ordering::AcqRel) == SLEEPING
        {
            // Release: pairs with the acquire of whoever waits in the worker's place.
            word.store(AWAKE, Ordering::Release);
            futex::wake(word, 1);
        }
    }

    /// The worker announces its sleep; it must look at all its sources once more before it waits.
    pub(crate) fn fall_asleep(&self, word: &AtomicU32) {
        word.store(SLEEPING, Ordering::Relaxed);
        // Release: pairs with the acquire in `ring`. The other way round somebody who rings in between, and
        // for nothing that is looked at once more, would leave a worker that sleeps and is thought awake.
        self.0.store(SLEEPING, Ordering::Release);
        // SeqCst: pairs with the fences in `ring` and `Asleep::ring`.
        fence(Ordering::SeqCst);
    }

    /// The worker has slept.
    pub(crate) fn wake_up(&self, word: &AtomicU32) {
        self.0.store(AWAKE, Ordering::Relaxed);
        word.store(AWAKE, Ordering::Relaxed);
    }
}

/// Wakes a worker that sleeps although its word does not say so: another process wrote over it.
pub(super) fn wake_if_forgotten(word: &AtomicU32) {
    if word.load(Ordering::Relaxed) != SLEEPING {
        futex::wake(word, 1);
    }
}

/// The connection with this bit has something for the worker whose words begin at `at`.
pub(super) fn set_ready(segment: &Segment, at: usize, bit: usize) {
    // Release: pairs with the acquire swaps in `take_ready`.
    segment
        .word64(at + AT_BITS + bit / 64 * 8)
        .fetch_or(1 << (bit % 64), Ordering::Release);
    segment
        .word64(at + AT_SUMMARY)
        .fetch_or(1 << (bit / 64), Ordering::Release);
}

/// Whether some connection has something.
#[inline]
pub(super) fn has_ready(segment: &Segment, at: usize) -> bool {
    segment.word64(at + AT_SUMMARY).load(Ordering::Relaxed) != 0
}

/// Takes the bits of all connections that have something.
pub(super) fn take_ready(segment: &Segment, at: usize, mut each: impl FnMut(usize)) {
    // Acquire (both): pair with the releases in `set_ready`. The summary first: a bit that is set
    // after its word was taken sets the summary again.
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
