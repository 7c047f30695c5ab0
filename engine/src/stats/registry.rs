//! What is known across workers: their counters, the pools that report, the legacy clients.
//!
//! The two tables are written rarely (a heartbeat with a pool's report, a legacy connection). A
//! worker only tries their lock: if a reader holds it, the news waits for the next report.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::Transport;
use super::histogram::SharedHistogram;
use super::set::{ERROR_CODES, WorkerStats};
use super::snapshot::{PerTransport, Snapshot};
use crate::wire::ErrorCode;

/// Tables stop growing here: what is beyond is counted together.
const TABLE_MAX: usize = 1024;

#[derive(Default)]
struct Pools {
    /// Totals by the pool's own id.
    live: HashMap<u64, (u64, u64)>,
    /// Totals of pools that had to make room.
    retired: (u64, u64),
}

/// Shared by the workers of a server and its control plane.
pub(crate) struct Registry {
    workers: Vec<Arc<WorkerStats>>,
    pools: Mutex<Pools>,
    legacy: Mutex<HashMap<IpAddr, u64>>,
    /// Shared-memory connections that were refused, by no worker.
    refused_attaching: AtomicU64,
}

impl Registry {
    pub(crate) fn new(workers: usize) -> Registry {
        Registry {
            workers: (0..workers).map(|_| Arc::new(WorkerStats::new())).collect(),
            pools: Mutex::default(),
            legacy: Mutex::default(),
            refused_attaching: AtomicU64::new(0),
        }
    }

    pub(crate) fn worker(&self, index: usize) -> Arc<WorkerStats> {
        self.workers[index].clone()
    }

    /// A pool's heartbeat told its totals so far. Never blocks.
    pub(crate) fn pool_report(&self, pool: u64, acquired: u64, reused: u64) {
        let Ok(mut pools) = self.pools.try_lock() else {
            return;
        };
        let Pools { live, retired } = &mut *pools;
        if live.len() >= TABLE_MAX && !live.contains_key(&pool) {
            for (_, (acquired, reused)) in live.drain() {
                retired.0 = retired.0.saturating_add(acquired);
                retired.1 = retired.1.saturating_add(reused);
            }
        }
        let totals = live.entry(pool).or_default();
        // Reports over several connections may overtake each other; totals only grow.
        *totals = (totals.0.max(acquired), totals.1.max(reused.min(acquired)));
    }

    /// A connection turned out to speak version 1. Never blocks.
    pub(crate) fn legacy_client(&self, address: IpAddr) {
        let Ok(mut legacy) = self.legacy.try_lock() else {
            return;
        };
        if legacy.len() < TABLE_MAX || legacy.contains_key(&address) {
            *legacy.entry(address).or_default() += 1;
        }
    }

    /// A shared-memory connection was refused with OVERLOADED.
    pub(crate) fn refused_attaching(&self) {
        // Relaxed: a count, by which nothing else is seen.
        self.refused_attaching.fetch_add(1, Ordering::Relaxed);
    }

    /// Legacy connections by address since the last call.
    pub(crate) fn take_legacy_clients(&self) -> Vec<(IpAddr, u64)> {
        let mut clients: Vec<_> = match self.legacy.lock() {
            Ok(mut legacy) => legacy.drain().collect(),
            Err(_) => Vec::new(),
        };
        clients.sort();
        clients
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let mut latency = Transport::ALL.map(|_| SharedHistogram::empty());
        let mut totals: [PerTransport; 2] = Default::default();
        let mut errors = [0u64; ERROR_CODES];
        errors[ErrorCode::Overloaded as usize - 1] = self.refused_attaching.load(Ordering::Relaxed);
        let mut legacy_requests = 0;
        for worker in &self.workers {
            for transport in Transport::ALL {
                let from = &worker.transports[transport.index()];
                let to = &mut totals[transport.index()];
                to.add(from);
                to.latency_sum_ns += from.latency.add_to(&mut latency[transport.index()]);
            }
            for (total, count) in errors.iter_mut().zip(&worker.errors) {
                *total += count.load(std::sync::atomic::Ordering::Relaxed);
            }
            legacy_requests += worker
                .legacy_requests
                .load(std::sync::atomic::Ordering::Relaxed);
        }
        let (mut acquired, mut reused) = (0u64, 0u64);
        if let Ok(pools) = self.pools.lock() {
            (acquired, reused) = pools.retired;
            for (a, r) in pools.live.values() {
                acquired = acquired.saturating_add(*a);
                reused = reused.saturating_add(*r);
            }
        }
        Snapshot::new(totals, latency, errors, legacy_requests, acquired, reused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::ErrorCode;

    #[test]
    fn workers_are_merged() {
        let registry = Registry::new(2);
        for index in 0..2 {
            let worker = registry.worker(index);
            worker.connected(Transport::Tcp);
            worker.requests(Transport::Tcp, 10);
            worker.answered(Transport::Tcp, 1_000, 10);
            worker.error(ErrorCode::CrcMismatch);
        }
        registry.worker(1).disconnected(Transport::Tcp);
        let snapshot = registry.snapshot();
        assert_eq!(snapshot.requests(Transport::Tcp), 20);
        assert_eq!(snapshot.requests(Transport::Shm), 0);
        assert_eq!(snapshot.connections(Transport::Tcp), 1);
        assert_eq!(snapshot.connections_total(Transport::Tcp), 2);
        assert_eq!(snapshot.errors(ErrorCode::CrcMismatch), 2);
        assert_eq!(snapshot.error_ratio(), 0.1);
        assert_eq!(snapshot.latency(Transport::Tcp).len(), 20);
        assert_eq!(snapshot.latency_sum_ns(Transport::Tcp), 20_000);
    }

    #[test]
    fn pools_report_totals_and_never_count_twice() {
        let registry = Registry::new(1);
        registry.pool_report(1, 10, 5);
        registry.pool_report(1, 100, 96);
        registry.pool_report(1, 90, 88); // overtaken
        registry.pool_report(2, 100, 100);
        let snapshot = registry.snapshot();
        assert_eq!(
            (snapshot.pool_acquired(), snapshot.pool_reused()),
            (200, 196)
        );
        assert_eq!(snapshot.pool_reuse_ratio(), Some(0.98));
        for pool in 0..5_000 {
            registry.pool_report(1_000 + pool, 1, 0);
        }
        assert_eq!(registry.snapshot().pool_acquired(), 5_200);
        assert!(registry.pools.lock().unwrap().live.len() <= TABLE_MAX);
    }
}
