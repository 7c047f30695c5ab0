//! A second implementation of the wire protocol, from the specification alone: what the engine
//! says is checked against it, byte for byte. Only the CRC's arithmetic is borrowed, from a crate.

#![allow(dead_code)] // each test binary uses a part of it

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use lapce_ai::ipc::{Client, Deferred, Request, Responder, Server, ServerBuilder, process_stats};

/// Longer than anything takes on a busy machine; a test that waits this long has failed.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub const COMPRESSED: u8 = 0x01;
pub const STREAM: u8 = 0x04;
pub const PRIORITY: u8 = 0x08;
pub const REQUEST: u8 = 0x10;
pub const RESPONSE: u8 = 0x20;

pub const ERROR: u16 = 0x0004;
pub const HEARTBEAT: u16 = 0x0005;
pub const HANDSHAKE: u16 = 0x0010;
pub const HANDSHAKE_ACK: u16 = 0x0011;
pub const DISCONNECT: u16 = 0x0012;
pub const REGISTER: u16 = 0x0020;
pub const UNREGISTER: u16 = 0x0021;
pub const CANCEL: u16 = 0x0022;
pub const ECHO: u16 = 0x00F0;

pub const V2_HEADER_BYTES: usize = 24;
pub const V1_HEADER_BYTES: usize = 19;

/// A version 2 frame.
pub fn frame(flags: u8, msg_type: u16, msg_id: u64, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x49, 0x41, 0x50, 0x4C, 2, flags];
    bytes.extend(msg_type.to_le_bytes());
    bytes.extend((payload.len() as u32).to_le_bytes());
    bytes.extend(msg_id.to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend(payload);
    seal(&mut bytes);
    bytes
}

/// Puts the right CRC into a frame that was tampered with.
pub fn seal(bytes: &mut [u8]) {
    bytes[20..24].fill(0);
    let crc = crc32c::crc32c(bytes);
    bytes[20..24].copy_from_slice(&crc.to_le_bytes());
}

pub fn request(msg_type: u16, msg_id: u64, payload: &[u8]) -> Vec<u8> {
    frame(REQUEST, msg_type, msg_id, payload)
}

pub fn echo(msg_id: u64, payload: &[u8]) -> Vec<u8> {
    request(ECHO, msg_id, payload)
}

/// A version 1 frame.
pub fn frame_v1(msg_type: u16, msg_id: u64, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x4C, 0x50, 0x41, 0x49, 1];
    bytes.extend(msg_type.to_be_bytes());
    bytes.extend((payload.len() as u32).to_be_bytes());
    bytes.extend(msg_id.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// One LZ4 block.
pub fn lz4(plain: &[u8]) -> Vec<u8> {
    let mut block = vec![0; lz4_flex::block::get_maximum_output_size(plain.len())];
    let length = lz4_flex::block::compress_into(plain, &mut block).unwrap();
    block.truncate(length);
    block
}

/// Back again.
pub fn unlz4(block: &[u8], size: usize) -> Vec<u8> {
    let mut plain = vec![0; size];
    assert_eq!(
        lz4_flex::block::decompress_into(block, &mut plain).unwrap(),
        size
    );
    plain
}

/// Numbers that follow from a seed.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(1);
        u64::from_le_bytes(pattern(self.0, 24)[16..].try_into().unwrap()) % end
    }
}

/// How many seeds a random test tries: LAPCE_IPC_SEEDS, if that is set.
pub fn seeds(usually: u64) -> u64 {
    std::env::var("LAPCE_IPC_SEEDS").map_or(usually, |seeds| seeds.parse().unwrap())
}

/// Bytes that differ from message to message and from place to place.
pub fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// A frame as it arrived, its magic, version and CRC checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub flags: u8,
    pub msg_type: u16,
    pub msg_id: u64,
    pub payload: Vec<u8>,
}

impl Frame {
    /// The code and text of an ERROR frame.
    pub fn error(&self) -> (u16, String) {
        assert_eq!(self.msg_type, ERROR, "{self:?}");
        let code = u16::from_le_bytes([self.payload[0], self.payload[1]]);
        let text = String::from_utf8(self.payload[2..].to_vec()).expect("an error's text is UTF-8");
        (code, text)
    }
}

/// A raw socket that speaks frames.
pub struct Peer {
    pub stream: TcpStream,
}

impl Peer {
    pub fn connect(address: SocketAddr) -> Peer {
        Peer::over(TcpStream::connect(address).expect("the server accepts"))
    }

    pub fn over(stream: TcpStream) -> Peer {
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Peer { stream }
    }

    pub fn try_clone(&self) -> Peer {
        Peer {
            stream: self.stream.try_clone().unwrap(),
        }
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the server reads");
    }

    pub fn finish_sending(&self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
    }

