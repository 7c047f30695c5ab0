//! One direction of a connection: a single producer, a single consumer, and memory that the other
//! side may corrupt.
//!
//! The commit word lies in the record: the consumer polls the place where the next record will be,
//! and the cache line that tells of a small record is the one that holds it. Nobody clears records.
//! Before a record is committed, the producer sees to it that where the next one will begin nothing
//! looks like the commit word of one; the commit's release store publishes both. (The trick is known
//! from single-producer logs; Aeron's consumers clear instead.)
//!
//! A commit word is stamped with the lap of its record, and one of the lap before counts as nothing. So
//! a place where there was a commit word in the lap before needs no clearing: a store saved, whose
//! line the consumer would have to give up for it (up to a third of a round trip, see
//! docs/benchmarks.md). That is so at a lap's start always, and elsewhere where the producer knows it
//! ([`Stamped`]).
//!
//! Each commit word carries how far its sender has consumed the other ring, so in request and
//! response traffic the line with the consumer's position is never read.
//!
//! A record that does not fit in what is left of its area is preceded by a SKIP word. When the
//! consumer keeps up, the producer turns back to the ring's start early (NEXT_WRAPS), so that few
//! cache lines, and one page, are used over and over.
//!
//! Here is what both sides agree on; [`super::producer`] and [`super::consumer`] are the sides.

use super::layout::{ALIGN, CAPACITY, Place, WORD};

const COMMITTED: u64 = 1 << 24;
pub(super) const NEXT_WRAPS: u64 = 1 << 25;
pub(super) const SKIP: u64 = 1 << 26;
pub(super) const LENGTH_MASK: u64 = (1 << 24) - 1;
/// The record is of an odd lap.
const ODD_LAP: u64 = 1 << 27;
const UNKNOWN_BITS: u64 =
    u32::MAX as u64 & !(LENGTH_MASK | COMMITTED | NEXT_WRAPS | SKIP | ODD_LAP);
/// What says that a word is the commit word of a record of this lap and not of the one before.
pub(super) const STAMP_MASK: u64 = COMMITTED | ODD_LAP | UNKNOWN_BITS;
pub(super) const ACK_SHIFT: u32 = 32;
/// Bytes of a cache line.
pub(super) const LINE: usize = 64;

/// The other side wrote what the protocol does not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Corrupt(pub(crate) &'static str);

impl std::fmt::Display for Corrupt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the other side corrupted the shared ring: {}", self.0)
    }
}

/// Whether a record of so many data bytes lies in two cache lines, as small frames do.
#[inline]
pub(super) fn is_two_lines(length: usize) -> bool {
    WORD + length > LINE && WORD + length <= 2 * LINE
}

/// What a commit word of a record at `place` has under [`STAMP_MASK`].
#[inline(always)]
pub(super) fn stamp_of(place: Place) -> u64 {
    let odd = place.position / CAPACITY as u64 % 2;
    COMMITTED | (odd * ODD_LAP)
}

/// Whether the producer broke its word: what lies where a record will begin is 0, or a commit word of
/// the lap before.
#[inline(always)]
pub(super) fn is_no_commit_word(word: u64) -> bool {
    word != 0 && word & (COMMITTED | UNKNOWN_BITS) != COMMITTED
}

/// How far a side has come, as commit words tell it.
pub(super) fn ack_of(position: u64) -> u32 {
    (position / ALIGN as u64) as u32
}

/// A place, other than a lap's start, of which the producer knows that what lies there is the commit word
/// of a record of `lap`.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Stamped {
    /// 0: no place is known.
    address: usize,
    lap: u64,
}

impl Stamped {
    /// A record's commit word is put at `at`, and its data over the `bytes` there.
    #[inline(always)]
    pub(super) fn record(&mut self, at: Place, bytes: usize) {
        if at.offset() != 0 {
            *self = Stamped {
                address: at.address,
                lap: at.lap(),
            };
        } else {
            self.overwritten(at, bytes);
        }
    }

    /// Anything may be in these bytes now.
    #[inline(always)]
    pub(super) fn overwritten(&mut self, at: Place, bytes: usize) {
        if self.address.wrapping_sub(at.address) < bytes {
            self.address = 0;
        }
    }

    /// Whether what lies at `next` may look like the commit word of a record there.
    #[inline(always)]
    pub(super) fn needs_clearing(&self, next: Place) -> bool {
        let known = next.address == self.address && next.lap() == self.lap + CAPACITY as u64;
        // A lap's start has a commit word of the lap before, or the 0 of new memory.
        next.offset() != 0 && !known
    }
}
