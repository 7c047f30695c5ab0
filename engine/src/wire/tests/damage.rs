//! Damaged streams: no frame is ever read that was not sent.

use super::gather;
use crate::wire::{
    Assembler, Flags, HEADER_BYTES, Header, ProtocolVersion, Refusal, VERIFY_BATCH, crc, encode_to,
    good_row, verify, verify_batch,
};

const V2: ProtocolVersion = ProtocolVersion::V2;

/// A small deterministic generator (xorshift64*), for loops that proptest would make slow.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % bound
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.below(256) as u8).collect()
    }
}

/// The frames that a receiver of `pieces` handles, and the refusal that ends the stream. One piece
/// at a time, as they arrive: a refusal does not undo the frames before it.
fn receive(bytes: &[u8], cut: usize) -> (Vec<(Header, Vec<u8>)>, Option<Refusal>) {
    let mut handled = Vec::new();
    let pieces: Vec<&[u8]> = bytes.chunks(cut).collect();
    for count in 0..=pieces.len() {
        let found = match gather(V2, &pieces[..count], 1024) {
            Ok(found) => found,
            Err(refusal) => return (handled, Some(refusal)),
        };
        for (header, frame) in found.into_iter().skip(handled.len()) {
            let payload = &frame[HEADER_BYTES..];
            if let Err(refusal) = verify(&header, payload) {
                return (handled, Some(refusal));
            }
            handled.push((header, payload.to_vec()));
        }
    }
    (handled, None)
}

/// More frames follow the damaged one, so that a longer length finds the bytes that it asks for.
#[test]
fn any_single_bit_of_a_frame_is_protected() {
    let mut random = Random(0x5EED);
    for length in [0, 1, 33, 100] {
        let mut bytes = Vec::new();
        encode_to(&mut bytes, Flags::REQUEST, 0x0100, 7, &random.bytes(length));
        let frame_bytes = bytes.len();
        for id in 1..60 {
            encode_to(&mut bytes, Flags::NONE, 0x0101, id, &[id as u8; 20]);
        }
        for bit in 0..frame_bytes * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            for cut in [bytes.len(), frame_bytes / 2 + 1] {
                let (handled, refusal) = receive(&bytes, cut);
                assert!(handled.is_empty(), "bit {bit} of {frame_bytes} bytes");
                assert!(refusal.is_some(), "bit {bit} of {frame_bytes} bytes");
            }
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }
}

#[test]
fn a_damaged_stream_yields_a_start_of_what_was_sent() {
    let mut random = Random(0xDECAF);
    let mut bytes = Vec::new();
    for id in 1..=30 {
        let payload_bytes = random.below(90);
        let payload = random.bytes(payload_bytes);
        encode_to(&mut bytes, Flags::REQUEST, 0x0100, id, &payload);
    }
    let (sent, none) = receive(&bytes, bytes.len());
    assert_eq!((sent.len(), none), (30, None));
    let mut refused = 0;
    for round in 0..1000 {
        let mut damaged = bytes.clone();
        for _ in 0..=random.below(3) {
            let at = random.below(damaged.len());
            match random.below(4) {
                0 => damaged[at] ^= 1 << random.below(8),
                1 => damaged[at] = random.below(256) as u8,
                2 => drop(damaged.remove(at)),
                _ => damaged.insert(at, random.below(256) as u8),
            }
        }
        let cut = 200 + random.below(3000);
        let (handled, refusal) = receive(&damaged, cut);
        assert!(sent.starts_with(&handled), "round {round}");
        refused += usize::from(refusal.is_some());
    }
    // The others: a byte replaced by itself, or damage that leaves the last frame incomplete.
    assert!(refused > 900, "{refused}");
}

#[test]
fn a_batch_names_its_first_damaged_frame() {
    let mut frames = Vec::new();
    for id in 1..=VERIFY_BATCH as u64 {
        let mut frame = Vec::new();
        encode_to(&mut frame, Flags::NONE, 0x0100, id, &id.to_le_bytes());
        frames.push(frame);
    }
    for first in 0..frames.len() {
        for second in [first, frames.len() - 1] {
            let mut damaged = frames.clone();
            damaged[first][HEADER_BYTES] ^= 1;
            damaged[second][5] ^= 8;
            for count in 0..=damaged.len() {
                let refs: Vec<&[u8]> = damaged[..count].iter().map(Vec::as_slice).collect();
                let found = verify_batch(&refs).err();
                let expected = (count > first).then_some(first);
                assert_eq!(found.map(|(index, _)| index), expected);
            }
        }
    }
}

/// Frames as a row, with these ids, and the header of the first.
fn row(flags: Flags, ids: impl Iterator<Item = u64>, payload_bytes: usize) -> (Vec<u8>, Header) {
    let mut row = Vec::new();
    for id in ids {
        let payload: Vec<u8> = (0..payload_bytes).map(|at| at as u8 ^ id as u8).collect();
        encode_to(&mut row, flags, 0x0100, id, &payload);
    }
    let first = Header::of_accepted(&row).expect("there is a frame");
    (row, first)
}

