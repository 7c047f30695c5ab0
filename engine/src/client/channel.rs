//! One connection's buffers: frames queued to be sent, and bytes received and not yet handed out.
//!
//! Sending: short frames are appended to `out` without their CRCs, which are computed for several together
//! ([`Channel::seal`]). A request that is sent at once goes straight into the ring
//! ([`Channel::send_in_place`]), and one that is too long for a record is sent from its caller's memory
//! ([`Channel::lend`]).
//!
//! Receiving ([`received`]): bytes come into `input`, and frames are checked there some ahead of being handed out. Frames
//! that begin alike, with the same flags, type and length, are a [`Row`]. The answer to the only request in
//! flight is copied straight from the ring to its caller ([`Channel::take_answer`]), and one that is too
//! long for a record is gathered by itself ([`LongAnswer`]).
//!
//! Where something lies in "the stream" is counted in bytes sent over this connection, from 0.

mod received;

use std::io;

pub(super) use received::Incoming;

use super::link::Link;
use super::long::{self, LongAnswer};
use super::shm::Held;
use crate::shm::{LongFrame, RECORD_MAX, Reservation};
use crate::wire::{self, Flags, HEADER_BYTES, Header, ProtocolVersion, Scanned, Unsealed, legacy};

/// The receive buffer's usual size. It grows while a longer frame arrives.
const RECEIVE_BYTES: usize = 64 * 1024;

/// When this many bytes of queued frames lack their CRCs, these are computed, while the frames are still in
/// the first-level cache.
const UNSEALED_BYTES: usize = 2048;

/// Buffers that grew beyond this for a long frame are freed after it.
const KEPT_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The longest payload of an ERROR. It is always accepted, however low the client's limit is.
const ERROR_BYTES_MAX: u32 = 2 + wire::ERROR_TEXT_BYTES_MAX as u32;

#[derive(Debug)]
pub(super) struct Channel {
    pub(super) link: Link,
    version: ProtocolVersion,
    /// The longest payload that is accepted.
    max_message_bytes: u32,
    /// Whole frames to be sent.
    out: Vec<u8>,
    /// Which frames at the end of `out` have no CRC yet.
    unsealed: Unsealed,
    /// How much of `out` is sent.
    out_sent: usize,
    /// Where `out` begins in the stream: how many bytes were sent before.
    sent_before: u64,
    /// The receive buffer.
    input: Vec<u8>,
    /// What is received and not handed out lies in `input` from here,
    start: usize,
    /// to here.
    end: usize,
    /// Bytes received over this connection in all.
    received_bytes: u64,
    /// Up to here in `input`, frames are whole, and their headers and CRCs are right.
    checked_to: usize,
    /// The length of each of those frames, if they all begin alike; otherwise 0.
    row_bytes: usize,
    /// The bytes between `start` and `end` are one frame whose CRC was checked as it was received.
    good_frame: bool,
    /// The frame that is being sent from its caller's memory. Then nothing is queued.
    lent: Option<LongFrame>,
    /// The frame at the front of `out`, if a part of it was sent from its caller's memory: its CRC comes last.
    begun: Option<LongFrame>,
    /// The long answer that is being gathered. Then nothing else is received.
    long: Option<LongAnswer>,
    /// The payload of the last long answer; its memory is used for the next.
    whole: Vec<u8>,
}

impl Channel {
    pub(super) fn new(link: Link, version: ProtocolVersion, max_message_bytes: u32) -> Channel {
        Channel {
            link,
            version,
            max_message_bytes: max_message_bytes.max(ERROR_BYTES_MAX),
            out: Vec::new(),
            unsealed: Unsealed::default(),
            out_sent: 0,
            sent_before: 0,
            input: vec![0; RECEIVE_BYTES],
            start: 0,
            end: 0,
            checked_to: 0,
            row_bytes: 0,
            received_bytes: 0,
            good_frame: false,
            lent: None,
            begun: None,
            long: None,
            whole: Vec::new(),
        }
    }

    pub(super) fn set_max_message_bytes(&mut self, max: u32) {
        self.max_message_bytes = max.max(ERROR_BYTES_MAX);
    }

