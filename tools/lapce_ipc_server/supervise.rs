//! Starts the server and its control plane, and heeds signals.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lapce_ai::ipc::{
    Config, Server, ServerHandle, process_stats, release_startup_pages, system_monotonic_us,
};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;
use signal_hook::iterator::Signals;

use crate::source::Source;
use crate::{control, notify};

/// Legacy clients are reported this often.
const LEGACY_REPORT: Duration = Duration::from_secs(60 * 60);

/// A stop that takes no longer than this is within any unit's TimeoutStopSec.
const DRAIN_SHORT: Duration = Duration::from_secs(5);
/// What else a stop may take.
const BESIDE_DRAIN: Duration = Duration::from_secs(5);

/// How often the chores are looked after.
const CHORES: Duration = Duration::from_secs(5);
/// Above this, pages that are only copies of files are given back.
const COMFORTABLE_BYTES: u64 = 2_500_000;

/// Runs until a signal ends it.
pub fn run(mut config: Config, mut source: Source) -> Result<(), String> {
    let draining = Arc::new(AtomicBool::new(false));
    let mut signals =
        watch(&draining).map_err(|error| format!("signals cannot be watched: {error}"))?;
    let server = start(&config)?;
    let handle = server.handle();
    let metrics = control::start(
        &config.metrics_bind_address,
        handle.clone(),
        draining.clone(),
    )?;

    let mut parts = Vec::new();
    if let Some(address) = server.local_addr() {
        parts.push(format!("tcp {address}"));
    }
    if let Some(segment) = server.shm_path() {
        parts.push(format!("shm {segment}"));
    }
    if let Some(address) = metrics {
        parts.push(format!("metrics http://{address}/metrics"));
    }
    parts.push(format!(
        "workers {}, idle {}",
        handle.workers(),
        config.idle
    ));
    if config.legacy {
        parts.push("version 1 clients are served".into());
    }
    parts.push(source.described());
    log::info!("ready: {}", parts.join(", "));
    release_startup_pages();
    notify::send("READY=1");
    start_housekeeper(handle.clone(), signals.handle());

    for signal in signals.forever() {
        if signal != SIGHUP {
            break;
        }
        notify::send(&format!(
            "RELOADING=1\nMONOTONIC_USEC={}",
            system_monotonic_us()
        ));
        reload(&mut config, &mut source, &handle);
        notify::send("READY=1");
    }
    log::info!("stopping: answering what is in flight");
    notify::send(&stopping(Duration::from_millis(config.limits.drain_ms)));
    let start = Instant::now();
    // First, so that a second signal leaves no name behind.
    handle.begin_stop();
    draining.store(true, Ordering::Release);
    server.stop();
    log::info!("stopped after {} ms", start.elapsed().as_millis());
    match handle.wait_for_failure(Duration::ZERO) {
        true => Err("the server has failed".into()),
        false => Ok(()),
    }
}

/// What the service manager is told of the end. It kills who takes longer than its unit's TimeoutStopSec,
/// unless it hears before that a stop may take longer.
fn stopping(drain: Duration) -> String {
    if drain <= DRAIN_SHORT {
        return "STOPPING=1".into();
    }
    let micros = (drain + BESIDE_DRAIN).as_micros();
    format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={micros}")
}

/// The signals that are heeded. While `draining`, those that end a process do so at once.
fn watch(draining: &Arc<AtomicBool>) -> std::io::Result<Signals> {
    for signal in [SIGTERM, SIGINT] {
        flag::register_conditional_default(signal, draining.clone())?;
    }
    Signals::new([SIGTERM, SIGINT, SIGHUP])
}

fn start(config: &Config) -> Result<Server, String> {
    let mut builder = Server::builder()
        .bind(&config.bind_address)
        .workers(config.workers)
        .idle(config.idle)
        .limits(config.limits.clone())
        .legacy(config.legacy);
    if config.shm_enabled {
        builder = builder.shm(&config.shm_instance);
    }
    if let Some(token) = &config.auth_token {
        builder = builder.auth_token(token.clone());
    }
    builder.start().map_err(|error| error.to_string())
}

