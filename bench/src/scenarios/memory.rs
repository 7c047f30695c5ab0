//! The server's resident memory through a life.

use std::time::{Duration, Instant};

use lapce_ai::ipc::{Client, IdleMode, Transport, msg_type};

use crate::context::{Context, Failure, wrong_answer};
use crate::host::{self, Memory};
use crate::payloads;
use crate::row::Row;
use crate::{engine, load};

const RESIDENT_KB_MAX: f64 = 3.0 * 1024.0;
const SENDERS: usize = 500;
const QUICK_SENDERS: usize = 50;
const MESSAGE_BYTES: usize = 1 << 20;
/// What the server may buffer by its limits, 64 MiB, and as much again for what is being handled.
const PEAK_KB_MAX: f64 = 128.0 * 1024.0;
const PATIENCE: Duration = Duration::from_secs(60);

pub fn run(context: &mut Context) -> Result<(), Failure> {
    let duration = context.duration;
    let served = engine::start(context, IdleMode::Adaptive)?;
    let pid = served.pid();
    std::thread::sleep(Duration::from_millis(50));
    push(context, "started", host::memory(pid));
    std::thread::sleep(Duration::from_millis(500));
    let idle = host::memory(pid);
    push(context, "idle", idle);
    for transport in engine::TRANSPORTS {
        let client = engine::connect(&served, transport, engine::builder(IdleMode::Spin))?;
        load::windowed(&client, 1024, 64, duration)?;
        push(
            context,
            &format!("loaded over {}", engine::transport_name(transport)),
            host::memory(pid),
        );
    }
    std::thread::sleep(Duration::from_secs(1));
    push(context, "after load", host::memory(pid));
    drop(served);
    context.verdict(
        "an idle server, as the bench runs it, is below 3 MB of RSS",
        format!("{:.2} MB", idle.resident / 1024.0),
        idle.resident < RESIDENT_KB_MAX,
    );
    senders(context)
}

fn push(context: &mut Context, case: &str, memory: Memory) {
    let mut row = Row::new("memory", "server", case, 0.0);
    row.push("resident", "kB", memory.resident);
    row.push("anonymous", "kB", memory.anonymous);
    row.push("file", "kB", memory.file);
    row.push("shared", "kB", memory.shared);
    row.push("peak", "kB", memory.peak);
    context.rows.push(row);
}

/// Everyone sends a large message at once.
fn senders(context: &mut Context) -> Result<(), Failure> {
    let count = if context.quick {
        QUICK_SENDERS
    } else {
        SENDERS
    };
    let served = engine::start(context, IdleMode::Adaptive)?;
    host::forget_peak(served.pid())?;
    let sent = payloads::payload(MESSAGE_BYTES);
    let mut clients: Vec<Client> = Vec::with_capacity(count);
    for _ in 0..count {
        let builder = engine::builder(IdleMode::Adaptive).timeout(PATIENCE);
        clients.push(engine::connect(&served, Transport::Tcp, builder)?);
    }
    context
        .bar
        .set_message(format!("memory: {count} senders of 1 MiB"));
    let end = Instant::now() + PATIENCE;
    // A client has memory only while its message is on its way: not all of this fits at once on a
    // small machine, so they are let off in the order of their answers.
    for client in &clients {
        client.submit(msg_type::ECHO, &sent)?;
        client.poll()?;
    }
    let mut waiting = clients;
    while !waiting.is_empty() {
        if Instant::now() > end {
            return Err(format!("{} senders had no answer in time", waiting.len()).into());
        }
        let mut still = Vec::with_capacity(waiting.len());
        for client in waiting {
            let Some(answer) = client.poll()? else {
                still.push(client);
                continue;
            };
            if answer.result? != sent {
                return Err(wrong_answer().into());
            }
        }
        waiting = still;
    }
    let memory = host::memory(served.pid());
    push(context, &format!("after {count} senders of 1 MiB"), memory);
    context.verdict(
        format!("{count} senders of 1 MiB at once: the server's peak stays below 128 MB"),
        format!("{:.1} MB", memory.peak / 1024.0),
        memory.peak < PEAK_KB_MAX,
    );
    Ok(())
}
