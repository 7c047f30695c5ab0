//! The control segment: by its name clients find a server, in it they claim a slot to be attached,
//! and through it they ring the server's workers.
//!
//! ```text
//! page 0     0  magic u64, version u32, bytes u32, server pid u32, then u64: start ticks, nonce
//!           64  a futex word, counted up when a slot needs the server
//! page 1   256 bytes for each of 16 workers:
//!            0  its doorbell, a futex word
//!            4  one more than the number of the CPU that it runs on, 0 if that is not known (u32)
//!           64  which of the words below are not zero (u64)
//!          128  a bit for each of 1,024 connections that has something (16 u64)
//! page 2.. 128 bytes for each of 64 slots:
//!            0  state (a futex word), client pid u32, client start ticks u64
//!           16  error code u32, length of the name u32, name of the connection's segment
//! ```

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::doorbell;
use crate::sys::segment::{self, Segment};
use crate::sys::{futex, process};
use crate::wire::control_segment_name;

const MAGIC: u64 = u64::from_le_bytes(*b"LAPCTL02");
const VERSION: u32 = 2;
const AT_VERSION: usize = 8;
const AT_BYTES: usize = 12;
const AT_SERVER_PID: usize = 16;
const AT_START_TICKS: usize = 24;
const AT_NONCE: usize = 32;
const AT_ATTACH: usize = 64;
const WORKERS_AT: usize = 4096;
const WORKER_BYTES: usize = 256;
const AT_WORKER_CPU: usize = 4;
/// Workers that a control segment has room for.
pub(crate) const WORKERS_MAX: usize = 16;
/// Connections of one worker.
pub(crate) const READY_BITS: usize = 1024;
const SLOTS_AT: usize = 2 * 4096;
const SLOT_BYTES: usize = 128;
/// Clients that may be attaching at a time.
pub(super) const SLOTS: usize = 64;
const NAME_AT: usize = 24;
const NAME_BYTES_MAX: usize = SLOT_BYTES - NAME_AT;
const CONTROL_BYTES: usize = SLOTS_AT + SLOTS * SLOT_BYTES;

/// States of a slot.
pub(super) mod slot {
    pub(in crate::shm) const FREE: u32 = 0;
    /// A client fills it in.
    pub(in crate::shm) const CLAIMED: u32 = 1;
    /// The server is to make a connection.
    pub(in crate::shm) const REQUESTED: u32 = 2;
    /// The connection's segment is there, under the name in the slot.
    pub(in crate::shm) const READY: u32 = 3;
    /// There will be none; the slot holds the protocol's code.
    pub(in crate::shm) const REFUSED: u32 = 4;
    /// The client has the segment mapped.
    pub(in crate::shm) const MAPPED: u32 = 5;
}

/// Why shared memory cannot be used.
#[derive(Debug)]
pub(crate) enum ShmError {
    /// There is no control segment; the text says what to do.
    Missing(String),
    /// A live server has this instance.
    InUse { path: String, pid: u32 },
    /// The server refused: too many connections.
    Refused(u32),
    /// The server did not answer in time.
    TimedOut,
    /// What is there is not what it should be.
    Unusable { path: String, reason: String },
}

impl std::fmt::Display for ShmError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ShmError::Missing(text) => f.write_str(text),
            ShmError::InUse { path, pid } => write!(
                f,
                "{path}: another server, pid {pid}, is using it; stop it, or give this one another shm.instance"
            ),
            ShmError::Refused(code) => {
                write!(
                    f,
                    "the server refused the shared-memory connection (code {code})"
                )
            }
            ShmError::TimedOut => f.write_str(
                "the server did not answer in time on shared memory; does it still run?",
            ),
            ShmError::Unusable { path, reason } => {
                write!(f, "Failed to open shared memory: {path}: {reason}")
            }
        }
    }
}

/// A mapped control segment, of a server or of a client.
#[derive(Debug)]
pub(crate) struct Control {
    pub(super) segment: Segment,
    pub(crate) name: String,
    /// The server's: holds the lock that proves that it lives, and takes the name away at the end.
    owner: Option<File>,
}

fn lock(file: &File) -> io::Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(std::fs::TryLockError::WouldBlock) => Ok(false),
        Err(std::fs::TryLockError::Error(error)) => Err(error),
    }
}

/// Whether the path still leads to this segment.
fn is_named(path: &str, segment: &Segment) -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::symlink_metadata(path).is_ok_and(|meta| (meta.dev(), meta.ino()) == segment.identity())
}

