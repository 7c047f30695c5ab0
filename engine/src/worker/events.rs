//! What the ring reports, turned into bytes and state.

use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};

use super::Worker;
use super::batch::Chunk;
use super::connection::{Connection, Phase, Waiting};
use super::cut_off;
use super::inbox::Message;
use super::session::Session;
use crate::stats::{Direction, Transport};
use crate::sys::{clock, socket};
use crate::uring::{Event, Key, Received};
use crate::wire::{ErrorCode, ProtocolVersion};

/// Connections over the limit that are read from for a while, so that they learn why they are closed; more
/// are told and closed at once.
const REFUSED_MAX: usize = 64;
/// Reads of what such a connection has sent.
const DISCARDS_MAX: usize = 16;
/// Looks at the hot connection without success after which it is hot no longer.
const HOT_MISSES_MAX: u32 = 20_000;

impl Worker {
    /// Handles everything that the ring has. Says whether there was anything.
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
            self.hot = (!several && self.driver.completes_only_when_entered()).then_some(key);
            self.hot_misses = 0;
        }
        any
    }

    /// Looks at the one connection that speaks at the moment, without the detour over the ring.
    /// All events have been taken before, so no bytes are overtaken.
    pub(super) fn take_hot(&mut self) -> bool {
        let Some(key) = self.hot else { return false };
        let fd = match self.connections.get(key) {
            Some(connection) if connection.tcp.receiving && !connection.tcp.stopping => {
                connection.tcp.fd.as_ref().map(AsRawFd::as_raw_fd)
            }
            _ => None,
        };
        let Some(fd) = fd else {
            self.hot = None;
            return false;
        };
        match self.driver.receive_now(fd) {
            Some(Ok(received)) if self.driver.bytes(&received).is_empty() => {
                // The end: the armed receive reports it.
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
            Event::AcceptEnded(error) => {
                self.accepting = false;
                match error {
                    Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => {
                        self.tell_that_connections_wait();
                        self.accept_later = true;
                    }
                    _ => self.accept(),
                }
            }
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

    /// Says so once in a while: it is tried again many times a second.
    fn tell_that_connections_wait(&mut self) {
        if self.connections_wait.due(self.now_ns).is_some() {
            log::warn!("out of descriptors or memory: new connections wait");
        }
    }

    fn accepted(&mut self, fd: OwnedFd) {
        if self.inbox.drain_asked() {
            return;
        }
        if !self.shared.claim_connection() {
            return self.refuse_over_limit(fd);
        }
        let inboxes = &self.shared.inboxes;
        let least = inboxes
            .iter()
            .min_by_key(|inbox| inbox.load())
            .expect("there is a worker");
        least.load_changed(1);
        if std::sync::Arc::ptr_eq(least, &self.inbox) {
            return self.add_tcp(fd);
        }
        let least = least.clone();
        if let Err(message) = least.try_send(Message::Tcp(fd)) {
            least.load_changed(-1);
            self.inbox.load_changed(1);
            if let Message::Tcp(fd) = message {
                self.add_tcp(fd);
            }
        }
    }

    /// Takes a connection whose place is already claimed.
    pub(super) fn add_tcp(&mut self, fd: OwnedFd) {
        let (fd, peer) = peer_of(fd);
        let connection = Connection::tcp(fd, peer, self.new_session());
        let key = self.connections.insert(connection);
        self.stats.connected(Transport::Tcp);
        self.touch(key);
    }

    /// What is asked of a connection that comes now.
    pub(super) fn new_session(&self) -> Session {
        Session::new(match self.shared.auth_token {
            None => 0,
            Some(_) => clock::now_ns() + self.shared.limits.frame_timeout_ns(),
        })
    }

    fn refuse_over_limit(&mut self, fd: OwnedFd) {
        self.stats.error(ErrorCode::Overloaded);
        let text = format!(
            "too many connections: the limit is {} (limits.max_connections)",
            self.shared.limits.max_connections
        );
        // In its own words, if it has said some.
        let mut first = [0];
        let version = match socket::peek_now(fd.as_raw_fd(), &mut first) {
            Ok(1) => ProtocolVersion::detect(first[0]),
            _ => None,
        };
        let (fd, peer) = peer_of(fd);
        let mut connection = Connection::tcp(fd, peer, Session::new(0));
        connection.session.version = version;
        let version = connection.version();
        let (out, pool) = (&mut connection.out, self.dispatcher.pool());
        out.error(pool, version, ErrorCode::Overloaded, &text, 0, false);
        cut_off::refused(&mut connection, ErrorCode::Overloaded, &text);
        if self.connections.len() as u64 > self.inbox.load() + REFUSED_MAX as u64 {
            return close_at_once(connection);
        }
        connection.counted = false;
        let key = self.connections.insert(connection);
        self.touch(key);
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
        connection.progress_bytes += bytes.len() as u64;
        let refused = |waiting: &Waiting| waiting.refusal.is_some();
        if !connection.takes_requests() || connection.waiting.as_deref().is_some_and(refused) {
            connection.discarded_bytes += bytes.len() as u64;
            self.driver.recycle(received);
        } else if connection.has_waiting() {
            let behind = &mut connection.waiting().behind;
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
            0 => tcp.ended = true,
            // Armed again when buffers are back.
            libc::ENOBUFS => self.starved.add(key, tcp),
            // Armed again at once, or when the connection may speak again.
            libc::ENOENT | libc::EINTR | libc::EAGAIN | libc::ECANCELED => {}
            _ => connection.phase = Phase::Closing,
        }
        self.touch(key);
    }

    fn sent(&mut self, key: Key, result: Result<usize, i32>, buffer: Vec<u8>) {
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        let out = &mut connection.out;
        let total = std::mem::take(&mut out.sending_bytes);
        match result {
            Ok(sent) if sent < total => {
                let from = buffer.len() - total + sent;
                out.sending_bytes = total - sent;
                // The peer reads, so its time starts again.
                connection.deadline_ns = 0;
                match connection.tcp.fd.as_ref() {
                    Some(fd) => self.driver.send(key, fd.as_raw_fd(), buffer, from),
                    None => out.sending_bytes = 0,
                }
            }
            Ok(_) => {
                connection.deadline_ns = 0;
                self.dispatcher.pool().give(buffer);
            }
            Err(libc::EINTR | libc::EAGAIN) => {
                let from = buffer.len() - total;
                match connection.tcp.fd.as_ref() {
                    Some(fd) => {
                        out.sending_bytes = total;
                        self.driver.send(key, fd.as_raw_fd(), buffer, from);
                    }
                    None => self.dispatcher.pool().give(buffer),
                }
            }
            Err(_) => {
                self.dispatcher.pool().give(buffer);
                connection.phase = Phase::Closing;
            }
        }
        self.touch(key);
    }

    /// Notes that a connection must be settled at the end of the round.
    pub(super) fn touch(&mut self, key: Key) {
        if let Some(connection) = self.connections.get_mut(key)
            && !connection.dirty
        {
            connection.dirty = true;
            self.touched.push(key);
        }
    }
}

/// The peer's address, by way of the standard library's stream.
fn peer_of(fd: OwnedFd) -> (OwnedFd, Option<SocketAddr>) {
    let stream = TcpStream::from(fd);
    let peer = stream.peer_addr().ok();
    (OwnedFd::from(stream), peer)
}

/// Sends what there is to say and closes, without reading on as is done for few. What has come so far is
/// read, so that it does not turn the close into a reset, which takes away what was said.
fn close_at_once(mut connection: Connection) {
    let Some(fd) = connection.tcp.fd.take() else {
        return;
    };
    connection.out.seal();
    // The buffer of a new socket has room for it. A peer that is gone needs no answer.
    let _ = socket::send_now(fd.as_raw_fd(), &connection.out.staged);
    let _ = socket::shutdown_write(fd.as_raw_fd());
    let mut discarded = [0; 4096];
    for _ in 0..DISCARDS_MAX {
        match socket::recv_now(fd.as_raw_fd(), &mut discarded) {
            Ok(length) if length == discarded.len() => {}
            _ => break,
        }
    }
}
