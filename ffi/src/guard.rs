//! What every function does first and last: no panic gets out, no pointer is used unchecked.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::error::{self, Fault};

/// Runs a function's body; its error becomes a code, and so does a panic.
#[inline]
pub(crate) fn run(body: impl FnOnce() -> Result<(), Fault>) -> c_int {
    // Unwind safe: what a panic leaves behind is either given up or checked by the engine.
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => 0,
        Ok(Err(fault)) => error::failed(&fault),
        Err(panic) => panicked(panic),
    }
}

#[cold]
fn panicked(panic: Box<dyn std::any::Any + Send>) -> c_int {
    let text = match panic.downcast_ref::<&str>() {
        Some(text) => (*text).to_owned(),
        None => panic
            .downcast_ref::<String>()
            .cloned()
            .unwrap_or_else(|| "no text".into()),
    };
    let fault = Fault::Other(
        -libc::ENOTRECOVERABLE,
        format!("a mistake in this library: {text}"),
    );
    // What a panic carries may panic when dropped.
    std::mem::forget(panic);
    error::failed(&fault)
}

/// A payload.
///
/// # Safety
/// Unless `length` is 0, `data` is null or points to that many bytes, which nobody changes while
/// the result is in use.
#[inline]
pub(crate) unsafe fn bytes<'a>(data: *const c_void, length: usize) -> Result<&'a [u8], Fault> {
    if length == 0 {
        return Ok(&[]);
    }
    if data.is_null() {
        return Err(Fault::Null("the payload"));
    }
    if length > isize::MAX as usize {
        return Err(Fault::Invalid("the payload's length is negative"));
    }
    // SAFETY: not null, not too long; the rest is the caller's promise.
    Ok(unsafe { std::slice::from_raw_parts(data.cast(), length) })
}

/// A text that ends with 0.
///
/// # Safety
/// `text` is null or points to a text that ends with 0, which nobody changes while the result is in
/// use.
pub(crate) unsafe fn text<'a>(text: *const c_char, name: &'static str) -> Result<&'a str, Fault> {
    if text.is_null() {
        return Err(Fault::Null(name));
    }
    // SAFETY: not null; the rest is the caller's promise.
    unsafe { CStr::from_ptr(text) }
        .to_str()
        .map_err(|_| Fault::Invalid("a text is not UTF-8"))
}

/// A place for a result.
///
/// # Safety
/// `place` is null, misaligned, or points to an initialised T that is the function's alone until it
/// returns.
#[inline]
pub(crate) unsafe fn place<'a, T>(place: *mut T, name: &'static str) -> Result<&'a mut T, Fault> {
    if !place.is_aligned() {
        return Err(Fault::Misaligned(name));
    }
    // SAFETY: aligned; the rest is the caller's promise.
    unsafe { place.as_mut() }.ok_or(Fault::Null(name))
}

/// The same for a result that the program may do without, by null.
///
/// # Safety
/// As [`place()`].
#[inline]
pub(crate) unsafe fn place_or_null<'a, T>(
    to: *mut T,
    name: &'static str,
) -> Result<Option<&'a mut T>, Fault> {
    match to.is_null() {
        true => Ok(None),
        // SAFETY: the caller's promise.
        false => unsafe { place(to, name) }.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_a_code() {
        assert_eq!(run(|| panic!("on purpose")), -libc::ENOTRECOVERABLE);
        assert_eq!(run(|| panic!("{}", 1)), -libc::ENOTRECOVERABLE);
        assert_eq!(run(|| Ok(())), 0);
    }
}
