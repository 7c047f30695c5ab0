//! Log lines on stderr, one an event. Time stamps are left to whoever collects them: the journal
//! and every container runtime add their own.
//!
//! A thread of its own writes them, since stderr may be a pipe that nobody reads: then it waits, and
//! not the worker that has something to say. What has no place in its queue is counted, and left out.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::time::{Duration, Instant};

use log::{Level, LevelFilter, Log, Metadata, Record};
use signal_hook::consts::SIGXFSZ;
use signal_hook::flag;

use crate::journal::{self, Tags};

/// Lines that may wait.
const LINES_MAX: usize = 256;
/// How long the end of the process waits for what is in the queue to be written.
const FLUSH_MAX: Duration = Duration::from_secs(1);
const FLUSH_LOOK: Duration = Duration::from_millis(1);
const STACK_BYTES: usize = 64 * 1024;

struct Queue {
    lines: SyncSender<String>,
    counts: &'static Counts,
    tags: Tags,
}

struct Counts {
    /// Lines that were put in the queue, and those of them that were written.
    queued: AtomicU64,
    written: AtomicU64,
    /// Lines that were left out, and not told of so far.
    left_out: AtomicU64,
}

impl Counts {
    const fn new() -> Counts {
        Counts {
            queued: AtomicU64::new(0),
            written: AtomicU64::new(0),
            left_out: AtomicU64::new(0),
        }
    }
}

impl Queue {
    /// A queue, and what its thread takes.
    fn new(counts: &'static Counts, tags: Tags) -> (Queue, Receiver<String>) {
        let (lines, queued) = sync_channel(LINES_MAX);
        let queue = Queue {
            lines,
            counts,
            tags,
        };
        (queue, queued)
    }

    /// Never waits.
    fn put(&self, line: String) {
        // Before the line is there, so that whoever flushes waits for it. Relaxed, here and below: who
        // flushes after its own lines sees its own counts.
        self.counts.queued.fetch_add(1, Ordering::Relaxed);
        if self.lines.try_send(line).is_err() {
            self.counts.queued.fetch_sub(1, Ordering::Relaxed);
            self.counts.left_out.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Writes lines for as long as there is a queue. Those that were left out came after all that are in the
/// queue, so that is said when the queue is empty.
fn write_all(queued: &Receiver<String>, counts: &Counts, tags: Tags, out: &mut dyn Write) {
    // Ends with the queue.
    loop {
        let line = match queued.try_recv() {
            Ok(line) => line,
            Err(TryRecvError::Disconnected) => return,
            Err(TryRecvError::Empty) => {
                let left_out = counts.left_out.load(Ordering::Relaxed);
                if left_out > 0 {
                    let tag = tags.of(Level::Warn);
                    let line = format!(
                        "{tag}warn: {left_out} log lines were left out: nobody read stderr\n"
                    );
                    let _ = out.write_all(line.as_bytes());
                    counts.left_out.fetch_sub(left_out, Ordering::Relaxed);
                }
                match queued.recv() {
                    Ok(line) => line,
                    Err(_) => return,
                }
            }
        };
        // One write a line, so that it does not mix with what others write. There is nobody to tell
        // if it fails.
        let _ = out.write_all(line.as_bytes());
        counts.written.fetch_add(1, Ordering::Relaxed);
    }
}

impl Log for Queue {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let tag = self.tags.of(record.level());
            let level = record.level().as_str().to_ascii_lowercase();
            self.put(format!("{tag}{level}: {}\n", record.args()));
        }
    }

    /// Waits until all is written, or it is clear that nobody reads it.
    fn flush(&self) {
        let start = Instant::now();
        let is_left = || {
            let counts = self.counts;
            counts.left_out.load(Ordering::Relaxed) > 0
                || counts.written.load(Ordering::Relaxed) < counts.queued.load(Ordering::Relaxed)
        };
        while is_left() && start.elapsed() < FLUSH_MAX {
            std::thread::sleep(FLUSH_LOOK);
        }
    }
}

/// Has what was logged last written, for a moment at most, when it is dropped.
pub struct Flush;

impl Drop for Flush {
    fn drop(&mut self) {
        log::logger().flush();
    }
}

pub fn start() -> Result<Flush, String> {
    static COUNTS: Counts = Counts::new();
    // A log file that has reached the limit of its length (ulimit -f, LimitFSIZE=) would end the process.
    flag::register(SIGXFSZ, Arc::default())
        .map_err(|error| format!("SIGXFSZ cannot be caught: {error}"))?;
    let tags = journal::tags();
    let (queue, queued) = Queue::new(&COUNTS, tags);
    std::thread::Builder::new()
        .name("lapce-ipc-log".into())
        .stack_size(STACK_BYTES)
        .spawn(move || write_all(&queued, &COUNTS, tags, &mut std::io::stderr()))
        .map_err(|error| format!("there is no thread for the log: {error}"))?;
    let asked = std::env::var("LAPCE_IPC_LOG").unwrap_or_default();
    let level = match asked.as_str() {
        "error" => Some(LevelFilter::Error),
        "warn" => Some(LevelFilter::Warn),
        "info" | "" => Some(LevelFilter::Info),
        "debug" => Some(LevelFilter::Debug),
        _ => None,
    };
    log::set_max_level(level.unwrap_or(LevelFilter::Info));
    let queue: &'static Queue = Box::leak(Box::new(queue));
    log::set_logger(queue).expect("set once");
    if level.is_none() {
        log::warn!("LAPCE_IPC_LOG={asked} is none of error, warn, info and debug: info is taken");
    }
    Ok(Flush)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_logs_waits_for_no_reader_and_what_is_left_out_is_counted() {
        static COUNTS: Counts = Counts::new();
        let tags = Tags::default();
        let (queue, queued) = Queue::new(&COUNTS, tags);
        for number in 0..LINES_MAX + 7 {
            queue.put(format!("{number}\n"));
        }
        let writer = std::thread::spawn(move || {
            let mut out = Vec::new();
            write_all(&queued, &COUNTS, tags, &mut out);
            String::from_utf8(out).unwrap()
        });
        while COUNTS.left_out.load(Ordering::Relaxed) > 0 {
            queue.flush();
        }
        queue.put("after\n".into());
        drop(queue);
        let written = writer.join().unwrap();
        let lines: Vec<_> = written.lines().collect();
        assert_eq!(lines.len(), LINES_MAX + 2);
        assert_eq!((lines[0], lines[LINES_MAX - 1]), ("0", "255"));
        assert!(lines[LINES_MAX].contains("7 log lines were left out"));
        assert_eq!(lines[LINES_MAX + 1], "after");
    }
}
