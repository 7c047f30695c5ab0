//! Connections that found no receive buffer: who is armed again, and when.
//!
//! The kernel gives buffers to whoever has bytes when it looks: one peer that always sends would have
//! all of them, in every round. So those that went away with nothing come first, in their order; and as
//! long as there are several, each takes one buffer at a time.

use std::collections::VecDeque;

use super::Worker;
use super::connection::TcpState;
use crate::uring::{BUFFER_COUNT, Key};

/// Bounded by the number of connections: each stands here once.
#[derive(Default)]
pub(super) struct Starved {
    /// They had nothing since they were armed.
    empty_handed: VecDeque<Key>,
    /// They had something.
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
    /// Arms again as many as there are buffers, at the end of a round, when buffers are back.
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
