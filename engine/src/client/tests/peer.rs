//! A server in a few lines, for doing what the real one never does.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use crate::client::Client;
use crate::wire::{self, ErrorCode, Flags, Header, ProtocolVersion, Scanned, msg_type};

/// Longer than any test sends.
const MAX_BYTES: u32 = 16 << 20;

/// A listener and the thread that serves its connections, one after another.
pub(super) struct Peer {
    address: String,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Peer {
    /// Serves each connection by `serve`.
    pub(super) fn serve(serve: impl Fn(Stream) + Send + 'static) -> Peer {
        Peer::serve_numbered(move |_, stream| serve(stream))
    }

    /// As [`Peer::serve`], with the connection's number, from 0.
    pub(super) fn serve_numbered(serve: impl Fn(usize, Stream) + Send + 'static) -> Peer {
        Peer::serve_at("127.0.0.1:0", serve)
    }

    pub(super) fn serve_at(address: &str, serve: impl Fn(usize, Stream) + Send + 'static) -> Peer {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let stopping = Arc::new(AtomicBool::new(false));
        let stop = stopping.clone();
        let thread = std::thread::spawn(move || {
            for number in 0.. {
                let (stream, _) = listener.accept().unwrap();
                // Pairs with the store in `stop`, before its connection.
                if stop.load(Ordering::Acquire) {
                    return;
                }
                serve(number, Stream::new(stream));
            }
        });
        Peer {
            address,
            stopping,
            thread: Some(thread),
        }
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// Takes no more connections, once the present one has ended.
    pub(super) fn stop(&mut self) {
        self.stopping.store(true, Ordering::Release);
        // Wakes the thread from its wait for a connection.
        let _ = TcpStream::connect(&self.address);
        if let Some(thread) = self.thread.take()
            && let Err(panic) = thread.join()
            && !std::thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }

    /// As dropping: fails if the serving thread did.
    pub(super) fn join(self) {}
}

impl Drop for Peer {
    fn drop(&mut self) {
        // A client that is still there would keep its connection's thread waiting for ever; tests
        // declare their client after the peer, so it is gone first.
        self.stop();
    }
}

pub(super) struct Frame {
    pub(super) header: Header,
    pub(super) payload: Vec<u8>,
}

impl Frame {
    pub(super) fn id(&self) -> u64 {
        self.header.msg_id
    }

    /// The answer that repeats the payload.
    pub(super) fn response(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let Header {
            msg_type, msg_id, ..
        } = self.header;
        wire::encode_to(&mut bytes, Flags::RESPONSE, msg_type, msg_id, &self.payload);
        bytes
    }
}

/// One connection.
pub(super) struct Stream {
    stream: TcpStream,
    received: Vec<u8>,
}

impl Stream {
    fn new(stream: TcpStream) -> Stream {
        stream.set_nodelay(true).unwrap();
        Stream {
            stream,
            received: Vec::new(),
        }
    }

    fn receive(&mut self) -> usize {
        let mut chunk = [0; 16 * 1024];
        let received = self.stream.read(&mut chunk).unwrap_or(0);
        self.received.extend_from_slice(&chunk[..received]);
        received
    }

    /// The next frame; `None`: the client has ended.
    pub(super) fn next(&mut self) -> Option<Frame> {
        loop {
            if let Scanned::Frame {
                header,
                frame_bytes,
            } = wire::scan(ProtocolVersion::V2, &self.received, MAX_BYTES).unwrap()
            {
                let payload = self.received[wire::HEADER_BYTES..frame_bytes].to_vec();
                wire::verify(&header, &payload).unwrap();
                self.received.drain(..frame_bytes);
                return Some(Frame { header, payload });
            }
            if self.receive() == 0 {
                return None;
            }
        }
    }

    /// As [`Stream::next`], past what only says that an answer is not wanted any more.
    pub(super) fn next_request(&mut self) -> Option<Frame> {
        loop {
            let frame = self.next()?;
            if frame.header.msg_type != msg_type::CANCEL {
                return Some(frame);
            }
        }
    }

    pub(super) fn take(&mut self, count: usize) -> Vec<Frame> {
        (0..count).map(|_| self.next().unwrap()).collect()
    }

    pub(super) fn wait_for_bytes(&mut self) {
        assert!(self.receive() > 0);
    }

    pub(super) fn until_closed(&mut self) {
        while self.receive() > 0 {}
    }

    pub(super) fn answer(&mut self, frame: &Frame) {
        let _ = self.stream.write_all(&frame.response());
    }

    pub(super) fn write_frame(&mut self, flags: Flags, msg_type: u16, id: u64, payload: &[u8]) {
        let mut bytes = Vec::new();
        wire::encode_to(&mut bytes, flags, msg_type, id, payload);
        // The client may have gone on purpose.
        let _ = self.stream.write_all(&bytes);
    }

    pub(super) fn write_error(&mut self, flags: Flags, id: u64, code: ErrorCode, text: &str) {
        let mut payload = Vec::new();
        wire::encode_error_payload(&mut payload, code, text);
        self.write_frame(flags, msg_type::ERROR, id, &payload);
    }

    pub(super) fn shutdown(&mut self, how: Shutdown) {
        self.stream.shutdown(how).unwrap();
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// Waits until the client has the end of its connection.
pub(super) fn until_ended(client: &Client) {
    while client.is_connected() {
        std::thread::yield_now();
    }
}
