//! Version 1: 19 bytes of header, packed, big-endian, no flags and no CRC. Every frame is a
//! request; its answer is a frame with the same type and id, or one of type ERROR.

use super::{Flags, Header, ProtocolVersion, Refusal};

/// Bytes of a version 1 header. The guide says 16; the fields that it lists take 19.
pub const HEADER_BYTES: usize = 19;
const MAGIC: [u8; 4] = *b"LPAI";
const VERSION: u8 = 1;

/// Reads a header and checks it as far as `bytes` reach; `None`: more bytes are needed. The result
/// is what the frame would be in version 2.
pub fn parse(bytes: &[u8], max_message_bytes: u32) -> Result<Option<Header>, Refusal> {
    let there = bytes.len().min(4);
    if bytes[..there] != MAGIC[..there] {
        return Err(Refusal::bad_magic(bytes));
    }
    if let Some(&got) = bytes.get(4).filter(|&&version| version != VERSION) {
        return Err(Refusal::VersionMismatch { got });
    }
    if bytes.get(5..7) == Some(&[0, 0]) {
        return Err(Refusal::ZeroType);
    }
    if let Some(field) = bytes.get(7..11) {
        let length = u32::from_be_bytes(field.try_into().expect("4 bytes"));
        if length > max_message_bytes {
            return Err(Refusal::TooLarge {
                length,
                max: max_message_bytes,
            });
        }
    }
    let Some(bytes) = bytes.first_chunk::<HEADER_BYTES>() else {
        return Ok(None);
    };
    Ok(Some(Header {
        flags: Flags::REQUEST,
        msg_type: u16::from_be_bytes([bytes[5], bytes[6]]),
        length: u32::from_be_bytes([bytes[7], bytes[8], bytes[9], bytes[10]]),
        msg_id: u64::from_be_bytes(bytes[11..19].try_into().expect("8 bytes")),
        crc32: 0,
    }))
}

/// The id in a header that may be refused for something else; 0 where it is not there, or the
/// version has a CRC and its ids are not to be trusted without.
pub fn msg_id(version: ProtocolVersion, bytes: &[u8]) -> u64 {
    match bytes.get(11..HEADER_BYTES) {
        Some(field) if version == ProtocolVersion::V1 && bytes.starts_with(&MAGIC) => {
            u64::from_be_bytes(field.try_into().expect("8 bytes"))
        }
        _ => 0,
    }
}

/// Appends a frame.
pub fn encode_to(out: &mut Vec<u8>, msg_type: u16, msg_id: u64, payload: &[u8]) {
    let length = u32::try_from(payload.len()).expect("limits are below 4 GiB");
    out.extend_from_slice(&MAGIC);
    out.push(VERSION);
    out.extend_from_slice(&msg_type.to_be_bytes());
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&msg_id.to_be_bytes());
    out.extend_from_slice(payload);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_comes_back() {
        let mut frame = Vec::new();
        encode_to(&mut frame, 0x0102, 0x0304_0506_0708_090A, b"hey");
        assert_eq!(
            frame,
            [
                0x4C, 0x50, 0x41, 0x49, 1, 1, 2, 0, 0, 0, 3, 3, 4, 5, 6, 7, 8, 9, 10, b'h', b'e',
                b'y'
            ]
        );
        let header = parse(&frame, 3).unwrap().unwrap();
        assert_eq!(
            header,
            Header::new(Flags::REQUEST, 0x0102, 0x0304_0506_0708_090A, 3)
        );
        for reach in 0..HEADER_BYTES {
            assert_eq!(parse(&frame[..reach], 3), Ok(None));
        }
        assert_eq!(
            parse(&frame[..11], 2),
            Err(Refusal::TooLarge { length: 3, max: 2 })
        );
    }

    #[test]
    fn what_is_wrong_is_named_at_once() {
        assert_eq!(parse(b"LX", 9), Err(Refusal::BadMagic { got: *b"LX\0\0" }));
        assert_eq!(
            parse(b"LPAI\x02", 9),
            Err(Refusal::VersionMismatch { got: 2 })
        );
        assert_eq!(parse(b"LPAI\x01\0\0", 9), Err(Refusal::ZeroType));
    }
}
