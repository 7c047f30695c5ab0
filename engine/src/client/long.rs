//! Frames that are too long for one record of a ring. An answer is copied from the ring straight into the
//! buffer in which it is handed out, and its CRC computed in the same pass. A request is sent from its
//! caller's memory, without a copy in between: while that is lent, only the header and how much is sent are
//! kept here.

use super::Error;
use super::deadline::Deadline;
use super::inner::{Inner, Keep, timeout};
use crate::sys::clock;
use crate::wire::{self, HEADER_BYTES, Header, Refusal, check_crc, crc, make_room};

/// An answer of which not all has come.
#[derive(Debug)]
pub(super) struct LongAnswer {
    header: Header,
    payload: Vec<u8>,
    sum: u32,
}

impl LongAnswer {
    /// Begins with the part of the payload that came with the header. `buffer` gives its memory.
    pub(super) fn begin(header: Header, first: &[u8], mut buffer: Vec<u8>) -> LongAnswer {
        buffer.clear();
        make_room(&mut buffer, first.len(), header.length as usize);
        wire::append(&mut buffer, first);
        LongAnswer {
            header,
            sum: crc::frame_crc(&header.to_bytes(), first),
            payload: buffer,
        }
    }

    pub(super) fn missing_bytes(&self) -> usize {
        self.header.length as usize - self.payload.len()
    }

    /// Has `append` append so many bytes, at most those that are missing, and return the CRC with them.
    pub(super) fn append(&mut self, bytes: usize, append: impl FnOnce(&mut Vec<u8>, u32) -> u32) {
        assert!(bytes <= self.missing_bytes());
        make_room(&mut self.payload, bytes, self.header.length as usize);
        self.sum = append(&mut self.payload, self.sum);
    }

    /// The CRC did not come in the header, but behind the payload.
    pub(super) fn put_crc(&mut self, crc: u32) {
        self.header.crc32 = crc;
    }

    /// The complete answer, if its CRC is right.
    pub(super) fn finish(self) -> Result<(Header, Vec<u8>), Refusal> {
        check_crc(self.header.crc32, self.sum)?;
        Ok((self.header, self.payload))
    }
}

impl Inner {
    /// Sends the lent frame, whose payload this is. As [`Inner::send_queued`], it takes answers while the
    /// server does not read. However this ends, the caller has its memory back.
    pub(super) fn send_lent(
        &mut self,
        payload: &[u8],
        deadline: &mut Deadline,
    ) -> Result<(), Error> {
        // Ends with everything sent, or at the deadline.
        loop {
            let Some(channel) = self.channel.as_mut() else {
                // What was not sent goes over a new connection.
                return self.send_queued(deadline);
            };
            match channel.flush_lent(payload) {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(_) => {
                    channel.give_back(payload);
                    return self.send_queued(deadline);
                }
            }
            let taken = self.take_received(&mut |_| Keep::Queue);
            if std::mem::take(&mut self.unsent_lacks_payload) {
                complete(&mut self.unsent, payload);
            }
            let taken = taken?;
            let Some(channel) = self.channel.as_mut() else {
                continue;
            };
            let Some(left) = deadline.left(clock::now_ns()) else {
                channel.give_back(payload);
                return Err(timeout(deadline));
            };
            if taken == 0 && channel.link.sleep(true, left).is_err() {
                channel.give_back(payload);
                return self.send_queued(deadline);
            }
        }
    }
}

/// Appends the whole frame that begins with this header, with its CRC.
pub(super) fn encode(frames: &mut Vec<u8>, header: &Header, payload: &[u8]) {
    wire::encode_to(
        frames,
        header.flags,
        header.msg_type,
        header.msg_id,
        payload,
    );
}

/// Completes the frame of which only the header is there, at the end of `frames`.
fn complete(frames: &mut Vec<u8>, payload: &[u8]) {
    let begin = frames.len() - HEADER_BYTES;
    let header = Header::of_accepted(&frames[begin..]).expect("a header");
    frames.truncate(begin);
    encode(frames, &header, payload);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Flags;

    #[test]
    fn an_answer_is_whole_or_refused() {
        let payload: Vec<u8> = (0..100_000u32).map(|at| (at / 7) as u8).collect();
        let mut header = Header::new(Flags::RESPONSE, 1, 2, payload.len() as u32);
        header.crc32 = crc::frame_crc(&header.to_bytes(), &payload);
        for broken in [None, Some(50), Some(99_999)] {
            let mut came = payload.clone();
            if let Some(at) = broken {
                came[at] ^= 1;
            }
            let mut long = LongAnswer::begin(header, &came[..1000], Vec::with_capacity(10));
            for piece in came[1000..].chunks(30_000) {
                long.append(piece.len(), |to, sum| {
                    to.extend_from_slice(piece);
                    crc::append(sum, piece)
                });
                // Grows with what comes.
                assert!(long.payload.capacity() <= 2 * long.payload.len());
            }
            assert_eq!(long.missing_bytes(), 0);
            match (broken, long.finish()) {
                (None, Ok((got, bytes))) => assert!(got == header && bytes == payload),
                (Some(_), Err(Refusal::CrcMismatch { expected, got })) => {
                    assert!(expected == header.crc32 && got != expected);
                }
                (_, other) => panic!("{other:?}"),
            }
        }
    }
}
