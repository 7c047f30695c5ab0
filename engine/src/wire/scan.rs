//! Frames in bytes that come in any split.
//!
//! [`scan`] looks whether a whole frame lies at the front of some bytes. If so, it is used where it lies, without a copy.
//! Only a frame that is cut in two is gathered by an [`Assembler`], in memory that grows as its bytes arrive.

use super::crc::header_words;
use super::{GoodFirst, Header, ProtocolVersion, Refusal, append, check_crc, crc, legacy};

/// What lies at the front of some bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scanned {
    /// A whole frame of `frame_bytes`, of which the last `header.length` are payload. Its CRC is
    /// not checked yet.
    Frame {
        /// The header.
        header: Header,
        /// Bytes of the frame, header included.
        frame_bytes: usize,
    },
    /// The beginning of one.
    Part {
        /// The length of the whole frame; `None` if its header is not complete.
        frame_bytes: Option<usize>,
    },
}

/// Bytes of a header of this version.
pub fn header_bytes(version: ProtocolVersion) -> usize {
    match version {
        ProtocolVersion::V1 => legacy::HEADER_BYTES,
        ProtocolVersion::V2 => super::HEADER_BYTES,
    }
}

/// Looks at the front of `bytes`.
#[inline]
pub fn scan(
    version: ProtocolVersion,
    bytes: &[u8],
    max_message_bytes: u32,
) -> Result<Scanned, Refusal> {
    let header = match version {
        ProtocolVersion::V2 => Header::parse(bytes, max_message_bytes)?,
        ProtocolVersion::V1 => legacy::parse(bytes, max_message_bytes)?,
    };
    let Some(header) = header else {
        return Ok(Scanned::Part { frame_bytes: None });
    };
    let frame_bytes = header_bytes(version) + header.length as usize;
    if bytes.len() >= frame_bytes {
        Ok(Scanned::Frame {
            header,
            frame_bytes,
        })
    } else {
        Ok(Scanned::Part {
            frame_bytes: Some(frame_bytes),
        })
    }
}

/// The header of the version 2 frame at the front of `bytes`, if a whole one is there that [`scan`] accepts. After `None`,
/// [`scan`] tells why. For loops over many frames: the header stays in registers.
#[inline(always)]
pub(crate) fn front_frame(
    bytes: &[u8],
    max_message_bytes: u32,
    good: &mut GoodFirst,
) -> Option<Header> {
    let header = good.header(header_words(bytes.first_chunk()?))?;
    let whole = bytes.len() - super::HEADER_BYTES >= header.length as usize;
    (whole && header.length <= max_message_bytes).then_some(header)
}

/// The header of a frame that [`scan`] has accepted.
#[inline(always)]
pub(crate) fn accepted_header(version: ProtocolVersion, frame: &[u8]) -> Header {
    let header = match version {
        ProtocolVersion::V2 => Header::of_accepted(frame),
        ProtocolVersion::V1 => legacy::parse(frame, u32::MAX).ok().flatten(),
    };
    header.expect("it was accepted")
}

/// The frame at the front of `bytes`, version 2, that [`scan`] has accepted.
#[inline(always)]
pub(crate) fn accepted_frame(bytes: &[u8]) -> &[u8] {
    let header = Header::of_accepted(bytes).expect("it was accepted");
    &bytes[..super::HEADER_BYTES + header.length as usize]
}

/// Makes room for `bytes` more of a frame of `goal` bytes. The buffer at most doubles as bytes arrive; it does not grow
/// to the length that the header names before the bytes are there, and never beyond that.
pub(crate) fn make_room(buffer: &mut Vec<u8>, bytes: usize, goal: usize) {
    let needed = buffer.len() + bytes;
    if needed > buffer.capacity() {
        let room = (2 * buffer.capacity()).min(goal).max(needed);
        buffer.reserve_exact(room - buffer.len());
    }
}

/// Gathers one frame from pieces.
#[derive(Debug, Default)]
pub struct Assembler {
    /// What is there of the frame, header first.
    gathered: Vec<u8>,
    /// The frame's length, once its header is there.
    frame_bytes: Option<usize>,
    /// The CRC of what was gathered, if that is computed as the bytes arrive.
    sum: Option<u32>,
}

impl Assembler {
    /// Whether a frame is being gathered.
    #[inline]
    pub fn is_mid_frame(&self) -> bool {
        !self.gathered.is_empty()
    }

