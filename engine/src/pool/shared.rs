//! The connections, who uses them and who waits for one.

use std::collections::VecDeque;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::builder::PoolConfig;
use super::guard::PooledConnection;
use super::stats::PoolStats;
use super::waiter::{Grant, Waiter};
use super::window::Window;
use crate::client::{Client, Error};
use crate::sys::sigbus;
use crate::wire::PoolReport;

/// A connection that was not used for longer is looked at before it is handed out.
const UNSEEN_MAX: Duration = Duration::from_millis(1);
/// How soon after the first connection was handed out the server is told.
pub(super) const FIRST_REPORT: Duration = Duration::from_millis(500);
/// How long the last report may take.
const GOODBYE: Duration = Duration::from_secs(1);
/// The share of the maximum that is kept idle before anything is known.
const KEEP_IDLE_DIVISOR: usize = 4;

/// What the pool, its thread and the connections in use have in common.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) config: PoolConfig,
    id: u64,
    state: Mutex<State>,
    /// For the keeper: something is due, or the pool is closed.
    pub(super) changed: Condvar,
}

#[derive(Debug)]
pub(super) struct State {
    /// The one used last is at the end.
    pub(super) idle: Vec<Idle>,
    /// Connections that exist or are being made. Never above the maximum.
    open: usize,
    /// Those that wait, the first at the front. Only if nothing is idle and `open` is at the
    /// maximum; or the keeper, which never makes a connection.
    waiters: VecDeque<Arc<Waiter>>,
    window: Window,
    keep_idle: usize,
    pub(super) closed: bool,
    pub(super) report_at: Option<Instant>,
    reported: (u64, u64),
    totals: Totals,
}

#[derive(Clone, Copy, Debug, Default)]
struct Totals {
    acquired: u64,
    reused: u64,
    broken: u64,
    expired: u64,
    reconnected: u64,
    exhausted: u64,
    connect_failed: u64,
    checks: u64,
    checks_failed: u64,
}

/// A connection that nobody uses.
#[derive(Debug)]
pub(super) struct Idle {
    pub(super) client: Box<Client>,
    /// Since when.
    pub(super) since: Instant,
    /// When it was last known to be healthy.
    pub(super) seen: Instant,
}

enum Next {
    Idle(Idle),
    Permit,
    Wait(Arc<Waiter>),
}

impl State {
    /// The next connection or the right to one.
    fn next(&mut self, max_connections: usize) -> Next {
        if let Some(idle) = self.idle.pop() {
            return Next::Idle(idle);
        }
        if self.open < max_connections {
            self.open += 1;
            return Next::Permit;
        }
        Next::Wait(self.enqueue())
    }

    fn enqueue(&mut self) -> Arc<Waiter> {
        let waiter = Arc::new(Waiter::default());
        self.waiters.push_back(waiter.clone());
        waiter
    }

    /// Keeps more connections idle if too few were reused; returns the ratio and the new number.
    fn learn(&mut self, config: &PoolConfig) -> Option<(f64, usize)> {
        let max = config.max_connections;
        let ratio = self.window.full_ratio()?;
        if ratio >= config.reuse_threshold || self.keep_idle >= max {
            return None;
        }
        self.keep_idle = (self.keep_idle * 2).min(max);
        // The next judgement is about what comes from now on.
        self.window = Window::default();
        Some((ratio, self.keep_idle))
    }
}

