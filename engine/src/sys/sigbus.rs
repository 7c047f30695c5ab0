//! The handler of SIGBUS, which a mapping raises when it is touched after its file was cut short, or if there is no
//! memory for a page.
//!
//! The handler maps a page of zeros in place of the missing one and marks the mapping as *poisoned*, so that only its own
//! connection is closed; the other pages are still shared, and tell the other side that it is over. If the mapping's file
//! is *kept*, it is made long again instead: its contents are lost, but all processes still share it. Faults elsewhere go to
//! the handler that was installed before.

use std::cell::Cell;
use std::io;
use std::os::fd::RawFd;
use std::sync::Once;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};

use super::{INTERRUPTED_MAX, memory};

/// How many mappings can be guarded at a time: all connections of the largest server, and as many of clients and other
/// servers as one process is likely to have besides.
pub(super) const PLACES: usize = 16 * 1024 + 4096;

/// An entry of the table of guarded mappings.
struct Place {
    /// The mapping's address. 0: the entry is free. 1: it is being filled in.
    base: AtomicUsize,
    bytes: AtomicUsize,
    /// One more than the descriptor of the file, if it is kept at its length; otherwise 0. (All zero, so that the table takes
    /// no memory before it is used.)
    kept: AtomicI32,
    /// The file was made long again since somebody last asked.
    restored: AtomicBool,
    /// A page was replaced by zeros.
    poisoned: AtomicBool,
}

static TABLE: [Place; PLACES] = [const {
    Place {
        base: AtomicUsize::new(0),
        bytes: AtomicUsize::new(0),
        kept: AtomicI32::new(0),
        restored: AtomicBool::new(false),
        poisoned: AtomicBool::new(false),
    }
}; PLACES];

/// The size of a page, set before the handler is installed.
static PAGE_BYTES: AtomicUsize = AtomicUsize::new(0);

/// How SIGBUS was handled before.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

/// Keeps a mapping in the table.
#[derive(Debug)]
pub(super) struct Guard {
    place: usize,
}

/// Guards `bytes` bytes at `base`, which the caller has mapped and unmaps only after the guard is
/// gone.
pub(super) fn guard(base: usize, bytes: usize) -> io::Result<Guard> {
    install();
    let_in();
    for (index, place) in TABLE.iter().enumerate() {
        // Acquire: pairs with the release in `drop`, so that a reused place is really free.
        if place
            .base
            .compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed)
            .is_ok()
        {
            place.poisoned.store(false, Ordering::Relaxed);
            place.bytes.store(bytes, Ordering::Relaxed);
            place.kept.store(0, Ordering::Relaxed);
            place.restored.store(false, Ordering::Relaxed);
            // Release: pairs with the acquire in the handler, which reads the rest after it.
            place.base.store(base, Ordering::Release);
            return Ok(Guard { place: index });
        }
    }
    Err(io::Error::new(
        io::ErrorKind::OutOfMemory,
        format!(
            "this process has {PLACES} shared-memory segments mapped, the most it can: close some"
        ),
    ))
}

impl Guard {
    /// The mapping is whole again: all its pages are the file's.
    pub(super) fn restored(&self) {
        TABLE[self.place].poisoned.store(false, Ordering::Release);
    }

    /// Whether a page was replaced: some of the mapping's contents are zeros of this process's own.
    #[inline]
    pub(super) fn poisoned(&self) -> bool {
        TABLE[self.place].poisoned.load(Ordering::Acquire)
    }

    /// Whether a fault has made the file long again since this was last asked.
    pub(super) fn take_restored(&self) -> bool {
        TABLE[self.place].restored.swap(false, Ordering::AcqRel)
    }

    /// From now on a fault makes the mapping's file long again. The caller keeps the descriptor
    /// open until the guard is gone.
    pub(super) fn keep(&self, fd: RawFd) {
        TABLE[self.place].kept.store(fd + 1, Ordering::Release);
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        TABLE[self.place].base.store(0, Ordering::Release);
    }
}

/// Unblocks SIGBUS in this thread. A program may have blocked all signals before it started its threads, to wait for them in
/// one of them; but if a fault raises a blocked SIGBUS, the kernel ends the process.
pub(crate) fn let_in() {
    // SAFETY: a set of ours, filled in; only this thread's mask changes.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGBUS);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut());
    }
}

/// The same, but once for each thread: for one that uses connections which other threads have made.
#[inline]
pub(crate) fn let_in_once() {
    thread_local! {
        static DONE: Cell<bool> = const { Cell::new(false) };
    }
    if !DONE.get() {
        DONE.set(true);
        let_in();
    }
}

fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        PAGE_BYTES.store(memory::page_bytes(), Ordering::Relaxed);
        // SAFETY: an all-zero sigaction is a valid one to be overwritten or filled.
        let (mut ours, mut before): (libc::sigaction, libc::sigaction) =
            unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        ours.sa_sigaction = handle as *const () as usize;
        // ONSTACK: a thread with an alternate stack, as the standard library's have, uses it.
        ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: reads what was there, then sets a handler that only does what is allowed in one.
        unsafe {
            libc::sigaction(libc::SIGBUS, std::ptr::null(), &mut before);
            let _ = BEFORE.set(before);
            libc::sigaction(libc::SIGBUS, &ours, std::ptr::null_mut());
        }
    });
}

