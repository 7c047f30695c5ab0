//! What is known across workers: their counters, the pools that report, the legacy clients.
//!
//! The two tables are written rarely (a heartbeat with a pool's report, a legacy connection). A
//! worker only tries their lock: if a reader holds it, the news waits for the next report.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::Transport;
use super::pools::Pools;
use super::set::{ERROR_CODES, WorkerStats};
use super::snapshot::{PerTransport, Snapshot};
use crate::wire::ErrorCode;

/// Addresses that are counted each for itself; what is beyond is counted together.
const ADDRESSES_MAX: usize = 1024;

#[derive(Default)]
struct LegacyClients {
    by_address: HashMap<IpAddr, u64>,
    /// From addresses that found no place there.
    beyond: u64,
}

/// Shared by the workers of a server and its control plane.
pub(crate) struct Registry {
    workers: Vec<Arc<WorkerStats>>,
    pools: Mutex<Pools>,
    legacy: Mutex<LegacyClients>,
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
        pools.report(pool, (acquired, reused));
    }

    /// A connection turned out to speak version 1. Never blocks.
    pub(crate) fn legacy_client(&self, address: IpAddr) {
        let Ok(mut legacy) = self.legacy.try_lock() else {
            return;
        };
        let LegacyClients { by_address, beyond } = &mut *legacy;
        let has_place = by_address.len() < ADDRESSES_MAX || by_address.contains_key(&address);
        let count = match has_place {
            true => by_address.entry(address).or_default(),
            false => beyond,
        };
        *count += 1;
    }

    /// A shared-memory connection was refused with OVERLOADED.
    pub(crate) fn refused_attaching(&self) {
        // Relaxed: a count, by which nothing else is seen.
        self.refused_attaching.fetch_add(1, Ordering::Relaxed);
    }

    /// Legacy connections by address since the last call; those beyond the addresses that are counted are
    /// last, under the address that is none.
    pub(crate) fn take_legacy_clients(&self) -> Vec<(IpAddr, u64)> {
        let LegacyClients { by_address, beyond } = match self.legacy.lock() {
            Ok(mut legacy) => std::mem::take(&mut *legacy),
            Err(_) => LegacyClients::default(),
        };
        let mut clients: Vec<_> = by_address.into_iter().collect();
        clients.sort();
        if beyond > 0 {
            clients.push((Ipv4Addr::UNSPECIFIED.into(), beyond));
        }
        clients
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let mut totals = Transport::ALL.map(|_| PerTransport::new());
        let mut errors = [0u64; ERROR_CODES];
        errors[ErrorCode::Overloaded as usize - 1] = self.refused_attaching.load(Ordering::Relaxed);
        let mut legacy_requests = 0;
        for worker in &self.workers {
            for (total, from) in totals.iter_mut().zip(&worker.transports) {
                total.add(from);
            }
            for (total, count) in errors.iter_mut().zip(&worker.errors) {
                *total += count.load(Ordering::Relaxed);
            }
            legacy_requests += worker.legacy_requests.load(Ordering::Relaxed);
        }
        let (pool_acquired, pool_reused) = match self.pools.lock() {
            Ok(pools) => pools.totals(),
            Err(_) => (0, 0),
        };
        Snapshot {
            totals,
            errors,
            legacy_requests,
            pool_acquired,
            pool_reused,
        }
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
    fn pools_report_totals() {
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
    }

    #[test]
    fn legacy_clients_beyond_the_table_are_counted_together() {
        let registry = Registry::new(1);
        let many = 3 * ADDRESSES_MAX as u32;
        for _ in 0..2 {
            for number in 1..=many {
                registry.legacy_client(IpAddr::from(number.to_be_bytes()));
            }
            let clients = registry.take_legacy_clients();
            assert_eq!(clients.len(), ADDRESSES_MAX + 1);
            let (last, beyond) = clients[ADDRESSES_MAX];
            assert!(last.is_unspecified());
            assert_eq!(beyond, 2 * ADDRESSES_MAX as u64);
            assert!(
                clients[..ADDRESSES_MAX]
                    .iter()
                    .all(|(_, count)| *count == 1)
            );
        }
    }
}
