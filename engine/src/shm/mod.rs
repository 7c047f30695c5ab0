//! Shared memory: the ring, the control segment, attach and detach.
//!
//! [`layout`] says where everything lies in a connection's segment, [`ring`] is one direction of
//! it, which [`producer`] and [`consumer`] carry out, [`ends`] both as one side has them, [`mod@copy`] how bytes get there and [`reserve`] how
//! they are sent without, [`doorbell`] is how a sleeping worker is woken, [`control`] the segment by
//! which clients find a server and [`slots`] how they ask it for a connection, [`attach`] the server's side of making a connection and [`join`]
//! the client's, [`leftovers`] what a killed server left of that.
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

pub(crate) use attach::{AttachServer, Lives, Placement, ReadyBits, ServerEnd, stop};
pub(crate) use consumer::Record;
pub(crate) use control::{Control, DoorbellWord, ShmError, WORKERS_MAX};
pub(crate) use ends::Ends;
pub(crate) use join::{ClientEnd, Sleeper, join};
pub(crate) use layout::RECORD_MAX;
pub(crate) use reserve::Reservation;
pub(crate) use ring::Corrupt;
