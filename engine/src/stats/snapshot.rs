//! The statistics as a reader gets them.

use std::sync::atomic::Ordering;

use hdrhistogram::Histogram;

use super::Transport;
use super::histogram::SharedHistogram;
use super::set::{self, ERROR_CODES};
use crate::wire::ErrorCode;

#[derive(Clone, Debug)]
pub(super) struct PerTransport {
    requests: u64,
    connections: u64,
    connections_total: u64,
    bytes_in: u64,
    bytes_out: u64,
    latency: Histogram<u64>,
    latency_sum_ns: u64,
}

impl PerTransport {
    pub(super) fn new() -> PerTransport {
        PerTransport {
            requests: 0,
            connections: 0,
            connections_total: 0,
            bytes_in: 0,
            bytes_out: 0,
            latency: SharedHistogram::empty(),
            latency_sum_ns: 0,
        }
    }

    pub(super) fn add(&mut self, from: &set::PerTransport) {
        self.requests += from.requests.load(Ordering::Relaxed);
        self.connections += from.connections.load(Ordering::Relaxed);
        self.connections_total += from.connections_total.load(Ordering::Relaxed);
        self.bytes_in += from.bytes_in.load(Ordering::Relaxed);
        self.bytes_out += from.bytes_out.load(Ordering::Relaxed);
        self.latency_sum_ns += from.latency.add_to(&mut self.latency);
    }
}

/// The statistics of a server at one moment, merged over its workers. Counters are since start.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub(super) totals: [PerTransport; 2],
    pub(super) errors: [u64; ERROR_CODES],
    pub(super) legacy_requests: u64,
    pub(super) pool_acquired: u64,
    pub(super) pool_reused: u64,
}

impl Snapshot {
    fn of(&self, transport: Transport) -> &PerTransport {
        &self.totals[transport.index()]
    }

    /// Requests taken, whether answered or answered with an error.
    pub fn requests(&self, transport: Transport) -> u64 {
        self.of(transport).requests
    }

    /// Connections open now.
    pub fn connections(&self, transport: Transport) -> u64 {
        self.of(transport).connections
    }

    /// Connections ever opened.
    pub fn connections_total(&self, transport: Transport) -> u64 {
        self.of(transport).connections_total
    }

    /// Bytes received, frame headers included.
    pub fn bytes_in(&self, transport: Transport) -> u64 {
        self.of(transport).bytes_in
    }

    /// Bytes encoded for sending, frame headers included.
    pub fn bytes_out(&self, transport: Transport) -> u64 {
        self.of(transport).bytes_out
    }

    /// Times from the arrival of a request or one-way message to when its answer was handed over, in nanoseconds.
    pub fn latency(&self, transport: Transport) -> &Histogram<u64> {
        &self.of(transport).latency
    }

    /// The sum of all those times, in nanoseconds.
    pub fn latency_sum_ns(&self, transport: Transport) -> u64 {
        self.of(transport).latency_sum_ns
    }

    /// Errors of one kind that were sent.
    pub fn errors(&self, code: ErrorCode) -> u64 {
        self.errors[code as usize - 1]
    }

    /// All errors that were sent.
    pub fn errors_total(&self) -> u64 {
        self.errors.iter().sum()
    }

    /// Errors over requests; 0 before the first request. Refused connections count as errors
    /// without a request, so the ratio can pass 1.
    pub fn error_ratio(&self) -> f64 {
        let requests: u64 = self.totals.iter().map(|of| of.requests).sum();
        match (self.errors_total(), requests) {
            (0, _) => 0.0,
            (errors, requests) => errors as f64 / requests.max(1) as f64,
        }
    }

    /// Requests that came as version 1 frames.
    pub fn legacy_requests(&self) -> u64 {
        self.legacy_requests
    }

    /// Connections handed out by the pools that reported here.
    pub fn pool_acquired(&self) -> u64 {
        self.pool_acquired
    }

    /// Those of these connections that were not newly made.
    pub fn pool_reused(&self) -> u64 {
        self.pool_reused
    }

    /// Reused over acquired, or `None` before a pool has reported.
    pub fn pool_reuse_ratio(&self) -> Option<f64> {
        (self.pool_acquired > 0).then(|| self.pool_reused as f64 / self.pool_acquired as f64)
    }
}
