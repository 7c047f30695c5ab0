//! The counters of one worker.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Transport;
use super::histogram::{SharedHistogram, add_single_writer};
use crate::wire::ErrorCode;

/// Seen from the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    In,
    Out,
}

/// How many error codes there are. They run from 1.
pub(super) const ERROR_CODES: usize = ErrorCode::ALL.len();

pub(super) struct PerTransport {
    pub(super) requests: AtomicU64,
    pub(super) connections: AtomicU64,
    pub(super) connections_total: AtomicU64,
    pub(super) bytes_in: AtomicU64,
    pub(super) bytes_out: AtomicU64,
    pub(super) latency: SharedHistogram,
}

impl PerTransport {
    fn new() -> PerTransport {
        PerTransport {
            requests: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            connections_total: AtomicU64::new(0),
            bytes_in: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
            latency: SharedHistogram::new(),
        }
    }
}

/// Written by one worker, read by anybody.
pub(crate) struct WorkerStats {
    pub(super) transports: [PerTransport; 2],
    pub(super) errors: [AtomicU64; ERROR_CODES],
    pub(super) legacy_requests: AtomicU64,
}

impl WorkerStats {
    pub(crate) fn new() -> WorkerStats {
        WorkerStats {
            transports: [PerTransport::new(), PerTransport::new()],
            errors: std::array::from_fn(|_| AtomicU64::new(0)),
            legacy_requests: AtomicU64::new(0),
        }
    }

    fn of(&self, transport: Transport) -> &PerTransport {
        &self.transports[transport.index()]
    }

    /// `count` requests were taken.
    #[inline]
    pub(crate) fn requests(&self, transport: Transport, count: u64) {
        add_single_writer(&self.of(transport).requests, count);
    }

    /// `count` requests were answered `nanos` after they arrived.
    #[inline]
    pub(crate) fn answered(&self, transport: Transport, nanos: u64, count: u64) {
        self.of(transport).latency.record(nanos, count);
    }

    /// Payload and header bytes went over a connection.
    #[inline]
    pub(crate) fn bytes(&self, transport: Transport, direction: Direction, bytes: u64) {
        let of = self.of(transport);
        add_single_writer(
            match direction {
                Direction::In => &of.bytes_in,
                Direction::Out => &of.bytes_out,
            },
            bytes,
        );
    }

    pub(crate) fn error(&self, code: ErrorCode) {
        add_single_writer(&self.errors[code as usize - 1], 1);
    }

    pub(crate) fn legacy_requests(&self, count: u64) {
        add_single_writer(&self.legacy_requests, count);
    }

    pub(crate) fn connected(&self, transport: Transport) {
        let of = self.of(transport);
        add_single_writer(&of.connections, 1);
        add_single_writer(&of.connections_total, 1);
    }

    pub(crate) fn disconnected(&self, transport: Transport) {
        let connections = &self.of(transport).connections;
        debug_assert!(connections.load(Ordering::Relaxed) > 0);
        // Wraps around: minus one.
        add_single_writer(connections, u64::MAX);
    }
}
