//! A monotonic clock that costs a few nanoseconds to read.
//!
//! If the processor's time stamp counter runs at a constant rate and the kernel itself uses it, the counter is read
//! directly and scaled. Otherwise the clock is CLOCK_MONOTONIC. Both count from the same zero, but our scale is
//! measured once, over a few milliseconds, while the kernel corrects its own all the time. So the two drift apart, and
//! so do the clocks of two processes (by 0.1 µs a second where it was measured).
//!
//! The counter may begin anew when a machine wakes from suspend or hibernation. Once it is seen far behind where it has
//! been, it is not used any more.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::found;

/// A duration as system calls take it. Longer ones than they can take are cut.
pub(super) fn timespec(duration: Duration) -> libc::timespec {
    libc::timespec {
        tv_sec: duration.as_secs().min(i64::MAX as u64) as libc::time_t,
        tv_nsec: duration.subsec_nanos() as libc::c_long,
    }
}

/// Nanoseconds of one of the system's clocks.
fn system_ns(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: writes one timespec into ours.
    let failed = unsafe { libc::clock_gettime(clock, &mut time) };
    assert_eq!(failed, 0, "these clocks exist everywhere");
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Nanoseconds of CLOCK_MONOTONIC.
pub(crate) fn monotonic_ns() -> u64 {
    system_ns(libc::CLOCK_MONOTONIC)
}

/// Nanoseconds that this process has had of all CPUs.
pub(super) fn process_cpu_ns() -> u64 {
    system_ns(libc::CLOCK_PROCESS_CPUTIME_ID)
}

/// Nanoseconds as of the last timer tick, up to 10 ms ago. It costs a third of [`now_ns`], whose counter takes some
/// forty cycles to read. The two must not be compared.
pub(crate) fn coarse_ns() -> u64 {
    system_ns(libc::CLOCK_MONOTONIC_COARSE)
}

/// How counter ticks become nanoseconds: `base_ns + ((ticks - base_ticks) * ns_per_tick >> 32)`.
#[derive(Debug)]
struct Scale {
    base_ticks: u64,
    base_ns: u64,
    /// Nanoseconds per tick, 32.32 fixed point; 0: the counter is not to be used.
    ns_per_tick: AtomicU64,
    /// Without the counter: how far ahead of the system's clock this one is.
    ahead_ns: AtomicU64,
}

static SCALE: OnceLock<Scale> = OnceLock::new();

/// The counter of another core may be behind the base by this much, some milliseconds.
const BEHIND_TICKS_MAX: u64 = 1 << 24;
/// How far ahead of the system's clock this one is set when it replaces the counter, which may have run ahead, but by
/// less: so that the time does not go back.
const AHEAD_NS: u64 = 1_000_000_000;

/// Nanoseconds since some fixed moment, for differences within this process. Never goes back within a
/// thread.
#[inline]
pub(crate) fn now_ns() -> u64 {
    found::once(&SCALE, calibrate).now_ns(ticks)
}

impl Scale {
    /// The time now. `ticks` reads the counter, and is called only if that is used.
    #[inline]
    fn now_ns(&self, ticks: impl FnOnce() -> u64) -> u64 {
        // Acquire: pairs with the release in `behind_base`: how far ahead this clock is.
        let ns_per_tick = self.ns_per_tick.load(Ordering::Acquire);
        if ns_per_tick == 0 {
            return monotonic_ns() + self.ahead_ns.load(Ordering::Relaxed);
        }
        let ticks = ticks().wrapping_sub(self.base_ticks);
        if ticks > i64::MAX as u64 {
            return self.behind_base(ticks.wrapping_neg());
        }
        self.base_ns + ((u128::from(ticks) * u128::from(ns_per_tick)) >> 32) as u64
    }

    /// The time when the counter is this many ticks behind its base.
    #[cold]
    fn behind_base(&self, ticks: u64) -> u64 {
        if ticks < BEHIND_TICKS_MAX {
            return self.base_ns;
        }
        self.ahead_ns.store(AHEAD_NS, Ordering::Relaxed);
        // Release: pairs with the acquire in `now_ns`.
        self.ns_per_tick.store(0, Ordering::Release);
        monotonic_ns() + AHEAD_NS
    }
}

#[cfg(target_arch = "x86_64")]
#[inline]
fn ticks() -> u64 {
    // SAFETY: reads a counter; every x86-64 processor has it.
    unsafe { core::arch::x86_64::_rdtsc() }
}

#[cfg(not(target_arch = "x86_64"))]
fn ticks() -> u64 {
    0
}

/// The kernel uses the counter as its own clock only if it is constant and in step on all cores.
fn counter_is_trusted() -> bool {
    cfg!(target_arch = "x86_64")
        && std::fs::read_to_string(
            "/sys/devices/system/clocksource/clocksource0/current_clocksource",
        )
        .is_ok_and(|name| matches!(name.trim(), "tsc" | "kvm-clock"))
        && cpu_has_invariant_counter()
}

#[cfg(target_arch = "x86_64")]
fn cpu_has_invariant_counter() -> bool {
    use core::arch::x86_64::__cpuid;
    __cpuid(0x8000_0000).eax >= 0x8000_0007 && __cpuid(0x8000_0007).edx & (1 << 8) != 0
}

#[cfg(not(target_arch = "x86_64"))]
fn cpu_has_invariant_counter() -> bool {
    false
}

/// The counter and the clock at the same moment: the closest of a few tries.
fn pair() -> (u64, u64) {
    let mut best = (u64::MAX, 0, 0);
    for _ in 0..16 {
        let before = ticks();
        let ns = monotonic_ns();
        let took = ticks().wrapping_sub(before);
        if took < best.0 {
            best = (took, before.wrapping_add(took / 2), ns);
        }
    }
    (best.1, best.2)
}

/// Takes about 2 ms, once in a process.
fn calibrate() -> Scale {
    let scale = |base_ticks, base_ns, ns_per_tick| Scale {
        base_ticks,
        base_ns,
        ns_per_tick: AtomicU64::new(ns_per_tick),
        ahead_ns: AtomicU64::new(0),
    };
    if !counter_is_trusted() {
        return scale(0, 0, 0);
    }
    let (first_ticks, first_ns) = pair();
    std::thread::sleep(Duration::from_millis(2));
    let (last_ticks, last_ns) = pair();
    let (ticks, ns) = (last_ticks.wrapping_sub(first_ticks), last_ns - first_ns);
    if ticks == 0 || ticks > i64::MAX as u64 || ns == 0 {
        return scale(0, 0, 0);
    }
    let ns_per_tick = (u128::from(ns) << 32) / u128::from(ticks);
    scale(last_ticks, last_ns, ns_per_tick as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_never_goes_back() {
        let mut last = now_ns();
        for _ in 0..100_000 {
            let now = now_ns();
            assert!(now >= last);
            last = now;
        }
    }

    /// As after suspend to RAM.
    #[test]
    fn a_counter_that_began_anew_is_not_used_any_more() {
        let hour = 3_600_000_000_000_u64;
        let start_ns = monotonic_ns();
        // A tick is a nanosecond, and some of them are ahead of the system's.
        let scale = Scale {
            base_ticks: hour,
            base_ns: start_ns,
            ns_per_tick: AtomicU64::new(1 << 32),
            ahead_ns: AtomicU64::new(0),
        };
        assert_eq!(scale.now_ns(|| hour + 7), start_ns + 7);
        // Another core's.
        assert_eq!(scale.now_ns(|| hour - 1000), start_ns);
        let mut last_ns = scale.now_ns(|| hour + AHEAD_NS / 2);
        assert_eq!(last_ns, start_ns + AHEAD_NS / 2);
        // Behind the base, and later where it has been before.
        for ticks in [1000, hour / 2, hour, hour + 7] {
            let now_ns = scale.now_ns(|| ticks);
            assert!(now_ns >= last_ns, "{now_ns} after {last_ns}");
            last_ns = now_ns;
        }
        assert!(last_ns.abs_diff(monotonic_ns()) < 60 * AHEAD_NS);
    }

    #[test]
    fn it_agrees_with_the_kernels() {
        now_ns();
        let (start, kernel_start) = (now_ns(), monotonic_ns());
        std::thread::sleep(std::time::Duration::from_millis(50));
        let (end, kernel_end) = (now_ns(), monotonic_ns());
        let (ours, kernels) = (end - start, kernel_end - kernel_start);
        // Wide enough for a stalled machine between the two reads; a wrong scale is far off.
        assert!(
            ours > kernels / 2 && ours < kernels * 2,
            "{ours} ns against {kernels} ns"
        );
        assert!(end.abs_diff(kernel_end) < 1_000_000_000);
    }
}
