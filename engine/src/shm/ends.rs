//! Both rings of a connection as one side has them: how it sleeps and is woken, and how it says that it has
//! gone.
//!
//! Each side has three flags. WAITING is the futex word on which a client sleeps: not 0 while it wants to be woken
//! when there is a record; then it says on which CPU it is. WANTS_ROOM: the side also wants to be woken when there is
//! room. CLOSED: it has gone.
//! (A worker sleeps on its doorbell instead; it sets WAITING on cold rings, so that their clients ring.)

use std::sync::Arc;
use std::time::Duration;

use super::consumer::{Consumer, FIRST_CPU, NOBODY};
use super::layout::{FLAG_CLOSED, FLAG_WAITING, FLAG_WANTS_ROOM, RingPlaces};
use super::producer::Producer;
use super::sync::{AtomicU32, Ordering, Segment, affinity, fence, futex};

/// Wakes everybody who sleeps on a client's word: the client, or its watch.
const SLEEPERS: u32 = i32::MAX as u32;

/// Both rings as one side sees them.
#[derive(Debug)]
pub(crate) struct Ends {
    pub(crate) segment: Arc<Segment>,
    pub(crate) tx: Producer,
    pub(crate) rx: Consumer,
    /// The positions in both rings when the other side was last told of something.
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

    /// After records were produced or consumed: whether the other side wants to be woken.
    #[inline]
    pub(crate) fn peer_needs_waking(&self) -> bool {
        // SeqCst: pairs with the fences in `Consumer::wait_on` and `Producer::want_room`: either this sees
        // the flag, or the sleeper's second look sees what was produced or consumed.
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

    /// Publishes our position, and wakes the other side if it sleeps (see [`Ends::sleep`]) and there is anything
    /// new. Without something new it must not be woken: a client that waits for room would look, ring and be
    /// woken again without end. Returns the CPU on which it slept, if it did and has said so.
    #[inline]
    pub(crate) fn wake_peer(&mut self) -> Option<u32> {
        self.rx.publish();
        let now = (self.tx.position(), self.rx.position());
        let mut slept_on = None;
        if now != self.told && self.peer_needs_waking() {
            let word = self.peer_waiting_word();
            // Release: pairs with the acquire in `Sleeper::sleep`.
            let waiting = word.swap(NOBODY, Ordering::AcqRel);
            if waiting != NOBODY {
                futex::wake(word, SLEEPERS);
            }
            slept_on = waiting.checked_sub(FIRST_CPU);
        }
        self.told = now;
        slept_on
    }

    /// Sleeps until there may be a record, room to produce if `for_room`, or the other side has gone; for at most
    /// `limit`. `tell` is called once the sleep is announced, to wake the other side: it may itself wait for
    /// what we did before.
    pub(crate) fn sleep(
        &self,
        for_room: bool,
        limit: Duration,
        tell: impl FnOnce(),
    ) -> futex::Waited {
        let waited = match self.announce(for_room, tell) {
            None => futex::Waited::Changed,
            Some(waiting) => futex::wait(self.rx.waiting_word(), waiting, Some(limit)),
        };
        self.wake_up(for_room);
        waited
    }

    /// Announces a sleep on the waiting word. Returns true if there is no reason to sleep any more.
    pub(crate) fn fall_asleep(&self, for_room: bool, tell: impl FnOnce()) -> bool {
        self.announce(for_room, tell).is_none()
    }

    /// As [`Ends::fall_asleep`]. Returns what the word says while there is a reason to sleep.
    fn announce(&self, for_room: bool, tell: impl FnOnce()) -> Option<u32> {
        let waiting = self.rx.wait_on(affinity::current_cpu());
        if for_room {
            self.tx.want_room(true);
        }
        tell();
        // The second look, for what was there before the other side could see that we sleep: it does not
        // announce that.
        let awaited =
            self.rx.has_record() || self.peer_closed() || for_room && self.tx.consumer_has_moved();
        (!awaited).then_some(waiting)
    }

    /// Takes back what [`Ends::fall_asleep`] announced.
    pub(crate) fn wake_up(&self, for_room: bool) {
        self.rx.wait_no_more();
        if for_room {
            self.tx.want_room(false);
        }
    }

    /// Tells the other side that we have gone.
    pub(crate) fn close(&self) {
        // Release: pairs with the acquire in `peer_closed`, so that what was produced before is seen.
        self.segment
            .word32(self.tx.places.producer_flags + FLAG_CLOSED)
            .store(1, Ordering::Release);
    }

    /// As [`Ends::close`], and wakes the other side if it sleeps (see [`Ends::sleep`]).
    pub(crate) fn close_and_wake(&self) {
        self.close();
        // SeqCst: pairs with the fence in `Consumer::wait_on`: either the sleeper's second look sees that
        // we have gone, or we clear its flag.
        fence(Ordering::SeqCst);
        let word = self.peer_waiting_word();
        word.store(NOBODY, Ordering::Release);
        futex::wake(word, SLEEPERS);
    }

    /// Notes in the other side's place that it has gone: its process has ended without saying so.
    pub(crate) fn peer_is_gone(&self) {
        let flag = self.segment.word32(self.peer_closed_at());
        // Release: as in `close`.
        flag.store(1, Ordering::Release);
    }

    /// Where in the segment the other side says that it has gone.
    pub(crate) fn peer_closed_at(&self) -> usize {
        self.rx.places.producer_flags + FLAG_CLOSED
    }

    /// Whether the other side has said that it has gone.
    #[inline]
    pub(crate) fn peer_closed(&self) -> bool {
        let flag = self.segment.word32(self.peer_closed_at());
        // Acquire: pairs with the releases in `close` and `peer_is_gone`.
        flag.load(Ordering::Acquire) != 0
    }
}
