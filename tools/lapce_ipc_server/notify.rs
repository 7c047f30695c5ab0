//! What systemd is told: see sd_notify(3). Without it, nothing happens.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// Sends one state, `READY=1` for example, if somebody listens. Does not wait: a service manager that does
/// not read must not stop the server.
pub fn send(state: &str) {
    let Ok(path) = std::env::var("NOTIFY_SOCKET") else {
        return;
    };
    if let Err(error) = send_to(&path, state) {
        log::warn!("the service manager was not told {state:?}: {error}");
    }
}

fn send_to(path: &str, state: &str) -> std::io::Result<()> {
    let address = match path.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(path)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.send_to_addr(state.as_bytes(), &address).map(drop)
}

/// How often the watchdog wants to hear from us: half of its patience.
pub fn watchdog_interval() -> Option<Duration> {
    let micros: u64 = std::env::var("WATCHDOG_USEC").ok()?.parse().ok()?;
    let for_us =
        std::env::var("WATCHDOG_PID").map_or(true, |pid| pid.parse() == Ok(std::process::id()));
    (micros > 0 && for_us).then(|| Duration::from_micros(micros / 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manager_that_does_not_read_is_not_waited_for() {
        let name = format!("lapce-ipc-notify-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let manager = UnixDatagram::bind_addr(&address).unwrap();
        let path = format!("@{name}");
        // Its queue holds so many at most (net.unix.max_dgram_qlen is 10 to 512).
        let full = (0..100_000).find_map(|_| send_to(&path, "WATCHDOG=1").err());
        assert_eq!(full.unwrap().kind(), std::io::ErrorKind::WouldBlock);
        let mut state = [0; 64];
        let bytes = manager.recv(&mut state).unwrap();
        assert_eq!(&state[..bytes], b"WATCHDOG=1");
        send_to(&path, "READY=1").unwrap();
    }
}
