//! The command: measures a server, checks its promises, migrates configurations.

mod check;
mod migrate;
#[path = "../output.rs"]
mod output;
mod ping;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The server refused or could not be reached, or a limit is not kept.
const EXIT_FAILED: u8 = 1;
/// Wrong usage.
const EXIT_USAGE: u8 = 2;

#[derive(Parser)]
#[command(name = "lapce-ipc", version, about = "Talks to lapce_ipc_server")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Send ECHO requests, check every answer and report round trips
    Ping(ping::PingArguments),
    /// Write an old configuration as this version reads it; the old file stays as it is
    MigrateConfig {
        /// The old file
        old: PathBuf,
        /// Where to write; standard output if left out
        #[arg(long)]
        output: Option<PathBuf>,
    },
    /// Compare a server's metrics with the limits of the upgrade guide
    Check {
        /// Where its metrics are
        #[arg(long, default_value = "http://127.0.0.1:9090/metrics")]
        metrics: String,
    },
}

/// What a command ends with if not with success.
enum Failure {
    Failed(String),
    Usage(String),
}

/// Prints on standard output. Where that cannot be, the command was called in a way that cannot work.
fn print(text: &str) -> Result<(), Failure> {
    output::print(text).map_err(Failure::Usage)
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Ping(arguments) => ping::run(&arguments),
        Command::MigrateConfig { old, output } => migrate::run(&old, output.as_deref()),
        Command::Check { metrics } => check::run(&metrics),
    };
    let (code, text) = match outcome {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::Failed(text)) => (EXIT_FAILED, text),
        Err(Failure::Usage(text)) => (EXIT_USAGE, text),
    };
    output::complain(&format!("Error: {text}"));
    ExitCode::from(code)
}
