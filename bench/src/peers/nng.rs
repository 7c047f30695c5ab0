//! NNG by the crate nng: REQ and REP over a Unix socket. Many requests at a time need as many
//! contexts, each with one request, whose callbacks run on NNG's own threads.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

use lapce_ai::ipc::monotonic_ns;
use nng::options::{Options, RecvTimeout, SendTimeout};
use nng::{Aio, AioResult, Context as Lane, Message, Protocol, Socket};

use super::round_trips::RoundTrips;
use super::scratch::Scratch;
use super::tcp;
use super::window::WINDOW;
use crate::child::Served;
use crate::context::{Context, Failure, wrong_answer};
use crate::payloads::{payload, stamp};
use crate::row::Row;

const BYTES: usize = 64;
const WARM_UP: u64 = 300;
const PATIENCE: Duration = Duration::from_secs(10);

/// With contexts in both cases: plain calls take a tenth longer for one request at a time.
pub fn serve(name: &str) -> Result<(), Failure> {
    let socket = Socket::new(Protocol::Rep0)?;
    let lanes = (0..WINDOW)
        .map(|_| answering(&socket))
        .collect::<Result<Vec<_>, nng::Error>>()?;
    socket.listen(name)?;
    for (lane, aio) in &lanes {
        lane.recv(aio)?;
    }
    println!("ready {name}");
    loop {
        std::thread::park(); // the bench ends the process
    }
}

fn answering(socket: &Socket) -> Result<(Lane, Aio), nng::Error> {
    let lane = Lane::new(socket)?;
    let own = lane.clone();
    let aio = Aio::new(move |aio, result| {
        let went_on = match result {
            AioResult::Recv(Ok(message)) => own.send(&aio, message).map_err(|(_, error)| error),
            AioResult::Send(Ok(())) => own.recv(&aio),
            AioResult::Recv(Err(error)) | AioResult::Send(Err((_, error))) => Err(error),
            AioResult::Sleep(_) => Ok(()),
        };
        if let Err(error) = went_on {
            eprintln!("NNG: {error}"); // the client misses an answer, and says so
        }
    })?;
    Ok((lane, aio))
}

pub fn run(context: &mut Context) -> Result<(), Failure> {
    let cpu = context.host.server_cpu.to_string();
    let duration = context.duration.as_nanos() as u64;
    let scratch = Scratch::new("nng");
    let name = format!("ipc://{}", scratch.temporary().display());
    for windowed in [false, true] {
        context.measure(tcp::row("NNG", windowed), |row| {
            scratch.clear();
            let _served = Served::start(&["--kind", "nng", "--cpu", &cpu, "--name", &name])?;
            let socket = Socket::new(Protocol::Req0)?;
            socket.set_opt::<SendTimeout>(Some(PATIENCE))?;
            socket.set_opt::<RecvTimeout>(Some(PATIENCE))?;
            socket.dial(&name)?;
            match windowed {
                true => window(&socket, row, duration),
                false => one_by_one(&socket, row, duration),
            }
        })?;
    }
    Ok(())
}

fn one_by_one(socket: &Socket, row: &mut Row, duration: u64) -> Result<(), Failure> {
    let mut trips = RoundTrips::new(WARM_UP, duration);
    let mut sent = payload(BYTES);
    for number in 0u64.. {
        stamp(&mut sent, number);
        let start = monotonic_ns();
        socket
            .send(Message::from(&sent[..]))
            .map_err(|(_, error)| error)?;
        let answer = socket.recv()?;
        let now = monotonic_ns();
        if answer[..] != sent[..] {
            return Err(wrong_answer().into());
        }
        if trips.took(start, now)? {
            break;
        }
    }
    row.push_latencies(trips.into_histogram());
    Ok(())
}

/// What the contexts of the client share.
struct Asking {
    template: [u8; BYTES],
    stop: AtomicBool,
    answered: AtomicU64,
    /// One from each context, when it has stopped.
    stopped: Sender<Result<(), String>>,
}

