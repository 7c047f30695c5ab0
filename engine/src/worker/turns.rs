//! How long one connection's frames may take in a round, before those of others have their turn.
//!
//! Sixteen receive buffers hold ten thousand small frames: with a handler that takes ten microseconds, one
//! connection that always sends would let the others wait for a hundred milliseconds, in every round.

use super::connection::Connection;
use crate::sys::clock;
use crate::uring::Key;

/// What a connection may take. The rest of what it sent waits for the next round.
const TURN_NS: u64 = 2_000_000;
/// In a round of no more frames than this nobody looks at the clock.
const FRAMES_MIN: usize = 16;
const FRAMES_MAX: usize = 256;
/// So long it should take from one look to the next.
const LOOK_NS: u64 = 100_000;

pub(super) struct Turns {
    /// This round has so many frames that it is looked after.
    watched: bool,
    looked_ns: u64,
    /// Frames from one look to the next: more of them while handlers are quick.
    every: usize,
    /// Frames until the next look.
    left: usize,
    /// Whose frames, and of which type, were handled last.
    of: Option<(Key, u16)>,
}

impl Turns {
    pub(super) fn new() -> Turns {
        Turns {
            watched: false,
            looked_ns: 0,
            every: FRAMES_MIN,
            left: FRAMES_MIN,
            of: None,
        }
    }

    /// A round's frames are handled now.
    pub(super) fn begin(&mut self, frames: usize) {
        self.watched = frames > FRAMES_MIN;
        if self.watched {
            self.looked_ns = clock::now_ns();
            self.left = self.every;
        }
    }

    /// Whether there are so many that each connection's take turns.
    pub(super) fn are_watched(&self) -> bool {
        self.watched
    }

    /// Frames of this type of this connection's come now: that others were quick says nothing of these.
    pub(super) fn of(&mut self, key: Key, msg_type: u16) {
        if self.of.replace((key, msg_type)) != Some((key, msg_type)) {
            self.every = FRAMES_MIN;
            self.left = self.left.min(FRAMES_MIN);
        }
    }

    /// How many frames may be handled at once.
    pub(super) fn frames(&self) -> usize {
        self.left
    }

    /// Whether more of this connection's may be handled in this round.
    pub(super) fn may_go_on(&self, connection: &Connection) -> bool {
        connection.spent_ns < TURN_NS
    }

    /// So many were handled. What was handled since the last look counts as this connection's.
    pub(super) fn took(&mut self, connection: &mut Connection, frames: usize) {
        self.left = self.left.saturating_sub(frames);
        if self.left > 0 {
            return;
        }
        let now_ns = clock::now_ns();
        let took_ns = now_ns.saturating_sub(self.looked_ns);
        connection.spent_ns += took_ns;
        self.looked_ns = now_ns;
        self.every = match took_ns > LOOK_NS {
            // As many as take so long; those that got slow did so at once.
            true => (self.every * LOOK_NS as usize / took_ns as usize).max(FRAMES_MIN),
            false => (self.every * 2).min(FRAMES_MAX),
        };
        self.left = self.every;
    }
}
