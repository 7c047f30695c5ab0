//! Clients: connecting, calling, sending.
#![allow(unsafe_code)]

use std::ffi::{c_char, c_int, c_void};
use std::ops::Deref;
use std::ptr;
use std::time::Duration;

use lapce_ai::ipc::{Client, Error, Flags, PooledConnection};

use crate::buffer::Buffer;
use crate::descriptor::Descriptor;
use crate::error::Fault;
use crate::handles::{Handles, Kind};
use crate::options::{self, ClientOptions};
use crate::reserve;
use crate::{fork, guard};

/// lapce_ipc_client: opaque to C, and no memory either.
pub(crate) enum ClientHandle {}

// In place, as the slots have room for it anyway: a box would be one more load for each call.
#[allow(clippy::large_enum_variant)]
pub(crate) enum Connection {
    Own(Client),
    /// Of a pool, to which it goes back when dropped.
    Pooled(PooledConnection),
}

impl Deref for Connection {
    type Target = Client;

    #[inline]
    fn deref(&self) -> &Client {
        match self {
            Connection::Own(client) => client,
            Connection::Pooled(connection) => connection,
        }
    }
}

pub(crate) struct ClientState {
    pub(crate) client: Connection,
    /// There once the program asked for it.
    pub(crate) descriptor: Option<Descriptor>,
    /// The program is writing a payload in place: all else must wait.
    pub(crate) reserved: bool,
}

pub(crate) static CLIENTS: Handles<ClientState> = Handles::new(Kind::Client);

const PRIORITY: u32 = 1;
const MORE: u32 = 2;

/// Runs a function's body on its client, unless a reservation is open.
#[inline]
pub(crate) fn with_client(
    handle: *mut ClientHandle,
    body: impl FnOnce(&mut ClientState) -> Result<(), Fault>,
) -> c_int {
    with_any_client(handle, |state| match state.reserved {
        false => body(state),
        true => Err(reserve::open()),
    })
}

/// Runs a function's body on its client.
#[inline]
pub(crate) fn with_any_client(
    handle: *mut ClientHandle,
    body: impl FnOnce(&mut ClientState) -> Result<(), Fault>,
) -> c_int {
    guard::run(|| {
        CLIENTS.with(handle.addr() as u64, |state| {
            if let Some(descriptor) = &mut state.descriptor {
                descriptor.rest(&state.client);
            }
            let result = body(state);
            if let Some(descriptor) = &mut state.descriptor {
                descriptor.follow_or_raise(&state.client);
            }
            result
        })?
    })
}

// SAFETY: the name is this library's own, here and below.
#[unsafe(no_mangle)]
unsafe extern "C" fn lapce_ipc_connect(
    address: *const c_char,
    options: *const ClientOptions,
    client: *mut *mut ClientHandle,
) -> c_int {
    guard::run(|| {
        // SAFETY: the header asks for a place for the handle.
        let place = unsafe { guard::place(client, "the place for the client") }?;
        *place = ptr::null_mut();
        // SAFETY: the header asks for a text that ends with 0.
        let address = unsafe { guard::text(address, "the address") }?;
        // SAFETY: the header asks for options or null.
        let options = unsafe { options::read(options) }?;
        // SAFETY: the header asks for a token of that length.
        let client = unsafe { options.builder() }?.connect(address)?;
        *place = insert(Connection::Own(client))?;
        Ok(())
    })
}

/// A handle for a connection.
pub(crate) fn insert(client: Connection) -> Result<*mut ClientHandle, Fault> {
    let state = ClientState {
        client,
        descriptor: None,
        reserved: false,
    };
    fork::watch();
    let handle = CLIENTS.insert(state, "clients")?;
    Ok(ptr::without_provenance_mut(handle as usize))
}

/// Ends the handle of a pool's connection and returns that.
pub(crate) fn remove_pooled(handle: *mut ClientHandle) -> Result<PooledConnection, Fault> {
    let handle = handle.addr() as u64;
    // A client stays one of a pool, or none, for all its life.
    let is_pooled = CLIENTS.with(handle, |state| {
        matches!(state.client, Connection::Pooled(_))
    })?;
    if !is_pooled {
        return Err(NOT_POOLED);
    }
    let ClientState {
        client, descriptor, ..
    } = CLIENTS.remove(handle)?;
    if let Some(mut descriptor) = descriptor {
        // Whoever is next must not find a watch asleep in the connection's place.
        descriptor.rest(&client);
    }
    match client {
        Connection::Pooled(connection) => Ok(connection),
        Connection::Own(_) => Err(NOT_POOLED),
    }
}

const NOT_POOLED: Fault = Fault::Invalid("the client is not of a pool: use lapce_ipc_close");

