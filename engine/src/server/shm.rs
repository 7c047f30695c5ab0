//! The server's shared memory: the control segment and the thread that attaches clients.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::JoinHandle;

use super::ServerError;
use crate::shm::{self, AttachServer, Control, Placement, ReadyBits, ServerEnd};
use crate::worker::{Message, Shared};

/// Stack of the attach thread.
const STACK_BYTES: usize = 64 * 1024;

/// A control segment that is offered, and its thread.
pub(super) struct ShmService {
    pub(super) control: Arc<Control>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

struct Workers(Arc<Shared>);

impl Placement for Workers {
    fn place(&self) -> Option<usize> {
        if !self.0.claim_connection() {
            return None;
        }
        let (worker, inbox) = self
            .0
            .inboxes
            .iter()
            .enumerate()
            .min_by_key(|(_, inbox)| inbox.load())
            .expect("there is a worker");
        inbox.load_changed(1);
        Some(worker)
    }

    fn ready_bits(&self, worker: usize) -> &ReadyBits {
        &self.0.ready_bits[worker]
    }

    fn unplace(&self, worker: usize) {
        self.0.release_connection();
        self.0.inboxes[worker].load_changed(-1);
    }

    fn refused(&self) {
        self.0.registry.refused_attaching();
    }

    fn deliver(&self, worker: usize, end: Box<ServerEnd>) {
        // A worker that has ended needs no connections; the client sees its end go.
        if let Err(Message::Shm(end)) = self.0.inboxes[worker].send(Message::Shm(end)) {
            end.ends.close();
        }
    }
}

impl ShmService {
    pub(super) fn start(control: Arc<Control>, shared: Arc<Shared>) -> Result<Self, ServerError> {
        let stop = Arc::new(AtomicBool::new(false));
        let server = AttachServer {
            control: control.clone(),
            workers: shared.inboxes.len(),
            placement: Workers(shared),
            stop: stop.clone(),
            is_full: Cell::new(false),
        };
        let thread = std::thread::Builder::new()
            .name("lapce-ipc-attach".into())
            .stack_size(STACK_BYTES)
            .spawn(move || server.run())
            .map_err(ServerError::Thread)?;
        Ok(ShmService {
            control,
            stop,
            thread: Some(thread),
        })
    }

    /// Takes the name away and attaches nobody from now on.
    pub(super) fn stop(&mut self) {
        // In this order, so that the thread which looks after the name does not miss it.
        shm::stop(&self.control, &self.stop);
        self.control.remove();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the attach thread panicked");
        }
    }
}

impl Drop for ShmService {
    fn drop(&mut self) {
        self.stop();
    }
}
