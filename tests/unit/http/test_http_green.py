# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""The client in programs that eventlet has monkey-patched, before or after the client was imported."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

import oio

pytestmark = pytest.mark.skipif(find_spec("eventlet") is None, reason="eventlet is not installed")

PROGRAM = """
import os, sys, time
BEFORE = sys.argv[1] == "before"
if BEFORE:
    import eventlet
    eventlet.monkey_patch()
from oio.http.client import HttpPool, ReadTimeout, ConnectionClosed
pool = HttpPool()
if not BEFORE:
    assert "eventlet" not in sys.modules
    import eventlet
    eventlet.monkey_patch()
import socket
base, secure, host, port = sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5])
ticks = []

def tick():
    while True:
        ticks.append(time.monotonic())
        eventlet.sleep(0.01)

eventlet.spawn(tick)

def slow(n):
    return pool.request("PUT", base + "/slow", body=b"%d" % n).data

begin = time.monotonic()
threads = [eventlet.spawn(slow, n) for n in range(10)]
assert [t.wait() for t in threads] == [b"%d" % n for n in range(10)]
assert time.monotonic() - begin < 2.0, "requests did not run side by side"
assert len(ticks) > 5, "the hub was blocked"
assert pool.idle_count() == 10
assert pool.request("GET", base + "/x").data == b""
assert pool.idle_count() == 10, "idle connection not reused"

try:
    pool.request("PUT", base + "/slow", timeout=0.05)
    raise SystemExit("no timeout")
except ReadTimeout:
    pass

data = os.urandom(1 << 20)
connection = pool.acquire(host, port)
assert not isinstance(connection.sock, __import__("_socket").socket), "socket is not green"
connection.put_request("PUT", "/c", {"Transfer-Encoding": "chunked"})
for i in range(4):
    connection.send_chunk(data)
connection.send_chunk(b"small")
connection.finish_chunks({"t": "1"})
response = connection.getresponse()
assert response.status == 200 and response.headers["x-trailers"] == "t=1"
assert response.read() == data * 4 + b"small"
response.release()

connection = pool.acquire(host, port)
assert connection.reused
connection.put_request("PUT", "/c", {"Content-Length": 5})
connection.queue(b"hello")
while not connection.send_nowait():
    eventlet.sleep(0)
while (response := connection.try_read_response()) is None:
    eventlet.sleep(0)
buffer = bytearray(100)
got = b""
while (count := response.readinto_nowait(buffer)) != 0:
    if count:
        got += bytes(buffer[:count])
    else:
        eventlet.sleep(0)
assert got == b"hello"
response.release()

if secure != "-":
    for n in range(3):
        assert pool.request("PUT", secure + "/c", body=data).data == data
pool.close()
print("all good")
"""


@pytest.mark.parametrize("order", ["before", "after"])
def test_green_client(serve, url, order, tls_files):
    import time

    from oio.http.server import Response

    def handler(request):
        if request.path == "/slow":
            time.sleep(0.3)
        body = request.read_all()
        return Response(200, body, [("x-trailers", ",".join(f"{k}={v}" for k, v in request.trailers.items()))])

    server = serve(handler, listen=[("127.0.0.1", 0)] * 2, tls=[None, tls_files])
    host, port = server.addresses[0]
    secure = f"https://127.0.0.1:{server.addresses[1][1]}"
    root = os.path.dirname(os.path.dirname(oio.__file__))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, order, url(server, ""), secure, host, str(port)],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.strip() == "all good", done.stderr
