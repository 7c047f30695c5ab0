//! Which rings are polled in every round, and when the pages of the others are given back.
//!
//! A ring is *hot* while it had a record lately: the worker polls it, and its client need not wake anybody.
//! A *cold* ring is not polled: its client sets a ready bit and rings the doorbell. A cold ring is *warm*
//! while its pages are still mapped into this process (resident), so that they can be given back later. All
//! this is bookkeeping of the worker: "cooling" a ring moves it from hot to cold.

use super::Worker;
use super::connection::Phase;
use super::shm::ShmState;
use crate::sys::clock;
use crate::uring::Key;

/// The most hot rings.
pub(super) const HOT_MAX: usize = 32;
/// A hot ring without a record for this long becomes cold.
const HOT_NS: u64 = 2_000_000;
/// With this many connections or more (a crowd), the pages of all cold rings are given back. With fewer, only
/// those of large ones are: for the others it does not pay.
const CROWD: usize = 64;
/// A ring is large if it has used its other pages too, for this many bytes since they were given back.
const LARGE_BYTES: u64 = 64 * 1024;
/// A warm ring's pages are given back after this much silence. Not earlier: when clients take turns, to
/// unmap and to fault in again took twenty times as long as the messages.
const WARM_NS: u64 = 100_000_000;
/// The most warm rings; at least one page of each is resident.
const WARM_MAX: usize = 96;
/// How many warm rings are looked at at a time: giving pages back takes a system call each.
const WARM_LOOKS: usize = 4;

impl Worker {
    /// Makes a connection's ring hot. If there are too many, the one that is hot for longest becomes cold.
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
        ends.rx.wait_no_more();
        self.leave_warm(key);
        self.rings.hot.push(key);
        if self.rings.hot.len() > HOT_MAX {
            let oldest = self.rings.hot[0];
            self.cool(oldest, true);
        }
    }

    /// Makes a ring cold: asks its client to ring from now on. False if it stays hot, because it has
    /// something right now.
    ///
    /// What happens to its pages: those of a large ring that becomes cold `for_long` (not just because the
    /// worker sleeps), or of one in a crowd that had nothing so far, are given back at once. Otherwise a
    /// large ring, or one in a crowd, becomes warm, and its pages are given back if it stays silent.
    fn cool(&mut self, key: Key, for_long: bool) -> bool {
        let crowd = self.rings.by_bit.len() >= CROWD;
        let Some(connection) = self.connections.get_mut(key) else {
            self.rings.hot.retain(|&hot| hot != key);
            return true;
        };
        // Bytes that wait, not an empty `Waiting` whose bytes are in this round's batch: if that counted,
        // nobody would look at the ring again.
        let waiting = connection.waiting.as_ref();
        let waiting = waiting.is_some_and(|waiting| !waiting.is_empty());
        let (Some(link), Some(ends)) = (&mut connection.shm, &mut connection.out.ends) else {
            return true;
        };
        ends.rx.wait_on(None);
        if connection.phase == Phase::Open && (ends.rx.has_record() || ends.peer_closed()) {
            let idle_without_us =
                !waiting && connection.out.staged.len() == connection.out.staged_sent;
            if idle_without_us {
                ends.rx.wait_no_more();
                // To the end of the list, so that others become cold before it.
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

    /// Puts a cold ring into the list of warm ones.
    fn join_warm(&mut self, key: Key) {
        let at = self.rings.warm.len();
        if let Some(link) = self.link(key) {
            link.warm = Some(at);
            self.rings.warm.push(key);
        }
    }

    /// Takes a ring out of the list of warm ones, if it is there. The last one takes its place.
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

    /// The next warm ring, each in turn. There must be one.
    fn next_warm(&mut self) -> Key {
        let rings = &mut self.rings;
        rings.warm_next = (rings.warm_next + 1) % rings.warm.len();
        rings.warm[rings.warm_next]
    }

    /// Looks at a few warm rings, and gives back the pages of those that have been silent for long.
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

    /// Gives a connection's pages back: they leave this process, and come again when they are touched.
    fn give_pages_back(&mut self, key: Key) {
        self.leave_warm(key);
        if let Some(connection) = self.connections.get_mut(key)
            && let (Some(link), Some(ends)) = (&mut connection.shm, &connection.out.ends)
        {
            link.bytes_since = 0;
            ends.segment.forget_pages();
        }
    }

    /// Gives memory back after the worker had no work for a while: spare buffers, and the pages of warm and of
    /// large rings.
    pub(super) fn release_memory(&mut self) {
        let first = std::mem::take(&mut self.rings.first_record);
        self.dispatcher.pool().give(first);
        self.dispatcher.pool().release();
        self.rings.first_record = self.dispatcher.pool().take();
        self.inbox.release_memory();
        // None of them had anything meanwhile.
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

    /// Makes hot rings cold that had nothing for a while.
    pub(super) fn cool_old_rings(&mut self) {
        let now_ns = clock::now_ns();
        self.now_ns = now_ns;
        let is_old = |link: &mut ShmState| now_ns.saturating_sub(link.last_record_ns) >= HOT_NS;
        let mut index = 0;
        // A ring that becomes cold leaves the list.
        for _ in 0..self.rings.hot.len() {
            let Some(&key) = self.rings.hot.get(index) else {
                return;
            };
            if !self.link(key).is_none_or(is_old) || !self.cool(key, true) {
                index += 1;
            }
        }
    }

    /// Before sleeping: makes all rings cold, so that every client rings from now on. False if one of them has
    /// something.
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