    /// Where the next frame will begin in the stream of bytes sent.
    #[inline]
    pub(super) fn next_begins_at(&self) -> u64 {
        self.sent_before + self.out.len() as u64
    }

    /// How many bytes of the stream are sent.
    pub(super) fn sent_to(&self) -> u64 {
        self.sent_before + self.out_sent as u64
    }

    /// Bytes received over this connection so far.
    #[inline]
    pub(super) fn received_bytes(&self) -> u64 {
        self.received_bytes
    }

    pub(super) fn queued_bytes(&self) -> usize {
        self.out.len() - self.out_sent
    }

    /// Queues a frame.
    pub(super) fn queue(&mut self, flags: Flags, msg_type: u16, msg_id: u64, payload: &[u8]) {
        if self.version != ProtocolVersion::V2 || !Unsealed::takes(payload.len()) {
            return self.queue_alone(flags, msg_type, msg_id, payload);
        }
        if self.queue_short(flags, msg_type, msg_id, payload) {
            self.seal();
        }
    }

    /// Queues a short version 2 frame without its CRC. Returns true if so many bytes lack their CRCs that
    /// they are to be sealed now.
    #[inline(always)]
    pub(super) fn queue_short(
        &mut self,
        flags: Flags,
        msg_type: u16,
        msg_id: u64,
        payload: &[u8],
    ) -> bool {
        let out = &mut self.out;
        self.unsealed.append(out, flags, msg_type, msg_id, payload);
        self.unsealed.bytes() >= UNSEALED_BYTES
    }

    /// Queues a frame with its CRC, or a version 1 frame, which has none.
    fn queue_alone(&mut self, flags: Flags, msg_type: u16, msg_id: u64, payload: &[u8]) {
        self.seal();
        match self.version {
            ProtocolVersion::V2 => wire::encode_to(&mut self.out, flags, msg_type, msg_id, payload),
            ProtocolVersion::V1 => legacy::encode_to(&mut self.out, msg_type, msg_id, payload),
        }
    }

    /// Computes the CRCs that are missing.
    pub(super) fn seal(&mut self) {
        self.unsealed.seal(&mut self.out);
    }

    /// Writes one frame straight into the ring, if there is one and nothing is queued. False if it did not;
    /// then the frame is to be queued.
    #[inline]
    pub(super) fn send_in_place(
        &mut self,
        flags: Flags,
        msg_type: u16,
        msg_id: u64,
        payload: &[u8],
    ) -> bool {
        let Link::Shm(link) = &mut self.link else {
            return false;
        };
        let Ok(length) = u32::try_from(payload.len()) else {
            return false;
        };
        let header = Header::new(flags, msg_type, msg_id, length);
        let sent = self.out.is_empty() && link.push_frame(header, payload);
        if sent {
            self.sent_before += (HEADER_BYTES + payload.len()) as u64;
        }
        sent
    }

    /// Begins to send a frame from its caller's memory, if it is too long for a record and nothing is queued;
    /// [`Channel::flush_lent`] sends it. False if it did not; then the frame is to be queued.
    pub(super) fn lend(
        &mut self,
        flags: Flags,
        msg_type: u16,
        msg_id: u64,
        payload: &[u8],
    ) -> bool {
        let can = self.takes_lent(payload.len()) && self.out.is_empty();
        if can {
            let header = Header::new(flags, msg_type, msg_id, payload.len() as u32);
            self.lent = Some(LongFrame::new(header));
        }
        can
    }

    /// Whether a payload of this length is to be sent from the caller's memory.
    #[inline]
    pub(super) fn takes_lent(&self, payload_bytes: usize) -> bool {
        HEADER_BYTES + payload_bytes > RECORD_MAX
            && u32::try_from(payload_bytes).is_ok()
            && matches!(self.link, Link::Shm(_))
    }

    /// Sends what fits of the lent frame, whose payload this is. True if nothing is left.
    pub(super) fn flush_lent(&mut self, payload: &[u8]) -> io::Result<bool> {
        let (Some(lent), Link::Shm(link)) = (&mut self.lent, &mut self.link) else {
            return Ok(true);
        };
        let all = link.send_long(lent, payload)?;
        if all {
            self.sent_before += lent.frame_bytes() as u64;
            self.lent = None;
        }
        Ok(all)
    }

