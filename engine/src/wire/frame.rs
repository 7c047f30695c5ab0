//! Whole version 2 frames.

use super::{Flags, HEADER_BYTES, Header, Refusal, append, crc};

/// Frames that [`verify_batch`] takes at once.
pub const VERIFY_BATCH: usize = 16;

fn header_for(flags: Flags, msg_type: u16, msg_id: u64, payload: &[u8]) -> Header {
    let length = u32::try_from(payload.len()).expect("limits are below 4 GiB");
    Header::new(flags, msg_type, msg_id, length)
}

/// What stays in the first-level cache from the sum to the copy.
const PIECE_BYTES: usize = 16 * 1024;

/// Appends a frame.
#[inline]
pub fn encode_to(out: &mut Vec<u8>, flags: Flags, msg_type: u16, msg_id: u64, payload: &[u8]) {
    let header = header_for(flags, msg_type, msg_id, payload);
    if payload.len() > PIECE_BYTES {
        return encode_large_to(out, header, payload);
    }
    crc::frame_append(out, header.to_words(), payload);
}

/// Piece by piece, so that a payload too large for the cache comes from memory once, not twice.
fn encode_large_to(out: &mut Vec<u8>, mut header: Header, payload: &[u8]) {
    let start = out.len();
    out.reserve(HEADER_BYTES + payload.len());
    out.extend_from_slice(&header.to_bytes());
    let mut crc = crc::header_seed(&header.to_bytes());
    for piece in payload.chunks(PIECE_BYTES) {
        crc = crc::append(crc, piece);
        append(out, piece);
    }
    header.crc32 = crc;
    out[start..start + HEADER_BYTES].copy_from_slice(&header.to_bytes());
}

/// Checks a frame's CRC.
#[inline]
pub fn verify(header: &Header, payload: &[u8]) -> Result<(), Refusal> {
    check_crc(header.crc32, crc::frame_crc(&header.to_bytes(), payload))
}

/// Whether the CRC that a frame says is the one that it has.
#[inline]
pub(crate) fn check_crc(expected: u32, got: u32) -> Result<(), Refusal> {
    match expected == got {
        true => Ok(()),
        false => Err(Refusal::CrcMismatch { expected, got }),
    }
}

/// Checks the CRCs of up to [`VERIFY_BATCH`] frames, given as the bytes on the wire: several at
/// once are faster than one by one. Returns the first that is wrong: its index and its refusal.
///
/// # Panics
/// If there are more, or one is shorter than a header.
pub fn verify_batch(frames: &[&[u8]]) -> Result<(), (usize, Refusal)> {
    assert!(frames.len() <= VERIFY_BATCH);
    let mut crcs = [0u32; VERIFY_BATCH];
    crc::frame_batch(frames, &mut crcs[..frames.len()]);
    for (index, (frame, &got)) in frames.iter().zip(&crcs).enumerate() {
        let expected = Header::of_accepted(frame).map_or(0, |header| header.crc32);
        check_crc(expected, got).map_err(|refusal| (index, refusal))?;
    }
    Ok(())
}

/// How many whole frames at the front of `bytes` begin alike, with the same flags, type and length, and
/// have the right CRC. The first, whose header [`super::front_frame`] found to be good, has this header:
/// so all of theirs are. 0 also if there are no two such frames, which are better verified with others,
/// by [`verify_batch`].
#[inline]
pub(crate) fn good_row(bytes: &[u8], first: &Header) -> usize {
    let frame_bytes = HEADER_BYTES + first.length as usize;
    let begin = |at: usize| {
        let words = crc::header_words(bytes.get(at..)?.first_chunk()?);
        Some((words[0], words[1] as u32))
    };
    match begin(0) == begin(frame_bytes) {
        true => crc::count_good(bytes, frame_bytes, first.flags.contains(Flags::REQUEST)),
        false => 0,
    }
}
