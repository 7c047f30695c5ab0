//! Tells an event loop of answers that come through shared memory, where there is no descriptor to poll.
//!
//! A thread sleeps on the ring's waiting word in the client's place. The event loop arms the watch when it
//! has nothing to do and disarms it before it works; both are a few stores. A client without a watch pays
//! nothing.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::Client;
use super::link::Link;
use crate::shm::Sleeper;
use crate::sys::{futex, sigbus};

/// The client is at work: nothing is to be told.
const OFF: u32 = 0;
/// The next event is to be told.
const ARMED: u32 = 1;
/// As OFF, and the thread sleeps on this word.
const ASLEEP: u32 = 2;
/// The thread is to end.
const STOP: u32 = 3;

/// The longest sleep before it is checked whether the server's process lives.
const SLEEP_MAX: Duration = Duration::from_millis(50);

struct Shared {
    /// OFF, ARMED, ASLEEP or STOP.
    state: AtomicU32,
    /// Where to sleep: on the word of the current connection's ring.
    sleeper: Mutex<Option<Arc<Sleeper>>>,
    /// The user's function.
    tell: Box<dyn Fn() + Send + Sync>,
}

/// Calls a function, from a thread of its own, when a client that is connected through shared
/// memory has something to poll: an answer, room for what is unsent, or the end of the connection.
///
/// ```
/// # let server = lapce_ai::ipc::Server::builder().bind("127.0.0.1:0").start()?;
/// # let address = server.local_addr().unwrap().to_string();
/// use lapce_ai::ipc::{Client, Watch, msg_type};
///
/// let client = Client::connect(&address)?;
/// let (tell, told) = std::sync::mpsc::channel();
/// let mut watch = Watch::new(move || tell.send(()).expect("somebody listens"));
/// client.submit(msg_type::ECHO, b"hello")?;
/// client.flush()?;
/// let answer = loop {
///     watch.disarm(&client);
///     if let Some(answer) = client.poll()? {
///         break answer;
///     }
///     if client.poll_fd().is_none() && !watch.arm(&client)? {
///         told.recv()?;
///     }
/// };
/// assert_eq!(answer.result?, b"hello");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Watch {
    shared: Arc<Shared>,
    /// The connection whose sleeper `shared` has, by the client's count of reconnects.
    connection: Option<u64>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// A watch that is not armed. Its thread is started when it is first armed. `tell` is called on that
    /// thread, and must not block for long.
    pub fn new(tell: impl Fn() + Send + Sync + 'static) -> Watch {
        Watch {
            shared: Arc::new(Shared {
                state: AtomicU32::new(OFF),
                sleeper: Mutex::new(None),
                tell: Box::new(tell),
            }),
            connection: None,
            thread: None,
        }
    }

    /// Arms the watch: the next event is told, once. Returns `true` if there is something to poll already;
    /// then nothing will be told. A client that is connected over TCP has a descriptor instead
    /// ([`Client::poll_fd`]); for it this does nothing and returns `false`.
    ///
    /// The server's end counts as an event: of a process that dies it is told within 50 ms.
    ///
    /// A watch is for one client: use one for each.
    ///
    /// # Errors
    /// The thread cannot be started, or the server's process cannot be watched (no descriptors are left).
    pub fn arm(&mut self, client: &Client) -> io::Result<bool> {
        let mut inner = client.inner.borrow_mut();
        let connection = inner.stats.reconnects;
        let kept = !inner.ready.is_empty();
        let unsent = !inner.unsent.is_empty();
        let Some(channel) = inner.channel.as_mut() else {
            return Ok(kept || unsent);
        };
        let write = channel.queued_bytes() > 0;
        let Link::Shm(link) = &mut channel.link else {
            self.leave_ring();
            return Ok(false);
        };
        // Kept answers are no event of the ring: they came while others were waited for.
        if kept {
            return Ok(true);
        }
        if self.connection != Some(connection) {
            self.leave_ring();
            *self.shared.sleeper() = Some(Arc::new(link.sleeper()?));
            self.connection = Some(connection);
        }
        if self.thread.is_none() {
            let shared = self.shared.clone();
            let thread = std::thread::Builder::new().name("lapce-ipc-watch".into());
            self.thread = Some(thread.stack_size(256 * 1024).spawn(move || shared.run())?);
        }
        // First the ring's word, then our state: a thread that sees ARMED finds the ring's word at 1, unless
        // the server has cleared it since.
        if link.fall_asleep(write) {
            link.wake_up();
            return Ok(true);
        }
        // Release: pairs with the acquire loads in `run`, so that the thread finds this connection's sleeper.
        if self.shared.state.swap(ARMED, Ordering::AcqRel) == ASLEEP {
            futex::wake(&self.shared.state, 1);
        }
        Ok(false)
    }

    /// Disarms the watch: the client is about to work, and finds by itself what comes from now on.
    pub fn disarm(&mut self, client: &Client) {
        if self.connection.is_none() {
            return;
        }
        self.shared.disarm();
        let mut inner = client.inner.borrow_mut();
        let connection = inner.stats.reconnects;
        if let Some(channel) = inner.channel.as_mut()
            && let Link::Shm(link) = &mut channel.link
            && self.connection == Some(connection)
        {
            link.wake_up();
        }
    }

    /// Lets go of a connection that was lost.
    fn leave_ring(&mut self) {
        if self.connection.take().is_some()
            && let Some(before) = self.shared.sleeper().take()
        {
            before.wake();
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        self.shared.state.store(STOP, Ordering::Release);
        futex::wake(&self.shared.state, 1);
        // It may sleep on the ring's word instead, or be about to: then it sees STOP when it is woken, or at
        // the latest after SLEEP_MAX.
        if let Some(sleeper) = &*self.shared.sleeper() {
            sleeper.wake();
        }
        let _ = thread.join();
    }
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").finish_non_exhaustive()
    }
}

