//! A server inside a C program.
#![allow(unsafe_code)]

use std::ffi::{c_char, c_int, c_void};
use std::time::Duration;
use std::{mem, ptr};

use lapce_ai::ipc::{self, Request, Responder, Server, ServerBuilder};

use crate::error::Fault;
use crate::handles::{Handles, Kind};
use crate::options::{self, ServerOptions};
use crate::responder::{self, CRequest, ResponderHandle};
use crate::{fork, guard};

/// lapce_ipc_server: opaque to C.
pub(crate) enum ServerHandle {}

pub(crate) enum State {
    /// Until it is started: handlers can be added.
    Building(Box<ServerBuilder>),
    /// A thread is starting it. Handlers may run already and use the handle, so that must not be held meanwhile: a start
    /// that fails waits for them.
    Starting {
        stop_asked: bool,
    },
    Running(Server),
    /// It could not be started.
    Failed,
}

pub(crate) static SERVERS: Handles<State> = Handles::new(Kind::Server);

/// lapce_ipc_handler
type Handler = unsafe extern "C" fn(*mut c_void, *const CRequest, *mut ResponderHandle);

/// What the program gave with its handler.
struct Context(*mut c_void);

// SAFETY: the header says that handlers run on the server's threads, several at a time, all with
// this context.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    /// A method, so that closures capture the whole.
    fn get(&self) -> *mut c_void {
        self.0
    }
}

const NOT_RUNNING: Fault = Fault::Invalid("the server is not started");
/// How often it is checked whether another thread has finished starting the server.
const LOOK: Duration = Duration::from_millis(1);

/// The engine's handle of a running server.
pub(crate) fn handle_of(server: *mut ServerHandle) -> Result<ipc::ServerHandle, Fault> {
    SERVERS.with_in_turn(server.addr() as u64, |state| match state {
        State::Running(server) => Ok(server.handle()),
        State::Starting { .. } => Err(Fault::Other(
            -libc::EBUSY,
            "the server is being started: lapce_ipc_server_start has not returned yet".into(),
        )),
        State::Building(_) | State::Failed => Err(NOT_RUNNING),
    })?
}

/// Starts a server by `start`. Meanwhile other calls can use the handle.
fn start_by(
    server: u64,
    start: impl FnOnce(ServerBuilder) -> Result<Server, Fault>,
) -> Result<(), Fault> {
    let starting = State::Starting { stop_asked: false };
    let builder = SERVERS.with_in_turn(server, |state| match mem::replace(state, starting) {
        State::Building(builder) => Ok(builder),
        before => {
            *state = before;
            Err(Fault::Invalid(match state {
                State::Failed => {
                    "the server could not be started before; stop it and make a new one"
                }
                _ => "the server is started already",
            }))
        }
    })??;
    let mut outcome = Outcome {
        server,
        state: Some(State::Failed),
    };
    outcome.state = Some(State::Running(start(*builder)?));
    Ok(())
}

/// Puts the outcome of a start into the handle when dropped, after a panic too.
struct Outcome {
    server: u64,
    state: Option<State>,
}

impl Drop for Outcome {
    fn drop(&mut self) {
        // It is there: a server that is being started is not taken out.
        let _ = SERVERS.with_in_turn(self.server, |state| {
            let stop_asked = matches!(state, State::Starting { stop_asked: true });
            if let (true, Some(State::Running(server))) = (stop_asked, &self.state) {
                server.handle().begin_stop();
            }
            if let Some(outcome) = self.state.take() {
                *state = outcome;
            }
        });
    }
}

