//! Log lines on stderr, one an event. Time stamps are left to whoever collects them: the journal
//! and every container runtime add their own.

use std::io::Write;

use log::{LevelFilter, Log, Metadata, Record};

struct Stderr;

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let level = record.level().as_str().to_ascii_lowercase();
            // One write a line, so that lines of several threads do not mix. There is nobody to
            // tell if it fails.
            let line = format!("{level}: {}\n", record.args());
            let _ = std::io::stderr().write_all(line.as_bytes());
        }
    }

    fn flush(&self) {}
}

pub fn start() {
    let asked = std::env::var("LAPCE_IPC_LOG").unwrap_or_default();
    let level = match asked.as_str() {
        "error" => Some(LevelFilter::Error),
        "warn" => Some(LevelFilter::Warn),
        "info" | "" => Some(LevelFilter::Info),
        "debug" => Some(LevelFilter::Debug),
        _ => None,
    };
    log::set_max_level(level.unwrap_or(LevelFilter::Info));
    log::set_logger(&Stderr).expect("set once");
    if level.is_none() {
        log::warn!("LAPCE_IPC_LOG={asked} is none of error, warn, info and debug: info is taken");
    }
}
