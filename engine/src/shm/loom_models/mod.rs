//! The ring and the wake-ups under loom, which tries every order in which two threads may run and
//! every value that a load may see.
//!
//! `ring.rs`, `producer.rs`, `consumer.rs`, `ends.rs`, `layout.rs`, `copy.rs` and `doorbell.rs` are compiled here a second time, as they are, with
//! [`sizes`] that make laps short and with [`sync`], whose memory fails the model if somebody reads
//! or writes data without having been handed them, and whose futex has no timer: a wake-up that is
//! lost is a deadlock, which loom reports.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p lapce-ai --lib loom --release --target-dir target/loom`
#![allow(dead_code)] // what the ring offers and no model uses
#![allow(clippy::duplicate_mod)] // meant: see above

#[path = "../consumer.rs"]
mod consumer;
#[path = "../copy.rs"]
mod copy;
#[path = "../doorbell.rs"]
mod doorbell;
#[path = "../ends.rs"]
mod ends;
#[path = "../layout.rs"]
mod layout;
#[path = "../producer.rs"]
mod producer;
#[path = "../ring.rs"]
mod ring;

mod records;
mod sizes;
mod sync;
mod wakes;

use std::sync::Arc;

use consumer::Consumer;
use ends::Ends;
use layout::{TO_CLIENT, TO_SERVER};
use sync::Segment;

/// Both sides of a new connection: the client's, the server's.
fn connection() -> (Ends, Ends) {
    let segment = Arc::new(Segment::connection());
    let client = Ends::new(segment.clone(), &TO_SERVER, &TO_CLIENT);
    let server = Ends::new(segment, &TO_CLIENT, &TO_SERVER);
    (client, server)
}

/// Checks a model in all orders with up to `preemptions` switches that no thread asked for.
fn check(preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 20_000;
    builder.check(model);
}

/// Data that differ from record to record and from place to place.
fn pattern(length: usize, seed: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 7 + seed * 13) as u8).collect()
}

/// Takes the next record and checks it. False: there is none yet.
fn take(rx: &mut Consumer, expected: &[u8]) -> bool {
    let Some(record) = rx.next().unwrap() else {
        return false;
    };
    let mut bytes = Vec::new();
    rx.copy(&record, &mut bytes);
    assert_eq!(bytes, expected);
    rx.advance(&record);
    true
}
