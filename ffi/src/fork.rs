//! What a forked child may use: its own handles, and no others.
//!
//! A child has the memory of its parent, so it would write to the connections that the parent goes on using, and take
//! answers that are the parent's. And of its parent's threads it has only the one that forked: what another had locked
//! at that moment would stay locked. So the tables of handles are locked around a fork, and in the child all handles end.
#![allow(unsafe_code)]

use std::cell::{Cell, UnsafeCell};
use std::sync::MutexGuard;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::client::CLIENTS;
use crate::handles::{Places, Table};
use crate::log;
use crate::pool::POOLS;
use crate::responder::LATER;
use crate::server::SERVERS;

/// Nobody locks two of them but [`before`], in this order.
static TABLES: [&dyn Table; 4] = [&CLIENTS, &POOLS, &SERVERS, &LATER];

/// The tables' locks, during a fork.
struct Held(UnsafeCell<Option<[MutexGuard<'static, Places>; 4]>>);

// SAFETY: it is touched by a thread that forks, while that has all the tables locked.
unsafe impl Sync for Held {}

/// Not a variable of the thread's: one that ends has none any more that would have to be dropped, and may fork all the
/// same.
static HELD: Held = Held(UnsafeCell::new(None));

thread_local! {
    /// This thread forks, and has the tables locked.
    static FORKS: Cell<bool> = const { Cell::new(false) };
}

/// From now on forks are seen. Called before there is the first handle.
pub(crate) fn watch() {
    static WATCHED: AtomicBool = AtomicBool::new(false);
    // Threads that come at the same time each do it, which does no harm. Nobody waits for another, which a child may not
    // have.
    if !WATCHED.load(Ordering::Acquire) {
        // SAFETY: the functions are there for as long as the process: the library is never unloaded (see the header).
        // If there is no memory to register them, a child is as it was without.
        unsafe { libc::pthread_atfork(Some(before), Some(in_parent), Some(in_child)) };
        WATCHED.store(true, Ordering::Release);
    }
}

extern "C" fn before() {
    if !FORKS.replace(true) {
        let held = TABLES.map(Table::lock);
        // SAFETY: all are locked by this thread.
        unsafe { *HELD.0.get() = Some(held) };
    }
}

/// What is held, if this thread forks. The tables stay locked until that is dropped.
fn take_held() -> Option<[MutexGuard<'static, Places>; 4]> {
    match FORKS.replace(false) {
        // SAFETY: all are locked by this thread, or were by the one that forked it.
        true => unsafe { (*HELD.0.get()).take() },
        false => None,
    }
}

extern "C" fn in_parent() {
    drop(take_held());
}

extern "C" fn in_child() {
    if let Some(held) = take_held() {
        for (table, places) in TABLES.iter().zip(&held) {
            table.disown_all(places);
        }
        log::begin_anew();
    }
}
