//! A worker's inbox: what other threads send to it, and how they wake it.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::deferred::Answer;
use super::rarely::Rarely;
use super::room::Room;
use super::silence::Silence;
use crate::shm::{ServerEnd, doorbell};
use crate::sys::clock;
use crate::sys::queue::Queue;
use crate::uring::DoorbellMemory;

/// How many messages may wait. Who finds the queue full waits, see [`Inbox::send`].
const CAPACITY: usize = 512;
/// Nobody waits for a place in the inbox of a worker that has not looked into it for so long: its handler may wait for
/// a lock of the one who waits.
pub(super) const FULL_NS_MAX: u64 = 10_000_000;
/// But what is sent nevertheless grows no faster than this for each millisecond without a look: a tenth of what the
/// worker takes in that time. If only its handlers are slow, what it finds then keeps nobody else waiting.
const BYTES_PER_MS: u64 = 100_000;
/// With so much beyond its queue, a worker looks before more than one handler has run for each connection: what they
/// send, and what is sent meanwhile, would use up the budget in one round.
const PRESSING_BYTES: usize = 1024 * 1024;
/// The log tells of one that has not for so long: handlers should be quicker.
const TOLD_NS_MIN: u64 = 100_000_000;
/// If the budget is used up, those who wait give up after this long without a look.
const GIVEN_UP_NS_MIN: u64 = 1_000_000_000;

/// When the log may say again that a worker was not waited for.
static NOT_WAITED_FOR: Rarely = Rarely::new();

thread_local! {
    /// The inbox of the worker that runs on this thread.
    static OWN: RefCell<Option<Arc<Inbox>>> = const { RefCell::new(None) };
    /// The inboxes of other workers to which this one's handlers have sent more than there was room for. With each, how
    /// many messages are taken out of its overflow by the time that the last of these is.
    static OVERFLOWED: RefCell<Vec<(Arc<Inbox>, u64)>> = const { RefCell::new(Vec::new()) };
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
    /// It gives up: the worker has long been silent, with the budget used up.
    Lost,
}

/// The way into a worker.
pub(crate) struct Inbox {
    queue: Queue<Message>,
    /// What was sent while the queue was full: newer than what is in the queue. Bounded, since others wait: a worker,
    /// before its handlers run again, until what they have sent is taken, a thread, before it sends another part or
    /// answer, until this is empty. If the worker is silent, it is bounded by the budget: see [`Inbox::patience`].
    overflow: Mutex<VecDeque<Message>>,
    /// Its length. While it is not 0, what comes goes behind it.
    overflow_count: AtomicUsize,
    /// How many messages were ever taken out of it. Changed under its lock.
    overflow_taken: AtomicU64,
    /// How much memory it takes, with what the worker has taken from there and not settled.
    overflow_bytes: AtomicUsize,
    /// The latter alone. Only the worker uses it.
    taken_bytes: AtomicUsize,
    /// The worker is to take all there is in its next round. Since it last asked, its handlers have sent something, or
    /// those of others more than the queue takes, or somebody has gone on without waiting.
    takes_all: AtomicBool,
    /// There is much in the overflow, or in another's to which the worker's handlers have sent: it is to look into its
    /// inbox soon, or to wait.
    is_pressed: AtomicBool,
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
    room: Arc<Room>,
    /// Connections that this worker serves or is about to serve.
    load: AtomicU64,
}

impl Inbox {
    pub(crate) fn new(doorbell: Doorbell, room: Arc<Room>) -> Inbox {
        Inbox {
            queue: Queue::new(CAPACITY),
            overflow: Mutex::default(),
            overflow_count: AtomicUsize::new(0),
            overflow_taken: AtomicU64::new(0),
            overflow_bytes: AtomicUsize::new(0),
            taken_bytes: AtomicUsize::new(0),
            takes_all: AtomicBool::new(false),
            is_pressed: AtomicBool::new(false),
            has_overflowed_others: AtomicBool::new(false),
            doorbell,
            closed: AtomicBool::new(false),
            drain_asked: AtomicBool::new(false),
            pinged: AtomicBool::new(false),
            silence: Silence::default(),
            room,
            load: AtomicU64::new(0),
        }
    }

    pub(crate) fn doorbell(&self) -> &Doorbell {
        &self.doorbell
    }

