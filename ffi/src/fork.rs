//! What a forked child may use: its own handles, and no others.
//!
//! A child has the memory of its parent, so it would write to the connections that the parent goes on using, and take
//! answers that are the parent's. And of its parent's threads it has only the one that forked: what another had locked
//! at that moment would stay locked. So the tables of handles are locked around a fork, and in the child all handles end.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::sync::{MutexGuard, Once};

use crate::client::CLIENTS;
use crate::handles::{Places, Table};
use crate::pool::POOLS;
use crate::responder::LATER;
use crate::server::SERVERS;

/// Nobody locks two of them but [`before`], in this order.
static TABLES: [&dyn Table; 4] = [&CLIENTS, &POOLS, &SERVERS, &LATER];

thread_local! {
    /// What the thread that forks holds meanwhile.
    static HELD: RefCell<Vec<MutexGuard<'static, Places>>> = const { RefCell::new(Vec::new()) };
}

/// From now on forks are seen. Called before there is the first handle.
pub(crate) fn watch() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: the functions are there for as long as the process: the library is never unloaded (see the header).
        // If there is no memory to register them, a child is as it was without.
        unsafe { libc::pthread_atfork(Some(before), Some(in_parent), Some(in_child)) };
    });
}

extern "C" fn before() {
    // A thread that ends has no place to keep them any more; what follows does nothing then.
    let _ = HELD.try_with(|held| {
        held.borrow_mut()
            .extend(TABLES.iter().map(|table| table.lock()));
    });
}

extern "C" fn in_parent() {
    let _ = HELD.try_with(|held| held.borrow_mut().clear());
}

extern "C" fn in_child() {
    let _ = HELD.try_with(|held| {
        for (table, places) in TABLES.iter().zip(held.borrow().iter()) {
            table.disown_all(places);
        }
        held.borrow_mut().clear();
    });
}
