//! New connections: the first worker accepts for all, and gives each to the worker with the fewest.

use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use super::Worker;
use super::connection::Connection;
use super::cut_off;
use super::inbox::Message;
use super::session::Session;
use crate::stats::Transport;
use crate::sys::{clock, socket};
use crate::wire::{ErrorCode, ProtocolVersion};

/// This many connections beyond `max_connections` are refused and then read from for a while, so that
/// the refusal surely reaches them. Those beyond that are told and closed at once.
const REFUSED_MAX: usize = 64;
/// How often a connection that is closed at once is read from before.
const DISCARDS_MAX: usize = 16;

impl Worker {
    /// Arms an accept, if this worker accepts and none is armed.
    pub(super) fn accept(&mut self) {
        if let Some(listener) = self.listener.as_ref().filter(|_| !self.accepting) {
            self.driver.accept(listener.as_raw_fd());
            self.accepting = true;
        }
    }

    /// Accepting has stopped with an error. If the next connection may meet it too, accepting begins again at the
    /// next sweep: what does not pass, a security module's refusal, say, must not keep the worker busy.
    pub(super) fn accept_ended(&mut self, errno: i32) {
        self.accepting = false;
        match errno {
            // About that connection only, or the accept was cancelled.
            libc::ECONNABORTED | libc::EINTR | libc::EAGAIN | libc::ECANCELED => self.accept(),
            _ => {
                self.tell_that_connections_wait(errno);
                self.accept_later = true;
            }
        }
    }

    /// Logs why, not too often: accepting is tried many times a second.
    fn tell_that_connections_wait(&mut self, errno: i32) {
        if self.connections_wait.due(self.now_ns).is_none() {
            return;
        }
        match errno {
            libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM => {
                log::warn!("out of descriptors or memory: new connections wait");
            }
            _ => {
                let error = std::io::Error::from_raw_os_error(errno);
                log::warn!("new connections wait, because accept failed: {error}");
            }
        }
    }

    /// Gives a new connection to the worker with the fewest, or refuses it.
    pub(super) fn accepted(&mut self, fd: OwnedFd) {
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
        if Arc::ptr_eq(least, &self.inbox) {
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

    /// Serves a TCP connection, whose place among `max_connections` is claimed already.
    pub(super) fn add_tcp(&mut self, fd: OwnedFd) {
        let (fd, peer) = peer_of(fd);
        let connection = Connection::tcp(fd, peer, self.new_session());
        let key = self.connections.insert(connection);
        self.stats.connected(Transport::Tcp);
        self.touch(key);
    }

    /// The session of a connection that begins now: with a deadline for its credentials, if the server
    /// asks for them.
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
        // In the version that it speaks, if it has sent something already.
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
}

/// The peer's address, which the standard library asks for.
fn peer_of(fd: OwnedFd) -> (OwnedFd, Option<SocketAddr>) {
    let stream = TcpStream::from(fd);
    let peer = stream.peer_addr().ok();
    (OwnedFd::from(stream), peer)
}

/// Sends the refusal and closes, without lingering. What has arrived so far is read before, since closing
/// a socket with unread bytes resets the connection, which takes the refusal back.
fn close_at_once(mut connection: Connection) {
    let Some(fd) = connection.tcp.fd.take() else {
        return;
    };
    connection.out.seal();
    // The send buffer of a new socket has room for it. A peer that is gone needs no refusal.
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
