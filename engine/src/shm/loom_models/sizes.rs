//! Sizes with which a lap is a few records: the hot area holds two of the longest, the rest one.

pub(super) const CAPACITY: usize = 512;
pub(super) const HOT: usize = 320;
pub(super) const PAGE: usize = 512 + 2 * HOT;
pub(crate) const RECORD_MAX: usize = 128 - super::layout::WORD;
