#!/usr/bin/env bash
# Builds the C library in release mode and puts it under a prefix, with its headers, a pkg-config file and a
# CMake package.
#
# usage: ffi/install.sh PREFIX        DESTDIR=... before it, for packagers
#
# cargo-c would do most of this, but is one more tool to install and writes no CMake package; this needs
# nothing but cargo and a shell.
set -euo pipefail
if [ $# -ne 1 ] || [ "${1#-}" != "$1" ]; then
    sed -n '2,5s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
case $1 in /*) prefix=$1 ;; *) prefix=$PWD/$1 ;; esac
case ${DESTDIR:-/} in /*) ;; *) DESTDIR=$PWD/$DESTDIR ;; esac
cd "$(dirname "$0")/.."

cargo build --release -p lapce-ipc-ffi
metadata=$(cargo metadata --format-version 1 --no-deps)
libs=$(sed 's/.*"target_directory":"\([^"]*\)".*/\1/' <<<"$metadata")/${CARGO_BUILD_TARGET:+$CARGO_BUILD_TARGET/}release
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1)
abi=$(sed -n 's/^#define LAPCE_IPC_ABI_VERSION \([0-9]*\)$/\1/p' ffi/include/lapce_ipc.h)
to=${DESTDIR:-}$prefix

install -d "$to/include" "$to/lib/pkgconfig" "$to/lib/cmake/lapce_ipc"
install -m 644 ffi/include/lapce_ipc.h ffi/include/lapce_ipc.hpp "$to/include/"
install -m 644 "$libs/liblapce_ipc.a" "$to/lib/"
install -m 755 "$libs/liblapce_ipc.so" "$to/lib/liblapce_ipc.so.$version"
ln -sf "liblapce_ipc.so.$version" "$to/lib/liblapce_ipc.so.$abi"
ln -sf "liblapce_ipc.so.$abi" "$to/lib/liblapce_ipc.so"

cat >"$to/lib/pkgconfig/lapce_ipc.pc" <<PC
prefix=$prefix
includedir=\${prefix}/include
libdir=\${prefix}/lib

Name: lapce_ipc
Description: Framed messages between programs, over TCP and shared memory
Version: $version
Cflags: -I\${includedir}
Libs: -L\${libdir} -llapce_ipc
Libs.private: -lpthread -ldl -lm
PC

cat >"$to/lib/cmake/lapce_ipc/lapce_ipcConfig.cmake" <<'CMAKE'
# find_package(lapce_ipc) gives the targets lapce_ipc::lapce_ipc and lapce_ipc::lapce_ipc_static.
get_filename_component(_lapce_ipc_prefix "${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)
if(NOT TARGET lapce_ipc::lapce_ipc)
  add_library(lapce_ipc::lapce_ipc SHARED IMPORTED)
  set_target_properties(lapce_ipc::lapce_ipc PROPERTIES
    IMPORTED_LOCATION "${_lapce_ipc_prefix}/lib/liblapce_ipc.so"
    INTERFACE_INCLUDE_DIRECTORIES "${_lapce_ipc_prefix}/include")
  add_library(lapce_ipc::lapce_ipc_static STATIC IMPORTED)
  set_target_properties(lapce_ipc::lapce_ipc_static PROPERTIES
    IMPORTED_LOCATION "${_lapce_ipc_prefix}/lib/liblapce_ipc.a"
    INTERFACE_INCLUDE_DIRECTORIES "${_lapce_ipc_prefix}/include"
    INTERFACE_LINK_LIBRARIES "pthread;dl;m")
endif()
unset(_lapce_ipc_prefix)
CMAKE

cat >"$to/lib/cmake/lapce_ipc/lapce_ipcConfigVersion.cmake" <<CMAKE
set(PACKAGE_VERSION "$version")
if(PACKAGE_VERSION VERSION_LESS PACKAGE_FIND_VERSION)
  set(PACKAGE_VERSION_COMPATIBLE FALSE)
else()
  string(REGEX MATCH "^[0-9]+" _lapce_ipc_major "\${PACKAGE_VERSION}")
  if(PACKAGE_FIND_VERSION_MAJOR STREQUAL "\${_lapce_ipc_major}" OR NOT PACKAGE_FIND_VERSION)
    set(PACKAGE_VERSION_COMPATIBLE TRUE)
  else()
    set(PACKAGE_VERSION_COMPATIBLE FALSE)
  endif()
  if(PACKAGE_FIND_VERSION STREQUAL PACKAGE_VERSION)
    set(PACKAGE_VERSION_EXACT TRUE)
  endif()
endif()
CMAKE
echo "installed lapce_ipc $version under $to"
