#!/usr/bin/env bash
# Installs the C library under a prefix, and builds programs from there alone: by hand as ffi/README.md says,
# against the archive, and with CMake. Then they talk to the daemon. What the machine does not have is said
# and left out.
set -euo pipefail
cd "$(dirname "$0")/../.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

step() { printf -- '-- %s\n' "$*"; }
skip() { printf -- '-- skipped: %s\n' "$*"; }
has() { command -v "$1" >/dev/null; }

prefix=$work/opt
step "install"
ffi/install.sh "$prefix"
cargo build -q --release --bin lapce_ipc_server
target=$(cargo metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
daemon=$target/release/lapce_ipc_server

talk() { # program, argument
    env -u LD_LIBRARY_PATH ffi/tests/daemon.sh "$daemon" "$1" "$2"
}

if has pkg-config; then
    step "the README's command, for every example in C"
    # As it stands there, with this prefix.
    command=$(sed -n 's/^    \(cc ffi\/examples\/ping\.c .*\)$/\1/p' ffi/README.md)
    [ -n "$command" ]
    command=${command//\/opt\/lapce/$prefix}
    for name in ping server epoll pool; do
        this=${command//ping/$name}
        eval "${this/-o $name/-o $work/$name}"
    done
    talk "$work/ping" 1000
    [ "$(talk "$work/epoll" 10000)" = $'10000 answers\n10000 answers' ]
    # shellcheck disable=SC2046
    c++ -std=c++17 ffi/examples/pair.cpp -o "$work/pair" $(PKG_CONFIG_PATH=$prefix/lib/pkgconfig pkg-config --cflags --libs lapce_ipc) "-Wl,-rpath,$prefix/lib"
    [ "$(env -u LD_LIBRARY_PATH "$work/pair")" = $'cba\n10 not today' ]
else
    skip "no pkg-config"
fi

step "the archive"
cc ffi/examples/ping.c -o "$work/static" -I"$prefix/include" "$prefix/lib/liblapce_ipc.a" -lpthread -ldl -lm
talk "$work/static" 1000

if has cmake; then
    step "CMake"
    mkdir "$work/cmake"
    cp ffi/examples/ping.c "$work/cmake/"
    cat >"$work/cmake/CMakeLists.txt" <<'CMAKE'
cmake_minimum_required(VERSION 3.13)
project(user C)
find_package(lapce_ipc 1.0 REQUIRED)
add_executable(dynamic ping.c)
target_link_libraries(dynamic lapce_ipc::lapce_ipc)
add_executable(archive ping.c)
target_link_libraries(archive lapce_ipc::lapce_ipc_static)
CMAKE
    cmake -S "$work/cmake" -B "$work/cmake/build" -DCMAKE_PREFIX_PATH="$prefix" >"$work/cmake.log" || { cat "$work/cmake.log" >&2; exit 1; }
    cmake --build "$work/cmake/build" >"$work/cmake.log" || { cat "$work/cmake.log" >&2; exit 1; }
    talk "$work/cmake/build/dynamic" 1000
    talk "$work/cmake/build/archive" 1000
    # A version that this one does not keep the promises of.
    sed -i 's/lapce_ipc 1.0/lapce_ipc 2.0/' "$work/cmake/CMakeLists.txt"
    if cmake -S "$work/cmake" -B "$work/cmake/other" -DCMAKE_PREFIX_PATH="$prefix" >/dev/null 2>&1; then
        echo "CMake must not take version 1 for version 2" >&2
        exit 1
    fi
else
    skip "no cmake"
fi

step "DESTDIR, for packagers"
# A relative one is meant from where the packager is.
repository=$PWD
(cd "$work" && DESTDIR=stage "$repository/ffi/install.sh" /usr >/dev/null 2>&1)
[ -f "$work/stage/usr/lib/liblapce_ipc.so" ]
grep -q '^prefix=/usr$' "$work/stage/usr/lib/pkgconfig/lapce_ipc.pc"
echo "the installed C library works"
