//! By when a call has to end.

use std::time::Duration;

use crate::sys::clock;

/// Longer timeouts count as this, 146 years, so that times can be added without overflow.
const TIMEOUT_NS_MAX: u64 = u64::MAX / 4;

/// The end of a call's time. The clock is not read before that is first asked for: a request that is only
/// queued never does.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline {
    timeout_ns: u64,
    /// 0 before the time runs.
    at_ns: u64,
    /// The call waits for a server that is gone, until the deadline.
    waits_for_server: bool,
    /// A wait in passes has begun: see [`Deadline::is_over`].
    begun: bool,
}

impl Deadline {
    #[inline]
    pub(super) fn after(timeout: Duration) -> Deadline {
        Deadline::after_ns(nanos(timeout))
    }

    /// As [`Deadline::after`], for a timeout that [`nanos`] has converted.
    #[inline]
    pub(super) fn after_ns(timeout_ns: u64) -> Deadline {
        Deadline {
            timeout_ns,
            at_ns: 0,
            waits_for_server: true,
            begun: false,
        }
    }

    /// The same deadline, for a call that does not wait for a server that is gone.
    pub(super) fn with_server_only(self) -> Deadline {
        Deadline {
            waits_for_server: false,
            ..self
        }
    }

    pub(super) fn waits_for_server(&self) -> bool {
        self.waits_for_server
    }

    /// Starts the time if it does not run yet, and returns its end.
    #[inline]
    pub(super) fn at_ns(&mut self) -> u64 {
        if self.at_ns == 0 {
            self.at_ns = clock::now_ns() + self.timeout_ns;
        }
        self.at_ns
    }

    /// The whole time allowed.
    pub(super) fn timeout(&self) -> Duration {
        Duration::from_nanos(self.timeout_ns)
    }

    /// For a wait in several passes, each of which may end before it looks at the clock: whether the time is
    /// over. Never before the first pass.
    #[inline]
    pub(super) fn is_over(&mut self) -> bool {
        let is_first = !std::mem::replace(&mut self.begun, true);
        !is_first && self.left(clock::now_ns()).is_none()
    }

    /// How much time is left; `None` if none is.
    pub(super) fn left(&mut self, now_ns: u64) -> Option<Duration> {
        let left_ns = self.at_ns().saturating_sub(now_ns);
        (left_ns > 0).then(|| Duration::from_nanos(left_ns))
    }
}

/// A timeout as a deadline counts it.
pub(super) fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos())
        .unwrap_or(u64::MAX)
        .min(TIMEOUT_NS_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_begins_when_first_asked_for_and_never_overflows() {
        let mut deadline = Deadline::after(Duration::from_secs(1));
        assert_eq!(deadline.at_ns, 0);
        let at_ns = deadline.at_ns();
        assert_eq!(deadline.at_ns(), at_ns);
        assert_eq!(deadline.left(at_ns - 7), Some(Duration::from_nanos(7)));
        assert_eq!(deadline.left(at_ns), None);
        assert_eq!(deadline.left(at_ns + 1), None);
        assert!(Deadline::after(Duration::MAX).at_ns() > at_ns);
    }
}
