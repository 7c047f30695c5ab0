//! Counters and latency histograms. Each worker has a set of its own, which it alone writes, without locks; whoever
//! reads merges them into a [`Snapshot`].

mod histogram;
mod pools;
mod registry;
mod set;
mod snapshot;

pub(crate) use registry::Registry;
pub(crate) use set::{Direction, WorkerStats};
pub use snapshot::Snapshot;

/// The two ways in which a connection's bytes travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// A TCP socket.
    Tcp,
    /// Shared memory.
    Shm,
}

impl Transport {
    /// Both, in the order in which arrays are indexed by them.
    pub const ALL: [Transport; 2] = [Transport::Tcp, Transport::Shm];

    /// The name used in metrics and in the command's output: `tcp` or `shm`.
    pub fn name(self) -> &'static str {
        match self {
            Transport::Tcp => "tcp",
            Transport::Shm => "shm",
        }
    }

    pub(crate) fn index(self) -> usize {
        self as usize
    }
}

impl std::fmt::Display for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
