//! The protocol: bytes in, bytes out. No I/O and no clock, and frames are encoded and verified without
//! allocations of their own.
//!
//! - [`header`], [`flags`], [`msg_type`] and [`error`] are the tables of docs/protocol.md.
//! - [`mod@scan`] finds frames in bytes that come in any split.
//! - [`frame`] encodes and verifies version 2 frames; [`unsealed`] encodes short ones whose CRCs are computed
//!   later, several at a time; [`legacy`] has version 1.
//! - [`handshake`], [`pool_report`] and [`compress`] are payloads.
//! - [`crc`] computes CRC-32C, also while copying, with the best instructions that the processor has.
//! - [`instance`] has the names of files in /dev/shm, [`mod@append`] long copies.

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
