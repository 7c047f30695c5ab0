//! The one file that owns an io_uring.
//!
//! Ownership keeps it sound: memory that the kernel reads or writes (receive buffers, the bytes of
//! a send in flight) belongs to the driver until the completion is here. A descriptor given to
//! [`Driver::close`] is closed only after everything queued that may name it has been submitted.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::AtomicU32;
use std::time::{Duration, Instant};

use io_uring::{IoUring, cqueue, opcode, squeue, types};

use super::buffers::{BUFFER_BYTES, BUFFER_COUNT, BufferRing, GROUP, Received};
use super::features::{Features, RingError};
use super::key::Key;
use super::waker::{DoorbellMemory, Waker};
use crate::shm::doorbell::SLEEPING;

/// In place of a descriptor that is polled: no longer.
const STOPPED: RawFd = -1;

const ACCEPT: u8 = 1;
const RECEIVE: u8 = 2;
const SEND: u8 = 3;
const EXIT: u8 = 4;
const DOORBELL: u8 = 5;
const CANCEL: u8 = 6;

/// FUTEX2_SIZE_U32, and not PRIVATE: the word may be rung by another process.
const FUTEX_FLAGS: u32 = 2;
const FUTEX_BITSET_MATCH_ANY: u64 = u32::MAX as u64;
/// How long a dropped driver waits for the kernel to let go of its memory; after it, the memory is
/// leaked rather than reused.
const LET_GO_LIMIT: Duration = Duration::from_secs(1);

/// How to set up a driver.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DriverOptions {
    pub(crate) entries: u32,
    pub(crate) features: Features,
}

/// What happened.
#[derive(Debug)]
pub(crate) enum Event {
    /// A connection was accepted.
    Accepted(OwnedFd),
    /// The same, and accepting stopped, without an error: arm it again.
    AcceptedLast(OwnedFd),
    /// Accepting stopped, with this errno: arm it again, later if it tells of a shortage (EMFILE).
    AcceptEnded(i32),
    /// Bytes arrived. Give them back with [`Driver::recycle`].
    Received(Key, Received),
    /// The same, and receiving stopped, for no fault of the connection's.
    ReceivedLast(Key, Received),
    /// Receiving stopped: 0 is the peer's orderly end, else an errno. ENOBUFS and ECANCELED do not
    /// mean that the connection ended.
    ReceiveEnded(Key, i32),
    /// A send ended: the bytes sent or an errno, and the buffer back.
    Sent(Key, Result<usize, i32>, Vec<u8>),
    /// The process behind a watched pidfd has ended.
    Exited(Key),
    /// A watch ended without news: it was taken away.
    Unwatched(Key),
    /// The doorbell rang, or its wait must be armed anew.
    Doorbell,
}

pub(crate) struct Driver {
    // First, so that it is dropped before the memory that it knows of.
    ring: IoUring,
    buffers: Option<BufferRing>,
    features: Features,
    doorbell: DoorbellMemory,
    doorbell_armed: bool,
    waker: Option<Waker>,
    /// The bytes of the send in flight of each connection, by its index.
    sending: Vec<Vec<u8>>,
    /// The descriptor that each connection receives from, by its index (kernels without multishot).
    polled: Vec<RawFd>,
    /// Buffers that the kernel does not hold: all of them without multishot receive, and one more
    /// than the ring has with it, for receives that we make ourselves.
    free: Vec<u16>,
    closing: Vec<OwnedFd>,
    /// Operations whose last completion has not come.
    in_flight: usize,
}

