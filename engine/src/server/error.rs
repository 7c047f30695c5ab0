//! Why a server does not start.

use std::fmt;
use std::io;
use std::net::SocketAddr;

use crate::shm::ShmError;
use crate::sys::is_shortage;
use crate::uring::RingError;

/// Why a server does not start.
#[derive(Debug)]
#[non_exhaustive]
pub enum ServerError {
    /// The address does not parse or resolve.
    BadAddress {
        /// What was asked for.
        address: String,
        /// Why not.
        source: io::Error,
    },
    /// The address cannot be listened on.
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// There is no io_uring to be had; the text names the remedy.
    IoUring(String),
    /// A handler was registered for a type that belongs to the protocol.
    ReservedType(u16),
    /// A number is out of its range; the text says which.
    BadSetting(String),
    /// Shared memory cannot be offered; the text says why and what to do.
    SharedMemory(String),
    /// The system has not enough descriptors or memory.
    Shortage {
        /// What they are needed for.
        what: String,
        /// What there is not enough of.
        source: io::Error,
    },
    /// A thread cannot be started.
    Thread(io::Error),
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ServerError::BadAddress { address, source } => write!(
                f,
                "cannot use the address `{address}`: {source}; write HOST:PORT, 127.0.0.1:8080 for example"
            ),
            ServerError::Bind { address, source } => {
                write!(f, "cannot listen on {address}: {source}")?;
                f.write_str(match source.kind() {
                    io::ErrorKind::AddrInUse => "; stop the program that uses it, or choose another port",
                    io::ErrorKind::AddrNotAvailable => "; no interface has this address so far: choose another, or start the server once the network is up (in a unit After=network-online.target)",
                    _ => "",
                })
            }
            ServerError::IoUring(text) => f.write_str(text),
            ServerError::ReservedType(msg_type) => write!(
                f,
                "message type 0x{msg_type:04X} belongs to the protocol: applications use those outside 0x0000, 0x0004, 0x0005 and 0x0010 to 0x00FF"
            ),
            ServerError::BadSetting(text) | ServerError::SharedMemory(text) => f.write_str(text),
            ServerError::Shortage { what, source } => {
                write!(f, "{what}: {source}")?;
                f.write_str(match source.raw_os_error() {
                    Some(libc::EMFILE | libc::ENFILE) => "; raise the limit of open descriptors (ulimit -n, or LimitNOFILE in a unit)",
                    // Even where there is plenty of it: the rings of users other than root count as locked memory.
                    Some(libc::ENOMEM) => "; free some, or raise its limits: of locked memory (ulimit -l, LimitMEMLOCK in a unit), and of all (ulimit -v, LimitAS)",
                    _ => "",
                })
            }
            ServerError::Thread(source) => {
                write!(f, "cannot start a thread: {source}")?;
                if source.raw_os_error() == Some(libc::EAGAIN) {
                    f.write_str("; raise the limit of threads (ulimit -u, or TasksMax in a unit), or of memory")?;
                }
                Ok(())
            }
        }
    }
}

impl From<RingError> for ServerError {
    fn from(error: RingError) -> ServerError {
        match error {
            RingError::Setup(source) if is_shortage(&source) => ServerError::Shortage {
                what: "io_uring could not be set up".into(),
                source,
            },
            error => ServerError::IoUring(error.to_string()),
        }
    }
}

impl From<ShmError> for ServerError {
    fn from(error: ShmError) -> ServerError {
        match error {
            ShmError::NotMade { path, source } | ShmError::Failed { path, source }
                if is_shortage(&source) =>
            {
                ServerError::Shortage {
                    what: format!("{path} cannot be made"),
                    source,
                }
            }
            error => ServerError::SharedMemory(error.to_string()),
        }
    }
}

impl std::error::Error for ServerError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            ServerError::BadAddress { source, .. }
            | ServerError::Bind { source, .. }
            | ServerError::Shortage { source, .. }
            | ServerError::Thread(source) => Some(source),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_there_is_not_enough_of_can_be_raised() {
        for (errno, remedy) in [
            (libc::EMFILE, "LimitNOFILE"),
            (libc::ENOMEM, "LimitMEMLOCK"),
        ] {
            let error = RingError::Setup(io::Error::from_raw_os_error(errno));
            let text = ServerError::from(error).to_string();
            assert!(text.contains(remedy), "{text}");
        }
        let error = ServerError::Thread(io::Error::from_raw_os_error(libc::EAGAIN));
        assert!(error.to_string().contains("TasksMax"), "{error}");
    }
}
