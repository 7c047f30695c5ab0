//! Turns: how long handling one connection's frames may take in a round, before others have their turn.
//!
//! The sixteen receive buffers hold ten thousand small frames. With a handler that takes ten microseconds,
//! one connection that always sends would keep the others waiting for a hundred milliseconds in every round.

use super::connection::Connection;
use crate::sys::clock;
use crate::uring::Key;

/// How long a connection's frames may take in one round. The rest waits for the next round.
const TURN_NS: u64 = 2_000_000;
/// The least and the most frames between two looks at the clock. In a round with no more frames than the
/// least, it is not looked at.
const FRAMES_MIN: usize = 16;
const FRAMES_MAX: usize = 256;
/// The time that should pass between two looks at the clock.
const LOOK_NS: u64 = 100_000;

pub(super) struct Turns {
    /// This round has so many frames that connections take turns.
    watched: bool,
    /// When the clock was last looked at.
    looked_ns: u64,
    /// Frames between two looks: more while handlers are quick.
    every: usize,
    /// Frames until the next look.
    left: usize,
    /// The connection and the message type whose frames were handled last.
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

    /// Begins with a round of so many frames.
    pub(super) fn begin(&mut self, frames: usize) {
        self.watched = frames > FRAMES_MIN;
        if self.watched {
            self.looked_ns = clock::now_ns();
            self.left = self.every;
        }
    }

    /// Whether the round has so many frames that connections take turns.
    pub(super) fn are_watched(&self) -> bool {
        self.watched
    }

    /// Frames of this type and of this connection come next. If others came before, how quick those were
    /// says nothing of these.
    pub(super) fn of(&mut self, key: Key, msg_type: u16) {
        if self.of.replace((key, msg_type)) != Some((key, msg_type)) {
            self.every = FRAMES_MIN;
            self.left = self.left.min(FRAMES_MIN);
        }
    }

    /// How many frames may be handled before the clock is looked at.
    pub(super) fn frames(&self) -> usize {
        self.left
    }

    /// Whether more frames of this connection may be handled in this round.
    pub(super) fn may_go_on(&self, connection: &Connection) -> bool {
        connection.spent_ns < TURN_NS
    }

    /// So many frames were handled. The time since the last look is counted as this connection's.
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
            // As many as take LOOK_NS: fewer at once, because handlers may become slow from one frame to the
            // next, but more only step by step.
            true => (self.every * LOOK_NS as usize / took_ns as usize).max(FRAMES_MIN),
            false => (self.every * 2).min(FRAMES_MAX),
        };
        self.left = self.every;
    }
}
