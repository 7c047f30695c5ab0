//! Telling an event loop of answers that come through shared memory, where there is no descriptor.
//!
//! A thread sleeps on the ring's waiting word in the client's place. The client arms it when it has
//! nothing to do and disarms it when it works; both are a few stores, and a client without a watch
//! knows nothing of it.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::Client;
use super::link::Link;
use crate::shm::Sleeper;
use crate::sys::{futex, sigbus};

/// The client is at work: nobody is to be told.
const OFF: u32 = 0;
/// Somebody is to be told of the next answer.
const ARMED: u32 = 1;
/// As OFF, and the thread sleeps on this word.
const ASLEEP: u32 = 2;
const STOP: u32 = 3;

/// The longest sleep between two looks whether the server lives.
const SLEEP_MAX: Duration = Duration::from_millis(50);

struct Shared {
    state: AtomicU32,
    /// Where to sleep: the present connection's ring.
    sleeper: Mutex<Option<Arc<Sleeper>>>,
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
    /// The connection that `shared` has a sleeper of.
    connection: Option<u64>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// A watch that is not armed. Its thread begins with the first use.
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

    /// From now on the next event is told, once. A watch is for one client: have one for each. `true`: there is something to poll already, and
    /// nothing will be told. A client that is not connected through shared memory has a descriptor
    /// instead; for it this does nothing and returns `false`.
    ///
    /// # Errors
    /// The thread cannot be started, or the server's process cannot be watched.
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
        // No event of the ring's: it came while another was waited for.
        if kept {
            return Ok(true);
        }
        if self.connection != Some(connection) {
            self.leave_ring();
            *self.lock() = Some(Arc::new(link.sleeper()?));
            self.connection = Some(connection);
        }
        if self.thread.is_none() {
            let shared = self.shared.clone();
            let thread = std::thread::Builder::new().name("lapce-ipc-watch".into());
            self.thread = Some(thread.stack_size(256 * 1024).spawn(move || shared.run())?);
        }
        // First the ring's word, then ours: a thread that finds us armed finds the word at 1, or
        // the server has been there.
        if link.fall_asleep(write) {
            link.wake_up();
            return Ok(true);
        }
        // Release: pairs with the acquire in `run`: the thread finds this connection's ring.
        if self.shared.state.swap(ARMED, Ordering::AcqRel) == ASLEEP {
            futex::wake(&self.shared.state, 1);
        }
        Ok(false)
    }

    /// The client is about to work: what comes from now on it finds by itself.
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

    /// Forgets a connection that was lost.
    fn leave_ring(&mut self) {
        if self.connection.take().is_some()
            && let Some(before) = self.lock().take()
        {
            before.wake();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Arc<Sleeper>>> {
        let sleeper = &self.shared.sleeper;
        sleeper.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        self.shared.state.store(STOP, Ordering::Release);
        futex::wake(&self.shared.state, 1);
        // It may sleep on the ring's word instead, or be about to: then it sees STOP at the latest
        // when its sleep ends.
        if let Some(sleeper) = &*self.lock() {
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
    fn disarm(&self) {
        // Failure: the thread has told already, or nobody armed it.
        let _ = self
            .state
            .compare_exchange(ARMED, OFF, Ordering::AcqRel, Ordering::Relaxed);
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
            // In a statement of its own, so that nothing is locked in sleep.
            let sleeper = self
                .sleeper
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone();
            let Some(sleeper) = sleeper else {
                continue;
            };
            if !sleeper.sleep(SLEEP_MAX) {
                continue;
            }
            // Whoever takes it from ARMED acts: the client by working, or this thread by telling.
            let told = self
                .state
                .compare_exchange(ARMED, OFF, Ordering::AcqRel, Ordering::Relaxed);
            if told.is_ok() {
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
