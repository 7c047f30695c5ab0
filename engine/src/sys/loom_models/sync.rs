//! What [`super::queue`] is compiled with here: loom fails the model if two threads use a place at once.

pub(super) use std::sync::PoisonError;

use loom::cell::UnsafeCell;
pub(super) use loom::sync::atomic::{AtomicU64 as Atomic, Ordering};
pub(super) use loom::sync::{Mutex, MutexGuard};

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
