//! Shared-memory connections in the worker's loop.
//!
//! The rings of those that spoke lately are hot: they are looked at in every round. The others are
//! cold: their clients set a bit and ring the worker's doorbell, so that a thousand quiet
//! connections cost nothing.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use super::Worker;
use super::batch::Chunk;
use super::connection::{Connection, Phase};
use super::cut_off;
use super::heat::HOT_MAX;
use super::vec_pool::NEW_BYTES;
use crate::shm::{Control, Corrupt, RECORD_MAX, ServerEnd};
use crate::stats::{Direction, Transport, WorkerStats};
use crate::sys::affinity;
use crate::sys::clock;
use crate::sys::process::PidFd;
use crate::uring::Key;
use crate::wire::{Flags, HEADER_BYTES};

/// Rounds without work between two looks at the clock for that.
const ROUNDS: u32 = 256;
/// Looks at the hot rings alone between two rounds, and the most rings for which that is done.
const WATCH_LOOKS: u32 = 8;
const WATCHED_MAX: usize = 4;
/// The most bytes taken from one ring in one round after the first record, so that nobody starves
/// the others. Buffers that grew for a round are no longer than this either: the pool has room for
/// them, and whoever gathers a short frame can use them too.
pub(super) const ROUND_BYTES: usize = 64 * 1024;
/// Rounds with work between two looks at the clock for pages that go back.
const BUSY_ROUNDS: u32 = 8192;
/// Two records of this size fit a ring's part of the first page.
const FIRST_PAGE_BYTES: u64 = 800;

const _: () = assert!(RECORD_MAX <= ROUND_BYTES);

/// The shared-memory side of a connection, besides its rings.
#[derive(Debug)]
pub(super) struct ShmState {
    /// `None` once given to the driver for closing.
    pidfd: Option<PidFd>,
    /// The end of the client's process will be reported.
    watching: bool,
    unwatching: bool,
    ready_bit: usize,
    pub(super) hot: bool,
    /// Where it is among the warm ones.
    pub(super) warm: Option<usize>,
    pub(super) last_record_ns: u64,
    /// Bytes received beyond the first page since pages were given back.
    pub(super) bytes_since: u64,
}

impl Connection {
    /// Counts what was taken at once from the ring. False: it may not be used.
    #[inline(always)]
    pub(super) fn took(&mut self, stats: &WorkerStats, bytes: usize, now_ns: u64) -> bool {
        let (Some(link), Some(ends)) = (&mut self.shm, &self.out.ends) else {
            return false;
        };
        let bytes = bytes as u64;
        link.last_record_ns = now_ns;
        // Small records in turn touch no page but the first.
        if bytes > FIRST_PAGE_BYTES {
            link.bytes_since += bytes;
        }
        self.progress_bytes += bytes;
        stats.bytes(Transport::Shm, Direction::In, bytes);
        if ends.segment.poisoned() {
            self.memory_was_cut();
        }
        self.takes_requests()
    }

    /// What is read from its memory now are zeros, which are no frame.
    #[cold]
    fn memory_was_cut(&mut self) {
        let why = "its file was cut short, or /dev/shm has no room for it";
        cut_off::damaged(self, &why);
    }
}

/// What a worker knows of all its rings.
pub(super) struct Rings {
    worker: usize,
    control: Option<Arc<Control>>,
    /// Keys by ready bit.
    pub(super) by_bit: Vec<Option<Key>>,
    pub(super) hot: Vec<Key>,
    /// Those that got cold in a crowd and have their pages still, and who of them was looked at last.
    pub(super) warm: Vec<Key>,
    pub(super) warm_next: usize,
    /// Rounds without work, and with it.
    rounds: u32,
    busy_rounds: u32,
    /// Bits that were set, for one round.
    rung: Vec<usize>,
    /// For a ring's first record; empty between two.
    pub(super) first_record: Vec<u8>,
}

impl Rings {
    pub(super) fn new(worker: usize, control: Option<Arc<Control>>) -> Rings {
        Rings {
            worker,
            control,
            by_bit: Vec::new(),
            hot: Vec::with_capacity(HOT_MAX + 1),
            warm: Vec::new(),
            warm_next: 0,
            rounds: 0,
            busy_rounds: 0,
            rung: Vec::new(),
            first_record: Vec::with_capacity(NEW_BYTES),
        }
    }

