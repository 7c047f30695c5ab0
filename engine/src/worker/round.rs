//! One round of the worker's loop: take what all sources have, handle it, send the answers.

use std::time::Duration;

use super::Worker;
use super::batch::{Chunk, Item, Run};
use super::connection::{Connection, Phase, Waiting};
use super::deferred::{Answer, Body};
use super::handler::answer_flags;
use super::inbox::Message;
use crate::stats::Transport;
use crate::sys::clock;
use crate::uring::Key;
use crate::wire::accepted_header;

/// The most messages from other threads that one round takes.
const MESSAGES_MAX: usize = 256;
/// No more messages are taken once the answers among them have this many bytes: each is copied and its
/// CRC computed, while others wait.
const MESSAGES_BYTES_MAX: usize = 1024 * 1024;
/// A round that took this long is long: requests in the rings may have waited for it.
const LONG_ROUND_NS: u64 = 10_000;

impl Worker {
    /// Does one round. Returns whether there was work.
    pub(super) fn round(&mut self) -> bool {
        self.call_waiters();
        // What had to wait goes before what is new, or it might wait for ever.
        let mut worked = self.resume();
        // Then the rings: `watch_hot_rings` has most likely just seen something there.
        worked |= self.take_rings();
        // Of TCP, first what the io_uring has received. Only if that is nothing may `take_hot` receive
        // more by a call of its own, or bytes would overtake each other.
        let others = self.take_events() || self.take_hot();
        if others | self.take_messages() {
            self.now_ns = clock::now_ns();
            worked = true;
        }
        self.handle_batch();
        if self.drain_asked_anew() {
            self.start_draining();
            worked = true;
        }
        // Before the sweep: what was just done may have been what a deadline is for.
        self.settle_touched();
        // Before time passes that is none of theirs.
        self.record_latencies();
        self.wait_for_others();
        self.arm_starved();
        if self.needs_sweeps() && self.now_ns >= self.next_sweep_ns {
            self.sweep();
            self.settle_touched();
        }
        // What waits for the next round must not sleep until an event comes.
        worked || !self.resumed.is_empty() || !self.starved.is_empty()
    }

    /// Takes messages of other threads out of the inbox. Returns whether there were any.
    fn take_messages(&mut self) -> bool {
        if self.inbox.is_empty() {
            // It has looked all the same.
            if self.inbox.awaits_some() {
                self.inbox.pong();
            }
            return false;
        }
        let mut bytes = 0;
        // All that this worker's handlers have sent, before they run again: if they sent more in a round than a
        // round took, that would grow without a bound, and none of its readers would be to blame. The same goes for
        // what other workers' handlers have sent beyond the queue. And for what anybody has sent while a handler took
        // long: if handlers always do, others' answers would wait behind that for seconds.
        let least = self.inbox.count_at_once();
        for count in 0..least.max(MESSAGES_MAX) {
            if count >= least && bytes > MESSAGES_BYTES_MAX {
                break;
            }
            match self.inbox.take() {
                Some(Message::Tcp(fd)) => self.add_tcp(fd),
                Some(Message::Shm(end)) => self.add_shm(*end),
                Some(Message::Answer(answer)) => {
                    bytes += answer.body.len();
                    self.deliver(answer);
                }
                Some(Message::Ping) => {}
                #[cfg(test)]
                Some(Message::Panic) => panic!("a test asked for it"),
                None => break,
            }
        }
        self.inbox.pong();
        true
    }

    /// Handles nothing more until others have taken what this worker's handlers have sent them and was too much for
    /// their queues. Meanwhile it takes what they send, so that no two wait for each other.
    fn wait_for_others(&mut self) {
        let mut pause_us = 1;
        // Bounded: see `Inbox::patience`.
        while self.inbox.waits_for_others() {
            self.driver.turn();
            std::thread::sleep(Duration::from_micros(pause_us));
            pause_us = (pause_us * 2).min(1_000);
            self.now_ns = clock::now_ns();
            self.take_messages();
            self.settle_touched();
            // Requests may have come meanwhile.
            self.round_was_long = true;
        }
    }

