//! A new connection in place of one that was lost.

use super::Error;
use super::connect::{self, Opened};
use super::deadline::Deadline;
use super::inner::{Inner, timeout};
use super::lengths::Lengths;
use crate::sys::clock;
use crate::wire::ErrorCode;

impl Inner {
    /// Connects again: at once, then after pauses that double, until the deadline. For a call that does not
    /// wait for a server that is gone, there is one attempt, and none during a pause.
    pub(super) fn reconnect(&mut self, deadline: &mut Deadline) -> Result<(), Error> {
        // What found no memory would find none again, until the deadline. What comes later may be shorter.
        let in_vain = std::mem::take(&mut self.lacked_memory) && !self.unsent.is_empty();
        if in_vain || !self.options.reconnect {
            let error = Error::ConnectionLost {
                may_have_run: false,
                source: in_vain.then(|| std::io::ErrorKind::StorageFull.into()),
            };
            self.fail_unsent(&error);
            return Err(error);
        }
        if !deadline.waits_for_server() || self.options.reconnect_timeout.is_zero() {
            return self.reconnect_now(deadline);
        }
        let mut patience = Deadline::after(self.options.reconnect_timeout);
        let mut last_error = None;
        // Ends with a connection, a refusal, or the deadline.
        loop {
            let now_ns = clock::now_ns();
            let left = deadline.left(now_ns).zip(patience.left(now_ns));
            let Some(left) = left.map(|(one, other)| one.min(other)) else {
                self.fail_unsent(&timeout(deadline));
                return Err(timeout(deadline));
            };
            if let Some(pause) = self.backoff.left(now_ns) {
                std::thread::sleep(pause.min(left));
                // Without time for it an attempt fails, and another pause begins: calls that are all shorter than
                // a pause would never get through.
                if deadline.left(clock::now_ns()).is_none() {
                    let error = last_error.unwrap_or_else(|| timeout(deadline));
                    self.fail_unsent(&error);
                    return Err(error);
                }
            }
            let Err(error) = self.attempt(deadline) else {
                return Ok(());
            };
            let now_ns = clock::now_ns();
            let is_over = deadline.left(now_ns).is_none() || patience.left(now_ns).is_none();
            if is_over || is_for_good(&error) {
                self.fail_unsent(&error);
                return Err(error);
            }
            last_error = Some(error);
        }
    }

    /// One attempt, unless a pause lasts. If it fails, frames that were not sent go on waiting.
    fn reconnect_now(&mut self, deadline: &mut Deadline) -> Result<(), Error> {
        if let Some(left) = self.backoff.left(clock::now_ns()) {
            return Err(Error::Unavailable {
                address: self.address.to_string(),
                retry_after: left,
            });
        }
        self.attempt(deadline).inspect_err(|error| {
            if is_for_good(error) {
                self.fail_unsent(error);
            }
        })
    }

    fn attempt(&mut self, deadline: &mut Deadline) -> Result<(), Error> {
        let limit_ns = Deadline::after(self.options.connect_timeout).at_ns();
        match connect::open(&self.options, &self.address, limit_ns.min(deadline.at_ns())) {
            Ok(opened) => {
                self.adopt(opened);
                Ok(())
            }
            Err(error) => {
                self.backoff.failed(clock::now_ns());
                Err(error)
            }
        }
    }

    /// Goes on with a new connection. What the old one did not send is sent first.
    fn adopt(&mut self, opened: Opened) {
        let Opened { mut channel, peer } = opened;
        let base = channel.next_begins_at();
        channel.queue_encoded(&self.unsent);
        self.unsent = Vec::new();
        self.flights.shift(base);
        self.last_one_way_at = channel.next_begins_at();
        self.transport = channel.link.transport();
        self.lengths = Lengths::new(&self.options, &peer);
        self.peer = peer;
        self.channel = Some(channel);
        self.stats.reconnects += 1;
    }
}

/// Whether the server has refused us in a way that trying again does not change.
fn is_for_good(error: &Error) -> bool {
    matches!(
        error.code(),
        Some(ErrorCode::Unauthorized | ErrorCode::VersionMismatch)
    )
}
