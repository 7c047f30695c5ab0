//! The pool with a real server.

use super::Running;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use super::shared::Shared;
use super::{ConnectionPool, ConnectionPoolBuilder, PoolConfig};
use crate::client::{Client, Error};
use crate::server::Server;
use crate::wire::msg_type;

fn server() -> Server {
    Server::builder()
        .bind("127.0.0.1:0")
        .workers(1)
        .start()
        .unwrap()
}

fn address(server: &Server) -> String {
    server.local_addr().unwrap().to_string()
}

fn builder(server: &Server) -> ConnectionPoolBuilder {
    ConnectionPool::builder()
        .endpoint(address(server))
        .timeout(Duration::from_secs(20))
        .client(Client::builder().shm_upgrade(false))
}

/// Until something that takes a while is so.
#[track_caller]
fn until(what: impl Fn() -> bool) {
    for _ in 0..20_000 {
        if what() {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("waited in vain");
}

#[test]
fn the_connection_used_last_comes_first() {
    let server = server();
    // Without its thread, whose report would count as use once half a second has passed.
    let shared = Arc::new(Shared::new(PoolConfig {
        endpoint: address(&server),
        client: Client::builder().shm_upgrade(false),
        ..PoolConfig::default()
    }));
    let keeper = None;
    let pool = ConnectionPool {
        running: Arc::new(Running { shared, keeper }),
    };
    let (a, b) = (pool.get().unwrap(), pool.get().unwrap());
    a.ping().unwrap();
    for _ in 0..2 {
        b.ping().unwrap();
    }
    drop(a);
    drop(b);
    assert_eq!(pool.get().unwrap().stats().received, 2);
    let (newest, oldest) = (pool.get().unwrap(), pool.get().unwrap());
    assert_eq!(newest.stats().received, 2);
    assert_eq!(oldest.stats().received, 1);
    let stats = pool.stats();
    assert_eq!((stats.acquired, stats.reused, stats.created), (5, 3, 2));
    assert_eq!((stats.open, stats.idle, stats.in_use()), (2, 0, 2));
    assert_eq!(stats.reuse_ratio(), Some(0.6));
}

#[test]
fn those_who_wait_are_served_in_their_order() {
    const WAITERS: usize = 8;
    let server = server();
    let pool = builder(&server).max_connections(1).build().unwrap();
    let held = pool.get().unwrap();
    let (done, order) = mpsc::channel();
    std::thread::scope(|scope| {
        for number in 0..WAITERS {
            let (pool, done) = (&pool, done.clone());
            scope.spawn(move || {
                let connection = pool.get().unwrap();
                done.send(number).unwrap();
                connection.ping().unwrap();
            });
            until(|| pool.stats().waiting == number + 1);
        }
        drop(held);
        let order: Vec<usize> = order.iter().take(WAITERS).collect();
        assert_eq!(order, (0..WAITERS).collect::<Vec<_>>());
    });
    assert_eq!(pool.stats().created, 1);
    assert_eq!(pool.stats().waiting, 0);
}

#[test]
fn an_exhausted_pool_says_so_after_its_timeout() {
    let server = server();
    let pool = builder(&server)
        .max_connections(2)
        .timeout(Duration::from_millis(20))
        .build()
        .unwrap();
    let held = [pool.get().unwrap(), pool.get().unwrap()];
    let error = pool.get().unwrap_err();
    assert!(
        matches!(
            error,
            Error::PoolExhausted {
                max_connections: 2,
                ..
            }
        ) && error.is_safe_to_repeat(),
        "{error}"
    );
    assert_eq!(pool.stats().exhausted, 1);
    assert_eq!(pool.stats().waiting, 0);
    drop(held);
    pool.get().unwrap();
}

#[test]
fn many_threads_share_few_connections() {
    const THREADS: usize = 100;
    const CALLS: usize = 200;
    let server = server();
    let pool = builder(&server).max_connections(20).build().unwrap();
    let done = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (pool, done) = (&pool, &done);
            scope.spawn(move || {
                for call in 0..CALLS {
                    let payload = [thread as u8, call as u8];
                    let connection = pool.get().unwrap();
                    let answer = connection.call(msg_type::ECHO, &payload).unwrap();
                    assert_eq!(answer, payload);
                    // Relaxed: only counted.
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(done.into_inner(), THREADS * CALLS);
    let stats = pool.stats();
    assert_eq!(stats.acquired, (THREADS * CALLS) as u64);
    assert!(stats.created <= 20 && stats.open <= 20, "{stats:?}");
    assert!(stats.reuse_ratio().unwrap() > 0.95, "{stats:?}");
    assert_eq!((stats.waiting, stats.in_use()), (0, 0));
}

#[test]
fn a_broken_connection_is_never_handed_out_again() {
    let first = server();
    let address = address(&first);
    let pool = builder(&first)
        .client(Client::builder().reconnect(false).shm_upgrade(false))
        .build()
        .unwrap();
    let mut held: Vec<_> = (0..4).map(|_| pool.get().unwrap()).collect();
    // Two break while idle, two in use.
    held.truncate(2);
    first.stop();
    let second = Server::builder().bind(address).workers(1).start().unwrap();
    for connection in &held {
        assert!(connection.ping().is_err());
    }
    drop(held);
    std::thread::sleep(Duration::from_millis(5));
    let fresh: Vec<_> = (0..4).map(|_| pool.get().unwrap()).collect();
    for connection in &fresh {
        connection.ping().unwrap();
    }
    let stats = pool.stats();
    assert_eq!((stats.broken, stats.created, stats.reused), (4, 8, 0));
    drop(fresh);
    drop(second);
}

#[test]
fn without_a_server_everybody_is_told_at_once() {
    let server = server();
    let pool = builder(&server).max_connections(1).build().unwrap();
    let held = pool.get().unwrap();
    server.stop();
    std::thread::scope(|scope| {
        let waiters: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| pool.get().map(drop)))
            .collect();
        until(|| pool.stats().waiting == 4);
        // It is broken, so the first of them tries to connect, and then the next.
        drop(held);
        for waiter in waiters {
            let error = waiter.join().unwrap().unwrap_err();
            assert!(matches!(error, Error::ConnectFailed { .. }), "{error}");
        }
    });
    let stats = pool.stats();
    assert_eq!((stats.open, stats.connect_failed), (0, 4));
}

#[test]
fn idle_connections_are_checked_and_broken_ones_closed() {
    let server = server();
    let pool = builder(&server)
        .health_check_interval(Duration::from_millis(10))
        .build()
        .unwrap();
    let held: Vec<_> = (0..3).map(|_| pool.get().unwrap()).collect();
    drop(held);
    until(|| pool.stats().checks >= 6);
    until(|| pool.stats().idle == 3);
    server.stop();
    until(|| pool.stats().open == 0);
    let stats = pool.stats();
    assert_eq!((stats.broken, stats.checks_failed), (3, 3));
}

#[test]
fn the_server_learns_how_well_connections_are_reused() {
    let server = server();
    // One connection: a get waits for one that carries a report.
    let pool = builder(&server).max_connections(1).build().unwrap();
    for _ in 0..10 {
        pool.get().unwrap();
    }
    // Well before the first check.
    until(|| server.stats().pool_acquired() == 10);
    assert_eq!(server.stats().pool_reused(), 9);
    // And again, though no check is due for long.
    pool.get().unwrap();
    until(|| server.stats().pool_acquired() == 11);
    pool.get().unwrap();
    drop(pool);
    until(|| server.stats().pool_acquired() == 12);
    // Of two pools, the sum; and a busy one reports as soon as a connection is free.
    let pool = builder(&server).max_connections(1).build().unwrap();
    let held = pool.get().unwrap();
    until(|| pool.stats().waiting == 1);
    drop(held);
    until(|| server.stats().pool_acquired() == 13);
    assert_eq!(server.stats().pool_reuse_ratio(), Some(11.0 / 13.0));
}

#[test]
fn too_little_reuse_keeps_more_connections() {
    let server = server();
    let pool = builder(&server)
        .max_connections(16)
        .reuse_threshold(0.95)
        .build()
        .unwrap();
    assert_eq!(pool.stats().keep_idle, 4);
    for _ in 0..1100 {
        pool.get().unwrap().discard();
    }
    let stats = pool.stats();
    assert_eq!((stats.keep_idle, stats.reused, stats.open), (8, 0, 0));
    assert!(stats.recent_reuse_ratio < Some(0.01));
}

#[test]
fn connections_that_are_not_needed_are_closed_after_a_while() {
    let server = server();
    let pool = builder(&server)
        .max_connections(8)
        .health_check_interval(Duration::from_millis(10))
        .idle_timeout(Duration::from_millis(50))
        .build()
        .unwrap();
    let held: Vec<_> = (0..8).map(|_| pool.get().unwrap()).collect();
    drop(held);
    until(|| pool.stats().open == 2);
    let stats = pool.stats();
    assert_eq!((stats.keep_idle, stats.expired, stats.broken), (2, 6, 0));
}

#[test]
fn the_next_user_sees_nothing_of_the_last() {
    let server = server();
    let pool = builder(&server).max_connections(1).build().unwrap();
    let connection = pool.get().unwrap();
    let id = connection.submit(msg_type::ECHO, b"left behind").unwrap();
    connection.submit(msg_type::ECHO, b"this too").unwrap();
    connection.wait(id + 1).unwrap();
    drop(connection);
    let connection = pool.get().unwrap();
    assert_eq!(connection.in_flight(), 0);
    assert!(matches!(connection.wait(id), Err(Error::InvalidRequest(_))));
    assert_eq!(connection.call(msg_type::ECHO, b"new").unwrap(), b"new");
    assert_eq!(pool.stats().created, 1);
}

#[test]
fn a_connection_may_outlive_its_pool() {
    let server = server();
    let pool = builder(&server).build().unwrap();
    let connection = pool.get().unwrap();
    drop(pool);
    connection.ping().unwrap();
    drop(connection);
    until(|| server.stats().connections(crate::stats::Transport::Tcp) == 0);
}

#[test]
fn the_old_way_to_make_a_pool() {
    let server = server();
    let config = PoolConfig {
        endpoint: address(&server),
        max_connections: 0,
        ..PoolConfig::default()
    };
    #[allow(deprecated)]
    let pool = Arc::new(ConnectionPool::new(config));
    let shared = pool.clone();
    std::thread::spawn(move || shared.get().unwrap().ping().unwrap())
        .join()
        .unwrap();
    assert_eq!(pool.stats().max_connections, 1);
}

#[test]
fn clones_are_handles_to_one_pool() {
    let server = server();
    let pool = builder(&server).max_connections(1).build().unwrap();
    let other = pool.clone();
    std::thread::spawn(move || other.get().unwrap().ping().unwrap())
        .join()
        .unwrap();
    // The first handle that is dropped closes nothing.
    assert_eq!(pool.stats().idle, 1);
    drop(pool.get().unwrap());
    assert_eq!((pool.stats().created, pool.stats().reused), (1, 1));
}