    pub(super) fn room(&self) -> &Room {
        &self.room
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
    /// `Worker::wait_for_others`, a thread before it sends a part or an answer, in `Deferred::has_room`. (What
    /// else threads send is bounded by the answers that are owed, and by the connections.)
    pub(crate) fn send(self: &Arc<Self>, message: Message) -> Result<(), Message> {
        if self.is_closed() {
            return Err(message);
        }
        // Acquire: pairs with the release in `push_overflow` and `take_overflow`.
        let pushed = match self.overflow_count.load(Ordering::Acquire) {
            0 => self.queue.push(message),
            _ => Err(message),
        };
        if let Err(message) = pushed {
            self.push_overflow(message);
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
    /// least so often. If it does not, they go on, within the budget; threads one by one, by [`BYTES_PER_MS`]
    /// (`is_paced`). A worker has other clients, who would wait with it.
    #[cold]
    pub(super) fn patience(self: &Arc<Self>, silence_ns_max: u64, is_paced: bool) -> Patience {
        // It is not waited for anew because others were meanwhile.
        if self.is_given_up() {
            return Patience::Lost;
        }
        let now_ns = clock::now_ns();
        let silence_ns = self.silence.lasts_ns(now_ns);
        if silence_ns >= silence_ns_max / 2 && !self.is_overfull() {
            // It may have had no reason to look.
            match self.queue.count() {
                0 => drop(self.try_send(Message::Ping)),
                // What is not written yet is none either.
                _ => self.doorbell.ring(),
            }
        }
        if silence_ns < silence_ns_max {
            return Patience::Left;
        }
        if silence_ns >= TOLD_NS_MIN && NOT_WAITED_FOR.due(now_ns).is_some() {
            let ms = TOLD_NS_MIN / 1_000_000;
            log::warn!(
                "a worker's handlers have taken {ms} ms, while others wait to answer over it: is one slow, or does it wait for a lock that one of them holds?"
            );
        }
        if self.room.is_overdrawn_by(0) {
            if silence_ns < GIVEN_UP_NS_MIN {
                return Patience::Left;
            }
            self.silence.give_up(GIVEN_UP_NS_MIN);
            return Patience::Lost;
        }
        let bytes_max = BYTES_PER_MS * silence_ns / 1_000_000;
        match !is_paced || self.overflow_bytes.load(Ordering::Relaxed) as u64 <= bytes_max {
            true => Patience::Over,
            false => Patience::Left,
        }
    }

    /// For a thread that sends nevertheless.
    #[cold]
    pub(super) fn goes_on(self: &Arc<Self>) {
        // Release: as in `push_overflow`.
        self.takes_all.store(true, Ordering::Release);
        if !self.is_overfull() {
            // So that what comes goes behind it, where it is counted.
            self.push_overflow(Message::Ping);
        }
    }

    #[cold]
    fn push_overflow(self: &Arc<Self>, message: Message) {
        let bytes = message.bytes();
        let before = self.overflow_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.room.expect(bytes as u64);
        let mut overflow = self.overflow();
        overflow.push_back(message);
        // Release: pairs with the acquire in `send`.
        self.overflow_count.store(overflow.len(), Ordering::Release);
        // Relaxed: under the lock.
        let taken_by_then = self.overflow_taken.load(Ordering::Relaxed) + overflow.len() as u64;
        drop(overflow);
        let presses = before + bytes > PRESSING_BYTES;
        let press = |inbox: &Inbox| {
            if presses {
                // Relaxed: a worker that sees it late looks late.
                inbox.is_pressed.store(true, Ordering::Relaxed);
            }
        };
        press(self);
        let is_others = with_own(|own| {
            let is_others = !std::ptr::eq(own, &**self);
            if is_others {
                press(own);
                // Relaxed: the same thread asks.
                own.has_overflowed_others.store(true, Ordering::Relaxed);
            }
            is_others
        });
        if !is_others {
            return;
        }
        // Release: pairs with the acquire in `count_at_once`.
        self.takes_all.store(true, Ordering::Release);
        OVERFLOWED.with_borrow_mut(|all| {
            match all.iter_mut().find(|(one, _)| Arc::ptr_eq(one, self)) {
                Some((_, last)) => *last = taken_by_then,
                None => all.push((self.clone(), taken_by_then)),
            }
        });
    }

    /// For when the queue is empty.
    fn take_overflow(&self) -> Option<Message> {
        if self.overflow_count.load(Ordering::Acquire) == 0 {
            return None;
        }
        let mut overflow = self.overflow();
        // The queue may have been filled since the caller found it empty, and what is in it is older.
        if let Some(message) = self.queue.pop() {
            return Some(message);
        }
        let message = overflow.pop_front()?;
        // Release: as in `push_overflow`.
        self.overflow_count.store(overflow.len(), Ordering::Release);
        // Relaxed: a count, which orders nothing else.
        self.overflow_taken.fetch_add(1, Ordering::Relaxed);
        self.taken_bytes
            .fetch_add(message.bytes(), Ordering::Relaxed);
        Some(message)
    }

    /// For the worker, between two handlers: whether it had better do other things first.
    #[inline(always)]
    pub(super) fn is_pressed(&self) -> bool {
        self.is_pressed.load(Ordering::Relaxed)
    }

    /// For the worker: what it has taken is charged to the budget, and it looks or waits next.
    #[inline]
    pub(super) fn has_settled(&self) {
        if self.is_pressed() {
            self.is_pressed.store(false, Ordering::Relaxed);
        }
        let taken = self.taken_bytes.load(Ordering::Relaxed);
        if taken > 0 {
            self.taken_bytes.fetch_sub(taken, Ordering::Relaxed);
            self.overflow_bytes.fetch_sub(taken, Ordering::Relaxed);
            self.room.no_longer_expect(taken as u64);
        }
    }

    /// For the worker, while no handler runs: whether it is to wait until others have taken what its handlers have
    /// sent them and was too much for their queues.
    #[inline]
    pub(super) fn waits_for_others(&self) -> bool {
        self.has_overflowed_others.load(Ordering::Relaxed) && self.waits_for_overflowed()
    }

    #[cold]
    fn waits_for_overflowed(&self) -> bool {
        let waits = OVERFLOWED.with_borrow_mut(|all| {
            // Until the other worker's handlers have returned and it has taken these messages, or it has ended; or if
            // they do not return. Not until its overflow is empty: threads that send as fast as they may would keep
            // this worker waiting, and its clients with it.
            all.retain(|(other, taken_by_then)| {
                // Relaxed: a worker that sees it late waits a little longer.
                let waits = other.overflow_taken.load(Ordering::Relaxed) < *taken_by_then
                    && !other.is_closed()
                    && other.patience(FULL_NS_MAX, false) == Patience::Left;
                if waits {
                    other.doorbell.ring();
                }
                waits
            });
            !all.is_empty()
        });
        self.has_overflowed_others.store(waits, Ordering::Relaxed);
        waits
    }

    /// For the worker: how many messages there are, if it is to take all of them in this round; else 0.
    pub(super) fn count_at_once(&self) -> usize {
        // Relaxed: what comes meanwhile is for the next time.
        if !self.takes_all.load(Ordering::Relaxed) {
            return 0;
        }
        // Acquire: pairs with the release in `push_overflow`.
        self.takes_all.swap(false, Ordering::Acquire);
        self.queue.count() + self.overflow_count.load(Ordering::Relaxed)
    }

    fn overflow(&self) -> MutexGuard<'_, VecDeque<Message>> {
        self.overflow.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this thread is the inbox's worker.
    fn is_own(&self) -> bool {
        with_own(|own| std::ptr::eq(own, self))
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
        if self.try_send(Message::Ping).is_err() {
            // The queue is full, but it may be that nothing in it is written.
            self.doorbell.ring();
        }
        true
    }

    /// The worker shows that it runs: it has looked into its queue.
    pub(super) fn pong(&self) {
        self.silence.end();
        self.pinged.store(false, Ordering::Relaxed);
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.overflow_count.load(Ordering::Relaxed) == 0
    }

    /// For the worker, of an empty inbox: whether somebody has claimed a place in the queue and not written there.
    #[inline]
    pub(super) fn awaits_some(&self) -> bool {
        self.queue.count() > 0
    }

    pub(super) fn take(&self) -> Option<Message> {
        self.queue.pop().or_else(|| self.take_overflow())
    }

    /// For the worker: gives back what a burst has left.
    pub(super) fn release_memory(&self) {
        self.overflow().shrink_to_fit();
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

#[cfg(test)]
mod tests {
    use super::*;

    impl Inbox {
        /// Fills the queue behind a thread that is kept from running while it sends.
        pub(crate) fn fill_behind_one_not_written(&self) {
            self.queue.claim();
            while self.try_send(Message::Ping).is_ok() {}
        }

        pub(crate) fn waiting(&self) -> usize {
            self.queue.count()
        }
    }

    #[test]
    fn a_worker_that_could_take_nothing_is_asked_to_look_before_it_counts_as_silent() {
        let room = Arc::new(Room::new(1 << 20));
        let inbox = Arc::new(Inbox::new(Doorbell::private(), room));
        inbox.queue.claim();
        inbox.doorbell.fall_asleep();
        assert!(inbox.is_empty());
        for _ in 0..2 {
            inbox.patience(1, false);
        }
        let word = inbox.doorbell.word().load(Ordering::Relaxed);
        assert_eq!(word, doorbell::AWAKE);
    }

    /// Threads that send as fast as they may kept the other worker's overflow from ever being empty.
    #[test]
    fn a_worker_waits_until_what_it_has_sent_is_taken_and_no_longer() {
        let room = Arc::new(Room::new(1 << 20));
        let new = || Arc::new(Inbox::new(Doorbell::private(), room.clone()));
        let (own, other) = (new(), new());
        let worker = {
            let other = other.clone();
            move || {
                own.own();
                for _ in 0..CAPACITY {
                    other.send(Message::Ping).unwrap();
                }
                assert!(!own.waits_for_others());
                other.send(Message::Ping).unwrap();
                std::thread::scope(|scope| {
                    scope.spawn(|| other.send(Message::Ping).unwrap());
                });
                for _ in 0..CAPACITY {
                    assert!(other.take().is_some());
                }
                other.pong();
                assert!(own.waits_for_others());
                assert!(other.take().is_some());
                other.pong();
                assert!(!own.waits_for_others());
            }
        };
        std::thread::spawn(worker).join().unwrap();
        assert!(other.is_overfull(), "the thread's");
    }
}
