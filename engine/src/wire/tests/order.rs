//! The order of a header's checks, and that it does not depend on how many bytes are there.

use proptest::prelude::*;

use super::HEARTBEAT;
use crate::wire::{Header, Refusal, legacy};

const MAX: u32 = 1024;

type Breakage = (fn(&mut [u8]), usize, Refusal);

/// Breaks one field after another, from the last check to the first. Each refusal comes with the
/// byte that completes its field, not before, and hides those of the checks after it.
fn check_each(
    good: &[u8],
    breakages: &[Breakage],
    parse: fn(&[u8], u32) -> Result<Option<Header>, Refusal>,
) {
    let mut bytes = good.to_vec();
    assert!(parse(&bytes, MAX).unwrap().is_some());
    for (break_it, at, refusal) in breakages {
        break_it(&mut bytes);
        for length in 0..=bytes.len() {
            let expected = if length < *at {
                Ok(None)
            } else {
                Err(*refusal)
            };
            assert_eq!(parse(&bytes[..length], MAX), expected, "{length} bytes");
        }
    }
}

#[test]
fn version_2() {
    let too_large = Refusal::TooLarge {
        length: MAX + 1,
        max: MAX,
    };
    let breakages: [Breakage; 6] = [
        (|b| b[12..20].fill(0), 20, Refusal::ZeroId),
        (
            |b| b[8..12].copy_from_slice(&(MAX + 1).to_le_bytes()),
            12,
            too_large,
        ),
        (|b| b[6..8].fill(0), 8, Refusal::ZeroType),
        (|b| b[5] = 0x30, 6, Refusal::BadFlags { got: 0x30 }),
        (|b| b[4] = 1, 5, Refusal::VersionMismatch { got: 1 }),
        (|b| b[0] = b'L', 1, Refusal::BadMagic { got: *b"LAPL" }),
    ];
    // The bytes that a refusal shows are those that are there, so the magic is tried apart.
    let (magic, others) = breakages.split_last().unwrap();
    check_each(HEARTBEAT, others, Header::parse);
    let mut bytes = HEARTBEAT.to_vec();
    for (break_it, ..) in &breakages {
        break_it(&mut bytes);
    }
    assert_eq!(Header::parse(&bytes, MAX), Err(magic.2));
}

#[test]
fn version_1() {
    let too_large = Refusal::TooLarge {
        length: MAX + 1,
        max: MAX,
    };
    let breakages: [Breakage; 3] = [
        (
            |b| b[7..11].copy_from_slice(&(MAX + 1).to_be_bytes()),
            11,
            too_large,
        ),
        (|b| b[5..7].fill(0), 7, Refusal::ZeroType),
        (|b| b[4] = 3, 5, Refusal::VersionMismatch { got: 3 }),
    ];
    let mut good = Vec::new();
    legacy::encode_to(&mut good, 0x0100, 7, b"");
    check_each(&good, &breakages, legacy::parse);
}

#[test]
fn a_greeting_of_another_protocol_is_refused_by_its_first_byte() {
    for greeting in ["GET / HTTP/1.1\r\n", "SSH-2.0-x\r\n", "\x16\x03\x01"] {
        for length in 1..=greeting.len() {
            let bytes = &greeting.as_bytes()[..length];
            let refusal = Header::parse(bytes, MAX).unwrap_err();
            assert!(matches!(refusal, Refusal::BadMagic { .. }));
            assert!(legacy::parse(bytes, MAX).is_err());
        }
    }
    let text = Header::parse(b"GET / HTTP/1.1", MAX)
        .unwrap_err()
        .to_string();
    assert!(text.contains("got 47 45 54 20:"), "{text}");
}

proptest! {
    /// What a part is refused for, the whole is refused for; and a part is never a header.
    #[test]
    fn a_verdict_stays_when_more_bytes_come(
        bytes in prop::collection::vec(prop_oneof![Just(0), any::<u8>()], 0..40),
        valid in 0..25usize,
        flags in prop::option::of(any::<u8>()),
    ) {
        let mut bytes = bytes;
        let valid = valid.min(bytes.len());
        bytes[..valid].copy_from_slice(&HEARTBEAT[..valid]);
        if let (Some(flags), Some(byte)) = (flags, bytes.get_mut(5)) {
            *byte = flags;
        }
        let whole = Header::parse(&bytes, MAX);
        for length in 0..bytes.len() {
            match Header::parse(&bytes[..length], MAX) {
                Ok(None) => prop_assert!(length < 24),
                Ok(header) => prop_assert_eq!(Ok(header), whole),
                Err(Refusal::BadMagic { .. }) => {
                    let is_magic = matches!(whole, Err(Refusal::BadMagic { .. }));
                    prop_assert!(is_magic);
                }
                Err(refusal) => prop_assert_eq!(Err(refusal), whole),
            }
        }
    }
}
