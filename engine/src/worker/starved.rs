//! Connections whose receive ended because no buffer was free ("starved"): which are armed again, and when.
//!
//! The kernel gives a buffer to whichever connection has bytes when it looks: one peer that always sends
//! would get all of them, in every round. So connections that got none are armed first, in order; and while
//! any are starved, each receive takes one buffer only.

use std::collections::VecDeque;

use super::Worker;
use super::connection::TcpState;
use crate::uring::{BUFFER_COUNT, Key};

/// Bounded by the number of connections: each is in here at most once.
#[derive(Default)]
pub(super) struct Starved {
    /// They received nothing since they were armed.
    empty_handed: VecDeque<Key>,
    /// They received something.
    served: VecDeque<Key>,
}

impl Starved {
    pub(super) fn is_empty(&self) -> bool {
        self.empty_handed.is_empty() && self.served.is_empty()
    }

    pub(super) fn add(&mut self, key: Key, tcp: &mut TcpState) {
        assert!(!tcp.starved, "a receive ends once");
        tcp.starved = true;
        match tcp.served {
            true => self.served.push_back(key),
            false => self.empty_handed.push_back(key),
        }
    }

    fn next(&mut self) -> Option<Key> {
        self.empty_handed
            .pop_front()
            .or_else(|| self.served.pop_front())
    }
}

impl Worker {
    /// Arms as many starved connections again as there are buffers. Called at the end of a round, when the
    /// buffers are back.
    pub(super) fn arm_starved(&mut self) {
        for _ in 0..BUFFER_COUNT {
            let Some(key) = self.starved.next() else {
                return;
            };
            if let Some(connection) = self.connections.get_mut(key) {
                connection.tcp.starved = false;
                self.pause_or_receive(key);
            }
        }
    }
}
