//! One connection's state, as its worker keeps it: how far it is on its way to its end, what arrived and
//! waits, what goes out, what it holds of the memory budget, and by when its peer must do something.

use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use super::deadlines::PROGRESS_BYTES;
use super::outgoing::Outgoing;
use super::session::Session;
use super::shm::ShmState;
use crate::shm::Ends;
use crate::stats::Transport;
use crate::wire::{Assembler, ProtocolVersion, Refusal};

/// How far a connection is on its way to its end. It only moves forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Requests are taken.
    Open,
    /// No more requests are taken: the peer has ended, or the server drains. Answers still owed are
    /// delivered, then our sending side is shut down.
    Finishing,
    /// The connection is refused, because its peer broke a rule or was late, or because there are too many;
    /// an ERROR frame says why. What is encoded is sent and nothing else; then our sending side is shut down.
    Refused,
    /// Our sending side is shut down. What still arrives is read and discarded for a short time, since
    /// to close a socket with unread bytes resets the connection, which takes back the answer on its way.
    Lingering,
    /// The descriptor is closed as soon as no operation in flight names it.
    Closing,
}

/// The socket of a connection, and what the io_uring does with it.
pub(super) struct TcpState {
    /// `None` over shared memory. Otherwise it stays for as long as the connection.
    pub(super) fd: Option<OwnedFd>,
    /// A receive is armed: an event will tell of its end.
    pub(super) receiving: bool,
    /// The armed receive was asked to end.
    pub(super) stopping: bool,
    /// The receive ended because no buffer was free; [`super::starved::Starved`] arms it again.
    pub(super) starved: bool,
    /// Something was received since the receive was armed.
    pub(super) served: bool,
    /// When to look whether the peer has reset it, of which its receive may not tell: see
    /// [`super::deadlines`]. 0: not.
    pub(super) reset_look_ns: u64,
}

impl TcpState {
    /// The socket's descriptor; `None` over shared memory.
    #[inline]
    pub(super) fn raw_fd(&self) -> Option<RawFd> {
        self.fd.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// It is a socket from which nothing is being received.
    pub(super) fn is_unarmed(&self) -> bool {
        self.fd.is_some() && !self.receiving
    }
}

/// A client that says it accepts less than this is treated as if it accepted this much: streams to it
/// would be cut into pieces smaller than their headers.
const PEER_MESSAGE_BYTES_MIN: u32 = 1024;

/// What arrived on a connection and could not be handled yet. In the order of arrival: `stash`, then what
/// the connection's assembler holds, then `behind`, then `refusal`.
#[derive(Default)]
pub(super) struct Waiting {
    /// Whole frames that were found and verified but not handled: the peer does not read its answers
    /// (backpressure), or the connection has had its turn in this round.
    pub(super) stash: Vec<u8>,
    /// Bytes that were not scanned for frames, because frames before them wait, or the message that they
    /// belong to waits for room in the budget.
    pub(super) behind: Vec<u8>,
    /// What follows the stash is no acceptable frame: why, and the message id to be named. It is told
    /// after the stash is handled.
    pub(super) refusal: Option<(Refusal, u64)>,
}

impl Waiting {
    pub(super) fn is_empty(&self) -> bool {
        self.stash.is_empty() && self.behind.is_empty() && self.refusal.is_none()
    }
}

pub(super) struct Connection {
    pub(super) tcp: TcpState,
    /// `None` on a TCP connection.
    pub(super) shm: Option<ShmState>,
    /// The peer's address; `None` over shared memory.
    pub(super) peer: Option<SocketAddr>,
    pub(super) session: Session,
    pub(super) phase: Phase,
    /// The peer sends no more, over either transport.
    pub(super) peer_ended: bool,
    /// It counts against `max_connections`.
    pub(super) counted: bool,

    /// Gathers a frame that came in pieces.
    pub(super) assembler: Assembler,
    /// What arrived and may not be handled yet. While there is any, nothing is received. Boxed, since
    /// most connections never have any.
    pub(super) waiting: Option<Box<Waiting>>,
    /// Frames on their way to the peer.
    pub(super) out: Outgoing,

    // For one round; by its end they are reset.
    /// It is in the worker's list of connections to be settled at the end of the round.
    pub(super) touched: bool,
    /// A bad frame was found: what follows it is not scanned.
    pub(super) has_bad_frame: bool,
    /// While the frames are put in order of priority: one of those so far is a part of a stream, or a
    /// HANDSHAKE, that does not go first.
    pub(super) parts_wait: bool,
    /// How long handling its frames took, as far as the clock was read: see [`super::turns`].
    pub(super) spent_ns: u64,

    // What it holds of the budget `max_buffered_bytes`: see [`super::room`].
    /// It waits in line for room.
    pub(super) waits_for_room: bool,
    /// Bytes reserved for the long message that is arriving.
    pub(super) reserved_bytes: u64,
    /// When they were reserved.
    pub(super) reserved_at_ns: u64,
    /// Bytes reserved for messages that are handled in this round.
    pub(super) handling_bytes: u64,
    /// Bytes charged for answers and frames that wait for the peer to read.
    pub(super) charged_bytes: u64,
    /// Its part of the worker's count of outgoing bytes.
    pub(super) accounted_bytes: usize,

