//! Spare buffers, kept for reuse up to a limit: to map memory anew for each message costs more than the message.

/// Buffers of one kind.
#[derive(Debug, Default)]
pub(crate) struct SpareBuffers {
    buffers: Vec<Vec<u8>>,
    bytes: usize,
}

impl SpareBuffers {
    /// How much memory they hold.
    #[inline]
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many there are.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.buffers.len()
    }

    /// The last that was pushed.
    #[inline]
    pub(crate) fn pop(&mut self) -> Option<Vec<u8>> {
        let buffer = self.buffers.pop()?;
        self.bytes -= buffer.capacity();
        Some(buffer)
    }

    /// The last that was pushed of those with no more room than this.
    pub(crate) fn pop_small(&mut self, bytes_max: usize) -> Option<Vec<u8>> {
        let small = |buffer: &Vec<u8>| buffer.capacity() <= bytes_max;
        let index = self.buffers.iter().rposition(small)?;
        let buffer = self.buffers.swap_remove(index);
        self.bytes -= buffer.capacity();
        Some(buffer)
    }

    /// Keeps a buffer, if there are then no more than `count_max` buffers, which hold no more than `bytes_max`. Otherwise
    /// frees it.
    pub(crate) fn push(&mut self, mut buffer: Vec<u8>, count_max: usize, bytes_max: usize) {
        let bytes = buffer.capacity();
        if self.buffers.len() < count_max && self.bytes + bytes <= bytes_max {
            self.bytes += bytes;
            buffer.clear();
            self.buffers.push(buffer);
        }
    }

    /// Frees all but the first `count_max` buffers with a capacity of at most `bytes_max`.
    pub(crate) fn shrink(&mut self, count_max: usize, bytes_max: usize) {
        let mut stay = 0;
        self.buffers.retain(|buffer| {
            let stays = stay < count_max && buffer.capacity() <= bytes_max;
            stay += usize::from(stays);
            stays
        });
        self.bytes = self.buffers.iter().map(Vec::capacity).sum();
    }
}
