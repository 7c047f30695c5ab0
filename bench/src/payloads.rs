//! Payloads to be sent, and to be expected in answers.

/// So many different payloads go in turn, where they are short.
const TURN: usize = 16;
/// Longer ones are one that is stamped anew: many of them would not lie in the cache.
const SHORT_BYTES_MAX: usize = 4096;

/// A payload, of which no two bytes next to each other are the same.
pub fn payload(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|index| (index * 31 + 7) as u8).collect()
}

/// Puts a number into its first bytes.
pub fn stamp(payload: &mut [u8], number: u64) {
    let bytes = number.to_le_bytes();
    let count = bytes.len().min(payload.len());
    payload[..count].copy_from_slice(&bytes[..count]);
}

/// The payloads of messages that follow each other: each differs from those before it in its first bytes.
///
/// Short ones are made beforehand. What has just been stored in a narrow piece and is then copied or
/// compared in wide ones is waited for, some twenty cycles: with many small messages on their way, to
/// stamp and compare each was a third of what was measured, of every system.
pub struct Payloads {
    all: Vec<Vec<u8>>,
}

impl Payloads {
    pub fn new(bytes: usize) -> Payloads {
        let count = if bytes > SHORT_BYTES_MAX { 1 } else { TURN };
        let mut all = vec![payload(bytes); count];
        for (number, payload) in all.iter_mut().enumerate() {
            stamp(payload, number as u64);
        }
        Payloads { all }
    }

    /// The payload of the message with this number.
    #[inline]
    pub fn of(&mut self, number: u64) -> &[u8] {
        match self.all.len() {
            // By a constant: to divide takes as long as to carry the message.
            TURN => &self.all[number as usize % TURN],
            _ => self.stamped(number),
        }
    }

    /// Of long ones. Not in line, where short ones are.
    #[inline(never)]
    fn stamped(&mut self, number: u64) -> &[u8] {
        let one = &mut self.all[0];
        stamp(one, number);
        one
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_follow_each_other_differ() {
        for bytes in [1, 8, 64, SHORT_BYTES_MAX, SHORT_BYTES_MAX + 1] {
            let (mut sent, mut expected) = (Payloads::new(bytes), Payloads::new(bytes));
            for number in 0..100 {
                assert_eq!(sent.of(number).len(), bytes);
                assert_ne!(sent.of(number + 1), expected.of(number));
                assert_eq!(sent.of(number), expected.of(number));
            }
        }
    }
}
