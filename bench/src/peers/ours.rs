//! The engine amid the peers: a run of it before each of them, so that machine and pages change for it as for them.

use lapce_ai::ipc::{IdleMode, Transport};

use super::OVER_TCP;
use super::window::WINDOW;
use crate::context::{Context, Failure};
use crate::row::Row;
use crate::{engine, load};

/// Of a payload.
const BYTES: usize = 64;

/// Of both transports, one by one and with a window in flight.
pub struct Ours {
    rows: Vec<(Transport, bool, Row)>,
}

impl Ours {
    pub fn new() -> Ours {
        let row = |transport, windowed| {
            let row = super::tcp::row(&format!("{transport} spin"), windowed);
            (transport, windowed, row)
        };
        let both = |transport| [row(transport, false), row(transport, true)];
        Ours {
            rows: engine::TRANSPORTS.into_iter().flat_map(both).collect(),
        }
    }

    /// One run each of what is held against this peer.
    pub fn measure_beside(&mut self, context: &mut Context, peer: &str) -> Result<(), Failure> {
        let is_over_tcp = OVER_TCP.iter().any(|name| name.starts_with(peer));
        let wanted = if is_over_tcp {
            Transport::Tcp
        } else {
            Transport::Shm
        };
        let duration = context.duration;
        let cpu = context.host.server_cpu;
        for (transport, windowed, row) in &mut self.rows {
            if *transport != wanted {
                continue;
            }
            context.measure_once(row, |row| {
                let served = engine::start(cpu, IdleMode::Spin)?;
                let builder = engine::builder(IdleMode::Spin).max_inflight(WINDOW);
                let client = engine::connect(&served, wanted, builder)?;
                if *windowed {
                    let rate = load::windowed(&client, BYTES, WINDOW as u64, duration)?;
                    row.push("requests", "/s", rate);
                } else {
                    row.push_latencies(load::closed(&client, BYTES, duration)?);
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    pub fn row(&self, transport: Transport, case: &str) -> Option<&Row> {
        let is_it = |(own, _, row): &&(Transport, bool, Row)| *own == transport && row.case == case;
        self.rows.iter().find(is_it).map(|(_, _, row)| row)
    }

    pub fn into_rows(self) -> impl Iterator<Item = Row> {
        self.rows.into_iter().map(|(_, _, row)| row)
    }
}
