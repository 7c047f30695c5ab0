//! A connection's way from open to closed: what settles it at the end of a round. Its answers are sent,
//! receiving is paused or resumed (backpressure), what it holds is charged to the budget, and it is closed
//! when it has ended. And how draining begins.

use std::io::ErrorKind::{Interrupted, WouldBlock};
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;

use super::Worker;
use super::connection::{Connection, Phase};
use super::deadlines::SWEEP_DRAIN_NS;
use crate::stats::Direction;
use crate::sys::socket;
use crate::uring::Key;
use crate::wire::Assembler;

/// A connection that holds more unsent bytes of answers than this is neither served nor received from
/// until its peer has read some.
const OUTGOING_BYTES_MAX: usize = 1024 * 1024;
/// The same while the worker as a whole holds more than half of the budget.
const OUTGOING_BYTES_MAX_TIGHT: usize = 64 * 1024;
/// What a connection holds is charged to the budget in multiples of this, so that small traffic never
/// touches the counter that all workers share.
const CHARGE_BYTES: u64 = 16 * 1024;
/// How much unused capacity a buffer may have while it is being sent.
const KEPT_IN_FLIGHT_BYTES: usize = 32 * 1024;
/// How long a connection lingers: it is shut down and still read from, so that the peer can read why.
const LINGER_NS: u64 = 2_000_000_000;
/// The same while draining.
pub(super) const LINGER_DRAIN_NS: u64 = 200_000_000;
/// A lingering connection is closed after this many bytes.
const LINGER_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// For this long a draining worker answers new requests with SHUTTING_DOWN, counted from when no requests wait
/// behind answers that are read late any more. Then it ends the connections that still send some, as it ends
/// silent ones at once: a client that repeats refused requests must not keep the server from stopping.
pub(super) const REFUSING_DRAIN_NS: u64 = 200_000_000;

impl Worker {
    /// How many unsent bytes of answers a connection may hold before it is paused.
    pub(super) fn outgoing_bytes_max(&self) -> usize {
        let half = self.shared.limits.max_buffered_bytes / 2;
        if self.outgoing_bytes as u64 > half {
            OUTGOING_BYTES_MAX_TIGHT
        } else {
            OUTGOING_BYTES_MAX
        }
    }

    /// Settles all connections to which something happened in this round.
    pub(super) fn settle_touched(&mut self) {
        let alone = self.touched.len() == 1;
        // Settling one touches no other.
        for index in 0..self.touched.len() {
            self.settle(self.touched[index], alone);
        }
        self.touched.clear();
        self.inbox.has_settled();
    }

    fn settle(&mut self, key: Key, alone: bool) {
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        connection.touched = false;
        connection.has_bad_frame = false;
        connection.spent_ns = 0;
        connection.waiting.take_if(|waiting| waiting.is_empty());
        if connection.is_at_rest()
            && let Some(ends) = &mut connection.out.ends
        {
            // The shortcut for a ring whose requests are all answered: nothing below has anything to do,
            // and finding that out took longer than serving it.
            self.gives_way |= self.rings.needs_our_cpu(ends.wake_peer());
            connection.deadline_ns = 0;
            connection.out.stop_gathering();
            return self.count_encoded(key);
        }
        if connection.phase == Phase::Open && connection.peer_ended && !connection.has_waiting() {
            connection.phase = Phase::Finishing;
        }
        self.count_encoded(key);
        self.flush(key, alone);
        self.advance(key);
        self.pause_or_receive(key);
        self.watch_time(key);
        self.account(key);
        self.remove_if_closed(key);
    }

    #[inline]
    fn count_encoded(&mut self, key: Key) {
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        let encoded = std::mem::take(&mut connection.out.encoded_bytes);
        if encoded > 0 {
            self.stats
                .bytes(connection.transport(), Direction::Out, encoded);
        }
    }

