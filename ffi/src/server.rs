//! A server inside a C program.
#![allow(unsafe_code)]

use std::ffi::{c_char, c_int, c_void};
use std::ptr;

use lapce_ai::ipc::{self, Request, Responder, Server, ServerBuilder};

use crate::error::Fault;
use crate::guard;
use crate::handles::{Handles, Kind};
use crate::options::{self, ServerOptions};
use crate::responder::{self, CRequest, ResponderHandle};

/// lapce_ipc_server: opaque to C.
pub(crate) enum ServerHandle {}

enum State {
    /// Until it is started: handlers can be added. `None` for a moment only.
    Building(Option<ServerBuilder>),
    Running(Server),
}

static SERVERS: Handles<State> = Handles::new(Kind::Server);

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

/// The engine's handle of a running server.
pub(crate) fn handle_of(server: *mut ServerHandle) -> Result<ipc::ServerHandle, Fault> {
    SERVERS.with_in_turn(server.addr() as u64, |state| match state {
        State::Building(_) => Err(NOT_RUNNING),
        State::Running(server) => Ok(server.handle()),
    })?
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
        let handle = SERVERS
            .insert(State::Building(Some(builder)))
            .map_err(|_| Fault::Other(-libc::EMFILE, "too many servers".into()))?;
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
                *builder = builder
                    .take()
                    .map(|builder| builder.handler(msg_type, handle));
                Ok(())
            }
            State::Running(_) => Err(Fault::Invalid(
                "the server is started: register handlers before",
            )),
        })?
    })
}

#[unsafe(no_mangle)]
extern "C" fn lapce_ipc_server_start(server: *mut ServerHandle) -> c_int {
    guard::run(|| {
        SERVERS.with_in_turn(server.addr() as u64, |state| {
            let State::Building(builder) = state else {
                return Err(Fault::Invalid("the server is started already"));
            };
            let builder = builder.take().ok_or(Fault::Invalid(
                "the server could not be started before; stop it and make a new one",
            ))?;
            *state = State::Running(builder.start()?);
            Ok(())
        })?
    })
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
extern "C" fn lapce_ipc_server_begin_stop(server: *mut ServerHandle) -> c_int {
    guard::run(|| {
        handle_of(server)?.begin_stop();
        Ok(())
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
        // The handle ends first, the server after: nobody waits for the handle meanwhile.
        if let State::Running(server) = SERVERS.remove_in_turn(server.addr() as u64)? {
            server.stop();
        }
        Ok(())
    })
}
