//! Answers in C's shape.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};

use lapce_ai::ipc::{Answer, AnswerRef, Error};

use crate::buffer::Buffer;
use crate::error::{self, Fault};
use crate::guard;

/// lapce_ipc_answer, first version.
#[repr(C)]
pub(crate) struct CAnswer {
    size: usize,
    id: u64,
    payload: Buffer,
    status: c_int,
    msg_type: u16,
    last: u8,
    reserved: u8,
}

/// lapce_ipc_answer_view
#[repr(C)]
pub(crate) struct CAnswerView {
    size: usize,
    id: u64,
    payload: *const c_void,
    payload_bytes: usize,
    status: c_int,
    msg_type: u16,
    last: u8,
    reserved: u8,
}

const _: () = assert!(size_of::<CAnswer>() == 48);
const _: () = assert!(size_of::<CAnswerView>() == 40);

/// The text of an error, with a zero byte behind it that does not count.
fn error_text(error: &Error) -> Vec<u8> {
    let mut text = error::c_text(&error.to_string()).into_bytes_with_nul();
    text.pop();
    text
}

/// The program's answer struct, checked; what it still held is freed by [`fill`].
///
/// # Safety
/// `answer` is null, misaligned, or points to a struct initialised with LAPCE_IPC_ANSWER_INIT that
/// is the function's alone.
pub(crate) unsafe fn place<'a>(answer: *mut CAnswer) -> Result<&'a mut CAnswer, Fault> {
    // SAFETY: the caller's promise.
    let answer = unsafe { guard::place(answer, "the answer") }?;
    if answer.size < size_of::<CAnswer>() {
        return Err(Fault::Invalid(
            "the answer's size is wrong: initialise it with LAPCE_IPC_ANSWER_INIT",
        ));
    }
    answer.payload.check()?;
    Ok(answer)
}

/// Puts an answer where the program wants it.
///
/// # Safety
/// The answer's buffer is as [`Buffer::take`] asks.
pub(crate) unsafe fn fill(to: &mut CAnswer, answer: Answer) -> Result<(), Fault> {
    let (status, payload) = match answer.result {
        Ok(payload) => (0, payload),
        Err(error) => (error::code_of(&error), error_text(&error)),
    };
    // SAFETY: the caller's promise.
    unsafe { to.payload.replace(payload) }?;
    to.id = answer.id;
    to.msg_type = answer.msg_type;
    to.last = u8::from(answer.last);
    to.status = status;
    Ok(())
}

/// Shows an answer to `show` for as long as it runs.
#[inline]
pub(crate) fn view(answer: &AnswerRef<'_>, show: impl FnOnce(&CAnswerView)) {
    let text;
    let (status, payload) = match &answer.result {
        Ok(payload) => (0, *payload),
        Err(error) => {
            text = error_text(error);
            (error::code_of(error), &text[..])
        }
    };
    show(&CAnswerView {
        size: size_of::<CAnswerView>(),
        id: answer.id,
        payload: payload.as_ptr().cast(),
        payload_bytes: payload.len(),
        status,
        msg_type: answer.msg_type,
        last: u8::from(answer.last),
        reserved: 0,
    });
}
