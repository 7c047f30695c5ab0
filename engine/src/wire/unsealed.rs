//! Short frames that are encoded without their CRCs, which are computed later for several together ("sealed"). In the CRC
//! of a single frame each step waits for the last; with several frames, the processor works on them at the same time.

use super::frame::VERIFY_BATCH;
use super::scan::accepted_frame;
use super::{Flags, HEADER_BYTES, Header, crc};

/// Which bytes at the end of a buffer are whole frames without their CRCs.
#[derive(Debug, Default)]
pub(crate) struct Unsealed {
    /// How many bytes.
    bytes: usize,
    /// The length of each frame, if all are equally long; otherwise 0.
    frame_bytes: usize,
}

impl Unsealed {
    /// The longest payload of a short frame: up to this, CRCs are better computed for several frames together.
    pub(crate) const PAYLOAD_BYTES_MAX: usize = crc::SHORT_BYTES_MAX - HEADER_BYTES;

    /// Whether a frame with a payload of this length is short.
    #[inline(always)]
    pub(crate) fn takes(payload_bytes: usize) -> bool {
        payload_bytes <= Unsealed::PAYLOAD_BYTES_MAX
    }

    /// How many bytes lack their CRCs.
    #[inline(always)]
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Appends a frame that [`Unsealed::takes`] to the buffer. Its CRC is left to [`Unsealed::seal`].
    #[inline(always)]
    pub(crate) fn append(
        &mut self,
        to: &mut Vec<u8>,
        flags: Flags,
        msg_type: u16,
        msg_id: u64,
        payload: &[u8],
    ) {
        debug_assert!(Unsealed::takes(payload.len()));
        let header = Header::new(flags, msg_type, msg_id, payload.len() as u32);
        crc::frame_append_unsummed(to, header.to_words(), payload);
        let frame_bytes = HEADER_BYTES + payload.len();
        if self.frame_bytes != frame_bytes {
            self.frame_bytes = if self.bytes == 0 { frame_bytes } else { 0 };
        }
        self.bytes += frame_bytes;
    }

    /// Computes the missing CRCs of the frames at the end of the buffer. It must be called before anything else is
    /// appended to the buffer, or any of these frames is sent.
    #[inline]
    pub(crate) fn seal(&mut self, buffer: &mut [u8]) {
        if self.bytes > 0 {
            let start = buffer.len() - std::mem::take(&mut self.bytes);
            match self.frame_bytes {
                0 => seal(&mut buffer[start..]),
                frame_bytes => crc::seal_row(&mut buffer[start..], frame_bytes),
            }
        }
    }

    /// The buffer was dropped.
    pub(crate) fn forget(&mut self) {
        self.bytes = 0;
    }
}

/// Computes the CRCs of whole frames that lie one behind the other.
fn seal(mut rest: &mut [u8]) {
    let mut crcs = [0u32; VERIFY_BATCH];
    // Each pass takes at least one frame.
    while !rest.is_empty() {
        let mut frames: [&[u8]; VERIFY_BATCH] = [&[]; VERIFY_BATCH];
        let (mut count, mut end) = (0, 0);
        while count < VERIFY_BATCH && end < rest.len() {
            let frame = accepted_frame(&rest[end..]);
            frames[count] = frame;
            count += 1;
            end += frame.len();
        }
        let lengths = frames.map(<[u8]>::len);
        crc::frame_batch(&frames[..count], &mut crcs[..count]);
        for (&sum, length) in crcs[..count].iter().zip(lengths) {
            let (frame, behind) = rest.split_at_mut(length);
            crc::put(frame.first_chunk_mut().expect("it was accepted"), sum);
            rest = behind;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::encode_to;
    use super::*;

    proptest! {
        /// Sealed at whatever time, and behind whatever was there, frames are what they are encoded
        /// one by one.
        #[test]
        fn as_if_encoded_one_by_one(
            frames in proptest::collection::vec((any::<u64>(), 0..=Unsealed::PAYLOAD_BYTES_MAX, any::<bool>()), 0..60),
            before in 0..50usize,
        ) {
            let mut unsealed = Unsealed::default();
            let mut expected = vec![0xA5; before];
            let mut got = expected.clone();
            for (id, length, seal_now) in frames {
                let payload: Vec<u8> = (0..length).map(|at| (id.wrapping_mul(at as u64) >> 3) as u8).collect();
                let flags = Flags::REQUEST;
                encode_to(&mut expected, flags, 7, id, &payload);
                unsealed.append(&mut got, flags, 7, id, &payload);
                if seal_now {
                    unsealed.seal(&mut got);
                    prop_assert_eq!(unsealed.bytes(), 0);
                }
            }
            unsealed.seal(&mut got);
            prop_assert_eq!(got, expected);
        }
    }
}
