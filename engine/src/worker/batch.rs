//! The frames of one round: found in the bytes that arrived and verified, several at a time. `round.rs`
//! then handles them.
//!
//! Three words recur here. A *chunk* is a piece of memory in which bytes of one connection lie: a receive
//! buffer, or a buffer of our own. A *run* is one or more whole frames that lie one behind the other in a
//! chunk and begin alike, with the same flags, type and length, so that much is looked at once for all of
//! them. A *row* is a run of several frames whose CRCs were computed and found right as they were found.
//! Frames that are no row are verified later, mixed, several at a time.

use std::sync::atomic::Ordering;

use super::Worker;
use super::deadlines::PROGRESS_BYTES;
use crate::config::SMALL_FRAME_BYTES;
use crate::uring::{Driver, Key, Received};
use crate::wire::{
    self, Flags, GoodFirst, Header, ProtocolVersion, Refusal, Scanned, VERIFY_BATCH,
    accepted_header, legacy, msg_type,
};

/// How many runs the list has room for from the start. A round with more allocates once.
const RUNS: usize = 256;

/// Memory in which bytes of a connection lie for one round.
pub(super) enum Chunk {
    /// A receive buffer, given back after the round.
    Buffer(Received),
    /// A frame gathered from pieces, or bytes that had to wait.
    Owned(Vec<u8>),
}

impl Chunk {
    #[inline]
    fn bytes<'a>(&'a self, driver: &'a Driver) -> &'a [u8] {
        match self {
            Chunk::Buffer(received) => driver.bytes(received),
            Chunk::Owned(bytes) => bytes,
        }
    }
}

/// What was found in a connection's bytes, in the order in which it arrived.
pub(super) enum Item {
    Frames(Run),
    /// From here on the connection's bytes are no acceptable frame.
    Refused {
        key: Key,
        refusal: Refusal,
        msg_id: u64,
    },
    /// Frames behind a damaged one: not to be handled.
    Done,
}

/// Whole frames of one connection that lie one behind the other in a chunk and begin alike: with the
/// same flags, type and length. Their headers were checked. Only the ids and the CRCs are read again,
/// frame by frame.
#[derive(Clone, Copy)]
pub(super) struct Run {
    pub(super) key: Key,
    pub(super) version: ProtocolVersion,
    /// Their CRCs were found to be right. True of every run of more than one frame.
    verified: bool,
    chunk: u32,
    /// Where in the chunk the first begins, in bytes.
    start: u32,
    /// How many frames.
    count: u32,
    /// Bytes of each frame.
    pub(super) frame_bytes: usize,
    /// They have PRIORITY and may use it: see [`Worker::rank_items`].
    pub(super) goes_first: bool,
}

pub(super) struct Batch {
    pub(super) items: Vec<Item>,
    pub(super) chunks: Vec<Chunk>,
    /// How many frames there are in all runs.
    pub(super) frames: usize,
    /// Some of them ask for PRIORITY.
    pub(super) has_priority: bool,
}

impl Run {
    pub(super) fn frames(&self) -> usize {
        self.count as usize
    }
}

impl Batch {
    pub(super) fn new() -> Batch {
        Batch {
            items: Vec::with_capacity(RUNS),
            chunks: Vec::with_capacity(64),
            frames: 0,
            has_priority: false,
        }
    }

    pub(super) fn add_chunk(&mut self, chunk: Chunk) -> u32 {
        self.chunks.push(chunk);
        (self.chunks.len() - 1) as u32
    }

    fn add_run(&mut self, header: &Header, run: Run) {
        self.frames += run.frames();
        self.has_priority |= header.flags.contains(Flags::PRIORITY);
        self.items.push(Item::Frames(run));
    }

    fn add_frame(
        &mut self,
        key: Key,
        version: ProtocolVersion,
        header: Header,
        chunk: u32,
        start: usize,
    ) {
        let run = Run {
            key,
            version,
            verified: false,
            chunk,
            start: start as u32,
            count: 1,
            frame_bytes: wire::header_bytes(version) + header.length as usize,
            goes_first: false,
        };
        self.add_run(&header, run);
    }

