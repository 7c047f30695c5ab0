//! Heap allocations of a message in the steady state, on both sides.

use std::time::{Duration, Instant};

use lapce_ai::ipc::{Client, IdleMode, msg_type};

use crate::child::Served;
use crate::context::{Context, Failure, wrong_answer};
use crate::payloads;
use crate::row::Row;
use crate::{engine, sys};

const MESSAGES: u64 = 10_000;
const WARM_UP: Duration = Duration::from_millis(300);
const TRIES: usize = 3;
const WINDOW: u64 = 64;
const BYTES: usize = 64;

pub fn run(context: &mut Context) -> Result<(), Failure> {
    let mut most = 0;
    for transport in engine::TRANSPORTS {
        let name = transport.name();
        for (way, windowed) in [("calls", false), ("window 64", true)] {
            let mut served = engine::start(context.host.server_cpu, IdleMode::Spin)?;
            let client = engine::connect(&served, transport, engine::builder(IdleMode::Spin))?;
            let mut messages = Messages::new(&client);
            // Buffers come into use and grow to their size.
            let begun = Instant::now();
            while begun.elapsed() < WARM_UP {
                messages.send(windowed)?;
            }
            count(&mut served)?;
            let mut row = Row::new("allocations", name, way, 0.0);
            for _ in 0..TRIES {
                // The loop makes none of its own, and asking for the server's makes none there.
                let server_before = count(&mut served)?;
                let client_before = sys::allocations();
                messages.send(windowed)?;
                let client = sys::allocations() - client_before;
                let server = count(&mut served)? - server_before;
                row.push("server, 10,000 messages", "", server as f64);
                row.push("client, 10,000 messages", "", client as f64);
                most = most.max(server).max(client);
            }
            context.rows.push(row);
        }
    }
    context.verdict(
        "no heap allocation per message in the steady state, on either side",
        format!("at most {most} in {MESSAGES} messages"),
        most == 0,
    );
    Ok(())
}

fn count(served: &mut Served) -> Result<u64, Failure> {
    served.tell("allocations")?;
    Ok(served.line()?.parse()?)
}

/// Messages, with buffers made beforehand.
struct Messages<'a> {
    client: &'a Client,
    sent: Vec<u8>,
    answer: Vec<u8>,
}

impl Messages<'_> {
    fn new(client: &Client) -> Messages<'_> {
        Messages {
            client,
            sent: payloads::payload(BYTES),
            answer: Vec::with_capacity(BYTES),
        }
    }

    fn send(&mut self, windowed: bool) -> Result<(), Failure> {
        let right = match windowed {
            true => self.windowed()?,
            false => self.one_by_one()?,
        };
        right.then_some(()).ok_or_else(|| wrong_answer().into())
    }

    fn one_by_one(&mut self) -> Result<bool, Failure> {
        let mut right = true;
        for _ in 0..MESSAGES {
            let answer = &mut self.answer;
            self.client.call_into(msg_type::ECHO, &self.sent, answer)?;
            right &= *answer == self.sent;
        }
        Ok(right)
    }

    fn windowed(&self) -> Result<bool, Failure> {
        let (mut submitted, mut answered, mut right) = (0, 0, true);
        while answered < MESSAGES {
            while submitted < MESSAGES && submitted < answered + WINDOW {
                self.client.submit(msg_type::ECHO, &self.sent)?;
                submitted += 1;
            }
            self.client.wait_with(|answer| {
                answered += 1;
                right &= answer.result.is_ok_and(|got| got == self.sent);
            })?;
        }
        Ok(right)
    }
}
