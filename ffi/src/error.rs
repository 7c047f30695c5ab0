//! Error codes and texts.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char, c_int};
use std::io;

use lapce_ai::ipc::{Error, ErrorCode, Gone, ServerError};

/// The server used a code that this version does not know.
const UNKNOWN_CODE: c_int = 65535;

/// What is wrong with a call, before the engine hears of it or after.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A pointer that must not be null is; its name.
    Null(&'static str),
    /// A pointer is not aligned as its type asks; its name.
    Misaligned(&'static str),
    /// The handle was closed, is of another kind, or never was one.
    NoHandle,
    /// The handle is in use: by another thread, or by the function that runs this callback.
    Busy,
    /// An argument is out of its range; the text says how.
    Invalid(&'static str),
    /// A struct is longer than this version knows, and the rest is not zero.
    Newer,
    /// Something else: the code, and the text for people.
    Other(c_int, String),
}

impl Fault {
    pub(crate) fn system(what: &str, error: &io::Error) -> Fault {
        Fault::Other(-errno_of(error, libc::EIO), format!("{what}: {error}"))
    }

    pub(crate) fn code(&self) -> c_int {
        match self {
            Fault::Null(_) | Fault::Misaligned(_) => -libc::EFAULT,
            Fault::NoHandle => -libc::EBADF,
            Fault::Busy => -libc::EBUSY,
            Fault::Invalid(_) => -libc::EINVAL,
            Fault::Newer => -libc::E2BIG,
            Fault::Other(code, _) => *code,
        }
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Fault::Null(what) => write!(f, "{what} is NULL"),
            Fault::Misaligned(what) => write!(f, "{what} is not aligned"),
            Fault::NoHandle => {
                f.write_str("the handle is closed, of another kind, or was never one")
            }
            Fault::Busy => f.write_str(
                "the handle is in use by another thread, or by the function that called back",
            ),
            Fault::Invalid(what) => f.write_str(what),
            Fault::Newer => {
                f.write_str("a struct has fields that this version of the library does not know")
            }
            Fault::Other(_, text) => f.write_str(text),
        }
    }
}

fn errno_of(error: &io::Error, otherwise: c_int) -> c_int {
    error.raw_os_error().unwrap_or(match error.kind() {
        io::ErrorKind::TimedOut => libc::ETIMEDOUT,
        io::ErrorKind::ConnectionRefused => libc::ECONNREFUSED,
        io::ErrorKind::AddrInUse => libc::EADDRINUSE,
        io::ErrorKind::PermissionDenied => libc::EACCES,
        _ => otherwise,
    })
}

/// The number for an error of the client.
pub(crate) fn code_of(error: &Error) -> c_int {
    match error {
        Error::Remote { code, .. } => code.map_or(UNKNOWN_CODE, |code| code as c_int),
        Error::ConnectionLost { may_have_run, .. } => match may_have_run {
            true => -libc::ECONNRESET,
            false => -libc::EPIPE,
        },
        // A name that does not resolve has no number of the system's.
        Error::ConnectFailed { source, .. } => -errno_of(source, libc::EHOSTUNREACH),
        Error::SharedMemory(_) => -libc::ENOENT,
        Error::Timeout { .. } => -libc::ETIMEDOUT,
        Error::ServerViolation(_) => -libc::EPROTO,
        Error::InvalidAddress { .. } | Error::InvalidRequest(_) | Error::ReservedType(_) => {
            -libc::EINVAL
        }
        Error::TooLarge { .. } => -libc::EMSGSIZE,
        Error::Unread { .. } => -libc::ENOBUFS,
        Error::PoolExhausted { .. } | Error::NotSent { .. } => -libc::EAGAIN,
        Error::Unavailable { .. } => -libc::ENOTCONN,
        _ => -libc::EIO,
    }
}

impl From<Error> for Fault {
    #[cold]
    fn from(error: Error) -> Fault {
        Fault::Other(code_of(&error), error.to_string())
    }
}

impl From<ServerError> for Fault {
    fn from(error: ServerError) -> Fault {
        let code = match &error {
            ServerError::Bind { source, .. } => errno_of(source, libc::EIO),
            ServerError::Shortage { source, .. } => errno_of(source, libc::ENOMEM),
            ServerError::Thread(source) => errno_of(source, libc::EAGAIN),
            ServerError::BadAddress { .. }
            | ServerError::ReservedType(_)
            | ServerError::BadSetting(_) => libc::EINVAL,
            ServerError::IoUring(_) => libc::ENOSYS,
            ServerError::SharedMemory(_) => libc::EEXIST,
            _ => libc::EIO,
        };
        Fault::Other(-code, error.to_string())
    }
}

impl From<Gone> for Fault {
    fn from(gone: Gone) -> Fault {
        Fault::Other(-libc::EPIPE, gone.to_string())
    }
}

thread_local! {
    static LAST: RefCell<CString> = RefCell::new(CString::default());
    static NAMED: RefCell<CString> = RefCell::new(CString::default());
}

/// Text as C has it; a zero byte would end it early.
pub(crate) fn c_text(text: &str) -> CString {
    CString::new(text.replace('\0', "\u{FFFD}")).unwrap_or_default()
}

/// Keeps the text of an error for this thread and returns its code.
#[cold]
pub(crate) fn failed(fault: &Fault) -> c_int {
    let text = c_text(&fault.to_string());
    // A thread that is ending has no such memory any more.
    let _ = LAST.try_with(|last| {
        if let Ok(mut last) = last.try_borrow_mut() {
            *last = text;
        }
    });
    fault.code()
}

// SAFETY: the name is this library's own.
#[unsafe(no_mangle)]
extern "C" fn lapce_ipc_last_error() -> *const c_char {
    LAST.try_with(|last| last.try_borrow().map_or(c"".as_ptr(), |last| last.as_ptr()))
        .unwrap_or(c"".as_ptr())
}

// SAFETY: as above.
#[unsafe(no_mangle)]
extern "C" fn lapce_ipc_strerror(code: c_int) -> *const c_char {
    let known = match code {
        0 => c"OK",
        1 => c"BAD_MAGIC: the bytes are no frame",
        2 => c"VERSION_MISMATCH: the server speaks another version of the protocol",
        3 => c"CRC_MISMATCH: the frame was damaged",
        4 => c"TOO_LARGE: longer than the server's limit",
        5 => c"UNKNOWN_TYPE: nobody serves this message type",
        6 => c"BAD_FLAGS: flags, type or id that cannot be",
        7 => c"UNAUTHORIZED: the token is missing or wrong",
        8 => c"OVERLOADED: the request was not started and may be sent again",
        9 => c"PROVIDER_LOST: the request may or may not have been carried out",
        10 => c"HANDLER_FAILED: the handler failed",
        11 => c"TIMEOUT: the server says that it took too long",
        12 => c"CANCELLED: the request was cancelled",
        13 => c"SHUTTING_DOWN: the server is ending; the request was not started",
        14 => c"BAD_PAYLOAD: a payload that does not decode",
        UNKNOWN_CODE => c"an error of the server that this version does not know",
        _ => return system_text(code),
    };
    known.as_ptr()
}

fn system_text(code: c_int) -> *const c_char {
    let mut text = [0; 256];
    let named = match code.checked_neg() {
        Some(errno) if errno > 0 => {
            // SAFETY: the buffer has the length that is named; the function ends its text with 0.
            let result = unsafe { libc::strerror_r(errno, text.as_mut_ptr(), text.len()) };
            text[text.len() - 1] = 0;
            match result {
                // SAFETY: the buffer ends with 0 and lives until the copy is made.
                0 => unsafe { CStr::from_ptr(text.as_ptr()) }.to_owned(),
                _ => CString::from(c"unknown error"),
            }
        }
        _ => CString::from(c"unknown error"),
    };
    NAMED
        .try_with(|kept| {
            let Ok(mut kept) = kept.try_borrow_mut() else {
                return c"unknown error".as_ptr();
            };
            *kept = named;
            kept.as_ptr()
        })
        .unwrap_or(c"unknown error".as_ptr())
}

/// The protocol's code of a number that a handler gave.
pub(crate) fn code_from_c(code: c_int) -> Result<ErrorCode, Fault> {
    u16::try_from(code)
        .ok()
        .and_then(ErrorCode::from_u16)
        .ok_or(Fault::Invalid(
            "the code is none of the protocol's, 1 to 14",
        ))
}
