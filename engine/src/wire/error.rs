//! The protocol's errors, and how the bytes that break it are named.

use std::fmt;

use super::VERSION;

/// The error codes of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
#[non_exhaustive]
pub enum ErrorCode {
    /// The bytes are no frame of any version. The connection closes.
    BadMagic = 1,
    /// A version that the receiver does not speak. The connection closes.
    VersionMismatch = 2,
    /// The frame was damaged. The connection closes.
    CrcMismatch = 3,
    /// Longer than the receiver's limit. The connection closes.
    TooLarge = 4,
    /// Nobody serves this message type.
    UnknownType = 5,
    /// Reserved flags, flags that exclude each other, type 0, or a request without an id. The
    /// connection closes.
    BadFlags = 6,
    /// Credentials are missing or wrong. The connection closes.
    Unauthorized = 7,
    /// The request was not started and may be sent again.
    Overloaded = 8,
    /// The provider is gone; the request may or may not have been carried out.
    ProviderLost = 9,
    /// The handler failed.
    HandlerFailed = 10,
    /// It took too long.
    Timeout = 11,
    /// The requester did not want it any more.
    Cancelled = 12,
    /// The request was not started: the server is ending.
    ShuttingDown = 13,
    /// A protocol payload or a compressed block that does not decode.
    BadPayload = 14,
}

impl ErrorCode {
    /// All codes, in order.
    pub const ALL: [ErrorCode; 14] = [
        ErrorCode::BadMagic,
        ErrorCode::VersionMismatch,
        ErrorCode::CrcMismatch,
        ErrorCode::TooLarge,
        ErrorCode::UnknownType,
        ErrorCode::BadFlags,
        ErrorCode::Unauthorized,
        ErrorCode::Overloaded,
        ErrorCode::ProviderLost,
        ErrorCode::HandlerFailed,
        ErrorCode::Timeout,
        ErrorCode::Cancelled,
        ErrorCode::ShuttingDown,
        ErrorCode::BadPayload,
    ];

    /// The code of a number, if it is one.
    pub fn from_u16(code: u16) -> Option<ErrorCode> {
        ErrorCode::ALL
            .get(usize::from(code).checked_sub(1)?)
            .copied()
    }

