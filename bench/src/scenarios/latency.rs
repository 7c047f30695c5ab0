//! Closed loop: one request in flight.

use lapce_ai::ipc::{IdleMode, Transport};

use crate::context::{Context, Failure, bytes_text};
use crate::row::Row;
use crate::{engine, load};

const SIZES: [usize; 6] = [24, 64, 1024, 16_384, 262_144, 1_048_576];
const QUICK_SIZES: [usize; 3] = [64, 1024, 1_048_576];

/// The promise: 99 of 100 calls of 64 bytes take less than this.
const P99_NS_MAX: f64 = 10_000.0;

pub fn run(context: &mut Context) -> Result<(), Failure> {
    let sizes = if context.quick {
        &QUICK_SIZES[..]
    } else {
        &SIZES
    };
    let duration = context.duration;
    for transport in engine::TRANSPORTS {
        for idle in [IdleMode::Spin, IdleMode::Adaptive] {
            let subject = format!("{} {idle}", engine::transport_name(transport));
            for &bytes in sizes {
                let row = Row::new("latency", &subject, bytes_text(bytes), bytes as f64);
                let cpu = context.host.server_cpu;
                context.measure(row, |row| {
                    let served = engine::start_at(cpu, idle, "127.0.0.1:0")?;
                    let client = engine::connect(&served, transport, engine::builder(idle))?;
                    row.push_latencies(load::closed(&client, bytes, duration)?);
                    Ok(())
                })?;
            }
        }
    }
    promise(context, Transport::Shm);
    promise(context, Transport::Tcp);
    Ok(())
}

fn promise(context: &mut Context, transport: Transport) {
    let name = engine::transport_name(transport);
    let text = format!("p99 of a 64 B call below 10 µs over {name}, spinning");
    let row = context.find("latency", &format!("{name} spin"), "64 B");
    let Some(judged) = row.and_then(|row| row.judged("p99")) else {
        return;
    };
    let p99 = judged.value;
    let floor_tcp = context.floors().tcp;
    let measured = match transport {
        Transport::Shm => format!("{:.2} µs", p99 / 1000.0),
        // Where a bare echo takes most of it, the machine decides, and the reader must see that.
        _ => format!(
            "{:.2} µs; a bare echo's median is {:.2} µs",
            p99 / 1000.0,
            floor_tcp / 1000.0
        ),
    };
    context.judge(text, measured, judged, None, p99 < P99_NS_MAX);
}
