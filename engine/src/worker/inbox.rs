//! A worker's inbox: what other threads send to it, and how they wake it.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crossbeam::queue::ArrayQueue;

use super::deferred::Answer;
use crate::shm::{ServerEnd, doorbell};
use crate::uring::DoorbellMemory;

/// How many messages may wait. A sender that finds the queue full waits, see [`Inbox::send`].
const CAPACITY: usize = 512;

thread_local! {
    /// The inbox of the worker that runs on this thread.
    static OWN: RefCell<Option<Arc<Inbox>>> = const { RefCell::new(None) };
    /// The inboxes of other workers to which this one's handlers have sent more than there was room for.
    static OVERFLOWED: RefCell<Vec<Arc<Inbox>>> = const { RefCell::new(Vec::new()) };
}

/// Wakes one worker: a futex word on which it sleeps, and whether it does.
pub(crate) struct Doorbell {
    word: DoorbellMemory,
    asleep: doorbell::Asleep,
}

impl Doorbell {
    pub(crate) fn new(word: DoorbellMemory) -> Doorbell {
        Doorbell {
            word,
            asleep: doorbell::Asleep::new(),
        }
    }

    /// A doorbell whose word lies in private memory: no other process can ring it.
    pub(crate) fn private() -> Doorbell {
        struct Word(AtomicU32);
        impl AsRef<AtomicU32> for Word {
            fn as_ref(&self) -> &AtomicU32 {
                &self.0
            }
        }
        Doorbell::new(Arc::new(Word(AtomicU32::new(doorbell::AWAKE))))
    }

    pub(crate) fn memory(&self) -> DoorbellMemory {
        self.word.clone()
    }

    fn word(&self) -> &AtomicU32 {
        (*self.word).as_ref()
    }

    /// Wakes the worker if it sleeps. What it is woken for must have been published before.
    pub(crate) fn ring(&self) {
        self.asleep.ring(self.word());
    }

    /// The worker announces its sleep; it must look at all its sources once more before it waits.
    pub(super) fn fall_asleep(&self) {
        self.asleep.fall_asleep(self.word());
    }

    pub(super) fn wake_up(&self) {
        self.asleep.wake_up(self.word());
    }
}

/// Asks something of the inbox of the worker that runs on this thread. False on any other thread, and on
/// one that is ending.
fn with_own(ask: impl FnOnce(&Inbox) -> bool) -> bool {
    let asked = OWN.try_with(|own| own.borrow().as_deref().is_some_and(ask));
    asked.unwrap_or(false)
}

fn lock(messages: &Mutex<VecDeque<Message>>) -> MutexGuard<'_, VecDeque<Message>> {
    messages.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What other threads ask of a worker.
#[derive(Debug)]
pub(crate) enum Message {
    /// Serve this accepted TCP connection.
    Tcp(OwnedFd),
    /// Serve this attached shared-memory connection.
    Shm(Box<ServerEnd>),
    /// An answer, or a part of one, to a request that a handler has detached.
    Answer(Answer),
    /// Nothing: only look into the inbox, which shows that the worker runs.
    Ping,
    /// Panic.
    #[cfg(test)]
    Panic,
}

/// The way into a worker.
pub(crate) struct Inbox {
    queue: ArrayQueue<Message>,
    /// What the worker took out of its queue to make room: older than what is in the queue now. Nobody else
    /// locks it before the worker has ended, so the worker never waits for the lock.
    set_aside: Mutex<VecDeque<Message>>,
    /// Its length.
    set_aside_count: AtomicUsize,
    /// What other workers sent while the queue was full: newer than what is in the queue. Bounded, since each
    /// of them waits until this is empty before its handlers run again.
    overflow: Mutex<VecDeque<Message>>,
    /// Its length. While it is not 0, what comes goes behind it, or waits.
    overflow_count: AtomicUsize,
    /// The worker itself has sent something since it last asked: its handlers have.
    sent_by_own: AtomicBool,
    /// The worker's handlers have sent more to others than there was room for: it is to wait for them.
    has_overflowed_others: AtomicBool,
    doorbell: Doorbell,
    /// The worker's thread has ended.
    closed: AtomicBool,
    /// The worker is to drain. Not a message, so that asking never has to wait for a place in the queue.
    drain_asked: AtomicBool,
    /// The worker was asked whether it runs, and has not shown it yet.
    pinged: AtomicBool,
    /// Connections that this worker serves or is about to serve.
    load: AtomicU64,
}

