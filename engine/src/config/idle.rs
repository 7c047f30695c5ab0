//! How a thread without work waits for some.

use std::fmt;
use std::str::FromStr;

use crate::sys::affinity;

/// How a worker or a client waits for the other side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum IdleMode {
    /// It spins, and never sleeps: the lowest latency, for a whole CPU. Only where both sides of a connection over shared
    /// memory are on one CPU they give way to each other.
    Spin,
    /// It spins while something is expected soon, judging by the gaps between past arrivals, and sleeps
    /// otherwise. On a machine with one CPU it does what [`IdleMode::Park`] does.
    #[default]
    Adaptive,
    /// It sleeps whenever there is nothing to do. A wake-up takes tens of microseconds.
    Park,
}

impl IdleMode {
    /// The name in configurations: `spin`, `adaptive` or `park`.
    pub fn name(self) -> &'static str {
        match self {
            IdleMode::Spin => "spin",
            IdleMode::Adaptive => "adaptive",
            IdleMode::Park => "park",
        }
    }

    /// What it amounts to on this machine.
    pub(crate) fn here(self) -> IdleMode {
        self.with_cpus(affinity::online_cpus())
    }

    /// What it amounts to where so many CPUs are online. Whoever spins on the only one waits for a thread that it
    /// keeps from running.
    fn with_cpus(self, online: usize) -> IdleMode {
        match self {
            IdleMode::Adaptive if online == 1 => IdleMode::Park,
            mode => mode,
        }
    }
}

impl fmt::Display for IdleMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The text is not the name of a mode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownIdleMode(pub String);

impl fmt::Display for UnknownIdleMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "`{}` is no waiting mode: use spin, adaptive or park",
            self.0
        )
    }
}

impl std::error::Error for UnknownIdleMode {}

impl FromStr for IdleMode {
    type Err = UnknownIdleMode;

    fn from_str(name: &str) -> Result<IdleMode, UnknownIdleMode> {
        [IdleMode::Spin, IdleMode::Adaptive, IdleMode::Park]
            .into_iter()
            .find(|mode| mode.name() == name)
            .ok_or_else(|| UnknownIdleMode(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adaptive_does_not_spin_on_the_only_cpu() {
        assert_eq!(IdleMode::Adaptive.with_cpus(1), IdleMode::Park);
        assert_eq!(IdleMode::Adaptive.with_cpus(2), IdleMode::Adaptive);
        // Who asks for it may have its peers on other machines.
        assert_eq!(IdleMode::Spin.with_cpus(1), IdleMode::Spin);
    }
}
