//! Two processes and memory between them, without the engine: what the floors are measured on.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use crate::child::Served;
use crate::sys::Shared;

/// Spins until the other side's turn before the CPU is offered to others.
const SPINS_MAX: u32 = 100_000;
/// How long one side waits for the other before it gives up.
const PATIENCE: Duration = Duration::from_secs(20);

/// The client's side, and the process of the other side.
pub struct Bare {
    path: PathBuf,
    pub shared: Shared,
    pub served: Served,
}

impl Bare {
    /// Starts the other side. `kind` is what [`crate::serve`] calls it.
    pub fn start(server_cpu: usize, kind: &str, bytes: usize) -> io::Result<Bare> {
        let path = format!("/dev/shm/lapce-bench-{kind}-{}", std::process::id());
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)?;
        let started = file
            .set_len(bytes as u64)
            .and_then(|()| Shared::map(&file))
            .and_then(|shared| {
                let cpu = server_cpu.to_string();
                let served = Served::start(&["--kind", kind, "--cpu", &cpu, "--name", &path])?;
                Ok((shared, served))
            });
        let path = PathBuf::from(path);
        match started {
            Ok((shared, served)) => Ok(Bare {
                path,
                shared,
                served,
            }),
            Err(error) => {
                std::fs::remove_file(&path)?;
                Err(error)
            }
        }
    }

    /// Tells the other side what comes, with the first two words at 0, and waits until it is ready.
    pub fn begin(&mut self, command: &str) -> io::Result<()> {
        let (mine, other) = self.shared.words();
        // Relaxed: the other side reads them after the line that tells it.
        mine.store(0, Relaxed);
        other.store(0, Relaxed);
        self.served.tell(command)?;
        self.served.line().map(drop)
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        // If it is gone already, all is well.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The other side's memory.
pub fn open(name: &str) -> io::Result<Shared> {
    let file: File = OpenOptions::new().read(true).write(true).open(name)?;
    Shared::map(&file)
}

/// The other side's life: does what it is told. Between commands it sleeps in a read of its
/// standard input, and costs nothing.
pub fn commands(mut run: impl FnMut(&str) -> io::Result<()>) -> io::Result<()> {
    for line in io::stdin().lines() {
        let line = line?;
        println!("going");
        run(&line)?;
    }
    Ok(())
}

/// Spins until it is done.
///
/// # Panics
/// If that takes too long: the other side has ended.
#[inline]
pub fn until(mut done: impl FnMut() -> bool) {
    let mut spins = 0u32;
    let mut began = None;
    while !done() {
        spins = spins.wrapping_add(1);
        if spins.is_multiple_of(SPINS_MAX) {
            std::thread::yield_now(); // both sides may share one CPU
            let began = began.get_or_insert_with(Instant::now);
            assert!(began.elapsed() < PATIENCE, "the other side does nothing");
        }
        std::hint::spin_loop();
    }
}
