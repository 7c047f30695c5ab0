//! `lapce-ipc ping`: round trips of ECHO.

use std::collections::VecDeque;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueEnum};
use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use lapce_ai::ipc::{Client, Error, IdleMode, Transport, msg_type, read_token};

use crate::{Failure, print};

/// Requests that are not measured, first.
const WARM_UP: u64 = 1_000;
/// The bar is redrawn after this many answers, to stay out of the measurement's way.
const REDRAW: u64 = 8_192;

const OTHER_BYTES: Error = Error::InvalidRequest("an answer's bytes differ from its request's");

#[derive(Args)]
pub struct PingArguments {
    /// HOST:PORT, shm: or shm:INSTANCE
    #[arg(default_value = "127.0.0.1:8080")]
    address: String,
    /// Requests to measure; as many, but no more than 1,000, are sent before them to warm up
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..))]
    count: u64,
    /// Bytes of payload in each
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(0..=1_073_741_824))]
    size: u32,
    /// Requests in flight
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    window: u32,
    /// How the bytes are to travel
    #[arg(long, value_enum, default_value = "auto")]
    transport: TransportChoice,
    /// How to wait for answers
    #[arg(long, default_value = "adaptive", value_parser = idle_mode())]
    idle: IdleMode,
    /// The file that holds the auth token of a server that asks for one
    #[arg(long, value_name = "FILE")]
    auth_token_file: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum TransportChoice {
    Auto,
    Tcp,
    Shm,
}

/// Names the modes in the help and in errors, as of every other choice.
fn idle_mode() -> impl TypedValueParser<Value = IdleMode> {
    let names = [IdleMode::Spin, IdleMode::Adaptive, IdleMode::Park].map(IdleMode::name);
    PossibleValuesParser::new(names).try_map(|name| name.parse::<IdleMode>())
}

pub fn run(arguments: &PingArguments) -> Result<(), Failure> {
    let client = connect(arguments)?;
    let transport = client.transport();
    let bar = progress_bar(arguments);
    let payload = pattern(arguments.size as usize);
    let mut run = Run {
        client: &client,
        payload: &payload,
        window: arguments.window as usize,
        bar: &bar,
        latency: Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("constant bounds"),
    };
    let outcome = run
        .send(WARM_UP.min(arguments.count), false)
        .and_then(|()| {
            let start = Instant::now();
            run.send(arguments.count, true)?;
            Ok(start.elapsed())
        });
    bar.finish_and_clear();
    let took = outcome.map_err(|error| failure(&error))?;
    print(&report(arguments, transport, &run.latency, took))
}

fn connect(arguments: &PingArguments) -> Result<Client, Failure> {
    let is_shm = arguments.address.starts_with("shm:");
    if is_shm && arguments.transport == TransportChoice::Tcp {
        return Err(Failure::Usage(format!(
            "{} is shared memory: leave out --transport tcp, or name HOST:PORT",
            arguments.address
        )));
    }
    let mut builder = Client::builder();
    if let Some(file) = &arguments.auth_token_file {
        let token = read_token(file).map_err(|error| {
            Failure::Usage(format!("{} cannot be read: {error}", file.display()))
        })?;
        builder = builder.auth_token(token);
    }
    let client = builder
        .idle(arguments.idle)
        .max_inflight(arguments.window as usize)
        .max_message_bytes(arguments.size.max(10 * 1024 * 1024))
        // What is in flight bounds what can wait to be collected.
        .max_unread_bytes(usize::MAX)
        .shm_upgrade(arguments.transport != TransportChoice::Tcp)
        .reconnect(false)
        .connect(&arguments.address)
        .map_err(|error| failure(&error))?;
    if arguments.transport == TransportChoice::Shm && client.transport() != Transport::Shm {
        return Err(Failure::Failed(format!(
            "{} does not offer shared memory to this client: is it on this machine, run by the same user, with [shm] enabled?",
            arguments.address
        )));
    }
    Ok(client)
}

fn failure(error: &Error) -> Failure {
    match error {
        Error::InvalidAddress { .. } => Failure::Usage(error.to_string()),
        _ => Failure::Failed(error.to_string()),
    }
}