impl Driver {
    /// Must be called on the thread that will use it: the ring is for a single issuer.
    pub(crate) fn new(
        options: DriverOptions,
        doorbell: DoorbellMemory,
    ) -> Result<Driver, RingError> {
        let features = options.features;
        let mut builder = IoUring::builder();
        builder.setup_clamp().setup_cqsize(options.entries * 4);
        if features.defer_taskrun {
            builder
                .setup_single_issuer()
                .setup_defer_taskrun()
                .setup_taskrun_flag();
        }
        let ring = builder
            .build(options.entries)
            .map_err(RingError::from_call)?;
        let mut buffers = BufferRing::new().map_err(RingError::Setup)?;
        let mut free = Vec::with_capacity(BUFFER_COUNT as usize);
        if features.multishot_receive {
            // All but the last go to the kernel; the last is for receives of our own.
            buffers
                .register(&ring.submitter())
                .map_err(RingError::from_call)?;
            free.push(BUFFER_COUNT);
        } else {
            free.extend(0..=BUFFER_COUNT);
        }
        let waker = match features.futex_wait {
            true => None,
            false => Some(Waker::start(doorbell.clone()).map_err(RingError::Setup)?),
        };
        Ok(Driver {
            ring,
            buffers: Some(buffers),
            features,
            doorbell,
            doorbell_armed: false,
            waker,
            sending: Vec::new(),
            polled: Vec::new(),
            free,
            closing: Vec::new(),
            in_flight: 0,
        })
    }

    /// Whether completions are made only inside our own calls. Then a receive made by ourselves
    /// between two calls cannot overtake bytes that the ring has already taken.
    pub(crate) fn completes_only_when_entered(&self) -> bool {
        self.features.defer_taskrun
    }

