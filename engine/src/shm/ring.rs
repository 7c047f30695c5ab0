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
//!
//! Here is what both sides agree on; [`super::producer`] and [`super::consumer`] are the sides.

use super::layout::{ALIGN, WORD};

pub(super) const COMMITTED: u64 = 1 << 24;
pub(super) const NEXT_WRAPS: u64 = 1 << 25;
pub(super) const SKIP: u64 = 1 << 26;
pub(super) const LENGTH_MASK: u64 = (1 << 24) - 1;
pub(super) const KNOWN_BITS: u64 = LENGTH_MASK | COMMITTED | NEXT_WRAPS | SKIP;
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

/// How far a side has come, as commit words tell it.
pub(super) fn ack_of(position: u64) -> u32 {
    (position / ALIGN as u64) as u32
}