impl Control {
    /// Makes the control segment of an instance. One of a dead server is replaced, a live one's
    /// never: the lock that a server holds on its file for as long as it lives decides.
    pub(crate) fn create(instance: &str) -> Result<Control, ShmError> {
        let name = control_segment_name(instance);
        let path = segment::path(&name);
        let unusable = |error: io::Error| ShmError::Unusable {
            path: path.clone(),
            reason: error.to_string(),
        };
        // Each turn either makes the segment or removes a dead one; others may do the same.
        for _ in 0..8 {
            match Segment::create(&name, CONTROL_BYTES) {
                Ok((segment, file)) => {
                    // Between the two steps another may have taken it for a dead server's: then it
                    // holds the lock, or has taken the name away.
                    if !lock(&file).map_err(unusable)? || !is_named(&path, &segment) {
                        continue;
                    }
                    let control = Control {
                        segment,
                        name,
                        owner: Some(file),
                    };
                    control.fill_in();
                    return Ok(control);
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(unusable(error)),
            }
            match Segment::open(&name) {
                Ok((old, file)) => {
                    if !lock(&file).map_err(unusable)? {
                        let pid = match old.bytes() >= CONTROL_BYTES {
                            true => old.word32(AT_SERVER_PID).load(Ordering::Relaxed),
                            false => 0,
                        };
                        return Err(ShmError::InUse { path, pid });
                    }
                    // Ours to remove now, unless somebody was quicker and the name is new again.
                    if is_named(&path, &old) {
                        log::info!("{path} was left by a server that is gone: replaced");
                        let _ = segment::unlink(&name);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                // An empty file: its maker died, or is between two steps. Others are unusable.
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    std::thread::sleep(std::time::Duration::from_millis(20));
                    if std::fs::metadata(&path).is_ok_and(|meta| meta.len() == 0) {
                        let _ = segment::unlink(&name);
                    }
                }
                Err(error) => return Err(unusable(error)),
            }
        }
        Err(ShmError::Unusable {
            path,
            reason: "others keep replacing it".into(),
        })
    }

    fn fill_in(&self) {
        let pid = std::process::id();
        let segment = &self.segment;
        segment.word32(AT_VERSION).store(VERSION, Ordering::Relaxed);
        segment
            .word32(AT_BYTES)
            .store(CONTROL_BYTES as u32, Ordering::Relaxed);
        segment.word32(AT_SERVER_PID).store(pid, Ordering::Relaxed);
        let ticks = process::start_ticks(pid).unwrap_or(0);
        segment
            .word64(AT_START_TICKS)
            .store(ticks, Ordering::Relaxed);
        segment.word64(AT_NONCE).store(random(), Ordering::Relaxed);
        // Release: pairs with the acquire in `open`: with the magic, the rest is there.
        segment.word64(0).store(MAGIC, Ordering::Release);
    }

    /// Opens the control segment `name` of a server that lives.
    pub(crate) fn open(name: &str) -> Result<Control, ShmError> {
        let path = segment::path(name);
        let unusable = |reason: String| ShmError::Unusable {
            path: path.clone(),
            reason,
        };
        let segment = match Segment::open(name) {
            Ok((segment, _)) => segment,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(ShmError::Missing(missing(&path)));
            }
            Err(error) => return Err(unusable(error.to_string())),
        };
        if segment.bytes() != CONTROL_BYTES {
            return Err(unusable(format!("it has {} bytes", segment.bytes())));
        }
        // Acquire: pairs with the release in `fill_in`.
        if segment.word64(0).load(Ordering::Acquire) != MAGIC
            || segment.word32(AT_VERSION).load(Ordering::Relaxed) != VERSION
            || segment.word32(AT_BYTES).load(Ordering::Relaxed) as usize != CONTROL_BYTES
        {
            return Err(unusable(
                "its layout is not this version's: update client and server together".into(),
            ));
        }
        let control = Control {
            segment,
            name: name.to_owned(),
            owner: None,
        };
        let pid = control.server_pid();
        let ticks = control
            .segment
            .word64(AT_START_TICKS)
            .load(Ordering::Relaxed);
        if process::start_ticks(pid) != Some(ticks) {
            return Err(ShmError::Missing(format!(
                "Failed to open shared memory: {path}: the server that made it, pid {pid}, is gone; start lapce_ipc_server again"
            )));
        }
        Ok(control)
    }

    pub(crate) fn server_pid(&self) -> u32 {
        self.segment.word32(AT_SERVER_PID).load(Ordering::Relaxed)
    }

    /// Tells this segment from any other: device, inode and a random number.
    pub(crate) fn host_id(&self) -> Vec<u8> {
        let (device, inode) = self.segment.identity();
        let nonce = self.segment.word64(AT_NONCE).load(Ordering::Relaxed);
        [device, inode, nonce]
            .iter()
            .flat_map(|part| part.to_le_bytes())
            .collect()
    }

    /// Counted up when a slot needs the server.
    pub(super) fn attach_word(&self) -> &AtomicU32 {
        self.segment.word32(AT_ATTACH)
    }

    pub(super) fn call_server(&self) {
        // Release: pairs with the acquire of the attach thread's look at the slots.
        self.attach_word().fetch_add(1, Ordering::Release);
        futex::wake(self.attach_word(), 1);
    }

    fn worker(&self, worker: usize) -> usize {
        assert!(worker < WORKERS_MAX);
        WORKERS_AT + worker * WORKER_BYTES
    }

    fn doorbell(&self, worker: usize) -> &AtomicU32 {
        self.segment.word32(self.worker(worker))
    }

    fn cpu_word(&self, worker: usize) -> &AtomicU32 {
        self.segment.word32(self.worker(worker) + AT_WORKER_CPU)
    }

    /// Says on which CPU the worker runs at the moment.
    pub(crate) fn set_worker_cpu(&self, worker: usize, cpu: Option<u32>) {
        // Relaxed: a hint, which orders nothing.
        let word = cpu.map_or(0, |cpu| cpu.saturating_add(1));
        self.cpu_word(worker).store(word, Ordering::Relaxed);
    }

    /// On which CPU the worker was last seen.
    pub(super) fn worker_cpu(&self, worker: usize) -> Option<u32> {
        self.cpu_word(worker).load(Ordering::Relaxed).checked_sub(1)
    }

    /// A client has something for the worker, on the connection with this bit.
    pub(crate) fn ring(&self, worker: usize, bit: usize) {
        assert!(bit < READY_BITS);
        let at = self.worker(worker);
        doorbell::set_ready(&self.segment, at, bit);
        doorbell::ring(self.doorbell(worker));
    }

    /// Whether some connection of the worker has rung.
    #[inline]
    pub(crate) fn has_ready(&self, worker: usize) -> bool {
        doorbell::has_ready(&self.segment, self.worker(worker))
    }

    /// Takes the bits of all connections that have rung.
    pub(crate) fn take_ready(&self, worker: usize, each: impl FnMut(usize)) {
        doorbell::take_ready(&self.segment, self.worker(worker), each);
    }

    fn slot(&self, slot: usize) -> usize {
        assert!(slot < SLOTS);
        SLOTS_AT + slot * SLOT_BYTES
    }

    pub(super) fn slot_state(&self, slot: usize) -> &AtomicU32 {
        self.segment.word32(self.slot(slot))
    }

    pub(super) fn slot_pid(&self, slot: usize) -> &AtomicU32 {
        self.segment.word32(self.slot(slot) + 4)
    }

    pub(super) fn slot_code(&self, slot: usize) -> &AtomicU32 {
        self.segment.word32(self.slot(slot) + 16)
    }

    pub(super) fn write_slot_name(&self, slot: usize, name: &str) {
        assert!(name.len() <= NAME_BYTES_MAX);
        let at = self.slot(slot);
        self.segment
            .word32(at + 20)
            .store(name.len() as u32, Ordering::Relaxed);
        let to = self.segment.at(at + NAME_AT, name.len());
        // SAFETY: `to` is valid for the name's length (checked).
        unsafe { std::ptr::copy_nonoverlapping(name.as_ptr(), to, name.len()) };
    }

    pub(super) fn read_slot_name(&self, slot: usize) -> Option<String> {
        let at = self.slot(slot);
        let length = self.segment.word32(at + 20).load(Ordering::Relaxed) as usize;
        if length > NAME_BYTES_MAX {
            return None;
        }
        let mut name = vec![0; length];
        let from = self.segment.at(at + NAME_AT, length);
        // SAFETY: `from` is valid for that many bytes (checked), which go to memory of our own.
        unsafe { std::ptr::copy_nonoverlapping(from, name.as_mut_ptr(), length) };
        String::from_utf8(name)
            .ok()
            .filter(|name| !name.contains('/'))
    }
}

impl Control {
    /// Takes the server's name away: no client finds it any more. A client's does nothing.
    pub(crate) fn remove(&self) {
        let path = segment::path(&self.name);
        // Only our own: a successor may have made a new one under the same name.
        let ours = self.owner.is_some() && is_named(&path, &self.segment);
        if ours {
            let _ = segment::unlink(&self.name);
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // The name before the lock, so that a successor never finds a name without a server.
        self.remove();
    }
}

/// The doorbell of one worker, in the control segment.
#[derive(Debug)]
pub(crate) struct DoorbellWord {
    pub(crate) control: Arc<Control>,
    pub(crate) worker: usize,
}

impl AsRef<AtomicU32> for DoorbellWord {
    fn as_ref(&self) -> &AtomicU32 {
        self.control.doorbell(self.worker)
    }
}

/// What to do when there is no control segment, with a hint where an old server's is found.
fn missing(path: &str) -> String {
    let mut text = format!(
        "Failed to open shared memory: {path}\nIs lapce_ipc_server running, with [shm] enabled and the same instance? Start it, or connect to its TCP address"
    );
    let old = std::fs::read_dir(segment::DIRECTORY)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .find(|name| name.starts_with("lapce_ipc_") && !name.starts_with("lapce_ipc_v2_"));
    if let Some(old) = old {
        text.push_str(&format!(
            "\nHint: {} belongs to version 0.x; version 1.0 uses names with the v2 prefix, /dev/shm/lapce_ipc_v2_*",
            segment::path(&old)
        ));
    }
    text
}

/// Unpredictable enough for names and nonces.
pub(super) fn random() -> u64 {
    let mut bytes = [0u8; 8];
    // SAFETY: fills 8 bytes of ours.
    unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    u64::from_ne_bytes(bytes)
}
