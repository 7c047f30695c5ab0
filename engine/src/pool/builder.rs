//! How a pool is put together.

use std::time::Duration;

use super::ConnectionPool;
use crate::client::{Address, Client, ClientBuilder, Error};

/// The most connections that may be asked for.
const MAX_CONNECTIONS_MAX: usize = 65_536;
/// The shortest interval between health checks.
const CHECK_INTERVAL_MIN: Duration = Duration::from_millis(10);

/// The settings of a [`ConnectionPool`].
///
/// ```
/// use lapce_ai::ipc::PoolConfig;
///
/// let config = PoolConfig { max_connections: 10, ..PoolConfig::default() };
/// assert_eq!(config.endpoint, "127.0.0.1:8080");
/// ```
#[derive(Clone, Debug)]
pub struct PoolConfig {
    /// Where the server is: HOST:PORT, `shm:` or `shm:INSTANCE`. Default `127.0.0.1:8080`.
    pub endpoint: String,
    /// Connections at a time, 1 to 65,536. Default 100.
    pub max_connections: usize,
    /// The share of connections handed out that should not be newly made, 0 to 1. Default 0.95.
    pub reuse_threshold: f64,
    /// How often idle connections are checked; 10 ms at least. Default 30 s.
    pub health_check_interval: Duration,
    /// How long [`ConnectionPool::get`] waits for a connection. Default 5 s.
    pub timeout: Duration,
    /// How long a connection may be idle that the pool does not need to keep. Default 60 s.
    pub idle_timeout: Duration,
    /// How connections are made: the timeout of calls, the auth token and so on.
    pub client: ClientBuilder,
}

impl Default for PoolConfig {
    fn default() -> PoolConfig {
        PoolConfig {
            endpoint: "127.0.0.1:8080".into(),
            max_connections: 100,
            reuse_threshold: 0.95,
            health_check_interval: Duration::from_secs(30),
            timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(60),
            client: Client::builder(),
        }
    }
}

impl PoolConfig {
    fn check(&self) -> Result<(), Error> {
        Address::parse(&self.endpoint)?;
        self.client.check()?;
        let wrong = if !(1..=MAX_CONNECTIONS_MAX).contains(&self.max_connections) {
            "a pool has 1 to 65536 connections"
        } else if !(0.0..=1.0).contains(&self.reuse_threshold) {
            "a pool's reuse threshold is between 0 and 1"
        } else if self.health_check_interval < CHECK_INTERVAL_MIN {
            "a pool's health checks are at least 10 ms apart"
        } else {
            return Ok(());
        };
        Err(Error::InvalidRequest(wrong))
    }

    pub(super) fn made_valid(mut self) -> PoolConfig {
        self.max_connections = self.max_connections.clamp(1, MAX_CONNECTIONS_MAX);
        self.reuse_threshold = match self.reuse_threshold.is_nan() {
            true => PoolConfig::default().reuse_threshold,
            false => self.reuse_threshold.clamp(0.0, 1.0),
        };
        self.health_check_interval = self.health_check_interval.max(CHECK_INTERVAL_MIN);
        self
    }
}

/// Puts a [`ConnectionPool`] together. What is not set has the default of [`PoolConfig`].
///
/// ```
/// use lapce_ai::ipc::{Client, ConnectionPool};
/// use std::time::Duration;
///
/// // The server need not be there yet.
/// let pool = ConnectionPool::builder()
///     .endpoint("127.0.0.1:8080")
///     .max_connections(20)
///     .timeout(Duration::from_secs(1))
///     .client(Client::builder().timeout(Duration::from_secs(2)))
///     .build()?;
/// assert_eq!(pool.stats().open, 0);
/// # Ok::<(), lapce_ai::ipc::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct ConnectionPoolBuilder {
    config: PoolConfig,
}

impl ConnectionPoolBuilder {
    /// Where the server is: HOST:PORT, `shm:` or `shm:INSTANCE`. `127.0.0.1:8080` by default.
    pub fn endpoint(mut self, endpoint: impl Into<String>) -> ConnectionPoolBuilder {
        self.config.endpoint = endpoint.into();
        self
    }

    /// How many connections there may be at a time. 100 by default.
    pub fn max_connections(mut self, connections: usize) -> ConnectionPoolBuilder {
        self.config.max_connections = connections;
        self
    }

    /// The share of connections handed out, 0 to 1, that should not be newly made. When it is not
    /// reached over the last thousand or so, more are kept idle. 0.95 by default.
    pub fn reuse_threshold(mut self, threshold: f64) -> ConnectionPoolBuilder {
        self.config.reuse_threshold = threshold;
        self
    }

    /// How often idle connections are checked by a HEARTBEAT. 30 s by default.
    pub fn health_check_interval(mut self, interval: Duration) -> ConnectionPoolBuilder {
        self.config.health_check_interval = interval;
        self
    }

    /// How long [`ConnectionPool::get`] waits for a connection. 5 s by default.
    pub fn timeout(mut self, timeout: Duration) -> ConnectionPoolBuilder {
        self.config.timeout = timeout;
        self
    }

    /// How long a connection may be idle that the pool does not need to keep. 60 s by default.
    pub fn idle_timeout(mut self, timeout: Duration) -> ConnectionPoolBuilder {
        self.config.idle_timeout = timeout;
        self
    }

    /// How connections are made: the timeout of calls, the auth token and so on.
    pub fn client(mut self, client: ClientBuilder) -> ConnectionPoolBuilder {
        self.config.client = client;
        self
    }

    /// Makes the pool. No connection is made before one is asked for.
    ///
    /// # Errors
    /// [`Error::InvalidAddress`], or [`Error::InvalidRequest`] naming the setting that is out of
    /// its range.
    pub fn build(self) -> Result<ConnectionPool, Error> {
        self.config.check()?;
        Ok(ConnectionPool::start(self.config))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_out_of_range_are_refused_or_made_valid() {
        let build = |change: fn(&mut PoolConfig)| {
            let mut config = PoolConfig::default();
            change(&mut config);
            let valid = config.clone().made_valid();
            (config.check(), valid)
        };
        type Change = fn(&mut PoolConfig);
        let changes: [Change; 6] = [
            |config| config.max_connections = 0,
            |config| config.max_connections = usize::MAX,
            |config| config.reuse_threshold = 1.1,
            |config| config.reuse_threshold = -0.1,
            |config| config.reuse_threshold = f64::NAN,
            |config| config.health_check_interval = Duration::ZERO,
        ];
        for change in changes {
            let (refused, valid) = build(change);
            assert!(matches!(refused, Err(Error::InvalidRequest(_))));
            valid.check().unwrap();
        }
        let (refused, _) = build(|config| config.endpoint = "nowhere".into());
        assert!(matches!(refused, Err(Error::InvalidAddress { .. })));
        PoolConfig::default().check().unwrap();
    }
}
