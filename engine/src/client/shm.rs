//! A connection over shared memory, as the client uses it: bytes into one ring and out of the other, and how
//! it waits for the server and notices its end.

use std::io;
use std::time::Duration;

use super::long::LongAnswer;
use crate::shm::{ClientEnd, Corrupt, LongFrame, RECORD_MAX, Record, Reservation, Sleeper};
use crate::sys::{clock, futex, pause};
use crate::wire::{HEADER_BYTES, Header};

/// Queued frames go into the ring in records of this size, so that the server works on the first while the
/// next is written.
const PIECE_BYTES: usize = 8192;
/// More queued bytes than this are a long message, not many small ones: they go in the longest records.
const BATCH_BYTES: usize = 64 * 1024;
/// If the server waits for room, it is woken after this many bytes were taken out of the ring, or all.
const ROOM_BYTES: usize = 32 * 1024;
/// The most bytes taken at once, so that they stay in the first-level cache until they are checked and
/// handed out.
const TAKEN_BYTES: usize = 16 * 1024;
/// How often the ring is looked at in vain before it is checked whether the server's process lives. With the
/// watching after each, 0.3 µs at most, that is well below a millisecond.
const LOOKS: u32 = 1024;
/// How often `watch` polls the ring.
const WATCH_LOOKS: u32 = 8;
/// The longest sleep before it is checked whether the server's process lives: a dead process does not wake
/// anybody.
const SLEEP_MAX: Duration = Duration::from_millis(50);
/// How long to spin for room in the ring before sleeping.
const ROOM_SPIN_NS: u64 = 50_000;
/// The longest sleep for room in the ring.
const ROOM_SLEEP_MAX: Duration = Duration::from_millis(1);

/// An attached connection.
#[derive(Debug)]
pub(super) struct ShmLink {
    end: ClientEnd,
    /// A record that was taken in part, and how many of its bytes were.
    half_taken: Option<(Record, usize)>,
    /// Bytes taken since the server was last told of room.
    taken_since_told: usize,
    /// Looks in vain since something came.
    looks: u32,
    /// Records come faster than they are taken one by one, so several are taken at once.
    in_batches: bool,
    /// The last look found a record.
    took_one: bool,
    /// What was received last is one whole frame with the right CRC.
    good_frame: bool,
    /// Nothing fitted into the ring when that was last tried.
    was_full: bool,
    /// The server was asked to wake us when there is room.
    wants_room: bool,
    /// The server has gone.
    gone: bool,
}

/// What has become of room that was reserved in a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Held {
    /// It is still reserved: the frame can be sent in place.
    Here,
    /// It belongs to a connection that is gone, or something is queued before it: the payload is whole, and
    /// must be copied.
    Elsewhere,
    /// Something else was sent and has overwritten it.
    Overwritten,
}

fn corrupt(error: Corrupt) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}

impl ShmLink {
    pub(super) fn new(end: ClientEnd) -> ShmLink {
        ShmLink {
            end,
            half_taken: None,
            taken_since_told: 0,
            looks: 0,
            in_batches: false,
            took_one: false,
            good_frame: false,
            was_full: false,
            wants_room: false,
            gone: false,
        }
    }

    /// Whether what was received last is known to be one whole frame with the right CRC.
    #[inline]
    pub(super) fn received_good_frame(&self) -> bool {
        self.good_frame
    }

    /// Writes one frame straight into the ring. False if it does not fit now, or never.
    #[inline]
    pub(super) fn push_frame(&mut self, header: Header, payload: &[u8]) -> bool {
        if self.gone || HEADER_BYTES + payload.len() > RECORD_MAX {
            return false;
        }
        let ends = &mut self.end.ends;
        let pushed = ends.tx.push_frame(header, payload, ends.rx.position());
        if pushed {
            self.tell_server();
        }
        pushed
    }

    /// Room for a frame with so many bytes of payload, if it fits one record and there is room now.
    pub(super) fn reserve(&mut self, payload_bytes: usize) -> Option<Reservation> {
        match self.gone {
            true => None,
            false => self.end.ends.tx.reserve(payload_bytes),
        }
    }

    /// What has become of room reserved here or over another connection.
    pub(super) fn look_at(&self, reservation: &Reservation) -> Held {
        let tx = &self.end.ends.tx;
        match (tx.made(reservation), tx.holds(reservation)) {
            (true, false) => Held::Overwritten,
            (true, true) if !self.gone => Held::Here,
            _ => Held::Elsewhere,
        }
    }

    /// Sends what was written to the reserved room, which is held here.
    pub(super) fn commit(&mut self, reservation: &Reservation, header: Header) {
        let ends = &mut self.end.ends;
        ends.tx.commit(reservation, header, ends.rx.position());
        self.tell_server();
    }

