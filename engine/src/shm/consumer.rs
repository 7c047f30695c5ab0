//! The side of a ring that reads records; see [`super::ring`].

use std::ops::Range;
use std::sync::Arc;

use super::copy::copy;
use super::layout::{FLAG_WAITING, HOT, Place, RECORD_MAX, RingPlaces, WORD, record_bytes};
use super::ring::{
    ACK_SHIFT, CRC_BYTES, Corrupt, ENDS_WITH_CRC, LENGTH_MASK, LINE, NEXT_WRAPS, SKIP, STAMP_MASK,
    is_no_commit_word, is_two_lines, stamp_of,
};
use super::sync::{AtomicU32, Ordering, Segment, fence};
use crate::sys::{pause, prefetch};
use crate::wire::{GoodFirst, HEADER_BYTES, HEADER_WORDS, Header, crc};

/// The waiting word of a side that does not wait.
pub(super) const NOBODY: u32 = 0;
/// It waits, and it is not known where. Older versions of the library say this always. What is greater says where: on
/// the CPU whose number is that much less [`FIRST_CPU`].
const ANYWHERE: u32 = 1;
/// It waits on CPU 0.
pub(super) const FIRST_CPU: u32 = 2;

/// Reads records.
#[derive(Debug)]
pub(crate) struct Consumer {
    segment: Arc<Segment>,
    pub(super) places: &'static RingPlaces,
    /// Where the next record begins.
    next: Place,
    /// The bits of [`STAMP_MASK`] that its commit word will have.
    stamp: u64,
    /// The position that the producer was last told.
    published: u64,
    /// The last record lay in two cache lines.
    two_lines: bool,
    /// How often to pause between two looks at them.
    pauses: u32,
    /// The beginning of the last good header.
    good_first: GoodFirst,
}

/// A committed record: `length` bytes of data at the consumer's position.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record {
    pub(crate) length: usize,
    next_wraps: bool,
    ends_with_crc: bool,
    ack: u32,
}

impl Record {
    /// Whether its data end with the CRC of the frame before that: see [`super::ring`].
    #[inline]
    pub(crate) fn ends_with_crc(&self) -> bool {
        self.ends_with_crc
    }

    /// How many of its bytes are those of frames.
    #[inline]
    pub(crate) fn frame_bytes(&self) -> usize {
        let rest = if self.ends_with_crc { CRC_BYTES } else { 0 };
        self.length.saturating_sub(rest)
    }
}

impl Consumer {
    pub(super) fn new(segment: Arc<Segment>, places: &'static RingPlaces) -> Consumer {
        Consumer {
            segment,
            places,
            next: places.place(0),
            stamp: stamp_of(places.place(0)),
            published: 0,
            two_lines: false,
            pauses: pause::between_looks(),
            good_first: GoodFirst::new(),
        }
    }

    pub(crate) fn position(&self) -> u64 {
        self.next.position
    }

    #[inline]
    fn load(&self) -> u64 {
        // Acquire: pairs with the releases in `Producer::publish` and `Producer::settle`.
        self.segment
            .word64(self.next.address)
            .load(Ordering::Acquire)
    }

    /// Whether there is a record, or something wrong, which `next` reports.
    #[inline]
    pub(crate) fn has_record(&self) -> bool {
        let word = self.load();
        word & STAMP_MASK == self.stamp || is_no_commit_word(word)
    }

    #[inline(always)]
    fn go_to(&mut self, next: Place) {
        self.next = next;
        self.stamp = stamp_of(next);
    }

    /// As [`Consumer::has_record`], for polling. If the last record had two lines, the second line of the next
    /// one is prefetched, so that it comes with the first and not after it. Not after a longer record: its
    /// lines would be taken away from the producer, which still writes them.
    #[inline]
    pub(crate) fn poll(&self) -> bool {
        if self.two_lines {
            let begin = self.segment.at(self.next.address, WORD);
            prefetch::to_read(begin.wrapping_add(LINE));
        }
        self.has_record()
    }

    /// How often to pause between two calls of [`Consumer::poll`].
    #[inline(always)]
    pub(crate) fn pauses(&self) -> u32 {
        if self.two_lines { self.pauses } else { 1 }
    }