impl Inbox {
    pub(crate) fn new(doorbell: Doorbell) -> Inbox {
        Inbox {
            queue: ArrayQueue::new(CAPACITY),
            set_aside: Mutex::default(),
            set_aside_count: AtomicUsize::new(0),
            overflow: Mutex::default(),
            overflow_count: AtomicUsize::new(0),
            sent_by_own: AtomicBool::new(false),
            has_overflowed_others: AtomicBool::new(false),
            doorbell,
            closed: AtomicBool::new(false),
            drain_asked: AtomicBool::new(false),
            pinged: AtomicBool::new(false),
            load: AtomicU64::new(0),
        }
    }

    pub(crate) fn doorbell(&self) -> &Doorbell {
        &self.doorbell
    }

    /// Makes this thread the inbox's worker.
    pub(super) fn own(self: &Arc<Self>) {
        OWN.set(Some(self.clone()));
    }

    /// Whether this thread is a worker, of this server or another.
    pub(super) fn is_on_worker() -> bool {
        with_own(|_| true)
    }

    /// Delivers a message and wakes the worker. Waits while the queue is full. Returns the message if the
    /// worker has ended.
    ///
    /// It may be called on a worker, when a handler answers a detached request itself. That does not wait: the
    /// handler may hold a lock for which the other worker's handlers wait. What is too much for the queue goes to
    /// the overflow, and the worker waits after its handlers, in [`Inbox::wait_for_others`].
    pub(crate) fn send(self: &Arc<Self>, message: Message) -> Result<(), Message> {
        let mut message = message;
        let mut pause_us = 1;
        // Ends when there is room, or the receiving worker has ended.
        loop {
            if self.is_closed() {
                return Err(message);
            }
            // Acquire: pairs with the release in `push_overflow` and `take_overflow`.
            if self.overflow_count.load(Ordering::Acquire) == 0 {
                match self.queue.push(message) {
                    Ok(()) => break,
                    Err(back) => message = back,
                }
            }
            if self.is_own() {
                self.make_room();
                continue;
            }
            if Inbox::is_on_worker() {
                self.push_overflow(message);
                break;
            }
            self.doorbell.ring();
            std::thread::sleep(Duration::from_micros(pause_us));
            pause_us = (pause_us * 2).min(1_000);
        }
        self.empty_if_closed();
        if self.is_own() {
            // Relaxed: the same thread asks.
            self.sent_by_own.store(true, Ordering::Relaxed);
        }
        self.doorbell.ring();
        Ok(())
    }

    /// On another worker.
    #[cold]
    fn push_overflow(self: &Arc<Self>, message: Message) {
        let mut overflow = lock(&self.overflow);
        overflow.push_back(message);
        // Release: pairs with the acquire in `send`.
        self.overflow_count.store(overflow.len(), Ordering::Release);
        drop(overflow);
        with_own(|own| {
            // Relaxed: the same thread asks.
            own.has_overflowed_others.store(true, Ordering::Relaxed);
            true
        });
        OVERFLOWED.with_borrow_mut(|all| {
            if !all.iter().any(|one| Arc::ptr_eq(one, self)) {
                all.push(self.clone());
            }
        });
    }

    /// For when the queue is empty.
    fn take_overflow(&self) -> Option<Message> {
        if self.overflow_count.load(Ordering::Acquire) == 0 {
            return None;
        }
        let mut overflow = lock(&self.overflow);
        // The queue may have been filled since the caller found it empty, and what is in it is older.
        if let Some(message) = self.queue.pop() {
            return Some(message);
        }
        let message = overflow.pop_front();
        // Release: as in `push_overflow`.
        self.overflow_count.store(overflow.len(), Ordering::Release);
        message
    }

    /// For the worker, while no handler runs: waits until the others have taken what was too much for their
    /// queues. Meanwhile it makes room in its own inbox, so that no two wait for each other.
    #[inline]
    pub(super) fn wait_for_others(&self) {
        if self.has_overflowed_others.load(Ordering::Relaxed) {
            self.wait_for_overflowed();
        }
    }

    #[cold]
    fn wait_for_overflowed(&self) {
        self.has_overflowed_others.store(false, Ordering::Relaxed);
        for other in OVERFLOWED.take() {
            let mut pause_us = 1;
            // Ends when the other worker's handlers have returned and it takes its messages, or with that worker.
            while other.overflow_count.load(Ordering::Acquire) > 0 && !other.is_closed() {
                self.make_room();
                other.doorbell.ring();
                std::thread::sleep(Duration::from_micros(pause_us));
                pause_us = (pause_us * 2).min(1_000);
            }
        }
    }

