//! The control plane: one ordinary thread that answers HTTP, on tokio-uring.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, timeout_at};

use lapce_ai::ipc::{ServerHandle, wait_for_port};
use tokio_uring::net::{TcpListener as UringListener, TcpStream};

use crate::metrics;

/// A request's head may be this long.
const REQUEST_BYTES_MAX: usize = 8 * 1024;
/// Header lines of a request.
const HEADERS_MAX: usize = 64;
/// How long a request may take to arrive, a connection stay without one, and an answer take to be
/// read.
const PATIENCE: Duration = Duration::from_secs(5);
/// Connections at a time. Where more come, each ends after its next answer, and the one that has waited for
/// its client the longest ends at once.
const CONNECTIONS_MAX: usize = 16;
/// How long a client may take at least, however many there are.
const TURN: Duration = Duration::from_millis(50);
/// How often it is looked whether one has ended.
const LOOK: Duration = Duration::from_millis(5);

struct State {
    server: ServerHandle,
    draining: Arc<AtomicBool>,
    connections: RefCell<Vec<Rc<Connection>>>,
    /// Somebody waits for one of them to end.
    crowded: Cell<bool>,
}

struct Connection {
    stream: TcpStream,
    /// Since when it has waited for its client.
    waits_since: Cell<Instant>,
    /// For an answer to be read, and not for a request.
    answers: Cell<bool>,
}

/// Starts the thread and returns the address that it listens on; `None` if `address` is empty.
pub fn start(
    address: &str,
    server: ServerHandle,
    draining: Arc<AtomicBool>,
) -> Result<Option<SocketAddr>, String> {
    if address.is_empty() {
        return Ok(None);
    }
    let failed = |error: io::Error| {
        let hint = match error.kind() {
            io::ErrorKind::AddrInUse => {
                "; stop the program that uses it, or choose another metrics.bind_address (\"\" turns it off)"
            }
            io::ErrorKind::AddrNotAvailable => {
                "; no interface has this address so far: choose another, or start the server once the network is up (in a unit After=network-online.target)"
            }
            _ => "",
        };
        format!("metrics: cannot listen on {address}: {error}{hint}")
    };
    let listener = wait_for_port(|| TcpListener::bind(address)).map_err(failed)?;
    let local = listener.local_addr().map_err(failed)?;
    let (started, outcome) = mpsc::sync_channel(1);
    std::thread::Builder::new()
        .name("lapce-ipc-control".into())
        .stack_size(128 * 1024)
        .spawn(move || {
            let mut builder = tokio_uring::builder();
            builder.entries(16);
            // The starter waits for exactly this.
            let runtime = match tokio_uring::Runtime::new(&builder) {
                Ok(runtime) => runtime,
                Err(error) => return drop(started.send(Err(error))),
            };
            runtime.block_on(async move {
                let _ = started.send(Ok(()));
                let state = State {
                    server,
                    draining,
                    connections: RefCell::default(),
                    crowded: Cell::new(false),
                };
                serve(listener, Rc::new(state)).await;
            });
        })
        .map_err(|error| format!("metrics: no thread: {error}"))?;
    match outcome.recv() {
        Ok(Ok(())) => Ok(Some(local)),
        Ok(Err(error)) => Err(format!(
            "metrics: the thread that serves them cannot be set up: {error}; raise the limit of open descriptors (ulimit -n, or LimitNOFILE in a unit) if that is reached, or do without: metrics.bind_address = \"\""
        )),
        Err(_) => Err("metrics: the thread that serves them has failed".into()),
    }
}

async fn serve(listener: TcpListener, state: Rc<State>) {
    let listener = UringListener::from_std(listener);
    // Unbounded by design: ends with the process.
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                while state.connections.borrow().len() >= CONNECTIONS_MAX {
                    state.crowded.set(true);
                    end_one(&state.connections.borrow());
                    tokio::time::sleep(LOOK).await;
                }
                state.crowded.set(false);
                let connection = Rc::new(Connection {
                    stream,
                    waits_since: Cell::new(Instant::now()),
                    answers: Cell::new(false),
                });
                state.connections.borrow_mut().push(connection.clone());
                let state = state.clone();
                tokio_uring::spawn(async move {
                    // A client that breaks the connection costs nobody else anything.
                    let _ = converse(&connection, &state).await;
                    // What is still under way on it ends now, so that its descriptor is closed.
                    let _ = connection.stream.shutdown(std::net::Shutdown::Both);
                    let mut connections = state.connections.borrow_mut();
                    connections.retain(|other| !Rc::ptr_eq(other, &connection));
                });
            }
            // Out of descriptors: wait for some to come back.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Ends the connection that has waited for its client the longest, if that is long: for a request rather
