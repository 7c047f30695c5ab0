//! What this library is.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char};

/// LAPCE_IPC_ABI_VERSION of the header.
const ABI_VERSION: u32 = 1;

const VERSION: &CStr =
    match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
        Ok(version) => version,
        Err(_) => panic!("a version has no zero byte"),
    };

// SAFETY: the name is this library's own; no other symbol begins with lapce_ipc_.
#[unsafe(no_mangle)]
extern "C" fn lapce_ipc_abi_version() -> u32 {
    ABI_VERSION
}

// SAFETY: as above.
#[unsafe(no_mangle)]
extern "C" fn lapce_ipc_version() -> *const c_char {
    VERSION.as_ptr()
}
