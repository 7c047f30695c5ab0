//! ZeroMQ's protocol by the crate zeromq, which is pure Rust: REQ and REP over a Unix socket.

use lapce_ai::ipc::monotonic_ns;
use zeromq::{RepSocket, ReqSocket, Socket, SocketRecv, SocketSend, ZmqMessage};

use super::round_trips::RoundTrips;
use super::scratch::Scratch;
use super::tcp;
use super::tokio::runtime;
use crate::child::Served;
use crate::context::{Context, Failure, wrong_answer};
use crate::payloads::{payload, stamp};

const WARM_UP: u64 = 100;

pub fn serve(name: &str) -> Result<(), Failure> {
    runtime()?.block_on(async {
        let mut socket = RepSocket::new();
        socket.bind(name).await?;
        println!("ready {name}");
        loop {
            let message = socket.recv().await?;
            socket.send(message).await?;
        }
    })
}

pub fn run(context: &mut Context) -> Result<(), Failure> {
    let cpu = context.host.server_cpu.to_string();
    let duration = context.duration.as_nanos() as u64;
    let scratch = Scratch::new("zmq");
    let name = format!("ipc://{}", scratch.temporary().display());
    context.measure(tcp::row("ZeroMQ (zeromq.rs)", false), |row| {
        scratch.clear(); // of the run before
        let _served = Served::start(&["--kind", "zeromq", "--cpu", &cpu, "--name", &name])?;
        let mut trips = RoundTrips::new(WARM_UP, duration);
        runtime()?.block_on(async {
            let mut socket = ReqSocket::new();
            socket.connect(&name).await?;
            let mut sent = payload(64);
            for number in 0u64.. {
                stamp(&mut sent, number);
                let start = monotonic_ns();
                socket.send(ZmqMessage::from(sent.clone())).await?;
                let answer = socket.recv().await?;
                let now = monotonic_ns();
                if answer.get(0).is_none_or(|got| got[..] != sent[..]) {
                    return Err(Failure::from(wrong_answer()));
                }
                if trips.took(start, now)? {
                    break;
                }
            }
            Ok(())
        })?;
        row.push_latencies(trips.into_histogram());
        Ok(())
    })
}
