//! Servers that are programs of their own: on the server's CPU, and gone when the bench is.

use std::io;
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(3);

/// It ends when this is dropped.
pub struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Program {
    /// Starts it with these arguments and a port, and connects to it.
    pub fn start(cpu: &str, name: &str, arguments: &[&str]) -> io::Result<(Program, TcpStream)> {
        // A port that was free a moment ago.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let child = Command::new("taskset")
            .args(["-c", cpu, "setpriv", "--pdeathsig", "KILL", name])
            .args(arguments)
            .arg(port.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let mut program = Program(child);
        let began = Instant::now();
        loop {
            match TcpStream::connect(("127.0.0.1", port)) {
                Ok(stream) => return Ok((program, stream)),
                Err(error) if began.elapsed() > PATIENCE => return Err(error),
                Err(_) => {}
            }
            if program.0.try_wait()?.is_some() {
                return Err(io::Error::other(format!("{name} does not start")));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
