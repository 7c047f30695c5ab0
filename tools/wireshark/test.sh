#!/usr/bin/env bash
# The examples of docs/protocol.md, as a capture, through the dissector. Needs tshark and text2pcap.
set -euo pipefail
cd "$(dirname "$0")"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Each example as its own packet. A version 1 and a version 2 frame never share a connection, so
# each has a port pair of its own.
awk -v work="$work" '
    /^```text$/ { inside = 1; file = sprintf("%s/%02d.hex", work, ++count); next }
    /^```$/ { inside = 0; next }
    inside { print substr($0, 1, 25) > file }
' ../../docs/protocol.md
: > "$work/got"
port=20000
for file in "$work"/*.hex; do
    port=$((port + 1))
    { printf '000000 '; tr '\n' ' ' < "$file"; echo; } > "$work/one"
    text2pcap -q -T "$port,8080" "$work/one" "$work/one.pcap" 2> /dev/null
    tshark -r "$work/one.pcap" -X lua_script:lapce_ipc.lua -T fields \
        -e lapce_ipc.version -e lapce_ipc.type -e lapce_ipc.id -e lapce_ipc.crc32.good \
        -e lapce_ipc.error.code -e lapce_ipc.uncompressed -e lapce_ipc.pool.reused \
        -e _ws.malformed 2> "$work/errors" >> "$work/got"
    if grep -i 'lua' "$work/errors"; then exit 1; fi
done

# The same frame in two segments, with a bit changed: put together, and found wrong.
printf '000000 49 41 50 4c 02 10 05 00 00 00 00 00 01\n' > "$work/two"
printf '000000 00 00 00 00 00 00 00 a5 0f 06 de\n' >> "$work/two"
text2pcap -q -T 20100,8080 "$work/two" "$work/two.pcap" 2> /dev/null
tshark -r "$work/two.pcap" -X lua_script:lapce_ipc.lua -Y lapce_ipc -T fields \
    -e lapce_ipc.version -e lapce_ipc.type -e lapce_ipc.id -e lapce_ipc.crc32.good \
    -e lapce_ipc.error.code -e lapce_ipc.uncompressed -e lapce_ipc.pool.reused \
    -e _ws.malformed 2> /dev/null >> "$work/got"

diff -u expected.txt "$work/got" && echo "the dissector agrees with docs/protocol.md"
