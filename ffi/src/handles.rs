//! Handles that can be checked: numbers that name a slot and the slot's generation.
//!
//! To the C program a handle is a pointer, but it is never the address of anything: its top bits make it an
//! address that no supported processor accepts. (Those of aarch64 ignore the top byte, but the bit below it makes
//! an address the kernel's.) Slots are never freed, so a stale handle finds a slot of a later
//! generation, and is refused.
#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::collections::VecDeque;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::error::Fault;

/// The top bits of every handle: the byte 0x4C, and below it the bit that is set in the kernel's addresses alone.
const MARK: u64 = 0x4C << 1 | 1;
const MARK_SHIFT: u32 = 55;
const CHUNK_SLOTS: usize = 256;
/// At most this many chunks, so at most 2^20 handles of one kind.
const CHUNKS: usize = 4096;

// The low two bits of a slot's state.
/// No handle names the slot.
const FREE: u64 = 0;
/// The slot has a value that nobody uses at the moment.
const IDLE: u64 = 1;
/// A call uses the value.
const BUSY: u64 = 2;
/// Generations wrap after this many reuses of a slot.
const GENERATIONS: u64 = 1 << (MARK_SHIFT - 32);

/// What a handle stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Client = 0x1D,
    Server = 0x2D,
    /// A responder inside its handler; see [`crate::responder`].
    Now = 0x3D,
    /// A responder that was detached.
    Later = 0x4D,
    Pool = 0x5D,
}

/// Puts a handle together: 9 bits of mark, 23 of generation, 24 of place, 8 of kind.
pub(crate) fn handle(kind: Kind, generation: u64, place: u64) -> u64 {
    MARK << MARK_SHIFT | (generation % GENERATIONS) << 32 | (place & 0xFF_FFFF) << 8 | kind as u64
}

pub(crate) fn is_of_kind(handle: u64, kind: Kind) -> bool {
    handle >> MARK_SHIFT == MARK && handle & 0xFF == kind as u64
}

struct Slot<T> {
    /// The generation, and FREE, IDLE or BUSY. Whoever changes it from IDLE to BUSY has the value to itself until it
    /// stores IDLE or FREE.
    state: AtomicU64,
    value: UnsafeCell<Option<T>>,
}

/// Which places have been used, and which of them are free.
pub(crate) struct Places {
    free: VecDeque<u32>,
    used: u32,
}

/// The values of one kind of handle.
pub(crate) struct Handles<T> {
    kind: Kind,
    /// Chunks of `CHUNK_SLOTS` slots; null until needed, then there for ever.
    chunks: [AtomicPtr<Slot<T>>; CHUNKS],
    places: Mutex<Places>,
}

// SAFETY: a value is only reached by the thread that moved its slot from IDLE to BUSY (or made it),
// so that it is moved between threads, never shared; T may be moved. `places` has its lock.
unsafe impl<T: Send> Sync for Handles<T> {}

/// The handles of one kind, whatever they stand for.
pub(crate) trait Table: Sync {
    /// Keeps handles from being made and ended.
    fn lock(&self) -> MutexGuard<'_, Places>;

    /// Ends all handles, and leaves what they stand for as it is: in a forked child, that is its parent's. Their places
    /// are not used again. `places`: what [`Table::lock`] has returned.
    fn disown_all(&self, places: &Places);
}

impl<T: Send> Table for Handles<T> {
    fn lock(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn disown_all(&self, places: &Places) {
        for slot in (0..places.used).filter_map(|place| self.slot(place as usize)) {
            // Relaxed: a child has one thread.
            let state = slot.state.load(Ordering::Relaxed);
            if state & 3 != FREE {
                slot.state.store(ended(state), Ordering::Relaxed);
            }
        }
    }
}

impl<T: Send> Handles<T> {
    pub(crate) const fn new(kind: Kind) -> Handles<T> {
        Handles {
            kind,
            chunks: [const { AtomicPtr::new(ptr::null_mut()) }; CHUNKS],
            places: Mutex::new(Places {
                free: VecDeque::new(),
                used: 0,
            }),
        }
    }

    /// Keeps a value and returns its handle. Drops it if there are too many `what`.
    pub(crate) fn insert(&self, value: T, what: &str) -> Result<u64, Fault> {
        let mut places = self.lock();
        let all_used = places.used as usize == CHUNKS * CHUNK_SLOTS;
        // Free places are used again late, and the oldest first, so that stale handles are recognised for long.
        let reuse = all_used || places.free.len() > CHUNK_SLOTS / 2;
        let free = if reuse { places.free.pop_front() } else { None };
        let place = match free {
            Some(place) => place,
            None if all_used => {
                drop(places);
                return Err(Fault::Other(-libc::EMFILE, format!("too many {what}")));
            }
            None => {
                let place = places.used;
                if (place as usize).is_multiple_of(CHUNK_SLOTS) {
                    let chunk: Box<[Slot<T>]> = (0..CHUNK_SLOTS)
                        .map(|_| Slot {
                            state: AtomicU64::new(FREE),
                            value: UnsafeCell::new(None),
                        })
                        .collect();
                    // Release: pairs with the acquire in `slot`.
                    self.chunks[place as usize / CHUNK_SLOTS]
                        .store(Box::into_raw(chunk).cast(), Ordering::Release);
                }
                places.used += 1;
                place
            }
        };
        drop(places);
        let slot = self.slot(place as usize).expect("its chunk was made above");
        let generation = slot.state.load(Ordering::Relaxed) >> 2;
        // SAFETY: the place was taken from the free ones under the lock, so that no other `insert`
        // has it; the state is FREE, so that `take_hold` gives it to nobody.
        unsafe { *slot.value.get() = Some(value) };
        // Release: pairs with the acquire in `take_hold`.
        slot.state.store(generation << 2 | IDLE, Ordering::Release);
        Ok(handle(self.kind, generation, u64::from(place)))
    }

