//! A server, a well-behaved client that must not notice anything, and what to break.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::super::slots::{SLOTS, Stage};
use super::super::{ClientEnd, Control, join};
use super::{instance, pattern};
use crate::client::Client;
use crate::config::Limits;
use crate::server::{Server, ServerBuilder};
use crate::stats::Transport;
use crate::sys::segment;
use crate::wire::{self, Flags, control_segment_name, msg_type};

/// Longer than anything takes on a busy machine.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

pub(super) struct Scene {
    pub(super) instance: String,
    /// Of the control segment.
    pub(super) name: String,
    // It goes before the server.
    witness: Witness,
    pub(super) server: Server,
}

/// Calls all the time on one connection, which it may not replace by another.
struct Witness {
    stop: Arc<AtomicBool>,
    calls: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Witness {
    fn start(instance: &str) -> Witness {
        let (stop, calls) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let client = Client::builder()
            .reconnect(false)
            .connect(&format!("shm:{instance}"))
            .unwrap();
        assert_eq!(client.transport(), Transport::Shm);
        let thread = {
            let (stop, calls) = (stop.clone(), calls.clone());
            std::thread::spawn(move || {
                // Ends when told to, or with an error.
                while !stop.load(Ordering::Relaxed) {
                    let call = calls.load(Ordering::Relaxed) as usize;
                    let payload = pattern([0, 64, 5000][call % 3], call);
                    assert_eq!(client.call(msg_type::ECHO, &payload).unwrap(), payload);
                    calls.fetch_add(1, Ordering::Relaxed);
                    // Asleep at times, as is the server then.
                    std::thread::sleep(Duration::from_micros(500));
                }
            })
        };
        let thread = Some(thread);
        Witness {
            stop,
            calls,
            thread,
        }
    }

    fn works(&self) {
        let before = self.calls.load(Ordering::Relaxed);
        let alive = || {
            self.thread
                .as_ref()
                .is_some_and(|thread| !thread.is_finished())
        };
        until("the witness is answered", || {
            assert!(alive(), "the witness saw an error");
            self.calls.load(Ordering::Relaxed) >= before + 5
        });
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            ended.unwrap().expect("the witness saw no error");
        }
    }
}

pub(super) fn until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

impl Scene {
    pub(super) fn new() -> Scene {
        Scene::with(Limits::default(), |builder| builder)
    }

    pub(super) fn with(
        limits: Limits,
        build: impl FnOnce(ServerBuilder) -> ServerBuilder,
    ) -> Scene {
        let instance = instance();
        let builder = Server::builder().workers(1).pin(false).limits(limits);
        let server = build(builder.shm(&instance)).start().unwrap();
        let scene = Scene {
            server,
            name: control_segment_name(&instance),
            witness: Witness::start(&instance),
            instance,
        };
        scene.witness_works();
        scene
    }

    pub(super) fn witness_works(&self) {
        self.witness.works();
    }

    /// The server alone.
    pub(super) fn into_server(self) -> Server {
        self.server
    }

    pub(super) fn control(&self) -> Control {
        Control::open(&self.name).unwrap()
    }

    pub(super) fn villain(&self) -> ClientEnd {
        join(&self.name, None, 0, PATIENCE).unwrap()
    }

    /// The villain's connection goes; nothing else does, and nothing is left of it.
    pub(super) fn is_unharmed(&self) {
        self.witness_works();
        until("the broken connection is closed", || {
            self.server.stats().connections(Transport::Shm) == 1
        });
        let prefix = self.name.trim_end_matches("control").to_owned() + "conn_";
        let left = || segment::names().any(|name| name.starts_with(&prefix));
        until("no connection's segment is left", || !left());
        let control = self.control();
        let is_free = |index| control.slot(index).state().stage() == Some(Stage::Free);
        until("no slot is left", || (0..SLOTS).all(is_free));
        self.witness_works();
    }
}

pub(super) fn frame(payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    wire::encode_to(&mut bytes, Flags::REQUEST, msg_type::ECHO, 5, payload);
    bytes
}

/// Waits for the villain's answer and returns its bytes.
pub(super) fn answer(villain: &mut ClientEnd) -> Vec<u8> {
    let mut bytes = Vec::new();
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        if let Some(record) = villain.ends.rx.next().unwrap() {
            villain.ends.rx.copy(&record, &mut bytes);
            return bytes;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("no answer");
}
