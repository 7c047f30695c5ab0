//! How many requests the scenarios have sent to the engine, and how many were answered rightly.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use crate::context::Context;

static SENT: AtomicU64 = AtomicU64::new(0);
static RIGHT: AtomicU64 = AtomicU64::new(0);

/// What the guide promises.
const ERROR_RATE_MAX: f64 = 0.001;

/// The requests of one loop. When it ends, however it does, they are counted: what is on its way then,
/// was answered with an error or with wrong bytes has failed.
#[derive(Default)]
pub struct Tally {
    pub sent: u64,
    pub right: u64,
}

impl Drop for Tally {
    fn drop(&mut self) {
        SENT.fetch_add(self.sent, Relaxed);
        RIGHT.fetch_add(self.right, Relaxed);
    }
}

/// The verdict on everything that was sent.
pub fn promise(context: &mut Context) {
    let (sent, right) = (SENT.load(Relaxed), RIGHT.load(Relaxed));
    if sent == 0 {
        return;
    }
    let failed = sent - right;
    context.verdict(
        "error rate below 0.1 %, of all requests",
        format!("{failed} failed of {sent}"),
        failed as f64 / (sent as f64) < ERROR_RATE_MAX,
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_on_its_way_when_a_loop_broke_has_failed() {
        let broken = || -> Result<(), ()> {
            let _tally = Tally { sent: 10, right: 7 };
            Err(())
        };
        let before = (SENT.load(Relaxed), RIGHT.load(Relaxed));
        broken().unwrap_err();
        let after = (SENT.load(Relaxed), RIGHT.load(Relaxed));
        assert_eq!((after.0 - before.0, after.1 - before.1), (10, 7));
    }
}
