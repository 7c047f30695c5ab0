//! How a server is put together.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::mpsc;

use super::shm::{ShmOffer, ShmService};
use super::{Server, ServerError, ServerHandle};
use crate::config::{IdleMode, Limits, check_token};
use crate::process::wait_for_port;
use crate::shm::{Control, DoorbellWord, ReadyBits, WORKERS_MAX};
use crate::stats::Registry;
use crate::sys::{affinity, sigbus, socket};
use crate::uring::{self, Features};
use crate::wire::{ErrorCode, is_instance_name, msg_type};
use crate::worker::{
    Doorbell, Failure, Handler, HandlerTable, Inbox, Request, Responder, Room, Shared, Worker,
    WorkerSetup,
};

/// Workers that this process has given a CPU.
static PINNED: AtomicUsize = AtomicUsize::new(0);
/// A worker's stack. Handlers run on it too, and what overflows it ends the process. Only what is used
/// of it is resident; below 2 MiB no part of it can become a huge page.
const WORKER_STACK_BYTES: usize = 1024 * 1024;
/// Names abilities of io_uring that are not to be used, for tests of the ways of older kernels.
const WITHOUT: &str = "LAPCE_IPC_URING_WITHOUT";

/// Puts a [`Server`] together.
pub struct ServerBuilder {
    address: Option<String>,
    workers: usize,
    idle: IdleMode,
    limits: Limits,
    auth_token: Option<Vec<u8>>,
    legacy: bool,
    shm: Option<String>,
    pin: Option<bool>,
    handlers: Vec<(u16, Box<dyn Handler>)>,
}

impl std::fmt::Debug for ServerBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerBuilder")
            .field("address", &self.address)
            .field("workers", &self.workers)
            .field("idle", &self.idle)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

impl ServerBuilder {
    pub(super) fn new() -> ServerBuilder {
        ServerBuilder {
            address: None,
            workers: 0,
            idle: IdleMode::default(),
            limits: Limits::default(),
            auth_token: None,
            legacy: false,
            shm: None,
            pin: None,
            handlers: Vec::new(),
        }
    }

    /// Listens on a TCP address, HOST:PORT; port 0 lets the system choose one.
    pub fn bind(mut self, address: impl Into<String>) -> ServerBuilder {
        self.address = Some(address.into());
        self
    }

    /// How many threads serve, 1 to 16. 0, the default: half of the CPUs that this process may
    /// use, so that clients on the same machine have the other half.
    pub fn workers(mut self, workers: usize) -> ServerBuilder {
        self.workers = workers;
        self
    }

    /// Keeps each worker on one CPU, another one for each worker of this process, where there are more CPUs
    /// than workers: if there are not, the clients on this machine would have to share each of them. By
    /// default where idle workers spin ([`IdleMode::Spin`]). Other processes may choose the same CPUs:
    /// give each a set of its own (taskset, `CPUAffinity=`), within which it chooses.
    ///
    /// A thread that a handler starts inherits the worker's CPU: start such threads before the server.
    pub fn pin(mut self, pin: bool) -> ServerBuilder {
        self.pin = Some(pin);
        self
    }

    /// How workers without work wait. [`IdleMode::Adaptive`] by default.
    pub fn idle(mut self, idle: IdleMode) -> ServerBuilder {
        self.idle = idle;
        self
    }

    /// Bounds of everything that could grow. See [`Limits::check`].
    pub fn limits(mut self, limits: Limits) -> ServerBuilder {
        self.limits = limits;
        self
    }

    /// Asks every connection for this token, of 1 to 65,384 bytes, in its HANDSHAKE.
    pub fn auth_token(mut self, token: impl Into<Vec<u8>>) -> ServerBuilder {
        self.auth_token = Some(token.into());
        self
    }

    /// Serves version 1 connections too. Off by default.
    pub fn legacy(mut self, enabled: bool) -> ServerBuilder {
        self.legacy = enabled;
        self
    }

    /// Offers shared memory under an instance's name; the default instance's is empty. Clients of
    /// the same user on this machine then connect to `shm:` or `shm:INSTANCE`, and their TCP
    /// connections become shared-memory ones.
    pub fn shm(mut self, instance: impl Into<String>) -> ServerBuilder {
        self.shm = Some(instance.into());
        self
    }

    /// Serves a message type; registering it again replaces the handler. The handler runs on a
    /// worker, on a stack of 1 MiB, and must not block it. One that panics answers HANDLER_FAILED.
    pub fn handler<F>(mut self, msg_type: u16, handler: F) -> ServerBuilder
    where
        F: Fn(Request<'_>, Responder<'_>) + Send + Sync + 'static,
    {
        self.handlers.push((msg_type, Box::new(handler)));
        self
    }

