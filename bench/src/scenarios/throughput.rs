//! Windows of requests in flight on one connection, to one worker.

use lapce_ai::ipc::IdleMode;

use crate::context::{Context, Failure, bytes_text};
use crate::report::grouped;
use crate::row::Row;
use crate::{engine, load};

const WINDOWS: [u64; 6] = [1, 4, 16, 64, 256, 1024];
const QUICK_WINDOWS: [u64; 3] = [1, 256, 1024];
/// Of requests and answers together.
const HEADERS_BYTES: f64 = 48.0;

pub fn run(context: &mut Context) -> Result<(), Failure> {
    let windows = if context.quick {
        &QUICK_WINDOWS[..]
    } else {
        &WINDOWS
    };
    let duration = context.duration;
    let cpu = context.host.server_cpu;
    for transport in engine::TRANSPORTS {
        for bytes in [64, 1024] {
            let name = transport.name();
            let subject = format!("{name} spin {}", bytes_text(bytes));
            for &window in windows {
                let case = format!("window {window}");
                let row = Row::new("throughput", &subject, case, window as f64);
                context.measure(row, |row| {
                    let served = engine::start(cpu, IdleMode::Spin)?;
                    let builder = engine::builder(IdleMode::Spin).max_inflight(window as usize);
                    let client = engine::connect(&served, transport, builder)?;
                    let rate = load::windowed(&client, bytes, window, duration)?;
                    row.push("requests", "/s", rate);
                    let frames_bytes = 2.0 * bytes as f64 + HEADERS_BYTES;
                    row.push("both ways", "MB/s", rate * frames_bytes / 1e6);
                    Ok(())
                })?;
            }
        }
        promise(context, transport.name());
    }
    Ok(())
}

/// What the design promises, with a window in flight.
const MESSAGES_MIN: f64 = 1e6;

fn promise(context: &mut Context, name: &str) {
    let row = context.find("throughput", &format!("{name} spin 64 B"), "window 256");
    let Some(own) = row.and_then(|row| row.judged("requests")) else {
        return;
    };
    context.judge(
        format!("more than 1,000,000 messages of 64 B a second over {name}, 256 in flight"),
        grouped(own.value),
        own,
        None,
        own.value > MESSAGES_MIN,
    );
}
