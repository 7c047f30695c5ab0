//! The payload of HANDSHAKE and HANDSHAKE_ACK: records of u16 tag, u16 length, bytes. Tags that
//! the reader does not know are skipped.

use super::Refusal;

/// Bits of [`Hello::capabilities`].
pub mod capability {
    /// Compressed payloads are understood.
    pub const COMPRESSION: u32 = 1;
    /// Shared memory is wanted, or offered.
    pub const SHM: u32 = 2;
}

const VERSIONS: u16 = 1;
const CAPABILITIES: u16 = 2;
const IDENTITY: u16 = 3;
const CREDENTIALS: u16 = 4;
const SHM_SEGMENT: u16 = 5;
const HOST_ID: u16 = 6;
const MAX_MESSAGE_BYTES: u16 = 7;

/// What a side says of itself. Everything is optional.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hello<'a> {
    /// Versions spoken, one byte each. None named: version 2.
    pub versions: &'a [u8],
    /// Bits of [`capability`].
    pub capabilities: u32,
    /// Who it is, for logs.
    pub identity: Option<&'a str>,
    /// The auth token, where the server asks for one.
    pub credentials: Option<&'a [u8]>,
    /// File name of the server's control segment.
    pub shm_segment: Option<&'a str>,
    /// Tells whether that file, opened by the client, is the server's.
    pub host_id: Option<&'a [u8]>,
    /// The longest payload that is accepted.
    pub max_message_bytes: Option<u32>,
}

impl<'a> Hello<'a> {
    /// Whether a version is among those named.
    pub fn speaks(&self, version: u8) -> bool {
        self.versions.is_empty() || self.versions.contains(&version)
    }

    /// The highest version named.
    pub fn highest_version(&self) -> u8 {
        self.versions
            .iter()
            .copied()
            .max()
            .unwrap_or(super::VERSION)
    }

    /// Reads a payload.
    pub fn decode(payload: &'a [u8]) -> Result<Hello<'a>, Refusal> {
        let mut hello = Hello::default();
        let mut rest = payload;
        // Each turn takes at least four bytes.
        while !rest.is_empty() {
            let (head, tail) = rest.split_first_chunk::<4>().ok_or(Refusal::BadPayload(
                "a handshake record is cut off in its tag or length",
            ))?;
            let tag = u16::from_le_bytes([head[0], head[1]]);
            let length = usize::from(u16::from_le_bytes([head[2], head[3]]));
            let (value, tail) = tail.split_at_checked(length).ok_or(Refusal::BadPayload(
                "a handshake record is longer than the payload",
            ))?;
            rest = tail;
            match tag {
                VERSIONS => hello.versions = value,
                CAPABILITIES => hello.capabilities = number(value)?,
                IDENTITY => hello.identity = Some(text(value)?),
                CREDENTIALS => hello.credentials = Some(value),
                SHM_SEGMENT => hello.shm_segment = Some(text(value)?),
                HOST_ID => hello.host_id = Some(value),
                MAX_MESSAGE_BYTES => hello.max_message_bytes = Some(number(value)?),
                _ => {}
            }
        }
        Ok(hello)
    }

    /// Appends the payload.
    ///
    /// # Panics
    /// If a field is longer than 65,535 bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut record = |tag: u16, value: &[u8]| {
            let length = u16::try_from(value.len()).expect("a record's length is 16 bits");
            out.extend_from_slice(&tag.to_le_bytes());
            out.extend_from_slice(&length.to_le_bytes());
            out.extend_from_slice(value);
        };
        if !self.versions.is_empty() {
            record(VERSIONS, self.versions);
        }
        record(CAPABILITIES, &self.capabilities.to_le_bytes());
        if let Some(identity) = self.identity {
            record(IDENTITY, identity.as_bytes());
        }
        if let Some(credentials) = self.credentials {
            record(CREDENTIALS, credentials);
        }
        if let Some(segment) = self.shm_segment {
            record(SHM_SEGMENT, segment.as_bytes());
        }
        if let Some(id) = self.host_id {
            record(HOST_ID, id);
        }
        if let Some(max) = self.max_message_bytes {
            record(MAX_MESSAGE_BYTES, &max.to_le_bytes());
        }
    }
}

fn number(value: &[u8]) -> Result<u32, Refusal> {
    let bytes = value
        .try_into()
        .map_err(|_| Refusal::BadPayload("a handshake number has not 4 bytes"))?;
    Ok(u32::from_le_bytes(bytes))
}

fn text(value: &[u8]) -> Result<&str, Refusal> {
    std::str::from_utf8(value).map_err(|_| Refusal::BadPayload("a handshake text is not UTF-8"))
}
