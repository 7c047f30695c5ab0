//! The CRC of a frame whose header is exchanged for another, without a look at its payload.

use super::gf::times_x;
use super::{HEADER_BYTES, header_seed};

/// `x^(8 * 2^n) mod P`: carries a CRC over `2^n` bytes.
const POWERS: [u32; usize::BITS as usize] = {
    let mut powers = [0; usize::BITS as usize];
    powers[0] = times_x(1 << 31, 8);
    let mut n = 1;
    while n < powers.len() {
        powers[n] = multiply(powers[n - 1], powers[n - 1]);
        n += 1;
    }
    powers
};

/// `a * b mod P`.
const fn multiply(mut a: u32, mut b: u32) -> u32 {
    let mut sum = 0;
    // Ends with the last of the 32 coefficients.
    while b != 0 {
        sum ^= a & (b >> 31).wrapping_neg();
        a = times_x(a, 1);
        b <<= 1;
    }
    sum
}

/// The CRC of a frame with the payload of one that has this `header` and `crc`, and the header
/// `other`. The headers' CRC fields count as zero whatever they hold.
///
/// A CRC is linear: that of a frame is the header's, carried over the payload, plus a term of the
/// payload alone, which is the same in both.
#[must_use]
pub fn exchange_header(
    crc: u32,
    header: &[u8; HEADER_BYTES],
    other: &[u8; HEADER_BYTES],
    payload_bytes: usize,
) -> u32 {
    let mut difference = header_seed(header) ^ header_seed(other);
    for (n, &power) in POWERS.iter().enumerate() {
        if (payload_bytes >> n) & 1 != 0 {
            difference = multiply(difference, power);
        }
    }
    crc ^ difference
}

#[cfg(test)]
mod tests {
    use super::super::frame_crc;
    use super::*;

    #[test]
    fn as_if_summed_anew() {
        let payload: Vec<u8> = (0..100_000u32).map(|at| ((at * 31) >> 3) as u8).collect();
        let header: [u8; HEADER_BYTES] = std::array::from_fn(|at| at as u8 * 11);
        for length in [0, 1, 2, 3, 63, 1000, 32_768, 65_537, 100_000] {
            let payload = &payload[..length];
            let crc = frame_crc(&header, payload);
            // Each field, and the CRC's own, which does not count.
            for at in [0, 5, 6, 8, 12, 19, 20, 23] {
                let mut other = header;
                other[at] ^= 0xA5;
                let exchanged = exchange_header(crc, &header, &other, length);
                assert_eq!(exchanged, frame_crc(&other, payload), "{at} of {length}");
            }
            // A payload that is not the same does not become right.
            if length > 0 {
                let other = std::array::from_fn(|at| at as u8);
                let exchanged = exchange_header(crc ^ 1, &header, &other, length);
                assert_ne!(exchanged, frame_crc(&other, payload));
            }
        }
    }
}
