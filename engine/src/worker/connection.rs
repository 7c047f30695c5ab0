//! One connection's state.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use super::deadlines::PROGRESS_BYTES;
use super::outgoing::Outgoing;
use super::session::Session;
use super::shm::ShmLink;
use crate::shm::Ends;
use crate::stats::Transport;
use crate::wire::{Assembler, ProtocolVersion, Refusal};

/// How far a connection is on its way to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Requests are taken.
    Open,
    /// No more requests; answers still owed are delivered, then the sending side is shut down.
    Finishing,
    /// Refused: what is encoded is sent, nothing else, then the sending side is shut down.
    Refused,
    /// Our side is shut down. What still arrives is read and discarded for a short time, since
    /// closing a socket with unread bytes would destroy the answer on its way.
    Lingering,
    /// The descriptor is about to be closed; waiting for operations in flight to end.
    Closing,
}

/// The socket of a connection and what the ring does with it.
pub(super) struct TcpLink {
    /// `None` once given to the driver for closing.
    pub(super) fd: Option<OwnedFd>,
    /// A receive is armed: its end will be reported.
    pub(super) receiving: bool,
    /// The armed receive was asked to end.
    pub(super) stopping: bool,
    /// The peer sends no more.
    pub(super) ended: bool,
    /// The receive ended for want of a buffer, and [`super::starved::Starved`] arms it again.
    pub(super) starved: bool,
    /// Something was received since the receive was armed.
    pub(super) served: bool,
}

/// A client that takes less than this of an answer is treated as if it took so much: it would have streams
/// cut into pieces that are smaller than their headers.
const PEER_MESSAGE_BYTES_MIN: u32 = 1024;

/// What arrived on a connection and is not handled yet, in this order.
#[derive(Default)]
pub(super) struct Waiting {
    /// Whole frames that were found but not handled, because the peer does not read its answers or the
    /// connection has had its turn.
    /// They come before what the assembler holds.
    pub(super) stash: Vec<u8>,
    /// Bytes behind both that were not looked at, because frames before them wait or memory is
    /// short.
    pub(super) behind: Vec<u8>,
    /// The refusal of what follows the stash.
    pub(super) refusal: Option<(Refusal, u64)>,
}

impl Waiting {
    pub(super) fn is_empty(&self) -> bool {
        self.stash.is_empty() && self.behind.is_empty() && self.refusal.is_none()
    }
}

pub(super) struct Connection {
    /// Without a descriptor on a shared-memory connection, but `ended` counts there too.
    pub(super) tcp: TcpLink,
    pub(super) shm: Option<ShmLink>,
    pub(super) peer: Option<SocketAddr>,
    pub(super) session: Session,
    pub(super) phase: Phase,
    pub(super) out: Outgoing,
    pub(super) assembler: Assembler,
    /// What arrived and may not be handled yet. While there is any, nothing is received. Apart,
    /// since most connections never have any.
    pub(super) waiting: Option<Box<Waiting>>,
    /// It is in the worker's list of those with something to send.
    pub(super) dirty: bool,
    /// A bad frame was found in this round: what follows it is not looked at.
    pub(super) poisoned: bool,
    /// While a round's frames are put in order: one of those so far is a part of a stream, or a HANDSHAKE, that
    /// does not go first.
    pub(super) parts_wait: bool,
    /// How long its frames have taken in this round, as far as that was looked at.
    pub(super) spent_ns: u64,
    /// It stands in the line for room.
    pub(super) waits_for_room: bool,
    /// Bytes of the worker's budget that a message on its way in has reserved.
    pub(super) reserved_bytes: u64,
    /// Since when.
    pub(super) reserved_at_ns: u64,
    /// The same for messages that are handled in this round.
    pub(super) handling_bytes: u64,
    /// Bytes of the budget that what is held for this connection takes.
    pub(super) charged_bytes: u64,
    /// When something must have happened; 0: nothing is waited for.
    pub(super) deadline_ns: u64,
    /// Part of the worker's count of bytes on their way out.
    pub(super) accounted_bytes: usize,
    /// Bytes discarded while lingering.
    pub(super) discarded_bytes: u64,
    /// It counts against `max_connections`.
    pub(super) counted: bool,
    /// The deadline is for reading answers, not for finishing a frame.
    pub(super) deadline_is_for_reading: bool,
    /// Bytes received since the deadline for a frame was set, or more if one was completed.
    pub(super) progress_bytes: u64,
    /// Something was received since the last sweep.
    pub(super) active: bool,
}

impl Connection {
    pub(super) fn shm(link: ShmLink, ends: Box<Ends>, session: Session) -> Connection {
        let mut connection = Connection::new(None, None, session);
        connection.shm = Some(link);
        connection.out.ends = Some(ends);
        // The bytes in a ring are version 2 frames.
        connection.session.version = Some(ProtocolVersion::V2);
        connection
    }

