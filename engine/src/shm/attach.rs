//! The server's side of attaching: a thread of its own that makes the segments of new connections, so that no
//! worker has to.
//!
//! One client goes through the stages of its slot ([`Stage`]): it claims the slot and requests a connection; this
//! thread makes a segment and says READY; the client maps the segment, locks its file, and says MAPPED; this thread
//! finds out by that lock which process it is, watches it, removes the segment's name and delivers the connection to
//! a worker.

use std::fs::File;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crossbeam::queue::ArrayQueue;

use super::control::{Control, READY_BITS, random};
use super::ends::Ends;
use super::layout::{
    self, AT_CAPACITY, AT_CLIENT_BYTES_MAX, AT_CLIENT_HOLDS, AT_DELIVERED, AT_LIFE, AT_READY_BIT,
    AT_SERVER_BYTES_MAX, AT_SERVER_PID, AT_VERSION, AT_WORKER,
};
use super::leftovers::connection_name;
use super::slots::{SLOTS, Slot, Stage, State, UNSEEN};
use crate::sys::process::PidFd;
use crate::sys::segment::{self, Segment};
use crate::sys::{futex, is_shortage, record_lock};
use crate::wire::ErrorCode;

/// A slot that stays in a stage for this long is freed.
const SLOT_LIFE: Duration = Duration::from_secs(2);
/// How often the thread looks at everything if no client calls it.
const LOOK: Duration = Duration::from_millis(200);
/// How often it is checked whether clients still hold the locks of their connections. For 1,000 clients that takes
/// 2 ms.
const LIVES_LOOK: Duration = Duration::from_secs(5);
/// The same when there is no place for one more connection.
const SHORTAGE_LOOK: Duration = Duration::from_millis(50);
/// The protocol's code for one connection too many.
const OVERLOADED: u32 = ErrorCode::Overloaded as u32;

/// The ready bits of one worker that no connection uses.
#[derive(Debug)]
pub(crate) struct ReadyBits(ArrayQueue<u16>);

impl ReadyBits {
    pub(crate) fn new() -> ReadyBits {
        let queue = ArrayQueue::new(READY_BITS);
        for bit in 0..READY_BITS {
            queue.push(bit as u16).expect("there is room for all");
        }
        ReadyBits(queue)
    }

    pub(crate) fn take(&self) -> Option<usize> {
        self.0.pop().map(usize::from)
    }

    /// Whether all are in use.
    pub(crate) fn are_taken(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn give(&self, bit: usize) {
        self.0
            .push(bit as u16)
            .expect("each bit is given back once");
    }
}

/// The server's end of a new connection.
#[derive(Debug)]
pub(crate) struct ServerEnd {
    pub(crate) ends: Ends,
    pub(crate) pidfd: PidFd,
    pub(crate) ready_bit: usize,
    /// The longest payload that the client accepts, as far as it has said.
    pub(crate) client_bytes_max: Option<u32>,
}

/// Where new connections go.
pub(crate) trait Placement: Send {
    /// Chooses a worker for one more connection, if there may be one.
    fn place(&self) -> Option<usize>;
    /// The worker's free ready bits.
    fn ready_bits(&self, worker: usize) -> &ReadyBits;
    /// A connection was refused with OVERLOADED.
    fn refused(&self);
    /// A connection that was placed did not come about.
    fn unplace(&self, worker: usize);
    /// Hands the connection over.
    fn deliver(&self, worker: usize, end: Box<ServerEnd>);
}

/// A connection that was made and that its client has not mapped yet.
struct Pending {
    ends: Ends,
    ready_bit: usize,
    worker: usize,
    name: String,
    /// The slot's state when it was made.
    state: State,
    /// The segment's file. By a record lock on it the client shows which process it is.
    file: File,
    /// See [`Life`].
    life: u64,
}

/// What the thread remembers of a slot.
#[derive(Default)]
struct Watch {
    /// The slot's state, and since when it has that.
    since: Option<(State, Instant)>,
    pending: Option<Pending>,
}

/// A connection whose client holds a lock to show that it keeps it. When a client executes another program, its
/// process, which is watched, lives on; only the lock is released.
#[derive(Debug)]
struct Life {
    segment: Weak<Segment>,
    number: u64,
    worker: usize,
    ready_bit: usize,
}

/// All such connections, and when they were last checked.
#[derive(Debug, Default)]
struct Lives {
    all: Vec<Life>,
    looked: Option<Instant>,
}

impl Lives {
    fn add(&mut self, life: Life) {
        if self.all.len() == self.all.capacity() {
            self.all.retain(|life| life.segment.strong_count() > 0);
        }
        self.all.push(life);
    }

