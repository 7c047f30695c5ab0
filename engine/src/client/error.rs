//! What can go wrong for a client: which side did what, and what may be done about it.

use std::fmt;
use std::io;
use std::time::Duration;

use crate::wire::{ErrorCode, Refusal, msg_type};

/// An error of a [`crate::ipc::Client`] or a [`crate::ipc::ConnectionPool`].
///
/// ```
/// use lapce_ai::ipc::{Client, Error};
///
/// let error = Client::connect("127.0.0.1").unwrap_err();
/// assert!(matches!(error, Error::InvalidAddress { .. }));
/// assert!(!error.is_retryable());
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The server answered this request with an error. Displayed, it is the server's text.
    Remote {
        /// The protocol's code, or `None` if the server used one that this version does not know.
        code: Option<ErrorCode>,
        /// The server's text.
        message: String,
    },
    /// The connection ended.
    ConnectionLost {
        /// True: the request had been sent, and may or may not have been carried out. False: it
        /// was not, so it may be sent again.
        may_have_run: bool,
        /// The system's error, if there was one. Or what the server said when it closed the connection
        /// because of another message: then [`Error::code`] is its code.
        source: Option<io::Error>,
    },
    /// No connection could be made.
    ConnectFailed {
        /// Where to.
        address: String,
        /// Why not.
        source: io::Error,
    },
    /// Shared memory cannot be used; the text names the file and says what to do.
    SharedMemory(String),
    /// There is no connection, and it is too early for another attempt. Only functions that do not wait for a
    /// server that is gone return this, [`crate::ipc::Client::submit`] for example. Nothing was sent.
    Unavailable {
        /// Where to.
        address: String,
        /// How long until the next attempt may be made, by a call then.
        retry_after: Duration,
    },
    /// This request or message could not be queued in time, because of what was sent before it. Nothing of
    /// it was sent.
    NotSent {
        /// The time allowed.
        after: Duration,
        /// What was in the way.
        why: &'static str,
    },
    /// No answer came in time. The request may or may not have been carried out; its answer, if it
    /// still comes, is discarded.
    Timeout {
        /// The time allowed.
        after: Duration,
    },
    /// The server sent bytes that break the protocol, or an answer longer than this client accepts. The
    /// connection is closed, except if a single answer cannot be decompressed ([`Refusal::BadPayload`],
    /// [`Refusal::InflatesTooFar`]).
    ServerViolation(Refusal),
    /// The address is neither HOST:PORT nor shm: nor shm:INSTANCE.
    InvalidAddress {
        /// What was given.
        address: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The caller's payload is longer than this client accepts, or the server, if that has said so. Nothing
    /// was sent.
    TooLarge {
        /// Its length, in bytes.
        length: usize,
        /// The limit, in bytes.
        max: u32,
    },
    /// Answers that the caller did not collect exceeded the client's limit
    /// ([`crate::ipc::ClientBuilder::max_unread_bytes`]), and this one was dropped. The request may have been
    /// carried out.
    Unread {
        /// The limit, in bytes.
        max: usize,
    },
    /// No connection of the pool became free in time.
    PoolExhausted {
        /// The time allowed.
        after: Duration,
        /// How many connections the pool may have.
        max_connections: usize,
    },
    /// The message type is invalid, or the protocol's own. Nothing was sent.
    ReservedType(u16),
    /// The caller asked for something impossible; the text says what.
    InvalidRequest(&'static str),
}

impl Error {
    /// The protocol's code, if the server sent one.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Error::Remote { code, .. } => *code,
            Error::ServerViolation(refusal) => Some(refusal.code()),
            Error::ConnectionLost {
                source: Some(source),
                ..
            } => said_by_server(source).and_then(Error::code),
            _ => None,
        }
    }

    /// Whether the request was certainly not carried out, so that it may be sent again as it is.
    pub fn is_safe_to_repeat(&self) -> bool {
        match self {
            Error::Remote { code, .. } => {
                matches!(code, Some(ErrorCode::Overloaded | ErrorCode::ShuttingDown))
            }
            Error::ConnectionLost { may_have_run, .. } => !may_have_run,
            Error::ConnectFailed { .. }
            | Error::SharedMemory(_)
            | Error::Unavailable { .. }
            | Error::NotSent { .. }
            | Error::PoolExhausted { .. }
            | Error::TooLarge { .. }
            | Error::ReservedType(_) => true,
            _ => false,
        }
    }

    /// Whether the same call may succeed if it is made again later. Look at
    /// [`Error::is_safe_to_repeat`] too if the request must not be carried out twice.
    pub fn is_retryable(&self) -> bool {
        match self {
            Error::Remote { code, .. } => matches!(
                code,
                Some(
                    ErrorCode::Overloaded
                        | ErrorCode::ProviderLost
                        | ErrorCode::Timeout
                        | ErrorCode::ShuttingDown
                )
            ),
            Error::ConnectionLost { .. }
            | Error::ConnectFailed { .. }
            | Error::SharedMemory(_)
            | Error::Unavailable { .. }
            | Error::NotSent { .. }
            | Error::Timeout { .. }
            | Error::Unread { .. }
            | Error::PoolExhausted { .. } => true,
            _ => false,
        }
    }

    /// Whether this error means that the connection is gone. An [`Error::Remote`] says nothing of that, since
    /// a handler may choose any code; [`crate::ipc::Client::is_connected`] tells.
    pub fn is_connection_lost(&self) -> bool {
        match self {
            Error::ServerViolation(Refusal::BadPayload(_) | Refusal::InflatesTooFar { .. }) => {
                false
            }
            Error::ServerViolation(_) => true,
            Error::ConnectionLost { .. } => true,
            _ => false,
        }
    }

    /// A copy, for each of the requests that this error ended. What the server said is kept whole.
    pub(super) fn copy(&self) -> Error {
        match self {
            Error::Remote { code, message } => Error::Remote {
                code: *code,
                message: message.clone(),
            },
            Error::ConnectionLost {
                may_have_run,
                source,
            } => Error::ConnectionLost {
                may_have_run: *may_have_run,
                source: source.as_ref().map(copy_source),
            },
            Error::ConnectFailed { address, source } => Error::ConnectFailed {
                address: address.clone(),
                source: copy_source(source),
            },
            Error::Unavailable {
                address,
                retry_after,
            } => Error::Unavailable {
                address: address.clone(),
                retry_after: *retry_after,
            },
            Error::NotSent { after, why } => Error::NotSent { after: *after, why },
            Error::SharedMemory(text) => Error::SharedMemory(text.clone()),
            Error::Timeout { after } => Error::Timeout { after: *after },
            Error::ServerViolation(refusal) => Error::ServerViolation(*refusal),
            Error::InvalidAddress { address, reason } => Error::InvalidAddress {
                address: address.clone(),
                reason,
            },
            Error::TooLarge { length, max } => Error::TooLarge {
                length: *length,
                max: *max,
            },
            Error::Unread { max } => Error::Unread { max: *max },
            Error::PoolExhausted {
                after,
                max_connections,
            } => Error::PoolExhausted {
                after: *after,
                max_connections: *max_connections,
            },
            Error::ReservedType(msg_type) => Error::ReservedType(*msg_type),
            Error::InvalidRequest(what) => Error::InvalidRequest(what),
        }
    }
}