/// On a terminal only.
fn progress_bar(arguments: &PingArguments) -> ProgressBar {
    let bar = ProgressBar::new(arguments.count);
    if arguments.json || !std::io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    bar.set_style(
        ProgressStyle::with_template("{bar:40} {percent:>3}%  {human_pos}/{human_len}")
            .expect("a constant template"),
    );
    bar
}

/// Bytes that differ from place to place.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 31 + at / 251) as u8).collect()
}

struct Run<'a> {
    client: &'a Client,
    payload: &'a [u8],
    window: usize,
    bar: &'a ProgressBar,
    latency: Histogram<u64>,
}

impl Run<'_> {
    fn send(&mut self, count: u64, measured: bool) -> Result<(), Error> {
        if self.window == 1 {
            self.one_by_one(count, measured)
        } else {
            self.windowed(count, measured)
        }
    }

    fn one_by_one(&mut self, count: u64, measured: bool) -> Result<(), Error> {
        let mut answer = Vec::with_capacity(self.payload.len());
        for done in 1..=count {
            let start = Instant::now();
            self.client
                .call_into(msg_type::ECHO, self.payload, &mut answer)?;
            let took = start.elapsed();
            if answer != self.payload {
                return Err(OTHER_BYTES);
            }
            if measured {
                self.record(took, done);
            }
        }
        Ok(())
    }

    fn windowed(&mut self, count: u64, measured: bool) -> Result<(), Error> {
        // Inline answers come in order, so the oldest start belongs to the next answer.
        let mut started: VecDeque<(u64, Instant)> = VecDeque::with_capacity(self.window);
        let (mut sent, mut done) = (0, 0);
        let mut wrong = None;
        while done < count {
            while sent < count && started.len() < self.window {
                let now = Instant::now();
                let id = self.client.submit(msg_type::ECHO, self.payload)?;
                started.push_back((id, now));
                sent += 1;
            }
            let client = self.client;
            client.wait_with(|answer| {
                let Some(place) = started.iter().position(|(id, _)| *id == answer.id) else {
                    return;
                };
                let (_, start) = started.remove(place).expect("found above");
                done += 1;
                match answer.result {
                    Ok(payload) if payload == self.payload => {}
                    Ok(_) => wrong = Some(OTHER_BYTES),
                    Err(error) => wrong = Some(error),
                }
                if measured {
                    self.record(start.elapsed(), done);
                }
            })?;
            if let Some(error) = wrong.take() {
                return Err(error);
            }
        }
        Ok(())
    }

    fn record(&mut self, took: Duration, done: u64) {
        self.latency.saturating_record(took.as_nanos() as u64);
        if done.is_multiple_of(REDRAW) {
            self.bar.set_position(done);
        }
    }
}

fn report(
    arguments: &PingArguments,
    transport: Transport,
    latency: &Histogram<u64>,
    took: Duration,
) -> String {
    let quantile = |q: f64| latency.value_at_quantile(q);
    let per_second = arguments.count as f64 / took.as_secs_f64();
    if arguments.json {
        let object = serde_json::json!({
            "transport": transport.name(),
            "size": arguments.size,
            "count": arguments.count,
            "window": arguments.window,
            "p50_ns": quantile(0.5),
            "p90_ns": quantile(0.9),
            "p99_ns": quantile(0.99),
            "p999_ns": quantile(0.999),
            "max_ns": latency.max(),
            "per_second": per_second,
        });
        return format!("{object}\n");
    }
    let mut text = format!(
        "{} round trips of {} bytes over {transport}, {} in flight, every answer checked\n",
        arguments.count, arguments.size, arguments.window
    );
    for (name, nanos) in [
        ("p50", quantile(0.5)),
        ("p90", quantile(0.9)),
        ("p99", quantile(0.99)),
        ("p99.9", quantile(0.999)),
        ("max", latency.max()),
    ] {
        text += &format!("{name:>6}  {:>12.3} µs\n", nanos as f64 / 1000.0);
    }
    text + &format!("{per_second:>20.0} per second\n")
}
