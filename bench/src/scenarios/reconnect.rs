//! From the end of a server, and the start of its successor, to the first answer.

use std::time::Instant;

use lapce_ai::ipc::{IdleMode, Transport, msg_type};

use crate::context::{Context, Failure, wrong_answer};
use crate::engine;
use crate::payloads;
use crate::row::Row;

const RUNS: usize = 5;
const MS_MAX: f64 = 100.0;

pub fn run(context: &mut Context) -> Result<(), Failure> {
    for transport in engine::TRANSPORTS {
        let name = transport.name();
        let mut row = Row::new("reconnect", name, "killed and started again", 0.0);
        for run in 0..RUNS {
            context
                .bar
                .set_message(format!("reconnect: {name}, run {run}"));
            row.push("first answer after", "ms", one(context, transport)?);
        }
        let (_, worst) = row.metrics[0].spread();
        context.rows.push(row);
        context.verdict(
            format!("first answer within 100 ms of a restart over {name}"),
            format!("worst of {RUNS}: {worst:.1} ms"),
            worst <= MS_MAX,
        );
    }
    Ok(())
}

fn one(context: &Context, transport: Transport) -> Result<f64, Failure> {
    let served = engine::start(context.host.server_cpu, IdleMode::Adaptive)?;
    let bind = served.address().to_owned();
    let client = engine::connect(&served, transport, engine::builder(IdleMode::Adaptive))?;
    let sent = payloads::payload(64);
    client.call(msg_type::ECHO, &sent)?;
    served.kill();
    let start = Instant::now();
    let mut again = engine::spawn_at(context.host.server_cpu, IdleMode::Adaptive, &bind)?;
    let answer = client.call_idempotent(msg_type::ECHO, &sent)?;
    let took = start.elapsed().as_secs_f64() * 1e3;
    again.wait_ready()?;
    if answer != sent {
        return Err(wrong_answer().into());
    }
    Ok(took)
}
