//! A connection over shared memory.

use std::io;
use std::time::Duration;

use super::long::{Lent, LongAnswer};
use crate::shm::{ClientEnd, Corrupt, RECORD_MAX, Record, Reservation, Sleeper};
use crate::sys::{clock, futex};
use crate::wire::{HEADER_BYTES, Header};

/// Queued frames go in pieces of this size, so that the server works on the first while the next
/// is written; what is longer than a batch of small frames goes in the longest pieces.
const PIECE_BYTES: usize = 8192;
const BATCH_BYTES: usize = 64 * 1024;
/// The server is told of room after this much was taken, or all, if it waits for it.
const ROOM_BYTES: usize = 32 * 1024;
/// So many bytes of a batch are taken at once: they lie in the first-level cache until they are checked and
/// handed out.
const TAKEN_BYTES: usize = 16 * 1024;
/// Looks without success between two looks whether the server lives, with a few nanoseconds of
/// watching the ring after each: well below a millisecond.
const LOOKS: u32 = 1024;
/// Looks at a ring between two full looks at the connection.
const WATCH_LOOKS: u32 = 8;
/// The longest sleep between two looks whether the server lives.
const SLEEP_MAX: Duration = Duration::from_millis(50);
/// How long room in the ring is looked for before sleeping.
const ROOM_SPIN_NS: u64 = 50_000;
/// The longest sleep for room in the ring.
const ROOM_SLEEP_MAX: Duration = Duration::from_millis(1);

/// An attached connection.
#[derive(Debug)]
pub(super) struct ShmLink {
    end: ClientEnd,
    /// A record of which some bytes have been taken, and how many.
    half_taken: Option<(Record, usize)>,
    taken_since_told: usize,
    looks: u32,
    /// Records come faster than they are taken one by one.
    in_batches: bool,
    /// A record was taken and nothing was missing since.
    took_one: bool,
    /// What was received last is one frame, whose CRC is right.
    good_frame: bool,
    /// Nothing fitted into the ring when it was last tried.
    was_full: bool,
    /// The server was asked to say when there is room.
    wants_room: bool,
    gone: bool,
}

