//! Deadlines: by when a peer must have sent the rest of a frame, read its answers or shown its
//! credentials; and the sweep, which looks at all connections once in a while to see who is late.

use super::Worker;
use super::connection::Phase;
use super::cut_off;
use super::lifecycle::{LINGER_DRAIN_NS, REFUSING_DRAIN_NS};
use crate::sys::socket;
use crate::uring::Key;
use crate::wire::{ErrorCode, Refusal};

/// The time between two sweeps, while there are deadlines.
const SWEEP_NS: u64 = 50_000_000;
/// The same while draining, when connections end as soon as they are quiet.
pub(super) const SWEEP_DRAIN_NS: u64 = 10_000_000;
/// A sweep that comes this long after it was due: the worker was kept from running, by a debugger or a
/// machine that slept.
const LATE_NS: u64 = 10 * SWEEP_NS;
/// A peer in the middle of a frame has `frame_timeout_ms` for each piece of this size.
pub(super) const PROGRESS_BYTES: u64 = 1024;
/// While answers are owed to a peer that has closed its sending side, how often it is looked whether the
/// peer still exists.
///
/// And how long after the last bytes of a peer to which nothing was sent since: a reset that arrives right behind
/// them, while its multishot receive is armed, may never be reported (seen on Linux 6.18). A send would fail.
pub(super) const RESET_LOOK_NS: u64 = 1_000_000_000;

impl Worker {
    /// Sets the deadline for what the connection's peer must do next, if anything.
    pub(super) fn watch_time(&mut self, key: Key) {
        let outgoing_bytes_max = self.outgoing_bytes_max();
        let limits = &self.shared.limits;
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        let allowed_ns = match connection.phase {
            Phase::Lingering => {
                self.timed = true;
                return;
            }
            Phase::Closing => None,
            // The peer must read. It gets a new deadline whenever it has read something.
            _ if connection.out.sending_bytes > 0 || !connection.out.staged.is_empty() => {
                Some(limits.send_stall_ns())
            }
            Phase::Open if connection.assembler.is_mid_frame() && !connection.has_waiting() => {
                // The peer must send the rest of a frame. A byte now and then is not enough for a new
                // deadline: it takes PROGRESS_BYTES.
                if connection.progress_bytes >= PROGRESS_BYTES {
                    connection.progress_bytes = 0;
                    connection.deadline_ns = 0;
                }
                Some(limits.frame_timeout_ns())
            }
            Phase::Finishing if connection.peer_ended && connection.tcp.fd.is_some() => {
                Some(RESET_LOOK_NS)
            }
            _ => None,
        };
        self.timed |= !connection.session.is_admitted()
            || connection.reserved_bytes > 0
            || connection.tcp.reset_look_ns != 0;
        if connection.has_waiting() && !connection.out.waits_for_reader(outgoing_bytes_max) {
            // Nothing is received while earlier bytes wait for their turn: that time is not the peer's.
            connection.reserved_at_ns = self.now_ns;
        }
        let for_reading = !connection.out.is_empty();
        match allowed_ns {
            None => connection.deadline_ns = 0,
            Some(allowed_ns) => {
                if connection.deadline_ns == 0 || connection.deadline_is_for_reading != for_reading
                {
                    connection.deadline_ns = self.now_ns + allowed_ns;
                    connection.deadline_is_for_reading = for_reading;
                }
                self.timed = true;
            }
        }
    }

    /// Looks at the deadlines of all connections.
    pub(super) fn sweep(&mut self) {
        // If the process was stopped or the machine slept, the peers' bytes may have arrived meanwhile:
        // all deadlines are postponed, so that those bytes are taken first.
        let late_ns = self.now_ns.saturating_sub(self.next_sweep_ns);
        let excused_ns = if self.swept && late_ns > LATE_NS {
            late_ns
        } else {
            0
        };
        self.next_sweep_ns = self.now_ns
            + if self.drain_deadline_ns.is_some() {
                SWEEP_DRAIN_NS
            } else {
                SWEEP_NS
            };
        self.timed = false;
        if std::mem::take(&mut self.accept_later) {
            self.accept();
        }
        let mut keys = std::mem::take(&mut self.keys);
        self.connections.keys(&mut keys);
        for &key in &keys {
            self.sweep_one(key, excused_ns);
        }
        self.keys = keys;
        self.swept = self.needs_sweeps();
    }

