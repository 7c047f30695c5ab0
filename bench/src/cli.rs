//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use lapce_ai::ipc::IdleMode;

/// Measures every promise of the engine, beside the floor of the machine and its peers.
///
/// Exits with 0 if every promise that was measured is kept, 1 if one is broken, 2 if it could not
/// run.
#[derive(Parser)]
#[command(version)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Writes all figures to this file
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Writes a page with plots, and .hgrm files, to this directory
    #[arg(long, value_name = "DIR")]
    pub report: Option<PathBuf>,
    /// Runs only this scenario; may be given again
    #[arg(long, value_name = "NAME")]
    pub scenario: Vec<String>,
    /// How long each timed run lasts
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub duration: Option<f64>,
    /// Fewer cases and short runs: shows that all works, not how fast
    #[arg(long)]
    pub quick: bool,
    /// Lists the scenarios
    #[arg(long)]
    pub list: bool,
}

#[derive(Subcommand)]
pub enum Command {
    /// The other process of a run
    #[command(hide = true)]
    Serve(Serve),
}

#[derive(Args)]
pub struct Serve {
    #[arg(long)]
    pub kind: String,
    #[arg(long)]
    pub cpu: usize,
    #[arg(long, default_value = "spin")]
    pub idle: IdleMode,
    #[arg(long, default_value = "")]
    pub name: String,
    #[arg(long, default_value = "127.0.0.1:0")]
    pub bind: String,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if seconds > 0.0 && seconds <= 600.0 => Ok(seconds),
        _ => Err("must be more than 0 and at most 600".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        super::Cli::command().debug_assert();
    }

    #[test]
    fn durations_have_bounds() {
        assert_eq!(super::seconds("0.5"), Ok(0.5));
        for wrong in ["0", "-1", "601", "nan", "x"] {
            assert!(super::seconds(wrong).is_err(), "{wrong}");
        }
    }
}
