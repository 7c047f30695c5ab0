//! The other process: this binary again, as a server.

use std::io::{self, BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// A server process. It ends when this is dropped.
pub struct Served {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    address: String,
}

impl Served {
    /// Starts `serve` with these arguments and waits until it serves.
    pub fn start(arguments: &[&str]) -> io::Result<Served> {
        let mut served = Served::spawn(arguments)?;
        served.wait_ready()?;
        Ok(served)
    }

    /// Starts `serve` without waiting.
    pub fn spawn(arguments: &[&str]) -> io::Result<Served> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("serve")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(io::ErrorKind::BrokenPipe.into());
        };
        Ok(Served {
            child,
            stdin,
            stdout: BufReader::new(stdout),
            address: String::new(),
        })
    }

    pub fn wait_ready(&mut self) -> io::Result<()> {
        let line = self.line()?;
        match line.strip_prefix("ready") {
            Some(address) => self.address = address.trim().to_owned(),
            None => return Err(io::Error::other(format!("the server said: {line}"))),
        }
        Ok(())
    }

    /// Where it serves.
    pub fn address(&self) -> &str {
        &self.address
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn tell(&mut self, command: &str) -> io::Result<()> {
        self.stdin.write_all(format!("{command}\n").as_bytes())
    }

    pub fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.stdout.read_line(&mut line)? == 0 {
            return Err(io::Error::other("the server process ended"));
        }
        Ok(line.trim_end().to_owned())
    }

    /// Ends it without warning, as a crash would.
    pub fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        // It may have ended by itself; then there is nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.end();
    }
}
