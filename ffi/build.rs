//! Gives the shared library the name under which programs look for it, and keeps it loaded. The number in the name
//! changes with LAPCE_IPC_ABI_VERSION in include/lapce_ipc.h.

fn main() {
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,liblapce_ipc.so.1");
    // dlclose must not unload it: the handler of SIGBUS is in it, and so may be threads that are about to end.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
    println!("cargo:rerun-if-changed=build.rs");
}