    /// Puts what fits into the ring.
    #[inline]
    pub(super) fn send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.gone {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let piece_bytes = if bytes.len() > BATCH_BYTES {
            RECORD_MAX
        } else {
            PIECE_BYTES
        };
        let ends = &mut self.end.ends;
        let mut sent = 0;
        // Bounded by the ring's room.
        while sent < bytes.len() {
            let rest = &bytes[sent..];
            let piece = &rest[..rest.len().min(piece_bytes)];
            if !ends.tx.push(piece, ends.rx.position()) {
                break;
            }
            sent += piece.len();
        }
        self.was_full = sent == 0;
        if sent == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.tell_server();
        Ok(sent)
    }

    /// Puts what fits of a long frame, whose payload this is, into the ring. True if nothing is left.
    pub(super) fn send_long(&mut self, frame: &mut LongFrame, payload: &[u8]) -> io::Result<bool> {
        if self.gone {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let ends = &mut self.end.ends;
        let ack = ends.rx.position();
        self.was_full = frame.push(&mut ends.tx, ack, frame.rest(payload)) == 0;
        if !self.was_full {
            self.tell_server();
        }
        Ok(frame.is_sent())
    }

    /// Takes what is there of a long answer out of the ring. Returns how many bytes; 0 means that the server
    /// has gone.
    pub(super) fn receive_long(&mut self, answer: &mut LongAnswer) -> io::Result<usize> {
        let ends = &mut self.end.ends;
        self.good_frame = false;
        let mut taken = 0;
        // Bounded, so that a caller that sends at the same time goes on with that.
        while answer.missing_bytes() > 0 && taken < BATCH_BYTES {
            let (record, from) = match self.half_taken.take() {
                Some(half) => half,
                None => match ends.rx.next_piece().map_err(corrupt)? {
                    Some(record) => (record, 0),
                    None => break,
                },
            };
            let count = (record.frame_bytes() - from).min(answer.missing_bytes());
            let to = from + count;
            answer.append(count, |buffer, sum| {
                ends.rx.copy_summed(&record, from..to, buffer, sum)
            });
            taken += count;
            if to < record.frame_bytes() {
                self.half_taken = Some((record, to));
                break;
            }
            if let Some(crc) = ends.rx.crc_at_end(&record) {
                answer.put_crc(crc);
            }
            let ack = ends.rx.advance(&record);
            ends.tx.acknowledged(ack);
            // At once: the server waits for this room.
            ends.rx.publish();
        }
        match taken {
            0 => self.nothing_there(),
            _ => {
                self.took(taken);
                Ok(taken)
            }
        }
    }

    /// Wakes the server if it wants to be woken, which tells it of records and of room.
    #[inline]
    fn tell_server(&mut self) {
        self.taken_since_told = 0;
        self.end.wake_server();
    }

    /// Counts bytes taken out of the ring, and tells the server of room now and then.
    #[inline]
    fn took(&mut self, bytes: usize) {
        self.looks = 0;
        self.taken_since_told += bytes;
        if self.taken_since_told >= ROOM_BYTES {
            self.tell_server();
        }
    }

    /// Takes what is there out of the ring. Returns how many bytes; 0 means that the server has gone.
    #[inline]
    pub(super) fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let ends = &mut self.end.ends;
        self.good_frame = false;
        let mut taken = 0;
        let mut records = 0;
        // With one request in flight, looking for a second record would wait for a cache line that holds
        // nothing yet. So records are taken one by one until they come in batches.
        let records_max = if self.in_batches { usize::MAX } else { 1 };
        let taken_max = buffer.len().min(TAKEN_BYTES);
        // Bounded by the buffer.
        while taken < taken_max && records < records_max {
            let (record, from) = match self.half_taken.take() {
                Some(half) => half,
                None => match ends.rx.next().map_err(corrupt)? {
                    // The end of a long answer, whose header is to be looked at first: `receive_long` takes it.
                    Some(record) if record.ends_with_crc() && taken > 0 => break,
                    Some(record) if record.ends_with_crc() => {
                        return Err(corrupt(Corrupt("a CRC where no long answer ends")));
                    }
                    Some(record) => (record, 0),
                    None => break,
                },
            };
            let count = if records_max == 1 && from == 0 && record.length <= buffer.len() {
                ends.tx.ask_ahead();
                self.good_frame = ends.rx.copy_frame_to(&record, buffer).is_some();
                record.length
            } else {
                ends.rx.copy_part(from, &record, &mut buffer[taken..])
            };
            taken += count;
            if from + count < record.length {
                self.half_taken = Some((record, from + count));
                break;
            }
            let ack = ends.rx.advance(&record);
            ends.tx.acknowledged(ack);
            records += 1;
        }
        self.in_batches = if self.in_batches {
            records > 1
        } else {
            self.took_one && taken > 0
        };
        self.took_one = taken > 0;
        if taken == 0 {
            return self.nothing_there();
        }
        ends.rx.publish();
        self.took(taken);
        Ok(taken)
    }

