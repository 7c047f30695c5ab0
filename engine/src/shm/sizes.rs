//! The sizes of a connection's segment. The loom models have much smaller ones of their own.

/// Bytes of each ring, a power of two.
pub(super) const CAPACITY: usize = 256 * 1024;
/// Bytes of a ring that lie in page 0.
pub(super) const HOT: usize = 1792;
/// Where the rest of the rings begins.
pub(super) const PAGE: usize = 4096;
/// The most data in one record.
pub(crate) const RECORD_MAX: usize = 32 * 1024 - super::layout::WORD;
