# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Several processes on one port: restart, broadcast, graceful end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import pytest

import oio
from oio.http import workers
from oio.http.client import HttpClientError, HttpPool

PROGRAM = """
import os, sys, time
from oio.http.server import Response, Server, ServerConfig
from oio.http.workers import reserve_port, run_workers
sock, port = reserve_port()
print(port, flush=True)
state = {"value": b"0"}

def make_server(group):
    def handler(request):
        if request.path == "/pid":
            return Response(200, str(os.getpid()).encode())
        if request.path == "/pids":
            pids = [str(os.getpid()).encode(), *group.broadcast_bodies("GET", "/pid")]
            return Response(200, b" ".join(pids))
        if request.path == "/value":
            if request.method == "PUT":
                state["value"] = request.read_all()
                if request.peer != "unix":
                    replies = group.broadcast("PUT", "/value", state["value"], {"x-oio-req-id": "R"})
                    return Response(200, b"%d" % len(replies))
            return Response(200, state["value"])
        if request.path == "/exit":
            os._exit(3)
        print("slow", flush=True)
        time.sleep(0.5)
        return Response(200, b"slow")
    return Server(handler, [("127.0.0.1", port)], ServerConfig(reuse_port=True))

sys.exit(run_workers(make_server, 3, grace_s=5))
"""


@pytest.fixture
def group():
    root = os.path.dirname(os.path.dirname(oio.__file__))
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": root},
    )
    yield process, int(process.stdout.readline())
    if process.poll() is None:
        process.kill()
    process.communicate(timeout=10)


def _pids(pool: HttpPool, base: str) -> set[bytes]:
    try:
        return set(pool.request("GET", base + "/pids", timeout=2).data.split())
    except HttpClientError:
        return set()


def test_workers(group, until):
    process, port = group
    base = f"http://127.0.0.1:{port}"
    with HttpPool(max_idle_per_address=0) as pool:
        until(lambda: len(_pids(pool, base)) == 3)
        first = _pids(pool, base)
        assert str(process.pid).encode() not in first

        assert pool.request("PUT", base + "/value", body=b"42").data == b"2"
        assert {pool.request("GET", base + "/value").data for _ in range(20)} == {b"42"}

        with pytest.raises(HttpClientError):
            pool.request("GET", base + "/exit")
        seen = []
        until(lambda: seen.append(_pids(pool, base)) or (len(seen[-1]) == 3 and seen[-1] != first))
        assert len(seen[-1] & first) == 2

        connection = pool.acquire("127.0.0.1", port)
        connection.put_request("GET", "/slow")
        connection.flush()
        assert process.stdout.readline() == "slow\n"
        process.send_signal(signal.SIGTERM)
        response = connection.getresponse()
        assert (response.status, response.read()) == (200, b"slow")
        assert process.wait(10) == 0
        for pid in first:
            assert not os.path.exists(f"/proc/{int(pid)}")


def test_workers_die_with_a_killed_master(group, until):
    process, port = group
    with HttpPool(max_idle_per_address=0) as pool:
        base = f"http://127.0.0.1:{port}"
        until(lambda: len(_pids(pool, base)) == 3)
        pids = [int(pid) for pid in _pids(pool, base)]
    process.kill()
    process.wait(10)

    def gone(pid: int) -> bool:
        try:
            with open(f"/proc/{pid}/stat") as stat:
                return stat.read().rpartition(")")[2].split()[0] == "Z"
        except (FileNotFoundError, ProcessLookupError):
            return True

    until(lambda: all(gone(pid) for pid in pids))


class NoMaster:
    """Takes the place of the watching process."""

    pid = 0

    def __init__(self, *_args):
        pass

    def run(self):
        return 0


@pytest.mark.parametrize(("served", "wait_s", "code"), [([True, True, False], 60.0, 0), ([True], 0.0, 1)])
def test_ports_are_waited_for_as_long_as_killed_workers_may_need(monkeypatch, served, wait_s, code):
    monkeypatch.setattr(workers, "_is_served", lambda _host, _port: served.pop(0))
    monkeypatch.setattr(workers, "PORT_WAIT_S", wait_s)
    monkeypatch.setattr(workers, "_Master", NoMaster)
    assert workers.run_workers(lambda _group: None, 2, addresses=[("127.0.0.1", 1)]) == code
    assert not served


def test_a_port_is_served_when_somebody_listens():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        assert not workers._is_served("127.0.0.1", port)
        sock.listen()
        assert workers._is_served("127.0.0.1", port)