/// What the server said when it closed a connection.
pub(super) fn closed_by_server(error: &Error) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, error.copy())
}

fn said_by_server(source: &io::Error) -> Option<&Error> {
    source.get_ref()?.downcast_ref()
}

/// A copy of a source: with the system's error number if there is one, since several are of one kind.
pub(super) fn copy_source(source: &io::Error) -> io::Error {
    match (said_by_server(source), source.raw_os_error()) {
        (Some(error), _) => io::Error::new(source.kind(), error.copy()),
        (None, Some(errno)) => io::Error::from_raw_os_error(errno),
        (None, None) => io::Error::new(source.kind(), source.to_string()),
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Remote { message, .. } => f.write_str(message),
            Error::ConnectionLost {
                may_have_run,
                source,
            } => {
                f.write_str("The connection to the server was lost")?;
                if let Some(source) = source {
                    write!(f, " ({source})")?;
                }
                f.write_str(match may_have_run {
                    true => ": the request may or may not have been carried out",
                    false => ": the request was not sent",
                })
            }
            Error::ConnectFailed { address, source } => {
                write!(f, "Cannot connect to {address}: {source}")?;
                if source.kind() == io::ErrorKind::ConnectionRefused {
                    f.write_str("; is lapce_ipc_server running there?")?;
                }
                Ok(())
            }
            Error::SharedMemory(text) => f.write_str(text),
            Error::Unavailable {
                address,
                retry_after,
            } => write!(
                f,
                "There is no connection to {address}, and the last attempt to make one failed: nothing was sent; try again in {retry_after:?}"
            ),
            Error::NotSent { after, why } => {
                write!(f, "Not sent within {after:?}: {why}")
            }
            Error::Timeout { after } => write!(
                f,
                "No answer within {after:?}: the request may or may not have been carried out"
            ),
            // Not the server's fault if it was not told of the limit.
            Error::ServerViolation(
                Refusal::TooLarge { length: size, max } | Refusal::InflatesTooFar { size, max },
            ) => write!(
                f,
                "The server's answer has {size} bytes, this client takes {max}: raise its max_message_bytes (ClientBuilder::max_message_bytes)"
            ),
            Error::ServerViolation(refusal) => {
                write!(f, "The server broke the protocol: {refusal}")
            }
            Error::InvalidAddress { address, reason } => write!(
                f,
                "Invalid address `{address}`: {reason}; use HOST:PORT, shm: or shm:INSTANCE"
            ),
            Error::TooLarge { length, max } => {
                write!(f, "Message too large: {length} bytes, the limit is {max}")
            }
            Error::Unread { max } => write!(
                f,
                "Answers that were not collected passed {max} bytes: this one was thrown away"
            ),
            Error::PoolExhausted {
                after,
                max_connections,
            } => write!(
                f,
                "No connection became free within {after:?}: all {max_connections} of the pool are in use"
            ),
            Error::ReservedType(msg_type) => write!(
                f,
                "Message type 0x{msg_type:04X} is not for programs to send: use 0x0100 and above, 0x{:04X} (HEARTBEAT) or 0x{:04X} (ECHO); nothing was sent",
                msg_type::HEARTBEAT,
                msg_type::ECHO
            ),
            Error::InvalidRequest(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::ConnectionLost {
                source: Some(source),
                ..
            }
            | Error::ConnectFailed { source, .. } => Some(source),
            Error::ServerViolation(refusal) => Some(refusal),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_says_the_same() {
        for source in [
            io::Error::from_raw_os_error(libc::EMFILE),
            io::Error::from_raw_os_error(libc::ENETDOWN),
            io::Error::new(io::ErrorKind::NotFound, "the name has no address"),
        ] {
            let (errno, kind) = (source.raw_os_error(), source.kind());
            let address = "127.0.0.1:1".to_owned();
            let error = Error::ConnectFailed { address, source };
            let copy = error.copy();
            assert_eq!(copy.to_string(), error.to_string());
            match copy {
                Error::ConnectFailed { source, .. } => {
                    assert_eq!((source.raw_os_error(), source.kind()), (errno, kind));
                }
                other => panic!("{other:?}"),
            }
        }
    }
}
