//! The payload of HANDSHAKE and HANDSHAKE_ACK: records of u16 tag, u16 length, bytes. Tags that
//! the reader does not know are skipped.

use std::fmt;

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

/// What a side says of itself. Everything is optional; where a record comes twice, the last counts.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
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

impl fmt::Debug for Hello<'_> {
    /// Without the credentials, so that no log line shows them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hello")
            .field("versions", &self.versions)
            .field("capabilities", &self.capabilities)
            .field("identity", &self.identity)
            .field("credentials", &self.credentials.map(|_| "(not shown)"))
            .field("shm_segment", &self.shm_segment)
            .field("host_id", &self.host_id)
            .field("max_message_bytes", &self.max_message_bytes)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_records_byte_by_byte() {
        let hello = Hello {
            versions: &[1, 2],
            capabilities: capability::SHM,
            identity: Some("ed"),
            credentials: Some(b"\xFF"),
            shm_segment: Some("s"),
            host_id: Some(b""),
            max_message_bytes: Some(0x0102_0304),
        };
        let mut payload = Vec::new();
        hello.encode(&mut payload);
        let expected: &[&[u8]] = &[
            &[1, 0, 2, 0, 1, 2],
            &[2, 0, 4, 0, 2, 0, 0, 0],
            &[3, 0, 2, 0, b'e', b'd'],
            &[4, 0, 1, 0, 0xFF],
            &[5, 0, 1, 0, b's'],
            &[6, 0, 0, 0],
            &[7, 0, 4, 0, 4, 3, 2, 1],
        ];
        assert_eq!(payload, expected.concat());
        assert_eq!(Hello::decode(&payload), Ok(hello));
        assert_eq!(Hello::decode(b""), Ok(Hello::default()));
        // Cut anywhere but between two records, it is refused.
        let mut ends = vec![0];
        for record in expected {
            ends.push(ends.last().unwrap() + record.len());
        }
        for length in 0..payload.len() {
            let whole_records = ends.contains(&length);
            assert_eq!(Hello::decode(&payload[..length]).is_ok(), whole_records);
        }
    }

    #[test]
    fn wrong_values_are_refused_by_name() {
        let refusal = |payload: &[u8]| Hello::decode(payload).unwrap_err().to_string();
        let short = [2, 0, 3, 0, 0, 0, 0];
        assert!(refusal(&short).contains("number has not 4 bytes"));
        let long = [7, 0, 5, 0, 0, 0, 0, 0, 0];
        assert!(refusal(&long).contains("number has not 4 bytes"));
        assert!(refusal(&[3, 0, 1, 0, 0xFF]).contains("not UTF-8"));
        assert!(refusal(&[5, 0, 1, 0, 0x80]).contains("not UTF-8"));
        assert!(refusal(&[9, 0, 0xFF, 0xFF, 1]).contains("longer than the payload"));
        assert!(refusal(&[9]).contains("cut off"));
    }

    #[test]
    fn credentials_are_not_shown() {
        let hello = Hello {
            credentials: Some(b"secret"),
            ..Hello::default()
        };
        let shown = format!("{hello:?}");
        let bytes = format!("{:?}", b"secret");
        assert!(
            !shown.contains("secret") && !shown.contains(&bytes),
            "{shown}"
        );
        assert!(shown.contains("not shown"));
    }
}
