//! A monotonic clock that costs a few nanoseconds to read.
//!
//! Where the processor's time stamp counter runs at a constant rate and the kernel itself trusts
//! it, it is read directly and scaled; otherwise the clock is CLOCK_MONOTONIC. Both count from the
//! same zero, but the scale is measured once, over a few milliseconds, and the kernel corrects its own all
//! the time: the two, and those of two processes, go apart (by 0.1 µs a second where it was measured).

use std::sync::OnceLock;

/// Nanoseconds of one of the system's clocks.
fn system_ns(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: writes one timespec into ours.
    let failed = unsafe { libc::clock_gettime(clock, &mut time) };
    assert_eq!(failed, 0, "monotonic clocks exist everywhere");
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Nanoseconds of CLOCK_MONOTONIC.
pub(crate) fn monotonic_ns() -> u64 {
    system_ns(libc::CLOCK_MONOTONIC)
}

/// Nanoseconds as of the last timer tick, up to 10 ms ago: where that will do, it costs a third of
/// [`now_ns`], whose counter takes some forty cycles to read. Not to be compared with it.
pub(crate) fn coarse_ns() -> u64 {
    system_ns(libc::CLOCK_MONOTONIC_COARSE)
}

/// How counter ticks become nanoseconds: `base_ns + ((ticks - base_ticks) * scale >> 32)`.
#[derive(Clone, Copy, Debug)]
struct Scale {
    base_ticks: u64,
    base_ns: u64,
    /// Nanoseconds per tick, 32.32 fixed point; 0: the counter is not to be used.
    ns_per_tick: u64,
}

static SCALE: OnceLock<Scale> = OnceLock::new();

/// Nanoseconds since some fixed moment, for differences within this process. Never goes back within a
/// thread.
#[inline]
pub(crate) fn now_ns() -> u64 {
    let scale = match SCALE.get() {
        Some(scale) => scale,
        None => SCALE.get_or_init(calibrate),
    };
    if scale.ns_per_tick == 0 {
        return monotonic_ns();
    }
    let ticks = ticks().wrapping_sub(scale.base_ticks);
    // A core whose counter is a little behind the base must not see the far future.
    if ticks > i64::MAX as u64 {
        return scale.base_ns;
    }
    scale.base_ns + ((u128::from(ticks) * u128::from(scale.ns_per_tick)) >> 32) as u64
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
    const UNUSED: Scale = Scale {
        base_ticks: 0,
        base_ns: 0,
        ns_per_tick: 0,
    };
    if !counter_is_trusted() {
        return UNUSED;
    }
    let (first_ticks, first_ns) = pair();
    std::thread::sleep(std::time::Duration::from_millis(2));
    let (last_ticks, last_ns) = pair();
    let (ticks, ns) = (last_ticks.wrapping_sub(first_ticks), last_ns - first_ns);
    if ticks == 0 || ticks > i64::MAX as u64 || ns == 0 {
        return UNUSED;
    }
    Scale {
        base_ticks: last_ticks,
        base_ns: last_ns,
        ns_per_tick: ((u128::from(ns) << 32) / u128::from(ticks)) as u64,
    }
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