    /// Runs `act` on the value of a handle. Nobody else has it meanwhile.
    #[inline]
    pub(crate) fn with<R>(&self, handle: u64, act: impl FnOnce(&mut T) -> R) -> Result<R, Fault> {
        let held = self.take_hold(handle)?;
        // SAFETY: `held` stands for the move from IDLE to BUSY; it ends after `act`.
        let value = unsafe { &mut *held.slot.value.get() };
        Ok(act(value.as_mut().expect("an idle slot has a value")))
    }

    /// As [`Handles::with`], but waits while another thread uses the value. For values that are only used for short
    /// work, which never calls back into the program.
    pub(crate) fn with_in_turn<R>(
        &self,
        handle: u64,
        act: impl FnOnce(&mut T) -> R,
    ) -> Result<R, Fault> {
        let held = self.take_hold_in_turn(handle)?;
        // SAFETY: as in `with`.
        let value = unsafe { &mut *held.slot.value.get() };
        Ok(act(value.as_mut().expect("an idle slot has a value")))
    }

    /// As [`Handles::remove`], but waits as [`Handles::with_in_turn`] does. `None` if the value may not go yet; then it
    /// stays.
    pub(crate) fn remove_in_turn(
        &self,
        handle: u64,
        may_go: impl FnOnce(&T) -> bool,
    ) -> Result<Option<T>, Fault> {
        let held = self.take_hold_in_turn(handle)?;
        // SAFETY: as in `with`.
        let value = unsafe { &*held.slot.value.get() };
        match value.as_ref().is_some_and(may_go) {
            true => Ok(Some(self.take_out(held, handle))),
            false => Ok(None),
        }
    }

    fn take_hold_in_turn(&self, handle: u64) -> Result<Held<'_, T>, Fault> {
        // Ends when the other thread's short work does.
        loop {
            match self.take_hold(handle) {
                Err(Fault::Busy) => std::thread::yield_now(),
                held => return held,
            }
        }
    }

    /// Ends a handle and returns its value.
    pub(crate) fn remove(&self, handle: u64) -> Result<T, Fault> {
        Ok(self.take_out(self.take_hold(handle)?, handle))
    }

    fn take_out(&self, held: Held<'_, T>, handle: u64) -> T {
        let (slot, idle) = (held.slot, held.idle);
        std::mem::forget(held);
        // SAFETY: the slot is BUSY because of us until the store below.
        let value = unsafe { (*slot.value.get()).take() };
        // Release: pairs with the acquire in `take_hold`. The load in `insert` sees it by way of the lock.
        slot.state.store(ended(idle), Ordering::Release);
        self.lock().free.push_back(place_of(handle) as u32);
        value.expect("an idle slot has a value")
    }

    #[inline]
    fn take_hold(&self, handle: u64) -> Result<Held<'_, T>, Fault> {
        if !is_of_kind(handle, self.kind) {
            return Err(match handle {
                0 => Fault::Null("the handle"),
                _ => Fault::NoHandle,
            });
        }
        let slot = self.slot(place_of(handle)).ok_or(Fault::NoHandle)?;
        let generation = handle >> 32 & (GENERATIONS - 1);
        let idle = generation << 2 | IDLE;
        // Acquire: pairs with the release of the last holder.
        match slot.state.compare_exchange(
            idle,
            generation << 2 | BUSY,
            Ordering::Acquire,
            Ordering::Relaxed,
        ) {
            Ok(_) => Ok(Held { slot, idle }),
            Err(state) if state == generation << 2 | BUSY => Err(Fault::Busy),
            Err(_) => Err(Fault::NoHandle),
        }
    }

    #[inline]
    fn slot(&self, place: usize) -> Option<&Slot<T>> {
        // Acquire: pairs with the release in `insert`.
        let chunk = self
            .chunks
            .get(place / CHUNK_SLOTS)?
            .load(Ordering::Acquire);
        if chunk.is_null() {
            return None;
        }
        // SAFETY: a chunk has CHUNK_SLOTS slots and is never freed; slots are only changed through
        // their atomics and cells.
        Some(unsafe { &*chunk.add(place % CHUNK_SLOTS) })
    }
}

