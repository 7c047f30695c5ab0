//! The way to c_loop.c, which was compiled if there was a C compiler.

#![allow(unsafe_code)]

use std::time::Duration;

use lapce_ai::ipc::IdleMode;

use crate::context::Failure;

#[cfg(c_loop)]
mod c {
    use std::ffi::{c_char, c_int};

    // The library whose functions the C program calls.
    extern crate lapce_ipc as _;

    // SAFETY: as c_loop.c has it.
    unsafe extern "C" {
        pub fn lapce_bench_c_loop(
            address: *const c_char,
            idle: u32,
            now: extern "C" fn() -> u64,
            warm_up: usize,
            duration_ns: u64,
            ns: *mut u64,
            ns_max: usize,
            count: *mut usize,
        ) -> c_int;
    }

    pub extern "C" fn now() -> u64 {
        lapce_ai::ipc::monotonic_ns()
    }
}

/// LAPCE_IPC_SPIN and the others.
#[cfg(c_loop)]
fn idle_number(idle: IdleMode) -> u32 {
    match idle {
        IdleMode::Spin => 1,
        IdleMode::Park => 2,
        _ => 0,
    }
}

/// Calls from C with 64 bytes each; their times go into `ns`, which stays as long as it is. Returns
/// how many. None: there was no C compiler.
#[cfg(c_loop)]
pub fn run(
    address: &str,
    idle: IdleMode,
    warm_up: usize,
    duration: Duration,
    ns: &mut [u64],
) -> Result<Option<usize>, Failure> {
    let address = std::ffi::CString::new(address)?;
    let mut count = 0;
    // SAFETY: the address ends with 0, `ns` and `count` are writable for what is said of them, and
    // all live through the call.
    let result = unsafe {
        c::lapce_bench_c_loop(
            address.as_ptr(),
            idle_number(idle),
            c::now,
            warm_up,
            duration.as_nanos() as u64,
            ns.as_mut_ptr(),
            ns.len(),
            &mut count,
        )
    };
    match result {
        0 => Ok(Some(count)),
        code => Err(format!("the C client ended with {code}").into()),
    }
}

#[cfg(not(c_loop))]
pub fn run(
    _: &str,
    _: IdleMode,
    _: usize,
    _: Duration,
    _: &mut [u64],
) -> Result<Option<usize>, Failure> {
    Ok(None)
}