/// More than are verified at once, of lengths that there is code for and others.
#[test]
fn a_row_ends_before_its_first_damaged_frame() {
    const FRAMES: usize = 2 * VERIFY_BATCH + 5;
    for payload_bytes in [0, 8, 64, 65, 300] {
        let frame_bytes = HEADER_BYTES + payload_bytes;
        let (row, first) = row(Flags::REQUEST, 1..=FRAMES as u64, payload_bytes);
        assert_eq!(good_row(&row, &first), FRAMES);
        for bad in 0..FRAMES {
            let mut damaged = row.clone();
            damaged[bad * frame_bytes + frame_bytes - 1] ^= 0x80;
            damaged[(FRAMES - 1) * frame_bytes + 13] ^= 1;
            assert_eq!(good_row(&damaged, &first), bad);
        }
    }
}

/// A row ends before the first frame of which anything differs but its id and what follows from it, or
/// that [`scan`] would refuse, or that is cut. One frame is none.
#[test]
fn rows_are_of_frames_that_begin_alike() {
    const COUNT: usize = 9;
    for payload_bytes in [8, 9] {
        let frame_bytes = HEADER_BYTES + payload_bytes;
        let (row, first) = row(Flags::REQUEST, 1..=COUNT as u64, payload_bytes);
        for index in 1..COUNT {
            let begin = index * frame_bytes;
            let row_of_one = if index == 1 { 0 } else { index };
            // Sealed again, so that the CRC is right whatever was changed.
            let count = |change: fn(&mut [u8])| {
                let mut changed = row.clone();
                let frame = &mut changed[begin..][..frame_bytes];
                change(frame);
                let (header, payload) = frame.split_first_chunk_mut().expect("a header");
                let crc = crc::frame_crc(header, payload);
                header[20..].copy_from_slice(&crc.to_le_bytes());
                good_row(&changed, &first)
            };
            // Magic, version, flags, type, length.
            assert_eq!(count(|frame| frame[0] ^= 1), row_of_one);
            assert_eq!(count(|frame| frame[4] ^= 1), row_of_one);
            assert_eq!(count(|frame| frame[5] ^= 1), row_of_one);
            assert_eq!(count(|frame| frame[7] ^= 1), row_of_one);
            assert_eq!(count(|frame| frame[8] ^= 1), row_of_one);
            assert_eq!(count(|frame| frame[11] ^= 1), row_of_one);
            // A request without an id; any other id and payload will do.
            assert_eq!(count(|frame| frame[12..20].fill(0)), index);
            assert_eq!(count(|frame| frame[12..20].fill(0xA5)), COUNT);
            assert_eq!(count(|frame| frame[24..].fill(0xA5)), COUNT);
            assert_eq!(good_row(&row[..begin + frame_bytes - 1], &first), index);
        }
        assert_eq!(good_row(&row[..frame_bytes], &first), 0);
    }
    let (one_way, first) = row(Flags::NONE, std::iter::repeat_n(0, COUNT), 8);
    assert_eq!(good_row(&one_way, &first), COUNT);
}

/// However long a frame the header promises, memory stays in proportion to what has arrived.
#[test]
fn memory_grows_with_what_arrives() {
    const LENGTH: usize = 4_000_000;
    let mut bytes = Vec::new();
    encode_to(&mut bytes, Flags::NONE, 0x0100, 0, &vec![3; LENGTH]);
    let mut assembler = Assembler::default();
    let mut arrived = 0;
    for piece in bytes.chunks(10_000) {
        arrived += piece.len();
        let (taken, complete) = assembler.push(V2, piece, u32::MAX).unwrap();
        assert_eq!(taken, piece.len());
        assert_eq!(complete.is_some(), arrived == bytes.len());
        assert!(assembler.capacity_bytes() <= 2 * arrived);
    }
    assert!(assembler.take() == bytes);
    assert!(!assembler.is_mid_frame());
}

#[test]
fn pieces_that_are_summed_on_the_way() {
    let payload: Vec<u8> = (0..100_000u32).map(|at| (at / 3) as u8).collect();
    let mut good = Vec::new();
    encode_to(&mut good, Flags::REQUEST, 7, 1, &payload);
    for broken in [None, Some(30), Some(60_000), Some(good.len() - 1)] {
        let mut bytes = good.clone();
        if let Some(at) = broken {
            bytes[at] ^= 0x10;
        }
        let mut assembler = Assembler::default();
        let (begin, rest) = bytes.split_at(1000);
        assert_eq!(assembler.missing_bytes(), None);
        assembler.push(V2, begin, u32::MAX).unwrap();
        for piece in rest.chunks(32_760) {
            assert!(assembler.take_summed().is_none());
            assembler.append_summed(piece.len(), |gathered, sum| {
                gathered.extend_from_slice(piece);
                crate::wire::crc::append(sum, piece)
            });
        }
        assert_eq!(assembler.missing_bytes(), Some(0));
        let complete = assembler.take_summed().unwrap();
        match broken {
            None => assert!(complete.unwrap().1 == bytes),
            Some(_) => assert!(matches!(complete, Err(Refusal::CrcMismatch { .. }))),
        }
        assert!(!assembler.is_mid_frame() && assembler.take_summed().is_none());
    }
}
