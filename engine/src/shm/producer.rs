//! The side of a ring that writes records; see [`super::ring`].

use std::ops::Range;
use std::sync::Arc;

use super::copy::{copy_in, copy_payload_in, copy_summed_in, goes_as_string};
use super::layout::{
    ALIGN, CAPACITY, FLAG_WANTS_ROOM, Place, RECORD_MAX, RingPlaces, WORD, record_bytes,
};
use super::ring::{
    ACK_SHIFT, CRC_BYTES, ENDS_WITH_CRC, LINE, NEXT_WRAPS, SKIP, Stamped, ack_of, is_two_lines,
    stamp_of,
};
use super::sync::{AtomicU64, Ordering, Segment, fence};
use crate::sys::{demote, prefetch};
use crate::wire::{HEADER_BYTES, HEADER_WORDS, Header};

/// The cache lines of a record of this length or more are prefetched for writing before it is written. Each
/// must be taken away from the consumer, which read it in the lap before; with many small messages in flight
/// that is what limits the rate.
const ASK_BYTES_MIN: usize = 512;

/// After a record that takes more than this, the producer does not turn back before the ring's end: several of
/// a long message's are on their way at once, and two places hold two. (1 MiB, one in flight: 2 % less time;
/// 256 KiB 10 %; 16 KiB, far, 10 %.)
const TURN_BYTES_MAX: usize = 12 * 1024;

/// Records of these lengths are handed over to a consumer that waits for them, line by line, once they are committed:
/// see [`demote`]. (Granite Rapids, calls a second: 256 to 512 B 1.2 times, 1 KiB to 4 KiB 1.15, 8 KiB 1.05; of
/// 64 B 1.1 with 4 in flight, 1.06 with 16.) Not those of two lines, which the consumer has asked for already. The lines
/// of longer ones, and of all while several are on their way, come back to the producer so soon that it would have to
/// fetch them from afar (1 MiB 1.6 times as long, 1 KiB with 256 in flight 0.67 times the rate).
const HANDED_OVER: Range<usize> = 2 * LINE - WORD + 1..8 * 1024;
const _: () = assert!(is_two_lines(HANDED_OVER.start - 1) && !is_two_lines(HANDED_OVER.start));

/// Where lines can be handed over, those of a frame of these lengths are asked for twice before it is written: when the
/// other side's record has come, and is about to be read, if the next frame is as long as the last one; and when it is to
/// be written. Then they come while other work is done, and together. Such frames are handed over too, which beyond
/// 8 KiB gains only with this. (Granite Rapids, calls a second, one in flight: 512 B 1.2 times, 1 to 8 KiB 1.25 to 1.3,
/// 16 KiB 1.13, 24 KiB 1.0, 32 KiB 0.97.)
const AHEAD: Range<usize> = ASK_BYTES_MIN..20 * 1024;

/// What goes into one record of a frame that is longer than a record: see [`super::ring`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece<'a> {
    /// The frame's header, before its first piece. (The CRC in it does not count.)
    pub(super) header: Option<Header>,
    pub(super) payload: &'a [u8],
    /// The CRC of the header and the pieces before it.
    pub(super) sum: u32,
    /// The CRC follows it.
    pub(super) is_last: bool,
}

/// Writes records.
#[derive(Debug)]
pub(crate) struct Producer {
    pub(super) segment: Arc<Segment>,
    pub(super) places: &'static RingPlaces,
    /// Where the next record begins.
    pub(super) next: Place,
    /// The consumer's position, as far as it is known.
    consumed: u64,
    /// The next record, prepared.
    ready: Ready,
    /// Where the next frame will be written, if it is as long as the last one, and how many cache lines it will take.
    /// 0: they are not to be asked for ahead.
    ahead: (Place, usize),
    /// Which place need not be cleared.
    stamped: Stamped,
    /// The processor can hand lines over.
    hands_over: bool,
}

