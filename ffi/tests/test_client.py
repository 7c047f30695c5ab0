"""examples/client.py against examples/server: test_client.py ADDRESS"""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "examples"))
from client import ECHO, Client, Error


def refused(code, function, *arguments, **options):
    try:
        function(*arguments, **options)
    except Error as error:
        assert error.code == code, (error.code, error)
        assert str(error)
        return
    raise AssertionError("it was not refused")


address = sys.argv[1]
with Client(address, timeout_ms=20000) as client:
    assert client.call(ECHO) == b""
    assert client.call(ECHO, b"a\0b") == b"a\0b"
    assert client.call(ECHO, bytes(range(256)) * 5000) == bytes(range(256)) * 5000
    assert client.call(0x100, b"shout") == b"SHOUT"
    assert client.ping() > 0
    client.send(0x100, b"nobody hears")
    requests = [client.submit(ECHO, b"%d" % number) for number in range(50)]
    assert [client.wait(request) for request in reversed(requests)] == [
        b"%d" % number for number in reversed(range(50))
    ]
    assert list(client.stream(0x102, b"abc")) == [b"a", b"b", b"c", b""]
    for part in client.stream(0x102, b"xyz"):
        assert part == b"x"
        break
    refused(5, client.call, 0x199)
    refused(5, lambda: list(client.stream(0x199)))
    refused(-22, client.wait, 123456)
refused(-14, client.call, ECHO)
refused(-22, Client, "nowhere")
refused(-111, Client, "127.0.0.1:1")
try:
    Client(address, no_such_option=1)
    raise AssertionError("there is no such option")
except TypeError:
    pass