    /// Sends what is encoded. Over shared memory the client is woken, if it sleeps and there are answers or room
    /// for it. Over TCP, if this is the only connection to be settled (`alone`), by a `send`: one system call, as
    /// entering the io_uring would be, with the result known at once. Several share one `io_uring_enter`.
    fn flush(&mut self, key: Key, alone: bool) {
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        let out = &mut connection.out;
        out.stop_gathering();
        if out.ends.is_some() {
            let before = out.buffered_bytes();
            out.flush_to_ring(self.dispatcher.pool());
            if out.buffered_bytes() < before {
                connection.deadline_ns = 0;
            }
            if let Some(ends) = &mut connection.out.ends {
                self.gives_way |= self.rings.needs_our_cpu(ends.wake_peer());
            }
            return;
        }
        if out.staged.is_empty() || out.sending_bytes > 0 || connection.phase == Phase::Closing {
            return;
        }
        let Some(fd) = connection.tcp.raw_fd() else {
            return;
        };
        // It would tell of a reset.
        connection.tcp.reset_look_ns = 0;
        let mut from = 0;
        out.seal();
        if alone {
            match socket::send_now(fd, &out.staged) {
                Ok(sent) => from = sent,
                Err(error) if matches!(error.kind(), WouldBlock | Interrupted) => {}
                Err(_) => {
                    connection.phase = Phase::Closing;
                    return;
                }
            }
        }
        let mut bytes = std::mem::take(&mut out.staged);
        if from == bytes.len() {
            return self.dispatcher.pool().give(bytes);
        }
        // A slow reader should not hold unused capacity for long. A little is allowed: buffers change
        // hands, and to shrink one only to let it grow for the next connection would cost an allocation
        // for every message.
        if bytes.capacity() > 2 * bytes.len() + KEPT_IN_FLIGHT_BYTES {
            bytes.shrink_to_fit();
        }
        out.sending_bytes = bytes.len() - from;
        self.driver.send(key, fd, bytes, from);
    }

    /// Moves a connection to the next phase, if it is time for that.
    fn advance(&mut self, key: Key) {
        let linger_ns = if self.dispatcher.draining {
            LINGER_DRAIN_NS
        } else {
            LINGER_NS
        };
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        let sent = connection.out.is_empty();
        if matches!(connection.phase, Phase::Finishing | Phase::Refused)
            && let Some(ends) = &connection.out.ends
            && ends.peer_closed()
        {
            // The client is gone: nobody will read what is left in memory for it.
            connection.phase = Phase::Closing;
            return;
        }
        match connection.phase {
            Phase::Finishing if sent && !connection.out.owed.is_waited_for() => {}
            Phase::Refused if sent => {}
            Phase::Lingering => {
                if connection.peer_ended || connection.discarded_bytes > LINGER_BYTES_MAX {
                    connection.phase = Phase::Closing;
                }
                return;
            }
            _ => return,
        }
        if connection.peer_ended || connection.shm.is_some() {
            // There is no reset to fear: the peer has ended, or a ring keeps what is in it for the client.
            connection.phase = Phase::Closing;
            return;
        }
        if let Some(fd) = connection.tcp.raw_fd() {
            // It fails if the peer is gone; then the armed receive reports that.
            let _ = socket::shutdown_write(fd);
        }
        connection.phase = Phase::Lingering;
        connection.discarded_bytes = 0;
        connection.deadline_ns = self.now_ns + linger_ns;
    }

    /// Stops receiving while bytes have to wait (backpressure), and arms a receive otherwise.
    pub(super) fn pause_or_receive(&mut self, key: Key) {
        let outgoing_bytes_max = self.outgoing_bytes_max();
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        let choked = connection.phase == Phase::Open && connection.is_choked(outgoing_bytes_max);
        if choked
            && !connection.out.waits_for_reader(outgoing_bytes_max)
            && !connection.waits_for_room
            && !self.resumed.contains(&key)
        {
            self.resumed.push(key);
        }
        let wanted = match connection.phase {
            Phase::Open => !choked,
            Phase::Finishing | Phase::Refused | Phase::Lingering => true,
            Phase::Closing => false,
        };
        let tcp = &mut connection.tcp;
        let Some(fd) = tcp.raw_fd() else {
            return;
        };
        if wanted && !tcp.receiving && !connection.peer_ended && !tcp.starved {
            tcp.receiving = true;
            tcp.served = false;
            match self.starved.is_empty() {
                true => self.driver.receive(key, fd),
                // Others wait for buffers: one receive, which takes one.
                false => self.driver.receive_once(key, fd),
            }
        } else if !wanted && tcp.receiving && !tcp.stopping {
            tcp.stopping = true;
            if connection.phase == Phase::Closing {
                let _ = socket::shutdown_both(fd);
            }
            self.driver.stop_receiving(key);
        }
    }

