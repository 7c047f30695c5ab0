//! Pools of connections, for any number of threads at a time.
//!
//! The handle is held only to take another reference to the pool, so that no thread waits for the handle while another
//! waits for a connection or an answer.
#![allow(unsafe_code)]

use std::ffi::{c_char, c_int, c_void};
use std::ptr;
use std::time::{Duration, Instant};

use lapce_ai::ipc::ConnectionPool;

use crate::buffer::Buffer;
use crate::client::{self, ClientHandle, Connection};
use crate::error::Fault;
use crate::handles::{Handles, Kind};
use crate::options::{self, PoolOptions, Sized0};
use crate::{fork, guard};

/// lapce_ipc_pool: opaque to C.
pub(crate) enum PoolHandle {}

pub(crate) static POOLS: Handles<ConnectionPool> = Handles::new(Kind::Pool);

/// lapce_ipc_pool_stats_t
#[derive(Clone, Copy)]
#[repr(C)]
struct PoolStats {
    size: usize,
    acquired: u64,
    reused: u64,
    created: u64,
    reconnected: u64,
    broken: u64,
    expired: u64,
    exhausted: u64,
    connect_failed: u64,
    checks: u64,
    checks_failed: u64,
    max_connections: u32,
    open: u32,
    idle: u32,
    keep_idle: u32,
    waiting: u32,
    reserved: u32,
}

// SAFETY: plain numbers, the size first.
unsafe impl Sized0 for PoolStats {
    const SIZE_MIN: usize = 112;
}

// The header's tests check the same number.
const _: () = assert!(size_of::<PoolStats>() == 112);

fn pool_of(handle: *mut PoolHandle) -> Result<ConnectionPool, Fault> {
    POOLS.with_in_turn(handle.addr() as u64, |pool| pool.clone())
}

// SAFETY: the name is this library's own, here and below.
#[unsafe(no_mangle)]
unsafe extern "C" fn lapce_ipc_pool_open(
    address: *const c_char,
    options: *const PoolOptions,
    pool: *mut *mut PoolHandle,
) -> c_int {
    guard::run(|| {
        // SAFETY: the header asks for a place for the handle.
        let place = unsafe { guard::place(pool, "the place for the pool") }?;
        *place = ptr::null_mut();
        // SAFETY: the header asks for a text that ends with 0.
        let address = unsafe { guard::text(address, "the address") }?;
        // SAFETY: the header asks for options or null.
        let options = unsafe { options::read(options) }?;
        // SAFETY: the header asks for options of clients or null, with a token of that length.
        let builder = unsafe { options.builder() }?;
        let pool = builder.endpoint(address).build()?;
        fork::watch();
        let handle = POOLS.insert(pool, "pools")?;
        *place = ptr::without_provenance_mut(handle as usize);
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn lapce_ipc_pool_close(pool: *mut PoolHandle) -> c_int {
    if pool.is_null() {
        return 0;
    }
    guard::run(|| {
        // The handle ends before the pool does, so that no call waits for the handle meanwhile.
        drop(POOLS.remove_in_turn(pool.addr() as u64, |_| true)?);
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn lapce_ipc_pool_call(
    pool: *mut PoolHandle,
    msg_type: u16,
    payload: *const c_void,
    payload_bytes: usize,
    answer: *mut Buffer,
) -> c_int {
    guard::run(|| {
        let pool = pool_of(pool)?;
        // SAFETY: the header asks for a payload of that length.
        let payload = unsafe { guard::bytes(payload, payload_bytes) }?;
        // SAFETY: the header asks for a buffer of ours.
        let answer = unsafe { guard::place(answer, "the answer") }?;
        answer.check()?;
        let connection = pool.get()?;
        // SAFETY: as above.
        unsafe { client::call_into(&connection, msg_type, payload, answer) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn lapce_ipc_pool_call_within(
    pool: *mut PoolHandle,
    timeout_ms: u64,
    msg_type: u16,
    payload: *const c_void,
    payload_bytes: usize,
    answer: *mut Buffer,
) -> c_int {
    guard::run(|| {
        let begin = Instant::now();
        let pool = pool_of(pool)?;
        // SAFETY: the header asks for a payload of that length.
        let payload = unsafe { guard::bytes(payload, payload_bytes) }?;
        // SAFETY: the header asks for a buffer of ours.
        let answer = unsafe { guard::place(answer, "the answer") }?;
        answer.check()?;
        let timeout = Duration::from_millis(timeout_ms);
        let connection = pool.get_within(timeout)?;
        let left = timeout.saturating_sub(begin.elapsed());
        let fresh = connection.call_within(msg_type, payload, left)?;
        // SAFETY: as above.
        unsafe { answer.replace(fresh) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn lapce_ipc_pool_get(
    pool: *mut PoolHandle,
    client: *mut *mut ClientHandle,
) -> c_int {
    guard::run(|| {
        // SAFETY: the header asks for a place for the handle.
        let place = unsafe { guard::place(client, "the place for the client") }?;
        *place = ptr::null_mut();
        let connection = pool_of(pool)?.get()?;
        *place = client::insert(Connection::Pooled(connection))?;
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn lapce_ipc_pool_put(client: *mut ClientHandle) -> c_int {
    if client.is_null() {
        return 0;
    }
    guard::run(|| {
        drop(client::remove_pooled(client)?);
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn lapce_ipc_pool_stats(pool: *mut PoolHandle, stats: *mut PoolStats) -> c_int {
    guard::run(|| {
        let counts = pool_of(pool)?.stats();
        let value = PoolStats {
            size: size_of::<PoolStats>(),
            acquired: counts.acquired,
            reused: counts.reused,
            created: counts.created,
            reconnected: counts.reconnected,
            broken: counts.broken,
            expired: counts.expired,
            exhausted: counts.exhausted,
            connect_failed: counts.connect_failed,
            checks: counts.checks,
            checks_failed: counts.checks_failed,
            max_connections: counts.max_connections as u32,
            open: counts.open as u32,
            idle: counts.idle as u32,
            keep_idle: counts.keep_idle as u32,
            waiting: counts.waiting as u32,
            reserved: 0,
        };
        // SAFETY: the header asks for a struct that says how long it is.
        unsafe { options::write(stats, &value) }
    })
}
