//! The bounds of everything that could grow.

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
