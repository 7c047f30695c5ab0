//! The server's event loop. A worker is one thread, which serves its connections from accept to close.
//!
//! [`Worker::work`] is the loop: one round after the other, and when there is nothing to do it spins or
//! sleeps. A round ([`round`]) goes like this:
//!
//! 1. Take bytes from all sources: shared-memory rings ([`shm`], [`whole`]), io_uring completions
//!    ([`events`], [`accept`]), and messages of other threads ([`inbox`], [`deferred`]).
//! 2. Find the frames in them and verify their CRCs, many at a time ([`batch`]).
//! 3. Handle them, those with PRIORITY first: [`session`] decides what the protocol says of a frame,
//!    [`dispatch`] calls its handler, [`handler`] has what the handler sees. [`turns`] limits how much
//!    of a round one connection may take.
//! 4. Send the answers, which [`outgoing`] has encoded, and settle every connection that something
//!    happened to ([`lifecycle`]): pause it, resume it, give memory back, close it.
//! 5. Now and then look at all deadlines ([`deadlines`]).
//!
//! A request alone in a ring takes a shortcut: `take_ring` in [`shm`] handles it without a batch.
//!
//! Around that: [`connection`] is one connection's state and [`slots`] where they are kept; [`context`]
//! is what the workers of a server share; [`room`] is the memory budget; [`owed`] are the answers that
//! other threads owe, and [`silence`] ends their waiting for a worker that stands still; [`heat`] says which
//! rings are polled and [`starved`] who gets receive buffers; [`idle`] decides when to sleep; [`vec_pool`]
//! keeps buffers for reuse; [`failure`], [`cut_off`] and [`rarely`] are about telling what went wrong.
//!
//! A worker blocks nowhere but in [`Worker::park`], takes no lock that the control plane can hold, and
//! allocates nothing in the steady state.

mod accept;
mod batch;
mod connection;
mod context;
mod cut_off;
mod deadlines;
mod deferred;
mod dispatch;
mod events;
mod failure;
mod handler;
mod heat;
mod idle;
mod inbox;
mod lifecycle;
mod outgoing;
mod owed;
pub(crate) mod park_counts;
mod rarely;
mod room;
mod round;
mod session;
mod shm;
mod silence;
mod slots;
mod starved;
mod turns;
mod vec_pool;
mod whole;

use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use batch::Batch;
use connection::Connection;
pub(crate) use context::Shared;
pub use deferred::{Deferred, Gone};
use dispatch::Dispatcher;
pub(crate) use failure::Failure;
pub(crate) use handler::HandlerTable;
pub use handler::{Handler, Request, Responder};
use idle::IdlePolicy;
pub(crate) use inbox::{Doorbell, Inbox, Message};
use rarely::Rarely;
pub(crate) use room::Room;
use shm::Rings;
use slots::Slots;
use starved::Starved;
use turns::Turns;

use crate::config::IdleMode;
use crate::shm::Control;
use crate::stats::WorkerStats;
use crate::sys::clock;
use crate::uring::{Driver, Event, Features, Key, RingError};

/// The most io_uring events that one round takes.
const EVENTS_MAX: usize = 256;
/// For so many connections the lists of connections have room from the start, so that an event that is rare does not
/// allocate in the steady state. With more of them they grow once.
const KEYS_AT_START: usize = 32;
/// A worker that had no work for this long gives spare memory back. Not earlier: to fault it in again costs
/// more than a long message takes.
const KEEP_MEMORY: Duration = Duration::from_millis(10);
/// The same in spin mode, which is for latency: long messages that come with every frame of a screen, or some ten a
/// second, find the memory there.
const KEEP_MEMORY_SPINNING: Duration = Duration::from_millis(200);
/// The longest sleep. The worker waits on a futex word in shared memory; if that memory was replaced by
/// another mapping meanwhile, a wake-up does not reach it before it waits anew.
const SLEEP_MAX: Duration = Duration::from_secs(4);

/// What a worker is started with.
pub(crate) struct WorkerSetup {
    /// The worker's number, from 0.
    pub(crate) index: usize,
    /// The CPU to pin the thread to; `None`: wherever the kernel puts it.
    pub(crate) cpu: Option<usize>,
    pub(crate) features: Features,
    pub(crate) shared: Arc<Shared>,
    /// Only the first worker's: it accepts for all.
    pub(crate) listener: Option<TcpListener>,
    /// The control segment, if shared memory is offered.
    pub(crate) control: Option<Arc<Control>>,
}