#[unsafe(no_mangle)]
extern "C" fn lapce_ipc_close(client: *mut ClientHandle) -> c_int {
    if client.is_null() {
        return 0;
    }
    guard::run(|| {
        match CLIENTS.remove(client.addr() as u64)?.client {
            Connection::Own(client) => client.close(),
            Connection::Pooled(connection) => connection.discard(),
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn lapce_ipc_call(
    client: *mut ClientHandle,
    msg_type: u16,
    payload: *const c_void,
    payload_bytes: usize,
    answer: *mut Buffer,
) -> c_int {
    with_client(client, |state| {
        // SAFETY: the header asks for a payload of that length.
        let payload = unsafe { guard::bytes(payload, payload_bytes) }?;
        // SAFETY: the header asks for a buffer of ours.
        let answer = unsafe { guard::place(answer, "the answer") }?;
        // SAFETY: as above.
        unsafe { call_into(&state.client, msg_type, payload, answer) }
    })
}

/// A call whose answer comes in the buffer's memory if that is large enough.
///
/// # Safety
/// The answer is as [`Buffer::take`] asks.
#[inline]
pub(crate) unsafe fn call_into(
    client: &Client,
    msg_type: u16,
    payload: &[u8],
    answer: &mut Buffer,
) -> Result<(), Fault> {
    // SAFETY: the caller's promise.
    let mut memory = unsafe { answer.take() }?;
    if overlap(payload, &memory) {
        // The last answer, sent on: it must stay as it is until it is sent.
        let result = client.call(msg_type, payload);
        answer.set(memory);
        // SAFETY: what was set just above.
        return unsafe { answer.replace(result?) };
    }
    let result = client.call_into(msg_type, payload, &mut memory);
    if result.is_err() {
        memory.clear();
    }
    answer.set(memory);
    Ok(result?)
}

/// Whether the payload lies in the memory of the answer.
fn overlap(payload: &[u8], memory: &Vec<u8>) -> bool {
    let begin = memory.as_ptr().addr();
    let first = payload.as_ptr().addr();
    !payload.is_empty() && first < begin + memory.capacity() && begin < first + payload.len()
}

#[unsafe(no_mangle)]
unsafe extern "C" fn lapce_ipc_call_within(
    client: *mut ClientHandle,
    timeout_ms: u64,
    msg_type: u16,
    payload: *const c_void,
    payload_bytes: usize,
    answer: *mut Buffer,
) -> c_int {
    let timeout = Duration::from_millis(timeout_ms);
    let call = |client: &Client, payload: &[u8]| client.call_within(msg_type, payload, timeout);
    // SAFETY: the header asks for a payload of that length and a buffer of ours.
    unsafe { call_afresh(client, payload, payload_bytes, answer, call) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn lapce_ipc_call_idempotent(
    client: *mut ClientHandle,
    msg_type: u16,
    payload: *const c_void,
    payload_bytes: usize,
    answer: *mut Buffer,
) -> c_int {
    let call = |client: &Client, payload: &[u8]| client.call_idempotent(msg_type, payload);
    // SAFETY: the header asks for a payload of that length and a buffer of ours.
    unsafe { call_afresh(client, payload, payload_bytes, answer, call) }
}

/// A call whose answer comes in memory of its own.
///
/// # Safety
/// The payload is as [`guard::bytes`] asks, the answer null, misaligned or a buffer as [`Buffer::take`] asks.
unsafe fn call_afresh(
    client: *mut ClientHandle,
    payload: *const c_void,
    payload_bytes: usize,
    answer: *mut Buffer,
    call: impl FnOnce(&Client, &[u8]) -> Result<Vec<u8>, Error>,
) -> c_int {
    with_client(client, |state| {
        // SAFETY: the caller's promise.
        let payload = unsafe { guard::bytes(payload, payload_bytes) }?;
        // SAFETY: as above.
        let answer = unsafe { guard::place(answer, "the answer") }?;
        answer.check()?;
        let fresh = call(&state.client, payload)?;
        // SAFETY: as above.
        unsafe { answer.replace(fresh) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn lapce_ipc_send(
    client: *mut ClientHandle,
    msg_type: u16,
    payload: *const c_void,
    payload_bytes: usize,
) -> c_int {
    with_client(client, |state| {
        // SAFETY: the header asks for a payload of that length.
        let payload = unsafe { guard::bytes(payload, payload_bytes) }?;
        Ok(state.client.send(msg_type, payload)?)
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn lapce_ipc_ping(client: *mut ClientHandle, took_ns: *mut u64) -> c_int {
    with_client(client, |state| {
        // SAFETY: the header asks for a place or null.
        let place = unsafe { guard::place_or_null(took_ns, "the place for the time") }?;
        let took = state.client.ping()?;
        if let Some(place) = place {
            *place = took.as_nanos() as u64;
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn lapce_ipc_submit(
    client: *mut ClientHandle,
    flags: u32,
    msg_type: u16,
    payload: *const c_void,
    payload_bytes: usize,
    id: *mut u64,
) -> c_int {
    with_client(client, |state| {
        // SAFETY: the header asks for a payload of that length.
        let payload = unsafe { guard::bytes(payload, payload_bytes) }?;
        // SAFETY: the header asks for a place for the id.
        let id = unsafe { guard::place(id, "the place for the id") }?;
        if flags & !(PRIORITY | MORE) != 0 {
            return Err(Fault::Invalid("a flag is not known"));
        }
        let mut wire = Flags::NONE;
        if flags & PRIORITY != 0 {
            wire = wire | Flags::PRIORITY;
        }
        if flags & MORE != 0 {
            wire = wire | Flags::STREAM;
        }
        *id = state.client.submit_with(wire, msg_type, payload)?;
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn lapce_ipc_submit_part(
    client: *mut ClientHandle,
    flags: u32,
    id: u64,
    msg_type: u16,
    payload: *const c_void,
    payload_bytes: usize,
) -> c_int {
    with_client(client, |state| {
        // SAFETY: the header asks for a payload of that length.
        let payload = unsafe { guard::bytes(payload, payload_bytes) }?;
        if flags & !MORE != 0 {
            return Err(Fault::Invalid("a flag is not known"));
        }
        let last = flags & MORE == 0;
        Ok(state.client.submit_part(id, msg_type, payload, last)?)
    })
}

#[unsafe(no_mangle)]
extern "C" fn lapce_ipc_flush(client: *mut ClientHandle) -> c_int {
    with_client(client, |state| Ok(state.client.flush()?))
}

#[unsafe(no_mangle)]
extern "C" fn lapce_ipc_cancel(client: *mut ClientHandle, id: u64) -> c_int {
    with_client(client, |state| Ok(state.client.cancel(id)?))
}
