//! The builder of a server, and how it is started.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::mpsc;

use super::{Server, ServerError, ServerHandle, shm};
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

/// How many workers of this process were pinned to a CPU.
static PINNED: AtomicUsize = AtomicUsize::new(0);
/// A worker's stack. Handlers run on it too, and to overflow it ends the process. Only what is used of it is
/// resident; it is smaller than a huge page, so that it does not become one.
const WORKER_STACK_BYTES: usize = 1024 * 1024;
/// The environment variable that names io_uring features not to be used: see DEVELOPERS.md.
const WITHOUT: &str = "LAPCE_IPC_URING_WITHOUT";

/// Sets the options of a [`Server`] and starts it.
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

    /// Listens on a TCP address, HOST:PORT; with port 0 the system chooses one. By default the server does not
    /// listen on TCP.
    pub fn bind(mut self, address: impl Into<String>) -> ServerBuilder {
        self.address = Some(address.into());
        self
    }

    /// How many worker threads there are, 1 to 16. 0, the default: half of the CPUs that this process may use,
    /// so that clients on the same machine have the other half.
    pub fn workers(mut self, workers: usize) -> ServerBuilder {
        self.workers = workers;
        self
    }

    /// Whether each worker is pinned to a CPU of its own, from the last one down. By default if idle workers
    /// spin ([`IdleMode::Spin`]). Workers are never pinned if there are not more CPUs than workers: clients on
    /// this machine would have no CPU left. Other processes may choose the same CPUs: give each process a
    /// set of its own (taskset, `CPUAffinity=`), from which it chooses.
    ///
    /// A thread that a handler starts inherits the worker's CPU; start such threads before the server.
    pub fn pin(mut self, pin: bool) -> ServerBuilder {
        self.pin = Some(pin);
        self
    }

    /// How workers without work wait. [`IdleMode::Adaptive`] by default.
    pub fn idle(mut self, idle: IdleMode) -> ServerBuilder {
        self.idle = idle;
        self
    }

    /// Limits on what peers can use; they must pass [`Limits::check`].
    pub fn limits(mut self, limits: Limits) -> ServerBuilder {
        self.limits = limits;
        self
    }

    /// Asks every connection for this token, of 1 to 65,384 bytes, in its HANDSHAKE. A connection that does
    /// not show it within [`Limits::frame_timeout_ms`] is closed, and one that shows another is refused with
    /// UNAUTHORIZED. Version 1 clients cannot show it.
    pub fn auth_token(mut self, token: impl Into<Vec<u8>>) -> ServerBuilder {
        self.auth_token = Some(token.into());
        self
    }

    /// Serves version 1 connections too. Off by default.
    pub fn legacy(mut self, enabled: bool) -> ServerBuilder {
        self.legacy = enabled;
        self
    }

    /// Offers shared memory under an instance's name, of up to 64 letters, digits, `_`, `-` and `.`; the
    /// default instance's is empty. Clients of the same user on this machine then connect to `shm:` or
    /// `shm:INSTANCE`, and TCP connections from this machine are upgraded. Off by default.
    pub fn shm(mut self, instance: impl Into<String>) -> ServerBuilder {
        self.shm = Some(instance.into());
        self
    }

    /// Serves a message type: 0x0100 and above, or one below 0x0010 that is not the protocol's. Registering a
    /// type again replaces its handler. The handler runs on a worker, with a stack of 1 MiB, and must not
    /// block: the worker's other connections wait. If it panics, it answers HANDLER_FAILED.
    pub fn handler<F>(mut self, msg_type: u16, handler: F) -> ServerBuilder
    where
        F: Fn(Request<'_>, Responder<'_>) + Send + Sync + 'static,
    {
        self.handlers.push((msg_type, Box::new(handler)));
        self
    }

    /// Starts the workers. When this returns, the server accepts connections.
    ///
    /// If the TCP port is in use, that is tried again for a second: the kernel releases the sockets of a
    /// predecessor that was killed a moment after its end.
    ///
    /// # Errors
    /// [`ServerError`] says which setting cannot be used, or what the system lacks.
    pub fn start(self) -> Result<Server, ServerError> {
        self.check()?;
        let features = features()?;
        let mut listener = match &self.address {
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
        let room = Arc::new(Room::new(self.limits.max_buffered_bytes));
        let inbox = |worker| Arc::new(Inbox::new(doorbell(worker), room.clone()));
        let inboxes = (0..workers).map(inbox).collect();
        let shared = Arc::new(Shared {
            limits: self.limits,
            handlers,
            registry: Registry::new(workers),
            auth_token: self.auth_token,
            legacy: AtomicBool::new(self.legacy),
            idle: AtomicU32::new(0),
            connections: AtomicU32::new(0),
            room,
            inboxes,
            failure: Failure::default(),
            ready_bits: (0..workers).map(|_| ReadyBits::new()).collect(),
        });
        shared.set_idle_mode(self.idle);
        let handle = ServerHandle {
            shared: shared.clone(),
            local_addr,
            control: control.clone(),
        };
        let mut server = Server {
            handle,
            threads: Vec::with_capacity(workers),
            attach: None,
        };
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
                    // Clients can cut shared memory short that this thread reads.
                    sigbus::let_in();
                    let run = || {
                        Worker::run(setup, |result| {
                            // The starter waits for exactly this.
                            let _ = started.send(result);
                        })
                    };
                    // After a panic, what the worker does to tell its clients may panic too.
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
        if let Some(control) = control {
            let handle = server.handle();
            let failed = move || handle.fail("the thread that attaches clients");
            server.attach = Some(shm::start(control, shared, failed)?);
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
    // On a thread of its own. The kernel takes a ring apart a moment after it was closed, and interrupts the thread that
    // made it: a program that starts a server and then waits for a signal or in epoll would get EINTR without a signal.
    let probing = std::thread::Builder::new()
        .name("lapce-ipc-probe".into())
        // The first worker takes over the memory of this stack.
        .stack_size(WORKER_STACK_BYTES)
        .spawn(uring::probe)
        .map_err(ServerError::Thread)?;
    let features = probing
        .join()
        .unwrap_or_else(|panic| resume_unwind(panic))?;
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

/// The handler of ECHO, written as an application's would be.
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