// SAFETY: the name is this library's own, here and below.
#[unsafe(no_mangle)]
unsafe extern "C" fn lapce_ipc_server_new(
    options: *const ServerOptions,
    server: *mut *mut ServerHandle,
) -> c_int {
    guard::run(|| {
        // SAFETY: the header asks for a place for the handle.
        let place = unsafe { guard::place(server, "the place for the server") }?;
        *place = ptr::null_mut();
        // SAFETY: the header asks for options or null.
        let options = unsafe { options::read(options) }?;
        // SAFETY: the header asks for texts and a token of that length.
        let builder = unsafe { options.builder() }?;
        fork::watch();
        let handle = SERVERS.insert(State::Building(Box::new(builder)), "servers")?;
        *place = ptr::without_provenance_mut(handle as usize);
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn lapce_ipc_server_handle(
    server: *mut ServerHandle,
    msg_type: u16,
    handler: Option<Handler>,
    context: *mut c_void,
) -> c_int {
    guard::run(|| {
        let handler = handler.ok_or(Fault::Null("the handler"))?;
        if ipc::msg_type::is_protocol(msg_type) || msg_type == 0 {
            return Err(ipc::ServerError::ReservedType(msg_type).into());
        }
        let context = Context(context);
        let handle = move |request: Request<'_>, responder: Responder<'_>| {
            responder::lend(request, responder, |request, responder| {
                // SAFETY: the header asks for a function of this type that may run on any of the
                // server's threads with this context until the server has stopped, and returns.
                unsafe { handler(context.get(), request, responder) }
            });
        };
        SERVERS.with_in_turn(server.addr() as u64, |state| match state {
            State::Building(builder) => {
                let without = mem::replace(&mut **builder, Server::builder());
                **builder = without.handler(msg_type, handle);
                Ok(())
            }
            _ => Err(Fault::Invalid(
                "the server is started: register handlers before",
            )),
        })?
    })
}

#[unsafe(no_mangle)]
extern "C" fn lapce_ipc_server_start(server: *mut ServerHandle) -> c_int {
    guard::run(|| start_by(server.addr() as u64, |builder| Ok(builder.start()?)))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn lapce_ipc_server_address(
    server: *mut ServerHandle,
    text: *mut c_char,
    capacity: usize,
) -> c_int {
    guard::run(|| {
        let address = handle_of(server)?.local_addr().ok_or(Fault::Other(
            -libc::ENOTCONN,
            "the server does not listen on TCP".into(),
        ))?;
        // SAFETY: the header asks for that many bytes.
        unsafe { responder::copy_text(&address.to_string(), text, capacity) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn lapce_ipc_server_set_idle(server: *mut ServerHandle, idle: u32) -> c_int {
    guard::run(|| {
        let mode = options::idle_mode(idle)?;
        handle_of(server)?.set_idle(mode);
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn lapce_ipc_server_set_legacy(server: *mut ServerHandle, enabled: c_int) -> c_int {
    guard::run(|| {
        if !matches!(enabled, 0 | 1) {
            return Err(Fault::Invalid("legacy is 1 (on) or 0 (off)"));
        }
        handle_of(server)?.set_legacy(enabled == 1);
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn lapce_ipc_server_begin_stop(server: *mut ServerHandle) -> c_int {
    guard::run(|| {
        SERVERS.with_in_turn(server.addr() as u64, |state| match state {
            State::Running(server) => {
                server.handle().begin_stop();
                Ok(())
            }
            State::Starting { stop_asked } => {
                *stop_asked = true;
                Ok(())
            }
            State::Building(_) | State::Failed => Err(NOT_RUNNING),
        })?
    })
}

#[unsafe(no_mangle)]
extern "C" fn lapce_ipc_server_wait_for_failure(
    server: *mut ServerHandle,
    timeout_ms: u32,
) -> c_int {
    guard::run(|| {
        let at_most = Duration::from_millis(timeout_ms.into());
        match handle_of(server)?.wait_for_failure(at_most) {
            true => Ok(()),
            false => Err(Fault::Other(
                -libc::ETIMEDOUT,
                "no thread has failed".into(),
            )),
        }
    })
}

#[unsafe(no_mangle)]
extern "C" fn lapce_ipc_server_stop(server: *mut ServerHandle) -> c_int {
    if server.is_null() {
        return 0;
    }
    guard::run(|| {
        if responder::in_handler() {
            return Err(Fault::Other(
                -libc::EDEADLK,
                "a handler cannot wait for its own server: use lapce_ipc_server_begin_stop".into(),
            ));
        }
        let handle = server.addr() as u64;
        let may_go = |state: &State| !matches!(state, State::Starting { .. });
        // The handle ends before the server does, so that no call waits for the handle meanwhile. The loop ends when the
        // thread that starts the server has done so.
        loop {
            match SERVERS.remove_in_turn(handle, may_go)? {
                Some(State::Running(server)) => server.stop(),
                Some(_) => {}
                None => {
                    std::thread::sleep(LOOK);
                    continue;
                }
            }
            return Ok(());
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    fn new() -> u64 {
        let builder = Server::builder().bind("127.0.0.1:0").workers(1);
        SERVERS
            .insert(State::Building(Box::new(builder)), "servers")
            .unwrap()
    }

    fn pointer(server: u64) -> *mut ServerHandle {
        ptr::without_provenance_mut(server as usize)
    }

    /// What another thread is told by `ask`, as a handler would be while the server is being started.
    fn told<T: Send + 'static>(server: u64, ask: fn(*mut ServerHandle) -> T) -> T {
        let (tell, told) = mpsc::channel();
        std::thread::spawn(move || tell.send(ask(pointer(server))));
        told.recv_timeout(Duration::from_secs(20))
            .expect("nobody waits for a start that may wait for him")
    }

    #[test]
    fn handlers_may_ask_while_the_server_starts() {
        let server = new();
        let started = start_by(server, |builder| {
            let code = told(server, |server| handle_of(server).unwrap_err().code());
            assert_eq!(code, -libc::EBUSY);
            assert_eq!(
                told(server, |server| lapce_ipc_server_start(server)),
                -libc::EINVAL
            );
            assert_eq!(
                told(server, |server| lapce_ipc_server_begin_stop(server)),
                0
            );
            Ok(builder.start()?)
        });
        assert_eq!(started, Ok(()));
        // It was asked to stop meanwhile, and does.
        let address = handle_of(pointer(server)).unwrap().local_addr().unwrap();
        let refuses = || std::net::TcpStream::connect(address).is_err();
        assert!((0..20_000).any(|_| {
            std::thread::sleep(Duration::from_millis(1));
            refuses()
        }));
        assert_eq!(lapce_ipc_server_stop(pointer(server)), 0);
    }

    #[test]
    fn a_start_that_fails_leaves_a_handle_to_stop() {
        let server = new();
        let failed = start_by(server, |_| Err(Fault::Invalid("on purpose")));
        assert_eq!(failed, Err(Fault::Invalid("on purpose")));
        assert_eq!(lapce_ipc_server_start(pointer(server)), -libc::EINVAL);
        assert_eq!(lapce_ipc_server_begin_stop(pointer(server)), -libc::EINVAL);
        assert_eq!(lapce_ipc_server_stop(pointer(server)), 0);
        // After a panic too; and who stops it meanwhile waits.
        let server = new();
        let (stopping, has_begun) = mpsc::channel();
        let stopper = std::thread::spawn(move || {
            has_begun.recv().unwrap();
            lapce_ipc_server_stop(pointer(server))
        });
        let code = guard::run(|| {
            start_by(server, |_| {
                stopping.send(()).unwrap();
                panic!("on purpose")
            })
        });
        assert_eq!(code, -libc::ENOTRECOVERABLE);
        assert_eq!(stopper.join().unwrap(), 0);
        assert_eq!(lapce_ipc_server_stop(pointer(server)), -libc::EBADF);
    }
}
