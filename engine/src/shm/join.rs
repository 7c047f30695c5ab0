//! The client's side of attaching to a server over shared memory, and its end of a connection.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::consumer::NOBODY;
use super::control::{Control, READY_BITS, ShmError, WORKERS_MAX};
use super::ends::Ends;
use super::layout::{
    self, AT_CAPACITY, AT_CLIENT_BYTES_MAX, AT_CLIENT_HOLDS, AT_DELIVERED, AT_LIFE, AT_READY_BIT,
    AT_SERVER_BYTES_MAX, AT_VERSION, AT_WORKER,
};
use super::slots::{SLOTS, Slot, Stage, State, UNSEEN};
use crate::sys::process::PidFd;
use crate::sys::segment::{self, Segment};
use crate::sys::{affinity, futex, record_lock};

/// How often it is checked whether the server lives, while its answer is waited for.
const ANSWER_WAIT: Duration = Duration::from_millis(50);
/// How long a client waits for a free slot if it can stay on TCP instead.
const SLOT_WAIT: Duration = Duration::from_millis(75);

/// The client's end of a connection.
#[derive(Debug)]
pub(crate) struct ClientEnd {
    pub(crate) ends: Ends,
    control: Arc<Control>,
    server: PidFd,
    worker: usize,
    ready_bit: usize,
    /// The longest payload that the server accepts.
    pub(crate) server_bytes_max: u32,
    /// For tests that cut it short.
    #[cfg(test)]
    pub(crate) file: std::fs::File,
}

impl ClientEnd {
    /// Whether this thread keeps the server's worker from running, because both are on the same CPU.
    pub(crate) fn is_in_the_way(&self) -> bool {
        let worker = self.control.worker_cpu(self.worker);
        worker.is_some() && worker == affinity::current_cpu()
    }

    /// Wakes the server's worker if it wants to be woken: its ring is cold, or it waits for room.
    #[inline]
    pub(crate) fn wake_server(&self) {
        if self.ends.peer_needs_waking() {
            self.control.ring(self.worker, self.ready_bit);
        }
    }

    /// Wakes the server's worker in any case.
    #[cfg(test)]
    pub(super) fn wake_server_anyway(&self) {
        self.control.ring(self.worker, self.ready_bit);
    }

    /// Whether the server's worker has this connection.
    fn is_delivered(&self) -> bool {
        let delivered = self.ends.segment.word32(AT_DELIVERED);
        // Acquire: pairs with the release in `AttachServer::deliver`.
        delivered.load(Ordering::Acquire) != 0
    }

    /// What another thread needs to sleep until there is something in this connection.
    pub(crate) fn sleeper(&self) -> io::Result<Sleeper> {
        Ok(Sleeper {
            segment: self.ends.segment.clone(),
            word_at: self.ends.rx.waiting_word_at(),
            closed_at: self.ends.peer_closed_at(),
            control: self.control.clone(),
            server: PidFd::open(self.control.server_pid())?,
        })
    }

    /// Whether the server has gone, orderly or not, or the memory that is shared with it is lost.
    pub(crate) fn server_has_gone(&self) -> bool {
        self.ends.peer_closed()
            || has_left(&self.server, &self.control)
            || self.ends.segment.poisoned()
            || self.control.segment.poisoned()
    }
}

/// Whether the server's process has ended, or has executed another program.
fn has_left(server: &PidFd, control: &Control) -> bool {
    server.has_ended() || !control.server_holds()
}

/// The word on which a client sleeps, for another thread that sleeps in its place.
#[derive(Debug)]
pub(crate) struct Sleeper {
    segment: Arc<Segment>,
    word_at: usize,
    /// Where the server says that it has gone.
    closed_at: usize,
    control: Arc<Control>,
    server: PidFd,
}

impl Sleeper {
    /// Not 0 while the client waits; the server stores 0 and wakes.
    fn word(&self) -> &AtomicU32 {
        self.segment.word32(self.word_at)
    }