    /// Ends the connections whose clients have left them, unless that was checked within `at_most_every`. Returns
    /// whether there were any.
    fn look_after(&mut self, control: &Control, at_most_every: Duration) -> bool {
        let recent = |looked: Instant| looked.elapsed() < at_most_every;
        if self.looked.is_some_and(recent) {
            return false;
        }
        let mut any = false;
        self.looked = Some(Instant::now());
        self.all.retain(|life| {
            let Some(segment) = life.segment.upgrade() else {
                return false;
            };
            let is_held = control.is_held(life.number);
            if !is_held {
                any = true;
                let closed = layout::TO_SERVER.producer_flags + layout::FLAG_CLOSED;
                // In the client's place. Release: as in `Ends::close`.
                segment.word32(closed).store(1, Ordering::Release);
                control.ring(life.worker, life.ready_bit);
            }
            is_held
        });
        any
    }
}

/// Makes connections until the control segment is withdrawn.
pub(crate) struct AttachServer<P> {
    control: Arc<Control>,
    placement: P,
    workers: usize,
    max_message_bytes: u32,
    /// The last client was refused because there is no place, and the log has said so.
    is_full: bool,
    lives: Lives,
}

impl<P: Placement> AttachServer<P> {
    /// Of a server with so many workers, which accepts payloads of up to `max_message_bytes`.
    pub(crate) fn new(
        control: Arc<Control>,
        placement: P,
        workers: usize,
        max_message_bytes: u32,
    ) -> AttachServer<P> {
        AttachServer {
            control,
            placement,
            workers,
            max_message_bytes,
            is_full: false,
            lives: Lives::default(),
        }
    }

    /// Runs on a thread of its own. Ends at once when the segment is withdrawn, or at the latest after [`LOOK`].
    pub(crate) fn run(mut self) {
        let control = self.control.clone();
        let mut watches: Vec<Watch> = (0..SLOTS).map(|_| Watch::default()).collect();
        let mut told = None;
        // Unbounded by design: ends when the server stops. It never sleeps for long, since any client may overwrite
        // the word that it sleeps on.
        loop {
            // Acquire: pairs with the release in `Control::call_server`.
            let calls = control.attach_word().load(Ordering::Acquire);
            if control.is_withdrawn() {
                break;
            }
            let wrong = control.look_after(self.workers);
            // A server that stops removes the name itself, which is nothing to complain of.
            if wrong != told
                && let Some(wrong) = wrong
                && !control.is_withdrawn()
            {
                log::error!("{}: {wrong}", control.path);
            }
            told = wrong;
            self.lives.look_after(&control, LIVES_LOOK);
            for (index, watch) in watches.iter_mut().enumerate() {
                self.serve_slot(control.slot(index), watch);
            }
            futex::wait(control.attach_word(), calls, Some(LOOK));
        }
        for (index, watch) in watches.iter_mut().enumerate() {
            let slot = control.slot(index);
            self.abandon(slot, slot.state(), watch);
        }
    }

    /// Does what a slot needs: makes a connection, delivers one, or frees a slot whose client has stopped.
    fn serve_slot(&mut self, slot: Slot<'_>, watch: &mut Watch) {
        let state = slot.state();
        let stage = state.stage();
        let is_over = |pending: &mut Pending| {
            stage == Some(Stage::Free) || !pending.state.is_same_turn(state)
        };
        if let Some(pending) = watch.pending.take_if(is_over) {
            self.drop_pending(pending);
        }
        if stage == Some(Stage::Free) {
            watch.since = None;
            return;
        }
        match watch.since {
            Some((then, _)) if then == state => {}
            _ => watch.since = Some((state, Instant::now())),
        }
        match (stage, watch.pending.take()) {
            (Some(Stage::Requested), None) => self.make(slot, state, watch),
            (Some(Stage::Mapped), Some(pending)) => self.deliver(slot, state, pending),
            (_, pending) => {
                watch.pending = pending;
                let is_stuck = |(_, since): (State, Instant)| since.elapsed() >= SLOT_LIFE;
                if watch.since.is_some_and(is_stuck) {
                    self.abandon(slot, state, watch);
                }
            }
        }
    }

    fn abandon(&self, slot: Slot<'_>, state: State, watch: &mut Watch) {
        if let Some(pending) = watch.pending.take() {
            self.drop_pending(pending);
        }
        watch.since = None;
        // It fails if somebody has changed the state meanwhile; then the slot is looked at next time.
        let _ = slot.step(state, Stage::Free);
    }

    fn drop_pending(&self, pending: Pending) {
        let _ = segment::unlink(&pending.name);
        pending.ends.close();
        self.placement
            .ready_bits(pending.worker)
            .give(pending.ready_bit);
        self.placement.unplace(pending.worker);
    }

    /// Refuses a connection because there is no place or memory for it. The log says why, once until a connection is
    /// made again.
    fn refuse_for_want(&mut self, slot: Slot<'_>, state: State, why: &str) {
        if !std::mem::replace(&mut self.is_full, true) {
            log::warn!("shared-memory connections are refused: {why}");
        }
        let any_left = self.lives.look_after(&self.control, SHORTAGE_LOOK);
        if any_left && state.stage() == Some(Stage::Requested) {
            // Some clients had left without a word. Their places are free in a moment, and this slot is looked at again.
            return;
        }
        self.placement.refused();
        self.refuse(slot, state, OVERLOADED);
    }

