//! Everyone sends a large message before anyone reads an answer: the most that a server has to hold.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use lapce_ai::bench_internals::crc;
use lapce_ai::ipc::{IdleMode, Limits, msg_type};

use crate::context::{Context, Failure, wrong_answer};
use crate::{engine, host, payloads, sys};

const SENDERS: usize = 500;
/// Their messages, too, are more than the server may buffer.
const QUICK_SENDERS: usize = 100;
const MESSAGE_BYTES: usize = 1 << 20;
const HEADER_BYTES: usize = 24;
/// When nothing has moved for so long, all that can be sent is.
const QUIET: Duration = Duration::from_millis(300);
const PATIENCE: Duration = Duration::from_secs(60);

/// A worker's receive buffers: a message that has to wait for room may have got all of them before its
/// connection is no longer read from, and so many messages may end in one round.
const BUFFERS: u64 = 16;
const BUFFER_BYTES: u64 = 16 * 1024;
/// The server itself.
const BASE_BYTES: u64 = 3_000_000;

/// The most that the limits allow: the messages that have their room, the beginnings of those that wait
/// for it, and the answers of one round, which are charged after it.
fn bound_bytes(senders: u64) -> u64 {
    BASE_BYTES
        + Limits::default().max_buffered_bytes
        + senders * BUFFERS * BUFFER_BYTES
        + BUFFERS * MESSAGE_BYTES as u64
}

pub fn run(context: &mut Context) -> Result<(), Failure> {
    let count = match context.quick {
        true => QUICK_SENDERS,
        false => SENDERS,
    };
    let served = engine::start(context.host.server_cpu, IdleMode::Adaptive)?;
    context
        .bar
        .set_message(format!("memory: {count} senders of 1 MiB"));
    let payload = payloads::payload(MESSAGE_BYTES);
    let mut senders = Vec::with_capacity(count);
    for id in 1..=count as u64 {
        senders.push(Sender::open(served.address(), id, &payload)?);
    }
    host::forget_peak(served.pid())?;
    // It finds all of them in its sockets, and has to go through them in its own order.
    sys::signal(served.pid(), libc::SIGSTOP)?;
    send(&mut senders)?;
    sys::signal(served.pid(), libc::SIGCONT)?;
    send(&mut senders)?;
    let sent: usize = senders.iter().map(|sender| sender.sent).sum();
    if (sent as u64) <= Limits::default().max_buffered_bytes {
        return Err(format!("the sockets took only {sent} bytes: too few to show a limit").into());
    }
    let held = host::memory(served.pid());
    super::memory::push(
        context,
        &format!("{count} senders of 1 MiB, none reads"),
        held,
    );
    receive(senders)?;
    let after = host::memory(served.pid());
    super::memory::push(context, &format!("after {count} senders of 1 MiB"), after);
    let (peak, bound) = (after.peak * 1024.0, bound_bytes(count as u64) as f64);
    context.verdict(
        format!("{count} send 1 MiB each before one reads: the server stays within its limits"),
        format!(
            "at most {:.0} MB with {:.0} MB sent, {:.0} allowed",
            peak / 1e6,
            sent as f64 / 1e6,
            bound / 1e6
        ),
        peak <= bound,
    );
    Ok(())
}

/// All send, as far as it goes.
fn send(senders: &mut [Sender]) -> io::Result<()> {
    let mut moved = Instant::now();
    while moved.elapsed() < QUIET {
        for sender in &mut *senders {
            if sender.write()? > 0 {
                moved = Instant::now();
            }
        }
    }
    Ok(())
}

/// All read, and send what is left.
fn receive(mut senders: Vec<Sender>) -> Result<(), Failure> {
    let mut buffer = vec![0; 256 * 1024];
    let begun = Instant::now();
    while !senders.is_empty() {
        if begun.elapsed() > PATIENCE {
            return Err(format!("{} senders had no answer in time", senders.len()).into());
        }
        let mut still = Vec::with_capacity(senders.len());
        for mut sender in senders {
            sender.write()?;
            if !sender.read(&mut buffer)? {
                still.push(sender);
            }
        }
        senders = still;
    }
    Ok(())
}

