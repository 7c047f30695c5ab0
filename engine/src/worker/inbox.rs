//! A worker's inbox: what other threads send to it, and how they wake it.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crossbeam::queue::ArrayQueue;

use super::deferred::Answer;
use super::rarely::Rarely;
use super::room::Room;
use super::silence::Silence;
use crate::shm::{ServerEnd, doorbell};
use crate::sys::clock;
use crate::uring::DoorbellMemory;

/// How many messages may wait. Who finds the queue full waits, see [`Inbox::send`].
const CAPACITY: usize = 512;
/// Nobody waits for a place in the inbox of a worker that has not looked into it for so long, while the budget has
/// room: its handler may wait for a lock of the one who waits.
pub(super) const FULL_NS_MAX: u64 = 10_000_000;
/// The log tells of one that has not for so long: no handler should take it.
const TOLD_NS_MIN: u64 = 100_000_000;

/// When the log may say again that a worker was not waited for.
static NOT_WAITED_FOR: Rarely = Rarely::new();

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

impl Message {
    /// The memory that it takes.
    fn bytes(&self) -> usize {
        let payload = match self {
            Message::Answer(answer) => answer.body.len(),
            _ => 0,
        };
        size_of::<Message>() + payload
    }
}

/// What whoever has found no room does: in the inbox, or at the requester whom the worker serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Patience {
    /// It waits a little longer.
    Left,
    /// It sends nevertheless.
    Over,
    /// It gives up: the worker is silent, and the budget is used up.
    Lost,
}

/// The way into a worker.
pub(crate) struct Inbox {
    queue: ArrayQueue<Message>,
    /// What the worker took out of its queue to make room: older than what is in the queue now. Nobody else
    /// locks it before the worker has ended, so the worker never waits for the lock.
    set_aside: Mutex<VecDeque<Message>>,
    /// Its length.
    set_aside_count: AtomicUsize,
    /// What others sent while the queue was full: newer than what is in the queue. Bounded, since they wait until
    /// this is empty: a worker before its handlers run again, a thread before it sends another part or answer. If
    /// the worker is silent, it is bounded by the budget: see [`Inbox::patience`].
    overflow: Mutex<VecDeque<Message>>,
    /// Its length. While it is not 0, what comes goes behind it.
    overflow_count: AtomicUsize,
    /// How much memory both take.
    beyond_bytes: AtomicUsize,
    /// The worker is to take all there is in its next round. Since it last asked, its handlers have sent something, or
    /// those of others more than the queue takes, or somebody has gone on without waiting.
    takes_all: AtomicBool,
    /// The worker's handlers have sent more to others than there was room for: it is to wait for them.
    has_overflowed_others: AtomicBool,
    doorbell: Doorbell,
    /// The worker's thread has ended.
    closed: AtomicBool,
    /// The worker is to drain. Not a message, so that asking never has to wait for a place in the queue.
    drain_asked: AtomicBool,
    /// The worker was asked whether it runs, and has not shown it yet.
    pinged: AtomicBool,
    silence: Silence,
    /// A worker that is silent for longer is given up, if the budget is used up.
    given_up_ns_min: u64,
    room: Arc<Room>,
    /// Connections that this worker serves or is about to serve.
    load: AtomicU64,
}

