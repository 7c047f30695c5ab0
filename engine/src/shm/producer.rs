//! The side of a ring that writes records; see [`super::ring`].

use std::ops::Range;
use std::sync::Arc;

use super::copy::{copy_in, copy_payload_in};
use super::layout::{
    ALIGN, CAPACITY, FLAG_WANTS_ROOM, Place, RECORD_MAX, RingPlaces, WORD, record_bytes,
};
use super::ring::{ACK_SHIFT, LINE, NEXT_WRAPS, SKIP, Stamped, ack_of, is_two_lines, stamp_of};
use super::sync::{AtomicU64, Ordering, Segment, fence};
use crate::sys::prefetch;
use crate::wire::{HEADER_BYTES, HEADER_WORDS, Header};

/// Turn back to the start once more than this is used of a lap, and the consumer keeps up: after two
/// records, so that requests and their answers alternate between two places, which are always in the
/// cache.
const EARLY_BYTES: usize = LINE;

/// From this length on the lines of a record are asked for before they are written. That each has to
/// be taken away from the consumer, who read it in the lap before, is what limits many small messages
/// on their way at once.
const ASK_BYTES_MIN: usize = 512;

/// Writes records.
#[derive(Debug)]
pub(crate) struct Producer {
    pub(super) segment: Arc<Segment>,
    pub(super) places: &'static RingPlaces,
    /// Where the next record begins.
    pub(super) next: Place,
    /// How far the consumer is known to be.
    consumed: u64,
    ready: Ready,
    stamped: Stamped,
}

/// How the next record is written if it takes as much as the last: worked out when that was
/// committed, while its reader is at work, so that it takes no time of the next one's way.
#[derive(Clone, Copy, Debug)]
struct Ready {
    /// Bytes that the record takes; 0: nothing is worked out.
    bytes: usize,
    /// Holds from when the consumer is known to be so far.
    consumed_min: u64,
    /// Where the record after it will begin.
    next: Place,
    /// That place has to be cleared.
    clears: bool,
    /// The flags of its commit word.
    flags: u64,
}

impl Producer {
    pub(super) fn new(segment: Arc<Segment>, places: &'static RingPlaces) -> Producer {
        Producer {
            segment,
            places,
            next: places.place(0),
            consumed: 0,
            ready: Ready {
                bytes: 0,
                consumed_min: 0,
                next: places.place(0),
                clears: true,
                flags: 0,
            },
            stamped: Stamped::default(),
        }
    }

    /// How many bytes were produced so far.
    #[inline]
    pub(super) fn position(&self) -> u64 {
        self.next.position
    }

    #[inline]
    fn word(&self, at: Place) -> &AtomicU64 {
        self.segment.word64(at.address)
    }

    /// The consumer said how far it is, in a word of its own.
    #[inline]
    pub(crate) fn acknowledged(&mut self, ack: u32) {
        let ahead = ack.wrapping_sub(ack_of(self.consumed));
        let consumed = self.consumed + u64::from(ahead) * ALIGN as u64;
        // Beyond what was produced: a lie, or an old word; the published position decides.
        if consumed <= self.next.position {
            self.consumed = consumed;
        }
    }

    /// Whether everything up to `end` fits beside what is not consumed.
    #[inline(always)]
    fn has_room(&mut self, end: u64) -> bool {
        if end - self.consumed <= CAPACITY as u64 {
            return true;
        }
        // Acquire: pairs with the release in `Consumer::publish`: the consumer has read what we
        // are about to overwrite.
        let consumed = self
            .segment
            .word64(self.places.consumed)
            .load(Ordering::Acquire);
        if consumed > self.consumed && consumed <= self.next.position {
            self.consumed = consumed;
        }
        end - self.consumed <= CAPACITY as u64
    }

    /// Finds the place for a record, which lasts while the position does. Stores nothing.
    ///
    /// Inlined, as `settle` and the places are: a place that is handed over in memory keeps whoever
    /// reads it there waiting, ten nanoseconds a message.
    #[inline(always)]
    pub(super) fn plan(&mut self, length: usize) -> Option<Place> {
        assert!(length <= RECORD_MAX);
        let bytes = record_bytes(length);
        let mut at = self.next;
        if at.left < bytes {
            at = self.places.after(at, at.left);
            // From the end of the hot area a record goes to the other, which holds any.
            debug_assert!(at.left >= bytes || at.offset() == 0);
            if at.left < bytes {
                at = self.places.after(at, at.left);
            }
        }
        let end = at.position + bytes as u64;
        self.has_room(end + WORD as u64).then_some(at)
    }

