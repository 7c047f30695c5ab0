//! The engine as the scenarios use it: the one place that knows how both transports are reached.

use std::io::{self, BufRead};
use std::time::Duration;

use lapce_ai::ipc::{Client, ClientBuilder, IdleMode, Limits, Server, ServerBuilder, Transport};

use crate::child::Served;
use crate::context::Failure;

/// Connections that the bench's server allows.
const CONNECTIONS_MAX: u32 = 12_000;

pub const TRANSPORTS: [Transport; 2] = [Transport::Shm, Transport::Tcp];

/// The instance of this run of the bench, which no other run shares.
fn instance() -> String {
    format!("bench{}", std::process::id())
}

/// Removes what the servers of this run left under /dev/shm: they are killed, not stopped.
pub fn sweep() {
    let prefix = format!("lapce_ipc_v2_{}_", instance());
    let entries = std::fs::read_dir("/dev/shm").into_iter().flatten();
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            // Gone already is as good.
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// A server process in this mode, on a port of its own.
pub fn start(cpu: usize, idle: IdleMode) -> io::Result<Served> {
    let mut served = spawn_at(cpu, idle, "127.0.0.1:0")?;
    served.wait_ready()?;
    Ok(served)
}

/// The same at this address, without waiting until it serves.
pub fn spawn_at(cpu: usize, idle: IdleMode, bind: &str) -> io::Result<Served> {
    let (cpu, instance) = (cpu.to_string(), instance());
    Served::spawn(&[
        "--kind",
        "engine",
        "--cpu",
        &cpu,
        "--idle",
        idle.name(),
        "--name",
        &instance,
        "--bind",
        bind,
    ])
}

/// The address by which a server is reached over one transport.
pub fn address(served: &Served, transport: Transport) -> String {
    match transport {
        Transport::Shm => format!("shm:{}", instance()),
        _ => served.address().to_owned(),
    }
}

pub fn builder(idle: IdleMode) -> ClientBuilder {
    Client::builder()
        .idle(idle)
        .timeout(Duration::from_secs(10))
        .shm_upgrade(false)
}

/// Connects, and makes sure that it is by the way asked for.
pub fn connect(
    served: &Served,
    transport: Transport,
    builder: ClientBuilder,
) -> Result<Client, Failure> {
    let client = builder.connect(&address(served, transport))?;
    if client.transport() != transport {
        return Err(format!("connected over {:?} instead", client.transport()).into());
    }
    Ok(client)
}

/// The server process.
pub fn serve(idle: IdleMode, bind: &str, instance: &str) -> Result<(), Failure> {
    lapce_ai::ipc::keep_process_small();
    let server = server(idle, bind, instance).start()?;
    let address = server.local_addr().ok_or("no address")?;
    println!("ready {address}");
    lapce_ai::ipc::release_startup_pages();
    let mut line = String::with_capacity(64);
    let mut stdin = io::stdin().lock();
    // Ends when the bench does.
    while stdin.read_line(&mut line)? > 0 {
        line.clear();
        println!("{}", crate::sys::allocations());
    }
    Ok(())
}

fn server(idle: IdleMode, bind: &str, instance: &str) -> ServerBuilder {
    Server::builder()
        .bind(bind)
        .shm(instance)
        .workers(1)
        .pin(false) // the process is pinned already
        .idle(idle)
        .limits(Limits {
            max_connections: CONNECTIONS_MAX,
            ..Limits::default()
        })
}