/// The state of a slot whose handle has ended: of the next generation, and free.
fn ended(state: u64) -> u64 {
    let next = (state >> 2) + 1;
    ((next % GENERATIONS) << 2) | FREE
}

fn place_of(handle: u64) -> usize {
    (handle >> 8 & 0xFF_FFFF) as usize
}

/// A slot that this call has moved to BUSY. Dropping it moves it back to IDLE, after a panic too.
struct Held<'a, T> {
    slot: &'a Slot<T>,
    idle: u64,
}

impl<T> Drop for Held<'_, T> {
    fn drop(&mut self) {
        // Relaxed: nobody else changes the state of a slot that is BUSY, but for `disown_all`, after which the handle
        // stays ended: the child was forked by what this call has called.
        if self.slot.state.load(Ordering::Relaxed) == self.idle - IDLE + BUSY {
            // Release: pairs with the acquire in `take_hold`.
            self.slot.state.store(self.idle, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_ends_once() {
        let handles: Handles<String> = Handles::new(Kind::Client);
        let first = handles.insert("a".into(), "clients").unwrap();
        let second = handles.insert("b".into(), "clients").unwrap();
        assert_ne!(first, second);
        assert_eq!(handles.with(first, |value| value.clone()), Ok("a".into()));
        let busy = handles.with(first, |_| handles.with(first, |_| ()));
        assert_eq!(busy, Ok(Err(Fault::Busy)));
        assert_eq!(
            handles.with(first, |_| handles.remove(first)),
            Ok(Err(Fault::Busy))
        );
        assert_eq!(handles.remove(first), Ok("a".into()));
        assert_eq!(handles.remove(first), Err(Fault::NoHandle));
        assert_eq!(handles.with(first, |_| ()), Err(Fault::NoHandle));
        assert_eq!(handles.with(second, |value| value.len()), Ok(1));
        assert_eq!(handles.with(0, |_| ()), Err(Fault::Null("the handle")));
        for wrong in [
            1,
            u64::MAX,
            second ^ 0x30,
            second ^ 1 << 32,
            second | 0xFF_FFFF << 8,
        ] {
            assert_eq!(handles.with(wrong, |_| ()), Err(Fault::NoHandle));
        }
    }

    /// Neither with its top byte, which x86-64 looks at, nor without, as aarch64 takes addresses.
    #[test]
    fn no_handle_is_an_address_of_the_program() {
        for number in [0, 1, 0xFF_FFFF, u64::MAX] {
            let handle = handle(Kind::Pool, number, number);
            assert!(is_of_kind(handle, Kind::Pool));
            assert!(handle >> 56 == 0x4C && handle << 8 >> 8 > u64::MAX >> 9);
        }
    }

    #[test]
    fn what_is_disowned_is_not_dropped() {
        let handles: Handles<std::sync::Arc<()>> = Handles::new(Kind::Client);
        let value = std::sync::Arc::new(());
        let [first, second] = [0; 2].map(|_| handles.insert(value.clone(), "clients").unwrap());
        drop(handles.remove(second));
        handles.disown_all(&handles.lock());
        assert_eq!(std::sync::Arc::strong_count(&value), 2);
        assert_eq!(handles.with(first, |_| ()), Err(Fault::NoHandle));
        let third = handles.insert(value.clone(), "clients").unwrap();
        assert_eq!(handles.with(third, |_| ()), Ok(()));
        // By a fork in a function of the program's that the call has called.
        let call = handles.with(third, |_| handles.disown_all(&handles.lock()));
        assert_eq!(call, Ok(()));
        assert_eq!(handles.with(third, |_| ()), Err(Fault::NoHandle));
    }

    #[test]
    fn places_are_used_again_under_other_handles() {
        let handles: Handles<u32> = Handles::new(Kind::Later);
        let mut seen = std::collections::HashSet::new();
        for number in 0..2000 {
            let handle = handles.insert(number, "responders").unwrap();
            assert!(seen.insert(handle));
            assert_eq!(handles.remove(handle), Ok(number));
        }
        assert!(handles.places.lock().unwrap().used < 2 * CHUNK_SLOTS as u32);
    }

    #[test]
    fn too_many_are_refused_as_the_header_says() {
        let handles: Handles<()> = Handles::new(Kind::Later);
        for _ in 0..CHUNKS * CHUNK_SLOTS {
            handles.insert((), "responders").unwrap();
        }
        let refused = handles.insert((), "responders").unwrap_err();
        assert_eq!(refused.code(), -libc::EMFILE);
        assert!(refused.to_string().contains("responders"));
    }

    #[test]
    fn a_panic_leaves_the_handle_usable() {
        let handles: Handles<u32> = Handles::new(Kind::Server);
        let handle = handles.insert(1, "servers").unwrap();
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _ = handles.with(handle, |_| panic!("on purpose"));
        }));
        assert!(panicked.is_err());
        assert_eq!(handles.with(handle, |value| *value), Ok(1));
    }
}
