//! A ring: one direction of a connection, with a single producer, a single consumer, and memory that the
//! other side may corrupt. Here is what both sides agree on; [`super::producer`] and [`super::consumer`] are
//! the sides.
//!
//! A *position* counts bytes since the connection began; a *lap* is one pass over the ring's memory. A record
//! is a *commit word*, then its data.
//!
//! **No tail index.** The consumer polls the place where the next record's commit word will be, so the cache
//! line that tells of a small record is the one that holds it. Nobody clears records after reading them.
//! Instead, before the producer commits a record, it makes sure that the place of the next one holds nothing
//! that looks like a commit word; the release store of the commit publishes both. (Single-producer logs do
//! the same; Aeron's consumers clear instead.)
//!
//! **Stamps save the clearing.** A commit word has the parity of its record's lap, and one of the lap before
//! counts as nothing. So a place that held a commit word in the lap before need not be cleared. That saves a
//! store to a cache line which the consumer holds, up to a third of a round trip (docs/benchmarks.md). It is
//! always so at a lap's start, and elsewhere if the producer knows it ([`Stamped`]).
//!
//! **Acknowledgements ride along.** Each commit word also says how far its sender has consumed the other ring,
//! so with requests and answers in turn the line with the consumer's position is never read.
//!
//! **A CRC may come last.** Of a frame that is longer than a record the header goes first, with 0 in the place of
//! the CRC. That is computed while the payload is copied, and ends the frame's last record (ENDS_WITH_CRC in the
//! commit word). To have it in the header, all of the payload had to be read before the first byte could go.
//!
//! **Wrapping.** A record that does not fit into the rest of its area is preceded by a SKIP word, which says how
//! far to skip. While the consumer keeps up, the producer turns back to the ring's start early (NEXT_WRAPS in
//! the commit word), so that a few cache lines, and one page, are used over and over.

use super::layout::{ALIGN, CAPACITY, Place, WORD};

/// The low 23 bits of a commit word: the record's length, or of a SKIP how many bytes to skip.
pub(super) const LENGTH_MASK: u64 = (1 << 23) - 1;
/// The record's last [`CRC_BYTES`] are the CRC of the frame whose payload ends before them. The field in that
/// frame's header was 0.
pub(super) const ENDS_WITH_CRC: u64 = 1 << 23;
/// Bytes of such a CRC.
pub(super) const CRC_BYTES: usize = size_of::<u32>();
/// Set in every commit word.
const COMMITTED: u64 = 1 << 24;
/// The next record is at the ring's start.
pub(super) const NEXT_WRAPS: u64 = 1 << 25;
/// There is no record here; the next one is as far ahead as the length says.
pub(super) const SKIP: u64 = 1 << 26;
/// The record belongs to an odd lap.
const ODD_LAP: u64 = 1 << 27;
/// Must be 0.
const UNKNOWN_BITS: u64 =
    u32::MAX as u64 & !(LENGTH_MASK | ENDS_WITH_CRC | COMMITTED | NEXT_WRAPS | SKIP | ODD_LAP);
/// The bits that tell a commit word of this lap from one of the lap before.
pub(super) const STAMP_MASK: u64 = COMMITTED | ODD_LAP | UNKNOWN_BITS;
/// The high 32 bits: how far the sender has consumed the other ring, see [`ack_of`].
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

/// Whether a record with this many bytes of data lies in exactly two cache lines, as small frames do.
#[inline]
pub(super) const fn is_two_lines(length: usize) -> bool {
    WORD + length > LINE && WORD + length <= 2 * LINE
}

/// The bits of [`STAMP_MASK`] that the commit word of a record at `place` has.
#[inline(always)]
pub(super) fn stamp_of(place: Place) -> u64 {
    let odd = place.position / CAPACITY as u64 % 2;
    COMMITTED | (odd * ODD_LAP)
}

/// Whether a word is neither 0 nor a commit word of some lap: nothing else may lie where the next record
/// begins, so the producer has broken the rules.
#[inline(always)]
pub(super) fn is_no_commit_word(word: u64) -> bool {
    word != 0 && word & (COMMITTED | UNKNOWN_BITS) != COMMITTED
}

/// A position as commit words carry it: in units of [`ALIGN`], modulo 2^32.
pub(super) fn ack_of(position: u64) -> u32 {
    (position / ALIGN as u64) as u32
}

/// The one place, besides a lap's start, of which the producer knows that it holds the commit word of a
/// record, and of which lap.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Stamped {
    /// Its offset in the segment. 0: no place is known.
    address: usize,
    lap: u64,
}

impl Stamped {
    /// Notes that a record is written at `at`, and takes `bytes` bytes.
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

    /// Notes that these bytes may hold anything now.
    #[inline(always)]
    pub(super) fn overwritten(&mut self, at: Place, bytes: usize) {
        if self.address.wrapping_sub(at.address) < bytes {
            self.address = 0;
        }
    }

    /// Whether `next` must be cleared, because what lies there may look like the commit word of a record.
    #[inline(always)]
    pub(super) fn needs_clearing(&self, next: Place) -> bool {
        let known = next.address == self.address && next.lap() == self.lap + CAPACITY as u64;
        // A lap's start always holds a commit word of the lap before, or the 0 of new memory.
        next.offset() != 0 && !known
    }
}
