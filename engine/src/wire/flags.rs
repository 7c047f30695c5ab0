//! The flags byte.

use std::ops::{BitAnd, BitOr};

/// The flags of a frame: a set of bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Flags(u8);

impl Flags {
    /// A one-way message.
    pub const NONE: Flags = Flags(0);
    /// The payload is a u32 uncompressed size, then one LZ4 block.
    pub const COMPRESSED: Flags = Flags(0x01);
    /// More frames with this id and direction follow.
    pub const STREAM: Flags = Flags(0x04);
    /// Handled before frames without it that are waiting on the same worker.
    pub const PRIORITY: Flags = Flags(0x08);
    /// A response is expected.
    pub const REQUEST: Flags = Flags(0x10);
    /// Answers the request with this id.
    pub const RESPONSE: Flags = Flags(0x20);

    const RESERVED: u8 = 0x02 | 0x40 | 0x80;

    /// The flags of a byte as it came; see [`Flags::is_valid`].
    pub const fn from_bits(bits: u8) -> Flags {
        Flags(bits)
    }

    /// The byte.
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// Whether all bits of `other` are set.
    pub const fn contains(self, other: Flags) -> bool {
        self.0 & other.0 == other.0
    }

    /// These flags but for those of `other`.
    #[inline]
    pub(crate) const fn without(self, other: Flags) -> Flags {
        Flags(self.0 & !other.0)
    }

    /// No reserved bit, and not both REQUEST and RESPONSE.
    pub const fn is_valid(self) -> bool {
        const BOTH: u8 = Flags::REQUEST.0 | Flags::RESPONSE.0;
        self.0 & Flags::RESERVED == 0 && self.0 & BOTH != BOTH
    }
}

impl BitOr for Flags {
    type Output = Flags;
    fn bitor(self, other: Flags) -> Flags {
        Flags(self.0 | other.0)
    }
}

impl BitAnd for Flags {
    type Output = Flags;
    fn bitand(self, other: Flags) -> Flags {
        Flags(self.0 & other.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_256_bytes() {
        for bits in 0..=255u8 {
            let reserved = bits & 0b1100_0010 != 0;
            let both = bits & 0x30 == 0x30;
            assert_eq!(
                Flags::from_bits(bits).is_valid(),
                !reserved && !both,
                "{bits:#04x}"
            );
            assert_eq!(Flags::from_bits(bits).bits(), bits);
        }
    }
}
