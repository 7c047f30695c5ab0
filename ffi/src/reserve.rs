//! Clients: payloads that the program writes where they are sent from.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};

use crate::client::{ClientHandle, with_any_client, with_client};
use crate::error::Fault;
use crate::guard;

/// Why nothing else can be done with the client.
#[cold]
pub(crate) fn open() -> Fault {
    Fault::Other(
        -libc::EBUSY,
        "a reservation is open: commit or abort it".into(),
    )
}

// SAFETY: the name is this library's own, here and below.
#[unsafe(no_mangle)]
unsafe extern "C" fn lapce_ipc_reserve(
    client: *mut ClientHandle,
    msg_type: u16,
    length: usize,
    data: *mut *mut c_void,
    capacity: *mut usize,
) -> c_int {
    with_client(client, |state| {
        // SAFETY: the header asks for a place for the pointer.
        let data = unsafe { guard::place(data, "the place for the memory") }?;
        // SAFETY: the header asks for a place or null.
        let capacity = unsafe { guard::place_or_null(capacity, "the place for the capacity") }?;
        let (memory, room) = state.client.reserve(msg_type, length)?;
        state.reserved = true;
        *data = memory.cast();
        if let Some(capacity) = capacity {
            *capacity = room;
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn lapce_ipc_commit(
    client: *mut ClientHandle,
    length: usize,
    id: *mut u64,
) -> c_int {
    with_any_client(client, |state| {
        // SAFETY: the header asks for a place for the id.
        let id = unsafe { guard::place(id, "the place for the id") }?;
        let result = state.client.commit(length);
        state.reserved = state.client.has_reservation();
        *id = result?;
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn lapce_ipc_abort(client: *mut ClientHandle) -> c_int {
    with_any_client(client, |state| {
        let result = state.client.abort();
        state.reserved = state.client.has_reservation();
        Ok(result?)
    })
}
