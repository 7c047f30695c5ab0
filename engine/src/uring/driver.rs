//! The driver: owns a worker's io_uring, submits operations and turns completions into events.
//!
//! It is sound because of ownership: memory that the kernel reads or writes (receive buffers, the bytes of a
//! send in flight) belongs to the driver until its completion is here. And a descriptor given to
//! [`Driver::close`] is closed only after everything queued that may name it was submitted.

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

/// In [`Driver::polled`], in place of a descriptor: the receive was asked to end.
const STOPPED: RawFd = -1;

/// Entries of the submission queue. When more are submitted at once, that costs one more `io_uring_enter`.
const ENTRIES: u32 = 128;

// Which operation a completion is of: the top byte of its `user_data`.
const ACCEPT: u8 = 1;
const RECEIVE: u8 = 2;
const SEND: u8 = 3;
const EXIT: u8 = 4;
const DOORBELL: u8 = 5;
const CANCEL: u8 = 6;

/// FUTEX2_SIZE_U32. Not PRIVATE, because another process may wake the word.
const FUTEX_FLAGS: u32 = 2;
const FUTEX_BITSET_MATCH_ANY: u64 = u32::MAX as u64;
/// How long a dropped driver waits for the kernel to let go of its memory; after it, the memory is
/// leaked rather than reused.
const LET_GO_LIMIT: Duration = Duration::from_secs(1);

/// What happened.
#[derive(Debug)]
pub(crate) enum Event {
    /// A connection was accepted.
    Accepted(OwnedFd),
    /// The same, and accepting stopped, without an error: arm it again.
    AcceptedLast(OwnedFd),
    /// Accepting stopped, with this errno: arm it again, later if it tells of a shortage (EMFILE).
    AcceptEnded(i32),
    /// Bytes arrived. Their buffer is to be given back with [`Driver::recycle`].
    Received(Key, Received),
    /// The same, and receiving stopped, but not because the connection ended.
    ReceivedLast(Key, Received),
    /// Receiving stopped: 0 is the peer's orderly end, anything else an errno. After ENOBUFS (no buffer was
    /// free) and ECANCELED the connection goes on.
    ReceiveEnded(Key, i32),
    /// A send ended: how many bytes were sent, or an errno; and the buffer.
    Sent(Key, Result<usize, i32>, Vec<u8>),
    /// The process behind a watched pidfd has ended.
    Exited(Key),
    /// A watch ended because it was taken away.
    Unwatched(Key),
    /// The wait on the doorbell word ended: it is to be armed anew before the next sleep.
    Doorbell,
}

pub(crate) struct Driver {
    // First, so that it is dropped before the memory that it knows of.
    ring: IoUring,
    /// `None` only while being dropped.
    buffers: Option<BufferRing>,
    features: Features,
    doorbell: DoorbellMemory,
    /// A wait on the doorbell word is in flight.
    doorbell_armed: bool,
    /// On kernels without IORING_OP_FUTEX_WAIT.
    waker: Option<Waker>,
    /// The bytes of each connection's send in flight, by the connection's index.
    sending: Vec<Vec<u8>>,
    /// The descriptor that each connection receives from, by the connection's index. Only on kernels without
    /// multishot receive, where sockets are polled.
    polled: Vec<RawFd>,
    /// Receive buffers that the kernel does not hold. Without multishot receive these are all; with it, one:
    /// the buffer for [`Driver::receive_now`].
    free: Vec<u16>,
    /// Descriptors to be closed once nothing that is queued can name them.
    closing: Vec<OwnedFd>,
    /// Operations whose last completion has not come.
    in_flight: usize,
}