pub(crate) struct Worker {
    /// The worker's number. `rings` and `dispatcher` know it too, as they have handles of their own of what
    /// else they need: a dispatch borrows them and a connection, and nothing else of the worker.
    index: usize,
    driver: Driver,
    connections: Slots<Connection>,
    dispatcher: Dispatcher,
    shared: Arc<Shared>,
    inbox: Arc<Inbox>,
    stats: Arc<WorkerStats>,
    rings: Rings,
    idle: IdlePolicy,
    /// A client was woken that waits on this CPU.
    gives_way: bool,
    listener: Option<OwnedFd>,
    /// An accept is armed: an event will tell of its end.
    accepting: bool,
    /// Accept again at the next sweep: descriptors or memory were short.
    accept_later: bool,
    /// When the log may say again that connections wait to be accepted.
    connections_wait: Rarely,

    // What one round works with, kept for its memory: nothing in it counts in the next round.
    events: Vec<Event>,
    batch: Batch,
    turns: Turns,
    /// Connections to be settled at the end of the round, because something happened to them.
    touched: Vec<Key>,
    /// Keys for walks over all connections; each walk begins with writing them anew.
    keys: Vec<Key>,

    /// Connections that found no receive buffer.
    starved: Starved,
    /// Connections whose waiting bytes may be handled in the next round.
    resumed: Vec<Key>,
    /// The only TCP connection that speaks at the moment: it is received from directly, see
    /// [`Worker::take_hot`].
    hot: Option<Key>,
    /// The TCP connection whose bytes the io_uring has received last.
    spoke_last: Option<Key>,
    /// How often `hot` was looked at in vain since it last had something.
    hot_misses: u32,
    /// Encoded bytes that all connections of this worker hold and have not sent.
    outgoing_bytes: usize,

    /// Some connection may have a deadline. Each sweep clears this and finds out anew; settling a
    /// connection sets it.
    timed: bool,
    next_sweep_ns: u64,
    /// Since the last sweep there was always a reason for the next, so that a late one was kept from
    /// running.
    swept: bool,
    /// The time as of the last look at the clock.
    now_ns: u64,
    /// The clock was read since the last round, which found nothing.
    now_is_fresh: bool,
    /// The last round took so long that requests may have arrived and waited meanwhile.
    round_was_long: bool,
    /// There was work since spare memory was last given back.
    holds_memory: bool,
    /// While draining: by when all connections are closed.
    drain_deadline_ns: Option<u64>,
    /// While draining: until when connections that go on asking are told that the server stops.
    refusing_until_ns: u64,
}

impl Worker {
    /// Runs a worker on this thread until it has drained. `started` is called once, with whether the
    /// io_uring could be set up. Returns false if the worker panicked; its clients have been told.
    pub(crate) fn run(setup: WorkerSetup, started: impl FnOnce(Result<(), RingError>)) -> bool {
        if let Some(cpu) = setup.cpu
            && let Err(error) = crate::sys::affinity::pin_current_thread(cpu)
        {
            log::warn!("worker {}: not pinned to CPU {cpu}: {error}", setup.index);
        }
        let inbox = setup.shared.inboxes[setup.index].clone();
        match Driver::new(setup.features, inbox.doorbell().memory()) {
            Ok(driver) => {
                inbox.own();
                let mut worker = Worker::new(setup, driver, inbox);
                started(Ok(()));
                let worked = catch_unwind(AssertUnwindSafe(|| worker.work())).is_ok();
                worker.inbox.close();
                if !worked {
                    worker.abandon_rings();
                }
                worked
            }
            Err(error) => {
                inbox.close();
                started(Err(error));
                true
            }
        }
    }

    /// After a panic: tells the clients of all rings that nobody serves them any more. (TCP clients are
    /// told by the kernel, which closes the sockets.)
    fn abandon_rings(&mut self) {
        let mut keys = std::mem::take(&mut self.keys);
        self.connections.keys(&mut keys);
        for key in keys {
            let connection = self.connections.get_mut(key);
            if let Some(ends) = connection.and_then(|connection| connection.out.ends.as_ref()) {
                ends.close_and_wake();
            }
        }
    }

