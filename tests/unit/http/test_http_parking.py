# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Idle connections cost no thread and little memory; busy ones share the threads fairly."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
import threading

import pytest

import oio
from oio.http.server import Response

CONNECTIONS = 5000
MEMORY_BYTES_MAX = 50 << 20
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"

# The server runs in a process of its own: the memory measured is only its own, and each process needs only
# half of the descriptors.
PROGRAM = """
import os, sys, threading
from oio.http.server import Response, Server, ServerConfig
server = Server(lambda request: Response(200, b"ok"), [("127.0.0.1", 0)], ServerConfig(linger_s=0.01))
server.start()

def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

print(server.addresses[0][1], flush=True)
for line in sys.stdin:
    print(resident(), threading.active_count(), server.connections_count, server.lot.parked_count(),
    flush=True)
"""


def _ask(process) -> list[int]:
    process.stdin.write("?\n")
    process.stdin.flush()
    return [int(word) for word in process.stdout.readline().split()]


def test_five_thousand_idle_connections(until):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = CONNECTIONS + 200
    if hard != resource.RLIM_INFINITY and hard < needed:
        pytest.skip(f"at most {hard} descriptors are allowed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))
    root = os.path.dirname(os.path.dirname(oio.__file__))
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": root},
    )
    opened = []
    try:
        port = int(process.stdout.readline())
        before = _ask(process)
        for number in range(CONNECTIONS):
            sock = socket.create_connection(("127.0.0.1", port), 10)
            opened.append(sock)
            sock.sendall(GET)
            if number % 50 == 49:
                for other in opened[-50:]:
                    assert other.recv(1000).startswith(b"HTTP/1.1 200")
        until(lambda: _ask(process)[3] == CONNECTIONS, 20)
        after = _ask(process)
        assert after[2] == CONNECTIONS
        assert after[0] - before[0] < MEMORY_BYTES_MAX
        # All still work, and are served by a few threads.
        for sock in opened[:: CONNECTIONS // 100]:
            sock.sendall(GET)
            assert sock.recv(1000).startswith(b"HTTP/1.1 200")
        assert after[1] < 60
        print(f"{(after[0] - before[0]) / CONNECTIONS:.0f} bytes per connection, {after[1]} threads")
    finally:
        for sock in opened:
            sock.close()
        process.stdin.close()
        process.wait(10)
        process.stdout.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_idle_connections_hold_no_thread(serve, raw, until):
    """With two threads only, idle and new connections do not keep others from being served."""
    server = serve(lambda request: Response(200, b"ok"), max_threads=2, linger_s=0.5)
    connections = [raw(server) for _ in range(20)]
    for _ in range(3):
        for connection in connections:
            assert connection.send(GET).read_answer()[0] == 200
    until(lambda: server.lot.parked_count() == 20)
    assert server.lot.threads_count <= 2


def test_more_busy_connections_than_threads(serve, raw):
    """Each busy connection gets its turn."""
    server = serve(lambda request: Response(200, b"ok"), max_threads=2, linger_s=0.5)
    connections = [raw(server) for _ in range(8)]
    counts = [0] * 8

    def run(number):
        for _ in range(50):
            assert connections[number].send(GET).read_answer()[0] == 200
            counts[number] += 1

    threads = [threading.Thread(target=run, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert counts == [50] * 8
    assert server.lot.threads_count <= 2


def test_blocked_handlers_do_not_block_others(serve, raw, until):
    go = threading.Event()

    def handler(request):
        if request.path == "/slow":
            go.wait(10)
        return Response(200, b"ok")

    server = serve(handler)
    slow = [raw(server).send(b"GET /slow HTTP/1.1\r\n\r\n") for _ in range(10)]
    until(lambda: server.lot.threads_count > 10)
    assert raw(server).send(GET).read_answer()[0] == 200
    go.set()
    for connection in slow:
        assert connection.read_answer()[0] == 200


def test_abandoned_connections_are_forgotten(serve, raw, until):
    server = serve(linger_s=0.01)
    connections = [raw(server) for _ in range(10)]
    for connection in connections:
        assert connection.send(GET).read_answer()[0] == 200
    until(lambda: server.connections_count == 10)
    for connection in connections:
        connection.sock.close()
    until(lambda: server.connections_count == 0)
    assert server.lot.parked_count() == 0
