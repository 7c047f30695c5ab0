//! The receiving half of a channel: from bytes to verified frames.

use std::io;

use super::{Channel, KEPT_BYTES_MAX, RECEIVE_BYTES};
use crate::client::link::Link;
use crate::client::long::LongAnswer;
use crate::shm::RECORD_MAX;
use crate::wire::{
    self, Flags, GoodFirst, HEADER_BYTES, Header, ProtocolVersion, Refusal, Scanned, VERIFY_BATCH,
    msg_type,
};

/// How many bytes of frames that begin alike are checked at once, so that they stay in the cache until they
/// are handed out.
const AHEAD_BYTES: usize = 4096;

/// A whole, verified frame that was received.
#[derive(Clone, Copy, Debug)]
pub(in crate::client) struct Incoming {
    pub(in crate::client) header: Header,
    /// Where its payload lies in the receive buffer. `None`: it is the last long answer.
    payload_at: Option<usize>,
}

/// Checked frames in the receive buffer that begin alike. A frame counts as taken as soon as it is handed
/// out, even if whoever gets it panics.
pub(in crate::client) struct Row<'a> {
    /// What is left.
    bytes: &'a [u8],
    frame_bytes: usize,
    start: &'a mut usize,
}

impl<'a> Row<'a> {
    /// The header of the first frame. The others begin like it.
    #[inline]
    pub(in crate::client) fn first(&self) -> Header {
        wire::accepted_header(ProtocolVersion::V2, self.bytes)
    }

    /// Takes the next frame.
    #[inline(always)]
    pub(in crate::client) fn next(&mut self) -> Option<&'a [u8]> {
        let (frame, rest) = self.bytes.split_at_checked(self.frame_bytes)?;
        self.bytes = rest;
        *self.start += self.frame_bytes;
        Some(frame)
    }
}

impl Incoming {
    /// Whether the payload lies in memory of its own; see [`Channel::exchange_payload`].
    pub(in crate::client) fn lies_apart(&self) -> bool {
        self.payload_at.is_none()
    }
}

