//! What [`super::queue`] shares between threads. Its loom models compile it with substitutes for these.

use std::cell::UnsafeCell;
pub(super) use std::sync::atomic::{AtomicU64 as Atomic, Ordering};
pub(super) use std::sync::{Mutex, MutexGuard, PoisonError};

/// Memory for a value that threads hand each other.
pub(super) struct Place<T>(UnsafeCell<Option<T>>);

// SAFETY: who calls `put` or `take` promises to be alone, so values only move from thread to thread.
unsafe impl<T: Send> Sync for Place<T> {}

impl<T> Place<T> {
    pub(super) fn new() -> Place<T> {
        Place(UnsafeCell::new(None))
    }

    /// # Safety
    /// No other thread uses the place meanwhile.
    pub(super) unsafe fn put(&self, value: T) {
        // SAFETY: the caller's promise.
        unsafe { *self.0.get() = Some(value) };
    }

    /// # Safety
    /// As [`Place::put`].
    pub(super) unsafe fn take(&self) -> Option<T> {
        // SAFETY: the caller's promise.
        unsafe { (*self.0.get()).take() }
    }
}
