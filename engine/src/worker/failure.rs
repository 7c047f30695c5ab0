//! Whether one of the server's threads has panicked. A handler's panic is caught, so that is a bug of this
//! crate: what the thread knew cannot be trusted, and others may wait for it. The server stops, and a
//! supervisor, if there is one, starts it again.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Whether a thread has failed, and who waits for that.
#[derive(Default)]
pub(crate) struct Failure {
    failed: Mutex<bool>,
    told: Condvar,
}

impl Failure {
    pub(crate) fn report(&self) {
        *self.lock() = true;
        self.told.notify_all();
    }

    /// Waits until a thread fails, at most so long. Returns whether one has.
    pub(crate) fn wait(&self, at_most: Duration) -> bool {
        let waited = self
            .told
            .wait_timeout_while(self.lock(), at_most, |failed| !*failed);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn lock(&self) -> MutexGuard<'_, bool> {
        // A flag is whole whoever panicked.
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
