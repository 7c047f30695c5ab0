//! Pauses between attempts to connect.

use std::time::Duration;

/// The shortest pause.
const MIN: Duration = Duration::from_millis(5);
/// The longest: a server that is back is found within 100 ms.
const MAX: Duration = Duration::from_millis(80);

/// The first attempt is made at once, the next ones after pauses that double.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    /// The last pause. Zero if the last connection has carried an answer.
    pause: Duration,
    /// When the current pause ends; 0 if there is none.
    ends_ns: u64,
}

impl Backoff {
    /// The connection works: it has carried an answer.
    #[inline]
    pub(super) fn worked(&mut self) {
        self.pause = Duration::ZERO;
    }

    /// An attempt has failed: a pause begins.
    pub(super) fn failed(&mut self, now_ns: u64) {
        self.ends_ns = now_ns + self.next(now_ns).as_nanos() as u64;
    }

    /// What is left of the pause before the next attempt; `None` if it may be made now. There is no pause
    /// after a connection that worked.
    pub(super) fn left(&mut self, now_ns: u64) -> Option<Duration> {
        if self.pause.is_zero() {
            // Until an answer comes, the new connection counts as an attempt: `next` doubles this to MIN.
            self.pause = MIN / 2;
            self.ends_ns = 0;
            return None;
        }
        if self.ends_ns == 0 {
            self.failed(now_ns);
        }
        let left_ns = self.ends_ns.saturating_sub(now_ns);
        if left_ns == 0 {
            self.ends_ns = 0;
        }
        (left_ns > 0).then(|| Duration::from_nanos(left_ns))
    }

    /// The next pause. Half of it is random, so that clients do not come all at once.
    fn next(&mut self, now_ns: u64) -> Duration {
        self.pause = (self.pause * 2).clamp(MIN, MAX);
        let half_ns = self.pause.as_nanos() as u64 / 2;
        // The low bits of the clock differ between clients.
        Duration::from_nanos(half_ns + now_ns.wrapping_mul(0x9E37_79B9_7F4A_7C15) % half_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_cap_and_begin_anew_after_success() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.left(1), None);
        let mut now_ns = 1;
        let mut pause = Duration::ZERO;
        for _ in 0..100 {
            backoff.failed(now_ns);
            pause = backoff.left(now_ns).unwrap();
            assert!(pause >= MIN / 2 && pause <= MAX, "{pause:?}");
            assert_eq!(
                backoff.left(now_ns + 1),
                Some(pause - Duration::from_nanos(1))
            );
            now_ns += pause.as_nanos() as u64;
            assert_eq!(backoff.left(now_ns), None);
        }
        assert!(pause >= MAX / 2);
        backoff.worked();
        assert_eq!(backoff.left(now_ns), None);
        // A connection in vain: a pause, then the next.
        let pause = backoff.left(now_ns).unwrap();
        assert!(pause >= MIN / 2);
        assert_eq!(backoff.left(now_ns + pause.as_nanos() as u64), None);
    }
}
