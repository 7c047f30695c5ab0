//! The server's side of attaching: an ordinary thread that makes connections' segments, so that no
//! worker has to.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam::queue::ArrayQueue;

use super::control::{Control, READY_BITS, SLOTS, random, slot};
use super::ends::Ends;
use super::layout::{self, AT_CAPACITY, AT_READY_BIT, AT_SERVER_PID, AT_VERSION, AT_WORKER};
use crate::sys::futex;
use crate::sys::process::PidFd;
use crate::sys::segment::{self, Segment};

/// A slot that does not move on for this long is freed.
const SLOT_LIFE: Duration = Duration::from_secs(2);
/// How often slots are looked at while one is in use.
const SWEEP: Duration = Duration::from_millis(100);

/// The free ready bits of one worker.
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

    fn take(&self) -> Option<usize> {
        self.0.pop().map(usize::from)
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
}

/// Where new connections go.
pub(crate) trait Placement: Send {
    /// Chooses a worker for one more connection, or refuses with the protocol's code.
    fn place(&self) -> Result<usize, u32>;
    /// The worker's free ready bits.
    fn ready_bits(&self, worker: usize) -> &ReadyBits;
    /// A connection that was placed did not come about.
    fn unplace(&self, worker: usize);
    /// Hands the connection over.
    fn deliver(&self, worker: usize, end: Box<ServerEnd>);
}

/// A slot's connection between being made and being mapped by its client.
struct Pending {
    end: Box<ServerEnd>,
    worker: usize,
    name: String,
}

#[derive(Default)]
struct Watch {
    /// Since when the slot is in its state, and which.
    since: Option<(u32, Instant)>,
    pending: Option<Pending>,
}

/// Makes connections until told to stop.
pub(crate) struct AttachServer<P> {
    pub(crate) control: Arc<Control>,
    pub(crate) placement: P,
    pub(crate) stop: Arc<AtomicBool>,
}

/// Ends the thread of an [`AttachServer`].
pub(crate) fn stop(control: &Control, stop: &AtomicBool) {
    stop.store(true, Ordering::Release);
    control.call_server();
}

impl<P: Placement> AttachServer<P> {
    /// Runs on a thread of its own.
    pub(crate) fn run(self) {
        let mut watches: Vec<Watch> = (0..SLOTS).map(|_| Watch::default()).collect();
        // Unbounded by design: ends when the server stops.
        loop {
            // Acquire: pairs with the release in `Control::call_server`.
            let calls = self.control.attach_word().load(Ordering::Acquire);
            if self.stop.load(Ordering::Acquire) {
                break;
            }
            let mut busy = false;
            for (slot, watch) in watches.iter_mut().enumerate() {
                self.serve_slot(slot, watch);
                busy |= self.control.slot_state(slot).load(Ordering::Relaxed) != slot::FREE;
            }
            futex::wait(self.control.attach_word(), calls, busy.then_some(SWEEP));
        }
        for (slot, watch) in watches.iter_mut().enumerate() {
            self.abandon(slot, watch);
        }
    }

    fn serve_slot(&self, slot: usize, watch: &mut Watch) {
        // Acquire: pairs with the client's release of the state.
        let state = self.control.slot_state(slot).load(Ordering::Acquire);
        if state == slot::FREE && watch.pending.is_none() {
            watch.since = None;
            return;
        }
        match watch.since {
            Some((then, _)) if then == state => {}
            _ => watch.since = Some((state, Instant::now())),
        }
        match state {
            slot::REQUESTED if watch.pending.is_none() => self.make(slot, watch),
            slot::MAPPED if watch.pending.is_some() => {
                let Pending { end, worker, name } = watch.pending.take().expect("just seen");
                // Both sides have it mapped: from here on a crash leaves nothing behind.
                let _ = segment::unlink(&name);
                self.set_state(slot, slot::FREE);
                self.placement.deliver(worker, end);
            }
            _ => {
                let stuck = watch
                    .since
                    .is_some_and(|(_, since)| since.elapsed() >= SLOT_LIFE);
                let vanished = watch.pending.is_some() && state == slot::FREE;
                if stuck || vanished {
                    self.abandon(slot, watch);
                }
            }
        }
    }

    fn abandon(&self, slot: usize, watch: &mut Watch) {
        if let Some(Pending { end, worker, name }) = watch.pending.take() {
            let _ = segment::unlink(&name);
            end.ends.close();
            self.placement.ready_bits(worker).give(end.ready_bit);
            self.placement.unplace(worker);
        }
        watch.since = None;
        self.set_state(slot, slot::FREE);
    }

    fn set_state(&self, slot: usize, state: u32) {
        let word = self.control.slot_state(slot);
        // Release: pairs with the client's acquire: what the slot says is written.
        word.store(state, Ordering::Release);
        futex::wake(word, u32::MAX >> 1);
    }

    fn refuse(&self, slot: usize, code: u32) {
        self.control.slot_code(slot).store(code, Ordering::Relaxed);
        self.set_state(slot, slot::REFUSED);
    }

    fn make(&self, slot: usize, watch: &mut Watch) {
        const OVERLOADED: u32 = crate::wire::ErrorCode::Overloaded as u32;
        let pid = self.control.slot_pid(slot).load(Ordering::Relaxed);
        let worker = match self.placement.place() {
            Ok(worker) => worker,
            Err(code) => return self.refuse(slot, code),
        };
        let Some(ready_bit) = self.placement.ready_bits(worker).take() else {
            self.placement.unplace(worker);
            return self.refuse(slot, OVERLOADED);
        };
        match self.make_segment(pid, worker, ready_bit) {
            Ok((end, name)) => {
                self.control.write_slot_name(slot, &name);
                watch.pending = Some(Pending {
                    end: Box::new(end),
                    worker,
                    name,
                });
                self.set_state(slot, slot::READY);
            }
            Err(error) => {
                log::warn!("a shared-memory connection could not be made: {error}");
                self.placement.ready_bits(worker).give(ready_bit);
                self.placement.unplace(worker);
                self.refuse(slot, OVERLOADED);
            }
        }
    }

    fn make_segment(
        &self,
        pid: u32,
        worker: usize,
        ready_bit: usize,
    ) -> std::io::Result<(ServerEnd, String)> {
        let pidfd = PidFd::open(pid)?;
        let instance = self.control.name.trim_end_matches("control");
        let name = format!("{instance}conn_{:016x}", random());
        let (segment, _) = Segment::create(&name, layout::SEGMENT_BYTES)?;
        segment
            .word32(AT_VERSION)
            .store(layout::VERSION, Ordering::Relaxed);
        segment
            .word32(AT_CAPACITY)
            .store(layout::CAPACITY as u32, Ordering::Relaxed);
        segment
            .word32(AT_SERVER_PID)
            .store(std::process::id(), Ordering::Relaxed);
        segment
            .word32(AT_WORKER)
            .store(worker as u32, Ordering::Relaxed);
        segment
            .word32(AT_READY_BIT)
            .store(ready_bit as u32, Ordering::Relaxed);
        // Release: pairs with the acquire in `join`.
        segment
            .word64(layout::AT_MAGIC)
            .store(layout::MAGIC, Ordering::Release);
        let ends = Ends::new(Arc::new(segment), &layout::TO_CLIENT, &layout::TO_SERVER);
        // Until the worker has it, a client that writes rings; the worker looks when it gets it.
        ends.rx.set_waiting(true);
        Ok((
            ServerEnd {
                ends,
                pidfd,
                ready_bit,
            },
            name,
        ))
    }
}