    /// Leads the consumer to the place that [`Producer::plan`] found for a record of at least this
    /// length, and clears where the next will begin. Returns the record's commit word.
    #[inline(always)]
    pub(super) fn settle(&mut self, at: Place, length: usize, ack: u64) -> u64 {
        let bytes = record_bytes(length);
        let after = self.places.after(at, bytes);
        let turns = turns_from(at, bytes, after).is_some_and(|from| self.consumed >= from);
        let (next, flags) = match turns {
            true => (self.places.next_lap(at), stamp_of(at) | NEXT_WRAPS),
            false => (after, stamp_of(at)),
        };
        let from = self.next;
        let clears = self.stamped.needs_clearing(next);
        let word = self.go_on(at, length, (next, clears), flags, ack);
        if at.position != from.position {
            self.word(at).store(0, Ordering::Relaxed);
            if at.lap() != from.lap() {
                // If its start is left out too, it would keep a word that the next lap's looks like.
                let start = self.places.next_lap(from);
                self.word(start).store(0, Ordering::Relaxed);
            }
            let skipped = at.position - from.position;
            // Release: pairs with the acquire in `Consumer::next`: where it goes on is cleared.
            self.word(from)
                .store(stamp_of(from) | SKIP | skipped, Ordering::Release);
        }
        self.ready.bytes = 0;
        word
    }

    /// Goes on to `next`, which is cleared if need be. Returns the commit word of the record at `at`.
    #[inline(always)]
    fn go_on(
        &mut self,
        at: Place,
        length: usize,
        (next, clears): (Place, bool),
        flags: u64,
        ack: u64,
    ) -> u64 {
        debug_assert!(next.position + WORD as u64 - self.consumed <= CAPACITY as u64);
        debug_assert!(clears || !self.stamped.needs_clearing(next));
        if is_two_lines(length) {
            // The consumer polls both lines of a small frame. Stores become visible in order, so without
            // this one would be waited for after the other.
            self.ask_for(at, 0..2);
        }
        if clears {
            // Relaxed: published by the release of the commit.
            self.word(next).store(0, Ordering::Relaxed);
        }
        self.stamped.record(at, record_bytes(length));
        self.next = next;
        length as u64 | flags | u64::from(ack_of(ack)) << ACK_SHIFT
    }

    /// Asks for these of the lines from `at` on, to be written.
    #[inline(always)]
    fn ask_for(&self, at: Place, lines: Range<usize>) {
        let begin = self.segment.at(at.address, WORD);
        for line in lines {
            prefetch::to_write(begin.wrapping_add(line * LINE));
        }
    }

    /// Works out where a record of so many bytes goes if it is the next. It is expected that the
    /// consumer keeps up.
    fn prepare(&mut self, bytes: usize) {
        let at = self.next;
        if at.left < bytes {
            self.ready.bytes = 0;
            return;
        }
        let after = self.places.after(at, bytes);
        let end = at.position + (bytes + WORD) as u64;
        let room_min = end.saturating_sub(CAPACITY as u64);
        let (consumed_min, next, flags) = match turns_from(at, bytes, after) {
            Some(from) => (room_min.max(from), self.places.next_lap(at), NEXT_WRAPS),
            None => (room_min, after, 0),
        };
        self.ready = Ready {
            bytes,
            consumed_min,
            next,
            clears: self.stamped.needs_clearing(next),
            flags: stamp_of(at) | flags,
        };
    }

    /// A reservation is written to, and may be given up.
    pub(super) fn overwritten(&mut self, at: Place, bytes: usize) {
        self.stamped.overwritten(at, bytes);
        self.ready.bytes = 0;
    }

    /// As if nothing had been pushed before.
    #[cfg(test)]
    pub(super) fn forget_prepared(&mut self) {
        self.ready.bytes = 0;
    }

    /// As [`Producer::place`], for a record that was prepared for.
    #[inline(always)]
    fn place_prepared(&mut self, length: usize, ack: u64) -> Option<(Place, u64)> {
        let ready = self.ready;
        if record_bytes(length) != ready.bytes || self.consumed < ready.consumed_min {
            return None;
        }
        let at = self.next;
        let word = self.go_on(at, length, (ready.next, ready.clears), ready.flags, ack);
        Some((at, word))
    }

    /// Finds the place for a record and leads there: its position and its commit word.
    #[inline(always)]
    fn place(&mut self, length: usize, ack: u64) -> Option<(Place, u64)> {
        let at = self.plan(length)?;
        Some((at, self.settle(at, length, ack)))
    }

    /// Publishes the record whose data are written.
    #[inline]
    pub(super) fn publish(&self, at: Place, word: u64) {
        // Release: pairs with the acquire in `Consumer::next`.
        self.word(at).store(word, Ordering::Release);
    }

