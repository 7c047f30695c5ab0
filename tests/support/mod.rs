//! A daemon of one's own, with free ports and its own shared memory.
#![allow(dead_code)] // Each test uses a part of it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

pub const SERVER: &str = env!("CARGO_BIN_EXE_lapce_ipc_server");
pub const COMMAND: &str = env!("CARGO_BIN_EXE_lapce-ipc");

/// For [`config`].
pub const NEW: &str = "protocol_version = 2";
pub const COMPATIBILITY: &str = "[compatibility]\nenable_legacy_support = false";

/// Longer than anything takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A scratch folder that goes with the test.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new() -> Scratch {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("lapce_ipc_test_{}_{next}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }

    pub fn instance(&self) -> String {
        let name = self.0.file_name().unwrap().to_str().unwrap();
        name.trim_start_matches("lapce_ipc_").to_owned()
    }

    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A running daemon, and what it said.
pub struct Daemon {
    pub child: Child,
    pub address: String,
    pub metrics: String,
    pub instance: String,
    pub log: std::sync::mpsc::Receiver<String>,
    pub ready: String,
}

/// A configuration on free ports with an instance of its own, and `more` sections or keys.
pub fn config(scratch: &Scratch, server_keys: &str, sections: &str) -> String {
    format!(
        "[server]\nbind_address = \"127.0.0.1:0\"\n{server_keys}\n[shm]\ninstance = \"{}\"\n[metrics]\nbind_address = \"127.0.0.1:0\"\n{sections}\n",
        scratch.instance()
    )
}

impl Daemon {
    pub fn start(program: &str, file: &PathBuf, instance: &str, vars: &[(&str, &str)]) -> Daemon {
        let mut child = Command::new(program)
            .arg("--config")
            .arg(file)
            .envs(vars.iter().copied())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (tell, log) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                if tell.send(line).is_err() {
                    return;
                }
            }
        });
        let mut said = Vec::new();
        let ready = loop {
            let line = log
                .recv_timeout(Duration::from_secs(30))
                .unwrap_or_else(|_| panic!("not ready, but said: {said:?}"));
            if line.contains("ready: ") {
                break line;
            }
            said.push(line);
        };
        let part = |name: &str| {
            let at = ready
                .find(name)
                .unwrap_or_else(|| panic!("{name} in {ready}"));
            ready[at + name.len()..]
                .split([',', '/', ' '])
                .next()
                .unwrap()
                .to_owned()
        };
        let daemon = Daemon {
            child,
            address: part("tcp "),
            metrics: part("http://"),
            instance: instance.to_owned(),
            log,
            ready,
        };
        for line in said {
            eprintln!("{line}");
        }
        daemon
    }

    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args([name, &pid])
                .status()
                .unwrap()
                .success()
        );
    }

    /// Ends it by a signal, which must not take long.
    pub fn end(&mut self, signal: &str) -> ExitStatus {
        self.signal(signal);
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(start.elapsed() < PATIENCE, "{signal} does not end it");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Ends it as systemd would and returns its exit code. It must not take long.
    pub fn stop(mut self) -> i32 {
        self.end("-TERM").code().unwrap()
    }

    /// Its control segment.
    pub fn control(&self) -> PathBuf {
        PathBuf::from(format!("/dev/shm/lapce_ipc_v2_{}_control", self.instance))
    }

    /// How many descriptors it has open.
    pub fn descriptors(&self) -> usize {
        let folder = format!("/proc/{}/fd", self.child.id());
        std::fs::read_dir(folder).unwrap().count()
    }

    pub fn said(&self, part: &str) -> bool {
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(20) {
            match self.log.recv_timeout(Duration::from_millis(200)) {
                Ok(line) if line.contains(part) => return true,
                _ => {}
            }
        }
        false
    }

    pub fn get(&self, path: &str) -> String {
        http(&self.metrics, path)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
            let _ = std::fs::remove_file(self.control());
        }
    }
}

pub fn http(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// A version 1 client, written from the specification alone.
pub struct OldClient(TcpStream);

impl OldClient {
    pub fn connect(address: &str) -> OldClient {
        let stream = TcpStream::connect(address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        OldClient(stream)
    }

    pub fn call(&mut self, msg_type: u16, msg_id: u64, payload: &[u8]) -> (u16, u64, Vec<u8>) {
        let mut frame = b"LPAI\x01".to_vec();
        frame.extend_from_slice(&msg_type.to_be_bytes());
        frame.extend_from_slice(&(payload.len() as u32).to_be_bytes());
        frame.extend_from_slice(&msg_id.to_be_bytes());
        frame.extend_from_slice(payload);
        self.0.write_all(&frame).unwrap();
        let mut head = [0; 19];
        self.0.read_exact(&mut head).unwrap();
        assert_eq!(&head[..5], b"LPAI\x01");
        let length = u32::from_be_bytes(head[7..11].try_into().unwrap());
        let mut payload = vec![0; length as usize];
        self.0.read_exact(&mut payload).unwrap();
        let msg_type = u16::from_be_bytes([head[5], head[6]]);
        (
            msg_type,
            u64::from_be_bytes(head[11..].try_into().unwrap()),
            payload,
        )
    }

    /// Sends ECHO requests until neither side's sockets take any more.
    pub fn ask_much_and_read_nothing(&self) {
        let mut frame = b"LPAI\x01\x00\xF0".to_vec();
        let payload = [7; 60_000];
        frame.extend_from_slice(&(payload.len() as u32).to_be_bytes());
        frame.extend_from_slice(&1_u64.to_be_bytes());
        frame.extend_from_slice(&payload);
        self.0
            .set_write_timeout(Some(Duration::from_millis(300)))
            .unwrap();
        while (&self.0).write_all(&frame).is_ok() {}
    }

    pub fn is_closed(&mut self) -> bool {
        matches!(self.0.read(&mut [0]), Ok(0))
    }
}

/// The daemon with this configuration.
pub fn start(scratch: &Scratch, text: &str, vars: &[(&str, &str)]) -> Daemon {
    let file = scratch.write("lapce-ipc.toml", text);
    Daemon::start(SERVER, &file, &scratch.instance(), vars)
}

pub fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).output().unwrap()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}
