//! A pool of connections that many threads share.
//!
//! [`shared`] holds the connections and who waits for them; [`keeper`] is the pool's own thread,
//! which checks idle ones and reports to the server; [`guard`] is what a thread holds.

mod builder;
mod guard;
mod keeper;
mod shared;
mod stats;
#[cfg(test)]
mod tests;
mod waiter;
mod window;

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

pub use builder::{ConnectionPoolBuilder, PoolConfig};
pub use guard::PooledConnection;
use shared::Shared;
pub use stats::PoolStats;

use crate::client::Error;

/// Connections to one server, handed out one at a time to threads that ask.
///
/// [`ConnectionPool::get`] gives the healthy connection that was used last, or makes one, or waits
/// until one is returned: first come, first served. No lock is held while a connection is made or
/// checked. Idle connections are checked at an interval on the pool's own thread; one that is broken
/// is closed and never handed out. With the checks the pool tells the server how many connections
/// it handed out and how many of those were not newly made; the server's metrics show it.
///
/// When fewer connections are reused than the threshold says, the pool keeps more of them idle, up
/// to its maximum, and says so in the log.
///
/// ```
/// # let server = lapce_ai::ipc::Server::builder().bind("127.0.0.1:0").start()?;
/// # let address = server.local_addr().unwrap().to_string();
/// use std::time::Duration;
/// use lapce_ai::ipc::{ConnectionPool, msg_type};
///
/// let pool = ConnectionPool::builder()
///     .endpoint(&address)
///     .max_connections(100)
///     .reuse_threshold(0.95)
///     .health_check_interval(Duration::from_secs(30))
///     .build()?;
/// for _ in 0..10 {
///     let connection = pool.get()?;
///     assert_eq!(connection.call(msg_type::ECHO, b"hello")?, b"hello");
/// }
/// assert_eq!(pool.stats().reused, 9);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// A clone is another handle to the same pool, for another thread say. The last one that is dropped closes idle
/// connections after a last report to the server; those that are in use are closed when they are returned.
/// That may wait a moment for a check that is under way.
#[derive(Clone, Debug)]
pub struct ConnectionPool {
    running: Arc<Running>,
}

/// What all handles share.
#[derive(Debug)]
struct Running {
    shared: Arc<Shared>,
    keeper: Option<JoinHandle<()>>,
}

impl ConnectionPool {
    /// A builder with the defaults.
    pub fn builder() -> ConnectionPoolBuilder {
        ConnectionPoolBuilder::default()
    }

    /// A pool as in version 0.x. Settings that make no sense are replaced by the nearest that do;
    /// the builder refuses them instead.
    ///
    /// ```
    /// # #![allow(deprecated)]
    /// use lapce_ai::ipc::{ConnectionPool, PoolConfig};
    ///
    /// let pool = ConnectionPool::new(PoolConfig::default());
    /// assert_eq!(pool.stats().max_connections, 100);
    /// ```
    #[deprecated(
        since = "1.0.0",
        note = "use `ConnectionPool::builder()` with `.max_connections(..)`, `.reuse_threshold(..)` and `.health_check_interval(..)`, then `.build()?`"
    )]
    pub fn new(config: PoolConfig) -> ConnectionPool {
        ConnectionPool::start(config.made_valid())
    }

    fn start(config: PoolConfig) -> ConnectionPool {
        let shared = Arc::new(Shared::new(config));
        let keeper = keeper::start(shared.clone());
        if let Err(error) = &keeper {
            log::warn!(
                "connection pool to {}: no thread for health checks ({error}); idle connections are checked only when they are handed out",
                shared.config.endpoint
            );
        }
        ConnectionPool {
            running: Arc::new(Running {
                shared,
                keeper: keeper.ok(),
            }),
        }
    }

    /// A connection, for this thread until it is dropped. Waits for at most the pool's timeout.
    ///
    /// # Errors
    /// [`Error::PoolExhausted`] if all connections stayed in use; otherwise what
    /// [`crate::ipc::ClientBuilder::connect`] says when one has to be made: one attempt.
    pub fn get(&self) -> Result<PooledConnection, Error> {
        self.get_within(self.running.shared.config.timeout)
    }

    /// As [`ConnectionPool::get`], with a timeout of its own instead of the pool's.
    ///
    /// ```
    /// # let server = lapce_ai::ipc::Server::builder().bind("127.0.0.1:0").start()?;
    /// # let address = server.local_addr().unwrap().to_string();
    /// use lapce_ai::ipc::{ConnectionPool, Error};
    /// use std::time::Duration;
    ///
    /// let pool = ConnectionPool::builder().endpoint(&address).max_connections(1).build()?;
    /// let held = pool.get()?;
    /// let other = pool.get_within(Duration::from_millis(10));
    /// assert!(matches!(other, Err(Error::PoolExhausted { .. })));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn get_within(&self, timeout: Duration) -> Result<PooledConnection, Error> {
        shared::get(&self.running.shared, timeout)
    }

    /// What the pool has done, and how it stands.
    pub fn stats(&self) -> PoolStats {
        self.running.shared.stats()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shared.close();
        if let Some(keeper) = self.keeper.take() {
            // A panic there has been printed, and must not become another in a destructor.
            let _ = keeper.join();
        }
        self.shared.say_goodbye();
    }
}