/// How the next record is to be written if it is as long as the last one. It is worked out after the last
/// was committed, while the consumer is at work, so that it adds nothing to the next one's latency.
#[derive(Clone, Copy, Debug)]
struct Ready {
    /// The bytes that the record takes. 0: nothing is prepared.
    bytes: usize,
    /// It holds only if the consumer's known position is at least this.
    consumed_min: u64,
    /// Where the record after it begins.
    next: Place,
    /// That place must be cleared.
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
            ahead: (places.place(0), 0),
            stamped: Stamped::default(),
            hands_over: demote::is_supported(),
        }
    }

    /// The position of the next record.
    #[inline]
    pub(super) fn position(&self) -> u64 {
        self.next.position
    }

    #[inline]
    fn word(&self, at: Place) -> &AtomicU64 {
        self.segment.word64(at.address)
    }

    /// The other side said, in one of its commit words, how far it has consumed this ring.
    #[inline]
    pub(crate) fn acknowledged(&mut self, ack: u32) {
        let ahead = ack.wrapping_sub(ack_of(self.consumed));
        let consumed = self.consumed + u64::from(ahead) * ALIGN as u64;
        // Beyond what was produced it is a lie, or an old word: then the published position counts.
        if consumed <= self.next.position {
            self.consumed = consumed;
        }
    }

    /// Whether everything up to the position `end` fits beside what is not consumed yet.
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

    /// Finds the place for a record, if there is room. It is valid until something is pushed. Stores nothing.
    ///
    /// Inlined, as `settle` and the functions of places are, so that places stay in registers: passed through
    /// memory they cost ten nanoseconds a message.
    #[inline(always)]
    pub(super) fn plan(&mut self, length: usize) -> Option<Place> {
        assert!(length <= RECORD_MAX);
        let bytes = record_bytes(length);
        let at = self.place_for(bytes);
        let end = at.position + bytes as u64;
        self.has_room(end + WORD as u64).then_some(at)
    }

    /// Where the next record begins, if it takes so many bytes.
    #[inline(always)]
    fn place_for(&self, bytes: usize) -> Place {
        let mut at = self.next;
        if at.left < bytes {
            at = self.places.after(at, at.left);
            // Behind the hot area comes the main one, which holds any record; behind that a new lap.
            debug_assert!(at.left >= bytes || at.offset() == 0);
            if at.left < bytes {
                at = self.places.after(at, at.left);
            }
        }
        at
    }

    /// Leads the consumer to the place that [`Producer::plan`] found for a record of at least this length, by a
    /// SKIP word if need be, and clears the place of the next record. Returns the record's commit word.
    #[inline(always)]
    pub(super) fn settle(&mut self, at: Place, length: usize, ack: u64, may_turn: bool) -> u64 {
        let bytes = record_bytes(length);
        let after = self.places.after(at, bytes);
        let from = turns_from(at, bytes, after).filter(|_| may_turn);
        let turns = from.is_some_and(|from| self.consumed >= from);
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
                // The start of the next lap may be skipped over too. Then it would keep this lap's word, which
                // has the stamp that is expected there one lap later.
                let start = self.places.next_lap(from);
                self.word(start).store(0, Ordering::Relaxed);
            }
            let skipped = at.position - from.position;
            // Release: pairs with the acquire in `Consumer::load`, so that the consumer finds the place to
            // which it skips cleared.
            self.word(from)
                .store(stamp_of(from) | SKIP | skipped, Ordering::Release);
        }
        self.ready.bytes = 0;
        self.ahead.1 = 0;
        word
    }

    /// Moves on to `next`, which is cleared if it must be. Returns the commit word of the record at `at`.
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
            // The consumer polls both lines of a small frame. Stores become visible in order, so without this
            // the lines would be waited for one after the other.
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

    /// Prefetches some of the cache lines from `at` on, to be written.
    #[inline(always)]
    fn ask_for(&self, at: Place, lines: Range<usize>) {
        let begin = self.segment.at(at.address, WORD);
        for line in lines {
            prefetch::to_write(begin.wrapping_add(line * LINE));
        }
    }

    /// Asks for the cache lines of the next frame, which is expected to be as long as the last one. To be called once
    /// the other side's record has come: before, it still reads or polls what is near them.
    #[inline(always)]
    pub(crate) fn ask_ahead(&self) {
        let (at, lines) = self.ahead;
        // Not for the first, which the consumer polls.
        self.ask_for(at, 1..lines);
    }

    /// Tells the processor that the consumer is the next to read this record, if that is of use for one of these lengths.
    #[inline(always)]
    fn hand_over(&self, at: Place, length: usize, lengths: Range<usize>) {
        let waited_for = self.consumed == at.position;
        if self.hands_over && waited_for && lengths.contains(&length) {
            let begin = self.segment.at(at.address, WORD);
            for line in 0..record_bytes(length).div_ceil(LINE) {
                demote::demote(begin.wrapping_add(line * LINE));
            }
        }
    }

    /// Prepares for a next record of this length, expecting that the consumer keeps up.
    fn prepare(&mut self, length: usize) {
        let bytes = record_bytes(length);
        let at = self.next;
        self.ahead = match self.hands_over && AHEAD.contains(&length) {
            true => (self.place_for(bytes), bytes / LINE),
            false => (at, 0),
        };
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

    /// The program may write to these bytes, which are reserved and may be given up again.
    pub(super) fn overwritten(&mut self, at: Place, bytes: usize) {
        self.stamped.overwritten(at, bytes);
        self.ready.bytes = 0;
    }

    /// As if nothing had been pushed before.
    #[cfg(test)]
    pub(super) fn forget_prepared(&mut self) {
        self.ready.bytes = 0;
    }

    /// As [`Producer::place`], if what was prepared fits this record.
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

    /// Finds the place for a record and leads the consumer there. Returns the place and the commit word.
    #[inline(always)]
    fn place(&mut self, length: usize, ack: u64) -> Option<(Place, u64)> {
        let at = self.plan(length)?;
        Some((at, self.settle(at, length, ack, true)))
    }

    /// Commits the record whose data are written.
    #[inline]
    pub(super) fn publish(&self, at: Place, word: u64) {
        // Release: pairs with the acquire in `Consumer::load`.
        self.word(at).store(word, Ordering::Release);
    }

    /// The address of the data of the record at `at`: valid for `length` bytes, and a multiple of 8.
    #[inline]
    pub(super) fn data(&self, at: Place, length: usize) -> *mut u8 {
        self.segment.at_to_write(at.address + WORD, length)
    }

    /// Writes one record and commits it. False if there is no room now. `ack` is our position as the consumer
    /// of the other ring.
    #[inline]
    pub(crate) fn push(&mut self, bytes: &[u8], ack: u64) -> bool {
        let Some((at, word)) = self.place(bytes.len(), ack) else {
            return false;
        };
        let data = self.data(at, bytes.len());
        // A string takes lines over without fetching them; to prefetch them fetches them.
        let asks = bytes.len() >= ASK_BYTES_MIN && !goes_as_string(bytes.len());
        if asks {
            self.ask_for(at, 1..bytes.len() / LINE);
        }
        // SAFETY: `data` is valid for that many bytes (checked), and private memory does not
        // overlap the segment.
        unsafe { copy_in(bytes, data) };
        self.publish(at, word);
        self.hand_over(at, bytes.len(), HANDED_OVER);
        if asks {
            // The lines of the record after the next, if both are as long as this one. Those of the next are on
            // their way already, and its first is about to be polled.
            let lines = record_bytes(bytes.len()) / LINE;
            self.ask_for(self.next, lines..(2 * lines).min(self.next.left / LINE));
        }
        true
    }

    /// As [`Producer::push`] for one frame, encoded in place: the payload is copied and its CRC
    /// computed in one pass.
    // Inlined, so that the header stays in registers.
    #[inline(always)]
    pub(crate) fn push_frame(&mut self, header: Header, payload: &[u8], ack: u64) -> bool {
        let length = HEADER_BYTES + payload.len();
        let (ahead, ahead_lines) = self.ahead;
        let place = match self.place_prepared(length, ack) {
            None => self.place_unprepared(length, ack),
            place => place,
        };
        let Some((at, word)) = place else {
            return false;
        };
        debug_assert!(ahead_lines != record_bytes(length) / LINE || ahead.position == at.position);
        if self.hands_over && AHEAD.contains(&length) {
            self.ask_for(at, 1..record_bytes(length) / LINE);
        }
        let data = self.data(at, length);
        // SAFETY: `data` is valid for header and payload (checked); private memory does not
        // overlap the segment.
        unsafe {
            let crc = copy_payload_in(&header, payload, data.add(HEADER_BYTES));
            write_head(data, header.to_words(), crc);
        }
        self.publish(at, word);
        self.hand_over(at, length, HANDED_OVER.start..AHEAD.end);
        self.prepare(length);
        true
    }

    #[inline(never)]
    fn place_unprepared(&mut self, length: usize, ack: u64) -> Option<(Place, u64)> {
        self.place(length, ack)
    }

    /// As [`Producer::push`], for a piece of a frame, whose CRC is computed in the same pass.
    pub(super) fn push_piece(&mut self, piece: &Piece<'_>, ack: u64) -> Option<u32> {
        let head = piece.header.map_or(0, |_| HEADER_BYTES);
        let end = head + piece.payload.len();
        let length = end + if piece.is_last { CRC_BYTES } else { 0 };
        let at = self.plan(length)?;
        // Not to the ring's start, as after other long records: see `TURN_BYTES_MAX`.
        let mut word = self.settle(at, length, ack, false);
        let data = self.data(at, length);
        // SAFETY: `data` is valid for the parts of the record (checked); private memory does not overlap the
        // segment.
        unsafe {
            if let Some(header) = piece.header {
                write_head(data, header.to_words(), 0);
            }
            let sum = copy_summed_in(piece.payload, data.add(head), piece.sum);
            if piece.is_last {
                copy_in(&sum.to_le_bytes(), data.add(end));
                word |= ENDS_WITH_CRC;
            }
            self.publish(at, word);
            Some(sum)
        }
    }

    /// Whether the consumer has moved on since this producer last looked.
    pub(crate) fn consumer_has_moved(&self) -> bool {
        let consumed = self.segment.word64(self.places.consumed);
        // Acquire: pairs with the release in `Consumer::publish`.
        consumed.load(Ordering::Acquire) > self.consumed
    }

    /// Asks the consumer to wake us when it has made room, or takes that back.
    pub(crate) fn want_room(&self, wanted: bool) {
        let flag = self
            .segment
            .word32(self.places.producer_flags + FLAG_WANTS_ROOM);
        flag.store(u32::from(wanted), Ordering::Relaxed);
        if wanted {
            // SeqCst: pairs with the fence in `super::ends::Ends::peer_needs_waking`: either our next look
            // sees the room, or the consumer sees the flag.
            fence(Ordering::SeqCst);
        }
    }
}

/// From which position on the consumer counts as keeping up, so that the producer turns back to the ring's
/// start after a record of `bytes` at `at`, which ends at `after`. By then the consumer has read the first
/// half of what this lap has used. So small requests one at a time alternate between two places, which are
/// always in the cache. `None`: the producer does not turn back, because the lap ends here anyway, or because
/// this record is more than half of it, which the consumer cannot have read before it is written, or because it is
/// long ([`TURN_BYTES_MAX`]).
#[inline(always)]
fn turns_from(at: Place, bytes: usize, after: Place) -> Option<u64> {
    let may_turn = bytes <= at.offset().min(TURN_BYTES_MAX) && after.offset() != 0;
    may_turn.then(|| at.lap() + (at.offset() + bytes).div_ceil(2) as u64)
}

/// Writes the header of a frame, with this CRC, to the front of a record's data.
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
