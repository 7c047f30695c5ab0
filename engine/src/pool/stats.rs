//! What a pool tells about itself.

/// A pool at one moment. Counters are since it was made.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct PoolStats {
    /// Connections that there may be.
    pub max_connections: usize,
    /// Connections that there are, those being made included.
    pub open: usize,
    /// Those of them that nobody uses.
    pub idle: usize,
    /// How many idle ones are kept for good.
    pub keep_idle: usize,
    /// Threads waiting for a connection.
    pub waiting: usize,
    /// Connections handed out.
    pub acquired: u64,
    /// Those that were not newly made.
    pub reused: u64,
    /// Connections made.
    pub created: u64,
    /// Connections that were found broken, or discarded, and closed.
    pub broken: u64,
    /// Idle connections closed because there were more than needed.
    pub expired: u64,
    /// Connections that were lost in use and made anew by the client itself.
    pub reconnected: u64,
    /// Calls of `get` that ended without a connection because none became free.
    pub exhausted: u64,
    /// Calls of `get` that ended without a connection because none could be made.
    pub connect_failed: u64,
    /// Health checks made.
    pub checks: u64,
    /// Those that found a broken connection.
    pub checks_failed: u64,
    /// The share of the last thousand or so handed out that was not newly made; `None` before the
    /// first.
    pub recent_reuse_ratio: Option<f64>,
}

impl PoolStats {
    /// Connections in use.
    pub fn in_use(&self) -> usize {
        self.open - self.idle
    }

    /// The share of all connections handed out that was not newly made; `None` before the first.
    ///
    /// ```
    /// let pool = lapce_ai::ipc::ConnectionPool::builder().build()?;
    /// assert_eq!(pool.stats().reuse_ratio(), None);
    /// # Ok::<(), lapce_ai::ipc::Error>(())
    /// ```
    pub fn reuse_ratio(&self) -> Option<f64> {
        (self.acquired > 0).then(|| self.reused as f64 / self.acquired as f64)
    }
}