/// Applies what can change while running, and says what cannot.
fn reload(config: &mut Config, source: &mut Source, handle: &ServerHandle) {
    let new = match source.load() {
        Ok(new) => new,
        Err(error) => {
            return log::error!("reload: {error}; the configuration stays as it was");
        }
    };
    for notice in &new.notices {
        log::warn!("{notice}");
    }
    if new.idle != config.idle {
        handle.set_idle(new.idle);
        log::info!("reload: server.idle is now {}", new.idle);
        config.idle = new.idle;
    }
    if new.legacy != config.legacy {
        handle.set_legacy(new.legacy);
        log::info!(
            "reload: compatibility.enable_legacy_support is now {}",
            new.legacy
        );
        config.legacy = new.legacy;
    }
    let (old_limits, new_limits) = (&config.limits, &new.limits);
    macro_rules! limit {
        ($name:ident) => {
            (
                concat!("limits.", stringify!($name)),
                new_limits.$name != old_limits.$name,
            )
        };
    }
    for (key, changed) in [
        limit!(max_message_bytes),
        limit!(max_connections),
        limit!(drain_ms),
        limit!(max_inflight_per_connection),
        limit!(max_buffered_bytes),
        limit!(send_stall_ms),
        limit!(frame_timeout_ms),
        (
            "server.bind_address",
            new.bind_address != config.bind_address,
        ),
        ("server.workers", new.workers != config.workers),
        ("shm.enabled", new.shm_enabled != config.shm_enabled),
        ("shm.instance", new.shm_instance != config.shm_instance),
        (
            "metrics.bind_address",
            new.metrics_bind_address != config.metrics_bind_address,
        ),
        (
            "security.auth_token_file",
            new.auth_token != config.auth_token,
        ),
    ] {
        if changed {
            log::warn!("reload: {key} cannot change while running: restart to apply it");
        }
    }
    match source.file() {
        Some(file) => log::info!("reloaded {}", file.display()),
        None => log::info!("reloaded: there is no file, so the defaults stay"),
    }
}

/// The chores: reports legacy clients once an hour, keeps the watchdog content and the process small. Ends the
/// wait for signals if the server fails.
fn start_housekeeper(handle: ServerHandle, signals: signal_hook::iterator::Handle) {
    let watchdog = notify::watchdog_interval();
    let interval = watchdog.unwrap_or(CHORES).min(CHORES);
    let chores = move || {
        let mut reported = Instant::now();
        // Unbounded by design: ends with the server or the process.
        while !handle.wait_for_failure(interval) {
            if watchdog.is_some() {
                match handle.silent_workers()[..] {
                    [] => notify::send("WATCHDOG=1"),
                    ref silent => log::error!("workers {silent:?} have not moved for {interval:?}"),
                }
            }
            // Pages of code that a burst of work needed once.
            if process_stats().resident_bytes > COMFORTABLE_BYTES {
                release_startup_pages();
            }
            if reported.elapsed() >= LEGACY_REPORT {
                reported = Instant::now();
                report_legacy_clients(&handle);
            }
        }
        signals.close();
    };
    let thread = std::thread::Builder::new()
        .name("lapce-ipc-chores".into())
        .stack_size(64 * 1024)
        .spawn(chores);
    if let Err(error) = thread {
        log::warn!("nobody does the chores (watchdog, legacy clients): {error}");
    }
}

fn report_legacy_clients(handle: &ServerHandle) {
    let clients = handle.take_legacy_clients();
    let total: u64 = clients.iter().map(|(_, count)| count).sum();
    log::info!("version 1 connections in the last hour: {total}");
    for (address, count) in clients.iter().take(32) {
        match address.is_unspecified() {
            false => log::info!("version 1 client {address}: {count} connections"),
            true => log::info!("version 1 clients at more addresses: {count} connections"),
        }
    }
}
