//! iceoryx2: request and response over shared memory, both sides polling.

use std::time::Instant;

use iceoryx2::prelude::*;
use lapce_ai::ipc::monotonic_ns;

use super::tcp;
use crate::child::Served;
use crate::context::{Context, Failure, wrong_answer};
use crate::load::stamp;
use crate::row::latencies;

type Message = [u8; 64];

pub fn serve(name: &str) -> Result<(), Failure> {
    set_log_level(LogLevel::Error); // it has no configuration file, and needs none
    let node = NodeBuilder::new().create::<ipc::Service>()?;
    let service = node
        .service_builder(&name.try_into()?)
        .request_response::<Message, Message>()
        .open_or_create()?;
    let server = service.server_builder().create()?;
    println!("ready {name}");
    loop {
        if let Some(request) = server.receive()? {
            let response = request.loan_uninit()?;
            response.write_payload(*request).send()?;
        }
        std::hint::spin_loop();
    }
}

pub fn run(context: &mut Context) -> Result<(), Failure> {
    let cpu = context.host.server_cpu.to_string();
    let duration = context.duration;
    let mut run = 0;
    set_log_level(LogLevel::Error);
    context.measure(tcp::row("iceoryx2 request-response", false), |row| {
        run += 1;
        let name = format!("lapce-bench-{}-{run}", std::process::id());
        let _served = Served::start(&["--kind", "iceoryx2", "--cpu", &cpu, "--name", &name])?;
        let node = NodeBuilder::new().create::<ipc::Service>()?;
        let service = node
            .service_builder(&name.as_str().try_into()?)
            .request_response::<Message, Message>()
            .open_or_create()?;
        let client = service.client_builder().create()?;
        let mut sent: Message = [5; 64];
        let mut histogram = latencies();
        let begun = Instant::now();
        for number in 0u64.. {
            stamp(&mut sent, number);
            let start = monotonic_ns();
            let pending = client.loan_uninit()?.write_payload(sent).send()?;
            let got = loop {
                if let Some(response) = pending.receive()? {
                    break *response;
                }
                if begun.elapsed() > duration + std::time::Duration::from_secs(5) {
                    return Err("no answer came".into());
                }
            };
            let now = monotonic_ns();
            if got != sent {
                return Err(wrong_answer().into());
            }
            if number > 300 {
                histogram.record(now - start)?;
                if begun.elapsed() > duration {
                    break;
                }
            }
        }
        row.push_latencies(histogram);
        Ok(())
    })
}
