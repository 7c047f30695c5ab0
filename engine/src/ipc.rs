//! The public face of the engine.

pub use crate::client::{
    Answer, AnswerRef, Client, ClientBuilder, ClientStats, Error, Parts, PeerLimits, Watch,
};
pub use crate::config::{
    BadLimit, Config, ConfigError, IdleMode, Limits, UnknownIdleMode, read_token,
};
pub use crate::pool::{
    ConnectionPool, ConnectionPoolBuilder, PoolConfig, PoolStats, PooledConnection,
};
pub use crate::process::{
    ProcessStats, keep_process_small, monotonic_ns, process_stats, release_startup_pages,
    system_monotonic_us, wait_for_port,
};
pub use crate::server::{Server, ServerBuilder, ServerError, ServerHandle};
pub use crate::stats::{Snapshot, Transport};
pub use crate::wire::{
    ErrorCode, Flags, Header, ProtocolVersion, Refusal, is_instance_name, msg_type,
};
pub use crate::worker::{Deferred, Gone, Handler, Request, Responder};
