//! The server's resident memory through a life.

use std::time::Duration;

use lapce_ai::ipc::{IdleMode, msg_type};

use super::senders;
use crate::context::{Context, Failure};
use crate::host::{self, Memory};
use crate::row::Row;
use crate::{engine, load};

/// What the guide promises.
const RESIDENT_BYTES_MAX: f64 = 3e6;
/// Clients that are there all the time, half of them over shared memory.
const CONNECTIONS: usize = 100;

pub fn run(context: &mut Context) -> Result<(), Failure> {
    let duration = context.duration;
    let served = engine::start(context.host.server_cpu, IdleMode::Adaptive)?;
    let pid = served.pid();
    std::thread::sleep(Duration::from_millis(50));
    push(context, "started", host::memory(pid));
    std::thread::sleep(Duration::from_millis(500));
    let idle = host::memory(pid);
    push(context, "idle", idle);
    let mut clients = Vec::with_capacity(CONNECTIONS);
    for index in 0..CONNECTIONS {
        let transport = engine::TRANSPORTS[index % engine::TRANSPORTS.len()];
        let client = engine::connect(&served, transport, engine::builder(IdleMode::Spin))?;
        client.call(msg_type::ECHO, b"here")?;
        clients.push(client);
    }
    std::thread::sleep(Duration::from_millis(500));
    let connected = host::memory(pid);
    push(context, "idle, 100 connections", connected);
    let mut most = idle.resident.max(connected.resident);
    for (client, transport) in clients.iter().zip(engine::TRANSPORTS) {
        // Each by itself: for a moment, what the last one used would count too.
        std::thread::sleep(Duration::from_millis(500));
        host::forget_peak(pid)?;
        load::windowed(client, 1024, 64, duration)?;
        let loaded = host::memory(pid);
        push(context, &format!("loaded over {transport}"), loaded);
        most = most.max(loaded.peak);
    }
    std::thread::sleep(Duration::from_secs(1));
    push(context, "after load", host::memory(pid));
    drop(clients);
    drop(served);
    let bytes = most * 1024.0;
    context.verdict(
        "RSS of the bench's server below 3 MB: idle, with 100 connections, and loaded",
        format!("at most {:.2} MB", bytes / 1e6),
        bytes < RESIDENT_BYTES_MAX,
    );
    senders::run(context)
}

pub fn push(context: &mut Context, case: &str, memory: Memory) {
    let mut row = Row::new("memory", "server", case, 0.0);
    row.push("resident", "kB", memory.resident);
    row.push("anonymous", "kB", memory.anonymous);
    row.push("file", "kB", memory.file);
    row.push("shared", "kB", memory.shared);
    row.push("peak", "kB", memory.peak);
    context.rows.push(row);
}
