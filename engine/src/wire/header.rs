//! The 24-byte header of version 2.

use super::crc::header_words;
use super::{Flags, Refusal};

/// The first four bytes of a frame as a little-endian number: "LPAI".
pub const MAGIC: u32 = 0x4C50_4149;
/// The version that is spoken natively.
pub const VERSION: u8 = 2;
/// Bytes of a version 2 header.
pub const HEADER_BYTES: usize = 24;
/// The same in words of 8 bytes.
pub(crate) const HEADER_WORDS: usize = 3;

/// The protocol's versions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ProtocolVersion {
    /// The old one: 19 bytes of header, big-endian, no CRC.
    V1,
    /// 24 bytes of header, little-endian, with flags and a CRC.
    #[default]
    V2,
}

impl ProtocolVersion {
    /// What the first byte of a connection says.
    pub fn detect(first_byte: u8) -> Option<ProtocolVersion> {
        match first_byte {
            0x49 => Some(ProtocolVersion::V2),
            0x4C => Some(ProtocolVersion::V1),
            _ => None,
        }
    }
}

/// A header, without the magic and the version, which are always the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What kind of frame it is: a request, an answer, a part of a stream and so on.
    pub flags: Flags,
    /// The message type: see [`crate::ipc::msg_type`].
    pub msg_type: u16,
    /// The length of the payload, in bytes, as it is on the wire.
    pub length: u32,
    /// The id, which an answer shares with its request. Not 0 in a request.
    pub msg_id: u64,
    /// CRC-32C of the header, with this field 0, and the payload.
    pub crc32: u32,
}

impl Header {
    /// A header whose CRC is not computed yet.
    pub const fn new(flags: Flags, msg_type: u16, msg_id: u64, length: u32) -> Header {
        Header {
            flags,
            msg_type,
            length,
            msg_id,
            crc32: 0,
        }
    }

    /// The bytes on the wire.
    #[inline]
    pub fn to_bytes(self) -> [u8; HEADER_BYTES] {
        words_to_bytes(self.to_words())
    }

    /// The bytes on the wire as three little-endian words.
    ///
    /// A processor forwards what was just stored to a load only if a single store holds all of it. A header that is written
    /// field by field and read word by word costs some ten nanoseconds each time.
    #[inline]
    pub(crate) const fn to_words(self) -> [u64; HEADER_WORDS] {
        [
            MAGIC as u64
                | (VERSION as u64) << 32
                | (self.flags.bits() as u64) << 40
                | (self.msg_type as u64) << 48,
            self.length as u64 | self.msg_id << 32,
            self.msg_id >> 32 | (self.crc32 as u64) << 32,
        ]
    }

    /// The fields in these words, whatever they are.
    #[inline]
    pub(super) fn decode(words: [u64; HEADER_WORDS]) -> Header {
        Header {
            flags: Flags::from_bits((words[0] >> 40) as u8),
            msg_type: (words[0] >> 48) as u16,
            length: words[1] as u32,
            msg_id: words[1] >> 32 | words[2] << 32,
            crc32: (words[2] >> 32) as u32,
        }
    }

    /// The header at the front of bytes that were checked before; nothing is checked again.
    #[inline(always)]
    pub(crate) fn of_accepted(bytes: &[u8]) -> Option<Header> {
        Some(Header::decode(header_words(bytes.first_chunk()?)))
    }

    /// Becomes the header of a frame that begins alike: takes its id, but not its CRC, which was checked. Returns the
    /// frame's payload.
    #[inline(always)]
    pub(crate) fn next_alike<'a>(&mut self, frame: &'a [u8]) -> &'a [u8] {
        let (head, payload) = frame.split_first_chunk().expect("a frame has a header");
        let next = Header::decode(header_words(head));
        self.msg_id = next.msg_id;
        debug_assert_eq!(
            *self,
            Header {
                crc32: self.crc32,
                ..next
            }
        );
        payload
    }

    /// The header in these words, if all checks of [`Header::parse`] pass.
    #[inline]
    pub(crate) fn from_words(words: [u64; HEADER_WORDS], max_message_bytes: u32) -> Option<Header> {
        let header = Header::decode(words);
        let good = words[0] as u32 == MAGIC
            && (words[0] >> 32) as u8 == VERSION
            && header.flags.is_valid()
            && header.msg_type != 0
            && header.length <= max_message_bytes
            && header.has_id_if_needed();
        good.then_some(header)
    }

    /// A request must have an id other than 0, by which it is answered.
    #[inline(always)]
    pub(super) fn has_id_if_needed(&self) -> bool {
        self.msg_id != 0 || !self.flags.contains(Flags::REQUEST)
    }

    /// Reads a header and checks it in the order of docs/protocol.md, as far as `bytes` reach, so that what is no frame is
    /// refused at its first byte. `None` means that more bytes are needed. The CRC is not checked here.
    #[inline]
    pub fn parse(bytes: &[u8], max_message_bytes: u32) -> Result<Option<Header>, Refusal> {
        let Some(bytes) = bytes.first_chunk::<HEADER_BYTES>() else {
            return check_part(bytes, max_message_bytes).map(|()| None);
        };
        if let Some(header) = Header::from_words(header_words(bytes), max_message_bytes) {
            return Ok(Some(header));
        }
        // One of the checks fails; this says which is the first.
        check_part(bytes, max_message_bytes).map(|()| None)
    }
}

/// The first word of the last good header: magic, version, flags and type. If the next header has the same first word,
/// those need not be checked again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GoodFirst(u64);

impl GoodFirst {
    #[inline(always)]
    pub(crate) fn new() -> GoodFirst {
        const ECHO: Header = Header::new(Flags::REQUEST, super::msg_type::ECHO, 1, 0);
        GoodFirst(const { ECHO.to_words()[0] })
    }