    /// Sleeps until the word says that there is something, or the server has gone; then the ring says so too. False
    /// if neither is so yet.
    pub(crate) fn sleep(&self, limit: Duration) -> bool {
        // Acquire (both): pairs with the release in `Ends::wake_peer`, so that what the server wrote before is seen.
        let waiting = self.word().load(Ordering::Acquire);
        if waiting == NOBODY {
            return true;
        }
        if futex::wait(self.word(), waiting, Some(limit)) == futex::Waited::TimedOut {
            let gone = has_left(&self.server, &self.control) || self.segment.poisoned();
            if gone {
                // In the server's place. Release: as in `Ends::close`.
                self.segment
                    .word32(self.closed_at)
                    .store(1, Ordering::Release);
            }
            return gone;
        }
        self.word().load(Ordering::Acquire) == NOBODY
    }

    /// Lets all who sleep look again.
    pub(crate) fn wake(&self) {
        futex::wake(self.word(), 2);
    }
}

impl Drop for ClientEnd {
    fn drop(&mut self) {
        self.ends.close();
        self.control.ring(self.worker, self.ready_bit);
    }
}

/// A slot that this client has claimed. It is freed when dropped, unless the server has freed it.
struct Claim<'a> {
    control: &'a Control,
    slot: Slot<'a>,
    /// The slot's state, as this client or the server has last set it.
    state: State,
}

impl Claim<'_> {
    /// Moves to the next stage and calls the server. False if the slot is not this client's any more.
    fn step(&mut self, stage: Stage) -> bool {
        let Some(state) = self.slot.step(self.state, stage) else {
            return false;
        };
        self.state = state;
        self.control.call_server();
        true
    }

    /// Waits until the server has changed the slot's state; returns the new stage. `None` if `is_done`, or if the slot
    /// is not this client's any more. A refusal is an error.
    fn answer(
        &mut self,
        server: &PidFd,
        deadline: Instant,
        is_done: impl Fn() -> bool,
    ) -> Result<Option<Stage>, ShmError> {
        let mut has_waited = false;
        // Ends with an answer, the server's end, or the deadline.
        loop {
            let state = self.slot.state();
            if is_done() || !state.is_same_turn(self.state) {
                return Ok(None);
            }
            if state != self.state {
                self.state = state;
                return match state.stage() {
                    Some(Stage::Refused) if self.slot.code() == UNSEEN => Err(ShmError::Unseen),
                    Some(Stage::Refused) => Err(ShmError::Refused(self.slot.code())),
                    stage => Ok(stage),
                };
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || server.has_ended() {
                return Err(ShmError::TimedOut);
            }
            if has_waited {
                self.control.check_offered()?;
            }
            self.slot.wait(state, left.min(ANSWER_WAIT));
            has_waited = true;
        }
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        if self.slot.step(self.state, Stage::Free).is_some() {
            self.control.call_server();
        }
    }
}

/// Attaches to the server whose control segment has this name. `client_bytes_max` is the longest payload that the
/// client accepts; 0 says nothing about that. With a `host_id`, which came over TCP, the segment must be the one that
/// the server means; and since the client can stay on TCP, it does not wait long for a slot.
pub(crate) fn join(
    name: &str,
    host_id: Option<&[u8]>,
    client_bytes_max: u32,
    limit: Duration,
) -> Result<ClientEnd, ShmError> {
    join_opened(
        Arc::new(Control::open(name)?),
        host_id,
        client_bytes_max,
        limit,
    )
}

/// As [`join()`], with an open control segment.
pub(super) fn join_opened(
    control: Arc<Control>,
    host_id: Option<&[u8]>,
    client_bytes_max: u32,
    limit: Duration,
) -> Result<ClientEnd, ShmError> {
    let begin = Instant::now();
    let deadline = begin + limit;
    let name = control.name.as_str();
    let slot_deadline = match host_id {
        Some(id) if id != control.host_id() => {
            return Err(unusable(name, "it belongs to another server"));
        }
        Some(_) => deadline.min(begin + SLOT_WAIT),
        None => deadline,
    };
    // Each pass claims a free slot; another follows only if somebody else has freed that slot meanwhile.
    loop {
        let claim = claim(&control, slot_deadline)?;
        if let Some(end) = attach(name, &control, claim, client_bytes_max, deadline)? {
            return Ok(end);
        }
        control.check_offered()?;
        if Instant::now() >= slot_deadline {
            return Err(ShmError::TimedOut);
        }
    }
}

