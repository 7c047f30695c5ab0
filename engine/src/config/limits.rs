//! Limits on everything that peers can make grow, and the values that these limits may have.

use std::fmt;

/// Limits of a server. The defaults are those of the daemon. All but `drain_ms` are at least 1, and all times
/// at most a day: see [`Limits::check`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The longest payload in bytes, both on the wire and decompressed; at most 1 GiB. A longer one is
    /// refused with TOO_LARGE and its connection closed; one that only decompresses to more is answered with
    /// BAD_PAYLOAD. Default 10 MiB.
    pub max_message_bytes: u32,
    /// Connections at a time, over both transports. Further ones are refused with OVERLOADED. Default 1024.
    pub max_connections: u32,
    /// How long a graceful stop waits for answers in flight, in milliseconds; 0 does not wait. Default 5000.
    pub drain_ms: u64,
    /// Requests of one connection that may be detached ([`crate::ipc::Responder::detach`]) and not answered.
    /// Further ones are answered with OVERLOADED. Default 1024.
    pub max_inflight_per_connection: u32,
    /// The memory budget for messages on their way in and answers that nobody has read yet, in bytes, over
    /// all connections; at least `max_message_bytes` and 1,024 more. When it is used up, connections with a
    /// message of more than 64 KiB to send have to wait in line. Default 64 MiB.
    pub max_buffered_bytes: u64,
    /// How long a peer may read nothing of its answers before its connection is closed, in milliseconds.
    /// Default 30000.
    pub send_stall_ms: u64,
    /// How long a peer in the middle of a frame may take for each further 1,024 bytes, in milliseconds; and
    /// for the whole frame while others wait for the room that it holds; and to show its credentials, if the
    /// server asks for them. Then its connection is refused and closed. Default 10000.
    pub frame_timeout_ms: u64,
}

/// The longest time that a limit may have, in milliseconds: a day.
const MILLISECONDS_MAX: u64 = 24 * 60 * 60 * 1000;
/// The greatest `max_message_bytes`.
const MESSAGE_BYTES_MAX: u32 = 1 << 30;
/// A frame longer than this reserves its room in `max_buffered_bytes` before it is gathered. If the server asks
/// for credentials, a connection that has not shown them cannot reserve any.
pub(crate) const SMALL_FRAME_BYTES: usize = 64 * 1024;
/// How much more than the longest message `max_buffered_bytes` must have room for.
const BESIDE_BYTES: u64 = 1024;

/// A limit whose value is not allowed, and what would be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadLimit {
    /// The field of [`Limits`], which is the key in the section `[limits]` of a configuration too.
    pub name: &'static str,
    /// What is wrong with it and what would be right.
    pub problem: String,
}

impl fmt::Display for BadLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "limits.{}: {}", self.name, self.problem)
    }
}

impl std::error::Error for BadLimit {}

impl Limits {
    /// Whether these limits are allowed. A server checks that when it starts.
    ///
    /// # Errors
    /// The first limit that is not, and which values are.
    pub fn check(&self) -> Result<(), BadLimit> {
        let bad = |name, problem| Err(BadLimit { name, problem });
        for (name, value) in [
            ("max_message_bytes", u64::from(self.max_message_bytes)),
            ("max_connections", self.max_connections.into()),
            (
                "max_inflight_per_connection",
                self.max_inflight_per_connection.into(),
            ),
            ("send_stall_ms", self.send_stall_ms),
            ("frame_timeout_ms", self.frame_timeout_ms),
        ] {
            // Not `drain_ms`: a stop need not wait.
            if value == 0 {
                return bad(name, "must be at least 1".into());
            }
        }
        for (name, ms) in [
            ("drain_ms", self.drain_ms),
            ("send_stall_ms", self.send_stall_ms),
            ("frame_timeout_ms", self.frame_timeout_ms),
        ] {
            if ms > MILLISECONDS_MAX {
                let problem = format!("{ms} is too long: at most {MILLISECONDS_MAX} (a day)");
                return bad(name, problem);
            }
        }
        if self.max_message_bytes > MESSAGE_BYTES_MAX {
            let bytes = self.max_message_bytes;
            let problem = format!("{bytes} is too much: at most {MESSAGE_BYTES_MAX}");
            return bad("max_message_bytes", problem);
        }
        let (bytes, least) = (self.max_buffered_bytes, self.buffered_bytes_min());
        if bytes < least {
            let problem = format!(
                "{bytes} is too little: max_message_bytes and {BESIDE_BYTES} more, {least}, is the least"
            );
            return bad("max_buffered_bytes", problem);
        }
        Ok(())
    }

    /// [`Limits::drain_ms`] in nanoseconds.
    pub(crate) fn drain_ns(&self) -> u64 {
        nanos(self.drain_ms)
    }

    /// [`Limits::send_stall_ms`] in nanoseconds.
    pub(crate) fn send_stall_ns(&self) -> u64 {
        nanos(self.send_stall_ms)
    }

    /// [`Limits::frame_timeout_ms`] in nanoseconds.
    pub(crate) fn frame_timeout_ns(&self) -> u64 {
        nanos(self.frame_timeout_ms)
    }

    /// The least `max_buffered_bytes` for this `max_message_bytes`.
    pub(super) fn buffered_bytes_min(&self) -> u64 {
        u64::from(self.max_message_bytes) + BESIDE_BYTES
    }
}

/// Does not overflow: [`Limits::check`] allows a day.
fn nanos(milliseconds: u64) -> u64 {
    milliseconds * 1_000_000
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            max_message_bytes: 10 * 1024 * 1024,
            max_connections: 1024,
            drain_ms: 5_000,
            max_inflight_per_connection: 1024,
            max_buffered_bytes: 64 * 1024 * 1024,
            send_stall_ms: 30_000,
            frame_timeout_ms: 10_000,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_kept_is_named() {
        Limits::default().check().unwrap();
        type Change = fn(&mut Limits);
        let cases: [(&str, Change); 12] = [
            ("max_message_bytes", |limits| limits.max_message_bytes = 0),
            ("max_message_bytes", |limits| {
                limits.max_message_bytes = u32::MAX;
                limits.max_buffered_bytes = u64::MAX;
            }),
            ("max_connections", |limits| limits.max_connections = 0),
            ("max_inflight_per_connection", |limits| {
                limits.max_inflight_per_connection = 0;
            }),
            ("send_stall_ms", |limits| limits.send_stall_ms = 0),
            ("frame_timeout_ms", |limits| limits.frame_timeout_ms = 0),
            // "For ever" would be no time at all, in nanoseconds of 64 bits.
            ("drain_ms", |limits| limits.drain_ms = u64::MAX),
            ("send_stall_ms", |limits| limits.send_stall_ms = u64::MAX),
            ("frame_timeout_ms", |limits| {
                limits.frame_timeout_ms = u64::MAX;
            }),
            ("drain_ms", |limits| limits.drain_ms = MILLISECONDS_MAX + 1),
            ("max_buffered_bytes", |limits| limits.max_buffered_bytes = 1),
            ("max_buffered_bytes", |limits| {
                limits.max_buffered_bytes = limits.buffered_bytes_min() - 1;
            }),
        ];
        for (name, change) in cases {
            let mut limits = Limits::default();
            change(&mut limits);
            let bad = limits.check().unwrap_err();
            assert_eq!(bad.name, name, "{bad}");
        }
        let kept = Limits {
            drain_ms: 0,
            max_buffered_bytes: u64::MAX,
            ..Limits::default()
        };
        kept.check().unwrap();
    }
}
