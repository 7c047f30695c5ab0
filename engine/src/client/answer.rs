//! What a user gets back: answers, statistics, and the server's limits.

use super::Error;

/// One answer, or one part of a stream of answers.
#[derive(Debug)]
pub struct Answer {
    /// The id that [`super::Client::submit`] returned.
    pub id: u64,
    /// The message type; 0 if no answer came, and `result` says why.
    pub msg_type: u16,
    /// Whether this is the whole answer or its last part. False: more parts follow.
    pub last: bool,
    /// The payload, or why there is none. After an error, `last` is true.
    pub result: Result<Vec<u8>, Error>,
}

impl Answer {
    /// A request that ended without an answer.
    pub(super) fn failed(id: u64, error: Error) -> Answer {
        Answer {
            id,
            msg_type: 0,
            last: true,
            result: Err(error),
        }
    }

    pub(super) fn payload_bytes(&self) -> usize {
        self.result.as_ref().map_or(0, Vec::len)
    }
}

/// As [`Answer`], borrowed from the receive buffer.
#[derive(Debug)]
pub struct AnswerRef<'a> {
    /// The id that [`super::Client::submit`] returned.
    pub id: u64,
    /// The message type; 0 if no answer came, and `result` says why.
    pub msg_type: u16,
    /// Whether this is the whole answer or its last part. False: more parts follow.
    pub last: bool,
    /// The payload, or why there is none. After an error, `last` is true.
    pub result: Result<&'a [u8], Error>,
}

impl AnswerRef<'_> {
    /// A copy that outlives the receive buffer.
    pub fn to_answer(&self) -> Answer {
        let result = match &self.result {
            Ok(payload) => Ok(payload.to_vec()),
            Err(error) => Err(error.copy()),
        };
        Answer {
            id: self.id,
            msg_type: self.msg_type,
            last: self.last,
            result,
        }
    }
}

/// What a client has done since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientStats {
    /// Requests and one-way messages queued, CANCELs included.
    pub sent: u64,
    /// Requests whose answers have come in full, errors included.
    pub received: u64,
    /// Connections made after the first.
    pub reconnects: u64,
}

/// What the server said of itself when the connection was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PeerLimits {
    /// The longest payload that it accepts, in bytes. `None` if it was not asked, because there was no
    /// handshake (see [`super::ClientBuilder::shm_upgrade`]), or did not say.
    pub max_message_bytes: Option<u32>,
}
