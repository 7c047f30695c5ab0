//! Segments of connections that were being made when their server was killed. Once both sides have a
//! segment mapped it has no name any more, so these are all that a killed server leaves but its control segment.

use std::os::unix::fs::FileExt;

use super::layout::AT_SERVER_PID;
use crate::sys::process;
use crate::sys::segment;

const ID_DIGITS: usize = 16;

/// The name of a connection's segment.
pub(super) fn connection_name(control_name: &str, id: u64) -> String {
    format!("{}{id:0ID_DIGITS$x}", prefix(control_name))
}

fn prefix(control_name: &str) -> String {
    format!("{}conn_", control_name.trim_end_matches("control"))
}

/// Removes those of this instance's. The caller holds the lock of its control segment, so that its other
/// servers are dead; but for one whose control segment's name was removed, so each file's server is looked for.
pub(super) fn remove(control_name: &str) {
    let prefix = prefix(control_name);
    // An instance's name may begin with another's: only the id may follow.
    let is_ours = |name: &String| {
        name.strip_prefix(&prefix).is_some_and(|id| {
            id.len() == ID_DIGITS
                && id
                    .bytes()
                    .all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
        })
    };
    let removed = segment::names()
        .filter(is_ours)
        .filter(|name| is_left_over(name) && segment::unlink(name).is_ok())
        .count();
    if removed > 0 {
        log::info!(
            "{removed} segments {} were left by a server that is gone: removed",
            segment::path(&format!("{prefix}*"))
        );
    }
}

/// Whether it is a segment of this user whose server is gone.
fn is_left_over(name: &str) -> bool {
    let Ok(file) = segment::open_ours(name) else {
        return false;
    };
    let mut pid = [0; 4];
    // One that is too short had just been begun, or somebody cut it.
    let pid = match file.read_exact_at(&mut pid, AT_SERVER_PID as u64) {
        Ok(()) => u32::from_ne_bytes(pid),
        Err(_) => 0,
    };
    // Our own number was the dead server's, as that of a container's only process is.
    pid == std::process::id() || matches!(process::start_ticks(pid), Ok(None))
}
