//! Shared-memory connections in the worker's loop: taking records out of their rings.
//!
//! A hot ring, one that had something lately, is polled in every round. The client of a cold one sets its
//! bit in the control segment (its *ready bit*) and rings the worker's doorbell, so that a thousand quiet
//! connections cost nothing. [`super::heat`] says which are which.
//!
//! [`Worker::take_ring`] is the way of a request that comes alone, and has the lowest latency: from the
//! ring to its handler, and the answer straight into the other ring.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use super::batch::Chunk;
use super::connection::{Connection, Phase};
use super::cut_off;
use super::heat::HOT_MAX;
use super::vec_pool::NEW_BYTES;
use super::{KEYS_AT_START, Worker};
use crate::shm::{Control, Corrupt, RECORD_MAX, ServerEnd};
use crate::stats::{Direction, Transport, WorkerStats};
use crate::sys::affinity;
use crate::sys::clock;
use crate::sys::pause;
use crate::sys::process::PidFd;
use crate::uring::Key;
use crate::wire::{Flags, HEADER_BYTES};

/// After this many rounds without work, the hot rings are looked at for ones to become cold.
const IDLE_ROUNDS: u32 = 256;
/// After this many rounds with work, the warm rings are looked at for pages to be given back.
const BUSY_ROUNDS: u32 = 8192;
/// How often the hot rings are polled between two rounds, if they are few.
const WATCH_LOOKS: u32 = 8;
/// With more hot rings than this, they are not polled between rounds.
const WATCHED_MAX: usize = 4;
/// The most bytes that one round takes from a ring after the first record, so that no ring starves the
/// others. Buffers that grew in a round are no longer than this either, so that the pool keeps them, and
/// they do for short frames too.
pub(super) const ROUND_BYTES: usize = 32 * 1024;
/// Two records of this size fit into the part of a ring that lies in the segment's first page.
const FIRST_PAGE_BYTES: u64 = 800;

const _: () = assert!(RECORD_MAX <= ROUND_BYTES);

/// What a worker knows of a shared-memory connection, besides its rings.
#[derive(Debug)]
pub(super) struct ShmState {
    /// The client's process. `None` once given to the driver for closing.
    pidfd: Option<PidFd>,
    /// The io_uring watches the process: an event will tell of its end.
    watching: bool,
    /// The watch was asked to end.
    unwatching: bool,
    /// The bit by which the client says that its ring has something.
    ready_bit: usize,
    /// Its ring is polled in every round.
    pub(super) hot: bool,
    /// The index in [`Rings::warm`], if it is there.
    pub(super) warm: Option<usize>,
    /// When its ring last had a record.
    pub(super) last_record_ns: u64,
    /// Bytes received in records too long for the first page, since pages were given back.
    pub(super) bytes_since: u64,
}

impl Connection {
    /// Counts bytes that were taken from the ring. False if they may not be used: the connection takes no
    /// requests any more, or its memory was cut short.
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

    /// Closes a connection whose segment has lost memory: what is read there now are zeros.
    #[cold]
    fn memory_was_cut(&mut self) {
        let why = "its file was cut short, or /dev/shm has no room for it";
        cut_off::damaged(self, &why);
    }
}

/// The rings of all connections of a worker.
pub(super) struct Rings {
    /// The worker's number: its place in the control segment.
    worker: usize,
    /// `None` if shared memory is not offered.
    control: Option<Arc<Control>>,
    /// Connections by their ready bits.
    pub(super) by_bit: Vec<Option<Key>>,
    /// Connections whose rings are polled in every round.
    pub(super) hot: Vec<Key>,
    /// Cold connections whose pages were not given back yet.
    pub(super) warm: Vec<Key>,
    /// The index in `warm` that was looked at last.
    pub(super) warm_next: usize,
    /// Rounds without work since there was some, or since the hot rings were last looked at.
    idle_rounds: u32,
    /// Rounds with work since warm rings were last looked at.
    busy_rounds: u32,
    /// The ready bits that were set; empty between rounds.
    rung: Vec<usize>,
    /// The buffer into which a ring's first record is copied; empty in between.
    pub(super) first_record: Vec<u8>,
}