    /// Brings the worker's and the budget's counts up to date with what the connection holds now.
    fn account(&mut self, key: Key) {
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        if !connection.takes_requests() && connection.waits_for_room {
            connection.waits_for_room = false;
            self.shared.room.leave(self.index, key);
            self.shared.tell_who_can_go();
        }
        if !connection.takes_requests() && connection.reserved_bytes > 0 {
            // The rest of the message that it was sending is not received.
            let reserved = std::mem::take(&mut connection.reserved_bytes);
            self.shared.release_bytes(reserved);
            connection.assembler = Assembler::default();
        }
        let held = connection.out.buffered_bytes();
        self.outgoing_bytes = self.outgoing_bytes - connection.accounted_bytes + held;
        connection.accounted_bytes = held;
        // A request that was accepted is answered, so this may exceed the budget. Then no long message
        // gets room before some of the answers were read.
        let charge = connection.held_bytes() as u64 / CHARGE_BYTES * CHARGE_BYTES;
        if charge > connection.charged_bytes {
            self.shared.room.charge(charge - connection.charged_bytes);
        } else if charge < connection.charged_bytes {
            self.shared
                .discharge_bytes(connection.charged_bytes - charge);
        }
        connection.charged_bytes = charge;
        let handled = std::mem::take(&mut connection.handling_bytes);
        if handled > 0 {
            self.shared.release_bytes(handled);
        }
        if let Some(shared) = &connection.out.shared {
            shared.staged_bytes.store(held, Ordering::Relaxed);
        }
    }

    /// Frees a closing connection's slot, once no operation is in flight that names its descriptor.
    fn remove_if_closed(&mut self, key: Key) {
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        if connection.phase != Phase::Closing {
            return;
        }
        if connection.shm.is_some() && !self.detach(key) {
            return;
        }
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        if connection.tcp.receiving || connection.out.sending_bytes > 0 {
            if let Some(fd) = connection.tcp.raw_fd() {
                // Ends a send that waits for a peer that does not read.
                let _ = socket::shutdown_both(fd);
            }
            return;
        }
        let mut connection = self.connections.remove(key).expect("looked up above");
        if let Some(fd) = connection.tcp.fd.take() {
            self.driver.close(fd);
        }
        self.release(&mut connection);
    }

    /// Gives back what a connection that was removed still counted for.
    fn release(&mut self, connection: &mut Connection) {
        self.outgoing_bytes -= connection.accounted_bytes;
        let reserved = connection.reserved_bytes + connection.handling_bytes;
        if reserved > 0 {
            self.shared.release_bytes(reserved);
        }
        if connection.charged_bytes > 0 {
            self.shared.discharge_bytes(connection.charged_bytes);
        }
        if let Some(shared) = &connection.out.shared {
            // Release: pairs with the acquire in `Deferred::is_unreachable`.
            shared.closed.store(true, Ordering::Release);
        }
        if connection.counted {
            self.shared.release_connection();
            self.inbox.load_changed(-1);
            self.stats.disconnected(connection.transport());
        }
    }

    /// Begins to drain: nothing new is accepted, and the worker ends when its last connection has.
    pub(super) fn start_draining(&mut self) {
        self.drain_deadline_ns = Some(self.now_ns + self.shared.limits.drain_ns());
        self.refusing_until_ns = self.now_ns + REFUSING_DRAIN_NS;
        self.next_sweep_ns = self.now_ns + SWEEP_DRAIN_NS;
        self.dispatcher.draining = true;
        if self.accepting {
            self.driver.stop_accepting();
        }
        self.accept_later = false;
        if let Some(listener) = self.listener.take() {
            // Closing alone is not enough while a forked child of the program has it open too: the port
            // would stay taken, and whoever connects would wait in vain.
            let _ = socket::shutdown_both(listener.as_raw_fd());
            self.driver.close(listener);
        }
    }
}
