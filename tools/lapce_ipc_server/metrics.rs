//! The statistics as Prometheus reads them.

use std::fmt::Write;

use lapce_ai::ipc::{ErrorCode, Snapshot, Transport, process_stats};

const QUANTILES: [f64; 4] = [0.5, 0.9, 0.99, 0.999];

/// Text in the exposition format, version 0.0.4.
pub fn render(stats: &Snapshot) -> String {
    let mut text = String::with_capacity(8 * 1024);
    let out = &mut text;

    let name = "lapce_ipc_requests_total";
    head(
        out,
        name,
        "counter",
        "Requests taken, those answered with an error too.",
    );
    per_transport(out, name, |transport| stats.requests(transport));

    let name = "lapce_ipc_errors_total";
    head(out, name, "counter", "Errors sent, by the protocol's code.");
    for code in ErrorCode::ALL {
        let label = format!("code=\"{}\"", code.metric_name());
        line(out, name, &label, stats.errors(code) as f64);
    }

    single(
        out,
        "lapce_ipc_error_ratio",
        "gauge",
        "Errors over requests since start.",
        stats.error_ratio(),
    );

    let name = "lapce_ipc_request_duration_seconds";
    head(
        out,
        name,
        "summary",
        "From the arrival of what a handler was called for, one-way messages too, to its answer handed over.",
    );
    for transport in Transport::ALL {
        let latency = stats.latency(transport);
        for quantile in QUANTILES {
            let seconds = match latency.is_empty() {
                true => f64::NAN,
                false => latency.value_at_quantile(quantile) as f64 / 1e9,
            };
            let labels = format!("transport=\"{transport}\",quantile=\"{quantile}\"");
            line(out, name, &labels, seconds);
        }
        let labels = format!("transport=\"{transport}\"");
        let sum = stats.latency_sum_ns(transport) as f64 / 1e9;
        line(out, &format!("{name}_sum"), &labels, sum);
        let count = latency.len() as f64;
        line(out, &format!("{name}_count"), &labels, count);
    }

    let name = "lapce_ipc_connections";
    head(out, name, "gauge", "Connections open now.");
    per_transport(out, name, |transport| stats.connections(transport));
    let name = "lapce_ipc_connections_total";
    head(out, name, "counter", "Connections ever opened.");
    per_transport(out, name, |transport| stats.connections_total(transport));

    single(
        out,
        "lapce_ipc_pool_acquired_total",
        "counter",
        "Connections handed out by pools, as they report it.",
        stats.pool_acquired() as f64,
    );
    single(
        out,
        "lapce_ipc_pool_reused_total",
        "counter",
        "Those of them that were not newly made.",
        stats.pool_reused() as f64,
    );
    single(
        out,
        "lapce_ipc_pool_reuse_ratio",
        "gauge",
        "Reused over acquired; NaN before a pool has reported.",
        stats.pool_reuse_ratio().unwrap_or(f64::NAN),
    );

    let name = "lapce_ipc_bytes_total";
    head(out, name, "counter", "Bytes of frames, headers included.");
    for transport in Transport::ALL {
        for (direction, bytes) in [
            ("in", stats.bytes_in(transport)),
            ("out", stats.bytes_out(transport)),
        ] {
            let labels = format!("transport=\"{transport}\",direction=\"{direction}\"");
            line(out, name, &labels, bytes as f64);
        }
    }

    single(
        out,
        "lapce_ipc_legacy_requests_total",
        "counter",
        "Requests that came as version 1 frames.",
        stats.legacy_requests() as f64,
    );

    let process = process_stats();
    single(
        out,
        "process_resident_memory_bytes",
        "gauge",
        "Resident memory size in bytes.",
        process.resident_bytes as f64,
    );
    single(
        out,
        "process_cpu_seconds_total",
        "counter",
        "Total user and system CPU time spent in seconds.",
        process.cpu_seconds,
    );
    single(
        out,
        "process_start_time_seconds",
        "gauge",
        "Start time of the process since unix epoch in seconds.",
        process.start_time_seconds,
    );

    let name = "lapce_ipc_build_info";
    head(out, name, "gauge", "What is running.");
    let version = format!("version=\"{}\"", env!("CARGO_PKG_VERSION"));
    line(out, name, &version, 1.0);
    text
}

/// A metric with one value.
fn single(out: &mut String, name: &str, kind: &str, help: &str, value: f64) {
    head(out, name, kind, help);
    line(out, name, "", value);
}

fn per_transport(out: &mut String, name: &str, value: impl Fn(Transport) -> u64) {
    for transport in Transport::ALL {
        let labels = format!("transport=\"{transport}\"");
        line(out, name, &labels, value(transport) as f64);
    }
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}").expect("a String takes all");
}

fn line(out: &mut String, name: &str, labels: &str, value: f64) {
    let written = match labels {
        "" => writeln!(out, "{name} {value}"),
        _ => writeln!(out, "{name}{{{labels}}} {value}"),
    };
    written.expect("a String takes all");
}
