//! Room in a ring that the program fills itself: a frame's payload is written where it is sent from.
//!
//! A reservation stores nothing in the ring, so that giving it up takes nothing back, and the other
//! side learns of it only by the commit. It stands where the producer stood: whatever is pushed
//! after it lies over it.

use std::mem::MaybeUninit;
use std::sync::Arc;

use super::layout::{Place, RECORD_MAX, WORD, record_bytes};
use super::producer::{Producer, write_head};
use crate::sys::segment::Segment;
use crate::wire::{HEADER_BYTES, Header, crc};

/// Payloads are summed in pieces of this size, which stay in the nearest cache.
const PIECE_BYTES: usize = 4096;

/// Room for one frame in a ring. The memory stays mapped as long as this lives.
#[derive(Debug)]
pub(crate) struct Reservation {
    segment: Arc<Segment>,
    /// Where the producer stood.
    from: u64,
    /// Where the record begins.
    at: Place,
    capacity: usize,
}

impl Reservation {
    /// Where the payload is to be written. Another process may see and change what is there, so no
    /// reference to it can be had.
    pub(crate) fn data(&self) -> *mut u8 {
        let offset = self.at.address + WORD + HEADER_BYTES;
        self.segment.at(offset, self.capacity)
    }

    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    /// The payload's first bytes as they are now, in private memory.
    ///
    /// # Panics
    /// If there is room for fewer.
    pub(crate) fn copy_out(&self, length: usize) -> Vec<u8> {
        assert!(length <= self.capacity);
        let mut bytes = Vec::with_capacity(length);
        // SAFETY: `data` is valid for the capacity while the segment is mapped, which it is;
        // private memory does not overlap it. Whoever writes meanwhile: the bytes are what they are.
        unsafe {
            std::ptr::copy_nonoverlapping(self.data(), bytes.as_mut_ptr(), length);
            bytes.set_len(length);
        }
        bytes
    }

    /// The CRC of a frame with the payload that is there. Each byte is read once and nothing is
    /// made of it, so a program that still writes has a wrong CRC, and no worse.
    fn frame_crc(&self, head: &[u8; HEADER_BYTES], length: usize) -> u32 {
        assert!(length <= self.capacity);
        let mut scratch = [MaybeUninit::<u8>::uninit(); PIECE_BYTES];
        let mut sum = crc::header_seed(head);
        let mut done = 0;
        // Bounded by the room.
        while done < length {
            let piece = (length - done).min(PIECE_BYTES);
            // SAFETY: the piece lies in the room that is mapped, and in the scratch memory, which
            // is private.
            sum = unsafe {
                let from = self.data().add(done);
                crc::copy_raw(scratch.as_mut_ptr().cast(), from, piece, sum)
            };
            done += piece;
        }
        sum
    }
}

impl Producer {
    /// Room for a frame with so many bytes of payload. `None`: there is none now, or never for one
    /// as long as this.
    pub(crate) fn reserve(&mut self, payload_bytes: usize) -> Option<Reservation> {
        let length = HEADER_BYTES + payload_bytes;
        if length > RECORD_MAX {
            return None;
        }
        let at = self.plan(length)?;
        self.overwritten(at, record_bytes(length));
        Some(Reservation {
            segment: self.segment.clone(),
            from: self.next.position,
            at,
            capacity: payload_bytes,
        })
    }

    /// Whether the reservation is of this ring.
    pub(crate) fn made(&self, reservation: &Reservation) -> bool {
        Arc::ptr_eq(&self.segment, &reservation.segment)
    }

    /// Whether nothing was pushed since, so that the reserved bytes are the program's.
    pub(crate) fn holds(&self, reservation: &Reservation) -> bool {
        self.made(reservation) && self.next.position == reservation.from
    }

    /// Publishes a frame whose payload the program has written. `ack` is how far we have consumed
    /// the other ring.
    ///
    /// # Panics
    /// If the reservation is not held, or shorter than the header says.
    pub(crate) fn commit(&mut self, reservation: &Reservation, header: Header, ack: u64) {
        assert!(self.holds(reservation));
        let payload_bytes = header.length as usize;
        let crc = reservation.frame_crc(&header.to_bytes(), payload_bytes);
        let length = HEADER_BYTES + payload_bytes;
        let word = self.settle(reservation.at, length, ack, true);
        let data = self.data(reservation.at, length);
        // SAFETY: `data` is valid for a header and more.
        unsafe { write_head(data, header.to_words(), crc) };
        self.publish(reservation.at, word);
    }
}
