//! How a handler in C sees its request, and how it answers: at once or later.
//!
//! A responder's handle is of one of two kinds. Inside the handler it names this thread's current request, without a lock
//! or an allocation. Detached, it names an entry of [`LATER`].
#![allow(unsafe_code)]

use std::cell::Cell;
use std::ffi::{c_char, c_int, c_void};
use std::net::SocketAddr;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

use lapce_ai::ipc::{Deferred, ErrorCode, Request, Responder};

use crate::error::{self, Fault};
use crate::guard;
use crate::handles::{self, Handles, Kind};
use crate::stats::transport_number;

/// lapce_ipc_responder: opaque to C.
pub(crate) enum ResponderHandle {}

/// lapce_ipc_request
#[repr(C)]
pub(crate) struct CRequest {
    size: usize,
    msg_id: u64,
    payload: *const c_void,
    payload_bytes: usize,
    transport: u32,
    flags: u32,
    msg_type: u16,
    reserved: [u16; 3],
}

const _: () = assert!(size_of::<CRequest>() == 48);

const EXPECTS_ANSWER: u32 = 1;
const PART: u32 = 2;

pub(crate) static LATER: Handles<Deferred> = Handles::new(Kind::Later);

/// A request whose handler runs now.
struct Current<'a> {
    handle: u64,
    responder: Option<Responder<'a>>,
    peer: Option<SocketAddr>,
}

thread_local! {
    /// The request whose handler runs on this thread; null outside of handlers.
    static CURRENT: Cell<*mut Current<'static>> = const { Cell::new(ptr::null_mut()) };
    /// Counts this thread's requests, in its own range.
    static NEXT: Cell<u64> = Cell::new(THREADS.fetch_add(1, Ordering::Relaxed) << 32);
}

/// Threads that ran handlers: makes the handles of two threads different.
static THREADS: AtomicU64 = AtomicU64::new(0);

pub(crate) fn in_handler() -> bool {
    !CURRENT.get().is_null()
}

/// Ends the lending of a request when dropped, after a panic too.
struct Lent {
    before: *mut Current<'static>,
}

impl Drop for Lent {
    fn drop(&mut self) {
        CURRENT.set(self.before);
    }
}

/// Lends a request to a handler in C for as long as that runs.
pub(crate) fn lend(
    request: Request<'_>,
    responder: Responder<'_>,
    handler: impl FnOnce(*const CRequest, *mut ResponderHandle),
) {
    let number = NEXT.get();
    NEXT.set(number + 1);
    let handle = handles::handle(Kind::Now, number >> 24, number);
    let mut flags = 0;
    if request.expects_answer() {
        flags |= EXPECTS_ANSWER;
    }
    if request.is_stream_part() {
        flags |= PART;
    }
    let shown = CRequest {
        size: size_of::<CRequest>(),
        msg_id: request.msg_id(),
        payload: request.payload().as_ptr().cast(),
        payload_bytes: request.payload().len(),
        transport: transport_number(request.transport()),
        flags,
        msg_type: request.msg_type(),
        reserved: [0; 3],
    };
    let mut current = Current {
        handle,
        responder: Some(responder),
        peer: request.peer(),
    };
    let current = &raw mut current;
    // Dropped before `current`, which is then not reached any more.
    let _lent = Lent {
        before: CURRENT.replace(current.cast()),
    };
    handler(
        &raw const shown,
        ptr::without_provenance_mut(handle as usize),
    );
}

