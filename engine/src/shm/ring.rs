//! One direction of a connection: a single producer, a single consumer, and memory that the other
//! side may corrupt.
//!
//! The commit word lies in the record: the consumer polls the place where the next record will be,
//! and the cache line that tells of a small record is the one that holds it. Nobody clears records.
//! Before a record is committed, the producer puts 0 where the next one will begin; the commit's
//! release store publishes both. (The trick is known from single-producer logs; Aeron's consumers
//! clear instead.)
//!
//! Each commit word carries how far its sender has consumed the other ring, so in request and
//! response traffic the line with the consumer's position is never read.
//!
//! A record that does not fit in what is left of its area is preceded by a SKIP word. When the
//! consumer keeps up, the producer turns back to the ring's start early (NEXT_WRAPS), so that few
//! cache lines, and one page, are used over and over.

use std::ops::Range;
use std::sync::Arc;

use super::copy::copy;
use super::layout::{
    ALIGN, CAPACITY, FLAG_WAITING, FLAG_WANTS_ROOM, HOT, Place, RECORD_MAX, RingPlaces, WORD,
    record_bytes,
};
use super::sync::{AtomicU32, AtomicU64, Ordering, Segment, fence};
use crate::sys::prefetch;
use crate::wire::{HEADER_BYTES, HEADER_WORDS, Header, crc};

const COMMITTED: u64 = 1 << 24;
const NEXT_WRAPS: u64 = 1 << 25;
const SKIP: u64 = 1 << 26;
const LENGTH_MASK: u64 = (1 << 24) - 1;
const KNOWN_BITS: u64 = LENGTH_MASK | COMMITTED | NEXT_WRAPS | SKIP;
const ACK_SHIFT: u32 = 32;
/// Bytes of a cache line.
const LINE: usize = 64;
/// Turn back to the start once more than this is used of a lap: two lines, so that small requests and
/// their answers alternate between two places, which are always in the cache.
const EARLY_BYTES: usize = 2 * LINE;

/// The other side wrote what the protocol does not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Corrupt(pub(crate) &'static str);

impl std::fmt::Display for Corrupt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the other side corrupted the shared ring: {}", self.0)
    }
}

/// Writes records.
#[derive(Debug)]
pub(crate) struct Producer {
    pub(super) segment: Arc<Segment>,
    pub(super) places: &'static RingPlaces,
    /// Where the next record begins.
    pub(super) next: Place,
    /// How far the consumer is known to be.
    consumed: u64,
}

/// Reads records.
#[derive(Debug)]
pub(crate) struct Consumer {
    segment: Arc<Segment>,
    pub(super) places: &'static RingPlaces,
    /// Where the next record begins.
    next: Place,
    /// What the producer was last told.
    published: u64,
    /// The last record lay in two cache lines.
    two_lines: bool,
}

/// A committed record: `length` bytes of data at the consumer's position.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record {
    pub(crate) length: usize,
    next_wraps: bool,
    ack: u32,
}

/// Whether a record of so many data bytes lies in two cache lines, as small frames do.
#[inline]
fn is_two_lines(length: usize) -> bool {
    WORD + length > LINE && WORD + length <= 2 * LINE
}

fn ack_of(position: u64) -> u32 {
    (position / ALIGN as u64) as u32
}

