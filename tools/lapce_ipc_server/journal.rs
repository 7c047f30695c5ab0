//! What the journal is told of a line beside its text: see sd-daemon(3).

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use log::Level;

/// The tags of lines for stderr.
pub fn tags() -> Tags {
    // By JOURNAL_STREAM systemd says which file the journal reads, since whoever inherits the variable may
    // have been given another stderr.
    let stream = std::env::var("JOURNAL_STREAM").unwrap_or_default();
    Tags {
        for_journal: is_stderr(&stream) == Some(true),
    }
}

fn is_stderr(stream: &str) -> Option<bool> {
    let (device, inode) = stream.split_once(':')?;
    let stderr = std::io::stderr().as_fd().try_clone_to_owned().ok()?;
    let meta = File::from(stderr).metadata().ok()?;
    Some(device.parse() == Ok(meta.dev()) && inode.parse() == Ok(meta.ino()))
}

#[derive(Clone, Copy, Default)]
pub struct Tags {
    for_journal: bool,
}

impl Tags {
    /// Stands in front of a line. The journal takes it for the priority, and leaves it out; all lines would
    /// have the same without it, and `journalctl -p err` show none.
    pub fn of(self, level: Level) -> &'static str {
        match level {
            _ if !self.for_journal => "",
            Level::Error => "<3>",
            Level::Warn => "<4>",
            Level::Info => "<6>",
            Level::Debug | Level::Trace => "<7>",
        }
    }
}
