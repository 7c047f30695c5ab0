//! Where everything lies in a connection's segment.
//!
//! ```text
//! page 0    0  magic                                          u64
//!           8  version of this layout                         u32
//!          12  CAPACITY of each ring, in bytes                u32
//!          16  the server's pid                               u32
//!          20  the number of the worker that serves this      u32
//!          24  the connection's ready bit                     u32
//!          28  delivered: not 0 once the worker has it        u32
//!          32  the longest payload that the server accepts    u32
//!          36  the same of the client, 0 if it does not say   u32
//!          40  life: a random number of the connection        u64
//!          48  whether the client holds the lock on the byte of this number in the control
//!              segment's file, which shows that it is alive   u32
//!          64  how far the server has consumed    (u64, written by the server)
//!         128  the server's flags                 (written by the server)
//!         192  how far the client has consumed    (u64, written by the client)
//!         256  the client's flags                 (written by the client)
//!         512  the hot area of the ring to the server, 1,792 bytes
//!        2304  the hot area of the ring to the client, 1,792 bytes
//! page 1.. 4096  the rest of the ring to the server, then that of the ring to the client
//! ```
//!
//! Small messages stay in the hot areas, so that such a connection touches one page.
//!
//! A record is a u64 commit word, then data; it begins at a cache line. The data are a piece of the stream of
//! version 2 frames, normally whole frames.

pub(crate) use super::sizes::RECORD_MAX;
pub(super) use super::sizes::{CAPACITY, HOT, PAGE};

/// "LAPSHM02" as a number.
pub(super) const MAGIC: u64 = u64::from_le_bytes(*b"LAPSHM02");
/// Changes whenever anything here does.
pub(super) const VERSION: u32 = 5;

pub(super) const AT_MAGIC: usize = 0;
pub(super) const AT_VERSION: usize = 8;
pub(super) const AT_CAPACITY: usize = 12;
pub(super) const AT_SERVER_PID: usize = 16;
pub(super) const AT_WORKER: usize = 20;
pub(super) const AT_READY_BIT: usize = 24;
pub(super) const AT_DELIVERED: usize = 28;
pub(super) const AT_SERVER_BYTES_MAX: usize = 32;
pub(super) const AT_CLIENT_BYTES_MAX: usize = 36;
pub(super) const AT_LIFE: usize = 40;
pub(super) const AT_CLIENT_HOLDS: usize = 48;

/// Bytes of a connection's segment.
pub(super) const SEGMENT_BYTES: usize = PAGE + 2 * (CAPACITY - HOT);
/// Records begin at multiples of this, a cache line: two records share none.
pub(super) const ALIGN: usize = 64;
/// Bytes of a commit word.
pub(super) const WORD: usize = 8;

/// Offsets within a line of flags.
pub(super) const FLAG_WAITING: usize = 0;
pub(super) const FLAG_WANTS_ROOM: usize = 4;
pub(super) const FLAG_CLOSED: usize = 8;

/// The places of one ring.
#[derive(Clone, Copy, Debug)]
pub(super) struct RingPlaces {
    pub(super) hot: usize,
    pub(super) main: usize,
    /// The consumer's position.
    pub(super) consumed: usize,
    /// Flags of the side that consumes this ring, and of the side that produces into it.
    pub(super) consumer_flags: usize,
    pub(super) producer_flags: usize,
}

pub(super) static TO_SERVER: RingPlaces = RingPlaces {
    hot: 512,
    main: PAGE,
    consumed: 64,
    consumer_flags: 128,
    producer_flags: 256,
};
pub(super) static TO_CLIENT: RingPlaces = RingPlaces {
    hot: 512 + HOT,
    main: PAGE + CAPACITY - HOT,
    consumed: 192,
    consumer_flags: 256,
    producer_flags: 128,
};

const _: () = assert!(CAPACITY.is_power_of_two() && CAPACITY >= 4 * (RECORD_MAX + WORD));
const _: () = assert!(TO_CLIENT.hot + HOT == PAGE);
const _: () = assert!(HOT.is_multiple_of(ALIGN) && TO_SERVER.hot.is_multiple_of(64));
const _: () = assert!(RECORD_MAX + WORD <= CAPACITY - HOT);

/// Where a record may begin, computed once for everything that is done there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// Its position: bytes since the connection began. It only grows.
    pub(super) position: u64,
    /// Its offset in the segment.
    pub(super) address: usize,
    /// Bytes from here to the end of the area (hot or main), at least [`ALIGN`]. No record crosses that end.
    pub(super) left: usize,
}

impl Place {
    /// How far from the start of its lap it is.
    #[inline]
    pub(super) fn offset(&self) -> usize {
        self.position as usize & (CAPACITY - 1)
    }

    /// The position at which its lap began.
    #[inline]
    pub(super) fn lap(&self) -> u64 {
        self.position & !(CAPACITY as u64 - 1)
    }
}

impl RingPlaces {
    /// The place at a position.
    #[inline(always)]
    pub(super) fn place(&self, position: u64) -> Place {
        let offset = position as usize & (CAPACITY - 1);
        let (address, left) = match offset < HOT {
            true => (self.hot + offset, HOT - offset),
            false => (self.main + offset - HOT, CAPACITY - offset),
        };
        Place {
            position,
            address,
            left,
        }
    }

    /// The place that many bytes further; at most as many as are left of the area.
    #[inline(always)]
    pub(super) fn after(&self, place: Place, bytes: usize) -> Place {
        let position = place.position + bytes as u64;
        if bytes >= place.left {
            return self.place(position);
        }
        Place {
            position,
            address: place.address + bytes,
            left: place.left - bytes,
        }
    }

    /// Where the next lap begins.
    #[inline(always)]
    pub(super) fn next_lap(&self, place: Place) -> Place {
        Place {
            position: place.lap() + CAPACITY as u64,
            address: self.hot,
            left: HOT,
        }
    }
}

/// How many bytes a record with `length` bytes of data takes in the ring.
#[inline]
pub(super) fn record_bytes(length: usize) -> usize {
    // As `next_multiple_of`, without the test for a remainder.
    (WORD + length + ALIGN - 1) & !(ALIGN - 1)
}