    /// What was gathered so far, header first.
    pub fn gathered(&self) -> &[u8] {
        &self.gathered
    }

    #[cfg(test)]
    pub(super) fn capacity_bytes(&self) -> usize {
        self.gathered.capacity()
    }

    /// Takes from the front of `bytes` what belongs to the frame being gathered, or begins one.
    /// Returns how many bytes it took and, once the frame is complete, its header; then
    /// [`Assembler::take`] gives the frame. On a refusal the connection is to be closed.
    pub fn push(
        &mut self,
        version: ProtocolVersion,
        bytes: &[u8],
        max_message_bytes: u32,
    ) -> Result<(usize, Option<Header>), Refusal> {
        let mut taken = 0;
        self.sum = None;
        // Twice at most: to the end of the header, then to the end of the frame.
        loop {
            let goal = self.frame_bytes.unwrap_or(header_bytes(version));
            let piece = &bytes[taken..][..(goal - self.gathered.len()).min(bytes.len() - taken)];
            make_room(&mut self.gathered, piece.len(), goal);
            append(&mut self.gathered, piece);
            taken += piece.len();
            if self.frame_bytes.is_some() && self.gathered.len() < goal {
                return Ok((taken, None));
            }
            match scan(version, &self.gathered, max_message_bytes)? {
                Scanned::Frame { header, .. } => return Ok((taken, Some(header))),
                Scanned::Part { frame_bytes: None } => return Ok((taken, None)),
                Scanned::Part { frame_bytes } => self.frame_bytes = frame_bytes,
            }
        }
    }

    /// If only a part of a header was gathered, takes that out.
    pub fn take_cut_header(&mut self) -> Option<Vec<u8>> {
        let cut = self.is_mid_frame() && self.frame_bytes.is_none();
        cut.then(|| std::mem::take(&mut self.gathered))
    }

    /// How much is missing of the frame being gathered, once its header is there. (Version 2.)
    #[inline]
    pub fn missing_bytes(&self) -> Option<usize> {
        Some(self.frame_bytes? - self.gathered.len())
    }

    /// Appends `bytes` bytes by a function that also computes the CRC: `append` gets the buffer, with room for them, and
    /// the CRC so far, and returns the CRC with them. Only if the header is there and at least as many bytes are missing.
    /// (Version 2.)
    pub fn append_summed(&mut self, bytes: usize, append: impl FnOnce(&mut Vec<u8>, u32) -> u32) {
        let goal = self.frame_bytes.expect("the header is there");
        assert!(self.gathered.len() + bytes <= goal);
        let sum = self.sum.unwrap_or_else(|| {
            let (header, payload) = self.gathered.split_first_chunk().expect("the header");
            crc::frame_crc(header, payload)
        });
        make_room(&mut self.gathered, bytes, goal);
        self.sum = Some(append(&mut self.gathered, sum));
    }

    /// The frame's CRC did not come in its header, but apart: puts it there. Only if the header is there. (Version 2.)
    pub fn put_crc(&mut self, crc: u32) {
        let header = self
            .gathered
            .first_chunk_mut()
            .expect("the header is there");
        crc::put(header, crc);
    }

    /// If the frame is complete and was gathered by [`Assembler::append_summed`], takes it out: its header and all its
    /// bytes, or a refusal if its CRC is wrong.
    pub fn take_summed(&mut self) -> Option<Result<(Header, Vec<u8>), Refusal>> {
        let got = self.sum.filter(|_| self.missing_bytes() == Some(0))?;
        let frame = self.take();
        // Its limits were checked when it was begun.
        let header = match Header::parse(&frame, u32::MAX) {
            Ok(header) => header?,
            Err(refusal) => return Some(Err(refusal)),
        };
        Some(check_crc(header.crc32, got).map(|()| (header, frame)))
    }

    /// Gathers the next frame in this buffer, whose contents are dropped. Not in the middle of a frame.
    pub fn lend(&mut self, mut buffer: Vec<u8>) {
        assert!(!self.is_mid_frame(), "a buffer is lent between frames");
        buffer.clear();
        self.gathered = buffer;
    }

    /// Takes the complete frame out, header first. Keeps no memory.
    pub fn take(&mut self) -> Vec<u8> {
        self.frame_bytes = None;
        self.sum = None;
        std::mem::take(&mut self.gathered)
    }
}
