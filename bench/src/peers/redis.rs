//! Redis: its ECHO command, over TCP.

use std::io;
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::tcp;
use crate::context::{Context, Failure};

const PATIENCE: Duration = Duration::from_secs(3);

struct Redis(Child);

impl Drop for Redis {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn run(context: &mut Context) -> Result<(), Failure> {
    let text = "r".repeat(64);
    let request = format!("*2\r\n$4\r\nECHO\r\n$64\r\n{text}\r\n");
    let answer = format!("$64\r\n{text}\r\n");
    let cpu = context.host.server_cpu.to_string();
    let duration = context.duration;
    for windowed in [false, true] {
        context.measure(tcp::row("Redis ECHO", windowed), |row| {
            let (_redis, stream) = start(&cpu)?;
            tcp::run(
                row,
                stream,
                request.as_bytes(),
                answer.as_bytes(),
                windowed,
                duration,
            )
        })?;
    }
    Ok(())
}

fn start(cpu: &str) -> io::Result<(Redis, TcpStream)> {
    // A port that was free a moment ago.
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let child = Command::new("taskset")
        .args([
            "-c",
            cpu,
            "redis-server",
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--port",
        ])
        .arg(port.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let mut redis = Redis(child);
    let began = Instant::now();
    loop {
        match TcpStream::connect(("127.0.0.1", port)) {
            Ok(stream) => return Ok((redis, stream)),
            Err(error) if began.elapsed() > PATIENCE => return Err(error),
            Err(_) => {}
        }
        if redis.0.try_wait()?.is_some() {
            return Err(io::Error::other("redis-server does not start"));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