/// What has become of reserved room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Held {
    /// It can be sent as it is.
    Here,
    /// It belongs to a connection that is gone: its bytes are whole and must be copied.
    Elsewhere,
    /// Something else was sent, and lies over it.
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

    /// Whether what was received last is one whole frame whose CRC is right. False says nothing.
    #[inline]
    pub(super) fn received_good_frame(&self) -> bool {
        self.good_frame
    }

    /// Writes one frame straight into the ring. False: there is no room for it now.
    #[inline]
    pub(super) fn push_frame(&mut self, header: Header, payload: &[u8]) -> bool {
        if self.gone || HEADER_BYTES + payload.len() > RECORD_MAX {
            return false;
        }
        let ends = &mut self.end.ends;
        let pushed = ends.tx.push_frame(header, payload, ends.rx.position());
        if pushed {
            self.end.wake_server();
            self.taken_since_told = 0;
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
        self.end.wake_server();
        self.taken_since_told = 0;
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
        self.end.wake_server();
        self.taken_since_told = 0;
        Ok(sent)
    }

    /// Puts what fits of a frame into the ring. False: some is left.
    pub(super) fn send_lent(&mut self, lent: &mut Lent, payload: &[u8]) -> io::Result<bool> {
        if self.gone {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let ends = &mut self.end.ends;
        let before = lent.sent;
        // Bounded by the ring's room.
        while lent.sent < lent.frame_bytes() {
            let ack = ends.rx.position();
            let (pushed, bytes) = match lent.sent.checked_sub(HEADER_BYTES) {
                None => {
                    let piece = &payload[..payload.len().min(RECORD_MAX - HEADER_BYTES)];
                    let pushed = ends.tx.push_beginning(lent.header, piece, ack);
                    (pushed, HEADER_BYTES + piece.len())
                }
                Some(at) => {
                    let piece = &payload[at..][..(payload.len() - at).min(RECORD_MAX)];
                    (ends.tx.push(piece, ack), piece.len())
                }
            };
            if !pushed {
                break;
            }
            lent.sent += bytes;
        }
        self.was_full = lent.sent == before;
        if !self.was_full {
            self.end.wake_server();
            self.taken_since_told = 0;
        }
        Ok(lent.sent == lent.frame_bytes())
    }

    /// Takes what is there of a long answer out of the ring; 0: the server has ended.
    pub(super) fn receive_long(&mut self, answer: &mut LongAnswer) -> io::Result<usize> {
        let ends = &mut self.end.ends;
        self.good_frame = false;
        let mut taken = 0;
        // Bounded, so that who is sending at the same time goes on with it.
        while answer.missing_bytes() > 0 && taken < BATCH_BYTES {
            let (record, from) = match self.half_taken.take() {
                Some(half) => half,
                None => match ends.rx.next().map_err(corrupt)? {
                    Some(record) => (record, 0),
                    None => break,
                },
            };
            let count = (record.length - from).min(answer.missing_bytes());
            let to = from + count;
            answer.append(count, |buffer, sum| {
                ends.rx.copy_summed(&record, from..to, buffer, sum)
            });
            taken += count;
            if to < record.length {
                self.half_taken = Some((record, to));
                break;
            }
            let ack = ends.rx.advance(&record);
            ends.tx.acknowledged(ack);
            // The server is waiting for this room.
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

    #[inline]
    fn took(&mut self, bytes: usize) {
        self.looks = 0;
        self.taken_since_told += bytes;
        if self.taken_since_told >= ROOM_BYTES {
            self.taken_since_told = 0;
            self.end.wake_server();
        }
    }

    /// Takes what is there out of the ring; 0: the server has ended.
    #[inline]
    pub(super) fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let ends = &mut self.end.ends;
        self.good_frame = false;
        let mut taken = 0;
        let mut records = 0;
        // With one request in flight, a look for a second record would wait for a cache line that
        // holds nothing yet: so records are taken one by one until they come in batches.
        let records_max = if self.in_batches { usize::MAX } else { 1 };
        let taken_max = buffer.len().min(TAKEN_BYTES);
        // Bounded by the buffer.
        while taken < taken_max && records < records_max {
            let (record, from) = match self.half_taken.take() {
                Some(half) => half,
                None => match ends.rx.next().map_err(corrupt)? {
                    Some(record) => (record, 0),
                    None => break,
                },
            };
            let count = if records_max == 1 && from == 0 && record.length <= buffer.len() {
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

    /// Appends the payload of the next frame to `to`, if that frame is a record of its own, `wanted`
    /// says yes to its header, and its CRC is right. Returns how many bytes of the ring that took; 0:
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
        // What is corrupt is met again by who looks next.
        let Ok(Some(record)) = ends.rx.next() else {
            return 0;
        };
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

    /// Cuts the segment's file short, as a full /dev/shm has the same effect.
    #[cfg(test)]
    pub(super) fn cut_memory(&self, bytes: u64) {
        self.end.file.set_len(bytes).unwrap();
    }

    /// See [`super::link::Link::lacks_memory`].
    pub(super) fn lacks_memory(&self) -> bool {
        self.end.ends.segment.poisoned()
    }

    /// Whether this thread is on the CPU that the server's worker needs.
    pub(super) fn is_in_the_way(&self) -> bool {
        self.end.is_in_the_way()
    }

    /// Looks for a record a few times. Says whether there is one.
    #[inline]
    pub(super) fn watch(&self) -> bool {
        for _ in 0..WATCH_LOOKS {
            if self.end.ends.rx.poll() {
                return true;
            }
            std::hint::spin_loop();
        }
        false
    }

    fn nothing_there(&mut self) -> io::Result<usize> {
        // What was taken may have made more room than its bytes: a record that turns back to the
        // ring's start frees the rest of the lap.
        if self.taken_since_told > 0 {
            self.taken_since_told = 0;
            self.end.wake_server();
        }
        self.looks = self.looks.wrapping_add(1);
        if self.looks.is_multiple_of(LOOKS) {
            self.gone |= self.end.server_has_gone();
        }
        // What the server wrote before it went is still taken.
        if (self.gone || self.end.ends.peer_closed()) && !self.end.ends.rx.has_record() {
            self.gone = true;
            return Ok(0);
        }
        Err(io::ErrorKind::WouldBlock.into())
    }

    /// Sleeps until there may be something to receive, or room to send if `write`.
    pub(super) fn sleep(&mut self, write: bool, limit: Duration) -> io::Result<()> {
        if write && self.room_comes_soon() {
            return Ok(());
        }
        let limit = limit.min(if write { ROOM_SLEEP_MAX } else { SLEEP_MAX });
        // The server may wait for the room that we have made.
        let tell = || self.end.wake_server();
        let waited = self.end.ends.sleep(write, limit, tell);
        if waited == futex::Waited::TimedOut && self.end.server_has_gone() {
            self.gone = true;
        }
        Ok(())
    }

    /// Asks the server to wake who sleeps on the ring's word: for records, and for room if `write`.
    /// `true`: there is something already.
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

    /// A server that works on what is in the ring makes room within microseconds; sleeping and
    /// being woken takes tens of them.
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

    /// Whether the server has gone and left nothing to be read.
    pub(super) fn has_ended(&self) -> bool {
        (self.gone || self.end.server_has_gone()) && !self.end.ends.rx.has_record()
    }
}
