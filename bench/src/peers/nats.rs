//! NATS: request and reply through nats-server, its text protocol written by hand. A request takes
//! four hops: to the server, to who answers, back to the server, to who asked.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lapce_ai::ipc::monotonic_ns;

use super::tcp::{self, WINDOW};
use crate::child::Served;
use crate::context::{Context, Failure, wrong_answer};
use crate::load::{payload, stamp};
use crate::row::{Row, latencies};

const PATIENCE: Duration = Duration::from_secs(3);
const WARM_UP: u64 = 300;

struct Nats(Child);

impl Drop for Nats {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// One connection to nats-server.
struct Connection {
    from: BufReader<TcpStream>,
    to: TcpStream,
    line: String,
}

impl Connection {
    fn open(port: u16) -> io::Result<Connection> {
        let to = TcpStream::connect(("127.0.0.1", port))?;
        to.set_nodelay(true)?;
        let mut connection = Connection {
            from: BufReader::new(to.try_clone()?),
            to,
            line: String::new(),
        };
        connection.to.write_all(
            b"CONNECT {\"verbose\":false,\"pedantic\":false,\"headers\":false}\r\nPING\r\n",
        )?;
        while connection.next_line()? != "PONG" {}
        Ok(connection)
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
        write!(self.to, "SUB {subject} 1\r\nPING\r\n")?;
        while self.next_line()? != "PONG" {}
        Ok(())
    }

    /// The next message's payload; returns the subject to answer on, if there is one.
    fn message(&mut self, to: &mut Vec<u8>) -> io::Result<Option<String>> {
        loop {
            let line = self.next_line()?;
            if line == "PING" {
                self.to.write_all(b"PONG\r\n")?;
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
    let mut connection = Connection::open(port.parse()?)?;
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
            connection.to.write_all(&out)?;
            out.clear();
        }
    }
}

pub fn run(context: &mut Context) -> Result<(), Failure> {
    let cpu = context.host.server_cpu.to_string();
    let duration = context.duration.as_nanos() as u64;
    for windowed in [false, true] {
        context.measure(tcp::row("NATS request and reply", windowed), |row| {
            let (_nats, port) = start(&cpu)?;
            let port_text = port.to_string();
            let _served = Served::start(&["--kind", "nats", "--cpu", &cpu, "--name", &port_text])?;
            let mut connection = Connection::open(port)?;
            connection.subscribe("answers")?;
            let window = if windowed { WINDOW } else { 1 };
            call(&mut connection, row, window as u64, duration)
        })?;
    }
    Ok(())
}

fn call(
    connection: &mut Connection,
    row: &mut Row,
    window: u64,
    duration: u64,
) -> Result<(), Failure> {
    let mut histogram = latencies();
    let mut message = payload(64);
    let mut answer = Vec::new();
    let mut out = Vec::new();
    let (mut sent, mut answered) = (0u64, 0u64);
    let (mut begun, mut counted) = (monotonic_ns(), 0u64);
    loop {
        let start = monotonic_ns();
        out.clear();
        while sent < answered + window {
            stamp(&mut message, sent);
            out.extend_from_slice(b"PUB bench answers 64\r\n");
            out.extend_from_slice(&message);
            out.extend_from_slice(b"\r\n");
            sent += 1;
        }
        connection.to.write_all(&out)?;
        // At least one, and what came with it.
        loop {
            connection.message(&mut answer)?;
            stamp(&mut message, answered);
            if answer != message {
                return Err(wrong_answer().into());
            }
            answered += 1;
            if answered == sent || connection.from.buffer().is_empty() {
                break;
            }
        }
        let now = monotonic_ns();
        if answered < WARM_UP {
            (begun, counted) = (now, answered);
            continue;
        }
        histogram.record(now - start)?;
        if now - begun > duration {
            break;
        }
    }
    if window > 1 {
        let took = (monotonic_ns() - begun) as f64 / 1e9;
        row.push("requests", "/s", (answered - counted) as f64 / took);
    } else {
        row.push_latencies(histogram);
    }
    Ok(())
}

fn start(cpu: &str) -> io::Result<(Nats, u16)> {
    // A port that was free a moment ago.
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let child = Command::new("taskset")
        .args(["-c", cpu, "nats-server", "-a", "127.0.0.1", "-p"])
        .arg(port.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let mut nats = Nats(child);
    let began = Instant::now();
    loop {
        match TcpStream::connect(("127.0.0.1", port)) {
            Ok(_) => return Ok((nats, port)),
            Err(error) if began.elapsed() > PATIENCE => return Err(error),
            Err(_) => {}
        }
        if nats.0.try_wait()?.is_some() {
            return Err(io::Error::other("nats-server does not start"));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
