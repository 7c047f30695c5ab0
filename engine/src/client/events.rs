//! What an event loop needs: the connection's descriptor, and when to look without it.

use std::os::fd::RawFd;

use super::collect::NOT_IN_FLIGHT;
use super::{Answer, Client, Error};

impl Client {
    /// The descriptor on which answers arrive, for an event loop: whenever it is readable, call
    /// [`Client::poll`] until it returns `None`. `None`: there is no connection at the moment, or
    /// it has no descriptor because it goes through shared memory. It stays the client's own, and
    /// changes when a lost connection is made anew.
    pub fn poll_fd(&self) -> Option<RawFd> {
        let inner = self.inner.borrow();
        inner.channel.as_ref().and_then(|channel| channel.link.fd())
    }

    /// Whether [`Client::poll`] left something unsent, because the system took no more: call it
    /// again when the descriptor is writable.
    pub fn has_unsent(&self) -> bool {
        let inner = self.inner.borrow();
        match &inner.channel {
            Some(channel) => channel.queued_bytes() > 0,
            None => !inner.unsent.is_empty(),
        }
    }

    /// Whether [`Client::poll`] has an answer to return that is no longer, or never was, to be
    /// seen on the descriptor: it came while another one was waited for.
    pub fn has_kept_answers(&self) -> bool {
        !self.inner.borrow().ready.is_empty()
    }

    /// Waits for the next answer, or part of an answer, to one request. Each part may take as long
    /// as the client's timeout; after that the request is forgotten.
    ///
    /// # Errors
    /// As [`Client::wait`], if no part can come any more. An answer that is an error is an
    /// [`Answer`] whose `result` says so.
    pub fn wait_part(&self, id: u64) -> Result<Answer, Error> {
        let inner = &mut *self.inner.borrow_mut();
        let mut deadline = inner.deadline();
        let mut waited = Ok(());
        // Each turn waits for an answer; ends with a part, an error or the deadline.
        loop {
            if let Some(answer) = inner.ready.take(id) {
                return Ok(answer);
            }
            if let Err(error) = waited {
                inner.forget(id);
                return Err(error);
            }
            if !inner.flights.contains(id) {
                return Err(NOT_IN_FLIGHT);
            }
            waited = inner.wait_turn(&mut deadline);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::client::{Client, Error};
    use crate::server::Server;
    use crate::sys::socket;
    use crate::wire::msg_type;
    use crate::worker::{Request, Responder};

    fn counting_server() -> Server {
        Server::builder()
            .bind("127.0.0.1:0")
            .workers(1)
            .handler(
                0x0100,
                |request: Request<'_>, mut responder: Responder<'_>| {
                    for part in request.payload().chunks(1) {
                        responder.stream_part(part);
                    }
                    responder.reply(b"end");
                },
            )
            .start()
            .unwrap()
    }

    #[test]
    fn the_descriptor_tells_of_answers() {
        let server = counting_server();
        let address = server.local_addr().unwrap().to_string();
        let client = Client::builder()
            .shm_upgrade(false)
            .connect(&address)
            .unwrap();
        let fd = client.poll_fd().unwrap();
        let first = client.submit(msg_type::ECHO, b"first").unwrap();
        assert!(client.has_unsent());
        client.flush().unwrap();
        assert!(!client.has_unsent() && !client.has_kept_answers());
        assert!(socket::wait_ready(fd, false, Duration::from_secs(10)).unwrap());
        let answer = client.poll().unwrap().unwrap();
        assert_eq!(
            (answer.id, answer.result.unwrap()),
            (first, b"first".into())
        );

        // An answer that came while another was waited for is told of without the descriptor.
        let second = client.submit(msg_type::ECHO, b"second").unwrap();
        assert_eq!(client.call(msg_type::ECHO, b"third").unwrap(), b"third");
        assert!(client.has_kept_answers());
        assert_eq!(client.poll().unwrap().unwrap().id, second);
        assert!(!client.has_kept_answers());
    }

    #[test]
    fn parts_of_two_streams_one_by_one() {
        let server = counting_server();
        let client = Client::connect(&server.local_addr().unwrap().to_string()).unwrap();
        let ids = [b"ab", b"cd"].map(|payload| client.submit(0x0100, payload).unwrap());
        let mut seen = [Vec::new(), Vec::new()];
        for _ in 0..3 {
            for (id, seen) in ids.iter().zip(&mut seen) {
                let answer = client.wait_part(*id).unwrap();
                assert_eq!(answer.last, seen.len() == 2);
                seen.extend_from_slice(&answer.result.unwrap()[..1]);
            }
        }
        assert_eq!(seen, [b"abe".to_vec(), b"cde".to_vec()]);
        for id in ids {
            let error = client.wait_part(id).unwrap_err();
            assert!(matches!(error, Error::InvalidRequest(_)), "{error}");
        }
    }
}
