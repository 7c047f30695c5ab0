//! The thread that attaches clients over shared memory, and which worker each of them gets.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;

use super::ServerError;
use crate::shm::{AttachServer, Control, Placement, ReadyBits, ServerEnd};
use crate::sys::sigbus;
use crate::worker::{Message, Shared};

/// Stack of the attach thread.
const STACK_BYTES: usize = 64 * 1024;

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
            // One that has no place for it only if none has: the load counts TCP connections too.
            .min_by_key(|(worker, inbox)| (self.0.ready_bits[*worker].are_taken(), inbox.load()))
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

/// Starts the thread that attaches clients. It ends when the control segment is withdrawn.
pub(super) fn start(
    control: Arc<Control>,
    shared: Arc<Shared>,
    failed: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, ServerError> {
    let (workers, bytes_max) = (shared.inboxes.len(), shared.limits.max_message_bytes);
    let server = AttachServer::new(control, Workers(shared), workers, bytes_max);
    std::thread::Builder::new()
        .name("lapce-ipc-attach".into())
        .stack_size(STACK_BYTES)
        .spawn(move || {
            sigbus::let_in();
            if catch_unwind(AssertUnwindSafe(|| server.run())).is_err() {
                failed();
            }
        })
        .map_err(ServerError::Thread)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::Server;

    #[test]
    fn a_worker_whose_places_are_taken_is_passed_over() {
        let builder = Server::builder().bind("127.0.0.1:0").workers(2);
        let server = builder.start().unwrap();
        let workers = Workers(server.handle().shared.clone());
        let [full, busy] = [0, 1];
        while workers.ready_bits(full).take().is_some() {}
        workers.0.inboxes[busy].load_changed(5);
        assert_eq!(workers.place(), Some(busy));
        while workers.ready_bits(busy).take().is_some() {}
        // Nobody has one: who asks is told so.
        assert_eq!(workers.place(), Some(full));
        assert_eq!(workers.ready_bits(full).take(), None);
    }
}
