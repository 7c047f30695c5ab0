//! The link to a server, over either transport: bytes out, bytes in, and sleeping in between.

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use super::shm::ShmLink;
use super::tcp::TcpLink;
use crate::stats::Transport;

/// A connection of either kind.
#[derive(Debug)]
pub(super) enum Link {
    Tcp(TcpLink),
    Shm(Box<ShmLink>),
}

impl Link {
    pub(super) fn transport(&self) -> Transport {
        match self {
            Link::Tcp(_) => Transport::Tcp,
            Link::Shm(_) => Transport::Shm,
        }
    }

    /// Whether the connection's memory is lost: its file was cut short, or /dev/shm had no room for it.
    pub(super) fn lacks_memory(&self) -> bool {
        match self {
            Link::Tcp(_) => false,
            Link::Shm(link) => link.lacks_memory(),
        }
    }

    /// The descriptor on which bytes arrive, if there is one.
    pub(super) fn fd(&self) -> Option<RawFd> {
        match self {
            Link::Tcp(link) => Some(link.fd()),
            Link::Shm(_) => None,
        }
    }

    /// Sends what fits now.
    #[inline]
    pub(super) fn send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Link::Tcp(link) => link.send(bytes),
            Link::Shm(link) => link.send(bytes),
        }
    }

    /// Receives what is there, without waiting. 0 means that the server has ended.
    #[inline]
    pub(super) fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Link::Tcp(link) => link.receive(buffer),
            Link::Shm(link) => link.receive(buffer),
        }
    }

    /// Whether what was received last is known to be one whole frame with the right CRC.
    #[inline]
    pub(super) fn received_good_frame(&self) -> bool {
        match self {
            Link::Tcp(_) => false,
            Link::Shm(link) => link.received_good_frame(),
        }
    }

    /// Spins for a few nanoseconds, or less if something comes.
    #[inline]
    pub(super) fn watch(&self) {
        match self {
            Link::Tcp(_) => std::hint::spin_loop(),
            Link::Shm(link) => drop(link.watch()),
        }
    }

    /// Whether spinning is in vain, because the server's worker needs the CPU on which this thread spins.
    pub(super) fn is_in_the_way(&self) -> bool {
        match self {
            Link::Tcp(_) => false,
            Link::Shm(link) => link.is_in_the_way(),
        }
    }

    /// Sleeps until there is something to receive, or room to send if `write`, or the limit.
    pub(super) fn sleep(&mut self, write: bool, limit: Duration) -> io::Result<()> {
        match self {
            Link::Tcp(link) => link.sleep(write, limit),
            Link::Shm(link) => {
                link.sleep(write, limit);
                Ok(())
            }
        }
    }

    /// Whether the server has ended the connection and nothing is left to be received.
    pub(super) fn has_ended(&self) -> bool {
        match self {
            Link::Tcp(link) => link.has_ended(),
            Link::Shm(link) => link.has_ended(),
        }
    }
}
