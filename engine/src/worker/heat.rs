//! Which rings are looked at in every round, and when the pages of the others go back.
//!
//! A ring that spoke lately is *hot*. One that got *cold* rings a bell when it has something; it is *warm*
//! while its pages are mapped still.

use super::Worker;
use super::connection::Phase;
use super::shm::ShmState;
use crate::sys::clock;
use crate::uring::Key;

/// Rings that are looked at in every round.
pub(super) const HOT_MAX: usize = 32;
/// A hot ring without a record for this long becomes cold.
const HOT_NS: u64 = 2_000_000;
/// With this many connections, cold ones give their pages back.
const CROWD: usize = 64;
/// A connection that moved this much gives its pages back when it gets cold, but for a short sleep of
/// the worker.
const LARGE_BYTES: u64 = 64 * 1024;
/// In a crowd they do when they have been silent for this long: where clients take turns, to unmap
/// and to fault took twenty times as long as the messages.
const WARM_NS: u64 = 100_000_000;
/// Or when more than this are warm: a page of each is resident.
const WARM_MAX: usize = 96;
/// How many are looked at for that at a time: each takes a system call.
const WARM_LOOKS: usize = 4;

impl Worker {
    /// Looks at a connection's ring in every round from now on.
    pub(super) fn heat(&mut self, key: Key) {
        let now_ns = self.now_ns;
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        let (Some(link), Some(ends)) = (&mut connection.shm, &connection.out.ends) else {
            return;
        };
        link.last_record_ns = now_ns;
        if link.hot {
            return;
        }
        link.hot = true;
        ends.rx.set_waiting(false);
        self.leave_warm(key);
        self.rings.hot.push(key);
        if self.rings.hot.len() > HOT_MAX {
            let oldest = self.rings.hot[0];
            self.cool(oldest, true);
        }
    }

    /// Asks a connection's client to ring from now on. False: it has something right now. Its pages go
    /// back at once if they are many and it gets cold for long, or if it is one of a crowd and has not spoken
    /// yet; and, many or in a crowd, if it stays silent while the worker is kept busy by others.
    fn cool(&mut self, key: Key, for_long: bool) -> bool {
        let crowd = self.rings.by_bit.len() >= CROWD;
        let Some(connection) = self.connections.get_mut(key) else {
            self.rings.hot.retain(|&hot| hot != key);
            return true;
        };
        // Not who counts as waiting because that is handled in this round: nobody would look at its ring then.
        let waiting = connection.waiting.as_ref();
        let waiting = waiting.is_some_and(|waiting| !waiting.is_empty());
        let (Some(link), Some(ends)) = (&mut connection.shm, &mut connection.out.ends) else {
            return true;
        };
        ends.rx.set_waiting(true);
        if connection.phase == Phase::Open && (ends.rx.has_record() || ends.peer_closed()) {
            let idle_without_us =
                !waiting && connection.out.staged.len() == connection.out.staged_sent;
            if idle_without_us {
                ends.rx.set_waiting(false);
                // Another takes its place among the hot ones only if there are too many.
                self.rings.hot.retain(|&hot| hot != key);
                self.rings.hot.push(key);
                return false;
            }
        }
        link.hot = false;
        self.rings.hot.retain(|&hot| hot != key);
        let has_spoken = ends.rx.position() > 0;
        if for_long && link.bytes_since >= LARGE_BYTES || crowd && !has_spoken {
            self.give_pages_back(key);
        } else if crowd || link.bytes_since >= LARGE_BYTES {
            debug_assert!(link.warm.is_none());
            if self.rings.warm.len() >= WARM_MAX {
                let some = self.next_warm();
                self.give_pages_back(some);
            }
            self.join_warm(key);
        }
        true
    }

    /// Puts a cold connection among the warm ones.
    fn join_warm(&mut self, key: Key) {
        let at = self.rings.warm.len();
        if let Some(link) = self.link(key) {
            link.warm = Some(at);
            self.rings.warm.push(key);
        }
    }

    /// Takes it out, if it is there. The last takes its place.
    pub(super) fn leave_warm(&mut self, key: Key) {
        let Some(at) = self.link(key).and_then(|link| link.warm.take()) else {
            return;
        };
        let removed = self.rings.warm.swap_remove(at);
        debug_assert_eq!(removed, key);
        if let Some(&moved) = self.rings.warm.get(at)
            && let Some(link) = self.link(moved)
        {
            link.warm = Some(at);
        }
    }

    fn link(&mut self, key: Key) -> Option<&mut ShmState> {
        self.connections.get_mut(key)?.shm.as_mut()
    }

    /// One of the warm ones, each in turn. There must be some.
    fn next_warm(&mut self) -> Key {
        let rings = &mut self.rings;
        rings.warm_next = (rings.warm_next + 1) % rings.warm.len();
        rings.warm[rings.warm_next]
    }

    /// Gives back the pages of rings that have been silent for long. Looks at a few of them.
    pub(super) fn give_old_pages_back(&mut self) {
        let now_ns = self.now_ns;
        for _ in 0..WARM_LOOKS.min(self.rings.warm.len()) {
            let key = self.next_warm();
            let silent_ns = |link: &mut ShmState| now_ns.saturating_sub(link.last_record_ns);
            if self.link(key).map_or(WARM_NS, silent_ns) >= WARM_NS {
                self.give_pages_back(key);
            }
        }
    }

    /// Gives a connection's pages back.
    fn give_pages_back(&mut self, key: Key) {
        self.leave_warm(key);
        if let Some(connection) = self.connections.get_mut(key)
            && let (Some(link), Some(ends)) = (&mut connection.shm, &connection.out.ends)
        {
            link.bytes_since = 0;
            ends.segment.forget_pages();
        }
    }

    /// The worker has slept for a while: buffers go back, and the pages of warm rings and of
    /// those that moved much.
    pub(super) fn release_memory(&mut self) {
        let first = std::mem::take(&mut self.rings.first_record);
        self.dispatcher.pool().give(first);
        self.dispatcher.pool().release();
        self.rings.first_record = self.dispatcher.pool().take();
        // None has spoken for as long.
        for index in 0..self.rings.by_bit.len() {
            if let Some(key) = self.rings.by_bit[index]
                && let Some(link) = self.link(key)
                && (link.warm.is_some() || link.bytes_since >= LARGE_BYTES)
            {
                self.give_pages_back(key);
            }
        }
        debug_assert!(self.rings.warm.is_empty());
    }

    pub(super) fn cool_old_rings(&mut self) {
        self.now_ns = clock::now_ns();
        let mut index = 0;
        // A ring that gets cold leaves the list.
        for _ in 0..self.rings.hot.len() {
            let Some(&key) = self.rings.hot.get(index) else {
                return;
            };
            let old = match self
                .connections
                .get(key)
                .and_then(|connection| connection.shm.as_ref())
            {
                Some(link) => self.now_ns.saturating_sub(link.last_record_ns) >= HOT_NS,
                None => true,
            };
            if !old || !self.cool(key, true) {
                index += 1;
            }
        }
    }

    /// Before sleeping: every client must ring from now on. False: one has something.
    pub(super) fn cool_rings(&mut self) -> bool {
        for _ in 0..self.rings.hot.len() {
            let Some(&key) = self.rings.hot.first() else {
                break;
            };
            if !self.cool(key, false) {
                return false;
            }
        }
        true
    }
}
