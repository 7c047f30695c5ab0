//! What a worker knows besides its connections: the rules, the handlers, the counters.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::failure::Failure;
use super::handler::HandlerTable;
use super::inbox::Inbox;
use super::room::Room;
use crate::config::{IdleMode, Limits};
use crate::shm::ReadyBits;
use crate::stats::Registry;

/// Shared by all workers of a server and by its control plane. Nothing in it is a lock that a
/// worker waits for.
pub(crate) struct Shared {
    pub(crate) limits: Limits,
    pub(crate) handlers: HandlerTable,
    pub(crate) registry: Registry,
    pub(crate) auth_token: Option<Vec<u8>>,
    /// Version 1 frames are served. May change while running.
    pub(crate) legacy: AtomicBool,
    /// How idle workers wait. May change while running.
    pub(crate) idle: AtomicU32,
    /// Connections of all workers, against `max_connections`.
    pub(crate) connections: AtomicU32,
    /// Bytes of messages on their way in and answers on their way out.
    pub(crate) room: Room,
    pub(crate) inboxes: Vec<Arc<Inbox>>,
    /// Of a worker that panicked.
    pub(crate) failure: Failure,
    /// Free bits in the control segment, by worker.
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
        let value = match mode {
            IdleMode::Spin => 0,
            IdleMode::Adaptive => 1,
            IdleMode::Park => 2,
        };
        self.idle.store(value, Ordering::Relaxed);
        for inbox in &self.inboxes {
            inbox.doorbell().ring();
        }
    }

    /// Takes a place for one more connection; false if all are taken.
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

    /// Gives room back, and tells who can go now.
    pub(super) fn release_bytes(&self, bytes: u64) {
        self.room.release(bytes);
        self.tell_who_can_go();
    }

    /// After room was given back, or somebody has left the line.
    pub(super) fn tell_who_can_go(&self) {
        if let Some(worker) = self.room.someone_can_go() {
            self.inboxes[worker].doorbell().ring();
        }
    }
}
