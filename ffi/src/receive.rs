//! Clients: answers to what was submitted, and the descriptor that tells of them.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};

use crate::answer::{self, CAnswer, CAnswerView};
use crate::buffer::Buffer;
use crate::client::{ClientHandle, with_client};
use crate::descriptor::Descriptor;
use crate::error::Fault;
use crate::guard;

/// lapce_ipc_sink
type Sink = unsafe extern "C" fn(*mut c_void, *const CAnswerView);

const WAIT: u32 = 1;

// SAFETY: the name is this library's own, here and below.
#[unsafe(no_mangle)]
unsafe extern "C" fn lapce_ipc_poll(client: *mut ClientHandle, to: *mut CAnswer) -> c_int {
    let mut none = false;
    let code = with_client(client, |state| {
        // SAFETY: the header asks for an answer struct.
        let to = unsafe { answer::place(to) }?;
        match state.client.poll()? {
            // SAFETY: as above.
            Some(answer) => unsafe { answer::fill(to, answer) },
            None => {
                none = true;
                Ok(())
            }
        }
    });
    // Nothing is wrong, so the last error's text stays.
    if none && code == 0 {
        -libc::EAGAIN
    } else {
        code
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn lapce_ipc_wait_any(client: *mut ClientHandle, to: *mut CAnswer) -> c_int {
    with_client(client, |state| {
        // SAFETY: the header asks for an answer struct.
        let to = unsafe { answer::place(to) }?;
        // SAFETY: as above.
        unsafe { answer::fill(to, state.client.wait_any()?) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn lapce_ipc_wait_part(
    client: *mut ClientHandle,
    id: u64,
    to: *mut CAnswer,
) -> c_int {
    with_client(client, |state| {
        // SAFETY: the header asks for an answer struct.
        let to = unsafe { answer::place(to) }?;
        // SAFETY: as above.
        unsafe { answer::fill(to, state.client.wait_part(id)?) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn lapce_ipc_wait(
    client: *mut ClientHandle,
    id: u64,
    answer: *mut Buffer,
) -> c_int {
    with_client(client, |state| {
        // SAFETY: the header asks for a buffer of ours.
        let answer = unsafe { guard::place(answer, "the answer") }?;
        answer.check()?;
        let payload = state.client.wait(id)?;
        // SAFETY: as above.
        unsafe { answer.replace(payload) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn lapce_ipc_drain(
    client: *mut ClientHandle,
    flags: u32,
    sink: Option<Sink>,
    context: *mut c_void,
    count: *mut usize,
) -> c_int {
    with_client(client, |state| {
        let sink = sink.ok_or(Fault::Null("the sink"))?;
        if flags & !WAIT != 0 {
            return Err(Fault::Invalid("a flag is not known"));
        }
        // SAFETY: the header asks for a place or null.
        let place = unsafe { guard::place_or_null(count, "the place for the count") }?;
        let give = |answer: lapce_ai::ipc::AnswerRef<'_>| {
            answer::view(&answer, |view| {
                // SAFETY: the header asks for a function of this type, to be called on this thread
                // with this context, that returns.
                unsafe { sink(context, view) }
            });
        };
        let given = match flags & WAIT {
            0 => state.client.poll_with(give)?,
            _ => state.client.wait_with(give)?,
        };
        if let Some(place) = place {
            *place = given;
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn lapce_ipc_descriptor(client: *mut ClientHandle, fd: *mut c_int) -> c_int {
    with_client(client, |state| {
        // SAFETY: the header asks for a place for the descriptor.
        let place = unsafe { guard::place(fd, "the place for the descriptor") }?;
        if state.descriptor.is_none() {
            state.descriptor = Some(Descriptor::new()?);
        }
        if let Some(descriptor) = &state.descriptor {
            *place = descriptor.number();
        }
        Ok(())
    })
}
