#!/usr/bin/env python3
"""A client of one file, without anything to install but liblapce_ipc.so.1.

    python3 client.py ADDRESS TYPE PAYLOAD      prints the answer
    python3 client.py 127.0.0.1:8080 0xF0 hello

The library is looked for where LAPCE_IPC_LIBRARY says, else by the system. As a module:

    with Client("127.0.0.1:8080") as client:
        answer = client.call(0x100, b"payload")
        for part in client.stream(0x102, b"payload"): ...
"""

import ctypes as c
import os
import sys

ABI_VERSION = 1
ECHO = 0x00F0


class _Buffer(c.Structure):
    _fields_ = [("data", c.c_void_p), ("length", c.c_size_t), ("capacity", c.c_size_t)]

    def bytes(self):
        return c.string_at(self.data, self.length) if self.length else b""


class _Answer(c.Structure):
    _fields_ = [
        ("size", c.c_size_t),
        ("id", c.c_uint64),
        ("payload", _Buffer),
        ("status", c.c_int),
        ("msg_type", c.c_uint16),
        ("last", c.c_uint8),
        ("reserved", c.c_uint8),
    ]


class _Options(c.Structure):
    _fields_ = [
        ("size", c.c_size_t),
        ("timeout_ms", c.c_uint64),
        ("connect_timeout_ms", c.c_uint64),
        ("auth_token", c.c_char_p),
        ("auth_token_bytes", c.c_size_t),
        ("max_unread_bytes", c.c_uint64),
        ("idle", c.c_uint32),
        ("protocol_version", c.c_uint32),
        ("flags", c.c_uint32),
        ("max_inflight", c.c_uint32),
        ("max_message_bytes", c.c_uint32),
        ("reconnect_timeout_ms", c.c_uint32),
    ]


_lib = c.CDLL(os.environ.get("LAPCE_IPC_LIBRARY", "liblapce_ipc.so.1"))
_handle, _bytes = c.c_void_p, (c.c_char_p, c.c_size_t)
for _name, _arguments in {
    "connect": (c.c_char_p, c.POINTER(_Options), c.POINTER(_handle)),
    "close": (_handle,),
    "call": (_handle, c.c_uint16, *_bytes, c.POINTER(_Buffer)),
    "send": (_handle, c.c_uint16, *_bytes),
    "submit": (_handle, c.c_uint32, c.c_uint16, *_bytes, c.POINTER(c.c_uint64)),
    "wait": (_handle, c.c_uint64, c.POINTER(_Buffer)),
    "wait_part": (_handle, c.c_uint64, c.POINTER(_Answer)),
    "cancel": (_handle, c.c_uint64),
    "ping": (_handle, c.POINTER(c.c_uint64)),
}.items():
    getattr(_lib, "lapce_ipc_" + _name).argtypes = _arguments
_lib.lapce_ipc_buffer_free.argtypes = (c.POINTER(_Buffer),)
_lib.lapce_ipc_buffer_free.restype = None
_lib.lapce_ipc_last_error.restype = c.c_char_p
_lib.lapce_ipc_abi_version.restype = c.c_uint32
if _lib.lapce_ipc_abi_version() != ABI_VERSION:
    raise ImportError("liblapce_ipc.so.1 has another binary interface than this file")


class Error(Exception):
    """code: as in lapce_ipc.h."""

    def __init__(self, code, text):
        super().__init__(text)
        self.code = code


def _check(code):
    if code != 0:
        raise Error(code, _lib.lapce_ipc_last_error().decode())


class Client:
    """A connection, for one thread at a time."""

    def __init__(self, address, *, auth_token=None, **options):
        """options: the fields of lapce_ipc_client_options, timeout_ms for example."""
        self._client, self._buffer = _handle(), _Buffer()
        token = auth_token or b""
        settings = _Options(c.sizeof(_Options), auth_token=auth_token, auth_token_bytes=len(token))
        for name, value in options.items():
            if not any(name == field for field, _ in _Options._fields_):
                raise TypeError("no such option: " + name)
            setattr(settings, name, value)
        _check(_lib.lapce_ipc_connect(address.encode(), settings, self._client))

    def close(self):
        client, self._client = self._client, _handle()
        _lib.lapce_ipc_buffer_free(self._buffer)
        _check(_lib.lapce_ipc_close(client))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def call(self, msg_type, payload=b""):
        _check(_lib.lapce_ipc_call(self._client, msg_type, payload, len(payload), self._buffer))
        return self._buffer.bytes()

    def send(self, msg_type, payload=b""):
        _check(_lib.lapce_ipc_send(self._client, msg_type, payload, len(payload)))

    def submit(self, msg_type, payload=b""):
        request = c.c_uint64()
        _check(_lib.lapce_ipc_submit(self._client, 0, msg_type, payload, len(payload), request))
        return request.value

    def wait(self, request):
        _check(_lib.lapce_ipc_wait(self._client, request, self._buffer))
        return self._buffer.bytes()

    def stream(self, msg_type, payload=b""):
        """The parts of the answer as they come."""
        request, answer = self.submit(msg_type, payload), _Answer(c.sizeof(_Answer))
        try:
            while not answer.last:
                _check(_lib.lapce_ipc_wait_part(self._client, request, answer))
                if answer.status != 0:
                    raise Error(answer.status, answer.payload.bytes().decode())
                yield answer.payload.bytes()
        finally:
            _lib.lapce_ipc_buffer_free(answer.payload)
            if not answer.last:
                _lib.lapce_ipc_cancel(self._client, request)

    def ping(self):
        """Nanoseconds of one round trip."""
        took = c.c_uint64()
        _check(_lib.lapce_ipc_ping(self._client, took))
        return took.value


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    try:
        with Client(sys.argv[1]) as client:
            answer = client.call(int(sys.argv[2], 0), sys.argv[3].encode())
        sys.stdout.buffer.write(answer + b"\n")
    except Error as error:
        sys.exit(f"{error} ({error.code})")
