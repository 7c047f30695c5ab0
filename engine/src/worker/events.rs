//! What io_uring reports: bytes that arrived go to the batch, ends and errors into a connection's state.

use super::Worker;
use super::batch::Chunk;
use super::connection::{Phase, Waiting};
use super::deadlines::RESET_LOOK_NS;
use crate::stats::{Direction, Transport};
use crate::uring::{Event, Key, Received};

/// After this many looks in vain, some milliseconds, a TCP connection is no longer the hot one.
const HOT_MISSES_MAX: u32 = 100_000;

impl Worker {
    /// Handles the completions that the io_uring has, up to a limit. False: it has none left, and there was nothing.
    #[inline]
    pub(super) fn take_events(&mut self) -> bool {
        self.driver.has_events() && self.take_all_events()
    }

    #[inline(never)]
    fn take_all_events(&mut self) -> bool {
        let mut events = std::mem::take(&mut self.events);
        self.driver.take_events(&mut events, super::EVENTS_MAX);
        let any = !events.is_empty();
        let mut speaker = None;
        let mut several = false;
        for event in events.drain(..) {
            if let Event::Received(key, _) | Event::ReceivedLast(key, _) = event {
                several |= speaker.is_some_and(|other| other != key);
                speaker = Some(key);
            }
            self.event(event);
        }
        self.events = events;
        if let Some(key) = speaker {
            // The second time at the earliest: of two that speak in turn, each would be taken for the other.
            let alone = !several && self.spoke_last == Some(key);
            self.hot = (alone && self.driver.completes_only_when_entered()).then_some(key);
            self.hot_misses = 0;
            self.spoke_last = Some(key);
        }
        // Completions that are no events may have been all that was looked at.
        any || self.driver.has_events()
    }

    /// Receives from the hot connection, the only one that speaks at the moment, by a plain `recv`
    /// instead of the io_uring: with one connection that is faster. Returns whether there was anything.
    ///
    /// Its armed receive tells in memory when something has come. To try `recv` until then would hold the lock of
    /// the socket against the one who delivers (1.05 times the round trip).
    ///
    /// All events must have been taken before, so that these bytes overtake none. That is enough where
    /// completions are only made inside our own `io_uring_enter` (DEFER_TASKRUN); elsewhere no connection
    /// is ever hot.
    pub(super) fn take_hot(&mut self) -> bool {
        let Some(key) = self.hot else { return false };
        let fd = match self.connections.get_mut(key) {
            Some(connection) if connection.tcp.receiving && !connection.tcp.stopping => {
                connection.tcp.raw_fd()
            }
            _ => None,
        };
        let Some(fd) = fd else {
            self.hot = None;
            return false;
        };
        let has_come = self.driver.has_come();
        let received = match has_come {
            true => self.driver.receive_now(fd),
            false => None,
        };
        match received {
            Some(Ok(received)) if self.driver.bytes(&received).is_empty() => {
                // The peer has ended; the armed receive reports that.
                self.driver.recycle(received);
                self.hot = None;
                false
            }
            Some(Ok(received)) => {
                self.hot_misses = 0;
                self.received(key, received);
                true
            }
            Some(Err(_)) => {
                self.hot = None;
                false
            }
            // What has come is for another, or is no work at all: the doorbell's wait was cancelled, say.
            None if has_come && self.driver.turn() && self.take_all_events() => true,
            None => {
                self.hot_misses += 1;
                if self.hot_misses > HOT_MISSES_MAX {
                    self.hot = None;
                }
                false
            }
        }
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Accepted(fd) => self.accepted(fd),
            Event::AcceptedLast(fd) => {
                self.accepted(fd);
                self.accepting = false;
                self.accept();
            }
            Event::AcceptEnded(errno) => self.accept_ended(errno),
            Event::Received(key, received) => self.received(key, received),
            Event::ReceivedLast(key, received) => {
                self.received(key, received);
                self.receive_ended(key, libc::ENOBUFS);
            }
            Event::ReceiveEnded(key, errno) => self.receive_ended(key, errno),
            Event::Sent(key, result, buffer) => self.sent(key, result, buffer),
            Event::Exited(key) => self.client_exited(key, true),
            Event::Unwatched(key) => self.client_exited(key, false),
            Event::Doorbell => {}
        }
    }

    fn received(&mut self, key: Key, received: Received) {
        let Some(connection) = self.connections.get_mut(key) else {
            return self.driver.recycle(received);
        };
        let bytes = self.driver.bytes(&received);
        self.stats
            .bytes(Transport::Tcp, Direction::In, bytes.len() as u64);
        connection.active = true;
        connection.tcp.served = true;
        connection.tcp.reset_look_ns = self.now_ns + RESET_LOOK_NS;
        connection.progress_bytes += bytes.len() as u64;
        let refused = |waiting: &Waiting| waiting.refusal.is_some();
        if !connection.takes_requests() || connection.waiting.as_deref().is_some_and(refused) {
            connection.discarded_bytes += bytes.len() as u64;
            self.driver.recycle(received);
        } else if connection.has_waiting() {
            let behind = &mut connection.waiting_mut().behind;
            behind.reserve_exact(bytes.len());
            behind.extend_from_slice(bytes);
            self.driver.recycle(received);
        } else {
            let chunk = self.batch.add_chunk(Chunk::Buffer(received));
            self.scan(key, chunk);
        }
        self.touch(key);
    }

    fn receive_ended(&mut self, key: Key, errno: i32) {
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        let tcp = &mut connection.tcp;
        tcp.receiving = false;
        tcp.stopping = false;
        match errno {
            0 => connection.peer_ended = true,
            // No buffer was free: armed again at the end of a round, when buffers are back.
            libc::ENOBUFS => self.starved.add(key, tcp),
            // No error of the connection: settling it arms the receive again, if it is wanted.
            libc::ENOENT | libc::EINTR | libc::EAGAIN | libc::ECANCELED => {}
            _ => connection.phase = Phase::Closing,
        }
        self.touch(key);
    }

    fn sent(&mut self, key: Key, result: Result<usize, i32>, buffer: Vec<u8>) {
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        let total = connection.out.sending_bytes;
        let left = match result {
            Ok(sent) => {
                // The peer has read something, so it gets a new deadline.
                connection.deadline_ns = 0;
                total - sent
            }
            Err(libc::EINTR | libc::EAGAIN) => total,
            Err(_) => {
                connection.phase = Phase::Closing;
                0
            }
        };
        connection.out.sending_bytes = left;
        match connection.tcp.raw_fd().filter(|_| left > 0) {
            Some(fd) => {
                let from = buffer.len() - left;
                self.driver.send(key, fd, buffer, from);
            }
            None => self.dispatcher.pool().give(buffer),
        }
        self.touch(key);
    }

    /// Notes that a connection is to be settled at the end of the round.
    pub(super) fn touch(&mut self, key: Key) {
        if let Some(connection) = self.connections.get_mut(key)
            && !connection.touched
        {
            connection.touched = true;
            self.touched.push(key);
        }
    }
}
