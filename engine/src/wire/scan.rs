//! Frames in bytes that come in any split.
//!
//! [`scan`] looks at the front of a run of bytes and says whether a whole frame lies there: then it
//! is used where it lies, without a copy. Only a frame that a run of bytes cuts in two is gathered,
//! by an [`Assembler`], in memory that grows as its bytes arrive.

use super::{Header, ProtocolVersion, Refusal, append, legacy};

/// What lies at the front of a run of bytes.
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
    /// The beginning of one, whose length is known once its header is there.
    Part {
        /// Bytes of the whole frame.
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

/// The header of the whole version 2 frame at the front of `bytes`, if one is there that [`scan`]
/// accepts; `None` says nothing. For loops over many frames: it stays in registers.
#[inline(always)]
pub(crate) fn front_frame(bytes: &[u8], max_message_bytes: u32) -> Option<Header> {
    let header = Header::first_of(bytes)?;
    let whole = bytes.len() - super::HEADER_BYTES >= header.length as usize;
    (whole && header.length <= max_message_bytes).then_some(header)
}

/// The header of a frame that [`scan`] has accepted.
#[inline(always)]
pub(crate) fn accepted_header(version: ProtocolVersion, frame: &[u8]) -> Header {
    let header = match version {
        ProtocolVersion::V2 => Header::first_of(frame),
        ProtocolVersion::V1 => legacy::parse(frame, u32::MAX).ok().flatten(),
    };
    header.expect("it was accepted")
}

/// Gathers one frame from pieces.
#[derive(Debug, Default)]
pub struct Assembler {
    gathered: Vec<u8>,
    frame_bytes: Option<usize>,
}

impl Assembler {
    /// Whether a frame was begun and is not complete.
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
        // Twice at most: to the end of the header, then to the end of the frame.
        loop {
            let goal = self.frame_bytes.unwrap_or(header_bytes(version));
            let piece = &bytes[taken..][..(goal - self.gathered.len()).min(bytes.len() - taken)];
            // Grows with what arrives, at most twofold, never on the header's word alone, and never
            // beyond the frame.
            let needed = self.gathered.len() + piece.len();
            if needed > self.gathered.capacity() {
                let room = (2 * self.gathered.capacity()).min(goal).max(needed);
                self.gathered.reserve_exact(room - self.gathered.len());
            }
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

    /// Gathers the next frame in this buffer, whatever it holds. Not in the middle of a frame.
    pub fn lend(&mut self, mut buffer: Vec<u8>) {
        assert!(!self.is_mid_frame(), "a buffer is lent between frames");
        buffer.clear();
        self.gathered = buffer;
    }

    /// The complete frame, header first. Keeps no memory.
    pub fn take(&mut self) -> Vec<u8> {
        self.frame_bytes = None;
        std::mem::take(&mut self.gathered)
    }
}
