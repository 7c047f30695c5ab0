//! The slots of the control segment, one for each client that is attaching.
//!
//! ```text
//!   0  state (a futex word): below, what is asked or answered; above, the slot's turn (u32)
//!  16  error code u32, length of the name u32, name of the connection's segment
//! ```
//!
//! Both sides change a state only from the one that they have seen, and a slot that becomes free
//! begins a new turn: a client that was stopped for long finds that its slot is another's now.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::sys::futex;
use crate::sys::segment::Segment;

/// Clients that may be attaching at a time.
pub(super) const SLOTS: usize = 64;
pub(super) const SLOT_BYTES: usize = 128;
/// Where in the control segment the first one lies.
pub(super) const SLOTS_AT: usize = 2 * 4096;
const AT_CODE: usize = 16;
const AT_NAME_BYTES: usize = 20;
const AT_NAME: usize = 24;
const NAME_BYTES_MAX: usize = SLOT_BYTES - AT_NAME;

/// What a slot is asked or answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Stage {
    Free = 0,
    /// A client has taken it.
    Claimed = 1,
    /// The server is to make a connection.
    Requested = 2,
    /// The connection's segment is there, under the name in the slot.
    Ready = 3,
    /// There will be no connection; the slot holds the protocol's code, or [`UNSEEN`].
    Refused = 4,
    /// The client has the segment mapped, and holds the record lock of its file until the server
    /// has seen it.
    Mapped = 5,
}

/// Instead of the protocol's code: the server cannot watch the client's process, so that its end
/// would go unnoticed.
pub(super) const UNSEEN: u32 = u32::MAX;

const STAGE_BITS: u32 = 8;
const STAGE_MASK: u32 = (1 << STAGE_BITS) - 1;

/// A slot's state as it was read once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State(u32);

impl State {
    /// `None`: somebody wrote nonsense.
    pub(super) fn stage(self) -> Option<Stage> {
        use Stage::{Claimed, Free, Mapped, Ready, Refused, Requested};
        [Free, Claimed, Requested, Ready, Refused, Mapped]
            .into_iter()
            .find(|&stage| stage as u32 == self.0 & STAGE_MASK)
    }

    /// Whether nobody has freed the slot between the two.
    pub(super) fn is_same_turn(self, other: State) -> bool {
        self.0 >> STAGE_BITS == other.0 >> STAGE_BITS
    }

    fn next(self, stage: Stage) -> State {
        let turn = (self.0 >> STAGE_BITS).wrapping_add(u32::from(stage == Stage::Free));
        State(turn << STAGE_BITS | stage as u32)
    }
}

/// One slot of a mapped control segment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot<'a> {
    segment: &'a Segment,
    at: usize,
}

impl<'a> Slot<'a> {
    pub(super) fn new(segment: &'a Segment, index: usize) -> Slot<'a> {
        assert!(index < SLOTS);
        let at = SLOTS_AT + index * SLOT_BYTES;
        Slot { segment, at }
    }

    fn word(&self) -> &'a AtomicU32 {
        self.segment.word32(self.at)
    }

    pub(super) fn state(&self) -> State {
        // Acquire: pairs with the release in `step`: what the slot says is there.
        State(self.word().load(Ordering::Acquire))
    }

    /// Goes on to `stage`. `None`: the state is not `from` any more.
    pub(super) fn step(&self, from: State, stage: Stage) -> Option<State> {
        let to = from.next(stage);
        // Release: pairs with the acquire in `state`.
        self.word()
            .compare_exchange(from.0, to.0, Ordering::AcqRel, Ordering::Relaxed)
            .ok()?;
        futex::wake(self.word(), i32::MAX as u32);
        Some(to)
    }

    /// Sleeps until the state is not `from` any more, for at most `limit`.
    pub(super) fn wait(&self, from: State, limit: Duration) {
        futex::wait(self.word(), from.0, Some(limit));
    }

    pub(super) fn code(&self) -> u32 {
        self.segment
            .word32(self.at + AT_CODE)
            .load(Ordering::Relaxed)
    }

    pub(super) fn set_code(&self, code: u32) {
        self.segment
            .word32(self.at + AT_CODE)
            .store(code, Ordering::Relaxed);
    }

    pub(super) fn set_name(&self, name: &str) {
        assert!(name.len() <= NAME_BYTES_MAX);
        self.segment
            .word32(self.at + AT_NAME_BYTES)
            .store(name.len() as u32, Ordering::Relaxed);
        let to = self.segment.at(self.at + AT_NAME, name.len());
        // SAFETY: `to` is valid for the name's length (checked).
        unsafe { std::ptr::copy_nonoverlapping(name.as_ptr(), to, name.len()) };
    }

    /// `None`: what is there is no name of a segment.
    pub(super) fn name(&self) -> Option<String> {
        let length = self
            .segment
            .word32(self.at + AT_NAME_BYTES)
            .load(Ordering::Relaxed) as usize;
        if length > NAME_BYTES_MAX {
            return None;
        }
        let mut name = vec![0; length];
        let from = self.segment.at(self.at + AT_NAME, length);
        // SAFETY: `from` is valid for that many bytes (checked), which go to memory of our own.
        unsafe { std::ptr::copy_nonoverlapping(from, name.as_mut_ptr(), length) };
        String::from_utf8(name)
            .ok()
            .filter(|name| !name.is_empty() && !name.contains('/'))
    }

    /// Writes any state at all, as somebody may who breaks the rules.
    #[cfg(test)]
    pub(super) fn overwrite(&self, state: u32) {
        self.word().store(state, Ordering::Release);
    }
}
