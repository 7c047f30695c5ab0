//! The scenarios, one file each.

mod allocations;
mod bulk;
mod c_client;
mod connections;
mod crc;
mod idle;
mod latency;
mod layouts;
mod memory;
mod open_loop;
mod peers;
mod reconnect;
mod senders;
mod throughput;

use crate::context::{Context, Failure};

pub use bulk::serve as serve_bulk;
pub use layouts::serve as serve_layouts;

pub struct Scenario {
    pub name: &'static str,
    pub about: &'static str,
    pub run: fn(&mut Context) -> Result<(), Failure>,
}

/// In the order in which they run.
pub const ALL: &[Scenario] = &[
    Scenario {
        name: "latency",
        about: "one request in flight, 24 B to 1 MiB",
        run: latency::run,
    },
    Scenario {
        name: "ring-layouts",
        about: "where the word that tells of a message lies: in the record, or on a line of its own",
        run: layouts::run,
    },
    Scenario {
        name: "open-loop",
        about: "a fixed rate, latency from when each request was due",
        run: open_loop::run,
    },
    Scenario {
        name: "throughput",
        about: "windows of 1 to 1,024 requests in flight",
        run: throughput::run,
    },
    Scenario {
        name: "bulk",
        about: "1 MiB over shared memory, beside two memcpys each way",
        run: bulk::run,
    },
    Scenario {
        name: "c-client",
        about: "calls through the C library, beside Rust's",
        run: c_client::run,
    },
    Scenario {
        name: "connections",
        about: "memory of each connection, and one's latency among many",
        run: connections::run,
    },
    Scenario {
        name: "memory",
        about: "the server's resident memory: idle, loaded, under 500 senders",
        run: memory::run,
    },
    Scenario {
        name: "allocations",
        about: "heap allocations of a message in the steady state, both sides",
        run: allocations::run,
    },
    Scenario {
        name: "idle",
        about: "CPU time of a server with 100 silent connections",
        run: idle::run,
    },
    Scenario {
        name: "crc",
        about: "checksums beside the crates crc32c and crc-fast",
        run: crc::run,
    },
    Scenario {
        name: "reconnect",
        about: "from the end of a server, and its restart, to the first answer",
        run: reconnect::run,
    },
    Scenario {
        name: "peers",
        about: "what a user would pick instead (needs --features peers)",
        run: peers::run,
    },
];

/// Those with these names, or all.
pub fn choose(names: &[String]) -> Result<Vec<&'static Scenario>, Failure> {
    for name in names {
        if !ALL.iter().any(|scenario| scenario.name == name) {
            return Err(format!("no scenario is called {name}; see --list").into());
        }
    }
    let wanted =
        |scenario: &&Scenario| names.is_empty() || names.iter().any(|name| name == scenario.name);
    Ok(ALL.iter().filter(wanted).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scenarios_are_chosen_by_name() {
        assert_eq!(choose(&[]).unwrap().len(), ALL.len());
        let chosen = choose(&["crc".to_owned()]).unwrap();
        assert_eq!(chosen[0].name, "crc");
        assert!(choose(&["nothing".to_owned()]).is_err());
    }
}
