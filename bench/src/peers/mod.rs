//! What a user would pick instead, with the same messages: 88 bytes each way over byte streams,
//! which is a frame of 64 bytes with its header.

mod iceoryx;
mod monoio;
mod node;
mod redis;
mod tcp;
mod tokio;
mod uring;
mod zmq;

use crate::context::{Context, Failure};

/// The other process of a peer that is a library.
pub fn serve(kind: &str, name: &str) -> Result<(), Failure> {
    match kind {
        "tokio" => tokio::serve(),
        "tokio-uring" => uring::serve(),
        "monoio" => monoio::serve(),
        "iceoryx2" => iceoryx::serve(name),
        "zeromq" => zmq::serve(name),
        _ => Err(format!("no such kind: {kind}").into()),
    }
}

type Peer = fn(&mut Context) -> Result<(), Failure>;

/// How each is run, and what helps if it cannot be.
const ALL: [(&str, Peer, &str); 7] = [
    ("tokio", |context| tcp::library(context, "tokio"), ""),
    (
        "tokio-uring",
        |context| tcp::library(context, "tokio-uring"),
        "it needs io_uring: see /proc/sys/kernel/io_uring_disabled",
    ),
    (
        "monoio",
        |context| tcp::library(context, "monoio"),
        "it needs io_uring: see /proc/sys/kernel/io_uring_disabled",
    ),
    (
        "iceoryx2",
        iceoryx::run,
        "it needs a writable /dev/shm and /tmp",
    ),
    ("zeromq", zmq::run, ""),
    (
        "Redis",
        redis::run,
        "install it with `apt-get install redis-server`",
    ),
    (
        "Node.js",
        node::run,
        "install it with `apt-get install nodejs`",
    ),
];

pub fn run(context: &mut Context) -> Result<(), Failure> {
    for (name, peer, help) in ALL {
        if let Err(error) = peer(context) {
            context.note(format!("peer {name} skipped: {error}; {help}"));
        }
    }
    for (name, help) in [
        (
            "Aeron",
            "crate rusteron-client and its C++ build are not part of this bench yet",
        ),
        ("NNG", "crate nng is not part of this bench yet"),
        ("gRPC", "crate tonic is not part of this bench yet"),
        ("NATS", "nats-server is not part of this bench yet"),
    ] {
        context.note(format!("peer {name} skipped: {help}"));
    }
    verdicts(context);
    Ok(())
}

/// Ahead of every peer that was measured: of each in both figures.
fn verdicts(context: &mut Context) {
    for (metric, case, ours, better_is_less) in [
        ("p50", "round trip", ("latency", "shm spin", "64 B"), true),
        ("p99", "round trip", ("latency", "shm spin", "64 B"), true),
        (
            "requests",
            "window 256",
            ("throughput", "shm spin 64 B", "window 256"),
            false,
        ),
    ] {
        let promise = format!("ahead of every peer: {metric}, {case}");
        let own = context
            .find(ours.0, ours.1, ours.2)
            .and_then(|row| row.median(metric));
        let Some(own) = own else {
            context.not_measured(promise, "needs the scenarios latency and throughput");
            continue;
        };
        let peers = context
            .rows
            .iter()
            .filter(|row| row.scenario == "peers" && row.case == case);
        let figures: Vec<(String, f64)> = peers
            .filter_map(|row| Some((row.subject.clone(), row.median(metric)?)))
            .collect();
        let best = figures.iter().min_by(|a, b| {
            let order = a.1.total_cmp(&b.1);
            if better_is_less {
                order
            } else {
                order.reverse()
            }
        });
        let Some((name, best)) = best else {
            context.not_measured(promise, "no peer ran");
            continue;
        };
        let kept = if better_is_less {
            own < *best
        } else {
            own > *best
        };
        context.verdict(
            promise,
            format!("{own:.0} against {best:.0} of {name}"),
            kept,
        );
    }
}