/// than for an answer to be read.
fn end_one(connections: &[Rc<Connection>]) {
    let had_its_turn =
        |connection: &&Rc<Connection>| connection.waits_since.get().elapsed() >= TURN;
    let oldest = connections
        .iter()
        .filter(had_its_turn)
        .min_by_key(|connection| (connection.answers.get(), connection.waits_since.get()));
    if let Some(connection) = oldest {
        // It is gone when it has noticed.
        let _ = connection.stream.shutdown(std::net::Shutdown::Both);
    }
}

/// Answers requests on one connection until it ends.
async fn converse(connection: &Connection, state: &State) -> io::Result<()> {
    let stream = &connection.stream;
    let wait = |answers| {
        let now = Instant::now();
        connection.waits_since.set(now);
        connection.answers.set(answers);
        now + PATIENCE
    };
    let mut received = Vec::with_capacity(1024);
    let mut until = wait(false);
    // Ends when the client does, or takes too long.
    loop {
        let (head_bytes, answer) = match parse(&received) {
            Parsed::Part if received.len() < REQUEST_BYTES_MAX => {
                let buffer = Vec::with_capacity(1024);
                let (result, buffer) = timeout_at(until, stream.read(buffer)).await?;
                if result? == 0 {
                    return Ok(());
                }
                received.extend_from_slice(&buffer);
                continue;
            }
            Parsed::Part | Parsed::Long => (
                received.len(),
                Answer::plain(431, "The request is too long.\n"),
            ),
            Parsed::Bad => (
                received.len(),
                Answer::plain(400, "This is no HTTP request.\n"),
            ),
            Parsed::Whole {
                head_bytes,
                method,
                path,
                close,
            } => {
                let mut answer = route(&method, &path, state);
                answer.close |= close || state.crowded.get();
                (head_bytes, answer)
            }
        };
        received.drain(..head_bytes);
        let close = answer.close;
        until = wait(true);
        let (result, _) = timeout_at(until, stream.write_all(answer.encode())).await?;
        result?;
        if close {
            return stream.shutdown(std::net::Shutdown::Write);
        }
        until = wait(false);
    }
}

enum Parsed {
    /// More bytes are needed.
    Part,
    /// It has more lines than are read.
    Long,
    Bad,
    Whole {
        head_bytes: usize,
        method: String,
        path: String,
        close: bool,
    },
}

fn parse(bytes: &[u8]) -> Parsed {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let head_bytes = match request.parse(bytes) {
        Ok(httparse::Status::Complete(head_bytes)) => head_bytes,
        Ok(httparse::Status::Partial) => return Parsed::Part,
        Err(httparse::Error::TooManyHeaders) => return Parsed::Long,
        Err(_) => return Parsed::Bad,
    };
    let lines = |name: &'static str| {
        let lines = request.headers.iter();
        lines
            .filter(move |header| header.name.eq_ignore_ascii_case(name))
            .map(|header| header.value)
    };
    // A list, which may be spread over several lines.
    let connection_has = |option: &[u8]| {
        let mut options = lines("connection").flat_map(|value| value.split(|byte| *byte == b','));
        options.any(|found| found.trim_ascii().eq_ignore_ascii_case(option))
    };
    let has_body = lines("content-length").any(|length| length != b"0")
        || lines("transfer-encoding").next().is_some();
    let close = match request.version {
        Some(1) => connection_has(b"close"),
        _ => connection_has(b"close") || !connection_has(b"keep-alive"),
    };
    Parsed::Whole {
        head_bytes,
        method: request.method.unwrap_or_default().to_owned(),
        path: request.path.unwrap_or_default().to_owned(),
        // A body would be taken for the next request.
        close: close || has_body,
    }
}

struct Answer {
    status: u16,
    content_type: &'static str,
    body: String,
    without_body: bool,
    close: bool,
}

impl Answer {
    fn plain(status: u16, body: &str) -> Answer {
        Answer {
            status,
            content_type: "text/plain; charset=utf-8",
            body: body.to_owned(),
            without_body: false,
            close: status == 400 || status == 431,
        }
    }