    /// The next record, if it is committed.
    #[inline(always)]
    pub(crate) fn next(&mut self) -> Result<Option<Record>, Corrupt> {
        // Two skips at most: from the hot area to the other one, and from its end to the start.
        for _ in 0..3 {
            let word = self.load();
            if word & STAMP_MASK != self.stamp {
                if is_no_commit_word(word) {
                    return Err(Corrupt("no commit word where one belongs"));
                }
                return Ok(None);
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
                    ends_with_crc: word & ENDS_WITH_CRC != 0,
                    ack: (word >> ACK_SHIFT) as u32,
                }));
            }
            let over_hot = at.offset() >= HOT && length == at.left + HOT;
            if length != at.left && !over_hot {
                return Err(Corrupt("a skip that leads nowhere"));
            }
            self.go_to(self.places.place(at.position + length as u64));
        }
        Err(Corrupt("skips without end"))
    }

    /// As [`Consumer::next`], while a long frame is gathered. The record has at least a byte of frames.
    #[inline]
    pub(crate) fn next_piece(&mut self) -> Result<Option<Record>, Corrupt> {
        match self.next()? {
            Some(record) if record.frame_bytes() == 0 => {
                Err(Corrupt("a CRC without a frame's end"))
            }
            record => Ok(record),
        }
    }

    /// The address of the data of the next record: valid for all of its length.
    #[inline]
    fn data(&self, record: &Record) -> *const u8 {
        self.segment
            .at_to_read(self.next.address + WORD, record.length)
    }

    /// Appends the record's data to `to`, which makes them private.
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

    /// As [`Consumer::copy`], with the CRC computed in the same pass. If the data are one whole frame whose
    /// header and CRC are right, returns the header, and the copy need not be checked again, except for the
    /// caller's limit on messages. `None` means that it is not known whether they are.
    #[inline(always)]
    pub(crate) fn copy_frame(&mut self, record: &Record, to: &mut Vec<u8>) -> Option<Header> {
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
    #[inline(always)]
    pub(crate) fn copy_frame_to(&mut self, record: &Record, to: &mut [u8]) -> Option<Header> {
        let to = &mut to[..record.length];
        // SAFETY: `to` is as long as the record.
        unsafe { self.copy_frame_raw(record, to.as_mut_ptr()) }
    }

    /// The header in these words, if it is good (its CRC is not checked) and announces a payload of `length`
    /// bytes.
    #[inline(always)]
    fn good_header(&mut self, words: [u64; HEADER_WORDS], length: usize) -> Option<Header> {
        let header = self.good_first.header(words)?;
        (header.length as usize == length).then_some(header)
    }

    /// As [`Consumer::copy_frame`], to an address.
    ///
    /// # Safety
    /// `to` is private memory, writable for as many bytes as the record has.
    #[inline(always)]
    unsafe fn copy_frame_raw(&mut self, record: &Record, to: *mut u8) -> Option<Header> {
        let from = self.data(record);
        // SAFETY: as in `copy`; the parts make up the record, which begins at a multiple of 8. What
        // the header says is looked at in registers, read once, and each of the payload's bytes is
        // read once too, for the copy and the CRC.
        unsafe {
            if record.length < HEADER_BYTES {
                copy(from, to, record.length);
                return None;
            }
            // One by one, since an array would go through memory.
            let word = |index| u64::from_le(from.cast::<u64>().add(index).read_volatile());
            let (first, second, third) = (word(0), word(1), word(2));
            let words = [first, second, third];
            let put = |index, word: u64| to.cast::<u64>().add(index).write_unaligned(word.to_le());
            put(0, first);
            put(1, second);
            put(2, third);
            let (from, to) = (from.add(HEADER_BYTES), to.add(HEADER_BYTES));
            let length = record.length - HEADER_BYTES;
            let Some(header) = self.good_header(words, length) else {
                copy(from, to, length);
                return None;
            };
            let crc = crc::frame_copy_raw(words, to, from, length);
            (header.crc32 == crc).then_some(header)
        }
    }

    /// If the record is one whole frame, `wanted` accepts its header, and its CRC is right, appends its payload
    /// to `to`. `None` if not; then `to` is as it was, and the record can still be taken in another way, which
    /// checks everything anew.
    #[inline]
    pub(crate) fn copy_payload(
        &mut self,
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
        let header = self.good_header(words, length).filter(wanted)?;
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

    /// Copies the record's data from `from_byte` on into `to`, as far as they fit; returns how many bytes.
    #[inline]
    pub(crate) fn copy_part(&self, from_byte: usize, record: &Record, to: &mut [u8]) -> usize {
        let count = to.len().min(record.length - from_byte);
        let from = self.data(record);
        // SAFETY: as in `copy`; `from_byte + count` is at most the record's length.
        unsafe { copy(from.add(from_byte), to.as_mut_ptr(), count) };
        count
    }

    /// The CRC with which the record ends, if it does.
    pub(crate) fn crc_at_end(&self, record: &Record) -> Option<u32> {
        record.ends_with_crc.then(|| {
            let mut crc = [0; CRC_BYTES];
            self.copy_part(record.frame_bytes(), record, &mut crc);
            u32::from_le_bytes(crc)
        })
    }

    /// Appends this range of the record's data to `to`, computing the CRC in the same pass: `sum` is the CRC of
    /// what came before, and the result that of both.
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

    /// Moves on to the next record. Returns how far the producer had consumed our ring when it sent this one,
    /// for [`super::producer::Producer::acknowledged`].
    #[inline]
    pub(crate) fn advance(&mut self, record: &Record) -> u32 {
        self.two_lines = is_two_lines(record.length);
        self.go_to(match record.next_wraps {
            true => self.places.next_lap(self.next),
            false => self.places.after(self.next, record_bytes(record.length)),
        });
        record.ack
    }

    /// Publishes our position, so that the producer can use the room before it.
    #[inline]
    pub(crate) fn publish(&mut self) {
        if self.published != self.next.position {
            self.published = self.next.position;
            // Release: pairs with the acquires in `Producer::has_room` and `Producer::consumer_has_moved`: we
            // have read everything before it.
            self.segment
                .word64(self.places.consumed)
                .store(self.next.position, Ordering::Release);
        }
    }

    /// Says that we want to be woken when there is a record, and that we wait on this CPU, if that is known. Look once
    /// more before sleeping. Returns what the waiting word says.
    pub(crate) fn wait_on(&self, cpu: Option<u32>) -> u32 {
        let word = cpu.map_or(ANYWHERE, |cpu| cpu.saturating_add(FIRST_CPU));
        self.waiting_word().store(word, Ordering::Relaxed);
        // SeqCst: pairs with the fence in `super::ends::Ends::peer_needs_waking`: either our second look
        // sees the record, or the producer sees the flag.
        fence(Ordering::SeqCst);
        word
    }

    /// Takes back that we want to be woken.
    pub(crate) fn wait_no_more(&self) {
        self.waiting_word().store(NOBODY, Ordering::Relaxed);
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
