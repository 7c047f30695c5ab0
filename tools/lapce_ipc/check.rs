//! `lapce-ipc check`: a server's metrics against the limits of the upgrade guide.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use crate::{Failure, print};

/// To connect, and for the whole of the answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// An answer may be this long.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;

/// Every server says what it is.
const BUILD_INFO: &str = "lapce_ipc_build_info{";

const ERROR_RATIO_MAX: f64 = 0.001;
const P99_SECONDS_MAX: f64 = 10e-6;
const RESIDENT_BYTES_MAX: f64 = 3e6;
const POOL_REUSE_MIN: f64 = 0.95;

pub fn run(url: &str) -> Result<(), Failure> {
    let text = fetch(url)?;
    if !text.lines().any(|line| line.starts_with(BUILD_INFO)) {
        return Err(Failure::Failed(format!(
            "{url} has no metrics of lapce_ipc_server: {BUILD_INFO} is missing"
        )));
    }
    let mut broken = 0;
    for verdict in verdicts(&text) {
        print(&format!("{}\n", verdict.line))?;
        broken += usize::from(!verdict.kept);
    }
    match broken {
        0 => Ok(()),
        1 => Err(Failure::Failed("1 limit is not kept".into())),
        _ => Err(Failure::Failed(format!("{broken} limits are not kept"))),
    }
}

struct Verdict {
    kept: bool,
    line: String,
}

fn verdicts(text: &str) -> Vec<Verdict> {
    let value = |name: &str| sample(text, name);
    let mut verdicts = Vec::new();
    let mut judge = |what: &str,
                     value: Option<f64>,
                     kept: &dyn Fn(f64) -> bool,
                     shown: &dyn Fn(f64) -> String,
                     limit: &str| {
        let (kept, word, shown) = match value {
            None => (false, "MISSING", "not among the metrics".to_owned()),
            Some(value) if value.is_nan() => (true, "no data", "none yet".to_owned()),
            Some(value) if kept(value) => (true, "ok", shown(value)),
            Some(value) => (false, "BROKEN", shown(value)),
        };
        verdicts.push(Verdict {
            kept,
            line: format!("{word:>7}  {what}: {shown} (limit: {limit})"),
        });
    };
    judge(
        "error ratio",
        value("lapce_ipc_error_ratio"),
        &|ratio| ratio < ERROR_RATIO_MAX,
        &|ratio| format!("{:.4} %", ratio * 100.0),
        "below 0.1 %",
    );
    for transport in ["shm", "tcp"] {
        judge(
            &format!("p99 latency, {transport}"),
            value(&format!(
                "lapce_ipc_request_duration_seconds{{transport=\"{transport}\",quantile=\"0.99\"}}"
            )),
            &|seconds| seconds < P99_SECONDS_MAX,
            &|seconds| format!("{:.3} µs", seconds * 1e6),
            "below 10 µs",
        );
    }
    judge(
        "resident memory",
        value("process_resident_memory_bytes"),
        &|bytes| bytes < RESIDENT_BYTES_MAX,
        &|bytes| format!("{:.2} MB", bytes / 1e6),
        "below 3 MB",
    );
    judge(
        "pool reuse",
        value("lapce_ipc_pool_reuse_ratio"),
        &|ratio| ratio > POOL_REUSE_MIN,
        &|ratio| format!("{:.2} %", ratio * 100.0),
        "above 95 %",
    );
    verdicts
}

/// The value of a sample, named with its labels as they are written.
fn sample(text: &str, name: &str) -> Option<f64> {
    text.lines().find_map(|line| {
        line.strip_prefix(name)?
            .strip_prefix(' ')?
            .trim()
            .parse()
            .ok()
    })
}

fn fetch(url: &str) -> Result<String, Failure> {
    let usage = || Failure::Usage(format!("`{url}` is not http://HOST:PORT/PATH"));
    let rest = url.strip_prefix("http://").ok_or_else(usage)?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, "metrics"));
    let address = match host.rsplit_once(':') {
        // The colon of [::1] is none of a port.
        Some((name, port)) if !port.ends_with(']') => {
            if name.is_empty() || port.parse::<u16>().is_err() {
                return Err(usage());
            }
            host.to_owned()
        }
        _ if host.is_empty() => return Err(usage()),
        _ => format!("{host}:80"),
    };
    let failed = |error: std::io::Error| {
        let waited = matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
        Failure::Failed(match waited {
            true => format!("{url}: no answer within {} s", PATIENCE.as_secs()),
            false => format!("{url} cannot be reached: {error}"),
        })
    };
    let to = address
        .to_socket_addrs()
        .map_err(failed)?
        .next()
        .ok_or_else(usage)?;
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE).map_err(failed)?;
    let request = format!("GET /{path} HTTP/1.0\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).map_err(failed)?;
    let answer = read_all(&mut stream).map_err(failed)?;
    let no_http = || Failure::Failed(format!("{url} did not answer in HTTP"));
    let answer = std::str::from_utf8(&answer).map_err(|_| no_http())?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(no_http)?;
    let status = head.lines().next().unwrap_or_default();
    let mut words = status.split(' ');
    if !words.next().is_some_and(|word| word.starts_with("HTTP/")) {
        return Err(no_http());
    }
    match words.next() {
        Some("200") => Ok(body.to_owned()),
        _ => Err(Failure::Failed(format!("{url} answered `{status}`"))),
    }
}

/// All that comes until the other side ends, within the time for all of it.
fn read_all(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let until = Instant::now() + PATIENCE;
    let (mut answer, mut part) = (Vec::new(), vec![0; 16 * 1024]);
    while answer.len() < ANSWER_BYTES_MAX {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut part)? {
            0 => break,
            bytes => answer.extend_from_slice(&part[..bytes]),
        }
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_compared() {
        let good = "lapce_ipc_error_ratio 0.0005\nlapce_ipc_request_duration_seconds{transport=\"shm\",quantile=\"0.99\"} NaN\nlapce_ipc_request_duration_seconds{transport=\"tcp\",quantile=\"0.99\"} 0.000005\nprocess_resident_memory_bytes 2500000\nlapce_ipc_pool_reuse_ratio NaN\n";
        let kept = |text: &str| verdicts(text).iter().filter(|verdict| verdict.kept).count();
        assert_eq!(kept(good), 5);
        for (from, to) in [
            ("ratio 0.0005", "ratio 0.01"),
            ("0.000005", "0.00002"),
            ("2500000", "3000000"),
            ("reuse_ratio NaN", "reuse_ratio 0.9"),
            // What is not there is not kept either.
            ("lapce_ipc_error_ratio", "another_error_ratio"),
            ("transport=\"shm\"", "transport=\"pigeon\""),
            ("process_resident", "another_resident"),
        ] {
            assert_eq!(kept(&good.replace(from, to)), 4, "{to}");
        }
        assert!(verdicts(good)[1].line.contains("no data"));
        assert_eq!(kept(""), 0);
    }
}
