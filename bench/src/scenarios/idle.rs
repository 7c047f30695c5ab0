//! CPU time of a server that has connections and nothing to do.

use std::time::Duration;

use lapce_ai::ipc::{IdleMode, msg_type};

use crate::context::{Context, Failure, wrong_answer};
use crate::row::Row;
use crate::{engine, host};

const CONNECTIONS: usize = 100;
const SECONDS: u64 = 10;
const QUICK_SECONDS: u64 = 2;
const CPU_SECONDS_MAX: f64 = 0.05;

pub fn run(context: &mut Context) -> Result<(), Failure> {
    let seconds = if context.quick {
        QUICK_SECONDS
    } else {
        SECONDS
    };
    let served = engine::start(context.host.server_cpu, IdleMode::Adaptive)?;
    let mut clients = Vec::with_capacity(CONNECTIONS);
    for index in 0..CONNECTIONS {
        let transport = engine::TRANSPORTS[index % engine::TRANSPORTS.len()];
        let client = engine::connect(&served, transport, engine::builder(IdleMode::Adaptive))?;
        client.call(msg_type::ECHO, b"here")?;
        clients.push(client);
    }
    // Adaptive waiting is over when nothing has come for a while.
    std::thread::sleep(Duration::from_millis(300));
    let before = host::cpu_seconds(served.pid());
    for second in 0..seconds {
        context
            .bar
            .set_message(format!("idle: second {second} of {seconds}"));
        std::thread::sleep(Duration::from_secs(1));
    }
    let used = host::cpu_seconds(served.pid()) - before;
    // A dead server is idle, too.
    for (client, number) in clients.iter().zip(0u64..) {
        let sent = number.to_le_bytes();
        if client.call(msg_type::ECHO, &sent)? != sent {
            return Err(wrong_answer().into());
        }
    }
    let mut row = Row::new("idle", "server, adaptive", "100 connections", 0.0);
    row.push(
        if seconds == SECONDS {
            "CPU in 10 s"
        } else {
            "CPU in 2 s"
        },
        "s",
        used,
    );
    context.rows.push(row);
    context.verdict(
        format!("below 0.05 CPU seconds in {seconds} idle seconds with 100 connections"),
        format!("{used:.2} s"),
        used < CPU_SECONDS_MAX,
    );
    Ok(())
}