    fn push(&mut self, entry: squeue::Entry) {
        loop {
            // SAFETY: whatever memory the entry names is owned by the driver until its completion:
            // receive buffers by `buffers`, sent bytes by `sending`, the futex word by `doorbell`.
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                return;
            }
            // The queue is full: submitting empties it.
            self.enter();
        }
    }

    fn start(&mut self, entry: squeue::Entry) {
        self.push(entry);
        self.in_flight += 1;
    }

    /// Accepts connections from `listener` until [`Event::AcceptEnded`] or
    /// [`Event::AcceptedLast`].
    pub(crate) fn accept(&mut self, listener: RawFd) {
        let fd = types::Fd(listener);
        let entry = if self.features.multishot_accept {
            opcode::AcceptMulti::new(fd)
                .flags(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK)
                .build()
        } else {
            opcode::Accept::new(fd, std::ptr::null_mut(), std::ptr::null_mut())
                .flags(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK)
                .build()
        };
        self.start(entry.user_data(Key::WORKER.pack(ACCEPT)));
    }

    /// Ends accepting; [`Event::AcceptEnded`] follows, or [`Event::AcceptedLast`] if a connection came first.
    pub(crate) fn stop_accepting(&mut self) {
        self.cancel(Key::WORKER.pack(ACCEPT));
    }

    /// Receives from a connection until [`Event::ReceiveEnded`] or [`Event::ReceivedLast`].
    pub(crate) fn receive(&mut self, key: Key, fd: RawFd) {
        let entry = if self.features.multishot_receive {
            opcode::RecvMulti::new(types::Fd(fd), GROUP).build()
        } else {
            *slot(&mut self.polled, key) = fd;
            opcode::PollAdd::new(types::Fd(fd), libc::POLLIN as u32).build()
        };
        self.start(entry.user_data(key.pack(RECEIVE)));
    }

    /// Receives from a connection once, so that it takes one buffer only: [`Event::ReceivedLast`] or
    /// [`Event::ReceiveEnded`] follows. Kernels without multishot never take more.
    pub(crate) fn receive_once(&mut self, key: Key, fd: RawFd) {
        if !self.features.multishot_receive {
            return self.receive(key, fd);
        }
        let length = BUFFER_BYTES as u32;
        let entry = opcode::Recv::new(types::Fd(fd), std::ptr::null_mut(), length)
            .buf_group(GROUP)
            .build()
            .flags(squeue::Flags::BUFFER_SELECT);
        self.start(entry.user_data(key.pack(RECEIVE)));
    }

    /// Ends receiving; [`Event::ReceiveEnded`] follows, bytes already taken come before it.
    pub(crate) fn stop_receiving(&mut self, key: Key) {
        if !self.features.multishot_receive {
            // The poll may have completed already: then there is nothing to cancel, and its
            // completion must not poll again.
            *slot(&mut self.polled, key) = STOPPED;
        }
        self.cancel(key.pack(RECEIVE));
    }

    /// Receives at once, without the ring; `None` if nothing is there or no buffer is free. Only
    /// where [`Driver::completes_only_when_entered`] and all events have been taken.
    pub(crate) fn receive_now(&mut self, fd: RawFd) -> Option<io::Result<Received>> {
        let buffer = self.free.pop()?;
        let buffers = self.buffers.as_mut().expect("the driver is open");
        match crate::sys::socket::recv_now(fd, buffers.free_bytes(buffer)) {
            Ok(length) => Some(Ok(Received {
                buffer,
                length: length as u32,
            })),
            Err(error) => {
                self.free.push(buffer);
                (error.kind() != io::ErrorKind::WouldBlock).then_some(Err(error))
            }
        }
    }

    /// Sends `bytes[from..]`. One send per connection at a time; [`Event::Sent`] gives the buffer
    /// back.
    pub(crate) fn send(&mut self, key: Key, fd: RawFd, bytes: Vec<u8>, from: usize) {
        assert!(from < bytes.len());
        let (address, length) = (bytes[from..].as_ptr(), bytes.len() - from);
        let place = slot(&mut self.sending, key);
        assert!(place.is_empty(), "one send in flight per connection");
        // Moving the Vec does not move its bytes, and nobody touches it before the completion.
        *place = bytes;
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        let entry = opcode::Send::new(types::Fd(fd), address, length)
            .flags(libc::MSG_NOSIGNAL)
            .build()
            .user_data(key.pack(SEND));
        self.start(entry);
    }

    /// Reports the end of the process behind `pidfd` once.
    pub(crate) fn watch_exit(&mut self, key: Key, pidfd: RawFd) {
        let entry = opcode::PollAdd::new(types::Fd(pidfd), libc::POLLIN as u32).build();
        self.start(entry.user_data(key.pack(EXIT)));
    }

    /// Takes the watch away; [`Event::Unwatched`] or [`Event::Exited`] follows.
    pub(crate) fn unwatch(&mut self, key: Key) {
        self.cancel(key.pack(EXIT));
    }

    fn cancel(&mut self, user_data: u64) {
        let entry = opcode::AsyncCancel::new(user_data).build();
        self.start(entry.user_data(Key::WORKER.pack(CANCEL)));
    }

    /// Arms the wait on the doorbell word if it is not armed. The caller has stored SLEEPING in the
    /// word before, and looks at its queues once more after.
    pub(crate) fn arm_doorbell(&mut self) {
        if self.doorbell_armed {
            return;
        }
        self.doorbell_armed = true;
        let entry = match &self.waker {
            None => {
                let word: &AtomicU32 = (*self.doorbell).as_ref();
                opcode::FutexWait::new(
                    word.as_ptr().cast_const(),
                    u64::from(SLEEPING),
                    FUTEX_BITSET_MATCH_ANY,
                    FUTEX_FLAGS,
                )
                .build()
            }
            Some(waker) => {
                waker.request();
                opcode::PollAdd::new(types::Fd(waker.fd()), libc::POLLIN as u32).build()
            }
        };
        self.start(entry.user_data(Key::WORKER.pack(DOORBELL)));
    }

    /// Takes the wait on the doorbell word back, if it is armed: the next is on the memory that is mapped
    /// there then.
    pub(crate) fn disarm_doorbell(&mut self) {
        if self.doorbell_armed && self.waker.is_none() {
            self.cancel(Key::WORKER.pack(DOORBELL));
        }
    }

    /// Closes a descriptor once nothing that is queued can name it.
    pub(crate) fn close(&mut self, fd: OwnedFd) {
        self.closing.push(fd);
    }

    /// Enters the kernel if there is a reason: something to submit, or completions waiting to be
    /// made. Never blocks. Says whether it entered.
    pub(crate) fn turn(&mut self) -> bool {
        let queue = self.ring.submission();
        let reason = !queue.is_empty() || queue.taskrun() || queue.cq_overflow();
        drop(queue);
        if reason || !self.closing.is_empty() {
            self.enter();
        }
        reason
    }

    fn enter(&mut self) {
        check_enter(self.ring.submit());
        if self.ring.submission().is_empty() {
            self.closing.clear();
        }
    }

    /// Submits what is queued and sleeps until a completion or the time limit. Says whether it
    /// was the limit.
    pub(crate) fn wait(&mut self, limit: Option<Duration>) -> bool {
        let entered = match limit {
            None => self.ring.submit_and_wait(1),
            Some(limit) => {
                let time = types::Timespec::from(limit);
                self.ring
                    .submitter()
                    .submit_with_args(1, &types::SubmitArgs::new().timespec(&time))
            }
        };
        check_enter(entered);
        if self.ring.submission().is_empty() {
            self.closing.clear();
        }
        // What the call returns does not tell: having submitted something counts for more.
        !self.has_events()
    }

    /// Whether there are completions to be taken.
    #[inline]
    pub(crate) fn has_events(&mut self) -> bool {
        !self.ring.completion().is_empty()
    }

    /// Takes up to `limit` completions as events, without a system call (but for receives on
    /// kernels without multishot).
    pub(crate) fn take_events(&mut self, events: &mut Vec<Event>, limit: usize) {
        for _ in 0..limit {
            let Some(entry) = self.ring.completion().next() else {
                return;
            };
            if let Some(event) = self.event(&entry) {
                events.push(event);
            }
        }
    }

    fn event(&mut self, entry: &cqueue::Entry) -> Option<Event> {
        let (operation, key) = Key::unpack(entry.user_data());
        let more = cqueue::more(entry.flags());
        let result = entry.result();
        if !more {
            self.in_flight -= 1;
        }
        match operation {
            ACCEPT if result >= 0 => {
                // SAFETY: a successful accept gives a descriptor that is ours alone.
                let fd = unsafe { OwnedFd::from_raw_fd(result) };
                // Without more to come: a single-shot accept, or one that a full completion queue ended.
                Some(match more {
                    true => Event::Accepted(fd),
                    false => Event::AcceptedLast(fd),
                })
            }
            ACCEPT => Some(Event::AcceptEnded(-result)),
            RECEIVE if self.features.multishot_receive => self.received(entry, key, more),
            RECEIVE => self.readable(key, result),
            SEND => {
                let bytes = std::mem::take(slot(&mut self.sending, key));
                let result = if result >= 0 {
                    Ok(result as usize)
                } else {
                    Err(-result)
                };
                Some(Event::Sent(key, result, bytes))
            }
            EXIT if result >= 0 => Some(Event::Exited(key)),
            EXIT => Some(Event::Unwatched(key)),
            DOORBELL => {
                self.doorbell_armed = false;
                if let Some(waker) = &self.waker {
                    waker.drain();
                }
                // Taken back by ourselves: nothing has happened.
                (result != -libc::ECANCELED).then_some(Event::Doorbell)
            }
            CANCEL => None,
            _ => unreachable!("user_data is only made here"),
        }
    }

    fn received(&mut self, entry: &cqueue::Entry, key: Key, more: bool) -> Option<Event> {
        let result = entry.result();
        if result > 0 {
            let buffer = cqueue::buffer_select(entry.flags()).expect("a receive names its buffer");
            let received = Received {
                buffer,
                length: result as u32,
            };
            // Where more were wanted, it was ended by a full completion queue.
            return Some(match more {
                true => Event::Received(key, received),
                false => Event::ReceivedLast(key, received),
            });
        }
        if let Some(buffer) = cqueue::buffer_select(entry.flags()) {
            self.recycle(Received { buffer, length: 0 });
        }
        debug_assert!(!more, "a receive without bytes is the last");
        Some(Event::ReceiveEnded(key, -result))
    }

    /// A socket polled on an older kernel has something: take it ourselves. The poll was for one time, and is
    /// not renewed here: those that were polled first would have all the buffers, every time.
    fn readable(&mut self, key: Key, result: i32) -> Option<Event> {
        if result < 0 {
            return Some(Event::ReceiveEnded(key, -result));
        }
        let fd = *slot(&mut self.polled, key);
        if fd == STOPPED {
            return Some(Event::ReceiveEnded(key, libc::ECANCELED));
        }
        if self.free.is_empty() {
            return Some(Event::ReceiveEnded(key, libc::ENOBUFS));
        }
        match self.receive_now(fd) {
            Some(Ok(received)) if received.length == 0 => {
                self.recycle(received);
                Some(Event::ReceiveEnded(key, 0))
            }
            Some(Ok(received)) => Some(Event::ReceivedLast(key, received)),
            Some(Err(error)) => Some(Event::ReceiveEnded(
                key,
                error.raw_os_error().unwrap_or(libc::EIO),
            )),
            None => {
                self.receive(key, fd);
                None
            }
        }
    }

    /// The bytes that arrived.
    pub(crate) fn bytes(&self, received: &Received) -> &[u8] {
        self.buffers
            .as_ref()
            .expect("the driver is open")
            .bytes(received)
    }

    /// Gives a buffer back.
    pub(crate) fn recycle(&mut self, received: Received) {
        if self.features.multishot_receive && received.buffer < BUFFER_COUNT {
            self.buffers
                .as_mut()
                .expect("the driver is open")
                .provide(received.buffer);
        } else {
            self.free.push(received.buffer);
        }
    }

    /// Cancels everything and waits, for a bounded time, until the kernel holds nothing of ours.
    fn let_go(&mut self) -> bool {
        let start = Instant::now();
        let mut events = Vec::new();
        if self.doorbell_armed {
            self.cancel(Key::WORKER.pack(DOORBELL));
        }
        // By name, since what cancels all (5.19) is an error before.
        if self.in_flight > 0 && self.features.multishot_accept {
            let any = types::CancelBuilder::any();
            let entry = opcode::AsyncCancel2::new(any).build();
            self.start(entry.user_data(Key::WORKER.pack(CANCEL)));
        }
        while self.in_flight > 0 && start.elapsed() < LET_GO_LIMIT {
            self.wait(Some(Duration::from_millis(10)));
            self.take_events(&mut events, usize::MAX);
            events.clear();
        }
        self.in_flight == 0
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if !self.let_go() {
            // The kernel may still read or write this memory: leak it.
            std::mem::forget(std::mem::take(&mut self.sending));
            std::mem::forget(self.buffers.take());
        }
    }
}

/// Lets pass what another call may not meet any more.
///
/// # Panics
/// At anything else: who tries for ever serves nobody and says nothing.
fn check_enter(entered: io::Result<usize>) {
    let Err(error) = entered else { return };
    match error.raw_os_error() {
        // The completion queue is full, and the caller takes events and comes again; a signal came, and the
        // next turn submits what is left; the kernel is short of memory for now; the time is over.
        Some(libc::EBUSY | libc::EINTR | libc::EAGAIN | libc::ENOMEM | libc::ETIME) => {}
        _ => panic!("io_uring_enter: {error}"),
    }
}

fn slot<T: Default>(slots: &mut Vec<T>, key: Key) -> &mut T {
    let index = key.index as usize;
    if index >= slots.len() {
        slots.resize_with(index + 1, T::default);
    }
    &mut slots[index]
}