impl Channel {
    /// Receives what is there, without waiting; returns how many bytes. An error means that the connection
    /// has ended.
    #[inline]
    pub(in crate::client) fn fill(&mut self) -> io::Result<usize> {
        if self.long.is_some() {
            return self.fill_long();
        }
        if self.start == self.end {
            (self.start, self.end, self.checked_to) = (0, 0, 0);
            if self.input.len() > KEPT_BYTES_MAX {
                self.input = vec![0; RECEIVE_BYTES];
            }
            if self.whole.capacity() > KEPT_BYTES_MAX {
                self.whole = Vec::new();
            }
        } else if self.end == self.input.len() {
            self.make_room();
        }
        match self.link.receive(&mut self.input[self.end..]) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(received) => {
                self.good_frame = self.start == self.end && self.link.received_good_frame();
                self.end += received;
                self.received_bytes += received as u64;
                Ok(received)
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                Ok(0)
            }
            Err(error) => Err(error),
        }
    }

    /// If the next record of the ring is a plain answer to this request, and nothing received before is left,
    /// appends its payload to `to`. False if not; then nothing was done, and [`Channel::fill`] is to look.
    #[inline]
    pub(in crate::client) fn take_answer(&mut self, id: u64, to: &mut Vec<u8>) -> bool {
        let Link::Shm(link) = &mut self.link else {
            return false;
        };
        if self.start != self.end || self.long.is_some() {
            return false;
        }
        let max = self.max_message_bytes;
        let received = link.receive_payload(to, |header| {
            header.msg_id == id
                && header.flags == Flags::RESPONSE
                && header.msg_type != msg_type::ERROR
                && header.length <= max
        });
        self.received_bytes += received as u64;
        received > 0
    }

    fn fill_long(&mut self) -> io::Result<usize> {
        let (Some(long), Link::Shm(link)) = (&mut self.long, &mut self.link) else {
            unreachable!("long answers come out of rings")
        };
        match link.receive_long(long) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(received) => {
                self.received_bytes += received as u64;
                Ok(received)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// Makes room at the end of the receive buffer, for the rest of a frame.
    fn make_room(&mut self) {
        self.input.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.checked_to = self.checked_to.saturating_sub(self.start);
        self.start = 0;
        if self.end > self.input.len() / 2 {
            // Doubled, up to the longest frame that is accepted.
            let longest = HEADER_BYTES + self.max_message_bytes as usize;
            let length = (self.input.len() * 2).min(longest.max(RECEIVE_BYTES) + HEADER_BYTES);
            self.input.resize(length.max(self.end + HEADER_BYTES), 0);
        }
    }

    /// The next whole, verified frame of what was received; `None` if more bytes are needed.
    pub(in crate::client) fn next(&mut self) -> Result<Option<Incoming>, Refusal> {
        if self.start < self.checked_to || self.check_next()? {
            return Ok(Some(self.next_checked()));
        }
        match self.start == self.end {
            true => self.next_long(),
            false => self.scan_other(),
        }
    }

    fn next_checked(&mut self) -> Incoming {
        let header = wire::accepted_header(ProtocolVersion::V2, &self.input[self.start..]);
        let payload_at = self.start + HEADER_BYTES;
        self.start = payload_at + header.length as usize;
        Incoming {
            header,
            payload_at: Some(payload_at),
        }
    }

    /// The next frames in the receive buffer that begin alike, all of them verified; one, if the next is not
    /// like it. `None` if there is no whole frame of version 2.
    #[inline(always)]
    pub(in crate::client) fn row(&mut self) -> Result<Option<Row<'_>>, Refusal> {
        if self.start >= self.checked_to && !self.check_next()? {
            return Ok(None);
        }
        let bytes = &self.input[self.start..self.checked_to];
        let (bytes, frame_bytes) = match self.row_bytes {
            0 => {
                let header = wire::accepted_header(ProtocolVersion::V2, bytes);
                let frame_bytes = HEADER_BYTES + header.length as usize;
                (&bytes[..frame_bytes], frame_bytes)
            }
            frame_bytes => (bytes, frame_bytes),
        };
        Ok(Some(Row {
            bytes,
            frame_bytes,
            start: &mut self.start,
        }))
    }

    /// Makes sure that the next whole version 2 frames are verified. False if there is none.
    fn check_next(&mut self) -> Result<bool, Refusal> {
        let bytes = &self.input[self.start..self.end];
        if bytes.is_empty() {
            return Ok(false);
        }
        // Checked as it was received: only the limit is left to be checked.
        if std::mem::take(&mut self.good_frame)
            && let Ok(Some(_)) = Header::parse(bytes, self.max_message_bytes)
        {
            (self.row_bytes, self.checked_to) = (bytes.len(), self.end);
            return Ok(true);
        }
        self.check_ahead()
    }

    /// Checks the next whole version 2 frames, several at a time. False if there is none.
    fn check_ahead(&mut self) -> Result<bool, Refusal> {
        if self.version != ProtocolVersion::V2 {
            return Ok(false);
        }
        let bytes = &self.input[self.start..self.end];
        let max = self.max_message_bytes;
        let Some(first) = wire::front_frame(bytes, max, &mut GoodFirst::new()) else {
            return Ok(false);
        };
        let frame_bytes = HEADER_BYTES + first.length as usize;
        let ahead = &bytes[..bytes.len().min(frame_bytes.max(AHEAD_BYTES))];
        let count = wire::good_row(ahead, &first);
        (self.row_bytes, self.checked_to) = match count {
            0 => (0, self.start + check_mixed(bytes, max)?),
            _ => (frame_bytes, self.start + count * frame_bytes),
        };
        Ok(true)
    }

    /// The next frame, if it is of version 1. Otherwise there is only a part of one, or none: a long answer
    /// begins to be gathered.
    fn scan_other(&mut self) -> Result<Option<Incoming>, Refusal> {
        let bytes = &self.input[self.start..self.end];
        let scanned = wire::scan(self.version, bytes, self.max_message_bytes);
        match scanned.map_err(|refusal| other_version(self.version, refusal))? {
            Scanned::Part {
                frame_bytes: Some(frame_bytes),
            } if frame_bytes > RECORD_MAX && matches!(self.link, Link::Shm(_)) => {
                let (head, first) = bytes.split_at(HEADER_BYTES);
                if let Ok(Some(header)) = Header::parse(head, self.max_message_bytes) {
                    let buffer = std::mem::take(&mut self.whole);
                    self.long = Some(LongAnswer::begin(header, first, buffer));
                    self.start = self.end;
                }
                Ok(None)
            }
            Scanned::Part { .. } => Ok(None),
            Scanned::Frame {
                header,
                frame_bytes,
            } => {
                let payload_at = Some(self.start + frame_bytes - header.length as usize);
                let incoming = Incoming { header, payload_at };
                if self.version == ProtocolVersion::V2 {
                    wire::verify(&header, self.payload(&incoming))?;
                }
                self.start += frame_bytes;
                Ok(Some(incoming))
            }
        }
    }

    /// The long answer, if one is complete.
    #[inline]
    fn next_long(&mut self) -> Result<Option<Incoming>, Refusal> {
        let complete = |long: &mut LongAnswer| long.missing_bytes() == 0;
        let Some(long) = self.long.take_if(complete) else {
            return Ok(None);
        };
        let (header, payload) = long.finish()?;
        self.whole = payload;
        Ok(Some(Incoming {
            header,
            payload_at: None,
        }))
    }

    #[inline]
    pub(in crate::client) fn payload(&self, incoming: &Incoming) -> &[u8] {
        match incoming.payload_at {
            Some(at) => &self.input[at..][..incoming.header.length as usize],
            None => &self.whole,
        }
    }

    /// Takes the payload of the last long answer without copying it; `next` gives memory for the next.
    pub(in crate::client) fn exchange_payload(&mut self, next: Vec<u8>) -> Vec<u8> {
        std::mem::replace(&mut self.whole, next)
    }
}

/// Checks the whole frames at the front of `bytes`, of which there is at least one. Returns where the good
/// ones end. If the first is bad, that is the error.
fn check_mixed(bytes: &[u8], max_message_bytes: u32) -> Result<usize, Refusal> {
    let mut frames: [&[u8]; VERIFY_BATCH] = [&[]; VERIFY_BATCH];
    let (mut count, mut to) = (0, 0);
    let mut good = GoodFirst::new();
    while count < VERIFY_BATCH
        && let Some(header) = wire::front_frame(&bytes[to..], max_message_bytes, &mut good)
    {
        let frame = &bytes[to..][..HEADER_BYTES + header.length as usize];
        frames[count] = frame;
        count += 1;
        to += frame.len();
    }
    match wire::verify_batch(&frames[..count]) {
        Ok(()) => Ok(to),
        Err((0, refusal)) => Err(refusal),
        // The good ones before it are handed out first.
        Err((bad, _)) => Ok(frames[..bad].iter().map(|frame| frame.len()).sum()),
    }
}

/// A server that speaks version 1 sends no garbage: names the version instead of the magic.
fn other_version(version: ProtocolVersion, refusal: Refusal) -> Refusal {
    match (version, refusal) {
        (ProtocolVersion::V2, Refusal::BadMagic { got: [b'L', ..] }) => {
            Refusal::VersionMismatch { got: 1 }
        }
        (_, refusal) => refusal,
    }
}
