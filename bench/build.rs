//! Compiles the C program's loop. Where there is no C compiler the bench is built without it, and
//! its scenario says so.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=src/c_loop.c");
    println!("cargo:rerun-if-changed=../ffi/include/lapce_ipc.h");
    println!("cargo:rustc-check-cfg=cfg(c_loop)");
    let built = cc::Build::new()
        .file("src/c_loop.c")
        .include("../ffi/include")
        .opt_level(2)
        .std("c11")
        .warnings(true)
        .extra_warnings(true)
        .try_compile("lapce_bench_c_loop");
    match built {
        Ok(()) => println!("cargo:rustc-cfg=c_loop"),
        Err(error) => println!("cargo:warning=built without the C client: {error}"),
    }
}
