//! Waiting on the doorbell word on kernels without IORING_OP_FUTEX_WAIT (before Linux 6.7).
//!
//! A small thread waits on the word and writes to an eventfd, which the io_uring polls. The word is the same,
//! so whoever rings the doorbell need not know how the worker waits.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::shm::doorbell::{AWAKE, SLEEPING};
use crate::sys::{futex, sigbus};

/// Where a worker's doorbell word lies: private memory, or the control segment.
pub(crate) type DoorbellMemory = Arc<dyn AsRef<AtomicU32> + Send + Sync>;

/// The longest wait on the doorbell word: other memory may be mapped at its address meanwhile.
const WAIT: Duration = Duration::from_secs(1);

struct Shared {
    /// Counts how often the worker asked for a wait. The thread sleeps on it in between.
    requests: AtomicU32,
    stop: AtomicBool,
}

pub(super) struct Waker {
    eventfd: OwnedFd,
    shared: Arc<Shared>,
    doorbell: DoorbellMemory,
    thread: Option<JoinHandle<()>>,
}

impl Waker {
    pub(super) fn start(doorbell: DoorbellMemory) -> io::Result<Waker> {
        // SAFETY: eventfd has no memory arguments; the descriptor it returns is ours alone.
        let eventfd = unsafe {
            let fd = libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(fd)
        };
        let shared = Arc::new(Shared {
            requests: AtomicU32::new(0),
            stop: AtomicBool::new(false),
        });
        let thread = std::thread::Builder::new()
            .name("lapce-ipc-waker".into())
            .stack_size(64 * 1024)
            .spawn({
                let (shared, doorbell, eventfd) =
                    (shared.clone(), doorbell.clone(), eventfd.try_clone()?);
                move || watch(&shared, (*doorbell).as_ref(), &eventfd)
            })?;
        Ok(Waker {
            eventfd,
            shared,
            doorbell,
            thread: Some(thread),
        })
    }

    pub(super) fn fd(&self) -> i32 {
        self.eventfd.as_raw_fd()
    }

    /// Asks for one write to the eventfd, as soon as the doorbell word is no longer SLEEPING.
    pub(super) fn request(&self) {
        // Release: pairs with the acquire in `watch`; the word was set to SLEEPING before.
        self.shared.requests.fetch_add(1, Ordering::Release);
        futex::wake(&self.shared.requests, 1);
    }

    /// Empties the eventfd, so that it can be polled again.
    pub(super) fn drain(&self) {
        let mut count = [0u8; 8];
        // SAFETY: reads at most 8 bytes into an array of 8. Nothing there is not an error to us.
        unsafe { libc::read(self.fd(), count.as_mut_ptr().cast(), count.len()) };
    }
}

fn watch(shared: &Shared, doorbell: &AtomicU32, eventfd: &OwnedFd) {
    sigbus::let_in();
    let mut served = 0;
    // Unbounded by design: ends when the driver is dropped.
    loop {
        // Acquire: pairs with the release in `request` and in `drop`.
        let requested = shared.requests.load(Ordering::Acquire);
        if shared.stop.load(Ordering::Acquire) {
            return;
        }
        if requested == served {
            futex::wait(&shared.requests, requested, None);
            continue;
        }
        served = requested;
        // Acquire: pairs with the swap of whoever rings.
        while doorbell.load(Ordering::Acquire) == SLEEPING && !shared.stop.load(Ordering::Acquire) {
            futex::wait(doorbell, SLEEPING, Some(WAIT));
        }
        let one = 1u64.to_ne_bytes();
        // SAFETY: writes the 8 bytes of an array of 8. A full counter already wakes the ring.
        unsafe { libc::write(eventfd.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }
}

impl Drop for Waker {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.request();
        let word: &AtomicU32 = (*self.doorbell).as_ref();
        word.store(AWAKE, Ordering::Release);
        futex::wake(word, 1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
