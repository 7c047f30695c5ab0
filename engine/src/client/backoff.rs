//! Pauses between attempts to connect.

use std::time::Duration;

/// The shortest pause.
const MIN: Duration = Duration::from_millis(5);
/// The longest: a server that is back is found within 100 ms.
const MAX: Duration = Duration::from_millis(80);

/// The first attempt is made at once, the next after pauses that double.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    /// Zero: the connection has carried an answer since it was made.
    pause: Duration,
}

impl Backoff {
    /// The connection works.
    #[inline]
    pub(super) fn worked(&mut self) {
        self.pause = Duration::ZERO;
    }

    /// How long to wait now that an attempt has failed. Half of it is left to chance, so that
    /// clients do not come in step.
    pub(super) fn next(&mut self, now_ns: u64) -> Duration {
        self.pause = (self.pause * 2).clamp(MIN, MAX);
        let half_ns = self.pause.as_nanos() as u64 / 2;
        // The low bits of the clock differ between clients.
        Duration::from_nanos(half_ns + now_ns.wrapping_mul(0x9E37_79B9_7F4A_7C15) % half_ns)
    }

    /// As [`Backoff::next`], between two connections: none if the last one worked, and the next is
    /// not called in vain before it had its chance.
    pub(super) fn pause_between_connections(&mut self, now_ns: u64) -> Option<Duration> {
        if self.pause.is_zero() {
            // Until an answer comes, the new connection counts as a first attempt.
            self.pause = MIN / 2;
            return None;
        }
        Some(self.next(now_ns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_cap_and_begin_anew_after_success() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.pause_between_connections(1), None);
        for now_ns in 0..100 {
            let pause = backoff.next(now_ns);
            assert!(pause >= MIN / 2 && pause <= MAX, "{pause:?}");
        }
        assert!(backoff.pause_between_connections(5).unwrap() >= MAX / 2);
        backoff.worked();
        assert_eq!(backoff.pause_between_connections(1), None);
        assert!(backoff.pause_between_connections(1).is_some());
    }
}