    /// For the worker: how many messages there are, if it has sent some of them since it last asked, or workers
    /// have sent more than the queue takes; else 0.
    pub(super) fn left_by_own(&self) -> usize {
        // Relaxed: what comes meanwhile is for the next time.
        let set_aside = self.set_aside_count.load(Ordering::Relaxed);
        let overflow = self.overflow_count.load(Ordering::Relaxed);
        if !self.sent_by_own.load(Ordering::Relaxed) && set_aside + overflow == 0 {
            return 0;
        }
        self.sent_by_own.store(false, Ordering::Relaxed);
        set_aside + self.queue.len() + overflow
    }

    /// Whether this thread is the inbox's worker.
    fn is_own(&self) -> bool {
        with_own(|own| std::ptr::eq(own, self))
    }

    /// For the worker: sets aside what is in its queue, and what was too much for that.
    fn make_room(&self) {
        let mut set_aside = lock(&self.set_aside);
        // As many as there are now; those that come meanwhile stay.
        for _ in 0..self.queue.len() + self.overflow_count.load(Ordering::Relaxed) {
            set_aside.extend(self.queue.pop().or_else(|| self.take_overflow()));
        }
        self.set_aside_count
            .store(set_aside.len(), Ordering::Relaxed);
    }

    /// As [`Inbox::send`], but returns the message instead of waiting when the queue is full.
    pub(super) fn try_send(&self, message: Message) -> Result<(), Message> {
        if self.is_closed() {
            return Err(message);
        }
        self.queue.push(message)?;
        self.empty_if_closed();
        self.doorbell.ring();
        Ok(())
    }

    /// Asks the worker to drain and end. Never waits.
    pub(crate) fn ask_to_drain(&self) {
        // Release: pairs with the acquire in `drain_asked`.
        self.drain_asked.store(true, Ordering::Release);
        self.doorbell.ring();
    }

    pub(super) fn drain_asked(&self) -> bool {
        // Acquire: pairs with the release in `ask_to_drain`.
        self.drain_asked.load(Ordering::Acquire)
    }

    /// Asks the worker to show that it runs. False: it was asked before and has not shown it since.
    pub(crate) fn ping(&self) -> bool {
        // Relaxed here and in `pong`: the flag orders nothing else.
        if self.pinged.swap(true, Ordering::Relaxed) && !self.is_closed() {
            self.doorbell.ring();
            return false;
        }
        // If the queue is full, the worker has reason enough to look.
        let _ = self.try_send(Message::Ping);
        true
    }

    /// The worker shows that it runs: it has looked into its queue.
    pub(super) fn pong(&self) {
        self.pinged.store(false, Ordering::Relaxed);
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
            && self.set_aside_count.load(Ordering::Relaxed) == 0
            && self.overflow_count.load(Ordering::Relaxed) == 0
    }

    pub(super) fn take(&self) -> Option<Message> {
        self.take_set_aside()
            .or_else(|| self.queue.pop())
            .or_else(|| self.take_overflow())
    }

    /// Called by the worker; after its end by whoever empties the inbox, perhaps several at once.
    fn take_set_aside(&self) -> Option<Message> {
        if self.set_aside_count.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let mut set_aside = lock(&self.set_aside);
        let message = set_aside.pop_front();
        self.set_aside_count
            .store(set_aside.len(), Ordering::Relaxed);
        message
    }

    /// The worker has ended.
    pub(super) fn close(&self) {
        // Release: pairs with the acquire in `is_closed`.
        self.closed.store(true, Ordering::Release);
        self.empty_if_closed();
    }

    /// Drops what was pushed while the worker ended, and tells the clients among it.
    fn empty_if_closed(&self) {
        // SeqCst: pairs with the same fence on the other thread. Either the sender, which has just pushed,
        // sees that the worker has ended; or the worker, which has just closed, sees what was pushed.
        fence(Ordering::SeqCst);
        if self.is_closed() {
            while let Some(message) = self.take() {
                if let Message::Shm(end) = message {
                    end.ends.close_and_wake();
                }
            }
        }
    }

    /// Whether the worker has ended.
    pub(crate) fn is_closed(&self) -> bool {
        // Acquire: pairs with the release in `close`.
        self.closed.load(Ordering::Acquire)
    }

    /// Connections that this worker serves or is about to serve.
    pub(crate) fn load(&self) -> u64 {
        // Relaxed, here and below: a count, which orders nothing else.
        self.load.load(Ordering::Relaxed)
    }

    pub(crate) fn load_changed(&self, by: i64) {
        self.load.fetch_add(by as u64, Ordering::Relaxed);
    }
}
