//! NATS: request and reply through nats-server, its text protocol written by hand. A request takes
//! four hops: to the server, to who answers, back to the server, to who asked.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use lapce_ai::ipc::monotonic_ns;

use super::program::Program;
use super::round_trips::RoundTrips;
use super::tcp;
use super::window::{Clock, Window};
use crate::child::Served;
use crate::context::{Context, Failure, wrong_answer};
use crate::floors::write_spinning;
use crate::payloads::{payload, stamp};
use crate::row::Row;

const PATIENCE: Duration = Duration::from_secs(10);
const BYTES: usize = 64;
const WARM_UP: u64 = 300;
const ARGUMENTS: [&str; 3] = ["-a", "127.0.0.1", "-p"];

/// The bytes that nats-server sends. The client spins, as all clients here do; who answers has the
/// server's CPU to share with nats-server, and waits.
struct From {
    stream: TcpStream,
    spins: bool,
}

impl Read for From {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let began = Instant::now();
        loop {
            match self.stream.read(to) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && self.spins => {
                    if began.elapsed() > PATIENCE {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                }
                result => return result,
            }
        }
    }
}

/// One connection to nats-server.
struct Connection {
    from: BufReader<From>,
    to: TcpStream,
    line: String,
}

impl Connection {
    fn open(to: TcpStream, spins: bool) -> io::Result<Connection> {
        to.set_nodelay(true)?;
        to.set_nonblocking(spins)?;
        let stream = to.try_clone()?;
        let mut connection = Connection {
            from: BufReader::new(From { stream, spins }),
            to,
            line: String::new(),
        };
        connection.send(
            b"CONNECT {\"verbose\":false,\"pedantic\":false,\"headers\":false}\r\nPING\r\n",
        )?;
        while connection.next_line()? != "PONG" {}
        Ok(connection)
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        write_spinning(&mut self.to, bytes)
    }

    fn next_line(&mut self) -> io::Result<&str> {
        self.line.clear();
        if self.from.read_line(&mut self.line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(self.line.trim_end())
    }

    /// Subscribes, and waits until that is known.
    fn subscribe(&mut self, subject: &str) -> io::Result<()> {
        self.send(format!("SUB {subject} 1\r\nPING\r\n").as_bytes())?;
        while self.next_line()? != "PONG" {}
        Ok(())
    }

    /// The next message's payload; returns the subject to answer on, if there is one.
    fn message(&mut self, to: &mut Vec<u8>) -> io::Result<Option<String>> {
        loop {
            let line = self.next_line()?;
            if line == "PING" {
                self.send(b"PONG\r\n")?;
                continue;
            }
            let Some(words) = line.strip_prefix("MSG ") else {
                return Err(io::Error::other(format!("nats-server said: {line}")));
            };
            let words: Vec<&str> = words.split(' ').collect();
            let answer_to = (words.len() == 4).then(|| words[2].to_owned());
            let bytes = words.last().and_then(|word| word.parse::<usize>().ok());
            let bytes = bytes.ok_or_else(|| io::Error::other("a message without a length"))?;
            to.resize(bytes + 2, 0);
            self.from.read_exact(to)?;
            to.truncate(bytes);
            return Ok(answer_to);
        }
    }
}

/// Who answers; `port` is that of nats-server.
pub fn serve(port: &str) -> Result<(), Failure> {
    let port: u16 = port.parse()?;
    let stream = TcpStream::connect(("127.0.0.1", port))?;
    let mut connection = Connection::open(stream, false)?;
    connection.subscribe("bench")?;
    println!("ready {port}");
    let mut message = Vec::new();
    let mut out = Vec::new();
    loop {
        let Some(to) = connection.message(&mut message)? else {
            continue;
        };
        write!(out, "PUB {to} {}\r\n", message.len())?;
        out.extend_from_slice(&message);
        out.extend_from_slice(b"\r\n");
        // Answers to all that has come go together.
        if connection.from.buffer().is_empty() {
            connection.send(&out)?;
            out.clear();
        }
    }
}

pub fn run(context: &mut Context) -> Result<(), Failure> {
    let cpu = context.host.server_cpu.to_string();
    let duration = context.duration.as_nanos() as u64;
    for windowed in [false, true] {
        context.measure(tcp::row("NATS request and reply", windowed), |row| {
            let (_nats, stream) = Program::start(&cpu, "nats-server", &ARGUMENTS)?;
            let port = stream.peer_addr()?.port().to_string();
            let _served = Served::start(&["--kind", "nats", "--cpu", &cpu, "--name", &port])?;
            let mut connection = Connection::open(stream, true)?;
            connection.subscribe("answers")?;
            match windowed {
                true => window(&mut connection, row, duration),
                false => one_by_one(&mut connection, row, duration),
            }
        })?;
    }
    Ok(())
}

fn request(payload: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(b"PUB bench answers 64\r\n");
    out.extend_from_slice(payload);
    out.extend_from_slice(b"\r\n");
}

fn one_by_one(connection: &mut Connection, row: &mut Row, duration: u64) -> Result<(), Failure> {
    let mut trips = RoundTrips::new(WARM_UP, duration);
    let mut message = payload(BYTES);
    let (mut out, mut answer) = (Vec::new(), Vec::new());
    for number in 0u64.. {
        stamp(&mut message, number);
        let start = monotonic_ns();
        out.clear();
        request(&message, &mut out);
        connection.send(&out)?;
        connection.message(&mut answer)?;
        let now = monotonic_ns();
        if answer != message {
            return Err(wrong_answer().into());
        }
        if trips.took(start, now)? {
            break;
        }
    }
    row.push_latencies(trips.into_histogram());
    Ok(())
}

fn window(connection: &mut Connection, row: &mut Row, duration: u64) -> Result<(), Failure> {
    let mut window = Window::new(BYTES, Clock::new(WARM_UP, duration));
    let (mut out, mut answer) = (Vec::new(), Vec::new());
    loop {
        out.clear();
        while let Some(payload) = window.next_request() {
            request(payload, &mut out);
        }
        connection.send(&out)?;
        // At least one, and what came with it.
        loop {
            connection.message(&mut answer)?;
            window.take(&answer);
            if window.is_empty() || connection.from.buffer().is_empty() {
                break;
            }
        }
        if let Some(rate) = window.rate()? {
            row.push("requests", "/s", rate);
            return Ok(());
        }
    }
}
