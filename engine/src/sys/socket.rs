//! What is done with sockets and the standard library does not offer.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use super::clock;

/// How many connections may wait to be accepted.
const BACKLOG: i32 = 4096;

// TCP keep-alive: a peer's machine that is gone is noticed after two minutes.
/// After this many seconds in which nothing came, the first probe is sent.
const KEEPALIVE_IDLE_S: i32 = 60;
/// The seconds between two probes.
const KEEPALIVE_INTERVAL_S: i32 = 10;
/// After this many probes without an answer, the connection is given up.
const KEEPALIVE_PROBES: i32 = 6;

/// The result of a system call: a negative one is an error.
fn check(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Receives what is there, without waiting. 0: the peer has ended.
#[inline]
pub(crate) fn recv_now(fd: RawFd, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: writes at most the buffer's length into it.
    check(unsafe {
        libc::recv(
            fd,
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            libc::MSG_DONTWAIT,
        )
    })
}

/// Looks at what is there, without waiting and without taking it. 0: the peer has ended.
pub(crate) fn peek_now(fd: RawFd, buffer: &mut [u8]) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_PEEK;
    // SAFETY: writes at most the buffer's length into it.
    check(unsafe { libc::recv(fd, buffer.as_mut_ptr().cast(), buffer.len(), flags) })
}

/// Sends what fits, without waiting.
#[inline]
pub(crate) fn send_now(fd: RawFd, bytes: &[u8]) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: reads at most the slice's length from it.
    check(unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), flags) })
}

fn shutdown(fd: RawFd, how: i32) -> io::Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::shutdown(fd, how) } as isize).map(drop)
}

/// Tells the peer that nothing more comes; it may still be read from.
pub(crate) fn shutdown_write(fd: RawFd) -> io::Result<()> {
    shutdown(fd, libc::SHUT_WR)
}

/// Ends both directions: whatever waits on the socket returns.
pub(crate) fn shutdown_both(fd: RawFd) -> io::Result<()> {
    shutdown(fd, libc::SHUT_RDWR)
}

fn set_option<T>(fd: RawFd, level: i32, option: i32, value: T) -> io::Result<()> {
    let bytes = size_of::<T>() as libc::socklen_t;
    // SAFETY: reads one value of ours, whose length it is told.
    check(
        unsafe { libc::setsockopt(fd, level, option, std::ptr::from_ref(&value).cast(), bytes) }
            as isize,
    )
    .map(drop)
}

/// To close the socket resets its connection.
pub(crate) fn reset_when_closed(fd: RawFd) -> io::Result<()> {
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    set_option(fd, libc::SOL_SOCKET, libc::SO_LINGER, linger)
}

/// Sets TCP_NODELAY, so that small messages are sent at once, and keep-alive, so that it is noticed if the peer's
/// machine is gone without a word: switched off, or behind a router that has forgotten the connection. (When only
/// the process ends, its kernel closes the connection.)
pub(crate) fn set_up(fd: RawFd) -> io::Result<()> {
    set_option(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)?;
    set_option(fd, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1)?;
    set_option(fd, libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, KEEPALIVE_IDLE_S)?;
    set_option(
        fd,
        libc::IPPROTO_TCP,
        libc::TCP_KEEPINTVL,
        KEEPALIVE_INTERVAL_S,
    )?;
    set_option(fd, libc::IPPROTO_TCP, libc::TCP_KEEPCNT, KEEPALIVE_PROBES)
}

/// A listener with a long backlog, whose connections are as [`set_up`] leaves them.
pub(crate) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let domain = if address.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    };
    // SAFETY: no memory is passed; the descriptor is ours alone.
    let socket = unsafe {
        let fd = libc::socket(domain, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(fd)
    };
    let fd = socket.as_raw_fd();
    set_option(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
    // Inherited by accepted sockets.
    set_up(fd)?;
    let result = match address {
        SocketAddr::V4(address) => {
            let raw = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: address.port().to_be(),
                sin_addr: libc::in_addr {
                    s_addr: u32::from(*address.ip()).to_be(),
                },
                sin_zero: [0; 8],
            };
            let raw_len = size_of_val(&raw) as libc::socklen_t;
            // SAFETY: reads one sockaddr_in of ours, whose length it is told.
            unsafe { libc::bind(fd, std::ptr::from_ref(&raw).cast(), raw_len) }
        }
        SocketAddr::V6(address) => {
            let raw = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: address.port().to_be(),
                sin6_flowinfo: address.flowinfo(),
                sin6_addr: libc::in6_addr {
                    s6_addr: address.ip().octets(),
                },
                sin6_scope_id: address.scope_id(),
            };
            let raw_len = size_of_val(&raw) as libc::socklen_t;
            // SAFETY: reads one sockaddr_in6 of ours, whose length it is told.
            unsafe { libc::bind(fd, std::ptr::from_ref(&raw).cast(), raw_len) }
        }
    };
    check(result as isize)?;
    // SAFETY: no memory is passed.
    check(unsafe { libc::listen(fd, BACKLOG) } as isize)?;
    Ok(TcpListener::from(socket))
}