    fn sweep_one(&mut self, key: Key, excused_ns: u64) {
        let now_ns = self.now_ns;
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        let quiet = !std::mem::take(&mut connection.active);
        connection.excuse(excused_ns, now_ns);
        let tcp = &mut connection.tcp;
        if tcp.reset_look_ns != 0 {
            self.timed = true;
            if now_ns >= tcp.reset_look_ns {
                tcp.reset_look_ns = 0;
                let is_reset = || tcp.raw_fd().is_some_and(socket::is_reset);
                if tcp.receiving && !tcp.stopping && is_reset() {
                    // The receive that is armed after it takes what has arrived, then reports the reset.
                    tcp.stopping = true;
                    self.driver.stop_receiving(key);
                }
            }
        }
        if connection.deadline_ns != 0 {
            self.timed = true;
            if now_ns >= connection.deadline_ns {
                connection.deadline_ns = 0;
                match connection.phase {
                    Phase::Open if connection.out.is_empty() => self.time_out_frame(key),
                    Phase::Finishing if connection.out.is_empty() => {
                        if connection.tcp.raw_fd().is_some_and(socket::is_reset) {
                            connection.phase = Phase::Closing;
                        }
                    }
                    Phase::Open | Phase::Finishing => {
                        cut_off::stalled(connection, self.shared.limits.send_stall_ms);
                    }
                    _ => connection.phase = Phase::Closing,
                }
                return self.touch(key);
            }
        }
        if connection.phase == Phase::Open {
            let by_ns = connection.session.authenticate_by_ns;
            if by_ns != 0 {
                self.timed = true;
                if now_ns >= by_ns {
                    self.dispatcher
                        .refuse_connection(connection, &Refusal::NotAuthenticated, 0);
                    return self.touch(key);
                }
            }
            // A message that holds room for which others wait must arrive in time as a whole.
            if connection.reserved_bytes > 0
                && self.shared.room.is_waited_for()
                && now_ns - connection.reserved_at_ns >= self.shared.limits.frame_timeout_ns()
            {
                self.time_out_frame(key);
                return self.touch(key);
            }
        }
        let Some(drain_deadline_ns) = self.drain_deadline_ns else {
            return;
        };
        let outgoing_bytes_max = self.outgoing_bytes_max();
        let connection = self.connections.get_mut(key).expect("looked up above");
        // What a peer sent while it did not read its answers lies in its socket or ring. That nothing was received
        // does not make it quiet: it is told of those requests too, once it has read.
        let is_paused = connection.phase == Phase::Open
            && !connection.peer_ended
            && (connection.is_choked(outgoing_bytes_max) || connection.tcp.is_unarmed());
        connection.active |= is_paused;
        let reads_late = is_paused && connection.out.waits_for_reader(outgoing_bytes_max);
        if reads_late {
            self.refusing_until_ns = self.refusing_until_ns.max(now_ns + REFUSING_DRAIN_NS);
        }
        if connection.phase == Phase::Lingering {
            // It began to linger before the server drained, with more time than there is now.
            connection.deadline_ns = connection.deadline_ns.min(now_ns + LINGER_DRAIN_NS);
        }
        // A peer that has sent nothing since, and has all that it was sent, loses nothing by a reset: an idle client,
        // which does not look at its connection, does not hold up the next start.
        let needs_no_linger = connection.phase == Phase::Lingering
            && connection.discarded_bytes == 0
            && connection.tcp.raw_fd().is_some_and(socket::is_acknowledged);
        if now_ns >= drain_deadline_ns || needs_no_linger {
            connection.phase = Phase::Closing;
        } else if connection.phase == Phase::Open
            && (quiet && !is_paused || now_ns >= self.refusing_until_ns)
            && !reads_late
            && !connection.out.owed.is_waited_for()
            && !connection.has_waiting()
        {
            connection.phase = Phase::Finishing;
        } else {
            return;
        }
        self.touch(key);
    }

    /// Refuses a connection whose peer began a frame and did not finish it in time.
    fn time_out_frame(&mut self, key: Key) {
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        let text = format!(
            "a frame was begun and not finished within {} ms (limits.frame_timeout_ms)",
            self.shared.limits.frame_timeout_ms
        );
        self.stats.error(ErrorCode::Timeout);
        let version = connection.version();
        let pool = self.dispatcher.pool();
        connection
            .out
            .error(pool, version, ErrorCode::Timeout, &text, 0, false);
        cut_off::refused(connection, ErrorCode::Timeout, &text);
    }
}
