//! Redis: its ECHO command, over TCP.

use super::program::Program;
use super::tcp;
use crate::context::{Context, Failure};

const ARGUMENTS: [&str; 5] = ["--bind", "127.0.0.1", "--save", "", "--port"];

pub fn run(context: &mut Context) -> Result<(), Failure> {
    let text = "r".repeat(64);
    let request = format!("*2\r\n$4\r\nECHO\r\n$64\r\n{text}\r\n");
    let answer = format!("$64\r\n{text}\r\n");
    let cpu = context.host.server_cpu.to_string();
    let duration = context.duration;
    for windowed in [false, true] {
        context.measure(tcp::row("Redis ECHO", windowed), |row| {
            let (_redis, stream) = Program::start(&cpu, "redis-server", &ARGUMENTS)?;
            tcp::run(
                row,
                stream,
                request.as_bytes(),
                answer.as_bytes(),
                windowed,
                duration,
            )
        })?;
    }
    Ok(())
}