/// Waits until the socket is readable, or with `write` readable or writable, for at most `limit`. False if the time
/// is over. True means that it may be so: a signal ends the wait too.
pub(crate) fn wait_ready(fd: RawFd, write: bool, limit: Duration) -> io::Result<bool> {
    let events = libc::POLLIN | if write { libc::POLLOUT } else { 0 };
    let mut polled = libc::pollfd {
        fd,
        events,
        revents: 0,
    };
    let limit = clock::timespec(limit);
    // SAFETY: one pollfd and one timespec of ours; no signal mask.
    let result = unsafe { libc::ppoll(&mut polled, 1, &limit, std::ptr::null()) };
    match check(result as isize) {
        Ok(ready) => Ok(ready > 0),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(true),
        Err(error) => Err(error),
    }
}

/// Whether an address is a loopback address, also if it is one of IPv4 written as one of IPv6.
pub(crate) fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

/// Whether a socket is connected to itself. Linux connects it so where nobody listens, if the port is one of those
/// that it gives to clients, and it happens to give that one.
pub(crate) fn is_its_own_peer(stream: &TcpStream) -> bool {
    matches!((stream.local_addr(), stream.peer_addr()), (Ok(own), Ok(peer)) if own == peer)
}

/// Whether the peer's kernel has acknowledged all that was sent, the end included if that was sent: what the peer
/// has not read yet is in its own memory.
pub(crate) fn is_acknowledged(fd: RawFd) -> bool {
    let mut waiting_bytes: i32 = 0;
    // SAFETY: TIOCOUTQ (SIOCOUTQ) writes one i32, of ours.
    let result = unsafe { libc::ioctl(fd, libc::TIOCOUTQ, &raw mut waiting_bytes) };
    result == 0 && waiting_bytes == 0
}

/// Whether the peer has reset the connection, or both sides have ended it: for a connection whose end was read
/// already, so that nothing is received from it any more.
pub(crate) fn is_reset(fd: RawFd) -> bool {
    let mut polled = libc::pollfd {
        fd,
        // POLLERR and POLLHUP are reported in any case.
        events: 0,
        revents: 0,
    };
    // SAFETY: one pollfd of ours; does not wait.
    let ready = unsafe { libc::poll(&mut polled, 1, 0) };
    ready > 0 && polled.revents & (libc::POLLERR | libc::POLLHUP) != 0
}

/// Raises the soft limit of open descriptors to the hard one.
pub(crate) fn raise_fd_limit() -> io::Result<()> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: writes one rlimit of ours.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } as isize)?;
    if limit.rlim_cur < limit.rlim_max {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: reads one rlimit of ours.
        check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) } as isize)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::Ipv4Addr;
    use std::time::Instant;

    fn option(fd: RawFd, level: i32, option: i32) -> i32 {
        let (mut value, mut bytes) = (-1_i32, size_of::<i32>() as libc::socklen_t);
        // SAFETY: writes one i32 of ours.
        let result = unsafe {
            let value = std::ptr::from_mut(&mut value).cast();
            libc::getsockopt(fd, level, option, value, &mut bytes)
        };
        assert_eq!(result, 0);
        value
    }

    #[test]
    fn a_socket_that_is_connected_to_itself_is_known() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let other = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert!(!is_its_own_peer(&other));
        let mut raw = libc::sockaddr_in {
            sin_family: libc::AF_INET as libc::sa_family_t,
            sin_port: 0,
            sin_addr: libc::in_addr {
                s_addr: u32::from(Ipv4Addr::LOCALHOST).to_be(),
            },
            sin_zero: [0; 8],
        };
        let mut raw_len = size_of_val(&raw) as libc::socklen_t;
        let address = std::ptr::from_mut(&mut raw).cast();
        // SAFETY: the address is one sockaddr_in of ours, whose length is told; the descriptor is ours alone.
        let stream = unsafe {
            let fd = libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
            assert_eq!(libc::bind(fd, address, raw_len), 0);
            assert_eq!(libc::getsockname(fd, address, &mut raw_len), 0);
            assert_eq!(libc::connect(fd, address, raw_len), 0);
            TcpStream::from_raw_fd(fd)
        };
        assert!(is_its_own_peer(&stream));
        // As the client leaves it: the port is free for a server.
        let own = stream.local_addr().unwrap();
        reset_when_closed(stream.as_raw_fd()).unwrap();
        drop(stream);
        listen(own).unwrap();
    }

    #[test]
    fn what_the_peer_has_no_room_for_is_not_acknowledged() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (socket, _) = listener.accept().unwrap();
        let fd = socket.as_raw_fd();
        assert!(is_acknowledged(fd));
        while send_now(fd, &[7; 65_536]).is_ok() {}
        assert!(!is_acknowledged(fd));
        shutdown_write(fd).unwrap();
        assert!(!is_acknowledged(fd));
        let mut all = Vec::new();
        (&peer).read_to_end(&mut all).unwrap();
        let begin = Instant::now();
        while !is_acknowledged(fd) {
            assert!(begin.elapsed() < Duration::from_secs(20));
            std::thread::yield_now();
        }
    }

    #[test]
    fn accepted_connections_are_set_up_as_their_listener() {
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let fd = accepted.as_raw_fd();
        assert_eq!(option(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY), 1);
        assert_eq!(option(fd, libc::SOL_SOCKET, libc::SO_KEEPALIVE), 1);
        for (name, wanted) in [
            (libc::TCP_KEEPIDLE, KEEPALIVE_IDLE_S),
            (libc::TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S),
            (libc::TCP_KEEPCNT, KEEPALIVE_PROBES),
        ] {
            assert_eq!(option(fd, libc::IPPROTO_TCP, name), wanted);
        }
    }
}
