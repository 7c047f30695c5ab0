//! Message types. 0 is invalid; 0x0004, 0x0005 and 0x0010 to 0x00FF belong to the protocol; all
//! others are the application's.

/// An error: u16 code, then UTF-8 text.
pub const ERROR: u16 = 0x0004;
/// A request whose answer repeats the payload: is the other side alive?
pub const HEARTBEAT: u16 = 0x0005;
/// The optional first request of a connection.
pub const HANDSHAKE: u16 = 0x0010;
/// The answer to a HANDSHAKE.
pub const HANDSHAKE_ACK: u16 = 0x0011;
/// Orderly end of a connection.
pub const DISCONNECT: u16 = 0x0012;
/// A provider names the types that it serves.
pub const REGISTER: u16 = 0x0020;
/// A provider names the types that it no longer serves.
pub const UNREGISTER: u16 = 0x0021;
/// The requester no longer wants an answer.
pub const CANCEL: u16 = 0x0022;
/// A request whose answer repeats the payload, dispatched like an application's.
pub const ECHO: u16 = 0x00F0;

/// Whether a type belongs to the protocol, so that no application may serve it. 0 does, too.
pub const fn is_protocol(msg_type: u16) -> bool {
    matches!(msg_type, 0 | ERROR | HEARTBEAT | RANGE_BEGIN..=HIGHEST)
}

/// Where the protocol's range begins, and its highest type.
const RANGE_BEGIN: u16 = 0x0010;
const HIGHEST: u16 = 0x00FF;

/// Whether a program may send it: an application's, or one of the protocol's that it may ask for.
pub(crate) const fn may_be_sent(msg_type: u16) -> bool {
    is_often_sent(msg_type) || msg_type == HEARTBEAT || !is_protocol(msg_type)
}

/// Of those that may be sent the ones that two comparisons tell.
#[inline(always)]
pub(crate) const fn is_often_sent(msg_type: u16) -> bool {
    msg_type > HIGHEST || msg_type == ECHO
}