/// A connection without the engine's client, which would keep a copy of its message.
struct Sender<'a> {
    stream: TcpStream,
    request: [u8; HEADER_BYTES],
    answer: [u8; HEADER_BYTES],
    payload: &'a [u8],
    sent: usize,
    got: usize,
}

const REQUEST: u8 = 0x10;
const RESPONSE: u8 = 0x20;

/// By docs/protocol.md.
fn header(flags: u8, msg_type: u16, id: u64, payload: &[u8]) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..4].copy_from_slice(&0x4C50_4149_u32.to_le_bytes());
    header[4] = 2;
    header[5] = flags;
    header[6..8].copy_from_slice(&msg_type.to_le_bytes());
    header[8..12].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    header[12..20].copy_from_slice(&id.to_le_bytes());
    let sum = crc::frame_crc(&header, payload);
    header[20..].copy_from_slice(&sum.to_le_bytes());
    header
}

/// What of a frame comes after its first `done` bytes: of the header, and of the payload.
fn rest<'a>(header: &'a [u8], payload: &'a [u8], done: usize) -> (&'a [u8], &'a [u8]) {
    let behind = done.saturating_sub(header.len());
    (&header[done.min(header.len())..], &payload[behind..])
}

impl<'a> Sender<'a> {
    fn open(address: &str, id: u64, payload: &'a [u8]) -> io::Result<Sender<'a>> {
        let stream = TcpStream::connect(address)?;
        stream.set_nonblocking(true)?;
        Ok(Sender {
            stream,
            request: header(REQUEST, msg_type::ECHO, id, payload),
            answer: header(RESPONSE, msg_type::ECHO, id, payload),
            payload,
            sent: 0,
            got: 0,
        })
    }

    /// Sends what the socket takes.
    fn write(&mut self) -> io::Result<usize> {
        let (head, tail) = rest(&self.request, self.payload, self.sent);
        if tail.is_empty() {
            return Ok(0);
        }
        let parts = [IoSlice::new(head), IoSlice::new(tail)];
        match self.stream.write_vectored(&parts) {
            Ok(count) => {
                self.sent += count;
                Ok(count)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// Compares what has come. True: that was all of the answer.
    fn read(&mut self, buffer: &mut [u8]) -> Result<bool, Failure> {
        let count = match self.stream.read(buffer) {
            Ok(0) => return Err(io::Error::from(ErrorKind::UnexpectedEof).into()),
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        if !self.take(&buffer[..count]) {
            return Err(wrong_answer().into());
        }
        Ok(self.got == HEADER_BYTES + self.payload.len())
    }

    /// Whether these are the answer's next bytes.
    fn take(&mut self, got: &[u8]) -> bool {
        let (head, tail) = rest(&self.answer, self.payload, self.got);
        let count = got.len().min(head.len());
        self.got += got.len();
        got[..count] == head[..count] && tail.get(..got.len() - count) == Some(&got[count..])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn the_header_is_the_protocols() {
        // The example of docs/protocol.md.
        let heartbeat = header(REQUEST, msg_type::HEARTBEAT, 1, b"");
        assert_eq!(heartbeat[..8], [0x49, 0x41, 0x50, 0x4c, 2, 0x10, 5, 0]);
        assert_eq!(heartbeat[8..20], [0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(heartbeat[20..], [0xa5, 0x0f, 0x06, 0xdf]);
    }

    #[test]
    fn an_answer_comes_in_any_pieces_and_each_byte_counts() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let payload = payloads::payload(1000);
        let answer = [&header(RESPONSE, msg_type::ECHO, 7, &payload)[..], &payload].concat();
        for piece in [1, 23, 24, 25, 2000] {
            let open = || Sender::open(&address, 7, &payload).unwrap();
            let mut sender = open();
            assert!(answer.chunks(piece).all(|bytes| sender.take(bytes)));
            assert!(!sender.take(b"x"), "there is no more");
            for at in [0, 12, 24, 1023] {
                let mut wrong = answer.clone();
                wrong[at] ^= 1;
                let mut sender = open();
                assert!(!wrong.chunks(piece).all(|bytes| sender.take(bytes)), "{at}");
            }
        }
    }
}