    /// Where the data of the record at `at` go: valid for so many bytes, and a multiple of 8.
    #[inline]
    pub(super) fn data(&self, at: Place, length: usize) -> *mut u8 {
        self.segment.at_to_write(at.address + WORD, length)
    }

    /// Writes one record and publishes it. False: there is no room now. `ack` is how far we have
    /// consumed the other ring.
    #[inline]
    pub(crate) fn push(&mut self, bytes: &[u8], ack: u64) -> bool {
        let Some((at, word)) = self.place(bytes.len(), ack) else {
            return false;
        };
        let data = self.data(at, bytes.len());
        let is_long = bytes.len() >= ASK_BYTES_MIN;
        if is_long {
            self.ask_for(at, 1..bytes.len() / LINE);
        }
        // SAFETY: `data` is valid for that many bytes (checked), and private memory does not
        // overlap the segment.
        unsafe { copy_in(bytes, data) };
        self.publish(at, word);
        if is_long {
            // The record after the next, should both be as long as this one. The next one's lines are on their
            // way already, or it is about to be polled.
            let lines = record_bytes(bytes.len()) / LINE;
            self.ask_for(self.next, lines..(2 * lines).min(self.next.left / LINE));
        }
        true
    }

    /// As [`Producer::push`] for one frame, encoded in place: the payload is copied and its CRC
    /// computed in one pass.
    // Inlined, lest the header goes through memory.
    #[inline(always)]
    pub(crate) fn push_frame(&mut self, header: Header, payload: &[u8], ack: u64) -> bool {
        let length = HEADER_BYTES + payload.len();
        let place = match self.place_prepared(length, ack) {
            None => self.place_unprepared(length, ack),
            place => place,
        };
        let Some((at, word)) = place else {
            return false;
        };
        let data = self.data(at, length);
        // SAFETY: `data` is valid for header and payload (checked); private memory does not
        // overlap the segment.
        unsafe {
            let crc = copy_payload_in(&header, payload, data.add(HEADER_BYTES));
            write_head(data, header.to_words(), crc);
        }
        self.publish(at, word);
        self.prepare(record_bytes(length));
        true
    }

    #[inline(never)]
    fn place_unprepared(&mut self, length: usize, ack: u64) -> Option<(Place, u64)> {
        self.place(length, ack)
    }

    /// As [`Producer::push`] for the beginning of a frame: its header, as it is, and the first bytes
    /// of its payload.
    pub(crate) fn push_beginning(&mut self, header: Header, bytes: &[u8], ack: u64) -> bool {
        let length = HEADER_BYTES + bytes.len();
        let Some((at, word)) = self.place(length, ack) else {
            return false;
        };
        let data = self.data(at, length);
        // SAFETY: `data` is valid for both (checked); private memory does not overlap the segment.
        unsafe {
            copy_in(bytes, data.add(HEADER_BYTES));
            write_head(data, Header { crc32: 0, ..header }.to_words(), header.crc32);
        }
        self.publish(at, word);
        true
    }

    /// Whether the consumer has gone on since this producer last looked.
    pub(crate) fn consumer_has_moved(&self) -> bool {
        let consumed = self.segment.word64(self.places.consumed);
        // Acquire: pairs with the release in `Consumer::publish`.
        consumed.load(Ordering::Acquire) > self.consumed
    }

    /// Asks the consumer to say when it has made room.
    pub(crate) fn want_room(&self, wanted: bool) {
        let flag = self
            .segment
            .word32(self.places.producer_flags + FLAG_WANTS_ROOM);
        flag.store(u32::from(wanted), Ordering::Relaxed);
        if wanted {
            // SeqCst: pairs with the fence in `super::ends::Ends::peer_needs_waking`.
            fence(Ordering::SeqCst);
        }
    }
}

/// From where on the consumer keeps up, so that it is better to turn back to the ring's start after a
/// record of so many bytes at `at`, whose end is `after`: it has read the start of this lap by then.
/// `None`: the next record goes there in any case.
#[inline(always)]
fn turns_from(at: Place, bytes: usize, after: Place) -> Option<u64> {
    let lap_used = at.offset() + bytes;
    let early = lap_used > EARLY_BYTES && after.offset() != 0;
    early.then(|| at.lap() + lap_used.div_ceil(2) as u64)
}

/// Writes the header of a frame to the front of a record's data, with its CRC.
///
/// # Safety
/// `data` is a multiple of 8 and valid for a header.
#[inline]
pub(super) unsafe fn write_head(data: *mut u8, mut words: [u64; HEADER_WORDS], crc: u32) {
    words[HEADER_WORDS - 1] |= u64::from(crc) << 32;
    for (index, word) in words.into_iter().enumerate() {
        // SAFETY: the caller's promises.
        unsafe { data.cast::<u64>().add(index).write_volatile(word.to_le()) };
    }
}
