//! What other threads send to a worker, and how they wake it.

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

/// Messages that may wait. Whoever finds the queue full waits, see [`Inbox::send`].
const CAPACITY: usize = 512;

thread_local! {
    /// The inbox of the worker that this thread is.
    static OWN: RefCell<Option<Arc<Inbox>>> = const { RefCell::new(None) };
}

/// A futex word on which one worker sleeps.
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

    /// A doorbell in private memory.
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

    /// Wakes the worker if it sleeps. What it is woken for has been published before.
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

/// Asks the inbox of the worker that this thread is. Of another thread, or one that ends: no.
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
    /// The answer to a request that a handler took away.
    Answer(Answer),
    /// Look here, to say that you run.
    Ping,
    /// Fail.
    #[cfg(test)]
    Panic,
}

/// The way into a worker.
pub(crate) struct Inbox {
    queue: ArrayQueue<Message>,
    /// What the worker took out of its queue to make room, older than what is there now. Nobody else
    /// touches it before the worker has ended.
    set_aside: Mutex<VecDeque<Message>>,
    /// How many those are.
    set_aside_count: AtomicUsize,
    doorbell: Doorbell,
    /// The worker's thread has ended.
    closed: AtomicBool,
    /// Set without the queue, so that it can neither be lost nor wait.
    drain_asked: AtomicBool,
    /// The worker was asked whether it runs and has not said so yet.
    pinged: AtomicBool,
    /// Connections that this worker serves or is about to.
    load: AtomicU64,
}

impl Inbox {
    pub(crate) fn new(doorbell: Doorbell) -> Inbox {
        Inbox {
            queue: ArrayQueue::new(CAPACITY),
            set_aside: Mutex::default(),
            set_aside_count: AtomicUsize::new(0),
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

    /// This thread is the inbox's worker from now on.
    pub(super) fn own(self: &Arc<Self>) {
        OWN.set(Some(self.clone()));
    }

    /// Whether this thread is a worker, of this server or another.
    pub(super) fn is_on_worker() -> bool {
        with_own(|_| true)
    }

    /// Delivers a message and wakes the worker. Waits while the queue is full. Gives the message back
    /// if the worker has ended.
    ///
    /// A worker that calls it, since a handler answers what it has taken away itself, makes room in its
    /// own queue meanwhile: so no worker waits for itself, nor two for each other.
    pub(crate) fn send(&self, message: Message) -> Result<(), Message> {
        let mut message = message;
        let mut pause_us = 1;
        // Ends when there is room or the worker is gone; both come without our help, or with it.
        loop {
            if self.is_closed() {
                return Err(message);
            }
            match self.queue.push(message) {
                Ok(()) => {
                    self.empty_if_closed();
                    break;
                }
                Err(back) => message = back,
            }
            if with_own(|own| own.make_room(self)) {
                continue;
            }
            self.doorbell.ring();
            std::thread::sleep(Duration::from_micros(pause_us));
            pause_us = (pause_us * 2).min(1_000);
        }
        self.doorbell.ring();
        Ok(())
    }

    /// For the worker: sets aside what is in its queue. Says whether that is the queue asked about.
    fn make_room(&self, asked: &Inbox) -> bool {
        let mut set_aside = self.lock_set_aside();
        // As many as there are now; those that come meanwhile are left.
        for _ in 0..self.queue.len() {
            set_aside.extend(self.queue.pop());
        }
        self.set_aside_count
            .store(set_aside.len(), Ordering::Relaxed);
        std::ptr::eq(self, asked)
    }

    fn lock_set_aside(&self) -> MutexGuard<'_, VecDeque<Message>> {
        self.set_aside
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// As [`Inbox::send`], but gives the message back instead of waiting. For workers.
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
        self.drain_asked.load(Ordering::Acquire)
    }

    /// Asks the worker whether it runs. False: it was asked before and has not answered.
    pub(crate) fn ping(&self) -> bool {
        // Relaxed here and in `pong`: nothing else is learnt from it.
        if self.pinged.swap(true, Ordering::Relaxed) && !self.is_closed() {
            self.doorbell.ring();
            return false;
        }
        // Where the queue is full, the worker has enough that makes it look.
        let _ = self.try_send(Message::Ping);
        true
    }

    /// The worker says that it runs, having looked into its queue.
    pub(super) fn pong(&self) {
        self.pinged.store(false, Ordering::Relaxed);
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.set_aside_count.load(Ordering::Relaxed) == 0
    }

    pub(super) fn take(&self) -> Option<Message> {
        self.take_set_aside().or_else(|| self.queue.pop())
    }

    /// After the worker's end by whoever empties the inbox, by several at once perhaps.
    fn take_set_aside(&self) -> Option<Message> {
        if self.set_aside_count.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let mut set_aside = self.lock_set_aside();
        let message = set_aside.pop_front();
        self.set_aside_count
            .store(set_aside.len(), Ordering::Relaxed);
        message
    }

    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.empty_if_closed();
    }

    /// Ends what came while the worker ended, which it will not take.
    fn empty_if_closed(&self) {
        // SeqCst: pairs with itself on the other thread: either who has just pushed sees that the worker
        // has ended, or the worker sees what was pushed.
        fence(Ordering::SeqCst);
        if self.is_closed() {
            while let Some(message) = self.take() {
                if let Message::Shm(end) = message {
                    end.ends.close_and_wake();
                }
            }
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    pub(crate) fn load(&self) -> u64 {
        self.load.load(Ordering::Relaxed)
    }

    pub(crate) fn load_changed(&self, by: i64) {
        self.load.fetch_add(by as u64, Ordering::Relaxed);
    }
}