    /// Whether frames of this connection were found in this round.
    fn has_any_of(&self, key: Key) -> bool {
        let of_it = |item: &Item| matches!(item, Item::Frames(run) if run.key == key);
        self.items.iter().any(of_it)
    }

    /// Whether one of those is compressed.
    fn has_compressed_of(&self, key: Key, driver: &Driver) -> bool {
        self.items.iter().any(|item| match item {
            Item::Frames(run) if run.key == key => {
                let first = accepted_header(run.version, self.run(run, driver));
                first.flags.contains(Flags::COMPRESSED)
            }
            _ => false,
        })
    }

    /// Adds a frame whose CRC is right, which fills its chunk.
    pub(super) fn add_verified(&mut self, key: Key, header: Header, chunk: u32) {
        self.add_frame(key, ProtocolVersion::V2, header, chunk, 0);
        if let Some(Item::Frames(run)) = self.items.last_mut() {
            run.verified = true;
        }
    }

    /// Adds the whole version 2 frames that lie in a chunk from `start` on, as runs. Returns how many
    /// frames there are, and where they end.
    fn add_whole_frames(
        &mut self,
        driver: &Driver,
        key: Key,
        chunk: u32,
        start: usize,
        max_message_bytes: u32,
    ) -> (usize, usize) {
        let (mut frames, mut at) = (0, start);
        let mut good = GoodFirst::new();
        // Each pass takes the bytes of a run.
        loop {
            let bytes = &self.chunks[chunk as usize].bytes(driver)[at..];
            let Some(header) = wire::front_frame(bytes, max_message_bytes, &mut good) else {
                return (frames, at);
            };
            let frame_bytes = wire::HEADER_BYTES + header.length as usize;
            let good = wire::good_row(bytes, &header);
            let count = good.max(1);
            let run = Run {
                key,
                version: ProtocolVersion::V2,
                verified: good > 0,
                chunk,
                start: at as u32,
                count: count as u32,
                frame_bytes,
                goes_first: false,
            };
            self.add_run(&header, run);
            frames += count;
            at += count * frame_bytes;
        }
    }

    /// The bytes of a run.
    #[inline]
    pub(super) fn run<'a>(&'a self, run: &Run, driver: &'a Driver) -> &'a [u8] {
        &self.bytes(run.chunk, driver)[run.start as usize..][..run.frames() * run.frame_bytes]
    }

    /// How many bytes arrived together with a run, its own included.
    pub(super) fn bytes_beside(&self, run: &Run, driver: &Driver) -> usize {
        self.bytes(run.chunk, driver).len()
    }

    pub(super) fn bytes<'a>(&'a self, chunk: u32, driver: &'a Driver) -> &'a [u8] {
        self.chunks[chunk as usize].bytes(driver)
    }
}

