//! Structs that say how long they are, so that fields can be added at their end.
#![allow(unsafe_code)]

use std::ffi::{c_char, c_void};
use std::time::Duration;

use lapce_ai::ipc::{
    Client, ClientBuilder, ConnectionPool, ConnectionPoolBuilder, IdleMode, Limits,
    ProtocolVersion, Server, ServerBuilder,
};

use crate::error::Fault;
use crate::guard;

/// No struct of ours will be longer; a size beyond it is a mistake.
const SIZE_MAX: usize = 4096;

/// A struct whose first field is its size.
///
/// # Safety
/// `repr(C)`, begins with a `usize`, has no padding that matters, and all zero is a valid value, as
/// is every other pattern of bits.
pub(crate) unsafe trait Sized0: Copy {
    /// The size of its first version.
    const SIZE_MIN: usize;
}

/// Copies a struct that the program may have been compiled with in an older or newer version. Null:
/// all zero.
///
/// # Safety
/// `from` is null, misaligned, or points to a `usize` that says how many readable bytes there are.
pub(crate) unsafe fn read<T: Sized0>(from: *const T) -> Result<T, Fault> {
    // SAFETY: all zero is a valid T.
    let mut copy: T = unsafe { std::mem::zeroed() };
    if from.is_null() {
        return Ok(copy);
    }
    if !from.is_aligned() {
        return Err(Fault::Misaligned("a struct"));
    }
    // SAFETY: aligned, not null, and begins with its size: the caller's promise.
    let size = unsafe { from.cast::<usize>().read() };
    check_size::<T>(size)?;
    let known = size.min(size_of::<T>());
    // SAFETY: both have `known` bytes; every pattern of bits is a valid T.
    unsafe {
        std::ptr::copy_nonoverlapping(from.cast::<u8>(), (&raw mut copy).cast(), known);
    }
    for index in known..size {
        // SAFETY: within the size that the struct names.
        if unsafe { from.cast::<u8>().add(index).read() } != 0 {
            return Err(Fault::Newer);
        }
    }
    Ok(copy)
}

/// Fills a struct of the program's, as far as it knows the fields. Its size stays.
///
/// # Safety
/// As [`read`], and the bytes are writable and the function's alone.
pub(crate) unsafe fn write<T: Sized0>(to: *mut T, value: &T) -> Result<(), Fault> {
    if to.is_null() {
        return Err(Fault::Null("the struct for the result"));
    }
    if !to.is_aligned() {
        return Err(Fault::Misaligned("the struct for the result"));
    }
    // SAFETY: as in `read`.
    let size = unsafe { to.cast::<usize>().read() };
    check_size::<T>(size)?;
    let known = size.min(size_of::<T>());
    let head = size_of::<usize>();
    // SAFETY: both have `known` bytes, of which the first `head` stay.
    unsafe {
        let from = (&raw const *value).cast::<u8>().add(head);
        std::ptr::copy_nonoverlapping(from, to.cast::<u8>().add(head), known - head);
        to.cast::<u8>().add(known).write_bytes(0, size - known);
    }
    Ok(())
}

fn check_size<T: Sized0>(size: usize) -> Result<(), Fault> {
    if size < T::SIZE_MIN || size > SIZE_MAX {
        return Err(Fault::Invalid(
            "a struct's size is wrong: initialise it with its ..._INIT",
        ));
    }
    Ok(())
}

pub(crate) fn idle_mode(mode: u32) -> Result<IdleMode, Fault> {
    match mode {
        0 => Ok(IdleMode::Adaptive),
        1 => Ok(IdleMode::Spin),
        2 => Ok(IdleMode::Park),
        _ => Err(Fault::Invalid(
            "the waiting mode is none of LAPCE_IPC_ADAPTIVE, _SPIN, _PARK",
        )),
    }
}