    /// Tells clients which CPU they had better leave to this worker.
    pub(super) fn tell_cpu(&self) {
        if let Some(control) = &self.control {
            control.set_worker_cpu(self.worker, affinity::current_cpu());
        }
    }

    /// Whether a cold connection has something.
    #[inline]
    pub(super) fn have_rung(&self) -> bool {
        self.control
            .as_ref()
            .is_some_and(|control| control.has_ready(self.worker))
    }
}

impl Worker {
    /// Takes a connection whose place is already claimed.
    pub(super) fn add_shm(&mut self, end: ServerEnd) {
        let ServerEnd {
            ends,
            pidfd,
            ready_bit,
            client_bytes_max,
        } = end;
        let pidfd_raw = pidfd.as_raw_fd();
        let link = ShmState {
            pidfd: Some(pidfd),
            watching: true,
            unwatching: false,
            ready_bit,
            hot: false,
            warm: None,
            last_record_ns: self.now_ns,
            bytes_since: 0,
        };
        let mut connection = Connection::shm(link, Box::new(ends), self.new_session());
        if let Some(max) = client_bytes_max {
            connection.peer_takes(max);
        }
        let key = self.connections.insert(connection);
        self.driver.watch_exit(key, pidfd_raw);
        self.stats.connected(Transport::Shm);
        if self.rings.by_bit.len() <= ready_bit {
            self.rings.by_bit.resize(ready_bit + 1, None);
        }
        self.rings.by_bit[ready_bit] = Some(key);
        // What the client wrote before we knew of it is found by looking now.
        self.heat(key);
        self.touch(key);
    }

    /// Looks at all hot rings, and at those that rang. Says whether there was anything.
    #[inline]
    pub(super) fn take_rings(&mut self) -> bool {
        if self.rings.have_rung() {
            self.take_rung();
        }
        // What is there may have waited, together with requests that go first: for the last round, or
        // for a ring before it in this one.
        let mut may_have_waited = std::mem::take(&mut self.round_was_long);
        let mut any = false;
        let mut index = 0;
        // A ring that gets cold leaves the list, so the index moves only past those that stay.
        while index < self.rings.hot.len() {
            let key = self.rings.hot[index];
            any |= self.take_ring(key, may_have_waited);
            may_have_waited |= any;
            index += usize::from(self.rings.hot.get(index) == Some(&key));
        }
        if any {
            self.rings.rounds = 0;
            self.rings.busy_rounds += 1;
            if self.rings.busy_rounds >= BUSY_ROUNDS {
                self.rings.busy_rounds = 0;
                self.give_old_pages_back();
            }
        } else {
            self.rings.rounds += 1;
            let idle = self.rings.hot.is_empty() && self.rings.warm.is_empty();
            if self.rings.rounds >= ROUNDS && !idle {
                self.rings.rounds = 0;
                self.cool_old_rings();
                self.give_old_pages_back();
            }
        }
        any
    }

    /// Between two rounds without work: a few looks at the hot rings alone, since a whole round
    /// takes as long as a message.
    #[inline]
    pub(super) fn watch_hot_rings(&mut self) {
        if self.hot.is_some() || self.rings.hot.is_empty() || self.rings.hot.len() > WATCHED_MAX {
            return std::hint::spin_loop();
        }
        for _ in 0..WATCH_LOOKS {
            for &key in &self.rings.hot {
                let ends = self
                    .connections
                    .get_mut(key)
                    .and_then(|connection| connection.out.ends.as_ref());
                if ends.is_none_or(|ends| ends.rx.poll()) {
                    return;
                }
            }
            std::hint::spin_loop();
        }
    }

    fn take_rung(&mut self) {
        let mut rung = std::mem::take(&mut self.rings.rung);
        if let Some(control) = &self.rings.control {
            control.take_ready(self.rings.worker, |bit| rung.push(bit));
        }
        for bit in rung.drain(..) {
            if let Some(key) = self.rings.by_bit.get(bit).copied().flatten() {
                self.heat(key);
                // It may have made room for answers that wait.
                self.touch(key);
            }
        }
        self.rings.rung = rung;
    }

