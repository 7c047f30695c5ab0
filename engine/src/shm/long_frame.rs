//! A frame that is longer than a record, on its way into a ring: piece by piece, with its CRC behind the last
//! piece (see [`super::ring`]).

use super::layout::{RECORD_MAX, WORD};
use super::producer::{Piece, Producer};
use super::ring::CRC_BYTES;
use crate::wire::{HEADER_BYTES, Header, crc};

/// The length of a piece's record: the reader has the first piece soon, and the last is soon done when it has come.
/// Frames of 64 KiB take 0.8 (ECHO) and 0.63 (answer alone) of the time that they take in records of RECORD_MAX.
const PIECE_BYTES: usize = 8 * 1024;
/// The same while more than [`MUCH_BYTES`] are to be sent.
const LONGER_PIECE_BYTES: usize = 16 * 1024;
/// While more than this is to be sent, both sides have enough to do at the same time, and longer records cost less.
pub(crate) const MUCH_BYTES: usize = 128 * 1024;

/// How far such a frame is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LongFrame {
    /// Without the CRC.
    header: Header,
    /// How many of the frame's bytes are in the ring.
    sent_bytes: usize,
    /// The CRC of the header and what is in the ring of the payload.
    sum: u32,
}

impl LongFrame {
    /// A frame of which nothing is sent yet. Header and payload are longer than RECORD_MAX.
    pub(crate) fn new(header: Header) -> LongFrame {
        let frame = LongFrame {
            header,
            sent_bytes: 0,
            sum: crc::header_seed(&header.to_bytes()),
        };
        assert!(frame.frame_bytes() > RECORD_MAX);
        frame
    }

    pub(crate) fn header(&self) -> Header {
        self.header
    }

    pub(crate) fn frame_bytes(&self) -> usize {
        HEADER_BYTES + self.header.length as usize
    }

    pub(crate) fn sent_bytes(&self) -> usize {
        self.sent_bytes
    }

    pub(crate) fn is_sent(&self) -> bool {
        self.rest_bytes() == 0
    }

    /// How many of the payload's bytes are not sent yet.
    pub(crate) fn rest_bytes(&self) -> usize {
        self.frame_bytes() - self.sent_bytes.max(HEADER_BYTES)
    }

    /// What of the payload is not sent yet.
    pub(crate) fn rest<'a>(&self, payload: &'a [u8]) -> &'a [u8] {
        &payload[payload.len() - self.rest_bytes()..]
    }

    /// Puts into the ring what fits of the payload's rest, which is all that is not sent yet. Returns how many
    /// bytes of it.
    pub(crate) fn push(&mut self, tx: &mut Producer, ack: u64, rest: &[u8]) -> usize {
        debug_assert_eq!(rest.len(), self.rest_bytes());
        let mut pushed = 0;
        // Bounded by the ring's room.
        while let Some(piece) = self.piece(&rest[pushed..]) {
            let Some(sum) = tx.push_piece(&piece, ack) else {
                break;
            };
            pushed += piece.payload.len();
            self.sent_bytes += piece.header.map_or(0, |_| HEADER_BYTES) + piece.payload.len();
            self.sum = sum;
        }
        pushed
    }

    /// The next piece, of a payload's rest.
    fn piece<'a>(&self, rest: &'a [u8]) -> Option<Piece<'a>> {
        let record_bytes = match rest.len() > MUCH_BYTES {
            true => LONGER_PIECE_BYTES,
            false => PIECE_BYTES,
        };
        let (header, room) = match self.sent_bytes {
            0 => (Some(self.header), record_bytes - WORD - HEADER_BYTES),
            _ => (None, record_bytes - WORD),
        };
        let is_last = rest.len() + CRC_BYTES <= room;
        // At least a byte is left for the last piece, which completes the frame.
        let bytes = match is_last {
            true => rest.len(),
            false => room.min(rest.len() - 1),
        };
        (bytes > 0).then(|| Piece {
            header,
            payload: &rest[..bytes],
            sum: self.sum,
            is_last,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::ring;
    use super::*;
    use crate::wire::{Flags, msg_type};

    #[test]
    fn each_piece_fits_a_record_and_the_last_completes_the_frame() {
        let begins = RECORD_MAX - HEADER_BYTES + 1;
        let ends_of = |piece: usize, pieces: usize| {
            let end = pieces * (piece - WORD) - HEADER_BYTES;
            end - 10..end + 10
        };
        let (mut tx, mut rx, _) = ring();
        let lengths = (begins..begins + 10)
            .chain(ends_of(PIECE_BYTES, 5))
            .chain(ends_of(LONGER_PIECE_BYTES, 9));
        for length in lengths {
            let payload: Vec<u8> = (0..length).map(|at| (at / 3) as u8).collect();
            let header = Header::new(Flags::REQUEST, msg_type::ECHO, 7, length as u32);
            let mut frame = LongFrame::new(header);
            let (mut bytes, mut crc) = (Vec::new(), None);
            while crc.is_none() {
                frame.push(&mut tx, 0, frame.rest(&payload));
                let record = rx.next().unwrap().unwrap();
                assert!(record.frame_bytes() > 0, "{length}");
                let before = bytes.len();
                rx.copy(&record, &mut bytes);
                bytes.truncate(before + record.frame_bytes());
                crc = rx.crc_at_end(&record);
                rx.advance(&record);
                rx.publish();
            }
            assert!(frame.is_sent() && rx.next().unwrap().is_none());
            assert_eq!(frame.sent_bytes(), bytes.len());
            assert!(bytes[HEADER_BYTES..] == payload, "{length}");
            assert_eq!(bytes[..HEADER_BYTES], header.to_bytes());
            assert_eq!(crc, Some(crc::frame_crc(&header.to_bytes(), &payload)));
        }
    }
}