/// The auth token, if there is one. A length without bytes, or bytes without a length, is a mistake that
/// must not make a server which lets everybody in.
///
/// # Safety
/// As [`guard::bytes`].
unsafe fn token<'a>(data: *const c_void, length: usize) -> Result<Option<&'a [u8]>, Fault> {
    match (data.is_null(), length) {
        (true, 0) => Ok(None),
        (true, _) => Err(Fault::Null("the auth token")),
        (false, 0) => Err(Fault::Invalid(
            "the auth token is empty: set auth_token_bytes too",
        )),
        // SAFETY: the caller's promise.
        (false, _) => Ok(Some(unsafe { guard::bytes(data, length) }?)),
    }
}

/// lapce_ipc_client_options
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct ClientOptions {
    size: usize,
    timeout_ms: u64,
    connect_timeout_ms: u64,
    auth_token: *const c_void,
    auth_token_bytes: usize,
    max_unread_bytes: u64,
    idle: u32,
    protocol_version: u32,
    flags: u32,
    max_inflight: u32,
    max_message_bytes: u32,
    reconnect_timeout_ms: u32,
}

// SAFETY: plain numbers and pointers, the size first.
unsafe impl Sized0 for ClientOptions {
    const SIZE_MIN: usize = 72;
}

const NO_SHM_UPGRADE: u32 = 1;
const NO_RECONNECT: u32 = 2;
const RECORD_ROUND_TRIPS: u32 = 4;

impl ClientOptions {
    /// # Safety
    /// The token is as [`guard::bytes`] asks.
    pub(crate) unsafe fn builder(&self) -> Result<ClientBuilder, Fault> {
        if self.flags & !(NO_SHM_UPGRADE | NO_RECONNECT | RECORD_ROUND_TRIPS) != 0 {
            return Err(Fault::Invalid("a flag of the options is not known"));
        }
        let mut builder = Client::builder()
            .idle(idle_mode(self.idle)?)
            .shm_upgrade(self.flags & NO_SHM_UPGRADE == 0)
            .reconnect(self.flags & NO_RECONNECT == 0)
            .record_round_trips(self.flags & RECORD_ROUND_TRIPS != 0)
            .protocol_version(match self.protocol_version {
                0 | 2 => ProtocolVersion::V2,
                1 => ProtocolVersion::V1,
                _ => return Err(Fault::Invalid("the protocol version is neither 1 nor 2")),
            });
        if self.timeout_ms > 0 {
            builder = builder.timeout(Duration::from_millis(self.timeout_ms));
        }
        if self.connect_timeout_ms > 0 {
            builder = builder.connect_timeout(Duration::from_millis(self.connect_timeout_ms));
        }
        if self.reconnect_timeout_ms > 0 {
            let timeout = Duration::from_millis(self.reconnect_timeout_ms.into());
            builder = builder.reconnect_timeout(timeout);
        }
        if self.max_inflight > 0 {
            builder = builder.max_inflight(self.max_inflight as usize);
        }
        if self.max_message_bytes > 0 {
            builder = builder.max_message_bytes(self.max_message_bytes);
        }
        if self.max_unread_bytes > 0 {
            builder = builder.max_unread_bytes(self.max_unread_bytes as usize);
        }
        // SAFETY: the caller's promise.
        if let Some(token) = unsafe { token(self.auth_token, self.auth_token_bytes) }? {
            builder = builder.auth_token(token);
        }
        Ok(builder)
    }
}

/// lapce_ipc_pool_options
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct PoolOptions {
    size: usize,
    client: *const ClientOptions,
    timeout_ms: u64,
    check_interval_ms: u64,
    idle_timeout_ms: u64,
    reuse_threshold: f64,
    max_connections: u32,
    reserved: u32,
}

// SAFETY: plain numbers and a pointer, the size first.
unsafe impl Sized0 for PoolOptions {
    const SIZE_MIN: usize = 56;
}

