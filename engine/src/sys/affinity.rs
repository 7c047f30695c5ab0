//! On which CPUs a thread runs.

use std::io;
use std::sync::OnceLock;

use super::found;

/// The CPUs that this process may use, in order.
pub fn allowed_cpus() -> Vec<usize> {
    // SAFETY: an all-zero cpu_set_t is an empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: writes at most the size given into ours.
    let failed = unsafe { libc::sched_getaffinity(0, size_of_val(&set), &mut set) };
    if failed != 0 {
        // More CPUs than the set can name: use the count alone.
        let count = std::thread::available_parallelism().map_or(1, |count| count.get());
        return (0..count).collect();
    }
    // SAFETY: every index is below CPU_SETSIZE.
    (0..libc::CPU_SETSIZE as usize)
        .filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &set) })
        .collect()
}

/// How many CPUs the machine has at work, for this process or others. Found out once.
pub(crate) fn online_cpus() -> usize {
    static ONLINE: OnceLock<usize> = OnceLock::new();
    *found::once(&ONLINE, || {
        // SAFETY: takes and touches nothing of ours.
        let online = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
        usize::try_from(online).map_or(1, |online| online.max(1))
    })
}

/// The CPU that the calling thread runs on right now.
pub(crate) fn current_cpu() -> Option<u32> {
    // SAFETY: takes and touches nothing.
    u32::try_from(unsafe { libc::sched_getcpu() }).ok()
}

/// Keeps the calling thread on one CPU.
pub fn pin_current_thread(cpu: usize) -> io::Result<()> {
    if cpu >= libc::CPU_SETSIZE as usize {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: an all-zero cpu_set_t is an empty set, and the CPU is below CPU_SETSIZE.
    let set = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        set
    };
    // SAFETY: reads our set; 0 is the calling thread.
    match unsafe { libc::sched_setaffinity(0, size_of_val(&set), &set) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_thread_is_allowed_one_cpu() {
        let cpus = allowed_cpus();
        let last = *cpus.last().expect("we run somewhere");
        let now = std::thread::spawn(move || {
            pin_current_thread(last).unwrap();
            (allowed_cpus(), current_cpu())
        });
        assert_eq!(now.join().unwrap(), (vec![last], Some(last as u32)));
        assert!(pin_current_thread(1 << 20).is_err());
        assert!((1..=libc::CPU_SETSIZE as usize).contains(&online_cpus()));
        assert!(online_cpus() >= cpus.len());
    }
}