    fn encode(self) -> Vec<u8> {
        let reason = match self.status {
            200 => "OK",
            400 => "Bad Request",
            404 => "Not Found",
            405 => "Method Not Allowed",
            431 => "Request Header Fields Too Large",
            _ => "Service Unavailable",
        };
        let mut answer = format!(
            "HTTP/1.1 {} {reason}\r\nDate: {}\r\nContent-Type: {}\r\nContent-Length: {}\r\nConnection: {}\r\n{}\r\n",
            self.status,
            httpdate::fmt_http_date(SystemTime::now()),
            self.content_type,
            self.body.len(),
            if self.close { "close" } else { "keep-alive" },
            if self.status == 405 {
                "Allow: GET, HEAD\r\n"
            } else {
                ""
            },
        );
        if !self.without_body {
            answer.push_str(&self.body);
        }
        answer.into_bytes()
    }
}

/// The path of a request's target, which a proxy's client may have written with scheme and host: a server must
/// take that form too (RFC 9112, 3.2.2).
fn path_of(target: &str) -> &str {
    let path = match target.split_once("://") {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => {
            rest.find(['/', '?']).map_or("/", |start| &rest[start..])
        }
        _ => target,
    };
    path.split('?').next().unwrap_or_default()
}

fn route(method: &str, target: &str, state: &State) -> Answer {
    let path = path_of(target);
    let draining = state.draining.load(Ordering::Acquire);
    let mut answer = match path {
        "/metrics" => Answer {
            content_type: "text/plain; version=0.0.4; charset=utf-8",
            ..Answer::plain(200, &metrics::render(&state.server.stats()))
        },
        "/health" => Answer::plain(200, "ok\n"),
        "/ready" if draining => Answer::plain(503, "stopping\n"),
        "/ready" => Answer::plain(200, "ready\n"),
        _ => Answer::plain(404, "There are /metrics, /health and /ready.\n"),
    };
    match method {
        "GET" => {}
        "HEAD" => answer.without_body = true,
        _ => answer = Answer::plain(405, "Only GET and HEAD are answered.\n"),
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_told_from_what_is_none() {
        assert!(matches!(parse(b""), Parsed::Part));
        assert!(matches!(parse(b"GET /metrics HTTP/1.1\r\n"), Parsed::Part));
        assert!(matches!(parse(b"IAPL\x02\x10\0\0\r\n\r\n"), Parsed::Bad));
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(65));
        assert!(matches!(parse(many.as_bytes()), Parsed::Long));
        let Parsed::Whole {
            method,
            path,
            close,
            ..
        } = parse(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        else {
            panic!("a whole request");
        };
        assert_eq!(
            (method.as_str(), path.as_str(), close),
            ("GET", "/metrics", true)
        );
    }

    #[test]
    fn a_target_may_name_scheme_and_host() {
        for (target, path) in [
            ("/health", "/health"),
            ("/metrics?name=a", "/metrics"),
            ("/x?http://y/health", "/x"),
            ("http://127.0.0.1:9090/health", "/health"),
            ("HTTP://localhost/metrics?a=/ready", "/metrics"),
            ("http://localhost", "/"),
            ("ftp://localhost/health", "ftp://localhost/health"),
            ("*", "*"),
        ] {
            assert_eq!(path_of(target), path, "{target}");
        }
    }

    #[test]
    fn what_may_have_a_body_is_the_last_request() {
        for lines in [
            "Content-Length: 5\r\n",
            "Content-Length: 0\r\nContent-Length: 5\r\n",
            "Transfer-Encoding: chunked\r\n",
        ] {
            let request = format!("GET / HTTP/1.1\r\n{lines}\r\n");
            let parsed = parse(request.as_bytes());
            assert!(
                matches!(parsed, Parsed::Whole { close: true, .. }),
                "{lines}"
            );
        }
    }

    #[test]
    fn connection_is_a_list() {
        let closes = |version: &str, lines: &str| {
            let request = format!("GET / HTTP/{version}\r\n{lines}\r\n");
            match parse(request.as_bytes()) {
                Parsed::Whole { close, .. } => close,
                _ => panic!("a whole request"),
            }
        };
        assert!(!closes("1.1", ""));
        assert!(closes("1.1", "Connection: close, TE\r\n"));
        assert!(closes("1.1", "Connection: TE ,Close\r\n"));
        assert!(closes("1.1", "Connection: TE\r\nConnection: close\r\n"));
        assert!(!closes("1.1", "Connection: TE\r\n"));
        assert!(closes("1.0", ""));
        assert!(!closes("1.0", "Connection: TE, keep-alive\r\n"));
    }
}