    /// The next frame, or `None` at the orderly end.
    pub fn try_receive(&mut self) -> Option<Frame> {
        let mut head = [0; V2_HEADER_BYTES];
        if !self.fill(&mut head) {
            return None;
        }
        assert_eq!(head[..5], [0x49, 0x41, 0x50, 0x4C, 2], "magic and version");
        let length = u32::from_le_bytes(head[8..12].try_into().unwrap()) as usize;
        let mut bytes = head.to_vec();
        bytes.resize(V2_HEADER_BYTES + length, 0);
        assert!(self.fill(&mut bytes[V2_HEADER_BYTES..]) || length == 0);
        let got = bytes[20..24].to_vec();
        seal(&mut bytes);
        assert_eq!(got, bytes[20..24], "CRC");
        Some(Frame {
            flags: head[5],
            msg_type: u16::from_le_bytes([head[6], head[7]]),
            msg_id: u64::from_le_bytes(head[12..20].try_into().unwrap()),
            payload: bytes.split_off(V2_HEADER_BYTES),
        })
    }

    pub fn receive(&mut self) -> Frame {
        self.try_receive().expect("a frame, not the end")
    }

    /// The next version 1 frame, as one without flags; `None` at the end.
    pub fn try_receive_v1(&mut self) -> Option<Frame> {
        let mut head = [0; V1_HEADER_BYTES];
        if !self.fill(&mut head) {
            return None;
        }
        assert_eq!(head[..5], *b"LPAI\x01", "magic and version");
        let length = u32::from_be_bytes(head[7..11].try_into().unwrap()) as usize;
        let mut payload = vec![0; length];
        assert!(self.fill(&mut payload) || length == 0);
        Some(Frame {
            flags: 0,
            msg_type: u16::from_be_bytes([head[5], head[6]]),
            msg_id: u64::from_be_bytes(head[11..19].try_into().unwrap()),
            payload,
        })
    }

    /// False: the end, before the first byte. An end in the middle is a failure.
    fn fill(&mut self, buffer: &mut [u8]) -> bool {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.stream.read(&mut buffer[filled..]) {
                Ok(0) if filled == 0 => return false,
                Ok(0) => panic!("the connection ended in the middle of a frame"),
                Ok(count) => filled += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => panic!("receiving failed: {error}"),
            }
        }
        true
    }

    /// Checks that this is the answer to an ECHO request.
    pub fn expect_echo(&mut self, msg_id: u64, payload: &[u8]) {
        let got = self.receive();
        assert_eq!(
            (got.flags, got.msg_type, got.msg_id, got.payload.len()),
            (RESPONSE, ECHO, msg_id, payload.len())
        );
        assert!(got.payload == payload, "the bytes of answer {msg_id}");
    }

    /// Checks that the server closes in an orderly way, without another frame.
    pub fn expect_end(&mut self) {
        let mut byte = [0];
        loop {
            match self.stream.read(&mut byte) {
                Ok(0) => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                other => panic!("expected the connection's end, got {other:?} {byte:?}"),
            }
        }
    }

    /// Waits for the connection to be gone, in whichever way.
    pub fn expect_gone(&mut self) {
        let mut buffer = [0; 4096];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    let timed_out =
                        matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
                    assert!(!timed_out, "the connection should be gone");
                    return;
                }
            }
        }
    }

    /// Checks that the connection is of use still.
    pub fn expect_alive(&mut self) {
        self.send(&echo(0xA11CE, b"still there?"));
        self.expect_echo(0xA11CE, b"still there?");
    }
}

/// A server on a port of its own, not pinned: many tests run at once.
pub fn server() -> ServerBuilder {
    Server::builder().bind("127.0.0.1:0").workers(1).pin(false)
}

/// The same, started: it serves ECHO alone.
pub fn echo_server() -> Server {
    server().start().unwrap()
}

/// The type that [`serving`] serves.
pub const WORK: u16 = 0x0100;

/// A server with a handler of the test's.
pub fn serving<F>(handler: F) -> Server
where
    F: Fn(Request<'_>, Responder<'_>) + Send + Sync + 'static,
{
    server().handler(WORK, handler).start().unwrap()
}

/// Answers that a server owes, for another of its handlers to give.
pub type Kept = Arc<Mutex<Vec<Deferred>>>;

/// A server that keeps the answers to [`WORK`].
pub fn keeping(kept: &Kept) -> ServerBuilder {
    let kept = kept.clone();
    server().handler(WORK, move |_: Request<'_>, responder: Responder<'_>| {
        kept.lock().unwrap().push(responder.detach());
    })
}

/// A server that hands the duty to answer [`WORK`] to the test.
pub fn handing_over() -> (ServerBuilder, Receiver<Deferred>) {
    let (sender, receiver) = mpsc::channel();
    let builder = server().handler(WORK, move |_: Request<'_>, responder: Responder<'_>| {
        // The test may have ended already.
        let _ = sender.send(responder.detach());
    });
    (builder, receiver)
}

/// A client that waits long enough.
pub fn client(server: &Server) -> Client {
    Client::builder()
        .timeout(PATIENCE)
        .connect(&address(server).to_string())
        .unwrap()
}

pub fn address(server: &Server) -> SocketAddr {
    server.local_addr().expect("it listens on TCP")
}

/// Waits for something to become true.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "never came true: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Resident memory of this process, in bytes.
pub fn resident_bytes() -> u64 {
    process_stats().resident_bytes
}
