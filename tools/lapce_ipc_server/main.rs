//! The daemon: through it programs that never linked each other talk.
//!
//! The main thread starts everything, then waits for signals. The engine's workers are the data
//! plane; [`control`] is the one thread of the control plane.

mod arguments;
mod control;
mod logger;
mod metrics;
mod notify;
mod supervise;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use arguments::{Action, Arguments};
use lapce_ai::ipc::Config;

/// Read where no file is named and this one exists.
const DEFAULT_FILE: &str = "/etc/lapce-ipc.toml";

/// The configuration cannot be used, or the arguments are wrong.
const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    lapce_ai::ipc::keep_process_small();
    logger::start();
    let Arguments { file, action } = match arguments::read() {
        Ok(arguments) => arguments,
        Err(error) => {
            eprintln!("lapce_ipc_server: {error}\n{}", arguments::USAGE);
            return ExitCode::from(EXIT_USAGE);
        }
    };
    match action {
        Action::Help => {
            println!("{}", arguments::HELP);
            return ExitCode::SUCCESS;
        }
        Action::Version => {
            println!("lapce_ipc_server {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        Action::CheckConfig | Action::Serve => {}
    }
    let file = file.or_else(|| {
        Path::new(DEFAULT_FILE)
            .exists()
            .then(|| PathBuf::from(DEFAULT_FILE))
    });
    let config = match load(file.as_deref()) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("lapce_ipc_server: {error}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    if action == Action::CheckConfig {
        for notice in &config.notices {
            eprintln!("{notice}");
        }
        println!("{config}");
        return ExitCode::SUCCESS;
    }
    for notice in &config.notices {
        log::warn!("{notice}");
    }
    match supervise::run(config, file.as_deref()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// The configuration in force: the file's, or the defaults.
fn load(file: Option<&Path>) -> Result<Config, String> {
    match file {
        Some(file) => Config::load(file).map_err(|error| error.to_string()),
        None => Ok(Config::default()),
    }
}
