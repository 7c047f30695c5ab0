//! The daemon: through it programs that never linked each other talk.
//!
//! The main thread starts everything, then waits for signals. The engine's workers are the data
//! plane; [`control`] is the one thread of the control plane.

mod arguments;
mod control;
mod journal;
mod logger;
mod metrics;
mod notify;
#[path = "../output.rs"]
mod output;
mod source;
mod supervise;

use std::process::ExitCode;

use arguments::{Action, Arguments};
use lapce_ai::ipc::Config;
use log::Level;
use output::{complain, print};
use source::Source;

/// The configuration cannot be used, or the arguments are wrong, or what was asked for cannot be printed.
const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    lapce_ai::ipc::keep_process_small();
    let Arguments { file, action } = match arguments::read() {
        Ok(arguments) => arguments,
        Err(error) => return wrong(&format!("{error}\n{}", arguments::USAGE)),
    };
    let text = match action {
        Action::Help => format!("{}\n", arguments::HELP),
        Action::Version => format!("lapce_ipc_server {}\n", env!("CARGO_PKG_VERSION")),
        Action::CheckConfig | Action::Serve => {
            let mut source = Source::new(file);
            let config = match source.load() {
                Ok(config) => config,
                Err(error) => return wrong(&error),
            };
            if action == Action::Serve {
                return serve(config, source);
            }
            for notice in &config.notices {
                complain(notice);
            }
            format!("{config}\n")
        }
    };
    match print(&text) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => wrong(&error),
    }
}

fn wrong(text: &str) -> ExitCode {
    let tag = journal::tags().of(Level::Error);
    complain(&format!("{tag}lapce_ipc_server: {text}"));
    ExitCode::from(EXIT_USAGE)
}

fn serve(config: Config, source: Source) -> ExitCode {
    let _flush = match logger::start() {
        Ok(flush) => flush,
        Err(error) => {
            let tag = journal::tags().of(Level::Error);
            complain(&format!("{tag}error: {error}"));
            return ExitCode::FAILURE;
        }
    };
    for notice in &config.notices {
        log::warn!("{notice}");
    }
    match supervise::run(config, source) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("{error}");
            ExitCode::FAILURE
        }
    }
}