    // Deadlines: see [`super::deadlines`].
    /// By when the peer must have read something, or sent the rest of a frame. 0: nothing is due.
    pub(super) deadline_ns: u64,
    /// The deadline is for reading answers, not for finishing a frame.
    pub(super) deadline_is_for_reading: bool,
    /// Bytes received since the deadline for a frame was set. A completed frame counts as at least
    /// [`PROGRESS_BYTES`].
    pub(super) progress_bytes: u64,
    /// Bytes that were received and discarded since it began to linger.
    pub(super) discarded_bytes: u64,
    /// Something was received since the last sweep.
    pub(super) active: bool,
}

impl Connection {
    pub(super) fn shm(link: ShmState, ends: Box<Ends>, session: Session) -> Connection {
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
            tcp: TcpState {
                fd,
                receiving: false,
                stopping: false,
                starved: false,
                served: false,
                reset_look_ns: 0,
            },
            shm: None,
            peer,
            session,
            phase: Phase::Open,
            peer_ended: false,
            counted: true,
            assembler: Assembler::default(),
            waiting: None,
            out: Outgoing::default(),
            touched: false,
            has_bad_frame: false,
            parts_wait: false,
            spent_ns: 0,
            waits_for_room: false,
            reserved_bytes: 0,
            reserved_at_ns: 0,
            handling_bytes: 0,
            charged_bytes: 0,
            accounted_bytes: 0,
            deadline_ns: 0,
            deadline_is_for_reading: false,
            progress_bytes: 0,
            discarded_bytes: 0,
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

    /// The protocol version that the peer speaks; version 2 before its first byte has told.
    pub(super) fn version(&self) -> ProtocolVersion {
        self.session.version.unwrap_or(ProtocolVersion::V2)
    }

    /// Whether this is a shared-memory connection for which the worker holds nothing: all requests are
    /// handled, all answers are in the ring, nothing is charged to the budget, no deadline runs.
    #[inline]
    pub(super) fn is_at_rest(&self) -> bool {
        self.phase == Phase::Open
            && self.shm.is_some()
            && self.out.is_empty()
            && self.waiting.is_none()
            && self.out.shared.is_none()
            && !self.peer_ended
            && !self.assembler.is_mid_frame()
            && self.accounted_bytes == 0
            && self.charged_bytes | self.handling_bytes | self.reserved_bytes == 0
            && self.session.is_admitted()
    }

    /// Something that arrived is not handled yet and holds up what comes after it.
    pub(super) fn has_waiting(&self) -> bool {
        self.waiting.is_some()
    }

    /// Nothing is received: earlier bytes wait, or too many answers do.
    pub(super) fn is_choked(&self, outgoing_bytes_max: usize) -> bool {
        self.has_waiting() || self.out.buffered_bytes() > outgoing_bytes_max
    }

    /// Whole frames wait, so what comes after them waits too.
    pub(super) fn has_stash(&self) -> bool {
        self.waiting
            .as_ref()
            .is_some_and(|waiting| !waiting.stash.is_empty())
    }

    /// What waits, to be added to.
    pub(super) fn waiting_mut(&mut self) -> &mut Waiting {
        self.waiting.get_or_insert_default()
    }

    /// Bytes held in memory until the peer reads. A stash that waits for room in the budget does not
    /// count: it would take the room that it waits for.
    pub(super) fn held_bytes(&self) -> usize {
        let stash = match &self.waiting {
            Some(waiting) if !self.waits_for_room => waiting.stash.len(),
            _ => 0,
        };
        self.out.buffered_bytes() + stash
    }

    /// Notes that room for a long message was reserved.
    pub(super) fn reserve(&mut self, bytes: u64, now_ns: u64) {
        assert!(
            self.reserved_bytes == 0,
            "one message is gathered at a time"
        );
        self.reserved_bytes = bytes;
        self.reserved_at_ns = now_ns;
    }

    /// Postpones all deadlines.
    pub(super) fn excuse(&mut self, by_ns: u64, now_ns: u64) {
        // At most to now: a reservation may be younger than what is excused.
        self.reserved_at_ns = (self.reserved_at_ns + by_ns).min(now_ns);
        let deadlines = [&mut self.deadline_ns, &mut self.session.authenticate_by_ns];
        for deadline in deadlines.into_iter().filter(|deadline| **deadline != 0) {
            *deadline = deadline.saturating_add(by_ns);
        }
    }

    /// A message that was gathered is complete. Its room is kept until the end of the round, when its
    /// answer is charged instead.
    pub(super) fn message_complete(&mut self) {
        self.handling_bytes += std::mem::take(&mut self.reserved_bytes);
        self.progress_bytes += PROGRESS_BYTES;
    }

    /// The peer has said how long the payloads are that it accepts.
    pub(super) fn peer_takes(&mut self, bytes_max: u32) {
        let bytes_max = bytes_max.max(PEER_MESSAGE_BYTES_MIN);
        self.session.peer_message_bytes_max = bytes_max;
        self.out.peer_bytes_max = Some(bytes_max);
    }

    /// Whether requests of this connection are still handled.
    #[inline]
    pub(super) fn takes_requests(&self) -> bool {
        self.phase == Phase::Open
    }
}