/// Runs `act` on the current request, if that is what the handle names.
fn with_current<R>(handle: u64, act: impl FnOnce(&mut Current<'_>) -> R) -> Result<R, Fault> {
    if handle == 0 {
        return Err(Fault::Null("the handle"));
    }
    let current = CURRENT.get();
    // SAFETY: not null, so `lend` is on this thread's stack and its variable alive; only the
    // functions below reach it, one at a time, since none of them calls back.
    let current = unsafe { current.as_mut() }.ok_or(Fault::NoHandle)?;
    if current.handle != handle {
        return Err(Fault::NoHandle);
    }
    Ok(act(current))
}

/// Who answers.
enum Who<'a> {
    Now(Responder<'a>),
    Later(Deferred),
}

/// Takes the duty to answer out of a handle, which ends.
fn finish(
    responder: *mut ResponderHandle,
    answer: impl FnOnce(Who<'_>) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let handle = responder.addr() as u64;
    if handles::is_of_kind(handle, Kind::Now) {
        return with_current(handle, |current| {
            answer(Who::Now(current.responder.take().ok_or(Fault::NoHandle)?))
        })?;
    }
    answer(Who::Later(LATER.remove(handle)?))
}

// SAFETY: the name is this library's own, here and below.
#[unsafe(no_mangle)]
unsafe extern "C" fn lapce_ipc_reply(
    responder: *mut ResponderHandle,
    payload: *const c_void,
    payload_bytes: usize,
) -> c_int {
    guard::run(|| {
        // SAFETY: the header asks for a payload of that length.
        let payload = unsafe { guard::bytes(payload, payload_bytes) }?;
        finish(responder, |who| match who {
            Who::Now(responder) => {
                responder.reply(payload);
                Ok(())
            }
            Who::Later(deferred) => Ok(deferred.reply(payload)?),
        })
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn lapce_ipc_reply_error(
    responder: *mut ResponderHandle,
    code: c_int,
    text: *const c_char,
) -> c_int {
    guard::run(|| {
        let code: ErrorCode = error::code_from_c(code)?;
        let text = match text.is_null() {
            true => code.name(),
            // SAFETY: the header asks for a text that ends with 0.
            false => unsafe { guard::text(text, "the text") }?,
        };
        finish(responder, |who| match who {
            Who::Now(responder) => {
                responder.error(code, text);
                Ok(())
            }
            Who::Later(deferred) => Ok(deferred.error(code, text)?),
        })
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn lapce_ipc_reply_part(
    responder: *mut ResponderHandle,
    payload: *const c_void,
    payload_bytes: usize,
) -> c_int {
    guard::run(|| {
        // SAFETY: the header asks for a payload of that length.
        let payload = unsafe { guard::bytes(payload, payload_bytes) }?;
        let handle = responder.addr() as u64;
        if handles::is_of_kind(handle, Kind::Now) {
            return with_current(handle, |current| {
                let responder = current.responder.as_mut().ok_or(Fault::NoHandle)?;
                match responder.stream_part(payload) {
                    true => Ok(()),
                    false => Err(Fault::Other(
                        -libc::EMSGSIZE,
                        "the part is longer than max_message_bytes; nothing was sent".into(),
                    )),
                }
            })?;
        }
        LATER.with(handle, |deferred| Ok(deferred.stream_part(payload)?))?
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn lapce_ipc_detach(
    responder: *mut ResponderHandle,
    later: *mut *mut ResponderHandle,
) -> c_int {
    guard::run(|| {
        // SAFETY: the header asks for a place for the handle.
        let place = unsafe { guard::place(later, "the place for the responder") }?;
        *place = ptr::null_mut();
        let handle = responder.addr() as u64;
        if handles::is_of_kind(handle, Kind::Later) {
            return Err(Fault::Invalid(
                "only a handler's own responder can be detached, and only once",
            ));
        }
        let deferred = with_current(handle, |current| {
            Ok::<_, Fault>(current.responder.take().ok_or(Fault::NoHandle)?.detach())
        })??;
        // Refused, it answers HANDLER_FAILED by being dropped.
        let handle = LATER.insert(deferred, "requests that wait for their answers")?;
        *place = ptr::without_provenance_mut(handle as usize);
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn lapce_ipc_is_gone(responder: *mut ResponderHandle) -> c_int {
    let mut gone = false;
    let code = guard::run(|| {
        let handle = responder.addr() as u64;
        gone = match handles::is_of_kind(handle, Kind::Now) {
            // Inside the handler it is not known yet.
            true => with_current(handle, |_| false)?,
            false => LATER.with(handle, |deferred| deferred.is_gone())?,
        };
        Ok(())
    });
    if code == 0 { c_int::from(gone) } else { code }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn lapce_ipc_peer(
    responder: *mut ResponderHandle,
    text: *mut c_char,
    capacity: usize,
) -> c_int {
    guard::run(|| {
        let peer = with_current(responder.addr() as u64, |current| current.peer)?;
        let peer = peer.map_or_else(|| "shm".to_owned(), |peer| peer.to_string());
        // SAFETY: the header asks for that many bytes.
        unsafe { copy_text(&peer, text, capacity) }
    })
}

/// Copies a text and the 0 at its end.
///
/// # Safety
/// `to` is null or points to `capacity` writable bytes.
pub(crate) unsafe fn copy_text(text: &str, to: *mut c_char, capacity: usize) -> Result<(), Fault> {
    if to.is_null() {
        return Err(Fault::Null("the place for the text"));
    }
    let text = error::c_text(text);
    let bytes = text.as_bytes_with_nul();
    if bytes.len() > capacity {
        return Err(Fault::Other(
            -libc::ENOBUFS,
            format!("the text needs {} bytes", bytes.len()),
        ));
    }
    // SAFETY: there are at least as many bytes, the caller's promise; the text is ours.
    unsafe { ptr::copy_nonoverlapping(bytes.as_ptr().cast(), to, bytes.len()) };
    Ok(())
}