impl Rings {
    pub(super) fn new(worker: usize, control: Option<Arc<Control>>) -> Rings {
        Rings {
            worker,
            control,
            by_bit: Vec::new(),
            hot: Vec::with_capacity(HOT_MAX + 1),
            warm: Vec::with_capacity(KEYS_AT_START),
            warm_next: 0,
            idle_rounds: 0,
            busy_rounds: 0,
            rung: Vec::with_capacity(KEYS_AT_START),
            first_record: Vec::with_capacity(NEW_BYTES),
        }
    }

    /// Tells clients on which CPU this worker runs, so that they do not spin there.
    pub(super) fn tell_cpu(&self) {
        if let Some(control) = &self.control {
            control.set_worker_cpu(self.worker, affinity::current_cpu());
        }
    }

    /// Whether a client that was woken waits on the CPU on which this worker is. It may have slept only because it took
    /// this worker to be on its CPU, from which Linux has moved it since: so it is told anew.
    #[inline]
    pub(super) fn needs_our_cpu(&self, woken_on: Option<u32>) -> bool {
        woken_on.is_some_and(|cpu| {
            self.tell_cpu();
            affinity::current_cpu() == Some(cpu)
        })
    }

    /// Whether the client of a cold ring has set its ready bit.
    #[inline]
    pub(super) fn have_rung(&self) -> bool {
        self.control
            .as_ref()
            .is_some_and(|control| control.has_ready(self.worker))
    }
}