impl Worker {
    /// Finds the frames in a chunk that arrived on a connection, and begins to gather a frame of which only
    /// a part is there. A long one needs room in the budget first; without it, the bytes wait.
    pub(super) fn scan(&mut self, key: Key, chunk: u32) {
        let max = self.shared.limits.max_message_bytes;
        let chunk = self.join_cut_header(key, chunk);
        let mut at = 0;
        // Each pass takes at least one byte, or finds out the version, or ends the loop.
        loop {
            let Some(connection) = self.connections.get_mut(key) else {
                return;
            };
            let bytes = &self.batch.bytes(chunk, &self.driver)[at..];
            let Some(&first) = bytes.first() else { return };
            if connection.has_bad_frame {
                return;
            }
            let version = match connection.session.version {
                Some(version) => version,
                None => match ProtocolVersion::detect(first) {
                    Some(version) => {
                        connection.session.version = Some(version);
                        if let (ProtocolVersion::V1, Some(peer)) = (version, connection.peer) {
                            self.shared.registry.legacy_client(peer.ip());
                        }
                        continue;
                    }
                    None => {
                        let refusal = Refusal::bad_magic(bytes);
                        return self.refuse(key, refusal, 0);
                    }
                },
            };
            if version == ProtocolVersion::V1 && !self.shared.legacy.load(Ordering::Relaxed) {
                return self.refuse_legacy(key, chunk, at);
            }
            if version == ProtocolVersion::V2 && !connection.assembler.is_mid_frame() {
                let (frames, end) = self
                    .batch
                    .add_whole_frames(&self.driver, key, chunk, at, max);
                if frames > 0 {
                    connection.progress_bytes += frames as u64 * PROGRESS_BYTES;
                    at = end;
                    continue;
                }
            }
            // Version 1, or a frame that is cut, or none.
            let bytes = &self.batch.bytes(chunk, &self.driver)[at..];
            if !connection.assembler.is_mid_frame() {
                match wire::scan(version, bytes, max) {
                    Ok(Scanned::Frame {
                        header,
                        frame_bytes,
                    }) => {
                        connection.progress_bytes += PROGRESS_BYTES;
                        self.batch.add_frame(key, version, header, chunk, at);
                        at += frame_bytes;
                        continue;
                    }
                    Ok(Scanned::Part {
                        frame_bytes: Some(frame_bytes),
                    }) if frame_bytes > SMALL_FRAME_BYTES && connection.reserved_bytes == 0 => {
                        let before = self.batch.has_any_of(key);
                        if !connection.session.is_admitted() {
                            // A HANDSHAKE may be among the frames before it, which are handled first.
                            if before {
                                connection.waiting_mut().behind.extend_from_slice(bytes);
                                return;
                            }
                            return self.refuse(key, Refusal::NotAuthenticated, 0);
                        }
                        let room_bytes = frame_bytes as u64;
                        // A compressed frame before it may have to wait for room itself, and is handled
                        // first: no connection holds room, or stands in line, for two messages.
                        let compressed_before =
                            before && self.batch.has_compressed_of(key, &self.driver);
                        if compressed_before || !self.shared.room.reserve(room_bytes) {
                            connection.waiting_mut().behind.extend_from_slice(bytes);
                            if !before {
                                connection.waits_for_room = true;
                                self.shared.room.wait(self.index, key, room_bytes);
                            }
                            return;
                        }
                        connection.reserve(room_bytes, self.now_ns);
                    }
                    Ok(Scanned::Part { .. }) => {}
                    Err(refusal) => {
                        let msg_id = legacy::msg_id(version, bytes);
                        return self.refuse(key, refusal, msg_id);
                    }
                }
            }
            if !connection.assembler.is_mid_frame() {
                let pool = self.dispatcher.pool();
                let long = connection.reserved_bytes > 0;
                // A peer may stop in the middle of a frame, so a buffer lent for a short one is small.
                let buffer = if long {
                    pool.take_for(connection.reserved_bytes as usize)
                } else {
                    pool.take_small(SMALL_FRAME_BYTES)
                };
                connection.assembler.lend(buffer);
            }
            match connection.assembler.push(version, bytes, max) {
                Ok((taken, complete)) => {
                    at += taken;
                    if let Some(header) = complete {
                        let frame = connection.assembler.take();
                        connection.message_complete();
                        let gathered = self.batch.add_chunk(Chunk::Owned(frame));
                        self.batch.add_frame(key, version, header, gathered, 0);
                    }
                }
                Err(refusal) => {
                    let msg_id = legacy::msg_id(version, connection.assembler.gathered());
                    return self.refuse(key, refusal, msg_id);
                }
            }
        }
    }

    /// If the last bytes of the connection ended within a header, puts them before this chunk: only with the
    /// whole header is it known how much room the frame needs. Returns the chunk to be scanned.
    fn join_cut_header(&mut self, key: Key, chunk: u32) -> u32 {
        let connection = self.connections.get_mut(key);
        let cut = connection.and_then(|connection| connection.assembler.take_cut_header());
        let Some(mut joined) = cut else { return chunk };
        joined.extend_from_slice(self.batch.bytes(chunk, &self.driver));
        self.batch.add_chunk(Chunk::Owned(joined))
    }

