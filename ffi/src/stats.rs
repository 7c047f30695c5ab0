//! Statistics in C's shape.
#![allow(unsafe_code)]

use std::ffi::c_int;

use lapce_ai::ipc::{Snapshot, Transport};

use crate::client::{ClientHandle, with_client};
use crate::error::Fault;
use crate::guard;
use crate::options::{self, Sized0};
use crate::server::{ServerHandle, handle_of};

/// lapce_ipc_client_stats
#[derive(Clone, Copy)]
#[repr(C)]
struct ClientStats {
    size: usize,
    sent: u64,
    received: u64,
    reconnects: u64,
    in_flight: u64,
    transport: u32,
    connected: u32,
}

// SAFETY: plain numbers, the size first.
unsafe impl Sized0 for ClientStats {
    const SIZE_MIN: usize = 48;
}

/// lapce_ipc_transport_stats
#[derive(Clone, Copy)]
#[repr(C)]
struct TransportStats {
    requests: u64,
    connections: u64,
    connections_total: u64,
    bytes_in: u64,
    bytes_out: u64,
}

/// lapce_ipc_server_stats
#[derive(Clone, Copy)]
#[repr(C)]
struct ServerStats {
    size: usize,
    tcp: TransportStats,
    shm: TransportStats,
    errors: u64,
    legacy_requests: u64,
}

// SAFETY: plain numbers, the size first.
unsafe impl Sized0 for ServerStats {
    const SIZE_MIN: usize = 104;
}

const _: () = assert!(size_of::<ClientStats>() == 48);
const _: () = assert!(size_of::<ServerStats>() == 104);

const TCP: u32 = 1;
const SHM: u32 = 2;

pub(crate) fn transport_number(transport: Transport) -> u32 {
    match transport {
        Transport::Tcp => TCP,
        Transport::Shm => SHM,
    }
}

// SAFETY: the name is this library's own, here and below.
#[unsafe(no_mangle)]
unsafe extern "C" fn lapce_ipc_client_stats(
    client: *mut ClientHandle,
    stats: *mut ClientStats,
) -> c_int {
    with_client(client, |state| {
        let client = &state.client;
        let counts = client.stats();
        let value = ClientStats {
            size: size_of::<ClientStats>(),
            sent: counts.sent,
            received: counts.received,
            reconnects: counts.reconnects,
            in_flight: client.in_flight() as u64,
            transport: transport_number(client.transport()),
            connected: u32::from(client.is_connected()),
        };
        // SAFETY: the header asks for a struct that says how long it is.
        unsafe { options::write(stats, &value) }
    })
}

fn check_quantile(quantile: f64) -> Result<(), Fault> {
    match (0.0..=1.0).contains(&quantile) {
        true => Ok(()),
        false => Err(Fault::Invalid("a quantile is between 0 and 1")),
    }
}

#[cold]
fn no_data(why: &str) -> Fault {
    Fault::Other(-libc::ENODATA, why.into())
}

#[unsafe(no_mangle)]
unsafe extern "C" fn lapce_ipc_client_peer_max_message(
    client: *mut ClientHandle,
    bytes: *mut u32,
) -> c_int {
    with_client(client, |state| {
        // SAFETY: the header asks for a place for the number.
        let place = unsafe { guard::place(bytes, "the place for the bytes") }?;
        let limits = state.client.peer_limits();
        *place = limits
            .max_message_bytes
            .ok_or_else(|| no_data("the server has not said what it accepts"))?;
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn lapce_ipc_client_latency(
    client: *mut ClientHandle,
    quantile: f64,
    ns: *mut u64,
) -> c_int {
    with_client(client, |state| {
        // SAFETY: the header asks for a place for the time.
        let place = unsafe { guard::place(ns, "the place for the time") }?;
        check_quantile(quantile)?;
        let times = state.client.round_trips().ok_or_else(|| {
            no_data("round trips are not recorded: connect with LAPCE_IPC_RECORD_ROUND_TRIPS")
        })?;
        if times.is_empty() {
            return Err(no_data("nothing was answered yet"));
        }
        *place = times.value_at_quantile(quantile);
        Ok(())
    })
}

fn transport_stats(from: &Snapshot, transport: Transport) -> TransportStats {
    TransportStats {
        requests: from.requests(transport),
        connections: from.connections(transport),
        connections_total: from.connections_total(transport),
        bytes_in: from.bytes_in(transport),
        bytes_out: from.bytes_out(transport),
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn lapce_ipc_server_stats(
    server: *mut ServerHandle,
    stats: *mut ServerStats,
) -> c_int {
    guard::run(|| {
        let snapshot = handle_of(server)?.stats();
        let value = ServerStats {
            size: size_of::<ServerStats>(),
            tcp: transport_stats(&snapshot, Transport::Tcp),
            shm: transport_stats(&snapshot, Transport::Shm),
            errors: snapshot.errors_total(),
            legacy_requests: snapshot.legacy_requests(),
        };
        // SAFETY: the header asks for a struct that says how long it is.
        unsafe { options::write(stats, &value) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn lapce_ipc_server_latency(
    server: *mut ServerHandle,
    transport: u32,
    quantile: f64,
    ns: *mut u64,
) -> c_int {
    guard::run(|| {
        let handle = handle_of(server)?;
        // SAFETY: the header asks for a place for the time.
        let place = unsafe { guard::place(ns, "the place for the time") }?;
        check_quantile(quantile)?;
        let transport = match transport {
            TCP => Transport::Tcp,
            SHM => Transport::Shm,
            _ => {
                return Err(Fault::Invalid(
                    "the transport is neither LAPCE_IPC_TCP nor LAPCE_IPC_SHM",
                ));
            }
        };
        let snapshot = handle.stats();
        let times = snapshot.latency(transport);
        if times.is_empty() {
            return Err(no_data("nothing was answered yet"));
        }
        *place = times.value_at_quantile(quantile);
        Ok(())
    })
}