    /// The name in the specification, `CRC_MISMATCH` for example.
    pub fn name(self) -> &'static str {
        match self {
            ErrorCode::BadMagic => "BAD_MAGIC",
            ErrorCode::VersionMismatch => "VERSION_MISMATCH",
            ErrorCode::CrcMismatch => "CRC_MISMATCH",
            ErrorCode::TooLarge => "TOO_LARGE",
            ErrorCode::UnknownType => "UNKNOWN_TYPE",
            ErrorCode::BadFlags => "BAD_FLAGS",
            ErrorCode::Unauthorized => "UNAUTHORIZED",
            ErrorCode::Overloaded => "OVERLOADED",
            ErrorCode::ProviderLost => "PROVIDER_LOST",
            ErrorCode::HandlerFailed => "HANDLER_FAILED",
            ErrorCode::Timeout => "TIMEOUT",
            ErrorCode::Cancelled => "CANCELLED",
            ErrorCode::ShuttingDown => "SHUTTING_DOWN",
            ErrorCode::BadPayload => "BAD_PAYLOAD",
        }
    }

    /// The name in metrics, `crc_mismatch` for example.
    pub fn metric_name(self) -> String {
        self.name().to_ascii_lowercase()
    }

    /// Whether the connection closes after it.
    pub fn closes_connection(self) -> bool {
        matches!(
            self,
            ErrorCode::BadMagic
                | ErrorCode::VersionMismatch
                | ErrorCode::CrcMismatch
                | ErrorCode::TooLarge
                | ErrorCode::BadFlags
                | ErrorCode::Unauthorized
        )
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Bytes that are no acceptable frame or payload, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The first four bytes, as far as they are there.
    BadMagic {
        /// What came.
        got: [u8; 4],
    },
    /// Another version than 2.
    VersionMismatch {
        /// The version that came.
        got: u8,
    },
    /// Reserved bits, or REQUEST together with RESPONSE.
    BadFlags {
        /// The flags byte.
        got: u8,
    },
    /// Message type 0.
    ZeroType,
    /// A request with id 0.
    ZeroId,
    /// A payload above the limit.
    TooLarge {
        /// Its length.
        length: u32,
        /// The limit.
        max: u32,
    },
    /// The CRC in the header is not that of the frame.
    CrcMismatch {
        /// In the header.
        expected: u32,
        /// Of what arrived.
        got: u32,
    },
    /// A long frame on a connection that is not authenticated, where that is asked for.
    NotAuthenticated,
    /// A protocol payload that does not decode.
    BadPayload(&'static str),
    /// A compressed payload that says it is larger than the limit.
    InflatesTooFar {
        /// The size that it names.
        size: u32,
        /// The limit.
        max: u32,
    },
}

impl Refusal {
    /// Of bytes that do not begin as a frame does.
    #[cold]
    pub(crate) fn bad_magic(bytes: &[u8]) -> Refusal {
        let mut got = [0; 4];
        for (got, byte) in got.iter_mut().zip(bytes) {
            *got = *byte;
        }
        Refusal::BadMagic { got }
    }

    /// The protocol's code for it.
    pub fn code(&self) -> ErrorCode {
        match self {
            Refusal::BadMagic { .. } => ErrorCode::BadMagic,
            Refusal::VersionMismatch { .. } => ErrorCode::VersionMismatch,
            Refusal::BadFlags { .. } | Refusal::ZeroType | Refusal::ZeroId => ErrorCode::BadFlags,
            Refusal::TooLarge { .. } => ErrorCode::TooLarge,
            Refusal::CrcMismatch { .. } => ErrorCode::CrcMismatch,
            Refusal::NotAuthenticated => ErrorCode::Unauthorized,
            Refusal::BadPayload(_) | Refusal::InflatesTooFar { .. } => ErrorCode::BadPayload,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // A good frame, of the other version.
            Refusal::BadMagic { got } if matches!(got, b"IAPL" | b"LPAI") => write!(
                f,
                "Bad magic: a frame of version {} on a connection of the other version: it keeps that of its first frame, and shared memory has version 2 only",
                if got == b"IAPL" { 2 } else { 1 }
            ),
            Refusal::BadMagic { got: [a, b, c, d] } => write!(
                f,
                "Bad magic: a frame begins with 49 41 50 4C (version 2) or 4C 50 41 49 (version 1), got {a:02X} {b:02X} {c:02X} {d:02X}: does this address belong to another protocol?"
            ),
            // Version 2's number behind version 1's magic: only there can it be wrong.
            Refusal::VersionMismatch { got: VERSION } => {
                write!(f, "Protocol version mismatch: expected 1, got {VERSION}: the magic is version 1's")
            }
            Refusal::VersionMismatch { got } => {
                write!(
                    f,
                    "Protocol version mismatch: expected {VERSION}, got {got}"
                )
            }
            Refusal::BadFlags { got } => write!(
                f,
                "Bad flags 0x{got:02X}: bits 0x02, 0x40 and 0x80 are reserved, and REQUEST (0x10) and RESPONSE (0x20) exclude each other"
            ),
            Refusal::ZeroType => f.write_str("Bad message type: 0 is not a type"),
            Refusal::ZeroId => f.write_str(
                "Bad message id: a request's id must not be 0; a one-way message has no REQUEST flag (0x10)",
            ),
            Refusal::TooLarge { length, max } => write!(
                f,
                "Message too large: {length} bytes, the limit is {max}: send less at a time or raise limits.max_message_bytes"
            ),
            Refusal::CrcMismatch { expected, got } => {
                write!(
                    f,
                    "CRC32 mismatch: expected 0x{expected:08X}, got 0x{got:08X}"
                )
            }
            Refusal::NotAuthenticated => f.write_str(
                "this server asks for credentials: send a HANDSHAKE with the auth token first",
            ),
            Refusal::BadPayload(what) => write!(f, "Bad payload: {what}"),
            Refusal::InflatesTooFar { size, max } => {
                write!(
                    f,
                    "Bad payload: it decompresses to {size} bytes, the limit is {max}: send less at a time or raise limits.max_message_bytes"
                )
            }
        }
    }
}

impl std::error::Error for Refusal {}

/// The longest text put into an ERROR frame: one that is longer than the other side's limit on
/// messages would cost the connection.
pub const ERROR_TEXT_BYTES_MAX: usize = 4096;

/// Appends the payload of an ERROR frame. A text over [`ERROR_TEXT_BYTES_MAX`] is cut, between two
/// characters.
pub fn encode_error_payload(out: &mut Vec<u8>, code: ErrorCode, text: &str) {
    let text = &text[..text.floor_char_boundary(ERROR_TEXT_BYTES_MAX)];
    out.extend_from_slice(&(code as u16).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// The code and text of an ERROR frame's payload. The code may be one that we do not know; text
/// that is not UTF-8 is repaired.
pub fn decode_error_payload(payload: &[u8]) -> Option<(u16, std::borrow::Cow<'_, str>)> {
    let (code, text) = payload.split_first_chunk::<2>()?;
    Some((u16::from_le_bytes(*code), String::from_utf8_lossy(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_numbers_agree() {
        for (index, code) in ErrorCode::ALL.into_iter().enumerate() {
            assert_eq!(code as usize, index + 1);
            assert_eq!(ErrorCode::from_u16(code as u16), Some(code));
        }
        assert_eq!(ErrorCode::from_u16(0), None);
        assert_eq!(ErrorCode::from_u16(15), None);
        assert_eq!(ErrorCode::CrcMismatch.metric_name(), "crc_mismatch");
    }

    #[test]
    fn a_good_frame_of_the_other_version_is_not_called_another_protocol() {
        for (got, version) in [(*b"IAPL", 2), (*b"LPAI", 1)] {
            let text = Refusal::BadMagic { got }.to_string();
            let wanted = format!("Bad magic: a frame of version {version} on a connection");
            assert!(text.starts_with(&wanted), "{text}");
        }
    }

    #[test]
    fn the_guides_sentences() {
        assert_eq!(
            Refusal::VersionMismatch { got: 1 }.to_string(),
            "Protocol version mismatch: expected 2, got 1"
        );
        assert_eq!(
            Refusal::VersionMismatch { got: 3 }.to_string(),
            "Protocol version mismatch: expected 2, got 3"
        );
        assert_eq!(
            Refusal::VersionMismatch { got: 2 }.to_string(),
            "Protocol version mismatch: expected 1, got 2: the magic is version 1's"
        );
        assert_eq!(
            Refusal::CrcMismatch {
                expected: 0x1234_5678,
                got: 0x8765_4321
            }
            .to_string(),
            "CRC32 mismatch: expected 0x12345678, got 0x87654321"
        );
        assert_eq!(
            Refusal::CrcMismatch {
                expected: 0xab,
                got: 0
            }
            .to_string(),
            "CRC32 mismatch: expected 0x000000AB, got 0x00000000"
        );
    }

    #[test]
    fn error_payloads_come_back() {
        let mut payload = Vec::new();
        encode_error_payload(&mut payload, ErrorCode::Overloaded, "später");
        assert_eq!(payload[..2], [8, 0]);
        assert_eq!(decode_error_payload(&payload), Some((8, "später".into())));
        assert_eq!(decode_error_payload(&[8]), None);
        assert_eq!(decode_error_payload(&[8, 0, 0xFF]).unwrap().1, "\u{FFFD}");
    }

    #[test]
    fn a_long_error_text_is_cut_between_characters() {
        let mut payload = Vec::new();
        let text = format!("x{}", "ä".repeat(ERROR_TEXT_BYTES_MAX));
        encode_error_payload(&mut payload, ErrorCode::HandlerFailed, &text);
        assert_eq!(payload.len(), 2 + ERROR_TEXT_BYTES_MAX - 1);
        assert!(decode_error_payload(&payload).unwrap().1.ends_with('ä'));
    }

    #[test]
    fn which_codes_close_the_connection_and_their_names() {
        for (number, name, closes) in [
            (1, "BAD_MAGIC", true),
            (2, "VERSION_MISMATCH", true),
            (3, "CRC_MISMATCH", true),
            (4, "TOO_LARGE", true),
            (5, "UNKNOWN_TYPE", false),
            (6, "BAD_FLAGS", true),
            (7, "UNAUTHORIZED", true),
            (8, "OVERLOADED", false),
            (9, "PROVIDER_LOST", false),
            (10, "HANDLER_FAILED", false),
            (11, "TIMEOUT", false),
            (12, "CANCELLED", false),
            (13, "SHUTTING_DOWN", false),
            (14, "BAD_PAYLOAD", false),
        ] {
            let code = ErrorCode::from_u16(number).unwrap();
            assert_eq!(code.name(), name);
            assert_eq!(code.closes_connection(), closes, "{name}");
        }
    }
}
