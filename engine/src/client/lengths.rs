//! How long the payloads of a connection may be.

use super::answer::PeerLimits;
use super::builder::Options;
use crate::wire::{ProtocolVersion, Unsealed};

/// Limits on payloads, in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lengths {
    /// The longest that client and server both accept.
    pub(super) max: u32,
    /// Payloads below this are short: their frames are queued, and their CRCs computed together.
    pub(super) short_end: usize,
}

impl Lengths {
    pub(super) fn new(options: &Options, peer: &PeerLimits) -> Lengths {
        let own = options.max_message_bytes;
        let max = own.min(peer.max_message_bytes.unwrap_or(own));
        let short_max = Unsealed::PAYLOAD_BYTES_MAX.min(max as usize);
        Lengths {
            max,
            short_end: match options.version {
                ProtocolVersion::V2 => short_max + 1,
                ProtocolVersion::V1 => 0,
            },
        }
    }
}
