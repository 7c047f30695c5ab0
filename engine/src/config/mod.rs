//! What a server can be configured with: limits, idle mode, auth token; and the daemon's configuration file.

mod address;
mod error;
mod file;
mod idle;
mod limits;
mod token;

pub use error::ConfigError;
pub use file::Config;
pub use idle::{IdleMode, UnknownIdleMode};
pub(crate) use limits::SMALL_FRAME_BYTES;
pub use limits::{BadLimit, Limits};
pub(crate) use token::check_token;
pub use token::read_token;
