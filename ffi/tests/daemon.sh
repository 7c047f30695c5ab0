#!/usr/bin/env bash
# A program against the daemon, over TCP and shared memory: daemon.sh LAPCE_IPC_SERVER PROGRAM ARGUMENT
# runs PROGRAM ADDRESS ARGUMENT for each.
set -euo pipefail
daemon=$1
program=$2
argument=$3
work=$(mktemp -d)
instance=ffi_daemon_$$
pid=
finish() {
    if [ -n "$pid" ]; then
        kill "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    fi
    rm -rf "$work"
}
trap finish EXIT

# A port that was free a moment ago, since the daemon's is fixed in its file.
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
cat >"$work/config.toml" <<TOML
[server]
bind_address = "127.0.0.1:$port"
protocol_version = 2
workers = 1

[compatibility]
enable_legacy_support = false

[shm]
enabled = true
instance = "$instance"

[metrics]
bind_address = ""
TOML
"$daemon" --config "$work/config.toml" 2>"$work/log" &
pid=$!
for _ in $(seq 100); do
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null && break
    kill -0 "$pid" 2>/dev/null || { cat "$work/log" >&2; exit 1; }
    sleep 0.1
done
"$program" "127.0.0.1:$port" "$argument"
"$program" "shm:$instance" "$argument"
