//! Keys, which name connections in io_uring's `user_data`.

/// Names a connection: the index of its slot, and the slot's generation, which counts its reuses. An
/// operation that completes after its connection is gone carries an old generation and finds nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) index: u32,
    /// Only the low 24 bits are used, so that a key and an operation fit in `user_data`.
    pub(crate) generation: u32,
}

/// A generation has 24 bits, and wraps after that many reuses of one slot.
pub(crate) const GENERATION_MASK: u32 = 0x00FF_FFFF;

impl Key {
    /// A key for what belongs to the worker itself and not to a connection.
    pub(crate) const WORKER: Key = Key {
        index: u32::MAX,
        generation: 0,
    };

    pub(super) fn pack(self, operation: u8) -> u64 {
        debug_assert!(self.generation <= GENERATION_MASK);
        u64::from(operation) << 56 | u64::from(self.generation) << 32 | u64::from(self.index)
    }

    pub(super) fn unpack(user_data: u64) -> (u8, Key) {
        let key = Key {
            index: user_data as u32,
            generation: (user_data >> 32) as u32 & GENERATION_MASK,
        };
        ((user_data >> 56) as u8, key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packing_keeps_every_part() {
        for key in [
            Key::WORKER,
            Key {
                index: 0,
                generation: 0,
            },
            Key {
                index: 77,
                generation: GENERATION_MASK,
            },
        ] {
            for operation in [0, 1, 255] {
                assert_eq!(Key::unpack(key.pack(operation)), (operation, key));
            }
        }
    }
}