    /// Takes what is there. The first record is handled at once if it is one frame whose CRC is right,
    /// without the detour over the batch and before the next is looked for: with one request in flight,
    /// that look would wait for a cache line which holds nothing yet. Unless it may have waited: then
    /// there may be others that go first.
    ///
    /// On that way the connection is looked up once, and nothing is counted before the answer has left.
    #[inline(always)]
    fn take_ring(&mut self, key: Key, may_have_waited: bool) -> bool {
        let Some(connection) = self.connections.get_mut(key) else {
            self.rings.hot.retain(|&hot| hot != key);
            return false;
        };
        let is_alone = !connection.has_waiting()
            && !connection.assembler.is_mid_frame()
            && connection.out.is_empty();
        let Some(ends) = &mut connection.out.ends else {
            return false;
        };
        let record = match ends.rx.next() {
            Ok(Some(record)) => record,
            Ok(None) if ends.peer_closed() || ends.segment.poisoned() => {
                return self.ring_has_ended(key);
            }
            Ok(None) => return false,
            Err(error) => {
                self.close_corrupt(key, error);
                self.touch(key);
                return true;
            }
        };
        if !is_alone {
            return self.take_behind_others(key);
        }
        freshen(&mut self.now_ns, &mut self.now_is_fresh);
        connection.active = true;
        let taken = &mut self.rings.first_record;
        debug_assert!(taken.is_empty());
        let header = ends.rx.copy_frame(&record, taken);
        let ack = ends.rx.advance(&record);
        ends.tx.acknowledged(ack);
        let max = self.shared.limits.max_message_bytes;
        let simple = !may_have_waited && self.batch.items.is_empty() && connection.takes_requests();
        let header = header.filter(|header| {
            simple && header.length <= max && !header.flags.contains(Flags::COMPRESSED)
        });
        if let Some(header) = &header {
            self.dispatcher.frame(
                &self.shared.handlers,
                key,
                connection,
                header,
                &taken[HEADER_BYTES..],
                self.now_ns,
            );
        }
        let usable = connection.took(&self.stats, record.length, self.now_ns);
        if header.is_some() || !usable {
            taken.clear();
            self.take_records(key, usize::MAX);
        } else {
            let first = std::mem::take(taken);
            self.rings.first_record = self.scan_owned(key, first);
            self.take_after_first(key);
        }
        self.touch(key);
        true
    }

    /// The client has said goodbye, or its memory is gone.
    #[cold]
    fn ring_has_ended(&mut self, key: Key) -> bool {
        let Some(connection) = self.connections.get_mut(key) else {
            return false;
        };
        let Some(ends) = &connection.out.ends else {
            return false;
        };
        if ends.segment.poisoned() {
            connection.memory_was_cut();
        } else if ends.rx.has_record() {
            // It came after we looked, before the client went.
            return true;
        } else if connection.peer_ended || self.must_wait(key) {
            return false;
        } else if let Some(connection) = self.connections.get_mut(key) {
            connection.active = true;
            connection.peer_ended = true;
        }
        freshen(&mut self.now_ns, &mut self.now_is_fresh);
        self.touch(key);
        true
    }

    /// As [`Worker::take_ring`], where a message is being gathered, or answers or requests wait.
    fn take_behind_others(&mut self, key: Key) -> bool {
        let Some(connection) = self.connections.get_mut(key) else {
            return false;
        };
        if (connection.has_waiting() || !connection.out.is_empty()) && self.must_wait(key) {
            return false;
        }
        freshen(&mut self.now_ns, &mut self.now_is_fresh);
        if let Some(connection) = self.connections.get_mut(key) {
            connection.active = true;
        }
        if !self.take_into_message(key) {
            self.take_records(key, 1);
            self.take_after_first(key);
        }
        self.touch(key);
        true
    }

    /// The first record may have been the beginning of a long message, which may have to wait for
    /// room: the records behind it are a part of it, and are left where they are.
    fn take_after_first(&mut self, key: Key) {
        let connection = self.connections.get_mut(key);
        if connection.is_some_and(|connection| connection.has_waiting()) {
            return;
        }
        if !self.take_into_message(key) {
            self.take_records(key, usize::MAX);
        }
    }

