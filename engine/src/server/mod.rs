//! A server: its builder, and the handle by which it is watched and stopped.

mod builder;
mod error;
mod shm;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

pub use builder::ServerBuilder;
pub use error::ServerError;

use crate::config::IdleMode;
use crate::shm::Control;
use crate::stats::Snapshot;
use crate::worker::Shared;

/// A running server. Dropping it stops it as [`Server::stop`] does.
///
/// ```
/// use lapce_ai::ipc::{Client, Request, Responder, Server};
///
/// let server = Server::builder()
///     .bind("127.0.0.1:0")
///     .handler(0x0100, |request: Request<'_>, responder: Responder<'_>| {
///         let mut answer = request.payload().to_vec();
///         answer.reverse();
///         responder.reply(&answer);
///     })
///     .start()?;
///
/// let client = Client::connect(&server.local_addr().unwrap().to_string())?;
/// assert_eq!(client.call(0x0100, b"abc")?, b"cba");
/// server.stop();
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Server {
    handle: ServerHandle,
    threads: Vec<JoinHandle<()>>,
    /// The thread that attaches clients, if shared memory is offered.
    attach: Option<JoinHandle<()>>,
}

/// Watches and controls a server from any thread. Cloning is cheap.
#[derive(Clone)]
pub struct ServerHandle {
    shared: Arc<Shared>,
    local_addr: Option<SocketAddr>,
    control: Option<Arc<Control>>,
}

impl Server {
    /// A builder with the defaults: no address, one handler (ECHO), and the default
    /// [`crate::ipc::Limits`].
    pub fn builder() -> ServerBuilder {
        ServerBuilder::new()
    }

    /// The address that it listens on, with the port that was chosen if 0 was asked for. `None` if
    /// it does not listen on TCP.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.handle.local_addr
    }

    /// The path of the control segment by which clients find its shared memory; `None` if it
    /// offers none.
    pub fn shm_path(&self) -> Option<String> {
        let control = self.handle.control.as_ref();
        control.map(|control| control.path.clone())
    }

    /// The statistics so far, merged over all workers. Costs the workers nothing.
    pub fn stats(&self) -> Snapshot {
        self.handle.stats()
    }

    /// A handle for other threads.
    pub fn handle(&self) -> ServerHandle {
        self.handle.clone()
    }

    /// Stops gracefully (drains): accepts no new connections, answers new requests with SHUTTING_DOWN, delivers
    /// the answers in flight for at most [`crate::ipc::Limits::drain_ms`], and closes all connections. Returns
    /// when all that is done.
    pub fn stop(mut self) {
        self.stop_and_join();
    }

    /// Waits until the server has stopped because of [`ServerHandle::begin_stop`].
    pub fn join(mut self) {
        self.join_threads();
    }

    fn stop_and_join(&mut self) {
        // First nobody new, over either transport.
        if let Some(control) = &self.handle.control {
            control.withdraw();
        }
        if let Some(attach) = self.attach.take()
            && attach.join().is_err()
        {
            log::error!("the attach thread panicked");
        }
        self.handle.begin_stop();
        self.join_threads();
    }

    fn join_threads(&mut self) {
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                log::error!("a worker panicked while it failed");
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop_and_join();
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("local_addr", &self.handle.local_addr)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for ServerHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerHandle")
            .field("local_addr", &self.local_addr)
            .finish_non_exhaustive()
    }
}

impl ServerHandle {
    /// The address that the server listens on.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.local_addr
    }

    /// The statistics so far. Costs the workers nothing.
    pub fn stats(&self) -> Snapshot {
        self.shared.registry.snapshot()
    }

    /// Begins a graceful stop, as [`Server::stop`] does, and returns at once. From here on no client gets a new
    /// connection, over either transport.
    pub fn begin_stop(&self) {
        if let Some(control) = &self.control {
            control.withdraw();
        }
        for inbox in &self.shared.inboxes {
            inbox.ask_to_drain();
        }
    }

    /// Changes how idle workers wait.
    pub fn set_idle(&self, mode: IdleMode) {
        self.shared.set_idle_mode(mode);
    }

    /// Changes whether version 1 connections are served. Those that are open stay as they are
    /// until their next frame.
    pub fn set_legacy(&self, enabled: bool) {
        self.shared.legacy.store(enabled, Ordering::Relaxed);
    }

    /// How many version 1 connections have come since the last call, by address, so that an operator knows when
    /// the support for them can be switched off. 1,024 addresses are counted each for itself, and all others
    /// together, as the last entry with the address 0.0.0.0.
    pub fn take_legacy_clients(&self) -> Vec<(std::net::IpAddr, u64)> {
        self.shared.registry.take_legacy_clients()
    }

    /// For a watchdog: asks each worker to show that it runs, and returns the numbers of those that were asked
    /// by the last call and have not shown it since, because a handler does not return. Call it at intervals
    /// longer than any handler may take. Never waits.
    pub fn silent_workers(&self) -> Vec<usize> {
        let inboxes = self.shared.inboxes.iter().enumerate();
        inboxes
            .filter(|(_, inbox)| !inbox.ping())
            .map(|(worker, _)| worker)
            .collect()
    }

    /// Waits for a thread of the server to fail, at most so long; returns whether one has. Only a bug of this
    /// crate makes a thread fail; a handler's panic does not. The server then stops by itself, as by
    /// [`ServerHandle::begin_stop`], and the failed worker's connections are closed without their answers.
    pub fn wait_for_failure(&self, at_most: Duration) -> bool {
        self.shared.failure.wait(at_most)
    }

    /// One of the server's threads has panicked: stops the server.
    fn fail(&self, thread: &str) {
        log::error!("{thread} has failed, which is a bug in lapce-ai: the server stops");
        self.begin_stop();
        self.shared.failure.report();
    }

    /// How many workers the server has.
    pub fn workers(&self) -> usize {
        self.shared.inboxes.len()
    }
}
