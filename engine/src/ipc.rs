//! The public face of the engine.

pub use crate::client::{Answer, AnswerRef, Client, ClientBuilder, ClientStats, Error, Parts};
pub use crate::config::{IdleMode, Limits, UnknownIdleMode};
pub use crate::server::{Server, ServerBuilder, ServerError, ServerHandle};
pub use crate::stats::{Snapshot, Transport};
pub use crate::wire::{ErrorCode, Flags, Header, ProtocolVersion, msg_type};
pub use crate::worker::{Deferred, Gone, Handler, Request, Responder};