impl Shared {
    fn sleeper(&self) -> MutexGuard<'_, Option<Arc<Sleeper>>> {
        self.sleeper.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whoever moves the state away from ARMED acts: the client by working, the thread by telling. False if the
    /// other has, or the watch was not armed.
    fn disarm(&self) -> bool {
        let armed = self
            .state
            .compare_exchange(ARMED, OFF, Ordering::AcqRel, Ordering::Relaxed);
        armed.is_ok()
    }

    /// Ends when the watch is dropped.
    fn run(&self) {
        sigbus::let_in();
        loop {
            // Acquire: pairs with the swap in `arm`.
            match self.state.load(Ordering::Acquire) {
                STOP => return,
                ARMED => {}
                _ => {
                    let asleep = self.state.compare_exchange(
                        OFF,
                        ASLEEP,
                        Ordering::AcqRel,
                        Ordering::Acquire,
                    );
                    if matches!(asleep, Ok(_) | Err(ASLEEP)) {
                        futex::wait(&self.state, ASLEEP, None);
                    }
                    continue;
                }
            }
            // A statement of its own, so that the lock is not held during the sleep.
            let sleeper = self.sleeper().clone();
            if sleeper.is_some_and(|sleeper| sleeper.sleep(SLEEP_MAX)) && self.disarm() {
                (self.tell)();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{self, Receiver};

    use super::*;
    use crate::server::Server;
    use crate::stats::Transport;
    use crate::wire::msg_type;
    use crate::worker::{Request, Responder};

    const LATER: u16 = 0x0100;

    fn server(instance: &str) -> Server {
        Server::builder()
            .shm(instance)
            .workers(1)
            .handler(LATER, |request: Request<'_>, responder: Responder<'_>| {
                let payload = request.payload().to_vec();
                let deferred = responder.detach();
                std::thread::spawn(move || {
                    std::thread::sleep(Duration::from_millis(u64::from(payload[0] % 3)));
                    deferred.reply(payload).unwrap();
                });
            })
            .start()
            .unwrap()
    }

    fn watched(name: &str) -> (Server, Client, Watch, Receiver<()>) {
        let instance = format!("w{}_{name}", std::process::id());
        let server = server(&instance);
        let client = Client::connect(&format!("shm:{instance}")).unwrap();
        assert_eq!(client.transport(), Transport::Shm);
        let (tell, told) = mpsc::channel();
        let watch = Watch::new(move || {
            let _ = tell.send(());
        });
        (server, client, watch, told)
    }

    /// Polls until there is nothing, then waits to be told, for far less than a lost wake-up takes
    /// to be made good by the client's timeout.
    fn next(client: &Client, watch: &mut Watch, told: &Receiver<()>) -> Vec<u8> {
        loop {
            watch.disarm(client);
            if let Some(answer) = client.poll().unwrap() {
                return answer.result.unwrap();
            }
            if !watch.arm(client).unwrap() {
                told.recv_timeout(Duration::from_secs(10)).expect("told");
            }
        }
    }

    #[test]
    fn answers_are_told_of_whenever_they_come() {
        let (_server, client, mut watch, told) = watched("answers");
        for round in 0..300_u32 {
            let payload = round.to_le_bytes();
            let msg_type = if round % 2 == 0 {
                LATER
            } else {
                msg_type::ECHO
            };
            client.submit(msg_type, &payload).unwrap();
            client.flush().unwrap();
            assert_eq!(next(&client, &mut watch, &told), payload);
            // Calls in between neither disturb it nor are disturbed.
            assert_eq!(client.call(msg_type::ECHO, b"x").unwrap(), b"x");
        }
    }

    #[test]
    fn large_answers_and_requests_go_through() {
        let (_server, client, mut watch, told) = watched("large");
        let payload: Vec<u8> = (0..3_000_000_u32).map(|n| (n / 7) as u8).collect();
        for _ in 0..3 {
            client.submit(msg_type::ECHO, &payload).unwrap();
        }
        for _ in 0..3 {
            assert!(next(&client, &mut watch, &told) == payload);
        }
    }

    #[test]
    fn an_answer_that_came_before_is_there_already() {
        let (_server, client, mut watch, told) = watched("kept");
        client.submit(msg_type::ECHO, b"kept").unwrap();
        client.call(LATER, &[2]).unwrap();
        assert!(client.has_kept_answers());
        assert_eq!(next(&client, &mut watch, &told), b"kept");
        client.submit(msg_type::ECHO, b"kept").unwrap();
        client.call(LATER, &[2]).unwrap();
        assert!(watch.arm(&client).unwrap());
    }

    #[test]
    fn the_servers_end_is_told_of() {
        let (server, client, mut watch, told) = watched("end");
        client.submit(LATER, &[0]).unwrap();
        client.flush().unwrap();
        next(&client, &mut watch, &told);
        watch.disarm(&client);
        assert!(client.poll().unwrap().is_none());
        assert!(!watch.arm(&client).unwrap());
        drop(server);
        told.recv_timeout(Duration::from_secs(10)).expect("told");
    }
}