impl Asking {
    fn bytes(&self, number: u64) -> [u8; BYTES] {
        let mut bytes = self.template;
        stamp(&mut bytes, number);
        bytes
    }

    /// One step of a context; true if it goes on.
    fn step(
        &self,
        lane: &Lane,
        aio: &Aio,
        result: AioResult,
        number: &AtomicU64,
    ) -> Result<bool, String> {
        let text = |error: nng::Error| error.to_string();
        match result {
            AioResult::Send(Ok(())) => lane.recv(aio).map_err(text)?,
            AioResult::Recv(Ok(answer)) => {
                // Only this context's callback touches the number, and never twice at a time.
                let asked = number.fetch_add(WINDOW as u64, Relaxed);
                if answer[..] != self.bytes(asked)[..] {
                    return Err(wrong_answer().to_string());
                }
                self.answered.fetch_add(1, Relaxed);
                if self.stop.load(Relaxed) {
                    return Ok(false);
                }
                let next = Message::from(&self.bytes(asked + WINDOW as u64)[..]);
                lane.send(aio, next).map_err(|(_, error)| text(error))?;
            }
            AioResult::Recv(Err(error)) | AioResult::Send(Err((_, error))) => {
                return Err(text(error));
            }
            AioResult::Sleep(_) => {}
        }
        Ok(true)
    }
}

/// A context that asks again whenever it is answered: its requests are `first`, `first` + 256, ...
fn asking(socket: &Socket, all: &Arc<Asking>, first: u64) -> Result<(Lane, Aio), nng::Error> {
    let lane = Lane::new(socket)?;
    let (own, all) = (lane.clone(), all.clone());
    let number = AtomicU64::new(first);
    let aio = Aio::new(move |aio, result| {
        let end = match all.step(&own, &aio, result, &number) {
            Ok(true) => return,
            Ok(false) => Ok(()),
            Err(error) => Err(error),
        };
        let _ = all.stopped.send(end); // nobody listens once one has failed
    })?;
    aio.set_timeout(Some(PATIENCE))?;
    Ok((lane, aio))
}

fn window(socket: &Socket, row: &mut Row, duration: u64) -> Result<(), Failure> {
    let (stopped, stops) = mpsc::channel();
    let all = Arc::new(Asking {
        template: payload(BYTES).try_into().expect("it has as many bytes"),
        stop: AtomicBool::new(false),
        answered: AtomicU64::new(0),
        stopped,
    });
    let lanes = (0..WINDOW as u64)
        .map(|first| asking(socket, &all, first))
        .collect::<Result<Vec<_>, nng::Error>>()?;
    let rate = ask(&lanes, &all, &stops, duration);
    all.stop.store(true, Relaxed);
    // Each stops at its next answer or timeout. A callback that still ran would drop the last
    // handle to itself, and wait for itself.
    lanes.iter().for_each(|(_, aio)| aio.wait());
    row.push("requests", "/s", rate?);
    Ok(stops.try_iter().collect::<Result<(), String>>()?)
}

/// Lets all ask, and counts the answers a second.
fn ask(
    lanes: &[(Lane, Aio)],
    all: &Asking,
    stops: &Receiver<Result<(), String>>,
    duration: u64,
) -> Result<f64, Failure> {
    for ((lane, aio), first) in lanes.iter().zip(0u64..) {
        let request = Message::from(&all.bytes(first)[..]);
        lane.send(aio, request).map_err(|(_, error)| error)?;
    }
    // Ends with the timeout of one that gets no answer.
    while all.answered.load(Relaxed) < WARM_UP {
        std::thread::sleep(Duration::from_millis(1));
        stops.try_iter().collect::<Result<(), String>>()?;
    }
    let (begun, counted) = (monotonic_ns(), all.answered.load(Relaxed));
    std::thread::sleep(Duration::from_nanos(duration));
    let answered = all.answered.load(Relaxed) - counted;
    let took = (monotonic_ns() - begun) as f64 / 1e9;
    Ok(answered as f64 / took)
}