impl Shared {
    pub(super) fn new(config: PoolConfig) -> Shared {
        Shared {
            // The standard library seeds its hashes at random.
            id: RandomState::new().build_hasher().finish(),
            state: Mutex::new(State {
                idle: Vec::new(),
                open: 0,
                waiters: VecDeque::new(),
                window: Window::default(),
                keep_idle: config.max_connections.div_ceil(KEEP_IDLE_DIVISOR),
                closed: false,
                report_at: None,
                reported: (0, 0),
                totals: Totals::default(),
            }),
            config,
            changed: Condvar::new(),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // Nobody panics with the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection is no more, and `count` counts it. Whoever waits first may make another.
    fn closed_one(&self, count: impl FnOnce(&mut Totals)) {
        let mut state = self.lock();
        count(&mut state.totals);
        match state.waiters.pop_front() {
            Some(waiter) => {
                drop(state);
                waiter.give(Grant::Permit);
            }
            None => state.open -= 1,
        }
    }

    /// Makes a connection; the caller has the right to one.
    fn connect(&self, deadline: Instant) -> Result<Box<Client>, Error> {
        let left = deadline.saturating_duration_since(Instant::now());
        let client = self.config.client.clone();
        match client.connect_within(&self.config.endpoint, left) {
            Ok(client) => {
                self.acquired(false);
                Ok(Box::new(client))
            }
            Err(error) => {
                self.closed_one(|totals| totals.connect_failed += 1);
                Err(error)
            }
        }
    }

    /// Counts a connection that is about to be handed out, and learns from it.
    fn acquired(&self, reused: bool) {
        let learned = {
            let mut state = self.lock();
            state.totals.acquired += 1;
            state.totals.reused += u64::from(reused);
            state.window.push(reused);
            if state.totals.acquired == 1 {
                state.report_at = Some(Instant::now() + FIRST_REPORT);
                self.changed.notify_all();
            }
            match reused {
                true => None,
                false => state.learn(&self.config),
            }
        };
        if let Some((ratio, keep_idle)) = learned {
            log::warn!(
                "connection pool to {}: {:.1} % of the last connections were reused, below {:.1} %: keeping up to {keep_idle} idle from now on",
                self.config.endpoint,
                ratio * 100.0,
                self.config.reuse_threshold * 100.0,
            );
        }
    }

    /// A connection was found broken, or is not wanted any more.
    pub(super) fn discarded(&self, client: Box<Client>) {
        // Closing may take a system call or two, so not under the lock.
        drop(client);
        self.closed_one(|totals| totals.broken += 1);
    }

    /// A healthy connection goes to whoever waits first, or becomes idle.
    pub(super) fn free(&self, client: Box<Client>, place: Place) {
        let now = Instant::now();
        let mut state = self.lock();
        if state.closed {
            state.open -= 1;
            drop(state);
            return drop(client);
        }
        if let Some(waiter) = state.waiters.pop_front() {
            drop(state);
            return waiter.give(Grant::Connection(client));
        }
        let idle = |since| Idle {
            client,
            since,
            seen: now,
        };
        match place {
            Place::Newest => state.idle.push(idle(now)),
            Place::Back { index, since } => {
                let index = index.min(state.idle.len());
                state.idle.insert(index, idle(since));
            }
        }
    }

    /// A connection for the keeper, which is not counted and never newly made; `None` if there is
    /// none, or none becomes free in time.
    pub(super) fn borrow_any(&self, limit: Duration) -> Option<Box<Client>> {
        let waiter = {
            let mut state = self.lock();
            if state.closed || state.open == 0 {
                return None;
            }
            if let Some(idle) = state.idle.pop() {
                return Some(idle.client);
            }
            state.enqueue()
        };
        match self.wait(&waiter, Instant::now() + limit)? {
            Grant::Connection(client) => Some(client),
            Grant::Permit => {
                self.closed_one(|_| ());
                None
            }
        }
    }

    fn wait(&self, waiter: &Arc<Waiter>, deadline: Instant) -> Option<Grant> {
        if let Some(grant) = waiter.wait_until(deadline) {
            return Some(grant);
        }
        let mut state = self.lock();
        let place = state
            .waiters
            .iter()
            .position(|other| Arc::ptr_eq(other, waiter));
        match place {
            Some(place) => {
                state.waiters.remove(place);
                None
            }
            // In the last moment after all.
            None => {
                drop(state);
                Some(waiter.wait_for_certain())
            }
        }
    }

    /// The totals for the server.
    pub(super) fn report(&self) -> PoolReport {
        let totals = self.lock().totals;
        PoolReport {
            pool_id: self.id,
            acquired: totals.acquired,
            reused: totals.reused,
        }
    }

    /// Whether the server has heard the totals.
    pub(super) fn is_reported(&self) -> bool {
        let state = self.lock();
        state.reported == (state.totals.acquired, state.totals.reused)
    }

    /// A health check, or a report, was made.
    pub(super) fn checked(&self, told: Option<PoolReport>) {
        let mut state = self.lock();
        state.totals.checks += 1;
        match told {
            Some(told) => state.reported = (told.acquired, told.reused),
            None => state.totals.checks_failed += 1,
        }
    }

    /// Takes idle connections that are not needed out of the pool: those that were idle longest.
    pub(super) fn take_expired(&self) -> Vec<Idle> {
        let mut state = self.lock();
        let surplus = state.idle.len().saturating_sub(state.keep_idle);
        let limit = self.config.idle_timeout;
        let expired = state.idle[..surplus]
            .iter()
            .take_while(|idle| idle.since.elapsed() >= limit)
            .count();
        // Whoever waits for one waits while nothing is idle, so there is nobody to tell.
        state.open -= expired;
        state.totals.expired += expired as u64;
        state.idle.drain(..expired).collect()
    }

    /// From now on connections are closed when they are returned.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        // The keeper, if anybody: all others would still borrow the pool.
        let waiters = std::mem::take(&mut state.waiters);
        // Each gets a permit, which it gives back.
        state.open += waiters.len();
        drop(state);
        for waiter in waiters {
            waiter.give(Grant::Permit);
        }
        self.changed.notify_all();
    }

    /// Tells the server the last totals and closes what is idle.
    pub(super) fn say_goodbye(&self) {
        // As in `get`.
        sigbus::let_in_once();
        let idle = std::mem::take(&mut self.lock().idle);
        if let Some(newest) = idle.last()
            && !self.is_reported()
            && newest.client.is_alive()
        {
            // Best effort: a server that is gone needs no report.
            let _ = newest.client.heartbeat(&self.report().encode(), GOODBYE);
        }
        self.lock().open -= idle.len();
    }

    pub(super) fn stats(&self) -> PoolStats {
        let state = self.lock();
        let totals = state.totals;
        PoolStats {
            max_connections: self.config.max_connections,
            open: state.open,
            idle: state.idle.len(),
            keep_idle: state.keep_idle,
            waiting: state.waiters.len(),
            acquired: totals.acquired,
            reused: totals.reused,
            created: totals.acquired - totals.reused,
            broken: totals.broken,
            expired: totals.expired,
            reconnected: totals.reconnected,
            exhausted: totals.exhausted,
            connect_failed: totals.connect_failed,
            checks: totals.checks,
            checks_failed: totals.checks_failed,
            recent_reuse_ratio: state.window.ratio(),
        }
    }
}

/// Where among the idle ones a connection goes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    /// It was used just now.
    Newest,
    /// It was only checked.
    Back { index: usize, since: Instant },
}

