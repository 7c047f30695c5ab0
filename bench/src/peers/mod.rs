//! What a user would pick instead, with the same messages: 88 bytes each way over byte streams,
//! which is a frame of 64 bytes with its header.

#[cfg(feature = "peers-aeron")]
mod aeron;
mod grpc;
mod iceoryx;
mod monoio;
mod nats;
#[cfg(feature = "peers-nng")]
mod nng;
mod node;
mod program;
mod redis;
mod round_trips;
mod scratch;
mod tcp;
mod tokio;
mod uring;
mod zmq;

use std::fmt::Write;

use crate::context::{Context, Failure};
use crate::row::Row;

/// The other process of a peer that is a library.
pub fn serve(kind: &str, name: &str) -> Result<(), Failure> {
    match kind {
        "tokio" => tokio::serve(),
        "tokio-uring" => uring::serve(),
        "monoio" => monoio::serve(),
        "iceoryx2" => iceoryx::serve(name),
        "iceoryx2-topics" => iceoryx::serve_topics(name),
        "zeromq" => zmq::serve(name),
        "grpc" => grpc::serve(name),
        "nats" => nats::serve(name),
        #[cfg(feature = "peers-aeron")]
        "aeron" => aeron::serve(name),
        #[cfg(feature = "peers-aeron")]
        "aeron-driver" => aeron::drive(name),
        #[cfg(feature = "peers-nng")]
        "nng" => nng::serve(name),
        _ => Err(format!("no such kind: {kind}").into()),
    }
}

type Peer = fn(&mut Context) -> Result<(), Failure>;

#[cfg(feature = "peers-aeron")]
const AERON: Peer = aeron::run;
#[cfg(not(feature = "peers-aeron"))]
const AERON: Peer = |_| Err("it is not in this build".into());
const AERON_HELP: &str = match cfg!(feature = "peers-aeron") {
    true => "it needs 400 MB free in /dev/shm",
    false => {
        "add `--features peers-aeron`, after `apt-get install g++ libclang-dev uuid-dev libbsd-dev` \
         and `pip install cmake` (3.30 or newer)"
    }
};

#[cfg(feature = "peers-nng")]
const NNG: Peer = nng::run;
#[cfg(not(feature = "peers-nng"))]
const NNG: Peer = |_| Err("it is not in this build".into());
const NNG_HELP: &str = match cfg!(feature = "peers-nng") {
    true => "it needs a writable temporary directory",
    false => "add `--features peers-nng`, after `apt-get install cmake`",
};

/// How each is run, and what helps if it cannot be.
const ALL: [(&str, Peer, &str); 11] = [
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
    ("Aeron", AERON, AERON_HELP),
    ("zeromq", zmq::run, ""),
    ("NNG", NNG, NNG_HELP),
    ("gRPC", grpc::run, "it needs a writable temporary directory"),
    (
        "NATS",
        nats::run,
        "install it with `apt-get install nats-server`",
    ),
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
    scratch::sweep();
    for (name, peer, help) in ALL {
        if let Err(error) = peer(context) {
            context.note(format!("peer {name} skipped: {error}; {help}"));
        }
    }
    verdicts(context);
    Ok(())
}

/// The peers that go through TCP, which our TCP is held against.
const OVER_TCP: [&str; 5] = [
    "tokio",
    "tokio-uring",
    "monoio",
    "Redis ECHO",
    "NATS request and reply",
];

/// Ahead of every peer that was measured, in each figure: our shared memory of all of them, our
/// TCP of those that go through TCP.
fn verdicts(context: &mut Context) {
    for transport in ["shm", "tcp"] {
        let latency = ("latency", format!("{transport} spin"), "64 B");
        let throughput = ("throughput", format!("{transport} spin 64 B"), "window 256");
        for (metric, case, ours) in [
            ("p50", "round trip", &latency),
            ("p99", "round trip", &latency),
            ("requests", "window 256", &throughput),
        ] {
            let promise = format!("{transport} ahead of every peer: {metric}, {case}");
            let own = context.find(ours.0, &ours.1, ours.2);
            let Some(judged) = own.and_then(|row| row.judged(metric)) else {
                context.not_measured(promise, "needs the scenarios latency and throughput");
                continue;
            };
            let state = own.and_then(Row::line_ns);
            let own = judged.value;
            let less_is_better = metric != "requests";
            let Some((row, best)) = best(context, transport, case, metric, less_is_better) else {
                context.not_measured(promise, "no peer ran");
                continue;
            };
            let kept = if less_is_better {
                own < best
            } else {
                own > best
            };
            let mut measured = format!("{own:.0} against {best:.0} of {}", row.subject);
            let state_of_best = row.line_ns();
            let mut fair = true;
            if let (false, Some(own), Some(best)) =
                (same_state(state, state_of_best), state, state_of_best)
            {
                // It tells something only if the machine helped the one that lost.
                fair = kept == (own > best);
                let _ = write!(
                    measured,
                    ", the machine having changed in between: cache line {own:.0} ns against {best:.0}"
                );
            }
            context.judge_beside(promise, measured, judged, kept && fair, fair);
        }
    }
}

/// Whether the machine was in one state for both rows, so that they can be compared.
fn same_state(one: Option<f64>, other: Option<f64>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => (1.0 / 1.5..=1.5).contains(&(one / other)),
        _ => true,
    }
}

fn best<'a>(
    context: &'a Context,
    transport: &str,
    case: &str,
    metric: &str,
    less_is_better: bool,
) -> Option<(&'a Row, f64)> {
    context
        .rows
        .iter()
        .filter(|row| row.scenario == "peers" && row.case == case)
        .filter(|row| transport == "shm" || OVER_TCP.contains(&row.subject.as_str()))
        .filter_map(|row| Some((row, row.median(metric)?)))
        .min_by(|a, b| {
            let order = a.1.total_cmp(&b.1);
            if less_is_better {
                order
            } else {
                order.reverse()
            }
        })
}
