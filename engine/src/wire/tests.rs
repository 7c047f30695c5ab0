//! What holds for the protocol as a whole, whatever the bytes.

use proptest::prelude::*;

use super::*;

mod damage;
mod documented;
mod order;

/// The frame in the specification.
const HEARTBEAT: &[u8] = &[
    0x49, 0x41, 0x50, 0x4c, 0x02, 0x10, 0x05, 0x00, 0x00, 0x00, 0x00, 0x00, 0x01, 0x00, 0x00, 0x00,
    0x00, 0x00, 0x00, 0x00, 0xa5, 0x0f, 0x06, 0xdf,
];

#[test]
fn the_specifications_frame() {
    let mut frame = Vec::new();
    encode_to(&mut frame, Flags::REQUEST, msg_type::HEARTBEAT, 1, &[]);
    assert_eq!(frame, HEARTBEAT);
    let header = Header::parse(HEARTBEAT, 0).unwrap().unwrap();
    verify(&header, &[]).unwrap();
    verify_batch(&[HEARTBEAT; VERIFY_BATCH]).unwrap();
}

/// Below, at and above the length from which a payload is appended piece by piece.
#[test]
fn frames_of_any_length_are_written_right() {
    for length in [0, 1, 64, 200, 1000, 16_383, 16_384, 16_385, 32_768, 100_001] {
        let payload: Vec<u8> = (0..length).map(|i| (i * 7 % 251) as u8).collect();
        let (flags, msg_type) = (Flags::REQUEST | Flags::STREAM, 0x0100);
        let mut appended = vec![1, 2];
        encode_to(&mut appended, flags, msg_type, 7, &payload);
        let frame = &mut appended[2..];
        let header = Header::parse(frame, u32::MAX).unwrap().unwrap();
        assert_eq!(
            (header.flags, header.msg_type, header.msg_id),
            (flags, msg_type, 7)
        );
        assert!(frame[HEADER_BYTES..] == payload, "{length} bytes");
        assert_eq!(verify(&header, &payload), Ok(()));
        assert_eq!(verify_batch(&[frame]), Ok(()));
        // The CRC in the specification's words, without shortcuts.
        frame[20..24].fill(0);
        assert_eq!(crc::crc32c(frame), header.crc32);
    }
}

#[test]
fn a_front_frame_is_found_where_a_scan_finds_one() {
    let mut frame = Vec::new();
    encode_to(&mut frame, Flags::REQUEST, 0x0100, 7, &[5; 10]);
    let whole = frame.len();
    frame.extend_from_slice(HEARTBEAT);
    let same = |bytes: &[u8], max: u32| {
        let scanned = match scan(ProtocolVersion::V2, bytes, max) {
            Ok(Scanned::Frame { header, .. }) => Some(header),
            _ => None,
        };
        // Whatever the last good header was: this one, another of which it differs, or none.
        for before in [bytes, HEARTBEAT, &[]] {
            let mut good = GoodFirst::new();
            let _ = front_frame(before, u32::MAX, &mut good);
            let found = front_frame(bytes, max, &mut good);
            assert_eq!(found, scanned, "{bytes:?}, at most {max}");
        }
        scanned.inspect(|&header| assert_eq!(accepted_header(ProtocolVersion::V2, bytes), header))
    };
    for reach in 0..=frame.len() {
        assert_eq!(same(&frame[..reach], 10).is_some(), reach >= whole);
    }
    assert!(same(&frame, 9).is_none());
    for at in 0..HEADER_BYTES {
        for bit in 0..8 {
            let mut bad = frame.clone();
            bad[at] ^= 1 << bit;
            same(&bad, u32::MAX);
        }
    }
    let header = Header::parse(&frame, 10).unwrap().unwrap();
    frame[whole - 1] ^= 1;
    let refused = verify(&header, &frame[HEADER_BYTES..whole]);
    assert!(refused.is_err());
    assert_eq!(
        verify_batch(&[HEARTBEAT, &frame[..whole]]),
        refused.map_err(|refusal| (1, refusal))
    );
    assert_eq!(scan::accepted_frame(&frame), &frame[..whole]);
}

fn frames() -> impl Strategy<Value = Vec<(u8, u16, u64, Vec<u8>)>> {
    let flags = prop::sample::select(vec![0u8, 0x10, 0x20, 0x14, 0x18, 0x2D]);
    let payload = prop::collection::vec(any::<u8>(), 0..300);
    prop::collection::vec((flags, 1u16.., 1u64.., payload), 1..12)
}

/// Feeds pieces as a connection would and returns the frames found.
fn gather(
    version: ProtocolVersion,
    pieces: &[&[u8]],
    max: u32,
) -> Result<Vec<(Header, Vec<u8>)>, Refusal> {
    let mut assembler = Assembler::default();
    let mut found = Vec::new();
    for mut piece in pieces.iter().copied() {
        while !piece.is_empty() {
            if !assembler.is_mid_frame()
                && let Scanned::Frame {
                    header,
                    frame_bytes,
                } = scan(version, piece, max)?
            {
                let (frame, rest) = piece.split_at(frame_bytes);
                found.push((header, frame.to_vec()));
                piece = rest;
                continue;
            }
            let (taken, complete) = assembler.push(version, piece, max)?;
            piece = &piece[taken..];
            if let Some(header) = complete {
                found.push((header, assembler.take()));
            }
        }
    }
    Ok(found)
}

