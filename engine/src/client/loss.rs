//! What becomes of requests when a connection is lost: those that were sent fail, since they may have been
//! carried out; those that were not are sent over the next connection.

use std::io;

use super::Error;
use super::address::Address;
use super::answer::{Answer, AnswerRef};
use super::channel::Channel;
use super::error::{closed_by_server, copy_source};
use super::inner::{Inner, Keep};
use super::receive::Sink;
use crate::wire::{self, Flags, Header, Scanned, msg_type};

impl Inner {
    /// The connection is gone. Requests that were sent fail. Frames that were not sent wait for the next
    /// connection, or fail too if the client does not reconnect.
    pub(super) fn lost(&mut self, source: Option<io::Error>) {
        let Some(mut channel) = self.channel.take() else {
            return;
        };
        self.unwanted.clear();
        let kept = self.keep_unsent(&mut channel);
        let source = match channel.link.lacks_memory() {
            true => {
                // The next shared-memory connection would lack memory too.
                self.options.shm_upgrade = false;
                self.lacked_memory = matches!(self.address, Address::Shm(_));
                Some(io::ErrorKind::StorageFull.into())
            }
            false => source,
        };
        for id in self.flights.all() {
            if kept.binary_search(&id).is_err() {
                self.fail(id, lost_error(true, source.as_ref()));
            }
        }
        // The frames themselves stay: the next call that sends fails because of them.
        if !self.options.reconnect {
            for id in kept {
                self.fail(id, lost_error(false, source.as_ref()));
            }
        }
    }

    /// The server closes the connection and says why, but names no request. It may mean any frame that it had
    /// not answered. So only a request that was the last frame and the only one in flight has certainly been
    /// refused by this; all others may have been carried out.
    pub(super) fn closed_by_server(&mut self, error: &Error) {
        if let Some((id, flight)) = self.flights.only_and_last()
            && flight.begins_at >= self.last_one_way_at
        {
            self.fail(id, error.copy());
        }
        self.lost(Some(closed_by_server(error)));
    }

    /// Copies the frames that can be sent over the next connection. Returns the ids of the requests among
    /// them, in ascending order.
    fn keep_unsent(&mut self, channel: &mut Channel) -> Vec<u64> {
        let mut kept = Vec::new();
        self.unsent.clear();
        self.unsent_lacks_payload = false;
        for (begins_at, header, frame) in channel.unsent() {
            if self.moves(begins_at, &header, &mut kept) {
                self.unsent.extend_from_slice(frame);
            }
        }
        if let Some((begins_at, header)) = channel.lent()
            && self.moves(begins_at, &header, &mut kept)
        {
            self.unsent.extend_from_slice(&header.to_bytes());
            self.unsent_lacks_payload = true;
        }
        kept
    }

    /// Whether a frame that was not sent is to be sent over the next connection, behind those before it. If it
    /// begins a request, notes where it begins there, and adds the request to `kept`.
    fn moves(&mut self, begins_at: u64, header: &Header, kept: &mut Vec<u64>) -> bool {
        let id = header.msg_id;
        if !header.flags.contains(Flags::REQUEST) {
            // The request that a CANCEL names died with the connection.
            return header.msg_type != msg_type::CANCEL;
        }
        match self.flights.get(id) {
            Some(flight) if flight.begins_at == begins_at => {
                self.flights.moved(id, self.unsent.len() as u64);
                kept.push(id);
                true
            }
            // A later part of a stream goes where the first part goes.
            Some(_) => kept.binary_search(&id).is_ok(),
            // The request was forgotten, or has failed with an earlier connection.
            None => false,
        }
    }

    /// Removes frames from those that wait for the next connection: their callers are told that they were not
    /// sent, and may send them again. `is_one` gets each frame's header, and whether it is the last.
    pub(super) fn take_back(&mut self, is_one: impl Fn(&Header, bool) -> bool) {
        let frames = std::mem::take(&mut self.unsent);
        let mut at = 0;
        // Whole frames, as they were queued; each pass takes one.
        while let Ok(Scanned::Frame {
            header,
            frame_bytes,
        }) = wire::scan(self.options.version, &frames[at..], u32::MAX)
        {
            let end = at + frame_bytes;
            if !is_one(&header, end == frames.len()) {
                let id = header.msg_id;
                let flight = self.flights.get(id);
                if flight.is_some_and(|flight| flight.begins_at == at as u64) {
                    self.flights.moved(id, self.unsent.len() as u64);
                }
                self.unsent.extend_from_slice(&frames[at..end]);
            }
            at = end;
        }
    }

    fn fail(&mut self, id: u64, error: Error) {
        if self.flights.end(id) {
            self.ready.push(Answer::failed(id, error));
        }
    }

    /// Fails what was not sent, because no connection could be made. The errors are kept to be collected.
    pub(super) fn fail_unsent(&mut self, why: &Error) {
        let source = match why {
            Error::ConnectFailed { source, .. } => Some(copy_source(source)),
            Error::ConnectionLost { source, .. } => source.as_ref().map(copy_source),
            Error::Timeout { .. } => Some(io::ErrorKind::TimedOut.into()),
            Error::Remote { .. } => Some(closed_by_server(why)),
            _ => None,
        };
        debug_assert!(self.channel.is_none(), "what was sent has failed before");
        self.unsent = Vec::new();
        for id in self.flights.all() {
            self.fail(id, lost_error(false, source.as_ref()));
        }
    }

    /// Gives the errors that were kept to `sink`, once each. Returns how many there were.
    pub(super) fn take_failed(&mut self, sink: Sink<'_>) -> usize {
        let mut given = 0;
        for _ in 0..self.ready.len() {
            let Some(answer) = self.ready.pop() else {
                break;
            };
            if let Err(error) = &answer.result {
                given += 1;
                let view = AnswerRef {
                    id: answer.id,
                    msg_type: answer.msg_type,
                    last: answer.last,
                    result: Err(error.copy()),
                };
                if sink(view) == Keep::Done {
                    continue;
                }
            }
            self.ready.push(answer);
        }
        given
    }
}

pub(super) fn lost_error(may_have_run: bool, source: Option<&io::Error>) -> Error {
    Error::ConnectionLost {
        may_have_run,
        source: source.map(copy_source),
    }
}