impl Driver {
    /// Must be called on the thread that will use the driver: the io_uring is for a single issuer.
    pub(crate) fn new(features: Features, doorbell: DoorbellMemory) -> Result<Driver, RingError> {
        let mut builder = IoUring::builder();
        builder.setup_clamp().setup_cqsize(ENTRIES * 4);
        if features.defer_taskrun {
            builder
                .setup_single_issuer()
                .setup_defer_taskrun()
                .setup_taskrun_flag();
        }
        let ring = builder.build(ENTRIES).map_err(RingError::from_call)?;
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

    /// Whether completions are only made inside our own `io_uring_enter` (DEFER_TASKRUN). Then a plain `recv`
    /// between two of those cannot overtake bytes that the io_uring has received.
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

    /// Receives from a connection once, so that it takes only one buffer. [`Event::ReceivedLast`] or
    /// [`Event::ReceiveEnded`] follows. (Without multishot receive, no receive takes more.)
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

    /// Ends receiving. [`Event::ReceiveEnded`] follows, after the bytes that were already received.
    pub(crate) fn stop_receiving(&mut self, key: Key) {
        if !self.features.multishot_receive {
            // The poll may have completed already. Then there is nothing to cancel, and its completion must
            // not poll again.
            *slot(&mut self.polled, key) = STOPPED;
        }
        self.cancel(key.pack(RECEIVE));
    }

    /// Receives at once by a plain `recv`; `None` if nothing is there or no buffer is free. Allowed only if
    /// [`Driver::completes_only_when_entered`] and all events were taken, or without multishot receive.
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

    /// Watches the process behind `pidfd`: its end is reported once, by [`Event::Exited`].
    pub(crate) fn watch_exit(&mut self, key: Key, pidfd: RawFd) {
        let entry = opcode::PollAdd::new(types::Fd(pidfd), libc::POLLIN as u32).build();
        self.start(entry.user_data(key.pack(EXIT)));
    }

    /// Takes the watch away. [`Event::Unwatched`] or [`Event::Exited`] follows.
    pub(crate) fn unwatch(&mut self, key: Key) {
        self.cancel(key.pack(EXIT));
    }

    fn cancel(&mut self, user_data: u64) {
        let entry = opcode::AsyncCancel::new(user_data).build();
        self.start(entry.user_data(Key::WORKER.pack(CANCEL)));
    }

    /// Arms a wait on the doorbell word if none is in flight. The caller has stored SLEEPING in the word
    /// before, and looks at all its sources once more afterwards.
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

    /// Cancels the wait on the doorbell word, so that the next one is on the memory that is mapped there by
    /// then.
    pub(crate) fn disarm_doorbell(&mut self) {
        if self.doorbell_armed && self.waker.is_none() {
            self.cancel(Key::WORKER.pack(DOORBELL));
        }
    }

    /// Closes a descriptor once nothing that is queued can name it.
    pub(crate) fn close(&mut self, fd: OwnedFd) {
        self.closing.push(fd);
    }

    /// Enters the kernel if there is a reason: it [`owes_an_enter`](Driver::owes_an_enter), or something
    /// [`has_come`](Driver::has_come). Never blocks. Returns whether it entered and there are completions.
    pub(crate) fn turn(&mut self) -> bool {
        let reason = self.owes_an_enter() || self.has_come();
        if reason {
            self.enter();
        }
        reason && self.has_events()
    }

    /// Whether there is something to submit, completions have found no place, or descriptors wait to be closed.
    #[inline]
    pub(crate) fn owes_an_enter(&mut self) -> bool {
        let queue = self.ring.submission();
        !queue.is_empty() || queue.cq_overflow() || !self.closing.is_empty()
    }

    /// Whether something has come whose completion is only made inside an enter: bytes for an armed receive, say.
    /// A look at memory. Never, unless [`Driver::completes_only_when_entered`].
    ///
    /// It may be nothing: the kernel lists what has come first and tells of it then. If an enter takes it in between,
    /// this stays true until something else comes.
    #[inline]
    pub(crate) fn has_come(&mut self) -> bool {
        self.ring.submission().taskrun()
    }

    fn enter(&mut self) {
        let entered = self.ring.submit();
        self.entered(entered);
    }

    /// What follows each enter: descriptors that nothing queued can name any more are closed.
    fn entered(&mut self, result: io::Result<usize>) {
        check_enter(result);
        if self.ring.submission().is_empty() {
            self.closing.clear();
        }
    }

    /// Submits what is queued, and sleeps until there is a completion, or the time limit. Returns whether the
    /// limit ended it.
    pub(crate) fn wait(&mut self, limit: Duration) -> bool {
        let time = types::Timespec::from(limit);
        let args = types::SubmitArgs::new().timespec(&time);
        let entered = self.ring.submitter().submit_with_args(1, &args);
        self.entered(entered);
        // The call's result does not tell: if it has submitted something, it returns how much.
        !self.has_events()
    }

    /// Whether there are completions to be taken.
    #[inline]
    pub(crate) fn has_events(&mut self) -> bool {
        !self.ring.completion().is_empty()
    }

    /// Takes up to `limit` completions and appends the events that they are. Without a system call, except for
    /// the receives themselves on kernels without multishot receive.
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
                // Cancelled by `disarm_doorbell`: nothing has happened.
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
            // A multishot receive that ends with bytes was ended by a full completion queue.
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

    /// A polled socket is readable (kernels without multishot receive): receives from it. The poll was for one
    /// time and is not renewed here, or the connections that were polled first would get all the buffers.
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

    /// Cancels everything and waits, for a limited time, until the kernel holds no memory of ours. Returns
    /// whether that is so.
    fn let_go(&mut self) -> bool {
        let start = Instant::now();
        let mut events = Vec::new();
        if self.doorbell_armed {
            self.cancel(Key::WORKER.pack(DOORBELL));
        }
        // The doorbell is cancelled above by its own name: to cancel everything at once needs Linux 5.19, which
        // also brought multishot accept.
        if self.in_flight > 0 && self.features.multishot_accept {
            let any = types::CancelBuilder::any();
            let entry = opcode::AsyncCancel2::new(any).build();
            self.start(entry.user_data(Key::WORKER.pack(CANCEL)));
        }
        while self.in_flight > 0 && start.elapsed() < LET_GO_LIMIT {
            self.wait(Duration::from_millis(10));
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

/// Ignores errors of `io_uring_enter` that another call may not meet any more.
///
/// # Panics
/// At any other error: to try for ever would serve nobody and say nothing.
fn check_enter(entered: io::Result<usize>) {
    let Err(error) = entered else { return };
    match error.raw_os_error() {
        // In this order: the completion queue is full, and the caller takes events before it enters again; a
        // signal came, and the next enter submits what is left; the kernel is short of memory for now (two
        // errors); the time limit.
        Some(libc::EBUSY | libc::EINTR | libc::EAGAIN | libc::ENOMEM | libc::ETIME) => {}
        _ => panic!("io_uring_enter: {error}"),
    }
}

/// The entry of a connection in a table by index, which grows if need be.
fn slot<T: Default>(slots: &mut Vec<T>, key: Key) -> &mut T {
    let index = key.index as usize;
    if index >= slots.len() {
        slots.resize_with(index + 1, T::default);
    }
    &mut slots[index]
}

#[cfg(test)]
mod tests;
