//! The statistics as Prometheus reads them.

use std::fmt::Write;

use lapce_ai::ipc::{ErrorCode, Snapshot, Transport, process_stats};

const QUANTILES: [f64; 4] = [0.5, 0.9, 0.99, 0.999];

/// Text in the exposition format, version 0.0.4.
pub fn render(stats: &Snapshot) -> String {
    let mut out = String::with_capacity(8 * 1024);
    let per_transport = |out: &mut String, name: &str, value: &dyn Fn(Transport) -> u64| {
        for transport in Transport::ALL {
            line(
                out,
                name,
                &format!("transport=\"{transport}\""),
                value(transport) as f64,
            );
        }
    };

    head(
        &mut out,
        "lapce_ipc_requests_total",
        "counter",
        "Requests taken, those answered with an error too.",
    );
    per_transport(&mut out, "lapce_ipc_requests_total", &|t| stats.requests(t));

    head(
        &mut out,
        "lapce_ipc_errors_total",
        "counter",
        "Errors sent, by the protocol's code.",
    );
    for code in ErrorCode::ALL {
        let label = format!("code=\"{}\"", code.metric_name());
        line(
            &mut out,
            "lapce_ipc_errors_total",
            &label,
            stats.errors(code) as f64,
        );
    }

    head(
        &mut out,
        "lapce_ipc_error_ratio",
        "gauge",
        "Errors over requests since start.",
    );
    line(&mut out, "lapce_ipc_error_ratio", "", stats.error_ratio());

    let name = "lapce_ipc_request_duration_seconds";
    head(
        &mut out,
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
            line(&mut out, name, &labels, seconds);
        }
        let labels = format!("transport=\"{transport}\"");
        let sum = stats.latency_sum_ns(transport) as f64 / 1e9;
        line(&mut out, &format!("{name}_sum"), &labels, sum);
        line(
            &mut out,
            &format!("{name}_count"),
            &labels,
            latency.len() as f64,
        );
    }

    head(
        &mut out,
        "lapce_ipc_connections",
        "gauge",
        "Connections open now.",
    );
    per_transport(&mut out, "lapce_ipc_connections", &|t| stats.connections(t));
    head(
        &mut out,
        "lapce_ipc_connections_total",
        "counter",
        "Connections ever opened.",
    );
    per_transport(&mut out, "lapce_ipc_connections_total", &|t| {
        stats.connections_total(t)
    });

    let name = "lapce_ipc_pool_acquired_total";
    head(
        &mut out,
        name,
        "counter",
        "Connections handed out by pools, as they report it.",
    );
    line(&mut out, name, "", stats.pool_acquired() as f64);
    let name = "lapce_ipc_pool_reused_total";
    head(
        &mut out,
        name,
        "counter",
        "Those of them that were not newly made.",
    );
    line(&mut out, name, "", stats.pool_reused() as f64);
    let name = "lapce_ipc_pool_reuse_ratio";
    head(
        &mut out,
        name,
        "gauge",
        "Reused over acquired; NaN before a pool has reported.",
    );
    line(
        &mut out,
        name,
        "",
        stats.pool_reuse_ratio().unwrap_or(f64::NAN),
    );

    head(
        &mut out,
        "lapce_ipc_bytes_total",
        "counter",
        "Bytes of frames, headers included.",
    );
    for transport in Transport::ALL {
        for (direction, bytes) in [
            ("in", stats.bytes_in(transport)),
            ("out", stats.bytes_out(transport)),
        ] {
            let labels = format!("transport=\"{transport}\",direction=\"{direction}\"");
            line(&mut out, "lapce_ipc_bytes_total", &labels, bytes as f64);
        }
    }

    let name = "lapce_ipc_legacy_requests_total";
    head(
        &mut out,
        name,
        "counter",
        "Requests that came as version 1 frames.",
    );
    line(&mut out, name, "", stats.legacy_requests() as f64);

    let process = process_stats();
    let name = "process_resident_memory_bytes";
    head(&mut out, name, "gauge", "Resident memory size in bytes.");
    line(&mut out, name, "", process.resident_bytes as f64);
    let name = "process_cpu_seconds_total";
    head(
        &mut out,
        name,
        "counter",
        "Total user and system CPU time spent in seconds.",
    );
    line(&mut out, name, "", process.cpu_seconds);
    let name = "process_start_time_seconds";
    head(
        &mut out,
        name,
        "gauge",
        "Start time of the process since unix epoch in seconds.",
    );
    line(&mut out, name, "", process.start_time_seconds);

    head(
        &mut out,
        "lapce_ipc_build_info",
        "gauge",
        "What is running.",
    );
    let version = format!("version=\"{}\"", env!("CARGO_PKG_VERSION"));
    line(&mut out, "lapce_ipc_build_info", &version, 1.0);
    out
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
