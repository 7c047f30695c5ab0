//! Connections from open to closed: sending, pausing, deadlines, draining.

use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;

use super::Worker;
use super::connection::{Connection, Phase};
use super::deadlines::SWEEP_DRAIN_NS;
use crate::stats::Direction;
use crate::sys::socket;
use crate::uring::Key;
use crate::wire::Assembler;

/// A connection whose answers take more than this is not served until its peer has read some.
const OUTGOING_BYTES_MAX: usize = 1024 * 1024;
/// The same while the worker as a whole holds a lot.
const OUTGOING_BYTES_MAX_TIGHT: usize = 64 * 1024;
/// What a connection holds is charged to the budget in steps of this, so that small traffic never
/// touches the count that all workers share.
const CHARGE_BYTES: u64 = 16 * 1024;
/// Room beyond need that a buffer may have while it is sent.
const KEPT_IN_FLIGHT_BYTES: usize = 32 * 1024;
/// How long a connection that is shut down is read from, so that the peer can read why.
const LINGER_NS: u64 = 2_000_000_000;
/// The same while draining.
pub(super) const LINGER_DRAIN_NS: u64 = 200_000_000;
/// How many bytes are read from it meanwhile, at most; after that it is closed.
const LINGER_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// How long a draining worker tells those who go on asking that it does. Then they are left, as the silent
/// ones are at once: a client that repeats what was refused would keep the server from its end.
const REFUSING_DRAIN_NS: u64 = 200_000_000;

impl Worker {
    /// Bytes that a connection's answers may take before it is paused.
    pub(super) fn outgoing_bytes_max(&self) -> usize {
        let half = self.shared.limits.max_buffered_bytes / 2;
        if self.outgoing_bytes as u64 > half {
            OUTGOING_BYTES_MAX_TIGHT
        } else {
            OUTGOING_BYTES_MAX
        }
    }

    /// Sends, arms, closes: whatever follows from what happened to connections in this round.
    pub(super) fn settle_touched(&mut self) {
        let alone = self.touched.len() == 1;
        // Settling one touches none.
        for index in 0..self.touched.len() {
            self.settle(self.touched[index], alone);
        }
        self.touched.clear();
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
            // Nothing follows for a ring that was served, and that was more work than to serve it.
            ends.wake_peer();
            connection.deadline_ns = 0;
            connection.out.stop_gathering();
            return self.count_encoded(key);
        }
        if connection.phase == Phase::Open && connection.peer_ended && !connection.has_waiting() {
            connection.phase = Phase::Finishing;
        }
        self.count_encoded(key);
        self.flush(key, alone);
        self.wake_client(key);
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

    /// Hands what is encoded to the kernel. One connection alone is sent to directly: that is one
    /// system call, as the enter would be, and its result is known at once. Several share an enter.
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
            return;
        }
        if out.staged.is_empty() || out.sending_bytes > 0 || connection.phase == Phase::Closing {
            return;
        }
        let Some(fd) = connection.tcp.fd.as_ref().map(AsRawFd::as_raw_fd) else {
            return;
        };
        let mut from = 0;
        out.seal();
        if alone {
            match socket::send_now(fd, &out.staged) {
                Ok(sent) => from = sent,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
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
        // What the allocator gave beyond need is not kept in flight for a slow reader.
        // A little is: buffers change hands, and shrinking one only to let it grow again for the
        // next connection would allocate for every message.
        if bytes.capacity() > 2 * bytes.len() + KEPT_IN_FLIGHT_BYTES {
            bytes.shrink_to_fit();
        }
        out.sending_bytes = bytes.len() - from;
        self.driver.send(key, fd, bytes, from);
    }

    /// Moves a connection on towards its end.
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
            // Nobody will read what is left in memory for it.
            connection.phase = Phase::Closing;
            return;
        }
        match connection.phase {
            Phase::Finishing if sent && connection.out.owed.count() == 0 => {}
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
            // A ring keeps what was put in it until the client has read it.
            connection.phase = Phase::Closing;
            return;
        }
        if let Some(fd) = &connection.tcp.fd {
            // The peer may be gone already; then the receive says so.
            let _ = socket::shutdown_write(fd.as_raw_fd());
        }
        connection.phase = Phase::Lingering;
        connection.discarded_bytes = 0;
        connection.deadline_ns = self.now_ns + linger_ns;
    }

    /// Stops receiving while bytes have to wait; receives while there is a reason.
    pub(super) fn pause_or_receive(&mut self, key: Key) {
        let outgoing_bytes_max = self.outgoing_bytes_max();
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        let choked = connection.phase == Phase::Open
            && (connection.has_waiting() || connection.out.buffered_bytes() > outgoing_bytes_max);
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
        let Some(fd) = tcp.fd.as_ref().map(AsRawFd::as_raw_fd) else {
            return;
        };
        if wanted && !tcp.receiving && !connection.peer_ended && !tcp.starved {
            tcp.receiving = true;
            tcp.served = false;
            match self.starved.is_empty() {
                true => self.driver.receive(key, fd),
                // Not all the buffers that others wait for.
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

    /// Keeps the worker's count of bytes on their way out.
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
            // What it was sending is not read to the end.
            let reserved = std::mem::take(&mut connection.reserved_bytes);
            self.shared.release_bytes(reserved);
            connection.assembler = Assembler::default();
        }
        let held = connection.out.buffered_bytes();
        self.outgoing_bytes = self.outgoing_bytes - connection.accounted_bytes + held;
        connection.accounted_bytes = held;
        // Accepted is accepted: this may go beyond the budget, and then no long message is begun
        // before some of it was read.
        let charge = connection.held_bytes() as u64 / CHARGE_BYTES * CHARGE_BYTES;
        if charge > connection.charged_bytes {
            self.shared.room.charge(charge - connection.charged_bytes);
        } else if charge < connection.charged_bytes {
            self.shared.release_bytes(connection.charged_bytes - charge);
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

    /// Frees the slot once nothing is in flight that could name it.
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
            if let Some(fd) = &connection.tcp.fd {
                // Ends a send that waits for a peer which does not read.
                let _ = socket::shutdown_both(fd.as_raw_fd());
            }
            return;
        }
        let mut connection = self.connections.remove(key).expect("looked up above");
        if let Some(fd) = connection.tcp.fd.take() {
            self.driver.close(fd);
        }
        self.release(&mut connection);
    }

    fn release(&mut self, connection: &mut Connection) {
        self.outgoing_bytes -= connection.accounted_bytes;
        let budgeted =
            connection.reserved_bytes + connection.handling_bytes + connection.charged_bytes;
        if budgeted > 0 {
            self.shared.release_bytes(budgeted);
        }
        if let Some(shared) = &connection.out.shared {
            shared.closed.store(true, Ordering::Release);
        }
        if connection.counted {
            self.shared.release_connection();
            self.inbox.load_changed(-1);
            self.stats.disconnected(connection.transport());
        }
    }

    /// From now on nothing new is taken; the worker ends when its last connection has.
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
            // Closing it would not do while a child that the program has forked has it open too: who connects
            // would wait for nobody, and the port stay taken.
            let _ = socket::shutdown_both(listener.as_raw_fd());
            self.driver.close(listener);
        }
    }
}
