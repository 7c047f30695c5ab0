//! What [`super::queue`] is compiled with here: loom fails the model if two threads use a place at once.

pub(super) use std::sync::PoisonError;

use loom::cell::UnsafeCell;
use loom::sync::atomic::AtomicU64;
pub(super) use loom::sync::atomic::Ordering;
pub(super) use loom::sync::{Mutex, MutexGuard};

/// An atomic of which loom tries the accesses in every order. To find what may come in another order it compares a store
/// with the last access alone (0.7.3): so of whoever takes, and a thread that pushes, which loads a word before it stores
/// there, it tried one order.
pub(super) struct Atomic {
    value: AtomicU64,
    /// Changed by each access, so that none is independent of another. Relaxed: it orders nothing.
    accesses: AtomicU64,
}

impl Atomic {
    pub(super) fn new(value: u64) -> Atomic {
        Atomic {
            value: AtomicU64::new(value),
            accesses: AtomicU64::new(0),
        }
    }

    fn access(&self) -> &AtomicU64 {
        self.accesses.fetch_add(1, Ordering::Relaxed);
        &self.value
    }

    pub(super) fn load(&self, order: Ordering) -> u64 {
        self.access().load(order)
    }

    pub(super) fn store(&self, value: u64, order: Ordering) {
        self.access().store(value, order);
    }

    pub(super) fn fetch_add(&self, by: u64, order: Ordering) -> u64 {
        self.access().fetch_add(by, order)
    }

    pub(super) fn compare_exchange_weak(
        &self,
        current: u64,
        new: u64,
        success: Ordering,
        failure: Ordering,
    ) -> Result<u64, u64> {
        self.access()
            .compare_exchange_weak(current, new, success, failure)
    }
}

pub(super) struct Place<T>(UnsafeCell<Option<T>>);

// SAFETY: as of the place that this stands for.
unsafe impl<T: Send> Sync for Place<T> {}

impl<T> Place<T> {
    pub(super) fn new() -> Place<T> {
        Place(UnsafeCell::new(None))
    }

    pub(super) unsafe fn put(&self, value: T) {
        // SAFETY: the caller's promise, which loom checks.
        self.0.with_mut(|place| unsafe { *place = Some(value) });
    }

    pub(super) unsafe fn take(&self) -> Option<T> {
        // SAFETY: as in `put`.
        self.0.with_mut(|place| unsafe { (*place).take() })
    }
}