    /// Encodes an answer that came from another thread, unless nobody wants it any more.
    fn deliver(&mut self, answer: Answer) {
        let Answer { to, body } = answer;
        let Some(connection) = self.connections.get_mut(to.key) else {
            return;
        };
        if let Some(shared) = &connection.out.shared {
            shared.taken(&body);
        }
        let last = !matches!(body, Body::Part(_));
        let cancelled = connection.out.is_cancelled(to.number);
        if last {
            connection.out.was_owed(to.number);
        }
        if cancelled {
            return self.touch(to.key);
        }
        // After a refusal nothing more is sent: our side is shut down, or about to be.
        let may_speak = matches!(connection.phase, Phase::Open | Phase::Finishing);
        let (out, pool) = (&mut connection.out, self.dispatcher.pool());
        if to.wanted && may_speak {
            match &body {
                Body::Part(payload) | Body::Last(payload) => out.frame(
                    pool,
                    to.version,
                    answer_flags(to.priority, last),
                    to.msg_type,
                    to.msg_id,
                    payload,
                ),
                Body::Error(code, text) => {
                    out.error(pool, to.version, *code, text, to.msg_id, true)
                }
                Body::Nothing => {}
            }
        }
        if let Body::Error(code, _) = &body {
            self.stats.error(*code);
        }
        if last {
            let nanos = clock::now_ns().saturating_sub(to.arrived_ns);
            self.stats.answered(to.transport, nanos, 1);
        }
        self.touch(to.key);
    }

    /// Verifies and handles the frames of this round, those with PRIORITY first.
    pub(super) fn handle_batch(&mut self) {
        if self.batch.items.is_empty() && self.batch.chunks.is_empty() {
            return;
        }
        self.verify();
        self.turns.begin(self.batch.frames);
        if self.batch.has_priority {
            self.rank_items();
            self.dispatch_items(true);
        }
        self.dispatch_items(false);
        self.batch.items.clear();
        self.batch.frames = 0;
        self.batch.has_priority = false;
        self.dispatcher.inflated_bytes = 0;
        for chunk in self.batch.chunks.drain(..) {
            match chunk {
                Chunk::Buffer(received) => self.driver.recycle(received),
                Chunk::Owned(bytes) => self.dispatcher.pool().give(bytes),
            }
        }
    }

    fn dispatch_items(&mut self, priority_only: bool) {
        for index in 0..self.batch.items.len() {
            match self.batch.items[index] {
                Item::Frames(run) => self.dispatch_run(&run, priority_only),
                Item::Refused { .. } if priority_only => {}
                Item::Refused {
                    key,
                    refusal,
                    msg_id,
                } => {
                    let Some(connection) = self.connections.get_mut(key) else {
                        continue;
                    };
                    if !connection.takes_requests() {
                        continue;
                    }
                    // The frames before it were stashed, and are answered first.
                    if connection.has_stash() {
                        let waiting = connection.waiting_mut();
                        waiting.refusal = Some((refusal, msg_id));
                        waiting.behind = Vec::new();
                        continue;
                    }
                    self.dispatcher
                        .refuse_connection(connection, &refusal, msg_id);
                }
                Item::Done => {}
            }
        }
    }

    /// Handles the frames of a run, if this is the pass for them: one goes over those with PRIORITY and one
    /// over the others. What the connection may not have handled now is stashed.
    fn dispatch_run(&mut self, run: &Run, priority_only: bool) {
        if run.goes_first != priority_only {
            return;
        }
        let outgoing_bytes_max = self.outgoing_bytes_max();
        let Some(connection) = self.connections.get_mut(run.key) else {
            return;
        };
        let bytes = self.batch.run(run, &self.driver);
        if !connection.takes_requests() {
            return;
        }
        let first = accepted_header(run.version, bytes);
        match self.batch.frames {
            1 => connection.out.stop_gathering(),
            _ => connection
                .out
                .gather(self.batch.bytes_beside(run, &self.driver)),
        }
        let mut handle = |connection: &mut Connection, bytes| {
            self.dispatcher.run(
                &self.shared.handlers,
                run.key,
                connection,
                &first,
                (bytes, run.frame_bytes),
                (self.now_ns, outgoing_bytes_max),
            )
        };
        let mut handled = 0;
        if !connection.has_stash() && !self.turns.are_watched() {
            handled = handle(connection, bytes);
        } else if !connection.has_stash() {
            self.turns.of(run.key, first.msg_type);
            // Each pass handles at least one frame, or ends the loop.
            while handled < run.frames() && self.turns.may_go_on(connection) {
                let frames = self.turns.frames().min(run.frames() - handled);
                let next = &bytes[handled * run.frame_bytes..][..frames * run.frame_bytes];
                let done = handle(connection, next);
                handled += done;
                self.turns.took(connection, done);
                if done < frames || connection.has_stash() {
                    break;
                }
            }
        }
        // Once a frame has to wait, those behind it wait too, so that they stay in order.
        let behind = &bytes[handled * run.frame_bytes..];
        if !behind.is_empty() && connection.takes_requests() {
            connection.waiting_mut().stash.extend_from_slice(behind);
        }
    }

