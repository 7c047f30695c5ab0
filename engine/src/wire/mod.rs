//! The protocol: bytes in, bytes out. No I/O, no clock, and no allocation on the way of a frame.
//!
//! [`header`], [`flags`], [`msg_type`] and [`error`] are the tables of the specification;
//! [`frame`] writes and verifies version 2 frames, [`unsealed`] short ones together, [`legacy`] version 1; [`scan`] finds frames in
//! bytes that come in any split; [`handshake`], [`pool_report`] and [`compress`] are payloads.

mod append;
mod compress;
pub mod crc;
mod error;
mod flags;
mod frame;
mod handshake;
mod header;
mod instance;
pub mod legacy;
pub mod msg_type;
mod pool_report;
mod scan;
#[cfg(test)]
mod tests;
mod unsealed;

pub(crate) use append::{STEP_BYTES, append};
#[cfg(test)]
pub use compress::compress;
pub use compress::decompress;
pub(crate) use compress::uncompressed_bytes;
pub use error::{
    ERROR_TEXT_BYTES_MAX, ErrorCode, Refusal, decode_error_payload, encode_error_payload,
};
pub use flags::Flags;
#[cfg(test)]
pub use frame::encode;
pub use frame::{VERIFY_BATCH, encode_to, verify, verify_batch};
pub(crate) use frame::{check_crc, good_row};
pub use handshake::{Hello, capability};
pub(crate) use header::{GoodFirst, HEADER_WORDS};
pub use header::{HEADER_BYTES, Header, ProtocolVersion, VERSION};
pub use instance::{control_segment_name, is_control_segment_name, is_instance_name};
pub use pool_report::PoolReport;
pub use scan::{Assembler, Scanned, header_bytes, scan};
pub(crate) use scan::{accepted_header, front_frame, make_room};
pub(crate) use unsealed::Unsealed;
