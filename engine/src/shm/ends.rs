//! Both rings as one side sees them: how it sleeps, is woken, and says that it has gone.

use std::sync::Arc;
use std::time::Duration;

use super::consumer::Consumer;
use super::layout::{FLAG_CLOSED, FLAG_WAITING, FLAG_WANTS_ROOM, RingPlaces};
use super::producer::Producer;
use super::sync::{AtomicU32, Ordering, Segment, fence, futex};

/// All who sleep on a client's word: itself, and whoever watches for it.
const SLEEPERS: u32 = i32::MAX as u32;

/// Both rings as one side sees them.
#[derive(Debug)]
pub(crate) struct Ends {
    pub(crate) segment: Arc<Segment>,
    pub(crate) tx: Producer,
    pub(crate) rx: Consumer,
    /// How far both rings were when the other side was last told.
    told: (u64, u64),
}

impl Ends {
    pub(super) fn new(
        segment: Arc<Segment>,
        tx: &'static RingPlaces,
        rx: &'static RingPlaces,
    ) -> Ends {
        Ends {
            tx: Producer::new(segment.clone(), tx),
            rx: Consumer::new(segment.clone(), rx),
            segment,
            told: (0, 0),
        }
    }

    /// After records were produced or consumed: whether the other side sleeps and must be told.
    #[inline]
    pub(crate) fn peer_needs_waking(&self) -> bool {
        // SeqCst: pairs with the fences in `set_waiting` and `want_room`.
        fence(Ordering::SeqCst);
        let flags = self.tx.places.consumer_flags;
        debug_assert_eq!(flags, self.rx.places.producer_flags);
        self.segment
            .word32(flags + FLAG_WAITING)
            .load(Ordering::Relaxed)
            != 0
            || self
                .segment
                .word32(flags + FLAG_WANTS_ROOM)
                .load(Ordering::Relaxed)
                != 0
    }

    /// The word on which the other side sleeps.
    pub(crate) fn peer_waiting_word(&self) -> &AtomicU32 {
        self.segment
            .word32(self.tx.places.consumer_flags + FLAG_WAITING)
    }

    /// Tells the other side how far we are, and wakes it if it sleeps (see [`Ends::sleep`]) and there is
    /// anything new: one that waits for room would look, ring, and be woken again without end.
    #[inline]
    pub(crate) fn wake_peer(&mut self) {
        self.rx.publish();
        let now = (self.tx.position(), self.rx.position());
        if now != self.told && self.peer_needs_waking() {
            let word = self.peer_waiting_word();
            if word.swap(0, Ordering::AcqRel) != 0 {
                futex::wake(word, SLEEPERS);
            }
        }
        self.told = now;
    }

    /// Sleeps until there may be a record, room to produce if `for_room`, or the other side has
    /// gone; for at most `limit`. `tell` is called once the sleep is announced: the other side may
    /// itself wait for what we did before.
    pub(crate) fn sleep(
        &self,
        for_room: bool,
        limit: Duration,
        tell: impl FnOnce(),
    ) -> futex::Waited {
        let waited = match self.fall_asleep(for_room, tell) {
            true => futex::Waited::Changed,
            false => futex::wait(self.rx.waiting_word(), 1, Some(limit)),
        };
        self.wake_up(for_room);
        waited
    }

    /// Announces a sleep on the waiting word; `true`: there is no reason for it any more.
    pub(crate) fn fall_asleep(&self, for_room: bool, tell: impl FnOnce()) -> bool {
        self.rx.set_waiting(true);
        if for_room {
            self.tx.want_room(true);
        }
        tell();
        // The second look: for all that the other side would not announce, since it was there before
        // the other side could see that we sleep.
        self.rx.has_record() || self.peer_closed() || for_room && self.tx.consumer_has_moved()
    }

    /// Takes back what [`Ends::fall_asleep`] announced.
    pub(crate) fn wake_up(&self, for_room: bool) {
        self.rx.set_waiting(false);
        if for_room {
            self.tx.want_room(false);
        }
    }

    /// Tells the other side that we have gone.
    pub(crate) fn close(&self) {
        // Release: pairs with the acquire in `peer_closed`: what was produced before is seen.
        self.segment
            .word32(self.tx.places.producer_flags + FLAG_CLOSED)
            .store(1, Ordering::Release);
    }

    /// As [`Ends::close`], and wakes the other side if it sleeps (see [`Ends::sleep`]).
    pub(crate) fn close_and_wake(&self) {
        self.close();
        // SeqCst: pairs with the fence in `Consumer::set_waiting`: either the sleeper's second look
        // sees that we have gone, or we take its flag back.
        fence(Ordering::SeqCst);
        let word = self.peer_waiting_word();
        word.store(0, Ordering::Release);
        futex::wake(word, SLEEPERS);
    }

    /// The other side's process has ended without saying so.
    pub(crate) fn peer_is_gone(&self) {
        let flag = self.segment.word32(self.peer_closed_at());
        flag.store(1, Ordering::Release);
    }

    /// Where the other side says that it is gone.
    pub(crate) fn peer_closed_at(&self) -> usize {
        self.rx.places.producer_flags + FLAG_CLOSED
    }

    /// Whether the other side has said that it is gone.
    #[inline]
    pub(crate) fn peer_closed(&self) -> bool {
        let flag = self.segment.word32(self.peer_closed_at());
        flag.load(Ordering::Acquire) != 0
    }
}