impl Inbox {
    pub(crate) fn new(doorbell: Doorbell, room: Arc<Room>, given_up_ns_min: u64) -> Inbox {
        Inbox {
            queue: ArrayQueue::new(CAPACITY),
            set_aside: Mutex::default(),
            set_aside_count: AtomicUsize::new(0),
            overflow: Mutex::default(),
            overflow_count: AtomicUsize::new(0),
            beyond_bytes: AtomicUsize::new(0),
            takes_all: AtomicBool::new(false),
            has_overflowed_others: AtomicBool::new(false),
            doorbell,
            closed: AtomicBool::new(false),
            drain_asked: AtomicBool::new(false),
            pinged: AtomicBool::new(false),
            silence: Silence::default(),
            given_up_ns_min,
            room,
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

    /// Delivers a message and wakes the worker. Returns the message if the worker has ended.
    ///
    /// It does not wait: the sender may hold a lock for which handlers wait, of this worker or another. What is
    /// too much for the queue goes to the overflow. A worker waits after its handlers, in
    /// [`Inbox::wait_for_others`], a thread before it sends a part or an answer, in `Deferred::has_room`. (What
    /// else threads send is bounded by the answers that are owed, and by the connections.)
    pub(crate) fn send(self: &Arc<Self>, message: Message) -> Result<(), Message> {
        if self.is_closed() {
            return Err(message);
        }
        let mut message = message;
        // Ends when there is room, which the worker itself makes.
        loop {
            // Acquire: pairs with the release in `push_overflow` and `take_overflow`.
            if self.overflow_count.load(Ordering::Acquire) == 0 {
                match self.queue.push(message) {
                    Ok(()) => break,
                    Err(back) => message = back,
                }
            }
            if !self.is_own() {
                self.push_overflow(message);
                break;
            }
            self.make_room();
        }
        self.empty_if_closed();
        if self.is_own() {
            // Relaxed: the same thread asks.
            self.takes_all.store(true, Ordering::Relaxed);
        }
        self.doorbell.ring();
        Ok(())
    }

    /// Whether there are more messages than the queue takes. (To ask whether it is full took its positions from those
    /// who use it, and a tenth of a thread's rate.)
    #[inline]
    pub(super) fn is_overfull(&self) -> bool {
        // Relaxed: one more or less does not matter.
        self.overflow_count.load(Ordering::Relaxed) > 0
    }

    /// Whether somebody's patience was lost, and the worker is still silent.
    pub(super) fn is_given_up(&self) -> bool {
        self.silence.is_given_up()
    }

    /// For those who wait for the worker, to be asked again and again. They wait while it looks into its inbox at
    /// least so often.
    #[cold]
    pub(super) fn patience(self: &Arc<Self>, silence_ns_max: u64) -> Patience {
        let now_ns = clock::now_ns();
        let silence_ns = self.silence.lasts_ns(now_ns);
        if silence_ns >= silence_ns_max / 2 && self.is_empty() {
            // It may have had no reason to look.
            let _ = self.try_send(Message::Ping);
        }
        if silence_ns < silence_ns_max {
            return Patience::Left;
        }
        if silence_ns >= TOLD_NS_MIN && NOT_WAITED_FOR.due(now_ns).is_some() {
            let ms = TOLD_NS_MIN / 1_000_000;
            log::warn!(
                "a handler has not returned for {ms} ms, while others wait to answer over its worker: does it wait for a lock that one of them holds?"
            );
        }
        if !self
            .room
            .is_overdrawn_by(self.beyond_bytes.load(Ordering::Relaxed))
        {
            // Release: as in `push_overflow`.
            self.takes_all.store(true, Ordering::Release);
            if self.overflow_count.load(Ordering::Relaxed) == 0 {
                // So that what comes goes behind it, where it is counted.
                self.push_overflow(Message::Ping);
            }
            return Patience::Over;
        }
        if silence_ns < self.given_up_ns_min {
            return Patience::Left;
        }
        self.silence.give_up(self.given_up_ns_min);
        Patience::Lost
    }

    #[cold]
    fn push_overflow(self: &Arc<Self>, message: Message) {
        self.beyond_bytes
            .fetch_add(message.bytes(), Ordering::Relaxed);
        let mut overflow = lock(&self.overflow);
        overflow.push_back(message);
        // Release: pairs with the acquire in `send`.
        self.overflow_count.store(overflow.len(), Ordering::Release);
        drop(overflow);
        let is_on_worker = with_own(|own| {
            // Relaxed: the same thread asks.
            own.has_overflowed_others.store(true, Ordering::Relaxed);
            true
        });
        if !is_on_worker {
            return;
        }
        // Release: pairs with the acquire in `count_at_once`.
        self.takes_all.store(true, Ordering::Release);
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
        let message = overflow.pop_front()?;
        // Release: as in `push_overflow`.
        self.overflow_count.store(overflow.len(), Ordering::Release);
        self.beyond_bytes
            .fetch_sub(message.bytes(), Ordering::Relaxed);
        Some(message)
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
            // Ends when the other worker's handlers have returned and it takes its messages, or with that worker;
            // or if they do not return.
            while other.overflow_count.load(Ordering::Acquire) > 0
                && !other.is_closed()
                && other.patience(FULL_NS_MAX) == Patience::Left
            {
                self.make_room();
                other.doorbell.ring();
                std::thread::sleep(Duration::from_micros(pause_us));
                pause_us = (pause_us * 2).min(1_000);
            }
        }
    }

    /// For the worker: how many messages there are, if it is to take all of them in this round; else 0.
    pub(super) fn count_at_once(&self) -> usize {
        // Relaxed: what comes meanwhile is for the next time.
        let set_aside = self.set_aside_count.load(Ordering::Relaxed);
        if !self.takes_all.load(Ordering::Relaxed) && set_aside == 0 {
            return 0;
        }
        // Acquire: pairs with the release in `push_overflow`.
        self.takes_all.swap(false, Ordering::Acquire);
        set_aside + self.queue.len() + self.overflow_count.load(Ordering::Relaxed)
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
            let Some(message) = self.queue.pop().or_else(|| self.take_overflow()) else {
                break;
            };
            self.beyond_bytes
                .fetch_add(message.bytes(), Ordering::Relaxed);
            set_aside.push_back(message);
        }
        self.set_aside_count
            .store(set_aside.len(), Ordering::Relaxed);
    }

    /// As [`Inbox::send`], but returns the message when the queue is full.
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
        self.silence.end();
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
        let message = set_aside.pop_front()?;
        self.set_aside_count
            .store(set_aside.len(), Ordering::Relaxed);
        self.beyond_bytes
            .fetch_sub(message.bytes(), Ordering::Relaxed);
        Some(message)
    }

    /// For the worker: gives back what a burst has left.
    pub(super) fn release_memory(&self) {
        for messages in [&self.set_aside, &self.overflow] {
            lock(messages).shrink_to_fit();
        }
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
