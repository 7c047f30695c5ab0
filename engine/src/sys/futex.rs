//! Futexes: sleeping on a word of memory, and waking those who sleep on it. The word may be shared between
//! processes, so the private forms are not used.

use std::sync::atomic::AtomicU32;
use std::time::Duration;

use super::clock;

/// Why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waited {
    /// By a wake-up, or by a signal: look again.
    Woken,
    /// The word was not what the caller expected, so there was no wait.
    Changed,
    /// By the time limit.
    TimedOut,
}

/// Sleeps while `word` is `expected`, until woken, for at most `limit`.
pub fn wait(word: &AtomicU32, expected: u32, limit: Option<Duration>) -> Waited {
    let time = limit.map(clock::timespec);
    let time = time.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the word is valid for the call, which only reads it; the time is null or ours.
    let result = unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAIT,
            expected,
            time,
        )
    };
    if result == 0 {
        return Waited::Woken;
    }
    match std::io::Error::last_os_error().raw_os_error() {
        Some(libc::EAGAIN) => Waited::Changed,
        Some(libc::ETIMEDOUT) => Waited::TimedOut,
        _ => Waited::Woken,
    }
}

/// Wakes up to `count` sleepers; returns how many were woken.
pub fn wake(word: &AtomicU32, count: u32) -> usize {
    // SAFETY: the word's address is only used to find sleepers.
    let woken = unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAKE,
            count as i32,
        )
    };
    woken.max(0) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    #[test]
    fn a_sleeper_is_woken() {
        let word = AtomicU32::new(1);
        std::thread::scope(|scope| {
            let sleeper = scope.spawn(|| {
                while word.load(Ordering::Acquire) == 1 {
                    wait(&word, 1, None);
                }
            });
            word.store(0, Ordering::Release);
            while !sleeper.is_finished() {
                wake(&word, 1);
                std::thread::yield_now();
            }
        });
    }

    #[test]
    fn the_word_and_the_limit_are_heeded() {
        let word = AtomicU32::new(5);
        assert_eq!(wait(&word, 4, None), Waited::Changed);
        assert_eq!(
            wait(&word, 5, Some(Duration::from_millis(1))),
            Waited::TimedOut
        );
        assert_eq!(wake(&word, 1), 0);
    }
}
