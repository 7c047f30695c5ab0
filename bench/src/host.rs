//! What the figures were measured on, and what its other tenants did meanwhile.

use std::fs;
use std::time::Instant;

use lapce_ai::bench_internals::affinity;

/// The part of a run for which the client may wait for its CPU before the run is marked.
const WAITED_MAX: f64 = 0.01;

/// The machine, in the words of the report.
pub struct Host {
    pub cpu: String,
    pub kernel: String,
    pub cpus: Vec<usize>,
    pub client_cpu: usize,
    pub server_cpu: usize,
}

impl Host {
    pub fn look() -> Host {
        let cpus = affinity::allowed_cpus();
        let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cpu = info
            .lines()
            .find_map(|line| line.strip_prefix("model name"))
            .map_or("unknown", |rest| rest.trim_start_matches([' ', '\t', ':']));
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Host {
            cpu: cpu.to_owned(),
            kernel: kernel.trim().to_owned(),
            client_cpu: cpus.first().copied().unwrap_or(0),
            server_cpu: cpus.last().copied().unwrap_or(0),
            cpus,
        }
    }

    pub fn line(&self) -> String {
        format!(
            "{}, {} CPUs allowed, Linux {}; client on CPU {}, server on CPU {}; load {}",
            self.cpu,
            self.cpus.len(),
            self.kernel,
            self.client_cpu,
            self.server_cpu,
            load()
        )
    }
}

/// The load average of the last minute.
pub fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let first = text.split(' ').next().and_then(|word| word.parse().ok());
    first.unwrap_or(0.0)
}

/// Notices when others take the CPUs.
pub struct Watch {
    begun: Instant,
    steal_ticks: u64,
    waited_ns: u64,
}

impl Watch {
    pub fn start() -> Watch {
        Watch {
            begun: Instant::now(),
            steal_ticks: steal_ticks(),
            waited_ns: waited_ns(),
        }
    }

    /// Whether the hypervisor took a CPU since the start, or others of this machine took this thread's for more
    /// than [`WAITED_MAX`] of the time.
    pub fn disturbed(&self) -> bool {
        let waited = (waited_ns() - self.waited_ns) as f64;
        let crowded = waited > WAITED_MAX * self.begun.elapsed().as_nanos() as f64;
        crowded || steal_ticks() > self.steal_ticks
    }
}

/// Ticks that the hypervisor gave to others, of all CPUs since boot.
fn steal_ticks() -> u64 {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let first = stat.lines().next().unwrap_or_default();
    let steal = first.split_whitespace().nth(8);
    steal.and_then(|word| word.parse().ok()).unwrap_or(0)
}

/// How long this thread has waited for its CPU while others of this machine had it, in ns.
fn waited_ns() -> u64 {
    let text = fs::read_to_string("/proc/self/schedstat").unwrap_or_default();
    let second = text.split_whitespace().nth(1);
    second.and_then(|word| word.parse().ok()).unwrap_or(0)
}

/// Memory of a process by kind, in kB.
#[derive(Clone, Copy, Default)]
pub struct Memory {
    pub resident: f64,
    pub anonymous: f64,
    pub file: f64,
    pub shared: f64,
    pub peak: f64,
}

pub fn memory(pid: u32) -> Memory {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .and_then(|rest| rest.split_whitespace().next())
            .and_then(|number| number.parse().ok())
            .unwrap_or(0.0)
    };
    Memory {
        resident: field("VmRSS:"),
        anonymous: field("RssAnon:"),
        file: field("RssFile:"),
        shared: field("RssShmem:"),
        peak: field("VmHWM:"),
    }
}

/// Lets a process's peak begin anew, at what it uses now.
pub fn forget_peak(pid: u32) -> std::io::Result<()> {
    fs::write(format!("/proc/{pid}/clear_refs"), "5")
}

/// User and system time of a process, in seconds.
pub fn cpu_seconds(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name, in brackets, may hold anything: fields are counted from its end.
    let fields = stat.rsplit(')').next().unwrap_or_default();
    let ticks: f64 = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|word| word.parse::<f64>().ok())
        .sum();
    ticks / crate::sys::ticks_per_second()
}
