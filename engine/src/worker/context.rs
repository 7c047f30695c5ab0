//! What the workers of a server share: limits, handlers, counters, the memory budget, their inboxes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::failure::Failure;
use super::handler::HandlerTable;
use super::inbox::Inbox;
use super::room::Room;
use crate::config::{IdleMode, Limits};
use crate::shm::ReadyBits;
use crate::stats::Registry;

/// Shared by all workers of a server and by its control plane (the handle, the attach thread). A worker
/// never waits for a lock in it that the control plane can hold.
pub(crate) struct Shared {
    pub(crate) limits: Limits,
    pub(crate) handlers: HandlerTable,
    pub(crate) registry: Registry,
    pub(crate) auth_token: Option<Vec<u8>>,
    /// Whether version 1 frames are served. May change while the server runs.
    pub(crate) legacy: AtomicBool,
    /// How idle workers wait: an [`IdleMode`]. May change while the server runs.
    pub(crate) idle: AtomicU32,
    /// Connections of all workers, limited by `max_connections`.
    pub(crate) connections: AtomicU32,
    /// The memory budget, `max_buffered_bytes`.
    pub(crate) room: Arc<Room>,
    /// By worker.
    pub(crate) inboxes: Vec<Arc<Inbox>>,
    /// Whether a thread of the server has panicked.
    pub(crate) failure: Failure,
    /// Ready bits that no connection uses, by worker.
    pub(crate) ready_bits: Vec<ReadyBits>,
}

impl Shared {
    pub(crate) fn idle_mode(&self) -> IdleMode {
        match self.idle.load(Ordering::Relaxed) {
            0 => IdleMode::Spin,
            1 => IdleMode::Adaptive,
            _ => IdleMode::Park,
        }
    }

    pub(crate) fn set_idle_mode(&self, mode: IdleMode) {
        let value = match mode.here() {
            IdleMode::Spin => 0,
            IdleMode::Adaptive => 1,
            IdleMode::Park => 2,
        };
        self.idle.store(value, Ordering::Relaxed);
        // A worker that sleeps would not see it otherwise.
        for inbox in &self.inboxes {
            inbox.doorbell().ring();
        }
    }

    /// Claims a place for one more connection. False if there are `max_connections` already.
    pub(crate) fn claim_connection(&self) -> bool {
        // Relaxed: a count, ordering nothing else.
        self.connections
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| {
                (count < self.limits.max_connections).then_some(count + 1)
            })
            .is_ok()
    }

    pub(crate) fn release_connection(&self) {
        let before = self.connections.fetch_sub(1, Ordering::Relaxed);
        assert!(
            before > 0,
            "a place is released once for each time it is claimed"
        );
    }

    /// Gives room of the budget back, and wakes the worker of the connection that can have it now.
    pub(super) fn release_bytes(&self, bytes: u64) {
        self.room.release(bytes);
        self.tell_who_can_go();
    }

    /// The same, for bytes that were charged.
    pub(super) fn discharge_bytes(&self, bytes: u64) {
        self.room.discharge(bytes);
        self.tell_who_can_go();
    }

    /// Wakes the worker of the first in line for room, if there is enough for it. Called after room was given
    /// back or somebody has left the line.
    pub(super) fn tell_who_can_go(&self) {
        if let Some(worker) = self.room.someone_can_go() {
            self.inboxes[worker].doorbell().ring();
        }
    }
}
