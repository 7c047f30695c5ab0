//! The client's side of attaching.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::control::{Control, READY_BITS, SLOTS, ShmError, WORKERS_MAX, slot};
use super::ends::Ends;
use super::layout::{self, AT_CAPACITY, AT_READY_BIT, AT_VERSION, AT_WORKER};
use crate::sys::affinity;
use crate::sys::futex;
use crate::sys::process::PidFd;
use crate::sys::segment::{self, Segment};

/// The client's end of a connection.
#[derive(Debug)]
pub(crate) struct ClientEnd {
    pub(crate) ends: Ends,
    control: Arc<Control>,
    server: PidFd,
    worker: usize,
    ready_bit: usize,
    /// For tests that cut it short.
    #[cfg(test)]
    pub(super) file: std::fs::File,
}

impl ClientEnd {
    /// Whether this thread keeps the server's worker from running: both are on one CPU at the moment.
    pub(crate) fn is_in_the_way(&self) -> bool {
        let worker = self.control.worker_cpu(self.worker);
        worker.is_some() && worker == affinity::current_cpu()
    }

    /// Tells the server's worker that there is something, if it does not look by itself.
    #[inline]
    pub(crate) fn wake_server(&self) {
        if self.ends.peer_needs_waking() {
            self.control.ring(self.worker, self.ready_bit);
        }
    }

    /// Rings whether or not the server looks by itself.
    #[cfg(test)]
    pub(super) fn wake_server_anyway(&self) {
        self.control.ring(self.worker, self.ready_bit);
    }

    /// What another thread needs to sleep until there is something in this connection.
    pub(crate) fn sleeper(&self) -> io::Result<Sleeper> {
        Ok(Sleeper {
            segment: self.ends.segment.clone(),
            word_at: self.ends.rx.waiting_word_at(),
            closed_at: self.ends.peer_closed_at(),
            server: PidFd::open(self.control.server_pid())?,
        })
    }

    /// Whether the server has gone, in an orderly way or not.
    pub(crate) fn server_has_gone(&self) -> bool {
        self.ends.peer_closed() || self.server.has_ended() || self.ends.segment.poisoned()
    }
}

/// The word on which a client sleeps, for another thread.
#[derive(Debug)]
pub(crate) struct Sleeper {
    segment: Arc<Segment>,
    word_at: usize,
    /// The server's word that it has gone.
    closed_at: usize,
    server: PidFd,
}

impl Sleeper {
    /// 1 while the client waits; the server stores 0 and wakes.
    fn word(&self) -> &AtomicU32 {
        self.segment.word32(self.word_at)
    }

    /// Sleeps until the word says that there is something, or the server has gone, which the ring
    /// then says too. False: neither, so far.
    pub(crate) fn sleep(&self, limit: Duration) -> bool {
        if futex::wait(self.word(), 1, Some(limit)) == futex::Waited::TimedOut {
            let gone = self.server.has_ended() || self.segment.poisoned();
            if gone {
                // Release: as the server's own word in `Ends::close`.
                self.segment
                    .word32(self.closed_at)
                    .store(1, Ordering::Release);
            }
            return gone;
        }
        // Acquire: pairs with the server's swap: what it wrote before is seen.
        self.word().load(Ordering::Acquire) == 0
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

/// Gives a claimed slot back unless the connection came about.
struct Claim<'a> {
    control: &'a Control,
    slot: usize,
    done: bool,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.control
                .slot_state(self.slot)
                .store(slot::FREE, Ordering::Release);
            self.control.call_server();
        }
    }
}

/// Attaches to the server whose control segment has this name. With a `host_id`, only if the
/// segment is the one that the server means.
pub(crate) fn join(
    name: &str,
    host_id: Option<&[u8]>,
    limit: Duration,
) -> Result<ClientEnd, ShmError> {
    let deadline = Instant::now() + limit;
    let control = Arc::new(Control::open(name)?);
    let unusable = |reason: String| ShmError::Unusable {
        path: segment::path(name),
        reason,
    };
    if host_id.is_some_and(|id| id != control.host_id()) {
        return Err(unusable("it belongs to another server".into()));
    }
    let server = PidFd::open(control.server_pid())
        .map_err(|error| unusable(format!("its server cannot be watched: {error}")))?;
    let mut claim = claim(&control, deadline)?;
    let state = control.slot_state(claim.slot);
    control
        .slot_pid(claim.slot)
        .store(std::process::id(), Ordering::Relaxed);
    // Release: pairs with the acquire in `AttachServer::serve_slot`.
    state.store(slot::REQUESTED, Ordering::Release);
    control.call_server();
    // Ends with an answer, the server's end, or the deadline.
    loop {
        // Acquire: pairs with the release in `AttachServer::set_state`.
        match state.load(Ordering::Acquire) {
            slot::REQUESTED => {}
            slot::READY => break,
            slot::REFUSED => {
                return Err(ShmError::Refused(
                    control.slot_code(claim.slot).load(Ordering::Relaxed),
                ));
            }
            _ => return Err(ShmError::TimedOut),
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || server.has_ended() {
            return Err(ShmError::TimedOut);
        }
        futex::wait(
            state,
            slot::REQUESTED,
            Some(left.min(Duration::from_millis(50))),
        );
    }
    let connection = control
        .read_slot_name(claim.slot)
        .ok_or_else(|| unusable("a slot without a name".into()))?;
    let (segment, _file) = Segment::open(&connection)
        .map_err(|error| unusable(format!("{}: {error}", segment::path(&connection))))?;
    // Acquire: pairs with the release in `AttachServer::make_segment`.
    if segment.bytes() != layout::SEGMENT_BYTES
        || segment.word64(layout::AT_MAGIC).load(Ordering::Acquire) != layout::MAGIC
        || segment.word32(AT_VERSION).load(Ordering::Relaxed) != layout::VERSION
        || segment.word32(AT_CAPACITY).load(Ordering::Relaxed) as usize != layout::CAPACITY
    {
        return Err(unusable("a connection of another layout".into()));
    }
    let worker = segment.word32(AT_WORKER).load(Ordering::Relaxed) as usize;
    let ready_bit = segment.word32(AT_READY_BIT).load(Ordering::Relaxed) as usize;
    if worker >= WORKERS_MAX || ready_bit >= READY_BITS {
        return Err(unusable("a connection to no worker".into()));
    }
    claim.done = true;
    state.store(slot::MAPPED, Ordering::Release);
    control.call_server();
    drop(claim);
    let ends = Ends::new(Arc::new(segment), &layout::TO_SERVER, &layout::TO_CLIENT);
    Ok(ClientEnd {
        ends,
        control,
        server,
        worker,
        ready_bit,
        #[cfg(test)]
        file: _file,
    })
}

fn claim(control: &Control, deadline: Instant) -> Result<Claim<'_>, ShmError> {
    // Others free theirs within moments; the server frees those that are left lying.
    loop {
        for slot in 0..SLOTS {
            let state = control.slot_state(slot);
            if state
                .compare_exchange(
                    slot::FREE,
                    slot::CLAIMED,
                    Ordering::Acquire,
                    Ordering::Relaxed,
                )
                .is_ok()
            {
                return Ok(Claim {
                    control,
                    slot,
                    done: false,
                });
            }
        }
        if Instant::now() >= deadline {
            return Err(ShmError::TimedOut);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
