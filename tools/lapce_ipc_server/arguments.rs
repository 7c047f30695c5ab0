//! The command line.

use std::path::PathBuf;

pub const USAGE: &str = "usage: lapce_ipc_server [--config FILE] [--check-config]";

pub const HELP: &str = "\
Serves framed messages over TCP and shared memory.

usage: lapce_ipc_server [--config FILE] [--check-config]

  --config FILE    read FILE; without it /etc/lapce-ipc.toml where that exists, else the defaults
  --check-config   print the configuration in force and exit: 0, or 2 with what is wrong in it
  --version        print the version and exit
  --help           print this and exit

SIGTERM, SIGINT: answer what is in flight, then exit; a second one ends it at once. SIGHUP: read the
configuration again.";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Serve,
    CheckConfig,
    Help,
    Version,
}

pub struct Arguments {
    pub file: Option<PathBuf>,
    pub action: Action,
}

pub fn read() -> Result<Arguments, lexopt::Error> {
    use lexopt::prelude::*;
    let mut arguments = Arguments {
        file: None,
        action: Action::Serve,
    };
    let mut parser = lexopt::Parser::from_env();
    // Bounded by the command line.
    while let Some(argument) = parser.next()? {
        match argument {
            Long("config") | Short('c') => arguments.file = Some(parser.value()?.into()),
            Long("check-config") => arguments.action = Action::CheckConfig,
            Long("help") | Short('h') => arguments.action = Action::Help,
            Long("version") | Short('V') => arguments.action = Action::Version,
            other => return Err(other.unexpected()),
        }
    }
    Ok(arguments)
}
