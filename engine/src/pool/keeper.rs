//! The pool's own thread: checks idle connections, reports to the server, closes what is not
//! needed.

use std::io;
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::shared::{FIRST_REPORT, Place, Shared, later};
use crate::client::{Client, Error};
use crate::sys::sigbus;

/// A connection that does not answer a HEARTBEAT within this time is broken.
const CHECK_LIMIT: Duration = Duration::from_secs(2);
/// How long the thread waits for a connection when all are in use.
const BORROW_LIMIT: Duration = Duration::from_secs(5);
const STACK_BYTES: usize = 128 * 1024;

/// Starts the thread, which ends when the pool is closed.
pub(super) fn start(shared: Arc<Shared>) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name("lapce-ipc-pool".into())
        .stack_size(STACK_BYTES)
        .spawn(move || run(&shared))
}

fn run(shared: &Shared) {
    // It uses connections that others have made, which may go through shared memory.
    sigbus::let_in();
    let interval = shared.config.health_check_interval;
    let mut check_at = later(interval);
    let mut report_pause = FIRST_REPORT;
    let mut state = shared.lock();
    // Ends with the pool.
    while !state.closed {
        let now = Instant::now();
        let report_at = state.report_at.filter(|_| check_at > now);
        let due = report_at.map_or(check_at, |at| at.min(check_at));
        if due > now {
            (state, _) = shared
                .changed
                .wait_timeout(state, due - now)
                .unwrap_or_else(PoisonError::into_inner);
            continue;
        }
        state.report_at = None;
        drop(state);
        let check = check_at <= now;
        if check {
            check_idle(shared);
            drop(shared.take_expired());
            check_at = later(interval);
        }
        report(shared, check);
        // Soon at first, so that the server's figures are right early; then with the checks.
        report_pause = (report_pause * 2).min(interval);
        state = shared.lock();
        state.report_at = Some(later(report_pause));
    }
}

/// Asks the server over this connection whether both live, and tells it the pool's totals.
fn is_healthy(shared: &Shared, client: &Client) -> bool {
    let report = shared.report();
    let answered = || match client.heartbeat(&report.encode(), CHECK_LIMIT) {
        // A server or a client that takes very little is well all the same.
        Err(Error::TooLarge { .. }) => client.heartbeat(&[], CHECK_LIMIT),
        answered => answered,
    };
    let healthy = client.is_alive() && answered().is_ok();
    shared.checked(healthy.then_some(report));
    healthy
}

/// Checks every connection that was idle for a while, the oldest first. Each is out of the pool
/// meanwhile.
fn check_idle(shared: &Shared) {
    let unseen = shared.config.health_check_interval / 2;
    let begin = Instant::now();
    // Each turn checks one that was not seen since the beginning, so that this ends.
    loop {
        let (index, idle) = {
            let mut state = shared.lock();
            let index = state
                .idle
                .iter()
                .position(|idle| idle.seen < begin && idle.seen.elapsed() >= unseen);
            match index {
                Some(index) if !state.closed => (index, state.idle.remove(index)),
                _ => return,
            }
        };
        let since = idle.since;
        match is_healthy(shared, &idle.client) {
            true => shared.free(idle.client, Place::Back { index, since }),
            false => shared.discarded(idle.client),
        }
    }
}

/// Tells the server the totals. A server that was busy with its figures drops a report, so this
/// one is made even if nothing is new, unless a check has just told it.
fn report(shared: &Shared, just_checked: bool) {
    if just_checked && shared.is_reported() {
        return;
    }
    let Some(client) = shared.borrow_any(BORROW_LIMIT) else {
        return;
    };
    match is_healthy(shared, &client) {
        true => shared.free(client, Place::Newest),
        false => shared.discarded(client),
    }
}
