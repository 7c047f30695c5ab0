//! A connection over TCP.

use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use super::Error;
use crate::sys::{clock, socket};

/// Enough for a server on this machine, however late it is.
const LIMIT_MIN: Duration = Duration::from_millis(1);

/// A connected socket.
#[derive(Debug)]
pub(super) struct TcpLink {
    stream: TcpStream,
}

impl Drop for TcpLink {
    fn drop(&mut self) {
        // Closing it would not do: the server would not hear of it while a child that the program has forked
        // has the socket open too.
        let _ = socket::shutdown_both(self.stream.as_raw_fd());
    }
}

impl TcpLink {
    pub(super) fn connect(address: &str, deadline_ns: u64) -> Result<TcpLink, Error> {
        let failed = |source| Error::ConnectFailed {
            address: address.to_owned(),
            source,
        };
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for candidate in address.to_socket_addrs().map_err(failed)? {
            let left_ns = deadline_ns.saturating_sub(clock::now_ns());
            let limit = Duration::from_nanos(left_ns).max(LIMIT_MIN);
            match TcpStream::connect_timeout(&candidate, limit) {
                // Nobody listens there. Reset, since otherwise no server could listen there for a minute (TIME_WAIT).
                Ok(stream) if socket::is_its_own_peer(&stream) => {
                    let _ = socket::reset_when_closed(stream.as_raw_fd());
                    last = io::Error::from_raw_os_error(libc::ECONNREFUSED);
                }
                Ok(stream) => {
                    socket::set_up(stream.as_raw_fd()).map_err(failed)?;
                    return Ok(TcpLink { stream });
                }
                Err(error) => last = error,
            }
        }
        Err(failed(last))
    }

    /// Whether the other end is this machine.
    pub(super) fn is_local(&self) -> bool {
        self.stream
            .peer_addr()
            .is_ok_and(|peer| socket::is_loopback(peer.ip()))
    }

    pub(super) fn fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }

    #[inline]
    pub(super) fn send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        socket::send_now(self.stream.as_raw_fd(), bytes)
    }

    #[inline]
    pub(super) fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        socket::recv_now(self.stream.as_raw_fd(), buffer)
    }

    /// Sleeps until bytes may be there, or may be sent if `write`.
    pub(super) fn sleep(&self, write: bool, limit: Duration) -> io::Result<()> {
        socket::wait_ready(self.stream.as_raw_fd(), write, limit).map(drop)
    }

    /// Whether the server has closed or broken the connection; only for one from which nothing is
    /// expected.
    pub(super) fn has_ended(&self) -> bool {
        let mut byte = [0];
        match socket::peek_now(self.stream.as_raw_fd(), &mut byte) {
            Ok(0) => true,
            Ok(_) => false,
            Err(error) => error.kind() != io::ErrorKind::WouldBlock,
        }
    }
}
