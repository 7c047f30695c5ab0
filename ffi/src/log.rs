//! What the engine logs, for the program.
#![allow(unsafe_code)]

use std::cell::{Cell, UnsafeCell};
use std::ffi::{c_char, c_int, c_void};
use std::sync::{PoisonError, RwLock};

use log::{LevelFilter, Log, Metadata, Record};

use crate::error::{self, Fault};
use crate::guard;

/// lapce_ipc_log
type Tell = unsafe extern "C" fn(*mut c_void, c_int, *const c_char);

/// Where the program wants lines.
#[derive(Clone, Copy)]
struct Sink {
    tell: Tell,
    context: *mut c_void,
}

// SAFETY: the header says that the function runs on any thread, on several at a time, with this context.
unsafe impl Send for Sink {}
// SAFETY: as above.
unsafe impl Sync for Sink {}

/// Locked for reading while the program's function runs, so that who replaces it waits for that.
struct Place(UnsafeCell<RwLock<Option<Sink>>>);

// SAFETY: the lock is only shared, but for `begin_anew`.
unsafe impl Sync for Place {}

static SINK: Place = Place(UnsafeCell::new(RwLock::new(None)));

fn sink() -> &'static RwLock<Option<Sink>> {
    // SAFETY: only `begin_anew` replaces it, while nobody has this.
    unsafe { &*SINK.0.get() }
}

/// In a forked child: the program's function does not end there on the parent's other threads, and who replaces it must
/// not wait for that. Not while it runs on this thread, which has the lock.
pub(crate) fn begin_anew() {
    if TELLING.get() {
        return;
    }
    // Nothing if another thread was replacing it.
    let kept = match sink().try_read() {
        Ok(sink) => *sink,
        Err(_) => None,
    };
    // SAFETY: a child has one thread, which does not use the lock now: within `set_log` and `log` it forks in the
    // program's function alone.
    unsafe { *SINK.0.get() = RwLock::new(kept) };
}

thread_local! {
    /// The program's function runs on this thread.
    static TELLING: Cell<bool> = const { Cell::new(false) };
}

struct Logger;

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        // What comes of the function itself is left out: it would run without end, or wait for itself.
        if !self.enabled(record.metadata()) || TELLING.replace(true) {
            return;
        }
        if let Some(sink) = &*sink().read().unwrap_or_else(PoisonError::into_inner) {
            let text = error::c_text(&record.args().to_string());
            // SAFETY: the header asks for a function of this type, with this context, that returns.
            unsafe { (sink.tell)(sink.context, record.level() as c_int, text.as_ptr()) };
        }
        TELLING.set(false);
    }

    fn flush(&self) {}
}

// SAFETY: the name is this library's own.
#[unsafe(no_mangle)]
extern "C" fn lapce_ipc_set_log(level: c_int, tell: Option<Tell>, context: *mut c_void) -> c_int {
    guard::run(|| {
        let filter = match (tell, level) {
            (None, _) => LevelFilter::Off,
            (_, 1) => LevelFilter::Error,
            (_, 2) => LevelFilter::Warn,
            (_, 3) => LevelFilter::Info,
            (_, 4) => LevelFilter::Debug,
            _ => return Err(Fault::Invalid("the level is none of LAPCE_IPC_LOG_...")),
        };
        if TELLING.get() {
            return Err(Fault::Other(
                -libc::EDEADLK,
                "the function that gets the log cannot wait for itself".into(),
            ));
        }
        // Refused from the second time on.
        let _ = log::set_logger(&Logger);
        let mut sink = sink().write().unwrap_or_else(PoisonError::into_inner);
        *sink = tell.map(|tell| Sink { tell, context });
        log::set_max_level(filter);
        Ok(())
    })
}