extern "C" fn handle(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid record.
    let code = unsafe { (*info).si_code };
    if code <= 0 || code == libc::BUS_MCEERR_AO {
        return pass_on_sent(signal, info, context);
    }
    // SAFETY: of a fault the record has the address.
    let address = unsafe { (*info).si_addr() as usize };
    for place in &TABLE {
        // Acquire: pairs with the release in `guard`.
        let base = place.base.load(Ordering::Acquire);
        let bytes = place.bytes.load(Ordering::Relaxed);
        if base > 1 && address >= base && address - base < bytes {
            // When the handler returns, the faulting instruction runs again and finds a page.
            let is_missing = code == libc::BUS_ADRERR;
            if is_missing && fill_again(place.kept.load(Ordering::Acquire) - 1, bytes) {
                place.restored.store(true, Ordering::Release);
                return;
            }
            // Release: pairs with the acquire in `poisoned`.
            place.poisoned.store(true, Ordering::Release);
            let page_bytes = PAGE_BYTES.load(Ordering::Relaxed);
            let page = address & !(page_bytes - 1);
            // SAFETY: replaces a page that belongs to a Segment by memory of its own; the
            // Segment's owner still unmaps the same range. mmap is a plain system call.
            let mapped = unsafe {
                libc::mmap(
                    page as *mut libc::c_void,
                    page_bytes,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
                    -1,
                    0,
                )
            };
            if mapped != libc::MAP_FAILED {
                return;
            }
        }
    }
    pass_on(signal, info, context);
}

/// Makes the file as long as it was, and allocates all its pages. False if there is no memory for them.
///
/// It does not matter whether the file is short now: another thread or process may have met the same fault and made the file
/// long again in between.
fn fill_again(fd: RawFd, bytes: usize) -> bool {
    if fd < 0 {
        return false;
    }
    // SAFETY: what a handler may call, on a descriptor that the guard's owner keeps open; the
    // interrupted code finds its errno as it was.
    unsafe {
        let errno = libc::__errno_location();
        let before = *errno;
        let mut filled = false;
        for _ in 0..INTERRUPTED_MAX {
            filled = libc::fallocate(fd, 0, 0, bytes as libc::off_t) == 0;
            if filled || *errno != libc::EINTR {
                break;
            }
        }
        if !filled && *errno == libc::EOPNOTSUPP {
            // The file system is no tmpfs and has no fallocate. Then only a short file can be repaired: one that is long may
            // be out of memory, and would fault for ever.
            let mut now: libc::stat = std::mem::zeroed();
            filled = libc::fstat(fd, &mut now) == 0
                && (now.st_size as u64) < bytes as u64
                && libc::ftruncate(fd, bytes as libc::off_t) == 0;
        }
        *errno = before;
        filled
    }
}

/// Passes on a signal that no fault has raised: somebody has sent it, or it tells of broken memory that nobody has touched.
/// No instruction runs again after it. A previous handler that resets SIGBUS to its default, counting on that, would leave a
/// process that lives on, and without our handler. Then the signal is raised once more, which ends the process.
fn pass_on_sent(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    if BEFORE.get().map(|before| before.sa_sigaction) == Some(libc::SIG_IGN) {
        return;
    }
    pass_on(signal, info, context);
    // SAFETY: reads what is set into a record of ours; to this thread, once it returns from here.
    unsafe {
        let mut now: libc::sigaction = std::mem::zeroed();
        libc::sigaction(libc::SIGBUS, std::ptr::null(), &mut now);
        if now.sa_sigaction == libc::SIG_DFL {
            libc::raise(libc::SIGBUS);
        }
    }
}

/// Passes a fault on that is not in one of our mappings: to the previous handler, or to the default, which ends the process.
fn pass_on(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let before = BEFORE.get();
    match before.map(|before| (before.sa_sigaction, before.sa_flags)) {
        Some((handler, flags)) if handler != libc::SIG_DFL && handler != libc::SIG_IGN => {
            // SAFETY: a handler that was installed for this signal, called as its flags say.
            unsafe {
                if flags & libc::SA_SIGINFO != 0 {
                    let handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) =
                        std::mem::transmute(handler);
                    handler(signal, info, context);
                } else {
                    let handler: extern "C" fn(i32) = std::mem::transmute(handler);
                    handler(signal);
                }
            }
        }
        // SAFETY: back to the default; the faulting instruction runs again and ends the process.
        _ => unsafe {
            libc::signal(libc::SIGBUS, libc::SIG_DFL);
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What becomes of a child of this process that sends itself a SIGBUS after `prepare`, or exits with 7.
    fn sent_to_child(prepare: fn()) -> i32 {
        install();
        // SAFETY: the child makes a few system calls and nothing else; the status is ours.
        unsafe {
            let child = libc::fork();
            if child == 0 {
                prepare();
                libc::kill(libc::getpid(), libc::SIGBUS);
                libc::_exit(7);
            }
            assert!(child > 0);
            let mut status = 0;
            assert_eq!(libc::waitpid(child, &mut status, 0), child);
            status
        }
    }

    #[test]
    fn a_signal_that_somebody_sends_ends_the_process() {
        let status = sent_to_child(|| {});
        assert!(libc::WIFSIGNALED(status), "{status:#x}");
        assert_eq!(libc::WTERMSIG(status), libc::SIGBUS);
    }

    #[test]
    fn there_is_a_place_for_each_connection_of_a_server() {
        // Where nothing is mapped.
        let base = |index: usize| usize::MAX / 2 + 4096 * index;
        let guards: Vec<_> = (0..16 * 1024 + 1)
            .map(|index| guard(base(index), 4096).unwrap())
            .collect();
        drop(guards);
    }
}
