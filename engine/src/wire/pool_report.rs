//! What a connection pool tells the server in the payload of its heartbeats, so that the server's
//! metrics show how well connections are reused.

/// Marks a heartbeat's payload as a report.
const MARK: [u8; 8] = *b"LPPOOL01";

/// Totals of one pool since it was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolReport {
    /// Chosen at random by the pool.
    pub pool_id: u64,
    /// Connections handed out.
    pub acquired: u64,
    /// Those that were not newly made.
    pub reused: u64,
}

impl PoolReport {
    /// Bytes of a report.
    pub const BYTES: usize = 32;

    /// The payload: the mark, then three u64, little-endian.
    pub fn encode(&self) -> [u8; PoolReport::BYTES] {
        let mut bytes = [0; PoolReport::BYTES];
        bytes[..8].copy_from_slice(&MARK);
        bytes[8..16].copy_from_slice(&self.pool_id.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.acquired.to_le_bytes());
        bytes[24..].copy_from_slice(&self.reused.to_le_bytes());
        bytes
    }

    /// The report in a heartbeat's payload, if it is one.
    pub fn decode(payload: &[u8]) -> Option<PoolReport> {
        let bytes: &[u8; PoolReport::BYTES] = payload.try_into().ok()?;
        let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        (bytes[..8] == MARK).then(|| PoolReport {
            pool_id: number(8),
            acquired: number(16),
            reused: number(24),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_comes_back_and_nothing_else_is_one() {
        let report = PoolReport {
            pool_id: u64::MAX,
            acquired: 1 << 40,
            reused: 3,
        };
        let bytes = report.encode();
        assert_eq!(PoolReport::decode(&bytes), Some(report));
        assert_eq!(PoolReport::decode(&bytes[1..]), None);
        assert_eq!(PoolReport::decode(&[0; PoolReport::BYTES]), None);
        assert_eq!(PoolReport::decode(b""), None);
    }
}