    /// Starts the workers. When this returns, the server accepts connections.
    pub fn start(self) -> Result<Server, ServerError> {
        self.check()?;
        let features = features()?;
        let listener = match &self.address {
            None => None,
            Some(address) => {
                let address = resolve(address)?;
                let listener = wait_for_port(|| socket::listen(address))
                    .map_err(|source| ServerError::Bind { address, source })?;
                Some(listener)
            }
        };
        let local_addr = listener
            .as_ref()
            .map(|listener| listener.local_addr())
            .transpose()
            .map_err(ServerError::Thread)?;
        let control = match &self.shm {
            None => None,
            Some(instance) => Some(Arc::new(Control::create(instance)?)),
        };
        let cpus = affinity::allowed_cpus();
        let workers = match self.workers {
            0 => (cpus.len() / 2).clamp(1, WORKERS_MAX),
            workers => workers,
        };
        let mut handlers = HandlerTable::new();
        handlers.insert(msg_type::ECHO, Box::new(echo));
        for (msg_type, handler) in self.handlers {
            handlers.insert(msg_type, handler);
        }
        let doorbell = |worker| match &control {
            None => Doorbell::private(),
            Some(control) => Doorbell::new(Arc::new(DoorbellWord {
                control: control.clone(),
                worker,
            })),
        };
        let room = Room::new(self.limits.max_buffered_bytes);
        let shared = Arc::new(Shared {
            limits: self.limits,
            handlers,
            registry: Registry::new(workers),
            auth_token: self.auth_token,
            legacy: AtomicBool::new(self.legacy),
            idle: AtomicU32::new(0),
            connections: AtomicU32::new(0),
            room,
            inboxes: (0..workers)
                .map(|worker| Arc::new(Inbox::new(doorbell(worker))))
                .collect(),
            failure: Failure::default(),
            ready_bits: (0..workers).map(|_| ReadyBits::new()).collect(),
        });
        shared.set_idle_mode(self.idle);
        let offer = control.clone().map(ShmOffer::new);
        let handle = ServerHandle {
            shared: shared.clone(),
            local_addr,
            shm: offer.clone(),
        };
        let mut server = Server {
            handle,
            threads: Vec::with_capacity(workers),
            shm: None,
        };
        let mut listener = listener;
        let pin = self.pin.unwrap_or(self.idle == IdleMode::Spin) && workers < cpus.len();
        // Relaxed: a number that nobody else has.
        let before = PINNED.fetch_add(if pin { workers } else { 0 }, Ordering::Relaxed);
        for index in 0..workers {
            let setup = WorkerSetup {
                index,
                // From the last CPU down: the first ones serve most interrupts.
                cpu: pin.then(|| cpus[cpus.len() - 1 - (before + index) % cpus.len()]),
                features,
                shared: shared.clone(),
                listener: listener.take(),
                control: control.clone(),
            };
            let (started, outcome) = mpsc::sync_channel(1);
            let handle = server.handle();
            let thread = std::thread::Builder::new()
                .name(format!("lapce-ipc-{index}"))
                .stack_size(WORKER_STACK_BYTES)
                .spawn(move || {
                    // Before it serves anybody: clients can cut memory that it reads short.
                    sigbus::let_in();
                    let run = || {
                        Worker::run(setup, |result| {
                            // The starter waits for exactly this.
                            let _ = started.send(result);
                        })
                    };
                    // What it does to end well may fail too.
                    if !catch_unwind(AssertUnwindSafe(run)).unwrap_or(false) {
                        handle.fail(&format!("worker {index}"));
                    }
                })
                .map_err(ServerError::Thread)?;
            server.threads.push(thread);
            match outcome.recv() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Err(error.into()),
                Err(_) => return Err(ServerError::Thread(io::Error::other("a worker panicked"))),
            }
        }
        if let Some(offer) = offer {
            let handle = server.handle();
            let failed = move || handle.fail("the thread that attaches clients");
            server.shm = Some(ShmService::start(offer, shared, failed)?);
        }
        Ok(server)
    }

    fn check(&self) -> Result<(), ServerError> {
        let bad = |text: String| Err(ServerError::BadSetting(text));
        if self.workers > WORKERS_MAX {
            return bad(format!(
                "{} workers are too many: use 0 to {WORKERS_MAX}",
                self.workers
            ));
        }
        if let Err(problem) = self.limits.check() {
            return bad(problem.to_string());
        }
        if let Some(token) = &self.auth_token
            && let Err(problem) = check_token(token, &self.limits)
        {
            return bad(format!("auth_token: {problem}"));
        }
        if let Some(instance) = self.shm.as_ref().filter(|name| !is_instance_name(name)) {
            return bad(format!(
                "`{instance}` cannot name an instance: use at most 64 letters, digits, `_`, `-` and `.`"
            ));
        }
        if let Some((msg_type, _)) = self
            .handlers
            .iter()
            .find(|(msg_type, _)| msg_type::is_protocol(*msg_type))
        {
            return Err(ServerError::ReservedType(*msg_type));
        }
        Ok(())
    }
}

fn features() -> Result<Features, ServerError> {
    let features = uring::probe()?;
    match std::env::var(WITHOUT) {
        Ok(names) => features
            .without(&names)
            .map_err(|error| ServerError::BadSetting(format!("{WITHOUT}: {error}"))),
        Err(_) => Ok(features),
    }
}

fn resolve(address: &str) -> Result<SocketAddr, ServerError> {
    let bad = |source| ServerError::BadAddress {
        address: address.to_owned(),
        source,
    };
    address
        .to_socket_addrs()
        .map_err(bad)?
        .next()
        .ok_or_else(|| {
            bad(io::Error::new(
                io::ErrorKind::NotFound,
                "the name has no address",
            ))
        })
}

/// ECHO, as an application would write it.
fn echo(request: Request<'_>, mut responder: Responder<'_>) {
    if request.is_stream_part() {
        if !responder.stream_part(request.payload()) {
            let text = "the part is longer than the client takes";
            responder.error(ErrorCode::HandlerFailed, text);
        }
    } else {
        responder.reply(request.payload());
    }
}
