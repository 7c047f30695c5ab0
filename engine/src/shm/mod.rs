//! Shared memory: a connection's two rings, and how a client attaches to a server.
//!
//! A connection has a *segment*, a file in /dev/shm that client and server map. In it lie two *rings*, one for
//! each direction, through which *records* go: a commit word, then bytes of the stream of frames.
//!
//! - [`layout`] and [`sizes`] say where everything lies in a segment. [`ring`] is what both sides of a ring
//!   agree on; [`producer`] and [`consumer`] are the sides. [`ends`] has both rings as one process sees them,
//!   and how it sleeps and is woken. [`mod@copy`] copies bytes in and out; [`long_frame`] sends what is
//!   longer than a record; [`reserve`] lets a program write a payload in place.
//! - [`control`] is the segment that all clients of a server share: by its name they find the server, in its
//!   [`slots`] they ask for a connection, and by its [`doorbell`]s they wake workers. [`attach`] is the server's
//!   side of making a connection, [`mod@join`] the client's. [`leftovers`] removes what a killed server left.
//! - [`sync`] has what the loom models replace.
//!
//! Nothing in shared memory is trusted: the other side may write anything at any time.
#![allow(unsafe_code)]

mod attach;
mod consumer;
mod control;
mod copy;
pub(crate) mod doorbell;
mod ends;
mod join;
mod layout;
mod leftovers;
mod long_frame;
#[cfg(all(test, loom))]
mod loom_models;
mod producer;
mod reserve;
mod ring;
mod sizes;
mod slots;
mod sync;
#[cfg(test)]
mod tests;

pub(crate) use attach::{AttachServer, Placement, ReadyBits, ServerEnd};
pub(crate) use consumer::Record;
pub(crate) use control::{Control, DoorbellWord, ShmError, WORKERS_MAX};
pub(crate) use ends::Ends;
pub(crate) use join::{ClientEnd, Sleeper, join};
pub(crate) use layout::RECORD_MAX;
pub(crate) use long_frame::{LongFrame, MUCH_BYTES};
pub(crate) use reserve::Reservation;
pub(crate) use ring::Corrupt;
