//! A descriptor that lasts for a client's whole life and is readable whenever polling has something to do.
//!
//! It is an epoll instance with two descriptors: the socket, which changes with every new connection, and an eventfd
//! that stands for whatever the socket does not tell. Over shared memory there is no socket; then a [`Watch`] raises the
//! eventfd. Only clients that asked for the descriptor pay for it, with a few loads and stores for each call; system calls
//! are made only when something changes.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lapce_ai::ipc::{Client, Watch};

use crate::error::Fault;

pub(crate) struct Descriptor {
    epoll: OwnedFd,
    /// The eventfd.
    event: Arc<OwnedFd>,
    /// The eventfd is readable, as far as this side knows.
    raised: bool,
    /// The watch has raised the eventfd since this was last looked at.
    told: Arc<AtomicBool>,
    watch: Watch,
    /// What is watched of the client's socket.
    watched: Option<Watched>,
    /// The socket in the epoll instance, as a duplicate of our own: once the client has closed its descriptor, the socket
    /// could not be removed by that.
    socket: Option<OwnedFd>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Watched {
    fd: RawFd,
    /// Tells a new socket from an old one with the same number.
    connection: u64,
    writable: bool,
}

impl Descriptor {
    pub(crate) fn new() -> Result<Descriptor, Fault> {
        let failed = |error: io::Error| Fault::system("cannot make a descriptor", &error);
        // SAFETY: no pointers; the result is checked.
        let epoll = owned(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) }).map_err(failed)?;
        // SAFETY: as above.
        let event = owned(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })
            .map_err(failed)?;
        control(
            &epoll,
            libc::EPOLL_CTL_ADD,
            event.as_raw_fd(),
            libc::EPOLLIN,
        )
        .map_err(failed)?;
        let event = Arc::new(event);
        let told = Arc::new(AtomicBool::new(false));
        let watch = Watch::new({
            let (event, told) = (event.clone(), told.clone());
            move || {
                set(&event, true);
                // After the eventfd was raised. Release: pairs with the acquire in `follow`, which may lower it.
                told.store(true, Ordering::Release);
            }
        });
        Ok(Descriptor {
            epoll,
            event,
            raised: false,
            told,
            watch,
            watched: None,
            socket: None,
        })
    }

    pub(crate) fn number(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    /// Before a function works on the client.
    #[inline]
    pub(crate) fn rest(&mut self, client: &Client) {
        self.watch.disarm(client);
    }

    /// After a function has worked on the client. If the connection cannot be watched, that is no failure of the
    /// function, whose work is done: the descriptor becomes readable, and whoever polls finds out what is wrong.
    pub(crate) fn follow_or_raise(&mut self, client: &Client) {
        if self.follow(client).is_err() {
            self.raise(true);
        }
    }

    /// Watches what the client's state asks for.
    fn follow(&mut self, client: &Client) -> Result<(), Fault> {
        let unsent = client.has_unsent();
        let wanted = client.poll_fd().map(|fd| Watched {
            fd,
            connection: client.stats().reconnects,
            writable: unsent,
        });
        if wanted != self.watched {
            self.watch(wanted)
                .map_err(|error| Fault::system("cannot watch the connection", &error))?;
        }
        // Acquire: pairs with the release in `new`.
        if self.told.swap(false, Ordering::Acquire) {
            self.raised = true;
        }
        let kept = client.has_kept_answers();
        // Before the watch is armed: what it tells from then on must not be taken back.
        if self.raised && !kept {
            self.raise(false);
        }
        // Without a socket, only the eventfd can tell that something is left to do.
        let raise = kept
            || wanted.is_none()
                && self
                    .watch
                    .arm(client)
                    .map_err(|error| Fault::system("cannot watch the ring", &error))?;
        if raise && !self.raised {
            self.raise(true);
        }
        Ok(())
    }

    fn watch(&mut self, wanted: Option<Watched>) -> io::Result<()> {
        let name = |watched: Watched| (watched.fd, watched.connection);
        let is_same = self.watched.take().map(name) == wanted.map(name);
        if let Some(before) = self.socket.take_if(|_| !is_same) {
            // Closing it is not enough: a forked child of the program may have it open too, and then it would stay in the
            // epoll instance and be readable for ever.
            let _ = control(&self.epoll, libc::EPOLL_CTL_DEL, before.as_raw_fd(), 0);
        }
        let Some(watched) = wanted else {
            return Ok(());
        };
        let events = match watched.writable {
            true => libc::EPOLLIN | libc::EPOLLOUT,
            false => libc::EPOLLIN,
        };
        match &self.socket {
            Some(socket) => control(&self.epoll, libc::EPOLL_CTL_MOD, socket.as_raw_fd(), events)?,
            None => {
                // SAFETY: the client keeps it open until it is asked for something again.
                let socket = unsafe { BorrowedFd::borrow_raw(watched.fd) }.try_clone_to_owned()?;
                control(&self.epoll, libc::EPOLL_CTL_ADD, socket.as_raw_fd(), events)?;
                self.socket = Some(socket);
            }
        }
        self.watched = wanted;
        Ok(())
    }

    fn raise(&mut self, raise: bool) {
        set(&self.event, raise);
        self.raised = raise;
    }
}

fn set(event: &OwnedFd, raise: bool) {
    let mut count = 1_u64;
    let fd = event.as_raw_fd();
    // Neither can fail in a way that matters: the counter is small, reading 0 changes nothing, and
    // the descriptor does not block.
    // SAFETY: 8 bytes of a local variable.
    unsafe {
        match raise {
            true => libc::write(fd, (&raw const count).cast(), 8),
            false => libc::read(fd, (&raw mut count).cast(), 8),
        };
    }
}

fn owned(fd: RawFd) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor that was just made, and is nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn control(epoll: &OwnedFd, operation: i32, fd: RawFd, events: i32) -> io::Result<()> {
    let mut event = libc::epoll_event {
        events: events as u32,
        u64: 0,
    };
    // SAFETY: the event is a local variable.
    match unsafe { libc::epoll_ctl(epoll.as_raw_fd(), operation, fd, &raw mut event) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
