//! A worker's spare buffers. A connection takes one while it has something to gather or to send, so that an
//! idle connection holds none and a busy one allocates none.

use crate::spare_buffers::SpareBuffers;

/// Buffers of up to this capacity are small: the answers to all receive buffers of a round fit.
const SMALL_BYTES_MAX: usize = 256 * 1024;
/// Larger ones are large.
const LARGE_BYTES_MIN: usize = SMALL_BYTES_MAX + 1;
/// Larger ones than this are freed, not kept.
const LARGE_BYTES_MAX: usize = 2 * 1024 * 1024;
/// How many buffers of each kind are kept.
const KEPT_MAX: usize = 256;
/// How much memory the small ones may hold in all.
const SMALL_TOTAL_BYTES_MAX: usize = 1024 * 1024;
/// How much the large ones may hold: to map megabytes anew for each message costs more than the message.
const LARGE_TOTAL_BYTES_MAX: usize = 4 * 1024 * 1024;
/// The capacity of a new buffer: enough for most rounds, so that it does not grow in one of the next. What
/// is not used of it is not resident.
pub(super) const NEW_BYTES: usize = 16 * 1024;
/// How many small buffers a worker without work keeps.
const KEPT_AT_REST_MAX: usize = 2;
/// The greatest capacity of those.
const KEPT_AT_REST_BYTES_MAX: usize = NEW_BYTES;

/// Buffers that no connection uses at the moment.
#[derive(Default)]
pub(crate) struct VecPool {
    small: SpareBuffers,
    /// Kept apart, so that a large buffer is not taken for a short message and missing for a long one.
    large: SpareBuffers,
}

impl VecPool {
    /// An empty buffer for something short.
    #[inline]
    pub(super) fn take(&mut self) -> Vec<u8> {
        let new = || Vec::with_capacity(NEW_BYTES);
        self.small.pop().unwrap_or_else(new)
    }

    /// An empty buffer for about so many bytes; its capacity may be less.
    #[inline]
    pub(super) fn take_for(&mut self, bytes: usize) -> Vec<u8> {
        let large = match bytes {
            0..=SMALL_BYTES_MAX => None,
            _ => self.large.pop(),
        };
        large.unwrap_or_else(|| self.take())
    }

    /// An empty buffer whose capacity is at most this; perhaps none.
    pub(super) fn take_small(&mut self, bytes_max: usize) -> Vec<u8> {
        self.small.pop_small(bytes_max).unwrap_or_default()
    }

    /// Takes a buffer back, and keeps it if there is place.
    #[inline]
    pub(super) fn give(&mut self, buffer: Vec<u8>) {
        match buffer.capacity() {
            1..=SMALL_BYTES_MAX => self.small.push(buffer, KEPT_MAX, SMALL_TOTAL_BYTES_MAX),
            LARGE_BYTES_MIN..=LARGE_BYTES_MAX => {
                self.large.push(buffer, KEPT_MAX, LARGE_TOTAL_BYTES_MAX);
            }
            _ => {}
        }
    }

    /// Frees the buffers, because the worker had no work for a while. A few small ones stay, so that a worker
    /// that is woken for every message need not allocate for every message.
    pub(super) fn release(&mut self) {
        self.small.shrink(KEPT_AT_REST_MAX, KEPT_AT_REST_BYTES_MAX);
        self.large = SpareBuffers::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LARGE: usize = 1 << 20;

    #[test]
    fn large_buffers_are_for_long_messages_and_come_back() {
        let mut pool = VecPool::default();
        for _ in 0..10 {
            pool.give(Vec::with_capacity(64));
            pool.give(Vec::with_capacity(LARGE));
        }
        // As many as the budget allows, and not one more.
        assert_eq!(pool.large.bytes(), LARGE_TOTAL_BYTES_MAX);
        assert_eq!(pool.small.bytes(), 10 * 64);
        assert_eq!(pool.take_for(LARGE).capacity(), LARGE);
        let long = pool.take_for(LARGE);
        assert_eq!(long.capacity(), LARGE);
        assert_eq!(pool.take().capacity(), 64);
        assert_eq!(pool.take_small(63).capacity(), 0);
        pool.give(long);
        assert_eq!(pool.take_for(LARGE).capacity(), LARGE);
    }

    #[test]
    fn without_work_only_a_few_small_ones_stay() {
        let mut pool = VecPool::default();
        for _ in 0..5 {
            pool.give(Vec::with_capacity(64));
            pool.give(Vec::with_capacity(KEPT_AT_REST_BYTES_MAX + 1));
        }
        pool.give(Vec::with_capacity(LARGE));
        pool.release();
        assert_eq!(pool.small.bytes(), KEPT_AT_REST_MAX * 64);
        assert_eq!(pool.take_for(LARGE).capacity(), 64);
    }
}
