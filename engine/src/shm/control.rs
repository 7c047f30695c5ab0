//! The control segment, which a server shares with all its clients: by its name they find the server, in it they
//! claim a slot to be attached, and through it they wake the server's workers.
//!
//! ```text
//! page 0     0  magic u64, version u32, bytes u32, server pid u32, then u64: start ticks, nonce
//!           64  a futex word, counted up when a slot needs the server
//! page 1   256 bytes for each of 16 workers:
//!            0  its doorbell, a futex word
//!            4  one more than the number of the CPU that it runs on, 0 if that is not known (u32)
//!           64  summary: which of the words below may not be zero (u64)
//!          128  a ready bit for each of 1,024 connections (16 u64)
//! page 2.. 128 bytes for each of 64 slots: see [`super::slots`]
//! ```
//!
//! Every process of this user may write here, or cut the file short. So the server keeps nothing here alone, and
//! writes again what is lost: see [`Control::look_after`].

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::slots::{SLOT_BYTES, SLOTS, SLOTS_AT, Slot};
use super::{doorbell, leftovers};
use crate::sys::segment::{self, Segment};
use crate::sys::{futex, process, record_lock};
use crate::wire::{ErrorCode, control_segment_name};

const MAGIC: u64 = u64::from_le_bytes(*b"LAPCTL03");
const VERSION: u32 = 4;
const AT_VERSION: usize = 8;
const AT_BYTES: usize = 12;
const AT_SERVER_PID: usize = 16;
const AT_START_TICKS: usize = 24;
const AT_NONCE: usize = 32;
const AT_ATTACH: usize = 64;
const WORKERS_AT: usize = 4096;
const WORKER_BYTES: usize = 256;
const AT_WORKER_CPU: usize = 4;
/// The most workers of a server: as many as a control segment has room for.
pub(crate) const WORKERS_MAX: usize = 16;
/// The most shared-memory connections of one worker.
pub(crate) const READY_BITS: usize = 1024;
/// The byte of the file that the server holds a lock on, see [`Control::server_holds`]. Clients hold bytes at
/// random numbers.
const SERVER_LIFE: u64 = u64::MAX;
// All connections of the largest server, and its control segment, can be mapped.
const _: () = assert!(WORKERS_MAX * READY_BITS < segment::MAPPED_MAX);
const CONTROL_BYTES: usize = SLOTS_AT + SLOTS * SLOT_BYTES;

/// Why shared memory cannot be used.
#[derive(Debug)]
pub(crate) enum ShmError {
    /// There is no control segment; the text says what to do.
    Missing(String),
    /// A live server uses this instance. Pid 0: the process that holds its lock is no server.
    InUse { path: String, pid: u32 },
    /// The server refused: too many connections.
    Refused(u32),
    /// The server cannot watch this client's process.
    Unseen,
    /// The server did not answer in time.
    TimedOut,
    /// The file is not what it should be.
    Unusable { path: String, reason: String },
    /// A server's segment cannot be made.
    NotMade { path: String, source: io::Error },
    /// A file that has the name of a server's segment cannot be replaced.
    Failed { path: String, source: io::Error },
}

impl std::fmt::Display for ShmError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ShmError::Missing(text) => f.write_str(text),
            ShmError::InUse { path, pid: 0 } => write!(
                f,
                "{path}: another process holds its lock; stop it (fuser {path} names it), or choose another shm.instance"
            ),
            ShmError::InUse { path, pid } => write!(
                f,
                "{path}: another server, pid {pid}, is using it; stop it, or give this one another shm.instance"
            ),
            ShmError::Refused(code) if *code == ErrorCode::Overloaded as u32 => f.write_str(
                "the server has no place for another shared-memory connection: its limits.max_connections is reached, each of its workers has 1,024, it is out of descriptors, or /dev/shm is full (its log says which); close some, or connect to HOST:PORT",
            ),
            ShmError::Refused(code) => {
                write!(
                    f,
                    "the server refused the shared-memory connection (code {code})"
                )
            }
            ShmError::Unseen => f.write_str(
                "the server cannot watch this process, most likely because it is in another PID namespace (the server's log says why): let both share one, or use TCP",
            ),
            ShmError::TimedOut => f.write_str(
                "the server did not answer in time on shared memory; does it still run?",
            ),
            ShmError::Unusable { path, reason } => {
                write!(f, "Failed to open shared memory: {path}: {reason}")
            }
            ShmError::NotMade { path, source } => {
                write!(f, "Failed to open shared memory: {path}: {source}")?;
                match source.kind() {
                    io::ErrorKind::StorageFull | io::ErrorKind::FileTooLarge => Ok(()),
                    io::ErrorKind::Unsupported => {
                        f.write_str("; mount it, or set enabled = false under [shm]")
                    }
                    _ => f.write_str(
                        "; let this user make files in /dev/shm, or set enabled = false under [shm]",
                    ),
                }
            }
            ShmError::Failed { path, source } => write!(
                f,
                "Failed to open shared memory: {path}: {source}; remove it, or choose another shm.instance"
            ),
        }
    }
}

