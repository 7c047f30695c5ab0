//! That one of the server's threads has panicked. Handlers cannot do that to it, so it is a bug of this
//! crate: what the thread knew is not to be trusted, and others may depend on it. The server stops; who
//! has a supervisor starts it anew.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Whether a thread has failed, and whoever waits for that.
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

    /// Waits for it, at most so long.
    pub(crate) fn wait(&self, at_most: Duration) -> bool {
        let waited = self
            .told
            .wait_timeout_while(self.lock(), at_most, |failed| !*failed);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn lock(&self) -> MutexGuard<'_, bool> {
        // It is whole whoever panicked.
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
