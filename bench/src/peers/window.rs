//! A window of requests in flight to a peer: what goes next, what must come, and its clock.

use lapce_ai::ipc::monotonic_ns;

use crate::context::{Failure, wrong_answer};
use crate::payloads::Payloads;

/// Requests in flight.
pub const WINDOW: usize = 256;

/// Counts the answers of a time, after a number of them that do not count.
pub struct Clock {
    warm_up: u64,
    duration_ns: u64,
    /// When the time began, and how many had been answered by then.
    begun: Option<(u64, u64)>,
}

impl Clock {
    pub fn new(warm_up: u64, duration_ns: u64) -> Clock {
        Clock {
            warm_up,
            duration_ns,
            begun: None,
        }
    }

    /// So many are answered by now. When the time is over: how many a second.
    #[inline]
    pub fn rate(&mut self, answered: u64, now_ns: u64) -> Option<f64> {
        let Some((begun_ns, before)) = self.begun else {
            if answered >= self.warm_up {
                self.begun = Some((now_ns, answered));
            }
            return None;
        };
        let ns = now_ns - begun_ns;
        (ns > self.duration_ns).then(|| (answered - before) as f64 / (ns as f64 / 1e9))
    }
}

/// Messages that are answered in the order in which they were sent.
pub struct Window {
    requests: Payloads,
    expected: Payloads,
    sent: u64,
    answered: u64,
    wrong: bool,
    clock: Clock,
}

impl Window {
    pub fn new(bytes: usize, clock: Clock) -> Window {
        Window {
            requests: Payloads::new(bytes),
            expected: Payloads::new(bytes),
            sent: 0,
            answered: 0,
            wrong: false,
            clock,
        }
    }

    /// The next request, if there is room for it.
    #[inline]
    pub fn next_request(&mut self) -> Option<&[u8]> {
        if self.sent == self.answered + WINDOW as u64 {
            return None;
        }
        self.sent += 1;
        Some(self.requests.of(self.sent - 1))
    }

    /// The next answer has come.
    #[inline]
    pub fn take(&mut self, answer: &[u8]) {
        self.wrong |= answer != self.expected.of(self.answered);
        self.answered += 1;
    }

    /// Nothing is in flight.
    pub fn is_empty(&self) -> bool {
        self.sent == self.answered
    }

    /// When the time is over: how many were answered a second.
    #[inline]
    pub fn rate(&mut self) -> Result<Option<f64>, Failure> {
        if self.wrong {
            return Err(wrong_answer().into());
        }
        Ok(self.clock.rate(self.answered, monotonic_ns()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_after_the_warm_up_counts_until_the_time_is_over() {
        let mut clock = Clock::new(300, 1_000_000_000);
        // A slow start, of which nothing counts.
        let steps = [(10, 5e9), (310, 6e9), (1000, 6.5e9), (1310, 7e9)];
        for (answered, now) in steps {
            assert_eq!(clock.rate(answered, now as u64), None, "{answered}");
        }
        assert_eq!(clock.rate(4310, 8_000_000_000), Some(2000.0));
    }

    #[test]
    fn so_many_are_in_flight_and_answers_must_come_in_order() {
        let answers = |order: &dyn Fn(usize) -> usize| {
            let mut window = Window::new(64, Clock::new(0, 0));
            let mut sent = Vec::new();
            while let Some(request) = window.next_request() {
                sent.push(request.to_vec());
            }
            assert_eq!(sent.len(), WINDOW);
            (0..WINDOW).for_each(|index| window.take(&sent[order(index)]));
            assert!(window.is_empty() && window.next_request().is_some());
            window.rate()
        };
        assert!(answers(&|index| index).is_ok());
        assert!(answers(&|index| index ^ 1).is_err(), "two changed places");
    }
}
