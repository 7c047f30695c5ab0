//! What the log says of damaged shared-memory connections. A client can damage one after the other, so it is
//! said once in a while, with how often it happened.

use std::fmt::Display;

use super::rarely::Rarely;

static DAMAGED: Rarely = Rarely::new();

/// A connection was closed, since its memory is not as it should be.
#[cold]
pub(super) fn tell(now_ns: u64, why: &dyn Display) {
    match DAMAGED.due(now_ns) {
        None => {}
        Some(0) => log::warn!("a shared-memory connection was closed: {why}"),
        Some(untold) => log::warn!(
            "a shared-memory connection was closed: {why}; since this was last said, {untold} others were"
        ),
    }
}
