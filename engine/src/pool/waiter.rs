//! One thread that waits for a connection.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::client::Client;

/// What a waiter gets.
#[derive(Debug)]
pub(super) enum Grant {
    /// A healthy connection.
    Connection(Box<Client>),
    /// Leave to make one.
    Permit,
}

#[derive(Debug, Default)]
pub(super) struct Waiter {
    slot: Mutex<Option<Grant>>,
    filled: Condvar,
}

impl Waiter {
    fn slot(&self) -> MutexGuard<'_, Option<Grant>> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To a waiter that was taken out of the queue, once.
    pub(super) fn give(&self, grant: Grant) {
        *self.slot() = Some(grant);
        self.filled.notify_one();
    }

    /// Waits until the deadline.
    pub(super) fn wait_until(&self, deadline: Instant) -> Option<Grant> {
        let limit = deadline.saturating_duration_since(Instant::now());
        let (mut slot, _) = self
            .filled
            .wait_timeout_while(self.slot(), limit, |slot| slot.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        slot.take()
    }

    /// For a waiter that is no more in the queue: somebody is about to give it something.
    pub(super) fn wait_for_certain(&self) -> Grant {
        let mut slot = self
            .filled
            .wait_while(self.slot(), |slot| slot.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        slot.take().expect("waited for it")
    }
}
