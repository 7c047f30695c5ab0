//! Redis: its ECHO command, over TCP.

use super::program::Program;
use super::tcp::{self, Framing};
use crate::context::{Context, Failure};

const ARGUMENTS: [&str; 5] = ["--bind", "127.0.0.1", "--save", "", "--port"];

pub const FRAMING: Framing = Framing {
    payload_bytes: 64,
    request: |payload| [b"*2\r\n$4\r\nECHO\r\n", &bulk(payload)[..]].concat(),
    answer: bulk,
};

/// Bytes with their length, as Redis has them.
fn bulk(payload: &[u8]) -> Vec<u8> {
    let length = format!("${}\r\n", payload.len());
    [length.as_bytes(), payload, b"\r\n"].concat()
}

pub fn run(context: &mut Context) -> Result<(), Failure> {
    let cpu = context.host.server_cpu.to_string();
    let duration = context.duration;
    for windowed in [false, true] {
        context.measure(tcp::row("Redis ECHO", windowed), |row| {
            let (_redis, stream) = Program::start(&cpu, "redis-server", &ARGUMENTS)?;
            tcp::run(row, stream, &FRAMING, windowed, duration)
        })?;
    }
    Ok(())
}
