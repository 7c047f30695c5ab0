//! Substitutes for shared memory and the futex.

use std::cell::UnsafeCell;
use std::collections::BTreeMap;

use loom::sync::{Condvar, Mutex, atomic};

pub(super) use loom::sync::atomic::{Ordering, fence};

use super::layout::{ALIGN, CAPACITY, HOT, TO_CLIENT, TO_SERVER, WORD};

/// Stands for bytes whose reads and writes loom checks.
type Watched = loom::cell::UnsafeCell<()>;

/// Has loom try the accesses of a word in every order. To find what may come in another order it compares a store with
/// the last access of that word alone (0.7.3): a thread that loads a word before it stores there hides the other's loads.
/// So each access changes this too. Relaxed: it orders nothing.
#[derive(Debug)]
struct Accesses(atomic::AtomicU32);

impl Accesses {
    fn new() -> Accesses {
        Accesses(atomic::AtomicU32::new(0))
    }

    fn count(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A 32-bit word, and those who sleep on it.
#[derive(Debug)]
pub(super) struct AtomicU32 {
    accesses: Accesses,
    value: atomic::AtomicU32,
    sleepers: Mutex<()>,
    woken: Condvar,
}

impl AtomicU32 {
    pub(super) fn new(value: u32) -> AtomicU32 {
        AtomicU32 {
            accesses: Accesses::new(),
            value: atomic::AtomicU32::new(value),
            sleepers: Mutex::new(()),
            woken: Condvar::new(),
        }
    }

    #[track_caller]
    pub(super) fn load(&self, order: Ordering) -> u32 {
        self.accesses.count();
        self.value.load(order)
    }

    /// Such words are flags. One side raises its flag, both take it back; whoever finds it taken
    /// back changes nothing, so here that is a compare-and-exchange.
    ///
    /// The reason: what an exchange wrote comes right after what it read, before whatever the other
    /// side stores later. Loom does not know that, and would let a load see it in place of a flag
    /// that was raised again since.
    #[track_caller]
    pub(super) fn store(&self, value: u32, order: Ordering) {
        match value {
            0 => drop(self.take_back(order, Ordering::Relaxed)),
            _ => {
                self.accesses.count();
                self.value.store(value, order);
            }
        }
    }

    #[track_caller]
    pub(super) fn swap(&self, value: u32, order: Ordering) -> u32 {
        assert_eq!(value, 0);
        match self.take_back(order, Ordering::Acquire) {
            Ok(raised) => raised,
            Err(taken_back) => taken_back,
        }
    }

    #[track_caller]
    fn take_back(&self, order: Ordering, otherwise: Ordering) -> Result<u32, u32> {
        self.accesses.count();
        self.value.compare_exchange(1, 0, order, otherwise)
    }
}

/// A 64-bit word. In a ring it lies where other laps have data: to store it is to write there.
#[derive(Debug)]
pub(super) struct AtomicU64 {
    accesses: Accesses,
    value: atomic::AtomicU64,
    data: Watched,
}

impl AtomicU64 {
    fn new() -> AtomicU64 {
        AtomicU64 {
            accesses: Accesses::new(),
            value: atomic::AtomicU64::new(0),
            data: Watched::new(()),
        }
    }

    #[track_caller]
    pub(super) fn load(&self, order: Ordering) -> u64 {
        self.accesses.count();
        self.value.load(order)
    }

    #[track_caller]
    pub(super) fn store(&self, value: u64, order: Ordering) {
        self.data.with_mut(|_| ());
        self.accesses.count();
        self.value.store(value, order);
    }

    #[track_caller]
    pub(super) fn swap(&self, value: u64, order: Ordering) -> u64 {
        self.accesses.count();
        self.value.swap(value, order)
    }

    #[track_caller]
    pub(super) fn fetch_or(&self, bits: u64, order: Ordering) -> u64 {
        self.accesses.count();
        self.value.fetch_or(bits, order)
    }
}

/// Memory of two sides. Words are kept apart from the data, whose every access is watched.
#[derive(Debug)]
pub(super) struct Segment {
    words32: BTreeMap<usize, AtomicU32>,
    words64: BTreeMap<usize, AtomicU64>,
    /// By the place where a record may begin: what follows its word, up to the next such place.
    data: BTreeMap<usize, Watched>,
    bytes: Box<[UnsafeCell<u8>]>,
}

// SAFETY: `bytes` is reached through `at_to_read` and `at_to_write` only, which fail the model if
// two threads do so at a time. (Loom's threads take turns, so even then nothing happens.)
unsafe impl Send for Segment {}
// SAFETY: as above.
unsafe impl Sync for Segment {}

impl Segment {
    /// A connection's, of zeros.
    pub(super) fn connection() -> Segment {
        let mut segment = Segment {
            words32: BTreeMap::new(),
            words64: BTreeMap::new(),
            data: BTreeMap::new(),
            bytes: Box::new([]),
        };
        let mut end = 0;
        for places in [&TO_SERVER, &TO_CLIENT] {
            for flag in [0, 4, 8] {
                let flag = places.consumer_flags + flag;
                segment.words32.insert(flag, AtomicU32::new(0));
            }
            segment.words64.insert(places.consumed, AtomicU64::new());
            for offset in (0..CAPACITY).step_by(ALIGN) {
                let at = places.place(offset as u64).address;
                segment.words64.insert(at, AtomicU64::new());
                segment.data.insert(at, Watched::new(()));
                end = end.max(at + ALIGN);
            }
        }
        segment.bytes = (0..end).map(|_| UnsafeCell::new(0)).collect();
        segment
    }

    /// The words of one worker, for 64 connections.
    pub(super) fn control() -> Segment {
        Segment {
            words32: BTreeMap::from([(0, AtomicU32::new(0))]),
            words64: BTreeMap::from([(64, AtomicU64::new()), (128, AtomicU64::new())]),
            data: BTreeMap::new(),
            bytes: Box::new([]),
        }
    }

    pub(super) fn word32(&self, offset: usize) -> &AtomicU32 {
        &self.words32[&offset]
    }

    pub(super) fn word64(&self, offset: usize) -> &AtomicU64 {
        &self.words64[&offset]
    }

    /// For hints: nothing is accessed.
    pub(super) fn at(&self, offset: usize, length: usize) -> *mut u8 {
        self.bytes[offset..][..length].as_ptr().cast_mut().cast()
    }

    #[track_caller]
    pub(super) fn at_to_read(&self, offset: usize, length: usize) -> *const u8 {
        self.watch(offset, length, |word| word.with(|_| ()));
        self.at(offset, length)
    }

    #[track_caller]
    pub(super) fn at_to_write(&self, offset: usize, length: usize) -> *mut u8 {
        self.watch(offset, length, |word| word.with_mut(|_| ()));
        self.at(offset, length)
    }

    /// Data begin after a record's word and go over the words and data of the places behind.
    fn watch(&self, offset: usize, length: usize, access: impl Fn(&Watched)) {
        let first = offset - WORD;
        for (&at, data) in self.data.range(first..offset + length) {
            if at != first {
                access(&self.words64[&at].data);
            }
            access(data);
        }
    }
}

const _: () = assert!(HOT.is_multiple_of(ALIGN));

/// Nobody knows where it is: so a raised flag is always 1, as [`AtomicU32`] takes it back.
pub(super) mod affinity {
    pub(in super::super) fn current_cpu() -> Option<u32> {
        None
    }
}

/// A futex without a timer.
pub(super) mod futex {
    use std::time::Duration;

    use super::{AtomicU32, Ordering};
    pub(crate) use crate::sys::futex::Waited;

    /// Sleeps while `word` is `expected`, until woken. The lock is the kernel's: looking at the word
    /// and going to sleep is one step for [`wake`].
    pub(crate) fn wait(word: &AtomicU32, expected: u32, _limit: Option<Duration>) -> Waited {
        let sleepers = word.sleepers.lock().unwrap();
        if word.load(Ordering::Relaxed) != expected {
            return Waited::Changed;
        }
        drop(word.woken.wait(sleepers).unwrap());
        Waited::Woken
    }

    pub(crate) fn wake(word: &AtomicU32, _count: u32) {
        let _sleepers = word.sleepers.lock().unwrap();
        word.woken.notify_one();
    }
}