    fn refuse(&self, slot: Slot<'_>, state: State, code: u32) {
        slot.set_code(code);
        let _ = slot.step(state, Stage::Refused);
    }

    /// Makes a connection for a client that requests one.
    fn make(&mut self, slot: Slot<'_>, state: State, watch: &mut Watch) {
        let Some(worker) = self.placement.place() else {
            return self.refuse_for_want(slot, state, "limits.max_connections is reached");
        };
        let Some(ready_bit) = self.placement.ready_bits(worker).take() else {
            self.placement.unplace(worker);
            let why = format!("each worker has {READY_BITS}, which is the most");
            return self.refuse_for_want(slot, state, &why);
        };
        match self.make_segment(state, worker, ready_bit) {
            Ok(pending) => {
                slot.set_name(&pending.name);
                match slot.step(state, Stage::Ready) {
                    Some(_) => watch.pending = Some(pending),
                    None => self.drop_pending(pending),
                }
            }
            Err(error) => {
                self.placement.ready_bits(worker).give(ready_bit);
                self.placement.unplace(worker);
                self.refuse_for_want(slot, state, &error.to_string());
            }
        }
    }

    /// Delivers a connection to its worker, if the client's process can be watched. Otherwise its end would not be
    /// noticed, and its place would be lost.
    fn deliver(&mut self, slot: Slot<'_>, state: State, pending: Pending) {
        // The holder is asked for again after the pidfd is open: if the process still holds the lock, its pid has not
        // become another's in between.
        let client = record_lock::holder(&pending.file).and_then(|pid| {
            let pidfd = PidFd::open(pid)?;
            match record_lock::holder(&pending.file)? == pid {
                true => Ok(pidfd),
                false => Err(std::io::ErrorKind::NotFound.into()),
            }
        });
        match client {
            Ok(pidfd) => {
                self.is_full = false;
                // Both sides have it mapped, so it needs no name. From here on a crash leaves no file behind.
                let _ = segment::unlink(&pending.name);
                // The slot alone proves nothing to the client, since any process of the user may write there.
                let delivered = pending.ends.segment.word32(AT_DELIVERED);
                // Release: pairs with the acquire in `ClientEnd::is_delivered`.
                delivered.store(1, Ordering::Release);
                let _ = slot.step(state, Stage::Free);
                let client_bytes_max = pending.ends.segment.word32(AT_CLIENT_BYTES_MAX);
                // Relaxed: the client wrote it before the slot's state, which was read by an acquire.
                let client_bytes_max = client_bytes_max.load(Ordering::Relaxed);
                let segment = &pending.ends.segment;
                // Relaxed: as above.
                if segment.word32(AT_CLIENT_HOLDS).load(Ordering::Relaxed) != 0 {
                    self.lives.add(Life {
                        segment: Arc::downgrade(segment),
                        number: pending.life,
                        worker: pending.worker,
                        ready_bit: pending.ready_bit,
                    });
                }
                let end = Box::new(ServerEnd {
                    client_bytes_max: Some(client_bytes_max).filter(|&max| max > 0),
                    ends: pending.ends,
                    pidfd,
                    ready_bit: pending.ready_bit,
                });
                self.placement.deliver(pending.worker, end);
            }
            Err(error) if is_shortage(&error) => {
                self.drop_pending(pending);
                self.refuse_for_want(slot, state, &error.to_string());
            }
            Err(error) => {
                log::warn!("a shared-memory connection was given up: {error}");
                self.drop_pending(pending);
                self.refuse(slot, state, UNSEEN);
            }
        }
    }

    fn make_segment(
        &self,
        state: State,
        worker: usize,
        ready_bit: usize,
    ) -> std::io::Result<Pending> {
        let life = random();
        let name = connection_name(&self.control.name, life);
        let (segment, file) = Segment::create(&name, layout::SEGMENT_BYTES, layout::PAGE)?;
        for (at, value) in [
            (AT_VERSION, layout::VERSION),
            (AT_CAPACITY, layout::CAPACITY as u32),
            (AT_SERVER_PID, std::process::id()),
            (AT_WORKER, worker as u32),
            (AT_READY_BIT, ready_bit as u32),
            (AT_SERVER_BYTES_MAX, self.max_message_bytes),
        ] {
            segment.word32(at).store(value, Ordering::Relaxed);
        }
        segment.word64(AT_LIFE).store(life, Ordering::Relaxed);
        // Release: pairs with the acquire in `join::attach`.
        segment
            .word64(layout::AT_MAGIC)
            .store(layout::MAGIC, Ordering::Release);
        let ends = Ends::new(Arc::new(segment), &layout::TO_CLIENT, &layout::TO_SERVER);
        // A client that writes before the worker has the connection rings; the worker looks when it gets it.
        ends.rx.wait_on(None);
        Ok(Pending {
            ends,
            ready_bit,
            worker,
            name,
            state,
            file,
            life,
        })
    }
}
