//! What other threads send to a worker, and how they wake it.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
use std::time::Duration;

use crossbeam::queue::ArrayQueue;

use super::deferred::Answer;
use crate::shm::{ServerEnd, doorbell};
use crate::uring::DoorbellMemory;

/// Messages that may wait. Whoever finds the queue full waits; the worker never does.
const CAPACITY: usize = 512;

/// A futex word on which one worker sleeps. Clients may overwrite it; that the worker sleeps is kept
/// in memory of our own too, so that it hears this process's threads all the same.
pub(crate) struct Doorbell {
    word: DoorbellMemory,
    asleep: AtomicBool,
}

impl Doorbell {
    pub(crate) fn new(word: DoorbellMemory) -> Doorbell {
        Doorbell {
            word,
            asleep: AtomicBool::new(false),
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
        // SeqCst: pairs with the fence in `doorbell::fall_asleep`. Either the worker's second look
        // sees what was published, or this load sees that it sleeps.
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::AcqRel) {
            doorbell::wake(self.word());
        }
    }

    /// The worker announces its sleep; it must look at all its sources once more before it waits.
    pub(super) fn fall_asleep(&self) {
        self.asleep.store(true, Ordering::Relaxed);
        doorbell::fall_asleep(self.word());
    }

    pub(super) fn wake_up(&self) {
        self.asleep.store(false, Ordering::Relaxed);
        doorbell::wake_up(self.word());
    }
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
}

/// The way into a worker.
pub(crate) struct Inbox {
    queue: ArrayQueue<Message>,
    doorbell: Doorbell,
    /// The worker's thread has ended.
    closed: AtomicBool,
    /// Set without the queue, so that it can neither be lost nor wait.
    drain_asked: AtomicBool,
    /// Connections that this worker serves or is about to.
    load: AtomicU64,
}

impl Inbox {
    pub(crate) fn new(doorbell: Doorbell) -> Inbox {
        Inbox {
            queue: ArrayQueue::new(CAPACITY),
            doorbell,
            closed: AtomicBool::new(false),
            drain_asked: AtomicBool::new(false),
            load: AtomicU64::new(0),
        }
    }

    pub(crate) fn doorbell(&self) -> &Doorbell {
        &self.doorbell
    }

    /// Delivers a message and wakes the worker. Waits while the queue is full, so it must not be
    /// called by a worker for itself. Gives the message back if the worker has ended.
    pub(crate) fn send(&self, message: Message) -> Result<(), Message> {
        let mut message = message;
        let mut pause_us = 1;
        // Ends when there is room or the worker is gone; both come without our help.
        loop {
            if self.is_closed() {
                return Err(message);
            }
            match self.queue.push(message) {
                Ok(()) => break,
                Err(back) => message = back,
            }
            self.doorbell.ring();
            std::thread::sleep(Duration::from_micros(pause_us));
            pause_us = (pause_us * 2).min(1_000);
        }
        self.doorbell.ring();
        Ok(())
    }

    /// As [`Inbox::send`], but gives the message back instead of waiting. For workers.
    pub(super) fn try_send(&self, message: Message) -> Result<(), Message> {
        self.queue.push(message)?;
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

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub(super) fn take(&self) -> Option<Message> {
        self.queue.pop()
    }

    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        while self.queue.pop().is_some() {}
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