impl Producer {
    pub(super) fn new(segment: Arc<Segment>, places: &'static RingPlaces) -> Producer {
        Producer {
            segment,
            places,
            next: places.place(0),
            consumed: 0,
        }
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
    /// length, and puts 0 where the next will begin. Returns the record's commit word.
    #[inline(always)]
    pub(super) fn settle(&mut self, at: Place, length: usize, ack: u64) -> u64 {
        let bytes = record_bytes(length);
        let mut word = length as u64 | COMMITTED | u64::from(ack_of(ack)) << ACK_SHIFT;
        let mut next = self.places.after(at, bytes);
        let lap_used = at.offset() + bytes;
        // Turn back early if the consumer keeps up; it has read the start of this lap by then.
        if lap_used > EARLY_BYTES
            && self.consumed > at.lap()
            && (self.consumed - at.lap()) * 2 >= lap_used as u64
            && next.offset() != 0
        {
            next = self.places.next_lap(at);
            word |= NEXT_WRAPS;
            debug_assert!(next.position + WORD as u64 - self.consumed <= CAPACITY as u64);
        }
        if is_two_lines(length) {
            // The consumer polls both. Stores become visible in order, so without this one line
            // would be waited for after the other.
            let begin = self.segment.at(at.address, WORD + length);
            prefetch::to_write(begin);
            prefetch::to_write(begin.wrapping_add(LINE));
        }
        // Relaxed: published by the release of the commit.
        self.word(next).store(0, Ordering::Relaxed);
        let from = self.next;
        if at.position != from.position {
            self.word(at).store(0, Ordering::Relaxed);
            let skipped = at.position - from.position;
            // Release: pairs with the acquire in `Consumer::next`: where it goes on is cleared.
            self.word(from)
                .store(COMMITTED | SKIP | skipped, Ordering::Release);
        }
        self.next = next;
        word
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
        // SAFETY: `data` is valid for that many bytes (checked), and private memory does not
        // overlap the segment.
        unsafe { copy(bytes.as_ptr(), data, bytes.len()) };
        self.publish(at, word);
        true
    }

    /// As [`Producer::push`] for one frame, encoded in place: the payload is copied and its CRC
    /// computed in one pass.
    #[inline]
    pub(crate) fn push_frame(&mut self, header: Header, payload: &[u8], ack: u64) -> bool {
        let length = HEADER_BYTES + payload.len();
        let Some((at, word)) = self.place(length, ack) else {
            return false;
        };
        let data = self.data(at, length);
        let words = header.to_words();
        // SAFETY: `data` is valid for header and payload (checked); private memory does not
        // overlap the segment.
        unsafe {
            let to = data.add(HEADER_BYTES);
            let crc = crc::frame_copy_raw(words, to, payload.as_ptr(), payload.len());
            write_head(data, words, crc);
        }
        self.publish(at, word);
        true
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
            copy(bytes.as_ptr(), data.add(HEADER_BYTES), bytes.len());
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

impl Consumer {
    pub(super) fn new(segment: Arc<Segment>, places: &'static RingPlaces) -> Consumer {
        Consumer {
            segment,
            places,
            next: places.place(0),
            published: 0,
            two_lines: false,
        }
    }

    pub(crate) fn position(&self) -> u64 {
        self.next.position
    }

    #[inline]
    fn load(&self) -> u64 {
        // Acquire: pairs with the releases in `Producer::publish` and `settle`.
        self.segment
            .word64(self.next.address)
            .load(Ordering::Acquire)
    }

    /// Whether there is something, or something wrong.
    #[inline]
    pub(crate) fn has_record(&self) -> bool {
        self.load() != 0
    }

    /// As [`Consumer::has_record`], for polling: if the last record had two lines, the next one's
    /// second is fetched along with the first and not after it. A longer record's would only be
    /// taken away from the producer while it writes the rest.
    #[inline]
    pub(crate) fn poll(&self) -> bool {
        if self.two_lines {
            let begin = self.segment.at(self.next.address, WORD);
            prefetch::to_read(begin.wrapping_add(LINE));
        }
        self.has_record()
    }

    /// The next record, if it is committed.
    #[inline(always)]
    pub(crate) fn next(&mut self) -> Result<Option<Record>, Corrupt> {
        // Two skips at most: from the hot area to the other one, and from its end to the start.
        for _ in 0..3 {
            let word = self.load();
            if word == 0 {
                return Ok(None);
            }
            let flags = word & u64::from(u32::MAX);
            if word & COMMITTED == 0 || flags & !KNOWN_BITS != 0 {
                return Err(Corrupt("a commit word with unknown bits"));
            }
            let length = (word & LENGTH_MASK) as usize;
            let at = self.next;
            if word & SKIP == 0 {
                if length == 0 || length > RECORD_MAX || record_bytes(length) > at.left {
                    return Err(Corrupt("a record longer than its place"));
                }
                return Ok(Some(Record {
                    length,
                    next_wraps: word & NEXT_WRAPS != 0,
                    ack: (word >> ACK_SHIFT) as u32,
                }));
            }
            let over_hot = at.offset() >= HOT && length == at.left + HOT;
            if length != at.left && !over_hot {
                return Err(Corrupt("a skip that leads nowhere"));
            }
            self.next = self.places.place(at.position + length as u64);
        }
        Err(Corrupt("skips without end"))
    }

    /// Where the data of the record that is next lie: valid for all of its length.
    #[inline]
    fn data(&self, record: &Record) -> *const u8 {
        self.segment
            .at_to_read(self.next.address + WORD, record.length)
    }

    /// Appends the record's data to `to`: from here on they are private.
    #[inline]
    pub(crate) fn copy(&self, record: &Record, to: &mut Vec<u8>) {
        let from = self.data(record);
        to.reserve(record.length);
        // SAFETY: `from` is valid for that many bytes (checked), `to` has room for them, and
        // private memory does not overlap the segment. Another process may write meanwhile: then
        // the bytes are whatever they are, and their CRC is checked in private memory.
        unsafe {
            copy(from, to.as_mut_ptr().add(to.len()), record.length);
            to.set_len(to.len() + record.length);
        }
    }

    /// As [`Consumer::copy`]. If the data are one frame, that frame's CRC is computed on the way:
    /// its header, if that and the CRC are right, and the copy need not be checked again (only a
    /// limit on messages that is below a record's is not known here). `None` says nothing.
    #[inline]
    pub(crate) fn copy_frame(&self, record: &Record, to: &mut Vec<u8>) -> Option<Header> {
        to.reserve(record.length);
        // SAFETY: `to` has room for that many bytes, and `copy_frame_raw` writes them all.
        unsafe {
            let to_end = to.as_mut_ptr().add(to.len());
            let good = self.copy_frame_raw(record, to_end);
            to.set_len(to.len() + record.length);
            good
        }
    }

    /// As [`Consumer::copy_frame`], to the front of `to`.
    ///
    /// # Panics
    /// If that is shorter than the record.
    #[inline]
    pub(crate) fn copy_frame_to(&self, record: &Record, to: &mut [u8]) -> Option<Header> {
        let to = &mut to[..record.length];
        // SAFETY: `to` is as long as the record.
        unsafe { self.copy_frame_raw(record, to.as_mut_ptr()) }
    }

    /// # Safety
    /// `to` is private memory, writable for as many bytes as the record has.
    #[inline]
    unsafe fn copy_frame_raw(&self, record: &Record, to: *mut u8) -> Option<Header> {
        let from = self.data(record);
        // SAFETY: as in `copy`; the parts make up the record, which begins at a multiple of 8. What
        // the header says is looked at in registers, read once, and each of the payload's bytes is
        // read once too, for the copy and the CRC.
        unsafe {
            if record.length < HEADER_BYTES {
                copy(from, to, record.length);
                return None;
            }
            // One by one: an array that is mapped goes through memory, and the reader waits for it.
            let word = |index| u64::from_le(from.cast::<u64>().add(index).read_volatile());
            let (first, second, third) = (word(0), word(1), word(2));
            let words = [first, second, third];
            let put = |index, word: u64| to.cast::<u64>().add(index).write_unaligned(word.to_le());
            put(0, first);
            put(1, second);
            put(2, third);
            let (from, to) = (from.add(HEADER_BYTES), to.add(HEADER_BYTES));
            let length = record.length - HEADER_BYTES;
            let header = Header::from_words(words, u32::MAX)
                .filter(|header| header.length as usize == length);
            let Some(header) = header else {
                copy(from, to, length);
                return None;
            };
            let crc = crc::frame_copy_raw(words, to, from, length);
            (header.crc32 == crc).then_some(header)
        }
    }

    /// Appends the payload of the frame that makes up the record, if it is one, `wanted` says yes to
    /// its header, and its CRC is right. `None`: `to` has what it had, and the record may still be
    /// taken in another way, which looks at everything anew.
    #[inline]
    pub(crate) fn copy_payload(
        &self,
        record: &Record,
        to: &mut Vec<u8>,
        wanted: impl FnOnce(&Header) -> bool,
    ) -> Option<()> {
        let length = record.length.checked_sub(HEADER_BYTES)?;
        let from = self.data(record);
        // SAFETY: the record has a header (checked), which begins at a multiple of 8; it is read once,
        // into registers.
        let word = |index| u64::from_le(unsafe { from.cast::<u64>().add(index).read_volatile() });
        let words = [word(0), word(1), word(2)];
        let header = Header::from_words(words, u32::MAX)
            .filter(|header| header.length as usize == length && wanted(header))?;
        to.reserve(length);
        // SAFETY: `to` has room for the payload behind its end, and that becomes part of it only
        // once all is written and right. Otherwise as in `copy_frame_raw`.
        unsafe {
            let to_end = to.as_mut_ptr().add(to.len());
            let crc = crc::frame_copy_raw(words, to_end, from.add(HEADER_BYTES), length);
            if header.crc32 != crc {
                return None;
            }
            to.set_len(to.len() + length);
        }
        Some(())
    }

    /// Copies the first bytes of the record's data into `to`, at most what is there; says how many.
    #[inline]
    pub(crate) fn copy_part(&self, from_byte: usize, record: &Record, to: &mut [u8]) -> usize {
        let count = to.len().min(record.length - from_byte);
        let from = self.data(record);
        // SAFETY: as in `copy`; `from_byte + count` is at most the record's length.
        unsafe { copy(from.add(from_byte), to.as_mut_ptr(), count) };
        count
    }

    /// Appends these of the record's data to `to`. Returns the CRC of what `sum` is the CRC of,
    /// followed by the bytes that are there now.
    ///
    /// # Panics
    /// If the record has fewer bytes.
    #[inline]
    pub(crate) fn copy_summed(
        &self,
        record: &Record,
        range: Range<usize>,
        to: &mut Vec<u8>,
        sum: u32,
    ) -> u32 {
        assert!(range.start <= range.end && range.end <= record.length);
        let from = self.data(record);
        let count = range.end - range.start;
        to.reserve(count);
        // SAFETY: as in `copy`; the range lies in the record (checked). Each byte is read once, for
        // the copy and the CRC.
        unsafe {
            let to_end = to.as_mut_ptr().add(to.len());
            let sum = crc::copy_raw(to_end, from.add(range.start), count, sum);
            to.set_len(to.len() + count);
            sum
        }
    }

    /// Goes on to the next record. Returns what the producer acknowledged with this one.
    #[inline]
    pub(crate) fn advance(&mut self, record: &Record) -> u32 {
        self.two_lines = is_two_lines(record.length);
        self.next = match record.next_wraps {
            true => self.places.next_lap(self.next),
            false => self.places.after(self.next, record_bytes(record.length)),
        };
        record.ack
    }

    /// Tells the producer how far we are.
    #[inline]
    pub(crate) fn publish(&mut self) {
        if self.published != self.next.position {
            self.published = self.next.position;
            // Release: pairs with the acquire in `Producer::has_room`: we have read all before it.
            self.segment
                .word64(self.places.consumed)
                .store(self.next.position, Ordering::Release);
        }
    }

    /// Says whether we wait for being told of records. After `true`, look again before sleeping.
    pub(crate) fn set_waiting(&self, waiting: bool) {
        self.waiting_word()
            .store(u32::from(waiting), Ordering::Relaxed);
        if waiting {
            // SeqCst: pairs with the fence in `super::ends::Ends::peer_needs_waking`: either our second look
            // sees the record, or the producer sees the flag.
            fence(Ordering::SeqCst);
        }
    }

    /// The word that says whether we wait; a client sleeps on it.
    pub(crate) fn waiting_word(&self) -> &AtomicU32 {
        self.segment.word32(self.waiting_word_at())
    }

    /// Where that word lies in the segment.
    pub(crate) fn waiting_word_at(&self) -> usize {
        self.places.consumer_flags + FLAG_WAITING
    }
}