    /// Refuses a version 1 connection where those are not served: in version 1, and with the request's id,
    /// so not before its header is there.
    fn refuse_legacy(&mut self, key: Key, chunk: u32, at: usize) {
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        let bytes = &self.batch.bytes(chunk, &self.driver)[at..];
        let version = ProtocolVersion::V1;
        let pushed = connection.assembler.push(version, bytes, u32::MAX);
        let refusal = match pushed {
            Err(refusal @ (Refusal::BadMagic { .. } | Refusal::VersionMismatch { .. })) => refusal,
            // Whatever else may be wrong with the header, the version is what is named.
            _ if connection.assembler.gathered().len() < legacy::HEADER_BYTES => return,
            _ => Refusal::VersionMismatch { got: 1 },
        };
        let msg_id = legacy::msg_id(version, connection.assembler.gathered());
        self.refuse(key, refusal, msg_id);
    }

    /// Notes that a connection's bytes from here on are no acceptable frame. Its peer is told after the
    /// frames before them were handled.
    pub(super) fn refuse(&mut self, key: Key, refusal: Refusal, msg_id: u64) {
        if let Some(connection) = self.connections.get_mut(key) {
            connection.has_bad_frame = true;
        }
        self.batch.items.push(Item::Refused {
            key,
            refusal,
            msg_id,
        });
    }

    /// Checks the CRCs of the frames that are no row. A bad one becomes a refusal, and those behind it on
    /// the same connection are dropped, since it is not known for sure where they begin.
    pub(super) fn verify(&mut self) {
        let mut next = 0;
        // Each pass moves on by at least one item, or ends the loop.
        loop {
            let mut frames: [&[u8]; VERIFY_BATCH] = [&[]; VERIFY_BATCH];
            let mut places = [0; VERIFY_BATCH];
            let mut count = 0;
            while count < VERIFY_BATCH
                && let Some(item) = self.batch.items.get(next)
            {
                if let Item::Frames(run) = item
                    && !run.verified
                    && run.version == ProtocolVersion::V2
                {
                    debug_assert_eq!(run.count, 1);
                    frames[count] = self.batch.run(run, &self.driver);
                    places[count] = next;
                    count += 1;
                }
                next += 1;
            }
            if count == 0 {
                return;
            }
            if let Err((bad, refusal)) = wire::verify_batch(&frames[..count]) {
                self.refuse_damaged(places[bad], refusal);
                next = places[bad] + 1;
            }
        }
    }

    /// Finds out which of the frames that ask for PRIORITY may have it: within a connection, none may
    /// overtake a frame that it depends on.
    #[cold]
    pub(super) fn rank_items(&mut self) {
        for index in 0..self.batch.items.len() {
            let Item::Frames(run) = self.batch.items[index] else {
                continue;
            };
            let Some(connection) = self.connections.get_mut(run.key) else {
                continue;
            };
            let first = accepted_header(run.version, self.batch.run(&run, &self.driver));
            let goes_first = !connection.parts_wait && connection.session.may_overtake(&first);
            // The parts of a stream stay in order, even if only some of them have PRIORITY. A HANDSHAKE,
            // even one that the server does not ask for, says how long the answers to later requests may be.
            // And a CANCEL would end a later request that has the id anew.
            let leads = first.flags.contains(Flags::STREAM)
                || [msg_type::HANDSHAKE, msg_type::CANCEL].contains(&first.msg_type);
            connection.parts_wait |= !goes_first && leads;
            if let Item::Frames(run) = &mut self.batch.items[index] {
                run.goes_first = goes_first;
            }
        }
        for item in &self.batch.items {
            if let Item::Frames(run) = item
                && let Some(connection) = self.connections.get_mut(run.key)
            {
                connection.parts_wait = false;
            }
        }
    }

    /// Turns a damaged frame into a refusal, and drops what its connection sent after it.
    fn refuse_damaged(&mut self, bad: usize, refusal: Refusal) {
        let Item::Frames(Run { key, .. }) = self.batch.items[bad] else {
            unreachable!("only frames are verified")
        };
        for item in &mut self.batch.items[bad + 1..] {
            let of_it = match item {
                Item::Frames(run) => run.key == key,
                Item::Refused { key: other, .. } => *other == key,
                Item::Done => false,
            };
            if of_it {
                *item = Item::Done;
            }
        }
        self.batch.items[bad] = Item::Refused {
            key,
            refusal,
            msg_id: 0,
        };
    }
}