    /// Resumes connections of this worker for whose long message there is room in the budget now.
    fn call_waiters(&mut self) {
        let mut called = false;
        // Bounded by the length of the line: no connection of this worker joins it meanwhile.
        while let Some((key, bytes)) = self.shared.room.call(self.index) {
            called = true;
            match self.connections.get_mut(key) {
                Some(connection) if connection.takes_requests() => {
                    connection.waits_for_room = false;
                    match connection.has_stash() {
                        // A whole frame in the stash, to be decompressed.
                        true => connection.handling_bytes += bytes,
                        false => connection.reserve(bytes, self.now_ns),
                    }
                    self.resumed.push(key);
                }
                _ => self.shared.release_bytes(bytes),
            }
        }
        // The next in line may be another worker's. It was not told so far, since it was not the first.
        if called {
            self.shared.tell_who_can_go();
        }
    }

    /// Takes bytes that had to wait and need not any longer. Returns whether there were any.
    fn resume(&mut self) -> bool {
        if self.resumed.is_empty() {
            return false;
        }
        self.now_ns = clock::now_ns();
        let mut resumed = std::mem::take(&mut self.resumed);
        for key in resumed.drain(..) {
            let Some(connection) = self.connections.get_mut(key) else {
                continue;
            };
            if connection.takes_requests() {
                self.resume_one(key);
                // Its ring may have become cold meanwhile, with the rest of the message in it.
                self.heat(key);
            }
            self.touch(key);
        }
        self.resumed = resumed;
        true
    }

    /// Scans what waits on a connection, in the order in which it arrived: the stashed frames, then
    /// (still in the assembler) the frame being gathered, the bytes behind it, the refusal.
    fn resume_one(&mut self, key: Key) {
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        let Some(waiting) = &mut connection.waiting else {
            return;
        };
        // The empty `Waiting` stays until the end of the round, so that nothing more is received before it
        // is known whether some of this has to wait again: or what waits would grow with every round.
        let Waiting {
            stash,
            behind,
            refusal,
        } = std::mem::take(&mut **waiting);
        if !stash.is_empty() {
            let gathering = std::mem::take(&mut connection.assembler);
            let chunk = self.batch.add_chunk(Chunk::Owned(stash));
            self.scan(key, chunk);
            if let Some(connection) = self.connections.get_mut(key) {
                connection.assembler = gathering;
            }
        }
        if !behind.is_empty() {
            let chunk = self.batch.add_chunk(Chunk::Owned(behind));
            self.scan(key, chunk);
        }
        if let Some((refusal, msg_id)) = refusal {
            self.refuse(key, refusal, msg_id);
        }
    }

    /// Records latencies, after the answers are handed over: one time for all answers of the round.
    fn record_latencies(&mut self) {
        let answered = std::mem::take(&mut self.dispatcher.answered_inline);
        if answered == [0, 0] {
            return;
        }
        let nanos = clock::now_ns().saturating_sub(self.now_ns);
        self.round_was_long = nanos >= LONG_ROUND_NS;
        for transport in Transport::ALL {
            let answered = answered[transport.index()];
            if answered > 0 {
                self.stats.answered(transport, nanos, answered);
            }
        }
    }
}
