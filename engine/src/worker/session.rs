//! What the protocol says of one connection's frames: pure decisions, no I/O. `dispatch.rs` carries them
//! out.

use crate::wire::{ErrorCode, Flags, Header, ProtocolVersion, Refusal, msg_type};

/// What a connection has agreed to so far.
#[derive(Debug)]
pub(super) struct Session {
    /// Which the connection's first byte tells; a connection never mixes versions.
    pub(super) version: Option<ProtocolVersion>,
    /// By when the peer must have shown its credentials. 0: it has, or they are not asked for.
    pub(super) authenticate_by_ns: u64,
    /// The longest payload that the peer accepts; `u32::MAX` if it has not said.
    pub(super) peer_message_bytes_max: u32,
}

/// What to do with a frame whose header and CRC are good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// Hand it to the handler of its type.
    Dispatch,
    /// Answer it with its own payload.
    Heartbeat,
    /// Check it, admit the peer, and answer with a HANDSHAKE_ACK.
    Handshake,
    /// The peer sends no more requests: finish.
    Disconnect,
    /// Answer with this error; the connection stays.
    Error(ErrorCode, &'static str),
    /// Answer with this refusal and close the connection.
    Refuse(Refusal),
    /// The answer to the request with this id is not wanted any more.
    Cancel,
    /// Do nothing: no answer is owed.
    Ignore,
}

const SHUTTING_DOWN: &str = "the server is shutting down: the request was not started";
const UNKNOWN_TYPE: &str = "nobody serves this message type";

impl Session {
    pub(super) fn new(authenticate_by_ns: u64) -> Session {
        Session {
            version: None,
            authenticate_by_ns,
            peer_message_bytes_max: u32::MAX,
        }
    }

    pub(super) fn is_admitted(&self) -> bool {
        self.authenticate_by_ns == 0
    }

    /// Whether a frame with PRIORITY may be handled before earlier frames of its own connection. Not before
    /// the handshake that it depends on, and not if it ends the connection, or an earlier request.
    pub(super) fn may_overtake(&self, header: &Header) -> bool {
        header.flags.contains(Flags::PRIORITY)
            && ![msg_type::DISCONNECT, msg_type::CANCEL].contains(&header.msg_type)
            && self.is_admitted()
    }

    /// Decides about one frame. `served`: there is a handler for its type. `draining`: the server stops.
    ///
    /// The decision about a plain request is inlined, so that it need not be passed through memory.
    #[inline(always)]
    pub(super) fn decide(&self, header: &Header, served: bool, draining: bool) -> Decision {
        // Requests that the protocol itself answers have DISCONNECT or a lower type.
        let plain = header.flags == Flags::REQUEST && header.msg_type > msg_type::DISCONNECT;
        if plain && served && self.is_admitted() && !draining {
            Decision::Dispatch
        } else {
            self.decide_other(header, served, draining)
        }
    }

    #[inline(never)]
    fn decide_other(&self, header: &Header, served: bool, draining: bool) -> Decision {
        let request = header.flags.contains(Flags::REQUEST);
        // A server never asks, so no answer can be meant for it. And an ERROR that is no request is never
        // answered, or two sides could send errors to each other for ever.
        let is_answer = header.flags.contains(Flags::RESPONSE);
        if is_answer || header.msg_type == msg_type::ERROR && !request {
            return Decision::Ignore;
        }
        if !self.is_admitted() && !self.is_handshake(header) {
            return Decision::Refuse(Refusal::NotAuthenticated);
        }
        match header.msg_type {
            msg_type::HEARTBEAT if request => Decision::Heartbeat,
            msg_type::HEARTBEAT => Decision::Ignore,
            msg_type::DISCONNECT => Decision::Disconnect,
            msg_type::CANCEL if !request && self.version == Some(ProtocolVersion::V2) => {
                Decision::Cancel
            }
            msg_type::HANDSHAKE if self.is_handshake(header) => Decision::Handshake,
            _ if !served => Decision::Error(ErrorCode::UnknownType, UNKNOWN_TYPE),
            _ if draining => Decision::Error(ErrorCode::ShuttingDown, SHUTTING_DOWN),
            _ => Decision::Dispatch,
        }
    }

    fn is_handshake(&self, header: &Header) -> bool {
        header.msg_type == msg_type::HANDSHAKE
            && header.flags.contains(Flags::REQUEST)
            && self.version == Some(ProtocolVersion::V2)
    }
}

