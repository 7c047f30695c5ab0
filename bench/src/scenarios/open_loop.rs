//! A fixed rate, whatever the server does: latency counts from when each request was due.

use lapce_ai::ipc::IdleMode;

use crate::context::{Context, Failure};
use crate::row::Row;
use crate::{engine, load};

const RATES: [f64; 4] = [1_000.0, 10_000.0, 100_000.0, 500_000.0];
const QUICK_RATES: [f64; 2] = [1_000.0, 100_000.0];
const BYTES: usize = 64;
const IN_FLIGHT_MAX: usize = 1024;

pub fn run(context: &mut Context) -> Result<(), Failure> {
    let rates = if context.quick {
        &QUICK_RATES[..]
    } else {
        &RATES
    };
    let duration = context.duration;
    let cpu = context.host.server_cpu;
    for transport in engine::TRANSPORTS {
        for idle in [IdleMode::Spin, IdleMode::Adaptive, IdleMode::Park] {
            let subject = format!("{} {idle}", engine::transport_name(transport));
            for &rate in rates {
                let row = Row::new("open-loop", &subject, format!("{rate} a second"), rate);
                context.measure(row, |row| {
                    let served = engine::start_at(cpu, idle, "127.0.0.1:0")?;
                    let builder = engine::builder(idle).max_inflight(IN_FLIGHT_MAX);
                    let client = engine::connect(&served, transport, builder)?;
                    let histogram = load::at_rate(&client, BYTES, rate, IN_FLIGHT_MAX, duration)?;
                    row.push_latencies(histogram);
                    Ok(())
                })?;
            }
        }
    }
    Ok(())
}