/// A mapped control segment, of a server or of a client.
#[derive(Debug)]
pub(crate) struct Control {
    pub(super) segment: Segment,
    pub(crate) name: String,
    /// Its path, kept so that looking at the file allocates nothing.
    pub(crate) path: String,
    /// This is the server's. Its file is kept open and holds the lock which proves that the server lives, and its
    /// name is removed at the end.
    owned: bool,
    /// For the server: nobody is to be attached any more.
    withdrawn: AtomicBool,
    header: ControlHeader,
}

/// Whose the segment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ControlHeader {
    server_pid: u32,
    start_ticks: u64,
    nonce: u64,
}

fn lock(file: &File) -> io::Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(std::fs::TryLockError::WouldBlock) => Ok(false),
        Err(std::fs::TryLockError::Error(error)) => Err(error),
    }
}

impl Control {
    /// Makes the control segment of an instance. That of a dead server is replaced, that of a live one never. The
    /// lock decides that a server holds on its file for as long as it lives.
    pub(crate) fn create(instance: &str) -> Result<Control, ShmError> {
        let name = control_segment_name(instance);
        let path = segment::path(&name);
        let unusable = |source: io::Error| ShmError::Failed {
            path: path.clone(),
            source,
        };
        let not_made = |source: io::Error| ShmError::NotMade {
            path: path.clone(),
            source,
        };
        // It gets its name when it is filled in and locked, so that nobody sees it half made.
        let (mut segment, file) =
            Segment::create_unnamed(CONTROL_BYTES, CONTROL_BYTES).map_err(not_made)?;
        lock(&file).map_err(not_made)?;
        record_lock::hold_byte(&file, SERVER_LIFE).map_err(not_made)?;
        let pid = std::process::id();
        let header = ControlHeader {
            server_pid: pid,
            start_ticks: process::start_ticks(pid).map_err(not_made)?.unwrap_or(0),
            nonce: random(),
        };
        header.write(&segment);
        // Each pass either gives it its name, or removes the name of a dead server's; others may do the same.
        for _ in 0..8 {
            match segment::publish(&file, &name) {
                Ok(()) => {
                    leftovers::remove(&name);
                    segment.keep_length(file);
                    return Ok(Control {
                        segment,
                        path: segment::path(&name),
                        name,
                        owned: true,
                        withdrawn: AtomicBool::new(false),
                        header,
                    });
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(not_made(error)),
            }
            // Of whatever length: a client may have cut it short before its server died.
            match segment::open_ours(&name) {
                Ok(old) => {
                    if !lock(&old).map_err(unusable)? {
                        let header = Segment::open(&name).ok();
                        let header = header.and_then(|(old, _)| ControlHeader::read(&old));
                        let alive = header.filter(|header| header.server_lives().unwrap_or(true));
                        let pid = alive.map_or(0, |header| header.server_pid);
                        return Err(ShmError::InUse { path, pid });
                    }
                    // The name is ours to remove now, unless somebody was quicker and it names a new file.
                    let identity = segment::identity(&old).map_err(unusable)?;
                    if segment::is_at(&path, identity) {
                        log::info!("{path} was left by a server that is gone: replaced");
                        let _ = segment::unlink(&name);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(unusable(error)),
            }
        }
        Err(ShmError::Unusable {
            path,
            reason: "others keep replacing it".into(),
        })
    }

    /// Repairs what another process has done to the server's segment: makes the file as long as it was, writes the
    /// header again, and has the workers look at all connections, since wake-ups may be lost. Returns what was
    /// wrong, for the log.
    pub(super) fn look_after(&self, workers: usize) -> Option<&'static str> {
        let restored = self.segment.restore_file();
        if self.segment.poisoned() {
            return Some(
                "another process took its memory away, and /dev/shm has none left: clients stay on TCP until it has",
            );
        }
        // It fails only if there is no memory; then the next fault tells.
        let was_changed = restored.unwrap_or(true);
        let is_intact = !was_changed && ControlHeader::read(&self.segment) == Some(self.header);
        if !is_intact {
            self.header.write(&self.segment);
        }
        for worker in 0..workers {
            if !is_intact {
                for bit in 0..READY_BITS {
                    doorbell::set_ready(&self.segment, self.worker(worker), bit);
                }
                doorbell::ring(self.doorbell(worker));
            }
            doorbell::wake_if_forgotten(self.doorbell(worker));
        }
        if was_changed {
            Some("another process changed its length or mode: it was restored")
        } else if !is_intact {
            Some("another process wrote over its header: it was restored")
        } else if !segment::is_at(&self.path, self.segment.identity()) {
            Some("its name was removed: no client finds it until the server is started again")
        } else {
            None
        }
    }

    /// For a client: opens the control segment of a server that lives.
    pub(crate) fn open(name: &str) -> Result<Control, ShmError> {
        let path = segment::path(name);
        let unusable = |reason: String| ShmError::Unusable {
            path: path.clone(),
            reason,
        };
        let segment = match Segment::open(name) {
            Ok((mut segment, file)) => {
                // If it is cut short, a fault makes it long again, so that doorbells still work.
                segment.keep_length(file);
                segment
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(ShmError::Missing(missing(&path)));
            }
            Err(error) => return Err(unusable(error.to_string())),
        };
        if segment.bytes() != CONTROL_BYTES {
            return Err(unusable(format!("it has {} bytes", segment.bytes())));
        }
        let Some(header) = ControlHeader::read(&segment) else {
            return Err(unusable(
                "its layout is not this version's: update client and server together".into(),
            ));
        };
        let pid = header.server_pid;
        let control = Control {
            segment,
            path,
            name: name.to_owned(),
            owned: false,
            withdrawn: AtomicBool::new(false),
            header,
        };
        let lives = header.server_lives().map_err(|error| ShmError::Unusable {
            path: control.path.clone(),
            reason: format!("whether its server, pid {pid}, lives cannot be found out: {error}"),
        })?;
        if !lives || !control.server_holds() {
            return Err(ShmError::Missing(format!(
                "Failed to open shared memory: {}: the server that made it, pid {pid}, is gone; start lapce_ipc_server again",
                control.path
            )));
        }
        Ok(control)
    }

    /// For a client that attaches: whether the segment still has its name. A server that stops removes that first,
    /// and answers nobody any more, though its process may live on.
    pub(super) fn check_offered(&self) -> Result<(), ShmError> {
        match segment::is_at(&self.path, self.segment.identity()) {
            true => Ok(()),
            false => Err(ShmError::Missing(format!(
                "Failed to open shared memory: {}: the server that made it has stopped; start lapce_ipc_server again",
                self.path
            ))),
        }
    }

    /// For a client: whether the server still holds its lock on the file, as far as can be found out. A server whose
    /// process executes another program (or itself again) has gone, although the process lives on.
    pub(super) fn server_holds(&self) -> bool {
        self.is_held(SERVER_LIFE)
    }

    /// For a client: takes the lock which shows that it keeps the connection with this number. The kernel releases it
    /// with the open file. False if it could not be taken.
    pub(super) fn hold(&self, life: u64) -> bool {
        let file = self.segment.kept();
        file.is_some_and(|file| record_lock::hold_byte(file, life).is_ok())
    }

    /// For the server: whether a client still holds the lock of its connection, as far as can be found out.
    pub(super) fn is_held(&self, life: u64) -> bool {
        let file = self.segment.kept();
        file.is_none_or(|file| record_lock::is_byte_held(file, life).unwrap_or(true))
    }

    pub(crate) fn server_pid(&self) -> u32 {
        self.header.server_pid
    }

    /// Identifies this segment: device, inode and a random number. The HANDSHAKE_ACK carries it, so that a client can
    /// check that the file it has opened is the server's.
    pub(crate) fn host_id(&self) -> Vec<u8> {
        let (device, inode) = self.segment.identity();
        [device, inode, self.header.nonce]
            .iter()
            .flat_map(|part| part.to_le_bytes())
            .collect()
    }

    /// The futex word on which the attach thread sleeps, counted up when a slot needs it.
    pub(super) fn attach_word(&self) -> &AtomicU32 {
        self.segment.word32(AT_ATTACH)
    }

    /// Wakes the attach thread: a slot needs it.
    pub(super) fn call_server(&self) {
        // Release: pairs with the acquire in `AttachServer::run`.
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

    /// Tells clients on which CPU the worker runs at the moment.
    pub(crate) fn set_worker_cpu(&self, worker: usize, cpu: Option<u32>) {
        // Relaxed: a hint, which orders nothing.
        let word = cpu.map_or(0, |cpu| cpu.saturating_add(1));
        let told = self.cpu_word(worker);
        // Mostly it is the same, and clients look at that line.
        if told.load(Ordering::Relaxed) != word {
            told.store(word, Ordering::Relaxed);
        }
    }

    /// On which CPU the worker was last seen.
    pub(super) fn worker_cpu(&self, worker: usize) -> Option<u32> {
        self.cpu_word(worker).load(Ordering::Relaxed).checked_sub(1)
    }

    /// For a client: sets its connection's ready bit and rings the worker's doorbell.
    pub(crate) fn ring(&self, worker: usize, bit: usize) {
        assert!(bit < READY_BITS);
        let at = self.worker(worker);
        doorbell::set_ready(&self.segment, at, bit);
        doorbell::ring(self.doorbell(worker));
    }

    /// Whether some connection of the worker has set its ready bit.
    #[inline]
    pub(crate) fn has_ready(&self, worker: usize) -> bool {
        doorbell::has_ready(&self.segment, self.worker(worker))
    }

    /// Takes the worker's ready bits that are set, and calls `each` with the number of each.
    pub(crate) fn take_ready(&self, worker: usize, each: impl FnMut(usize)) {
        doorbell::take_ready(&self.segment, self.worker(worker), each);
    }

    pub(super) fn slot(&self, index: usize) -> Slot<'_> {
        Slot::new(&self.segment, index)
    }

    /// For the server: takes the segment's name away, and has nobody attached from now on. Does not wait.
    pub(crate) fn withdraw(&self) {
        // Before the name, so that the thread which looks after that does not miss it. Release: pairs with the
        // acquire in `is_withdrawn`.
        self.withdrawn.store(true, Ordering::Release);
        self.call_server();
        self.remove();
    }

    pub(super) fn is_withdrawn(&self) -> bool {
        // Acquire: pairs with the release in `withdraw`.
        self.withdrawn.load(Ordering::Acquire)
    }

    /// For the server: removes the segment's name, so that no client finds it any more.
    fn remove(&self) {
        // Only if it is ours: a successor may have made a new segment under the same name.
        if self.owned && segment::is_at(&self.path, self.segment.identity()) {
            let _ = segment::unlink(&self.name);
        }
    }
}

impl ControlHeader {
    fn write(&self, segment: &Segment) {
        for (at, value) in [
            (AT_VERSION, VERSION),
            (AT_BYTES, CONTROL_BYTES as u32),
            (AT_SERVER_PID, self.server_pid),
        ] {
            segment.word32(at).store(value, Ordering::Relaxed);
        }
        for (at, value) in [(AT_START_TICKS, self.start_ticks), (AT_NONCE, self.nonce)] {
            segment.word64(at).store(value, Ordering::Relaxed);
        }
        // Release: pairs with the acquire in `read`: whoever sees the magic sees the rest.
        segment.word64(0).store(MAGIC, Ordering::Release);
    }

    /// Whether the server's process lives, and not another one that has its pid now.
    fn server_lives(&self) -> io::Result<bool> {
        Ok(process::start_ticks(self.server_pid)? == Some(self.start_ticks))
    }

    /// `None`: the segment is not one of this version.
    fn read(segment: &Segment) -> Option<ControlHeader> {
        // Acquire: pairs with the release in `write`.
        let ours = segment.bytes() == CONTROL_BYTES
            && segment.word64(0).load(Ordering::Acquire) == MAGIC
            && segment.word32(AT_VERSION).load(Ordering::Relaxed) == VERSION
            && segment.word32(AT_BYTES).load(Ordering::Relaxed) as usize == CONTROL_BYTES;
        ours.then(|| ControlHeader {
            server_pid: segment.word32(AT_SERVER_PID).load(Ordering::Relaxed),
            start_ticks: segment.word64(AT_START_TICKS).load(Ordering::Relaxed),
            nonce: segment.word64(AT_NONCE).load(Ordering::Relaxed),
        })
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
    let old = segment::names()
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
