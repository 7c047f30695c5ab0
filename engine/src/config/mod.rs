//! What a server can be told.

mod idle;
mod limits;

pub use idle::{IdleMode, UnknownIdleMode};
pub use limits::Limits;
