//! Node.js: the channel between a process and its child. Both sides are Node's, so it measures
//! itself and prints what it saw.

use std::process::Command;

use super::tcp;
use super::window::WINDOW;
use crate::context::{Context, Failure};
use crate::row::latencies;

const SCRIPT: &str = include_str!("node.js");

pub fn run(context: &mut Context) -> Result<(), Failure> {
    let client = context.host.client_cpu.to_string();
    let server = context.host.server_cpu.to_string();
    let milliseconds = context.duration.as_millis().to_string();
    let window = WINDOW.to_string();
    for windowed in [false, true] {
        let count = if windowed { window.as_str() } else { "1" };
        context.measure(tcp::row("Node.js child process", windowed), |row| {
            let output = Command::new("setpriv")
                .args(["--pdeathsig", "KILL", "node", "-e", SCRIPT])
                .args([count, &milliseconds, &client, &server])
                .output()?;
            let text = String::from_utf8(output.stdout)?;
            let values: Vec<u64> = text.split_whitespace().flat_map(str::parse).collect();
            if !output.status.success() || values.is_empty() {
                return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
            }
            if windowed {
                row.push("requests", "/s", values[0] as f64);
                return Ok(());
            }
            let mut histogram = latencies();
            values.iter().try_for_each(|&ns| histogram.record(ns))?;
            row.push_latencies(histogram);
            Ok(())
        })?;
    }
    Ok(())
}
