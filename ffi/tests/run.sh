#!/usr/bin/env bash
# Compiles and runs the C library's tests: plainly, under valgrind, and with the sanitizers. What the
# machine does not have is said and left out.
#
# usage: ffi/tests/run.sh [--release]
set -euo pipefail
cd "$(dirname "$0")/../.."

profile=debug
flags=()
if [ "${1:-}" = --release ]; then
    profile=release
    flags=(--release)
fi
cargo build -q -p lapce-ipc-ffi -p lapce-ipc "${flags[@]}"
target=$(cargo metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
libs=$target/$profile
work=$(mktemp -d)
server=
instance=ffi_tests_$$
finish() {
    if [ -n "$server" ]; then
        # The end of its input stops it in order, with nothing left in /dev/shm.
        exec 9>&-
        wait "$server" || true
    fi
    rm -rf "$work"
}
trap finish EXIT

step() { printf -- '-- %s\n' "$*"; }
skip() { printf -- '-- skipped: %s\n' "$*"; }
has() { command -v "$1" >/dev/null; }

cp "$libs/liblapce_ipc.so" "$work/liblapce_ipc.so.1"
ln -s liblapce_ipc.so.1 "$work/liblapce_ipc.so"
cp "$libs/liblapce_ipc.a" "$work/"
export LD_LIBRARY_PATH=$work

step "only lapce_ipc_* is visible, and all of the header is there"
nm -D --defined-only "$work/liblapce_ipc.so" | awk '{print $3}' | sort >"$work/visible"
if grep -v '^lapce_ipc_' "$work/visible"; then
    echo "these symbols must not be visible" >&2
    exit 1
fi
# Declarations are the lines that begin with a type and name a function.
sed -nE 's/^(int|void|uint32_t|const char \*) ?\*?(lapce_ipc_[a-z_]+)\(.*/\2/p' ffi/include/lapce_ipc.h | sort >"$work/declared"
diff "$work/visible" "$work/declared"

step "the header as C99 and C++"
warn=(-Wall -Wextra -Wpedantic -Werror -Iffi/include)
compilers=(gcc:g++)
if has clang && has clang++; then compilers+=(clang:clang++); else skip "no clang"; fi
for pair in "${compilers[@]}"; do
    echo '#include <lapce_ipc.h>' >"$work/header.c"
    "${pair%:*}" -std=c99 "${warn[@]}" -c "$work/header.c" -o /dev/null
    "${pair#*:}" -std=c++11 -x c++ "${warn[@]}" -c "$work/header.c" -o /dev/null
done

build() { # directory, more flags
    local to=$1 name
    shift
    mkdir -p "$to"
    for name in abi calls errors reserve; do
        gcc -std=c99 -g -O1 "${warn[@]}" "$@" "ffi/tests/$name.c" -o "$to/$name" -L"$work" -llapce_ipc -pthread
    done
    # Handlers run on other threads: atomics, and with them C11.
    for name in servers system pool forks; do
        gcc -std=c11 -g -O1 "${warn[@]}" "$@" "ffi/tests/$name.c" -o "$to/$name" -L"$work" -llapce_ipc -pthread
    done
    g++ -std=c++17 -g -O1 "${warn[@]}" "$@" ffi/tests/wrapper.cpp -o "$to/wrapper" -L"$work" -llapce_ipc
}

step "the examples"
for name in ping server epoll pool; do
    gcc -std=c99 -D_DEFAULT_SOURCE "${warn[@]}" "ffi/examples/$name.c" -o "$work/$name" -L"$work" -llapce_ipc -pthread
done
g++ -std=c++17 "${warn[@]}" ffi/examples/pair.cpp -o "$work/pair" -L"$work" -llapce_ipc
[ "$("$work/pair")" = $'cba\n10 not today' ]

# The server's input stays open until this script ends.
mkfifo "$work/open"
"$work/server" 127.0.0.1:0 "$instance" <"$work/open" >"$work/address" &
server=$!
exec 9>"$work/open"
for _ in $(seq 100); do
    [ -s "$work/address" ] && break
    sleep 0.1
done
address=$(cat "$work/address")

"$work/ping" "$address" 1000
"$work/ping" "shm:$instance" 1000
for where in "$address" "shm:$instance"; do
    [ "$("$work/epoll" "$where" 10000)" = "10000 answers" ]
    [[ $("$work/pool" "$where" 8 1000) == "8000 answers over "?" connections" ]]
done
if "$work/ping" 127.0.0.1:1 2>/dev/null; then
    echo "a ping to nowhere must fail" >&2
    exit 1
fi

all() { # directory, command before each
    local from=$1
    shift
    local one
    for one in abi "calls $address" ${instance:+"calls shm:$instance"} "reserve $address" ${instance:+"reserve shm:$instance"} "pool $address" ${instance:+"pool shm:$instance"} errors servers system forks wrapper; do
        # Words on purpose: a test's name and its arguments.
        # shellcheck disable=SC2086
        timeout --kill-after=5 120 "$@" "$from"/$one || {
            echo "failed: $* $from/$one" >&2
            return 1
        }
    done
}

step "the tests"
build "$work/plain"
all "$work/plain"

step "the static library"
gcc -std=c99 "${warn[@]}" ffi/tests/abi.c -o "$work/static" "$work/liblapce_ipc.a" -lpthread -ldl -lm
env -u LD_LIBRARY_PATH "$work/static"

step "loaded by name, and unloaded"
gcc -std=c99 "${warn[@]}" ffi/tests/unloaded.c -o "$work/unloaded" -ldl -pthread
"$work/unloaded"

if has python3; then
    step "the Python client"
    LAPCE_IPC_LIBRARY=$work/liblapce_ipc.so.1 python3 -B ffi/tests/test_client.py "$address"
    LAPCE_IPC_LIBRARY=$work/liblapce_ipc.so.1 python3 -B ffi/tests/test_client.py "shm:$instance"
else
    skip "no python3"
fi

if has valgrind; then
    step "under valgrind"
    skip "shared memory under valgrind, which does not know pidfd_open"
    export LAPCE_IPC_TEST_SPIN=1
    instance='' all "$work/plain" valgrind -q --fair-sched=yes --error-exitcode=99 --leak-check=full --errors-for-leak-kinds=definite,possible \
        --suppressions=ffi/tests/valgrind.supp
    unset LAPCE_IPC_TEST_SPIN
else
    skip "no valgrind"
fi

if echo 'int main(void) { return 0; }' | gcc -fsanitize=address,undefined -x c - -o "$work/probe" 2>/dev/null &&
    "$work/probe"; then
    step "with the address and undefined-behaviour sanitizers"
    build "$work/sanitized" -fsanitize=address,undefined -fno-sanitize-recover=all
    all "$work/sanitized"
else
    skip "no sanitizers"
fi

daemon=$libs/lapce_ipc_server
if has python3; then
    step "against the daemon"
    ffi/tests/daemon.sh "$daemon" "$work/plain/calls" ECHO-ONLY
else
    skip "no python3"
fi
echo "the C library passes"
