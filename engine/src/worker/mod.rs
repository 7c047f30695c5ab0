//! One pinned thread: takes what its sources have, handles it to the end, sends, waits.
//!
//! The files: [`lifecycle`] moves connections from open to closed, [`events`] turns the ring's
//! completions into bytes and state, [`batch`] finds and verifies the frames of a round,
//! [`dispatch`] answers them, [`session`] holds the protocol's decisions, [`idle`] decides when to
//! sleep. A worker never blocks but in [`Worker::park`], takes no lock that another thread can
//! hold, and in the steady state allocates nothing.

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
use dispatch::{Dispatcher, ShmAddress};
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

use crate::shm::Control;
use crate::stats::WorkerStats;
use crate::sys::clock;
use crate::uring::{Driver, DriverOptions, Event, Features, Key, RingError};

/// Submission queue entries of a worker's ring. More at once only costs another enter.
const RING_ENTRIES: u32 = 128;
/// Events taken in one round.
const EVENTS_MAX: usize = 256;
/// A worker that sleeps gives memory back after this long, not before: to page it in again for the
/// next message costs more than a long message takes.
const KEEP: Duration = Duration::from_millis(10);
/// The longest sleep. A worker waits for a word in memory; should other memory have been mapped there
/// meanwhile, it hears nobody until it waits anew.
const HEARING: Duration = Duration::from_secs(4);

/// What a worker is started with.
pub(crate) struct WorkerSetup {
    pub(crate) index: usize,
    /// The CPU to stay on.
    pub(crate) cpu: Option<usize>,
    pub(crate) features: Features,
    pub(crate) shared: Arc<Shared>,
    /// The first worker accepts for all.
    pub(crate) listener: Option<TcpListener>,
    /// The control segment, where shared memory is offered.
    pub(crate) control: Option<Arc<Control>>,
}

pub(crate) struct Worker {
    index: usize,
    driver: Driver,
    connections: Slots<Connection>,
    dispatcher: Dispatcher,
    shared: Arc<Shared>,
    inbox: Arc<Inbox>,
    stats: Arc<WorkerStats>,
    rings: Rings,
    idle: IdlePolicy,
    listener: Option<OwnedFd>,
    accepting: bool,
    /// Accept again at the next sweep: descriptors were short.
    accept_later: bool,
    /// When it is said again that connections wait.
    connections_wait: Rarely,
    events: Vec<Event>,
    batch: Batch,
    turns: Turns,
    /// Connections that something happened to in this round.
    touched: Vec<Key>,
    /// Connections that found no receive buffer.
    starved: Starved,
    /// Connections with stashed bytes that may be handled now.
    resumed: Vec<Key>,
    /// For walks over all connections.
    keys: Vec<Key>,
    /// The one TCP connection that speaks at the moment: it is received from directly.
    hot: Option<Key>,
    /// Looks at `hot` since it last had something.
    hot_misses: u32,
    /// Bytes on their way out of this worker's connections.
    outgoing_bytes: usize,
    /// Connections with a deadline, counted anew by every sweep; settling one adds to it.
    timed: bool,
    next_sweep_ns: u64,
    /// The last sweep left something that makes the next one due in time.
    swept: bool,
    now_ns: u64,
    /// `now_ns` was read after the last round, which found nothing.
    now_is_fresh: bool,
    /// The last round took so long that requests may have come and waited.
    round_was_long: bool,
    /// There was work since memory was last given back.
    holds_memory: bool,
    drain_deadline_ns: Option<u64>,
    /// While draining, until when a connection stays because it goes on asking.
    refusing_until_ns: u64,
}

impl Worker {
    /// Runs a worker on this thread until it is drained. `started` is told once whether the ring
    /// could be had. False: it panicked, and what it has left behind is in order.
    pub(crate) fn run(setup: WorkerSetup, started: impl FnOnce(Result<(), RingError>)) -> bool {
        if let Some(cpu) = setup.cpu
            && let Err(error) = crate::sys::affinity::pin_current_thread(cpu)
        {
            log::warn!("worker {}: not pinned to CPU {cpu}: {error}", setup.index);
        }
        let inbox = setup.shared.inboxes[setup.index].clone();
        let options = DriverOptions {
            entries: RING_ENTRIES,
            features: setup.features,
        };
        match Driver::new(options, inbox.doorbell().memory()) {
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

    /// Tells the clients of all rings that nobody serves them any more. (Of a socket the kernel does.)
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
                setup.control.as_ref().map(|control| ShmAddress {
                    segment: control.name.clone(),
                    host_id: control.host_id(),
                }),
            ),
            rings: Rings::new(setup.index, setup.control),
            idle: IdlePolicy::new(shared.idle_mode(), now_ns),
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
            resumed: Vec::new(),
            keys: Vec::new(),
            hot: None,
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
        // Unbounded by design: ends when the server asks the worker to drain and it has.
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
            // Work that was found just now made its own time stamp; here time must pass by itself.
            self.now_ns = clock::now_ns();
            if self.driver.turn() {
                continue;
            }
            self.idle.set_mode(self.shared.idle_mode());
            if self.idle.should_sleep(self.now_ns) {
                self.park();
            } else {
                self.watch_hot_rings();
            }
        }
    }

    /// Sleeps until something happens or the next sweep is due.
    fn park(&mut self) {
        if !self.cool_rings() {
            return;
        }
        self.inbox.doorbell().fall_asleep();
        self.driver.arm_doorbell();
        // The second look: what was published before the doorbell said SLEEPING is seen here.
        if self.inbox.is_empty()
            && !self.drain_asked_anew()
            && self.idle.mode() == self.shared.idle_mode()
            && !self.rings.have_rung()
            && self.shared.room.someone_can_go() != Some(self.index)
        {
            let limit = self
                .needs_sweeps()
                .then(|| Duration::from_nanos(self.next_sweep_ns.saturating_sub(self.now_ns)));
            let keep = self.holds_memory.then_some(KEEP);
            let limits = limit.into_iter().chain(keep).chain([HEARING]);
            let by_timer = self.driver.wait(limits.min());
            if by_timer {
                // Where the control segment's memory was lost or came back, the wait is on the old.
                self.driver.disarm_doorbell();
            }
            // Who rang right after the timer has ended the wait is not late, and comes at once.
            park_counts::slept(|| {
                by_timer && self.rings.have_rung() && self.driver.wait(Some(Duration::from_secs(1)))
            });
        }
        self.inbox.doorbell().wake_up();
        // Where a worker is not pinned, it may have been woken elsewhere.
        self.rings.tell_cpu();
        let slept_ns = clock::now_ns().saturating_sub(self.now_ns);
        self.now_ns += slept_ns;
        if self.holds_memory && u128::from(slept_ns) >= KEEP.as_nanos() {
            self.holds_memory = false;
            self.release_memory();
        }
    }

    fn drain_asked_anew(&self) -> bool {
        self.drain_deadline_ns.is_none() && self.inbox.drain_asked()
    }

    /// Whether time alone can make something happen.
    fn needs_sweeps(&self) -> bool {
        self.timed || self.accept_later || self.drain_deadline_ns.is_some()
    }
}
