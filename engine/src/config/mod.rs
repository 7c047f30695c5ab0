//! What a server can be told.

mod error;
mod file;
mod idle;
mod limits;

pub use error::ConfigError;
pub use file::Config;
pub use idle::{IdleMode, UnknownIdleMode};
pub use limits::Limits;