impl Worker {
    /// Serves a shared-memory connection, whose place among `max_connections` is claimed already.
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
        // Hot from the start: the client may have written something before.
        self.heat(key);
        self.touch(key);
    }

    /// Takes what is in the hot rings and in those whose clients rang. Returns whether there was anything, or one rang.
    #[inline]
    pub(super) fn take_rings(&mut self) -> bool {
        let rung = self.rings.have_rung();
        if rung {
            self.take_rung();
        }
        // Whether requests may have waited, so that there may be several, and PRIORITY counts: because the
        // last round was long, or for a ring before theirs in this round.
        let mut may_have_waited = std::mem::take(&mut self.round_was_long);
        let mut any = false;
        let mut index = 0;
        // A ring that becomes cold leaves the list, so the index moves only past those that stay.
        while index < self.rings.hot.len() {
            let key = self.rings.hot[index];
            any |= self.take_ring(key, may_have_waited);
            may_have_waited |= any;
            index += usize::from(self.rings.hot.get(index) == Some(&key));
        }
        if any {
            self.rings.idle_rounds = 0;
            self.rings.busy_rounds += 1;
            if self.rings.busy_rounds >= BUSY_ROUNDS {
                self.rings.busy_rounds = 0;
                // A worker that never sleeps may be moved to another CPU too.
                self.rings.tell_cpu();
                self.give_old_pages_back();
            }
        } else {
            self.rings.idle_rounds += 1;
            let idle = self.rings.hot.is_empty() && self.rings.warm.is_empty();
            if self.rings.idle_rounds >= IDLE_ROUNDS && !idle {
                self.rings.idle_rounds = 0;
                self.rings.tell_cpu();
                self.cool_old_rings();
                self.give_old_pages_back();
            }
        }
        // To move answers on for which there is room now is work too: it leaves buffers that are to be given back.
        any || rung
    }

    /// Between two rounds without work: polls the hot rings a few times and nothing else, since a whole
    /// round takes as long as a message.
    #[inline]
    pub(super) fn watch_hot_rings(&mut self) {
        if self.hot.is_some() || self.rings.hot.is_empty() || self.rings.hot.len() > WATCHED_MAX {
            return std::hint::spin_loop();
        }
        for _ in 0..WATCH_LOOKS {
            // One wait for all rings, or each would be looked at the later the more there are.
            let mut pauses = 1;
            for &key in &self.rings.hot {
                let ends = self
                    .connections
                    .get_mut(key)
                    .and_then(|connection| connection.out.ends.as_ref());
                let Some(ends) = ends.filter(|ends| !ends.rx.poll()) else {
                    return;
                };
                pauses = pauses.max(ends.rx.pauses());
            }
            pause::pause(pauses);
        }
    }

    /// Makes the rings hot whose clients have rung.
    fn take_rung(&mut self) {
        let mut rung = std::mem::take(&mut self.rings.rung);
        if let Some(control) = &self.rings.control {
            control.take_ready(self.rings.worker, |bit| rung.push(bit));
        }
        for bit in rung.drain(..) {
            if let Some(key) = self.rings.by_bit.get(bit).copied().flatten() {
                self.heat(key);
                // The client may have rung because it made room for answers that wait.
                self.touch(key);
            }
        }
        self.rings.rung = rung;
    }

    /// Takes what is in one ring. Returns whether there was anything.
    ///
    /// A first record that is one whole frame with the right CRC is handled at once: without a batch, and
    /// before the next record is looked for, since with one request in flight that look would wait for a
    /// cache line which holds nothing yet. Not if it may have waited: then there may be several requests, and
    /// those with PRIORITY go first.
    ///
    /// On this way the connection is looked up once, and nothing is counted before the answer has left.
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
        ends.tx.ask_ahead();
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

    /// The ring is empty, and its client has gone or its memory was cut short. Returns whether something is to
    /// be done in this round.
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
            // A record that came after the look, before the client went.
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

    /// As [`Worker::take_ring`], if a message is being gathered, or answers or requests wait.
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

    /// Takes what follows the first record. If that was the beginning of a long message which has to wait
    /// for room, the records behind it are part of the message and stay in the ring.
    fn take_after_first(&mut self, key: Key) {
        let connection = self.connections.get_mut(key);
        if connection.is_some_and(|connection| connection.has_waiting()) {
            return;
        }
        if !self.take_into_message(key) {
            self.take_records(key, usize::MAX);
        }
    }

    /// Whether nothing may be taken from a ring, because answers wait to be read, or earlier bytes to be
    /// handled. If the client is gone, so that nobody will read them, the connection is closed.
    #[cold]
    fn must_wait(&mut self, key: Key) -> bool {
        let outgoing_bytes_max = self.outgoing_bytes_max();
        let Some(connection) = self.connections.get_mut(key) else {
            return false;
        };
        let waits = connection.phase == Phase::Open && connection.is_choked(outgoing_bytes_max);
        let ends = connection.out.ends.as_ref();
        if waits && ends.is_some_and(|ends| ends.peer_closed()) {
            if connection.out.waits_for_reader(outgoing_bytes_max) {
                connection.phase = Phase::Closing;
                self.touch(key);
            } else if connection.waits_for_room && !connection.out.is_empty() {
                // What waits for room, or for its turn, is still handled. But the answers before it may hold
                // the room that it waits for.
                connection.out.forget();
                self.touch(key);
            }
        }
        waits
    }

    /// Takes up to `records_max` records, and no more than ROUND_BYTES, and puts their bytes into the batch
    /// if they may be used.
    #[inline]
    fn take_records(&mut self, key: Key, records_max: usize) {
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        let Some(ends) = &mut connection.out.ends else {
            return;
        };
        let is_gathering = connection.assembler.missing_bytes().is_some();
        let taken = &mut self.rings.first_record;
        let mut corrupt = None;
        let mut records = 0;
        // Each pass takes a record of at least one byte; bounded by ROUND_BYTES.
        while records < records_max {
            match ends.rx.next() {
                // A single record always fits.
                Ok(Some(record)) if taken.len() + record.length > ROUND_BYTES => break,
                // The end of a long message, of which a part was taken: `take_into_message` takes it.
                Ok(Some(record)) if record.ends_with_crc() && (records > 0 || is_gathering) => {
                    break;
                }
                Ok(Some(record)) => {
                    // Their CRCs are computed later, several at a time.
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

    /// Puts bytes into the batch. Returns an empty buffer for the next.
    fn scan_owned(&mut self, key: Key, bytes: Vec<u8>) -> Vec<u8> {
        let chunk = self.batch.add_chunk(Chunk::Owned(bytes));
        self.scan(key, chunk);
        self.dispatcher.pool().take()
    }

    /// The client's process has ended, or (`ended` false) the watch on it was taken away.
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
            // What it sent before is still handled: the flag counts only once the ring is empty.
            ends.peer_is_gone();
            self.heat(key);
        }
        self.touch(key);
    }

    /// Gives up a closing connection's rings and the watch on its process. False if the watch has not ended
    /// yet; then this is called again.
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

/// Reads the clock, unless that was done since the last round, which found nothing.
#[inline]
fn freshen(now_ns: &mut u64, is_fresh: &mut bool) {
    if !*is_fresh {
        *now_ns = clock::now_ns();
        *is_fresh = true;
    }
}