    /// Appends the payload of the next frame to `to`, if the frame is a record of its own, `wanted` accepts
    /// its header, and its CRC is right. Returns how many bytes were taken out of the ring; 0 means that
    /// nothing was done, and [`ShmLink::receive`] is to look.
    #[inline]
    pub(super) fn receive_payload(
        &mut self,
        to: &mut Vec<u8>,
        wanted: impl FnOnce(&Header) -> bool,
    ) -> usize {
        let ends = &mut self.end.ends;
        if self.half_taken.is_some() {
            return 0;
        }
        // A corrupt ring is reported by the next `receive`.
        let Ok(Some(record)) = ends.rx.next() else {
            return 0;
        };
        ends.tx.ask_ahead();
        if ends.rx.copy_payload(&record, to, wanted).is_none() {
            return 0;
        }
        let ack = ends.rx.advance(&record);
        ends.tx.acknowledged(ack);
        ends.rx.publish();
        self.in_batches = false;
        self.took_one = true;
        self.took(record.length);
        record.length
    }

    /// Cuts the segment's file short; a full /dev/shm has the same effect.
    #[cfg(test)]
    pub(super) fn cut_memory(&self, bytes: u64) {
        self.end.file.set_len(bytes).unwrap();
    }

    /// See [`super::link::Link::lacks_memory`].
    pub(super) fn lacks_memory(&self) -> bool {
        self.end.ends.segment.poisoned()
    }

    /// Whether this thread runs on the CPU that the server's worker needs.
    pub(super) fn is_in_the_way(&self) -> bool {
        self.end.is_in_the_way()
    }

    /// Polls the ring a few times. Returns whether there is a record.
    #[inline]
    pub(super) fn watch(&self) -> bool {
        let rx = &self.end.ends.rx;
        for _ in 0..WATCH_LOOKS {
            if rx.poll() {
                return true;
            }
            pause::pause(rx.pauses());
        }
        false
    }

    /// Nothing was received: tells the server of room, and finds out whether it has gone.
    fn nothing_there(&mut self) -> io::Result<usize> {
        // Even if few bytes were taken: a record after which the producer turns back to the ring's start
        // frees the rest of the lap too.
        if self.taken_since_told > 0 {
            self.tell_server();
        }
        self.looks = self.looks.wrapping_add(1);
        if self.looks.is_multiple_of(LOOKS) {
            self.gone |= self.end.server_has_gone();
        }
        // What the server wrote before it went is still received.
        if (self.gone || self.end.ends.peer_closed()) && !self.end.ends.rx.has_record() {
            self.gone = true;
            return Ok(0);
        }
        Err(io::ErrorKind::WouldBlock.into())
    }

    /// Sleeps until there may be something to receive, or room to send if `write`.
    pub(super) fn sleep(&mut self, write: bool, limit: Duration) {
        if write && self.room_comes_soon() {
            return;
        }
        let limit = limit.min(if write { ROOM_SLEEP_MAX } else { SLEEP_MAX });
        // Once the sleep is announced: the server may itself wait for room that we have made.
        let tell = || self.end.wake_server();
        let waited = self.end.ends.sleep(write, limit, tell);
        if waited == futex::Waited::TimedOut && self.end.server_has_gone() {
            self.gone = true;
        }
    }

    /// Announces that somebody sleeps on the ring's word, for records, and for room if `write`. Returns true
    /// if there is no reason to sleep, because there is something already.
    pub(super) fn fall_asleep(&mut self, write: bool) -> bool {
        let tell = || self.end.wake_server();
        let awaited = self.end.ends.fall_asleep(write, tell);
        self.wants_room = write;
        awaited || self.half_taken.is_some() || write && !self.was_full
    }

    /// Takes back what [`ShmLink::fall_asleep`] asked for.
    pub(super) fn wake_up(&mut self) {
        self.end.ends.wake_up(std::mem::take(&mut self.wants_room));
    }

    /// What another thread needs to sleep in this client's place.
    pub(super) fn sleeper(&self) -> io::Result<Sleeper> {
        self.end.sleeper()
    }

    /// Spins for room for a moment. A server that works on what is in the ring makes room within
    /// microseconds, and to sleep and be woken takes tens of them.
    fn room_comes_soon(&self) -> bool {
        self.end.wake_server();
        let ends = &self.end.ends;
        let start_ns = clock::now_ns();
        // Ends with room, an answer, or the time.
        while clock::now_ns().saturating_sub(start_ns) < ROOM_SPIN_NS {
            if ends.tx.consumer_has_moved() || ends.rx.has_record() || ends.peer_closed() {
                return true;
            }
            std::hint::spin_loop();
        }
        false
    }

    /// Whether the server has gone and nothing is left to be received.
    pub(super) fn has_ended(&self) -> bool {
        (self.gone || self.end.server_has_gone()) && !self.end.ends.rx.has_record()
    }
}
