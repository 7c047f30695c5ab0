//! Arithmetic modulo the Castagnoli polynomial, run by the compiler to make the kernels' constants.
//!
//! Everything is in the reflected order of the CRC: bit 31 of a `u32` is the coefficient of `x^0`.

/// The polynomial 0x1EDC6F41, reflected.
pub(super) const POLYNOMIAL: u32 = 0x82F6_3B78;

/// `value * x^bits mod P`.
pub(super) const fn times_x(mut value: u32, bits: u32) -> u32 {
    let mut i = 0;
    while i < bits {
        value = (value >> 1) ^ (POLYNOMIAL & (value & 1).wrapping_neg());
        i += 1;
    }
    value
}

/// `value / x^bits mod P`: what [`times_x`] takes to `value`.
pub(super) const fn over_x(mut value: u32, bits: u32) -> u32 {
    let mut i = 0;
    while i < bits {
        // P has a coefficient of x^0. So that of the value says whether P was subtracted.
        let subtracted = value >> 31;
        value = ((value ^ (POLYNOMIAL & subtracted.wrapping_neg())) << 1) | subtracted;
        i += 1;
    }
    value
}

/// The two factors that carry a 16-byte lane forward by `16 * lanes` bytes, for the lane's first
/// and second 8 bytes.
///
/// With `T = 128 * lanes` bits, the first half has to be multiplied by `x^(T + 64)` and the second
/// by `x^T`. A carry-less product of reflected words comes out one bit lower than a reflected
/// 128-bit word would have it (a factor of x), and a 32-bit factor in the low half of a 64-bit
/// word stands 32 bits higher: so the exponents are 33 less.
const fn fold(lanes: u32) -> [u64; 2] {
    const ONE: u32 = 1 << 31;
    let bits = 128 * lanes;
    [
        times_x(ONE, bits + 64 - 33) as u64,
        times_x(ONE, bits - 33) as u64,
    ]
}

/// The furthest that a lane is carried in one step, in lanes.
///
/// One less than a multiple of 4: so that the factors for whole vectors lie aligned.
pub(super) const LANES_MAX: usize = 43;

/// Fold factors in falling order of distance, so that the factors of the lanes at rising addresses
/// lie at rising addresses too. The last entries (distance 0 and beyond the end) are zero: they
/// drop the final lane, which is taken as it is.
#[repr(C, align(64))]
pub(super) struct Factors([[u64; 2]; LANES_MAX + 4]);

impl Factors {
    /// Where the factors of a lane lie that has `lanes` lanes after it; 64 bytes may be read there.
    #[inline(always)]
    pub(super) fn at(&self, lanes: usize) -> *const u8 {
        debug_assert!(lanes <= LANES_MAX);
        self.0.as_ptr().wrapping_add(LANES_MAX - lanes).cast::<u8>()
    }

    /// The factor that carries a register standing before `words` 8-byte words onto the last.
    #[inline(always)]
    pub(super) fn word(&self, words: usize) -> u64 {
        debug_assert!(words >= 2);
        // Two words to a lane, the further one first: falling order by words as well.
        self.0.as_flattened()[2 * LANES_MAX + 1 - words]
    }
}

pub(super) static FACTORS: Factors = {
    let mut table = [[0; 2]; LANES_MAX + 4];
    let mut lanes = LANES_MAX;
    while lanes > 0 {
        table[LANES_MAX - lanes] = fold(lanes as u32);
        lanes -= 1;
    }
    Factors(table)
};

#[cfg(test)]
mod tests {
    use super::*;

    /// `a * b mod P` by the schoolbook, as a way to the powers that shares nothing with the table.
    fn multiply(a: u32, b: u32) -> u32 {
        let mut sum = 0;
        for i in 0..32 {
            if b & (1 << (31 - i)) != 0 {
                sum ^= times_x(a, i);
            }
        }
        sum
    }

    fn power_of_x(mut n: u64) -> u32 {
        let (mut square, mut result) = (1 << 30, 1 << 31);
        while n > 0 {
            if n & 1 != 0 {
                result = multiply(result, square);
            }
            square = multiply(square, square);
            n >>= 1;
        }
        result
    }

    #[test]
    fn factors_are_the_powers_of_x() {
        for lanes in 1..=LANES_MAX {
            let bits = 128 * lanes as u64;
            let expected = [
                u64::from(power_of_x(bits + 31)),
                u64::from(power_of_x(bits - 33)),
            ];
            assert_eq!(FACTORS.0[LANES_MAX - lanes], expected, "{lanes} lanes");
        }
        assert_eq!(FACTORS.0[LANES_MAX..], [[0; 2]; 4]);
    }

    #[test]
    fn a_division_takes_a_product_back() {
        for value in [0, 1, 1 << 31, POLYNOMIAL, u32::MAX, 0x1234_5678] {
            for bits in [0, 1, 2, 31, 32, 64, 1000] {
                assert_eq!(
                    over_x(times_x(value, bits), bits),
                    value,
                    "{value:#x}, {bits}"
                );
            }
        }
    }

    #[test]
    fn factors_agree_with_published_ones() {
        // Folding by 256 and by 16 bytes, as every published CRC-32C folding kernel has them.
        assert_eq!(FACTORS.0[LANES_MAX - 16], [0xdcb1_7aa4, 0xb9e0_2b86]);
        assert_eq!(FACTORS.0[LANES_MAX - 1], [0xf20c_0dfe, 0x493c_7d27]);
    }
}