    pub(super) fn tcp(fd: OwnedFd, peer: Option<SocketAddr>, session: Session) -> Connection {
        Connection::new(Some(fd), peer, session)
    }

    fn new(fd: Option<OwnedFd>, peer: Option<SocketAddr>, session: Session) -> Connection {
        Connection {
            tcp: TcpLink {
                fd,
                receiving: false,
                stopping: false,
                ended: false,
                starved: false,
                served: false,
            },
            shm: None,
            peer,
            session,
            phase: Phase::Open,
            out: Outgoing::default(),
            assembler: Assembler::default(),
            waiting: None,
            dirty: false,
            poisoned: false,
            parts_wait: false,
            spent_ns: 0,
            waits_for_room: false,
            reserved_bytes: 0,
            reserved_at_ns: 0,
            handling_bytes: 0,
            charged_bytes: 0,
            deadline_ns: 0,
            accounted_bytes: 0,
            discarded_bytes: 0,
            counted: true,
            deadline_is_for_reading: false,
            progress_bytes: 0,
            active: false,
        }
    }

    pub(super) fn transport(&self) -> Transport {
        if self.shm.is_some() {
            Transport::Shm
        } else {
            Transport::Tcp
        }
    }

    /// The version in which errors are written before the peer's first byte has told it.
    pub(super) fn version(&self) -> ProtocolVersion {
        self.session.version.unwrap_or(ProtocolVersion::V2)
    }

    /// A shared-memory connection of which the worker holds nothing: all that came is handled, all
    /// answers are in the ring, nothing is counted anywhere and nothing waited for but requests.
    #[inline]
    pub(super) fn is_at_rest(&self) -> bool {
        self.phase == Phase::Open
            && self.shm.is_some()
            && self.out.is_empty()
            && self.waiting.is_none()
            && self.out.shared.is_none()
            && !self.tcp.ended
            && !self.assembler.is_mid_frame()
            && self.accounted_bytes == 0
            && self.charged_bytes | self.handling_bytes | self.reserved_bytes == 0
            && self.session.is_admitted()
    }

    /// Something that arrived is not handled yet and holds up what comes after it.
    pub(super) fn has_waiting(&self) -> bool {
        self.waiting.is_some()
    }

    /// Whole frames wait, so what comes after them waits too.
    pub(super) fn has_stash(&self) -> bool {
        self.waiting
            .as_ref()
            .is_some_and(|waiting| !waiting.stash.is_empty())
    }

    pub(super) fn waiting(&mut self) -> &mut Waiting {
        self.waiting.get_or_insert_default()
    }

    /// Bytes held in memory for this connection until its peer reads. What waits for room in the
    /// budget is not among them: it must not take the room that it waits for.
    pub(super) fn held_bytes(&self) -> usize {
        let stash = match &self.waiting {
            Some(waiting) if !self.waits_for_room => waiting.stash.len(),
            _ => 0,
        };
        self.out.buffered_bytes() + stash
    }

    /// Room for a long message was reserved.
    pub(super) fn reserve(&mut self, bytes: u64, now_ns: u64) {
        assert!(
            self.reserved_bytes == 0,
            "one message is gathered at a time"
        );
        self.reserved_bytes = bytes;
        self.reserved_at_ns = now_ns;
    }

    /// Puts all deadlines off.
    pub(super) fn excuse(&mut self, by_ns: u64, now_ns: u64) {
        // Who has reserved just now needs no excuse.
        self.reserved_at_ns = (self.reserved_at_ns + by_ns).min(now_ns);
        let deadlines = [&mut self.deadline_ns, &mut self.session.authenticate_by_ns];
        for deadline in deadlines.into_iter().filter(|deadline| **deadline != 0) {
            *deadline = deadline.saturating_add(by_ns);
        }
    }

    /// A message that was gathered is complete: its room is kept until its answer is accounted for.
    pub(super) fn message_complete(&mut self) {
        self.handling_bytes += std::mem::take(&mut self.reserved_bytes);
        self.progress_bytes += PROGRESS_BYTES;
    }

    /// The peer has said how long the payloads may be that it takes.
    pub(super) fn peer_takes(&mut self, bytes_max: u32) {
        let bytes_max = bytes_max.max(PEER_MESSAGE_BYTES_MIN);
        self.session.peer_message_bytes_max = bytes_max;
        self.out.peer_bytes_max = Some(bytes_max);
    }

    /// Requests of this connection are handled.
    #[inline]
    pub(super) fn takes_requests(&self) -> bool {
        self.phase == Phase::Open
    }
}