    fn new(setup: WorkerSetup, driver: Driver, inbox: Arc<Inbox>) -> Worker {
        let shared = setup.shared;
        let stats = shared.registry.worker(setup.index);
        let now_ns = clock::now_ns();
        Worker {
            index: setup.index,
            driver,
            connections: Slots::new(),
            dispatcher: Dispatcher::new(
                setup.index,
                shared.clone(),
                stats.clone(),
                setup.control.clone(),
            ),
            rings: Rings::new(setup.index, setup.control),
            idle: IdlePolicy::new(shared.idle_mode()),
            gives_way: false,
            shared,
            inbox,
            stats,
            listener: setup.listener.map(OwnedFd::from),
            accepting: false,
            accept_later: false,
            connections_wait: Rarely::new(),
            events: Vec::with_capacity(EVENTS_MAX),
            batch: Batch::new(),
            turns: Turns::new(),
            touched: Vec::with_capacity(EVENTS_MAX),
            starved: Starved::default(),
            resumed: Vec::with_capacity(KEYS_AT_START),
            keys: Vec::with_capacity(KEYS_AT_START),
            hot: None,
            spoke_last: None,
            hot_misses: 0,
            outgoing_bytes: 0,
            timed: false,
            next_sweep_ns: now_ns,
            swept: false,
            now_ns,
            now_is_fresh: true,
            round_was_long: false,
            holds_memory: false,
            drain_deadline_ns: None,
            refusing_until_ns: 0,
        }
    }

    fn work(&mut self) {
        self.accept();
        self.rings.tell_cpu();
        // Unbounded by design: ends once the worker was asked to drain and has no connection left.
        loop {
            let worked = self.round();
            if self.drain_deadline_ns.is_some() && self.connections.len() == 0 {
                break;
            }
            self.now_is_fresh = !worked;
            if worked {
                self.holds_memory = true;
                self.idle.worked(self.now_ns);
                self.driver.turn();
                continue;
            }
            // A round with work reads the clock itself.
            self.now_ns = clock::now_ns();
            // If something has come while a connection is hot, it is most likely for that, and the next round
            // receives it sooner than an enter would.
            if (self.hot.is_none() || self.driver.owes_an_enter()) && self.driver.turn() {
                continue;
            }
            let gives_way = std::mem::take(&mut self.gives_way);
            self.idle.set_mode(self.shared.idle_mode());
            self.idle.rests(self.now_ns);
            let keep = match self.idle.mode() {
                IdleMode::Spin => KEEP_MEMORY_SPINNING,
                IdleMode::Adaptive | IdleMode::Park => KEEP_MEMORY,
            };
            if self.holds_memory && self.idle.rested(self.now_ns) >= keep {
                self.holds_memory = false;
                self.release_memory();
            }
            if self.idle.should_sleep(self.now_ns) {
                self.park();
            } else if gives_way {
                // Whoever spins here keeps that client from running, and has nothing to do before it has run.
                std::thread::yield_now();
            } else {
                self.watch_hot_rings();
            }
        }
    }

    /// Sleeps until something happens or the next sweep is due.
    ///
    /// No wake-up is lost: the worker first announces its sleep (in the waiting word of every ring, then in
    /// its doorbell), then looks at every source once more, and only then waits. Whoever publishes
    /// something looks for the announcement afterwards, with a fence in between on both sides: so either
    /// the second look sees what was published, or the publisher sees the announcement and rings.
    /// `shm/loom_models/wakes.rs` checks this order.
    fn park(&mut self) {
        if !self.cool_rings() {
            return;
        }
        self.inbox.doorbell().fall_asleep();
        self.driver.arm_doorbell();
        // The second look.
        if self.inbox.is_empty()
            && !self.drain_asked_anew()
            && self.idle.mode() == self.shared.idle_mode()
            && !self.rings.have_rung()
            && self.shared.room.someone_can_go() != Some(self.index)
        {
            let limit = self
                .needs_sweeps()
                .then(|| Duration::from_nanos(self.next_sweep_ns.saturating_sub(self.now_ns)));
            let keep = self.holds_memory.then_some(KEEP_MEMORY);
            let limits = limit.into_iter().chain(keep);
            let by_timer = self.driver.wait(limits.fold(SLEEP_MAX, Duration::min));
            if by_timer {
                // The memory under the doorbell may have been replaced: the next wait is armed anew.
                self.driver.disarm_doorbell();
            }
            // For a test: whoever rang right after the timer ended the wait is not late, and comes at once.
            park_counts::slept(|| {
                by_timer && self.rings.have_rung() && self.driver.wait(Duration::from_secs(1))
            });
        }
        self.inbox.doorbell().wake_up();
        // A worker that is not pinned may have been woken on another CPU.
        self.rings.tell_cpu();
        self.now_ns = clock::now_ns().max(self.now_ns);
    }

    /// Whether the worker was asked to drain and has not begun to.
    fn drain_asked_anew(&self) -> bool {
        self.drain_deadline_ns.is_none() && self.inbox.drain_asked()
    }

    /// Whether sweeps are needed: something may become due by the mere passing of time.
    fn needs_sweeps(&self) -> bool {
        self.timed || self.accept_later || self.drain_deadline_ns.is_some()
    }
}
