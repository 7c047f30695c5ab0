//! Connections that the server ends, and what the log says of them. A client can provoke that many times a
//! second, so each reason is logged at most once in a while, with how often it happened.

use std::fmt::Display;
use std::net::SocketAddr;

use super::connection::{Connection, Phase};
use super::rarely::Rarely;
use crate::sys::clock;
use crate::wire::ErrorCode;

/// By the error code that the peer is told.
static REFUSED: [Rarely; ErrorCode::ALL.len()] = [const { Rarely::new() }; ErrorCode::ALL.len()];
static STALLED: Rarely = Rarely::new();
static DAMAGED: Rarely = Rarely::new();

/// Ends a connection as soon as its peer has been told why.
#[cold]
pub(super) fn refused(connection: &mut Connection, code: ErrorCode, why: &dyn Display) {
    connection.phase = Phase::Refused;
    let reason = &REFUSED[code as usize - 1];
    tell(reason, connection.peer, &format_args!("{code}: {why}"));
}

/// Closes a connection whose peer has not read its answers.
#[cold]
pub(super) fn stalled(connection: &mut Connection, allowed_ms: u64) {
    connection.phase = Phase::Closing;
    let why =
        format_args!("it has not read its answers for {allowed_ms} ms (limits.send_stall_ms)");
    tell(&STALLED, connection.peer, &why);
}

/// Closes a shared-memory connection whose memory is not as it should be.
#[cold]
pub(super) fn damaged(connection: &mut Connection, why: &dyn Display) {
    connection.phase = Phase::Closing;
    tell(&DAMAGED, connection.peer, why);
}

fn tell(reason: &Rarely, peer: Option<SocketAddr>, why: &dyn Display) {
    let Some(untold) = reason.due(clock::coarse_ns()) else {
        return;
    };
    let others = match untold {
        0 => String::new(),
        _ => format!("; since this was last said, {untold} others were"),
    };
    match peer {
        Some(peer) => log::warn!("the connection from {peer} was closed: {why}{others}"),
        None => log::warn!("a shared-memory connection was closed: {why}{others}"),
    }
}