    /// Queues the lent frame, whose payload this is, or what is left of it: its caller wants the memory back.
    pub(super) fn give_back(&mut self, payload: &[u8]) {
        let Some(lent) = self.lent.take() else { return };
        debug_assert!(self.out.is_empty());
        long::encode(&mut self.out, &lent.header(), payload);
        self.out_sent = lent.sent_bytes();
        self.begun = (self.out_sent > 0).then_some(lent);
    }

    /// The frame that is being sent from the caller's memory, and where it begins in the stream.
    pub(super) fn lent(&self) -> Option<(u64, Header)> {
        Some((self.next_begins_at(), self.lent?.header()))
    }

    /// Room in the ring into which a payload can be written, if there is a ring and nothing is queued.
    pub(super) fn reserve(&mut self, payload_bytes: usize) -> Option<Reservation> {
        match &mut self.link {
            Link::Shm(link) if self.out.is_empty() => link.reserve(payload_bytes),
            _ => None,
        }
    }

    /// What has become of reserved room. If frames are queued, they go first, so it cannot be sent in place.
    pub(super) fn look_at(&self, reservation: &Reservation) -> Held {
        match &self.link {
            Link::Shm(link) => match link.look_at(reservation) {
                Held::Here if !self.out.is_empty() => Held::Elsewhere,
                held => held,
            },
            Link::Tcp(_) => Held::Elsewhere,
        }
    }

    /// Sends a frame whose payload was written to reserved room, which is still held.
    pub(super) fn commit(&mut self, reservation: &Reservation, header: Header) {
        let Link::Shm(link) = &mut self.link else {
            unreachable!("looked at before");
        };
        link.commit(reservation, header);
        self.sent_before += (HEADER_BYTES + header.length as usize) as u64;
    }

    /// The queued frames of which not all bytes are sent, oldest first: the server cannot have acted on
    /// them. With each, where it begins in the stream.
    pub(super) fn unsent(&mut self) -> impl Iterator<Item = (u64, Header, &[u8])> {
        self.seal();
        let this = &*self;
        let mut at = 0;
        std::iter::from_fn(move || {
            // `out` holds whole frames, as they were queued.
            let scanned = wire::scan(this.version, &this.out[at..], u32::MAX).ok()?;
            let Scanned::Frame {
                header,
                frame_bytes,
            } = scanned
            else {
                return None;
            };
            let begins_at = this.sent_before + at as u64;
            let frame = &this.out[at..at + frame_bytes];
            at += frame_bytes;
            Some((begins_at, header, frame))
        })
        .filter(|(begins_at, _, frame)| begins_at + frame.len() as u64 > this.sent_to())
    }

    /// Queues frames that are already encoded.
    pub(super) fn queue_encoded(&mut self, frames: &[u8]) {
        self.seal();
        self.out.extend_from_slice(frames);
    }

    /// Sends what fits, without waiting. True if nothing is left.
    #[inline]
    pub(super) fn flush(&mut self) -> io::Result<bool> {
        self.seal();
        if let (Some(begun), Link::Shm(link)) = (&mut self.begun, &mut self.link) {
            let payload = &self.out[HEADER_BYTES..begun.frame_bytes()];
            let all = link.send_long(begun, payload)?;
            self.out_sent = begun.sent_bytes();
            if !all {
                return Ok(false);
            }
            self.begun = None;
        }
        // Each pass sends at least one byte or ends the loop.
        while self.out_sent < self.out.len() {
            match self.link.send(&self.out[self.out_sent..]) {
                Ok(sent) => self.out_sent += sent,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.sent_before += self.out.len() as u64;
        self.out.clear();
        self.out_sent = 0;
        if self.out.capacity() > KEPT_BYTES_MAX {
            self.out = Vec::new();
        }
        Ok(true)
    }

    pub(super) fn is_v1(&self) -> bool {
        self.version == ProtocolVersion::V1
    }
}
