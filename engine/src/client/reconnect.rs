//! A new connection in the place of one that was lost.

use super::Error;
use super::answer::PeerLimits;
use super::builder::Options;
use super::connect::{self, Opened};
use super::deadline::Deadline;
use super::inner::{Inner, timeout};
use crate::sys::clock;
use crate::wire::{ErrorCode, ProtocolVersion, Unsealed};

impl Inner {
    /// Connects again: at once, then after pauses that double, until the deadline.
    pub(super) fn reconnect(&mut self, deadline: &mut Deadline) -> Result<(), Error> {
        if !self.options.reconnect {
            let error = Error::ConnectionLost {
                may_have_run: false,
                source: None,
            };
            self.fail_unsent(&error);
            return Err(error);
        }
        self.pause_if_in_vain(deadline)?;
        let connect_ns = Deadline::after(self.options.connect_timeout).at_ns();
        let mut connect_ns = connect_ns.min(deadline.at_ns());
        loop {
            let error = match connect::open(&self.options, &self.address, connect_ns) {
                Ok(opened) => {
                    self.adopt(opened);
                    return Ok(());
                }
                Err(error) => error,
            };
            // Refused for good: trying again would not help.
            let for_good = matches!(
                error.code(),
                Some(ErrorCode::Unauthorized | ErrorCode::VersionMismatch)
            );
            let now_ns = clock::now_ns();
            let left = deadline.left(now_ns).filter(|_| !for_good);
            let Some(left) = left else {
                self.fail_unsent(&error);
                return Err(error);
            };
            std::thread::sleep(self.backoff.next(now_ns).min(left));
            let limit = Deadline::after(self.options.connect_timeout).at_ns();
            connect_ns = limit.min(deadline.at_ns());
        }
    }

    /// Goes on with a new connection: first what the old one did not send.
    fn adopt(&mut self, opened: Opened) {
        let Opened { mut channel, peer } = opened;
        let base = channel.next_begins_at();
        channel.queue_encoded(&self.unsent);
        self.unsent = Vec::new();
        self.flights.shift(base);
        self.transport = channel.link.transport();
        self.lengths = Lengths::new(&self.options, &peer);
        self.peer = peer;
        self.channel = Some(channel);
        self.stats.reconnects += 1;
    }

    /// A connection that ended without having carried an answer is not replaced at once.
    fn pause_if_in_vain(&mut self, deadline: &mut Deadline) -> Result<(), Error> {
        let now_ns = clock::now_ns();
        let Some(left) = deadline.left(now_ns) else {
            self.fail_unsent(&timeout(deadline));
            return Err(timeout(deadline));
        };
        if let Some(pause) = self.backoff.pause_between_connections(now_ns) {
            std::thread::sleep(pause.min(left));
        }
        Ok(())
    }
}

/// How long payloads may be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lengths {
    /// The longest that both sides take.
    pub(super) max: u32,
    /// Those below are short: they are queued to be summed with others.
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