fn unusable(name: &str, reason: impl std::fmt::Display) -> ShmError {
    ShmError::Unusable {
        path: segment::path(name),
        reason: reason.to_string(),
    }
}

/// Attaches through a claimed slot. `None` if the slot was lost: another process has changed it, or the server has freed
/// it because this took too long.
fn attach(
    name: &str,
    control: &Arc<Control>,
    mut claim: Claim<'_>,
    client_bytes_max: u32,
    deadline: Instant,
) -> Result<Option<ClientEnd>, ShmError> {
    let server = PidFd::open(control.server_pid())
        .map_err(|error| unusable(name, format!("its server cannot be watched: {error}")))?;
    let is_ready = claim.step(Stage::Requested)
        && claim.answer(&server, deadline, || false)? == Some(Stage::Ready);
    if !is_ready {
        return Ok(None);
    }
    let connection = claim
        .slot
        .name()
        .ok_or_else(|| unusable(name, "a slot without a name"))?;
    let no_connection = |error: io::Error| {
        let path = segment::path(&connection);
        unusable(name, format!("{path}: {error}"))
    };
    let (segment, file) = Segment::open(&connection).map_err(no_connection)?;
    // Acquire: pairs with the release in `AttachServer::make_segment`.
    if segment.bytes() != layout::SEGMENT_BYTES
        || segment.word64(layout::AT_MAGIC).load(Ordering::Acquire) != layout::MAGIC
        || segment.word32(AT_VERSION).load(Ordering::Relaxed) != layout::VERSION
        || segment.word32(AT_CAPACITY).load(Ordering::Relaxed) as usize != layout::CAPACITY
    {
        return Err(unusable(name, "a connection of another layout"));
    }
    let worker = segment.word32(AT_WORKER).load(Ordering::Relaxed) as usize;
    let ready_bit = segment.word32(AT_READY_BIT).load(Ordering::Relaxed) as usize;
    if worker >= WORKERS_MAX || ready_bit >= READY_BITS {
        return Err(unusable(name, "a connection to no worker"));
    }
    // By this lock the server finds out which process to watch. It must be held until the server has looked.
    record_lock::hold(&file).map_err(no_connection)?;
    let server_bytes_max = segment.word32(AT_SERVER_BYTES_MAX).load(Ordering::Relaxed);
    let holds = control.hold(segment.word64(AT_LIFE).load(Ordering::Relaxed));
    // Relaxed (both): the step to MAPPED is a release.
    segment
        .word32(AT_CLIENT_BYTES_MAX)
        .store(client_bytes_max, Ordering::Relaxed);
    segment
        .word32(AT_CLIENT_HOLDS)
        .store(u32::from(holds), Ordering::Relaxed);
    if !claim.step(Stage::Mapped) {
        return Ok(None);
    }
    let end = ClientEnd {
        ends: Ends::new(Arc::new(segment), &layout::TO_SERVER, &layout::TO_CLIENT),
        control: control.clone(),
        server,
        worker,
        ready_bit,
        server_bytes_max,
        #[cfg(test)]
        file: file.try_clone().expect("a descriptor more"),
    };
    // If the server does not deliver the connection in time, `end` is dropped, which says that we have gone.
    claim.answer(&end.server, deadline, || end.is_delivered())?;
    Ok(end.is_delivered().then_some(end))
}

/// Claims a free slot, waiting for one until the deadline.
fn claim(control: &Control, deadline: Instant) -> Result<Claim<'_>, ShmError> {
    // Others free theirs within moments; the server frees those that are left lying.
    loop {
        for index in 0..SLOTS {
            let slot = control.slot(index);
            let state = slot.state();
            if state.stage() == Some(Stage::Free)
                && let Some(state) = slot.step(state, Stage::Claimed)
            {
                return Ok(Claim {
                    control,
                    slot,
                    state,
                });
            }
        }
        control.check_offered()?;
        if Instant::now() >= deadline {
            return Err(ShmError::TimedOut);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
