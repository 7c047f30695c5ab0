//! Closed loop: one request in flight.

use lapce_ai::ipc::{IdleMode, Transport};

use crate::context::{Context, Failure, bytes_text};
use crate::row::Row;
use crate::{engine, load};

const SIZES: [usize; 6] = [24, 64, 1024, 16_384, 262_144, 1_048_576];
const QUICK_SIZES: [usize; 3] = [64, 1024, 1_048_576];

/// The promise: 99 of 100 calls of 64 bytes take less than this.
const P99_NS_MAX: f64 = 10_000.0;

const BARE_TCP: &str = "bare echo over tcp, spinning";

pub fn run(context: &mut Context) -> Result<(), Failure> {
    let sizes = if context.quick {
        &QUICK_SIZES[..]
    } else {
        &SIZES
    };
    let duration = context.duration;
    for transport in engine::TRANSPORTS {
        for idle in [IdleMode::Spin, IdleMode::Adaptive] {
            let subject = format!("{transport} {idle}");
            for &bytes in sizes {
                let row =
                    |subject: &str| Row::new("latency", subject, bytes_text(bytes), bytes as f64);
                let mut rows = vec![row(&subject)];
                // What the promise over TCP is held against.
                if transport == Transport::Tcp && idle == IdleMode::Spin && bytes == 64 {
                    rows.push(row(BARE_TCP));
                }
                let cpu = context.host.server_cpu;
                context.measure_until(rows, context.runs, behind_bare_tcp, |probe, _, row| {
                    if row.subject == BARE_TCP {
                        row.push_latencies(probe.tcp_latencies(duration)?);
                        return Ok(());
                    }
                    let served = engine::start(cpu, idle)?;
                    let client = engine::connect(&served, transport, engine::builder(idle))?;
                    row.push_latencies(load::closed(&client, bytes, duration)?);
                    Ok(())
                })?;
            }
        }
    }
    promises(context);
    Ok(())
}

/// The rows of our TCP and of the bare echo's, if they break the promise.
fn behind_bare_tcp(rows: &[Row]) -> Vec<usize> {
    let p99: Vec<_> = rows.iter().map(|row| row.judged("p99")).collect();
    match p99[..] {
        [Some(own), Some(bare)] if own.value >= P99_NS_MAX && bare.value < P99_NS_MAX => vec![0, 1],
        _ => Vec::new(),
    }
}

fn promises(context: &mut Context) {
    let p99 = |subject: &str| context.find("latency", subject, "64 B")?.judged("p99");
    let (shm, tcp, bare) = (p99("shm spin"), p99("tcp spin"), p99(BARE_TCP));
    let text = |name: &str| format!("p99 of a 64 B call below 10 µs over {name}, spinning");
    if let Some(shm) = shm {
        context.judge(text("shm"), shm.us(), shm, None, shm.value < P99_NS_MAX);
    }
    if let (Some(tcp), Some(bare)) = (tcp, bare) {
        context.judge_beside_bare(text("tcp"), tcp, bare, P99_NS_MAX);
    }
}