/// Compares secrets, in a time that does not depend on where they differ.
pub(super) fn same_secret(given: &[u8], wanted: &[u8]) -> bool {
    let mut difference = u8::from(given.len() != wanted.len());
    for (index, byte) in given.iter().enumerate() {
        difference |= byte ^ wanted.get(index).copied().unwrap_or(0);
    }
    std::hint::black_box(difference) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(flags: Flags, msg_type: u16) -> Header {
        Header::new(flags, msg_type, 7, 0)
    }

    fn session(version: ProtocolVersion) -> Session {
        Session {
            version: Some(version),
            ..Session::new(0)
        }
    }

    #[test]
    fn requests_go_to_their_handlers() {
        let session = session(ProtocolVersion::V2);
        for msg_type in [1, msg_type::ECHO, 0x1234] {
            let header = header(Flags::REQUEST, msg_type);
            assert_eq!(session.decide(&header, true, false), Decision::Dispatch);
            assert!(matches!(
                session.decide(&header, false, false),
                Decision::Error(ErrorCode::UnknownType, _)
            ));
            assert!(matches!(
                session.decide(&header, true, true),
                Decision::Error(ErrorCode::ShuttingDown, _)
            ));
        }
    }

    #[test]
    fn answers_and_one_way_errors_are_never_answered() {
        let mut session = session(ProtocolVersion::V2);
        session.authenticate_by_ns = 1;
        for (flags, msg_type) in [
            (Flags::RESPONSE, msg_type::ECHO),
            (Flags::RESPONSE, msg_type::ERROR),
            (Flags::NONE, msg_type::ERROR),
        ] {
            assert_eq!(
                session.decide(&header(flags, msg_type), false, true),
                Decision::Ignore
            );
        }
    }

    #[test]
    fn only_a_handshake_opens_a_guarded_server() {
        let mut session = session(ProtocolVersion::V2);
        session.authenticate_by_ns = 1;
        for msg_type in [
            msg_type::ECHO,
            msg_type::HEARTBEAT,
            msg_type::DISCONNECT,
            0x999,
        ] {
            assert!(matches!(
                session.decide(&header(Flags::REQUEST, msg_type), true, false),
                Decision::Refuse(Refusal::NotAuthenticated)
            ));
        }
        let hello = header(Flags::REQUEST, msg_type::HANDSHAKE);
        assert_eq!(session.decide(&hello, false, false), Decision::Handshake);
        session.authenticate_by_ns = 0;
        let echo = header(Flags::REQUEST, msg_type::ECHO);
        assert_eq!(session.decide(&echo, true, false), Decision::Dispatch);
        // Version 1 has no handshake, so there is no way in for it.
        let legacy = Session {
            version: Some(ProtocolVersion::V1),
            ..Session::new(1)
        };
        assert!(matches!(
            legacy.decide(&hello, false, false),
            Decision::Refuse(Refusal::NotAuthenticated)
        ));
    }

    #[test]
    fn the_protocol_serves_its_own_types() {
        let session = session(ProtocolVersion::V2);
        let decide = |flags, msg_type| session.decide(&header(flags, msg_type), false, false);
        assert_eq!(
            decide(Flags::REQUEST, msg_type::HEARTBEAT),
            Decision::Heartbeat
        );
        assert_eq!(decide(Flags::NONE, msg_type::HEARTBEAT), Decision::Ignore);
        assert_eq!(
            decide(Flags::NONE, msg_type::DISCONNECT),
            Decision::Disconnect
        );
        assert_eq!(
            decide(Flags::REQUEST, msg_type::DISCONNECT),
            Decision::Disconnect
        );
        assert_eq!(decide(Flags::NONE, msg_type::CANCEL), Decision::Cancel);
        for (flags, msg_type) in [
            (Flags::REQUEST, msg_type::REGISTER),
            (Flags::REQUEST, msg_type::UNREGISTER),
            (Flags::REQUEST, msg_type::CANCEL),
            (Flags::REQUEST, msg_type::HANDSHAKE_ACK),
            (Flags::REQUEST, msg_type::ERROR),
        ] {
            assert!(matches!(
                decide(flags, msg_type),
                Decision::Error(ErrorCode::UnknownType, _)
            ));
        }
    }

    #[test]
    fn secrets_are_compared_whole() {
        assert!(same_secret(b"token", b"token"));
        for wrong in [&b""[..], b"toke", b"tokens", b"tokeN"] {
            assert!(!same_secret(wrong, b"token"));
        }
        assert!(!same_secret(b"token", b""));
    }
}
