//! Heap allocations of a message in the steady state, on both sides.

use lapce_ai::ipc::{Client, IdleMode, msg_type};

use crate::child::Served;
use crate::context::{Context, Failure, wrong_answer};
use crate::payloads;
use crate::row::Row;
use crate::{engine, sys};

const MESSAGES: u64 = 10_000;
const TRIES: usize = 3;
const WINDOW: u64 = 64;

pub fn run(context: &mut Context) -> Result<(), Failure> {
    let mut most: f64 = 0.0;
    for transport in engine::TRANSPORTS {
        let name = engine::transport_name(transport);
        for (way, windowed) in [("calls", false), ("window 64", true)] {
            let mut served = engine::start(context, IdleMode::Spin)?;
            let client = engine::connect(&served, transport, engine::builder(IdleMode::Spin))?;
            messages(&client, windowed)?; // buffers grow to their size
            let mut row = Row::new("allocations", name, way, 0.0);
            for _ in 0..TRIES {
                // Asking costs a line; asking twice tells how much.
                let asked = count(&mut served)?;
                let server_before = count(&mut served)?;
                let cost = server_before - asked;
                let client_before = sys::allocations();
                messages(&client, windowed)?;
                let client_after = sys::allocations();
                let server_after = count(&mut served)?;
                let server = (server_after - server_before).saturating_sub(cost);
                let each = |allocations: u64| allocations as f64 / MESSAGES as f64;
                // The loop itself makes its two buffers.
                let client_own = (client_after - client_before).saturating_sub(2);
                row.push("server, each message", "", each(server));
                row.push("client, each message", "", each(client_own));
            }
            most = row
                .metrics
                .iter()
                .map(|metric| metric.median())
                .fold(most, f64::max);
            context.rows.push(row);
        }
    }
    context.verdict(
        "no heap allocation per message in the steady state, on either side",
        format!("{most:.4} a message at most"),
        most == 0.0,
    );
    Ok(())
}

fn count(served: &mut Served) -> Result<u64, Failure> {
    served.tell("allocations")?;
    Ok(served.line()?.parse()?)
}

fn messages(client: &Client, windowed: bool) -> Result<(), Failure> {
    let sent = payloads::payload(64);
    if !windowed {
        let mut answer = Vec::with_capacity(64);
        for _ in 0..MESSAGES {
            client.call_into(msg_type::ECHO, &sent, &mut answer)?;
            if answer != sent {
                return Err(wrong_answer().into());
            }
        }
        return Ok(());
    }
    let (mut submitted, mut answered, mut wrong) = (0, 0, false);
    while answered < MESSAGES {
        while submitted < MESSAGES && submitted < answered + WINDOW {
            client.submit(msg_type::ECHO, &sent)?;
            submitted += 1;
        }
        client.wait_with(|answer| {
            answered += 1;
            wrong |= !answer.result.is_ok_and(|got| got == sent);
        })?;
    }
    if wrong {
        Err(wrong_answer().into())
    } else {
        Ok(())
    }
}