fn cut<'a>(bytes: &'a [u8], cuts: &[prop::sample::Index]) -> Vec<&'a [u8]> {
    let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
    at.extend([0, bytes.len()]);
    at.sort();
    at.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect()
}

proptest! {
    #[test]
    fn any_split_yields_the_same_frames(
        frames in frames(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..40),
    ) {
        let (mut v2, mut v1) = (Vec::new(), Vec::new());
        for (flags, msg_type, msg_id, payload) in &frames {
            encode_to(&mut v2, Flags::from_bits(*flags), *msg_type, *msg_id, payload);
            legacy::encode_to(&mut v1, *msg_type, *msg_id, payload);
        }
        for (version, bytes) in [(ProtocolVersion::V2, &v2), (ProtocolVersion::V1, &v1)] {
            let found = gather(version, &cut(bytes, &cuts), 300).unwrap();
            prop_assert_eq!(found.len(), frames.len());
            for ((header, frame), (flags, msg_type, msg_id, payload)) in found.iter().zip(&frames) {
                prop_assert_eq!((header.msg_type, header.msg_id), (*msg_type, *msg_id));
                prop_assert!(frame.ends_with(payload));
                if version == ProtocolVersion::V2 {
                    prop_assert_eq!(header.flags.bits(), *flags);
                    verify(header, payload).unwrap();
                }
            }
        }
    }

    #[test]
    fn arbitrary_bytes_are_frames_or_refused(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        start in 0usize..24,
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
    ) {
        // The first bytes of a good frame let the rest reach every check.
        let mut v2 = HEARTBEAT[..start].to_vec();
        v2.extend_from_slice(&bytes);
        let _ = gather(ProtocolVersion::V2, &cut(&v2, &cuts), 64);
        let mut v1 = b"LPAI\x01\0\x05\0\0\0\x03"[..start.min(11)].to_vec();
        v1.extend_from_slice(&bytes);
        let _ = gather(ProtocolVersion::V1, &cut(&v1, &cuts), 64);
        let _ = Hello::decode(&bytes);
        let _ = decode_error_payload(&bytes);
        let _ = PoolReport::decode(&bytes);
        let mut out = Vec::new();
        let _ = decompress(&bytes, 1 << 16, &mut out);
        prop_assert!(out.len() <= 1 << 16);
    }

    #[test]
    fn any_flipped_bit_is_refused(
        payload in prop::collection::vec(any::<u8>(), 0..100),
        bit in any::<prop::sample::Index>(),
    ) {
        let mut frame = Vec::new();
        encode_to(&mut frame, Flags::REQUEST, msg_type::ECHO, 77, &payload);
        let bit = bit.index(frame.len() * 8);
        frame[bit / 8] ^= 1 << (bit % 8);
        // A longer length leaves the frame incomplete; everything else is refused.
        match scan(ProtocolVersion::V2, &frame, 1 << 24) {
            Err(_) | Ok(Scanned::Part { .. }) => {}
            Ok(Scanned::Frame { header, frame_bytes }) => {
                let payload = &frame[HEADER_BYTES..frame_bytes];
                let refused = verify(&header, payload);
                let is_crc = matches!(refused, Err(Refusal::CrcMismatch { .. }));
                prop_assert!(is_crc);
                prop_assert_eq!(verify_batch(&[&frame[..frame_bytes]]).map_err(|(_, r)| r), refused);
            }
        }
    }

    #[test]
    fn handshakes_come_back_and_unknown_tags_are_skipped(
        versions in prop::collection::vec(any::<u8>(), 0..4),
        capabilities in any::<u32>(),
        identity in prop::option::of("[a-zé]{0,20}"),
        credentials in prop::option::of(prop::collection::vec(any::<u8>(), 0..40)),
        max_message_bytes in prop::option::of(any::<u32>()),
        unknown in prop::collection::vec(any::<u8>(), 0..20),
    ) {
        let hello = Hello {
            versions: &versions,
            capabilities,
            identity: identity.as_deref(),
            credentials: credentials.as_deref(),
            max_message_bytes,
            ..Hello::default()
        };
        let mut payload = vec![0xFF, 0x7F, unknown.len() as u8, 0];
        payload.extend_from_slice(&unknown);
        hello.encode(&mut payload);
        prop_assert_eq!(Hello::decode(&payload), Ok(hello));
        for short in 1..payload.len() {
            let _ = Hello::decode(&payload[..short]);
        }
    }
}

#[test]
fn a_length_alone_takes_no_memory() {
    let mut assembler = Assembler::default();
    let header = Header::new(Flags::REQUEST, 1, 1, 10 << 20).to_bytes();
    let (taken, complete) = assembler
        .push(ProtocolVersion::V2, &header, 10 << 20)
        .unwrap();
    assert_eq!((taken, complete), (24, None));
    assert_eq!(assembler.gathered(), header);
    assert!(assembler.take().capacity() < 1024);
    // Nor does an idle connection keep what it was lent.
    assembler.lend(Vec::with_capacity(1 << 20));
    let mut frame = Vec::new();
    encode_to(&mut frame, Flags::REQUEST, msg_type::ECHO, 1, &[7; 100]);
    assembler
        .push(ProtocolVersion::V2, &frame, u32::MAX)
        .unwrap();
    assert_eq!(assembler.take(), frame);
    assert_eq!(assembler.capacity_bytes(), 0);
}
