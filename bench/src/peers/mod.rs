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
mod ours;
mod program;
mod redis;
mod round_trips;
mod scratch;
mod tcp;
mod tokio;
mod uring;
mod window;
mod zmq;

use lapce_ai::ipc::Transport;

use crate::context::{Context, Failure};
use crate::engine;
use crate::row::{Judged, Row};
use ours::Ours;

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
    let first = context.rows.len();
    let mut ours = Ours::new();
    for (name, peer, help) in ALL {
        ours.measure_beside(context, name)?;
        if let Err(error) = peer(context) {
            context.note(format!("peer {name} skipped: {error}; {help}"));
        }
    }
    let peers = context.rows.split_off(first);
    verdicts(context, &ours, &peers);
    context.rows.extend(ours.into_rows());
    context.rows.extend(peers);
    Ok(())
}

/// The peers that go through TCP, which our TCP is held against. Each begins with its name in [`ALL`].
const OVER_TCP: [&str; 5] = [
    "tokio",
    "tokio-uring",
    "monoio",
    "Redis ECHO",
    "NATS request and reply",
];

/// Ahead of every peer that was measured, in each figure: our shared memory of all of them, our
/// TCP of those that go through TCP.
fn verdicts(context: &mut Context, ours: &Ours, peers: &[Row]) {
    for transport in engine::TRANSPORTS {
        for (metric, case) in [
            ("p50", "round trip"),
            ("p99", "round trip"),
            ("requests", "window 256"),
        ] {
            let promise = format!("{transport} ahead of every peer: {metric}, {case}");
            let own = ours.row(transport, case).and_then(|row| row.judged(metric));
            let Some(own) = own else {
                context.not_measured(promise, "no run of ours");
                continue;
            };
            let is_rival = |row: &&Row| {
                row.case == case
                    && (transport == Transport::Shm || OVER_TCP.contains(&row.subject.as_str()))
            };
            let Some((peer, best)) = best(peers.iter().filter(is_rival), metric) else {
                context.not_measured(promise, "no peer ran");
                continue;
            };
            let measured = format!("{:.0} against {:.0} of {peer}", own.value, best.value);
            let ahead = cost(metric, own) < cost(metric, best);
            context.judge(promise, measured, own, Some(best), ahead);
        }
    }
}

/// What is less for the better one.
fn cost(metric: &str, figure: Judged) -> f64 {
    match metric {
        "requests" => -figure.value,
        _ => figure.value,
    }
}

/// The best of them, by the same runs as ours are judged by.
fn best<'a>(rows: impl Iterator<Item = &'a Row>, metric: &str) -> Option<(&'a str, Judged)> {
    rows.filter_map(|row| Some((row.subject.as_str(), row.judged(metric)?)))
        .min_by(|(_, one), (_, other)| cost(metric, *one).total_cmp(&cost(metric, *other)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_is_faster_in_the_calm_runs_is_ahead() {
        let row = |subject: &str, p99: [f64; 3]| {
            let mut row = Row::new("peers", subject, "round trip", 1.0);
            for ns in p99 {
                row.push("p99", "ns", ns);
            }
            row.disturbed_runs = vec![false, true, true];
            row
        };
        let own = row("ours", [150.0, 400.0, 400.0]).judged("p99").unwrap();
        let peers = [
            row("slow", [160.0, 160.0, 160.0]),
            row("fast", [140.0, 500.0, 500.0]),
        ];
        let (name, best) = best(peers.iter(), "p99").unwrap();
        assert_eq!((name, best.value), ("fast", 140.0));
        let is_ahead = |metric| cost(metric, own) < cost(metric, best);
        assert!(!is_ahead("p99"));
        assert!(is_ahead("requests"), "more is better");
    }
}