impl PoolOptions {
    /// # Safety
    /// The client's options are as [`read`] asks, their token as [`guard::bytes`] does.
    pub(crate) unsafe fn builder(&self) -> Result<ConnectionPoolBuilder, Fault> {
        if self.reserved != 0 {
            return Err(Fault::Newer);
        }
        // SAFETY: the caller's promise.
        let client = unsafe { read(self.client) }?;
        // SAFETY: as above.
        let mut builder = ConnectionPool::builder().client(unsafe { client.builder() }?);
        if self.timeout_ms > 0 {
            builder = builder.timeout(Duration::from_millis(self.timeout_ms));
        }
        if self.check_interval_ms > 0 {
            let interval = Duration::from_millis(self.check_interval_ms);
            builder = builder.health_check_interval(interval);
        }
        if self.idle_timeout_ms > 0 {
            builder = builder.idle_timeout(Duration::from_millis(self.idle_timeout_ms));
        }
        if self.reuse_threshold != 0.0 {
            builder = builder.reuse_threshold(self.reuse_threshold);
        }
        if self.max_connections > 0 {
            builder = builder.max_connections(self.max_connections as usize);
        }
        Ok(builder)
    }
}

/// lapce_ipc_server_options
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct ServerOptions {
    size: usize,
    bind: *const c_char,
    shm: *const c_char,
    auth_token: *const c_void,
    auth_token_bytes: usize,
    drain_ms: u64,
    max_buffered_bytes: u64,
    send_stall_ms: u64,
    frame_timeout_ms: u64,
    idle: u32,
    flags: u32,
    workers: u32,
    max_message_bytes: u32,
    max_connections: u32,
    max_inflight_per_connection: u32,
}

// SAFETY: plain numbers and pointers, the size first.
unsafe impl Sized0 for ServerOptions {
    const SIZE_MIN: usize = 96;
}

const LEGACY: u32 = 1;
const NO_PIN: u32 = 2;

impl ServerOptions {
    /// # Safety
    /// The texts are as [`guard::text`] asks, the token as [`guard::bytes`] does.
    pub(crate) unsafe fn builder(&self) -> Result<ServerBuilder, Fault> {
        if self.flags & !(LEGACY | NO_PIN) != 0 {
            return Err(Fault::Invalid("a flag of the options is not known"));
        }
        let mut limits = Limits::default();
        set(&mut limits.drain_ms, self.drain_ms);
        set(&mut limits.max_buffered_bytes, self.max_buffered_bytes);
        set(&mut limits.send_stall_ms, self.send_stall_ms);
        set(&mut limits.frame_timeout_ms, self.frame_timeout_ms);
        set(&mut limits.max_message_bytes, self.max_message_bytes);
        set(&mut limits.max_connections, self.max_connections);
        set(
            &mut limits.max_inflight_per_connection,
            self.max_inflight_per_connection,
        );
        let mut builder = Server::builder()
            .idle(idle_mode(self.idle)?)
            .legacy(self.flags & LEGACY != 0)
            .workers(self.workers as usize)
            .limits(limits);
        if self.flags & NO_PIN != 0 {
            builder = builder.pin(false);
        }
        if !self.bind.is_null() {
            // SAFETY: the caller's promise.
            builder = builder.bind(unsafe { guard::text(self.bind, "bind") }?);
        }
        if !self.shm.is_null() {
            // SAFETY: the caller's promise.
            builder = builder.shm(unsafe { guard::text(self.shm, "shm") }?);
        }
        if self.bind.is_null() && self.shm.is_null() {
            return Err(Fault::Invalid(
                "a server needs an address: set `bind`, `shm` or both",
            ));
        }
        // SAFETY: the caller's promise.
        if let Some(token) = unsafe { token(self.auth_token, self.auth_token_bytes) }? {
            builder = builder.auth_token(token);
        }
        Ok(builder)
    }
}

/// Zero keeps the default.
fn set<T: Default + PartialEq + Copy>(setting: &mut T, value: T) {
    if value != T::default() {
        *setting = value;
    }
}

// The header's tests check the same numbers.
const _: () = assert!(size_of::<ClientOptions>() == 72);
const _: () = assert!(size_of::<PoolOptions>() == 56);
const _: () = assert!(size_of::<ServerOptions>() == 96);