/// So long from now; a very long time may be anything.
pub(super) fn later(time: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(time)
        .unwrap_or_else(|| now + Duration::from_secs(1 << 30))
}

/// A connection for a user.
pub(super) fn get(shared: &Arc<Shared>, timeout: Duration) -> Result<PooledConnection, Error> {
    // The connection may go through shared memory, and be another thread's work.
    sigbus::let_in_once();
    let deadline = later(timeout);
    // Each turn but the last closes a connection that turned out to be broken.
    let client = loop {
        let next = shared.lock().next(shared.config.max_connections);
        let grant = match next {
            Next::Idle(idle) => {
                if idle.seen.elapsed() > UNSEEN_MAX && !idle.client.is_alive() {
                    shared.discarded(idle.client);
                    continue;
                }
                Some(Grant::Connection(idle.client))
            }
            Next::Permit => Some(Grant::Permit),
            Next::Wait(waiter) => shared.wait(&waiter, deadline),
        };
        match grant {
            Some(Grant::Connection(client)) => {
                shared.acquired(true);
                break client;
            }
            Some(Grant::Permit) => break shared.connect(deadline)?,
            None => {
                shared.lock().totals.exhausted += 1;
                return Err(Error::PoolExhausted {
                    after: timeout,
                    max_connections: shared.config.max_connections,
                });
            }
        }
    };
    Ok(PooledConnection::new(client, shared.clone()))
}

/// A user is done with a connection.
pub(super) fn give_back(shared: &Arc<Shared>, client: Box<Client>, reconnects: u64) {
    if reconnects > 0 {
        shared.lock().totals.reconnected += reconnects;
    }
    match client.leave_clean() {
        true => shared.free(client, Place::Newest),
        false => shared.discarded(client),
    }
}
