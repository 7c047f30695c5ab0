//! Gives the shared library the name under which programs look for it. The number changes with
//! LAPCE_IPC_ABI_VERSION in include/lapce_ipc.h.

fn main() {
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,liblapce_ipc.so.1");
    println!("cargo:rerun-if-changed=build.rs");
}
