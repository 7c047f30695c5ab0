//! For the C library: requests whose payload the program writes itself, straight into the ring if possible.
//! The memory is handed out as a raw pointer only, so safe code cannot reach it.

use super::Error;
use super::deadline::Deadline;
use super::histogram;
use super::inner::Inner;
use super::send::check_type;
use super::shm::Held;
use crate::shm::Reservation;
use crate::wire::{Flags, Header};

/// Payloads begin at a multiple of this, in a ring and elsewhere.
const ALIGN: usize = 32;

/// A request whose payload is being written.
#[derive(Debug)]
pub(super) struct Reserved {
    msg_type: u16,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Ring(Reservation),
    /// Private memory, from which the payload is sent in the ordinary way.
    Memory {
        bytes: Vec<u8>,
        /// Where in `bytes` the aligned payload begins.
        lead: usize,
    },
}

impl Place {
    fn memory(length: usize) -> Place {
        let bytes = vec![0; length + ALIGN];
        let lead = bytes.as_ptr().align_offset(ALIGN).min(ALIGN);
        Place::Memory { bytes, lead }
    }

    fn data(&mut self) -> *mut u8 {
        match self {
            Place::Ring(reservation) => reservation.data(),
            Place::Memory { bytes, lead } => bytes[*lead..].as_mut_ptr(),
        }
    }

    fn capacity(&self) -> usize {
        match self {
            Place::Ring(reservation) => reservation.capacity(),
            Place::Memory { bytes, .. } => bytes.len() - ALIGN,
        }
    }
}

const NOTHING_RESERVED: Error = Error::InvalidRequest("nothing is reserved");

impl Inner {
    /// Reserves memory for the payload of a request: returns its address and size. Sends what is queued,
    /// because the request comes after it; waits as [`Inner::submit`] does.
    pub(super) fn reserve(
        &mut self,
        msg_type: u16,
        length: usize,
        deadline: &mut Deadline,
    ) -> Result<(*mut u8, usize), Error> {
        if self.reserved.is_some() {
            return Err(Error::InvalidRequest("a reservation is open already"));
        }
        check_type(msg_type)?;
        self.check_length(length, deadline)?;
        self.ready_to_submit(length, deadline)?;
        let mut place = None;
        if self.send_some()?
            && let Some(channel) = self.channel.as_mut()
        {
            place = channel.reserve(length).map(Place::Ring);
        }
        let mut place = place.unwrap_or_else(|| Place::memory(length));
        let given = (place.data(), place.capacity());
        self.reserved = Some(Reserved { msg_type, place });
        Ok(given)
    }

    /// Sends the first bytes of what was reserved as a request. The reservation ends, unless the
    /// length is more than was reserved.
    pub(super) fn commit(&mut self, length: usize, deadline: &mut Deadline) -> Result<u64, Error> {
        let reserved = self.reserved.take_if(|it| length <= it.place.capacity());
        let Some(Reserved { msg_type, place }) = reserved else {
            return Err(match self.reserved {
                Some(_) => Error::InvalidRequest("longer than what was reserved"),
                None => NOTHING_RESERVED,
            });
        };
        let reservation = match place {
            Place::Ring(reservation) => reservation,
            Place::Memory { bytes, lead } => {
                let payload = &bytes[lead..][..length];
                return self.submit_within(Flags::NONE, msg_type, payload, deadline);
            }
        };
        if self.flights.count() == 0 || self.channel.is_none() {
            self.ready_to_send(length, deadline)?;
        }
        let channel = self.channel.as_mut().expect("ready to send");
        match channel.look_at(&reservation) {
            Held::Here if !self.flights.is_full() => {}
            Held::Overwritten => {
                return Err(Error::InvalidRequest(
                    "something else was sent after reserving",
                ));
            }
            _ => {
                let payload = reservation.copy_out(length);
                return self.submit_within(Flags::NONE, msg_type, &payload, deadline);
            }
        }
        let began_ns = histogram::clock_ns(&self.round_trips);
        let id = self.flights.begin(channel.next_begins_at(), began_ns);
        self.stats.sent += 1;
        // It fits into a record, so its length fits into a u32.
        let header = Header::new(Flags::REQUEST, msg_type, id, length as u32);
        channel.commit(&reservation, header);
        Ok(id)
    }

    /// Gives up what was reserved.
    pub(super) fn abort(&mut self) -> Result<(), Error> {
        self.reserved.take().map(drop).ok_or(NOTHING_RESERVED)
    }
}