    /// The header in these words, if all checks of [`Header::parse`] but the limit pass.
    #[inline(always)]
    pub(crate) fn header(&mut self, words: [u64; HEADER_WORDS]) -> Option<Header> {
        if words[0] != self.0 {
            let header = Header::from_words(words, u32::MAX)?;
            self.0 = words[0];
            return Some(header);
        }
        let header = Header::decode(words);
        let good = header.has_id_if_needed();
        debug_assert_eq!(good, Header::from_words(words, u32::MAX).is_some());
        good.then_some(header)
    }
}

/// A header's words as bytes.
#[inline]
fn words_to_bytes(words: [u64; HEADER_WORDS]) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    let (chunks, _) = bytes.as_chunks_mut::<8>();
    for (chunk, word) in chunks.iter_mut().zip(words) {
        *chunk = word.to_le_bytes();
    }
    bytes
}

/// The checks one by one, in the order of the bytes and as far as they reach: the verdict must not depend on how a stream
/// happens to be cut.
#[cold]
fn check_part(bytes: &[u8], max_message_bytes: u32) -> Result<(), Refusal> {
    let magic = MAGIC.to_le_bytes();
    let there = bytes.len().min(4);
    if bytes[..there] != magic[..there] {
        return Err(Refusal::bad_magic(bytes));
    }
    if let Some(&got) = bytes.get(4).filter(|&&version| version != VERSION) {
        return Err(Refusal::VersionMismatch { got });
    }
    if let Some(&got) = bytes
        .get(5)
        .filter(|&&flags| !Flags::from_bits(flags).is_valid())
    {
        return Err(Refusal::BadFlags { got });
    }
    if bytes.get(6..8) == Some(&[0, 0]) {
        return Err(Refusal::ZeroType);
    }
    if let Some(field) = bytes.get(8..12) {
        let length = u32::from_le_bytes(field.try_into().expect("4 bytes"));
        if length > max_message_bytes {
            return Err(Refusal::TooLarge {
                length,
                max: max_message_bytes,
            });
        }
        let is_request = Flags::from_bits(bytes[5]).contains(Flags::REQUEST);
        if is_request && bytes.get(12..20) == Some(&[0; 8]) {
            return Err(Refusal::ZeroId);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> [u8; 24] {
        Header::new(Flags::REQUEST, 0x1234, 7, 100).to_bytes()
    }

    fn with(at: usize, bytes: &[u8]) -> [u8; 24] {
        let mut header = good();
        header[at..at + bytes.len()].copy_from_slice(bytes);
        header
    }

    #[test]
    fn a_header_comes_back() {
        let header = Header {
            flags: Flags::RESPONSE | Flags::STREAM,
            msg_type: 0xBEEF,
            length: 1 << 20,
            msg_id: u64::MAX - 1,
            crc32: 0xDEAD_BEEF,
        };
        assert_eq!(Header::parse(&header.to_bytes(), 1 << 20), Ok(Some(header)));
    }

    #[test]
    fn each_check_as_soon_as_its_byte_is_there() {
        let cases: [(&[u8; 24], usize, Refusal); 7] = [
            (&with(0, b"GET "), 1, Refusal::BadMagic { got: *b"G\0\0\0" }),
            (&with(4, &[3]), 5, Refusal::VersionMismatch { got: 3 }),
            (&with(5, &[0x12]), 6, Refusal::BadFlags { got: 0x12 }),
            (&with(5, &[0x30]), 6, Refusal::BadFlags { got: 0x30 }),
            (&with(6, &[0, 0]), 8, Refusal::ZeroType),
            (
                &with(8, &[0xE9, 3, 0, 0]),
                12,
                Refusal::TooLarge {
                    length: 1001,
                    max: 1000,
                },
            ),
            (&with(12, &[0; 8]), 20, Refusal::ZeroId),
        ];
        for (bytes, reach, refusal) in cases {
            assert_eq!(Header::parse(&bytes[..reach], 1000), Err(refusal));
            assert_eq!(
                Header::parse(&bytes[..reach - 1], 1000),
                Ok(None),
                "{refusal}"
            );
        }
        for reach in 0..24 {
            assert_eq!(Header::parse(&good()[..reach], 1000), Ok(None));
        }
    }

    #[test]
    fn the_first_check_wins() {
        let mut bytes = [0xFF; 24];
        assert!(matches!(
            Header::parse(&bytes, 1000),
            Err(Refusal::BadMagic { .. })
        ));
        bytes[..4].copy_from_slice(&MAGIC.to_le_bytes());
        assert_eq!(
            Header::parse(&bytes, 1000),
            Err(Refusal::VersionMismatch { got: 255 })
        );
        bytes[4] = 2;
        assert_eq!(
            Header::parse(&bytes, 1000),
            Err(Refusal::BadFlags { got: 255 })
        );
        bytes[5] = 0;
        bytes[6..8].fill(0);
        assert_eq!(Header::parse(&bytes, 1000), Err(Refusal::ZeroType));
        bytes[6] = 1;
        assert!(matches!(
            Header::parse(&bytes, 1000),
            Err(Refusal::TooLarge { .. })
        ));
    }

    #[test]
    fn only_a_request_needs_an_id() {
        let parse = |flags| Header::parse(&Header::new(flags, 1, 0, 0).to_bytes(), 0);
        assert!(parse(Flags::NONE).unwrap().is_some());
        assert!(parse(Flags::RESPONSE).unwrap().is_some());
        assert_eq!(parse(Flags::REQUEST), Err(Refusal::ZeroId));
    }
}