    /// Whether nothing may be taken from a ring since answers, or what came before, wait.
    #[cold]
    fn must_wait(&mut self, key: Key) -> bool {
        let outgoing_bytes_max = self.outgoing_bytes_max();
        let Some(connection) = self.connections.get_mut(key) else {
            return false;
        };
        let waiting =
            connection.has_waiting() || connection.out.buffered_bytes() > outgoing_bytes_max;
        let waits = connection.phase == Phase::Open && waiting;
        let ends = connection.out.ends.as_ref();
        let waits_for_reader = waits && connection.out.waits_for_reader(outgoing_bytes_max);
        if waits_for_reader && ends.is_some_and(|ends| ends.peer_closed()) {
            // Nobody will read them. (What waits for room, or for its turn, is still handled.)
            connection.phase = Phase::Closing;
            self.touch(key);
        }
        waits
    }

    /// Takes at most so many records, until that is enough for a round or the ring is empty, and puts
    /// what they hold into the batch. Nothing is put there that may not be used.
    #[inline]
    fn take_records(&mut self, key: Key, records_max: usize) {
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        let Some(ends) = &mut connection.out.ends else {
            return;
        };
        let taken = &mut self.rings.first_record;
        let mut corrupt = None;
        let mut records = 0;
        // Each turn takes a record of at least one byte; bounded by the budget.
        while records < records_max {
            match ends.rx.next() {
                // The first always fits.
                Ok(Some(record)) if taken.len() + record.length > ROUND_BYTES => break,
                Ok(Some(record)) => {
                    // The CRCs of several are computed together, later.
                    ends.rx.copy(&record, taken);
                    let ack = ends.rx.advance(&record);
                    ends.tx.acknowledged(ack);
                    records += 1;
                }
                Ok(None) => break,
                Err(error) => {
                    corrupt = Some(error);
                    break;
                }
            }
        }
        if records > 0 {
            let usable = connection.took(&self.stats, taken.len(), self.now_ns);
            if usable && corrupt.is_none() {
                let taken = std::mem::take(taken);
                self.rings.first_record = self.scan_owned(key, taken);
            } else {
                taken.clear();
            }
        }
        if let Some(error) = corrupt {
            self.close_corrupt(key, error);
        }
    }

    #[cold]
    pub(super) fn close_corrupt(&mut self, key: Key, error: Corrupt) {
        if let Some(connection) = self.connections.get_mut(key) {
            cut_off::damaged(connection, &error);
        }
    }

    /// Puts bytes into the batch; returns an empty buffer for the next.
    fn scan_owned(&mut self, key: Key, bytes: Vec<u8>) -> Vec<u8> {
        let chunk = self.batch.add_chunk(Chunk::Owned(bytes));
        self.scan(key, chunk);
        self.dispatcher.pool().take()
    }

    /// Tells a client that sleeps of answers, or of room.
    #[inline]
    pub(super) fn wake_client(&mut self, key: Key) {
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        let Some(ends) = &mut connection.out.ends else {
            return;
        };
        ends.wake_peer();
    }

    /// The client's process has ended, or the watch for that was taken away.
    pub(super) fn client_exited(&mut self, key: Key, ended: bool) {
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        if let Some(link) = &mut connection.shm {
            link.watching = false;
        }
        if let Some(ends) = &connection.out.ends
            && ended
        {
            // What it sent before is still taken: the flag counts once the ring is empty.
            ends.peer_is_gone();
            self.heat(key);
        }
        self.touch(key);
    }

    /// Takes a closing connection's rings away. False: the watch of its process is still armed.
    pub(super) fn detach(&mut self, key: Key) -> bool {
        self.leave_warm(key);
        let Some(connection) = self.connections.get_mut(key) else {
            return true;
        };
        let Some(link) = &mut connection.shm else {
            return true;
        };
        if let Some(ends) = connection.out.ends.take() {
            ends.close_and_wake();
            connection.out.forget();
            self.rings.hot.retain(|&hot| hot != key);
            self.rings.by_bit[link.ready_bit] = None;
            self.shared.ready_bits[self.rings.worker].give(link.ready_bit);
        }
        if link.watching {
            if !link.unwatching {
                link.unwatching = true;
                self.driver.unwatch(key);
            }
            return false;
        }
        if let Some(pidfd) = link.pidfd.take() {
            self.driver.close(OwnedFd::from(pidfd));
        }
        true
    }
}

/// Reads the clock, unless that was done after the last round already, which found nothing.
#[inline]
fn freshen(now_ns: &mut u64, is_fresh: &mut bool) {
    if !*is_fresh {
        *now_ns = clock::now_ns();
        *is_fresh = true;
    }
}
