//! The bounds of everything that could grow, and the bounds of those.

use std::fmt;

/// Limits of a server. The defaults are those of the daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The longest payload, in bytes, as it is on the wire and decompressed. Longer ones are
    /// refused with TOO_LARGE. Default 10 MiB.
    pub max_message_bytes: u32,
    /// Connections at a time over all transports; more are refused with OVERLOADED. Default 1024.
    pub max_connections: u32,
    /// How long a graceful stop waits for answers in flight, in milliseconds. Default 5000.
    pub drain_ms: u64,
    /// Requests of one connection that other threads may be working on; more are answered with
    /// OVERLOADED. Default 1024.
    pub max_inflight_per_connection: u32,
    /// Bytes of messages on their way, over all connections: past it, connections with a large
    /// message to send have to wait for those before them. Default 64 MiB.
    pub max_buffered_bytes: u64,
    /// How long a peer may leave its answers unread before its connection is closed, in
    /// milliseconds. Default 30000.
    pub send_stall_ms: u64,
    /// How long a peer may stop in the middle of a frame, in milliseconds. Default 10000.
    pub frame_timeout_ms: u64,
}

/// The longest time that a limit may name, in milliseconds: a day.
const MILLISECONDS_MAX: u64 = 24 * 60 * 60 * 1000;
/// The longest payload that may be allowed.
const MESSAGE_BYTES_MAX: u32 = 1 << 30;
/// A message longer than this reserves its room in `max_buffered_bytes`, which nobody gets before credentials are
/// shown where they are asked for.
pub(crate) const SMALL_FRAME_BYTES: usize = 64 * 1024;
/// What must have room beside the longest message.
const BESIDE_BYTES: u64 = 1024;

/// A limit that cannot be: which, and what would be right.
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
    /// Whether a server can keep them, which it asks when it starts.
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
            // In no time nothing can be done. (A stop that waits for nothing is one.)
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

    /// The least `max_buffered_bytes` that does for `max_message_bytes`.
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
