# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""``openio cluster top`` on services that answer from memory, hang, or refuse; and its terminal."""

import fcntl
import io
import os
import pty
import select
import struct
import sys
import termios
import threading
import time
from types import SimpleNamespace

import pytest
from support import held_port

from oio.cli.cluster_top import ClusterTop, as_json, head, only, table
from oio.cli.common.backlog import Backlog
from oio.cli.common.screen import CTRL_C, Screen, is_usable
from oio.cli.common.watch import ClusterWatch, ServiceView, Snapshot, requests_in
from oio.common.exceptions import OioNetworkException
from oio.http.router import Router
from oio.http.server import Response, Server

META_STATUS = b'{"elections": {"total": 3, "master": 1, "slave": 2, "pending": 0, "failed": 0}}'


def plain(text, _colour):
    return text


class Conscience:
    """Lists services; ``hang`` blocks it until the test is over."""

    def __init__(self):
        self.services = {}
        self.hang = threading.Event()
        self.hang.set()
        self.error = None

    def add(self, srv_type, addr, **tags):
        tags = {"tag.up": True, "tag.loc": "rack.a", "stat.cpu": 75, "stat.space": 10.5} | tags
        service = {"addr": addr, "id": tags.get("tag.service_id", addr), "score": 42, "tags": tags}
        self.services.setdefault(srv_type, []).append(service)

    def service_types(self, **_kwargs):
        self.hang.wait(30)
        if self.error:
            raise self.error
        return sorted(self.services)

    def all_services(self, srv_type, full=False, **_kwargs):
        return self.services[srv_type]


@pytest.fixture
def conscience():
    conscience = Conscience()
    yield conscience
    conscience.hang.set()


@pytest.fixture
def counted_service():
    """A service whose requests are counted by the test."""
    count = {"put": 0, "info": 0}
    router = Router()

    def metrics(_request):
        lines = [f'oio_rawx_requests_total{{kind="{kind}"}} {float(n)}' for kind, n in count.items()]
        return Response(200, ("\n".join(lines) + "\n").encode())

    router.add("GET", "/metrics", metrics)
    router.add("GET", "/status", lambda _request: Response(200, META_STATUS))
    server = Server(router, [("127.0.0.1", 0)])
    server.start()
    host, port = server.addresses[0][:2]
    yield f"{host}:{port}", count
    server.stop(0)


def look(watch, seconds=10.0):
    return watch.look(time.monotonic() + seconds)


def test_rates_and_elections_of_services(conscience, counted_service):
    addr, count = counted_service
    conscience.add("meta2", addr, **{"tag.service_id": "M-1", "tag.lock": True})
    watch = ClusterWatch("NS", conscience, [])
    (view,) = look(watch).services
    assert view.rate is None, "one look tells no rate"
    count["put"], count["info"] = 1000, 10**9
    (view,) = look(watch).services
    assert 0 < view.rate < 10**7, "checks of agents do not count"
    assert (view.cpu, view.disk, view.io) == (25.0, 89.5, None)
    assert view.elections == {"master": 1, "slave": 2, "pending": 0, "failed": 0}
    count["put"] = 5
    (view,) = look(watch).services
    assert view.rate is None, "the service was started anew"


def test_services_that_hang_or_refuse_cost_the_others_nothing(conscience, counted_service):
    # More of them than there are threads.
    sockets = [held_port() for _ in range(41)]
    try:
        for sock, port in sockets:
            conscience.add("rawx", f"127.0.0.1:{port}")
            if sock is not sockets[0][0]:
                sock.listen()
        conscience.add("account", counted_service[0])
        watch = ClusterWatch("NS", conscience, [])
        for _ in range(3):
            start = time.monotonic()
            snapshot = look(watch, 1.0)
            assert time.monotonic() - start < 3.0
            # The first ones asked may all be among those that hang; from then on they are asked last.
        by_type = {view.type: view for view in snapshot.services}
        assert by_type["account"].rate is not None
        problems = {view.problem for view in snapshot.services if view.type == "rawx"}
        assert "refused" in problems and sum("no answer" in view.problem for view in snapshot.services) == 40
        text = "\n".join(head(snapshot, plain) + table(snapshot, plain))
        assert "silent" in text and "no answer" in text
    finally:
        for sock, _port in sockets:
            sock.close()


def test_a_proxy_that_hangs_leaves_the_last_list(conscience, counted_service):
    conscience.add("rawx", counted_service[0])
    watch = ClusterWatch("NS", conscience, [])
    look(watch)
    conscience.hang.clear()
    snapshot = look(watch, 0.3)
    assert len(snapshot.services) == 1 and "has not answered" in snapshot.problems[0]
    conscience.error = OioNetworkException("host=h:1", "refused")
    conscience.hang.set()
    look(watch)
    snapshot = look(watch)
    assert snapshot.problems == ["Services cannot be listed: host=h:1 refused"] and len(snapshot.services) == 1
    conscience.error = None
    assert look(watch).problems == []


def test_what_speaks_no_http_is_left_alone(conscience):
    silent, port = held_port()
    silent.listen()
    try:
        conscience.add("redis", f"127.0.0.1:{port}")
        (view,) = look(ClusterWatch("NS", conscience, []), 5.0).services
        assert (view.rate, view.problem) == (None, "")
        silent.settimeout(0)
        with pytest.raises(BlockingIOError):
            silent.accept()
    finally:
        silent.close()


def test_a_queue_that_refuses_is_a_problem(conscience):
    held, port = held_port()
    with held:
        snapshot = look(ClusterWatch("NS", conscience, [f"beanstalk://127.0.0.1:{port}"]))
        assert snapshot.queues == [] and len(snapshot.problems) == 1
        url = f"redis://:secret@127.0.0.1:{port}/1"
        (problem,) = look(ClusterWatch("NS", conscience, [url]), 5.0).problems
    # Nothing of our own in the address, and the reason near the beginning: lines are cut.
    assert problem.startswith(f"Event queue: redis://127.0.0.1:{port}/1: ")


def test_requests_of_pages():
    assert requests_in("nothing 1\n") is None
    assert requests_in("oio_rdir_requests_total 7.0\n") == 7
    assert requests_in('oio_meta_requests_total{operation="content_put"} 2.0\n'
                       'oio_meta_requests_total{operation="status"} 5.0\n') == 2  # fmt: skip


def snapshot_of(*views, **kwargs):
    return Snapshot("NS", 0.0, list(views), **kwargs)


def test_pictures():
    good = ServiceView("rawx", "é\x1b[2J", "a:1", True, 9, False, "rack.a", cpu=1, disk=96, rate=2.25)
    bad = ServiceView("rdir", "r", "a:2", False, 0, True, "rack.a", problem="refused")
    queue = Backlog("redis://h/1", "oio", 3, 1, 2, 5, 200.0)
    snapshot = snapshot_of(good, bad, queues=[queue], problems=["The proxy is away"])
    text = head(snapshot, plain)
    assert text == [
        "NS  1970-01-01T00:00:00Z  2 services, 1 down",
        "Events: pending 6 (delayed 2), oldest 3 min, buried 5",
        "The proxy is away",
    ]
    lines = table(snapshot, plain)
    assert "\x1b" not in "".join(lines), "names do not drive the terminal"
    assert lines[1].split()[2:] == ["yes", "9", "2.2", "1", "96", "-", "rack.a"]
    assert "refused, locked" in lines[2]
    for columns in (1, 10, 40, 200):
        lines = table(snapshot, plain, columns) + head(snapshot, plain, columns)
        assert all(len(line) <= columns for line in lines)
    assert table(snapshot, plain, 60)[0].split()[3:] == ["SCORE", "REQ/S", "DISK%", "NOTE", "L"]
    narrow = table(snapshot, plain, 50)
    assert "REQ/S  NOTE " in narrow[0] and "refused, locked" in narrow[2] and "96" not in narrow[1]
    assert [view.type for view in only(["rdir"], snapshot).services] == ["rdir"]
    mistyped = only(["rdir", "rdri"], snapshot)
    assert mistyped.problems == ["The proxy is away", "No service of type rdri"] and len(mistyped.services) == 1
    unknown = only(["rdir"], snapshot_of(problems=["The proxy is away"]))
    assert unknown.problems == ["The proxy is away"]
    shown = as_json(snapshot)
    assert shown["events"][0]["pending"] == 6 and shown["services"][1]["problem"] == "refused"


@pytest.fixture
def terminal(monkeypatch):
    """A pseudo-terminal: the descriptor of its user, and the two streams of the program."""
    user, program = pty.openpty()
    set_size(user, 60, 10)
    monkeypatch.setenv("TERM", "xterm")
    with os.fdopen(program, "r+b", buffering=0) as raw:
        yield user, io.TextIOWrapper(raw, encoding="utf-8", newline="", write_through=True)
    os.close(user)


def set_size(user, columns, lines):
    fcntl.ioctl(user, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))


def read_until(user, text, timeout_s=10.0):
    seen = b""
    deadline = time.monotonic() + timeout_s
    while text not in seen:
        assert select.select([user], [], [], max(0, deadline - time.monotonic()))[0], seen
        seen += os.read(user, 65536)
    return seen


def test_keys_size_and_an_orderly_end(terminal):
    user, stream = terminal
    assert is_usable(stream)
    before = termios.tcgetattr(stream.fileno())
    with Screen(stream, stream) as screen:
        assert screen.size == (60, 10)
        os.write(user, b"\x1b[B\x1b[5~q\x03")
        keys = [screen.wait_key(time.monotonic() + 5) for _ in range(4)]
        assert keys == ["down", "page up", "q", CTRL_C]
        threading.Timer(0.1, set_size, (user, 70, 12)).start()
        assert screen.wait_key(time.monotonic() + 5) == "resize"
        assert screen.wait_key(time.monotonic() + 0.01) == ""
        screen.draw(["x"] * 50)
        assert read_until(user, b"\x1b[J").count(b"x\x1b[0m") == 12
    assert termios.tcgetattr(stream.fileno()) == before
    read_until(user, b"\x1b[?1049l")


def test_terminals_without_escape_sequences(terminal, monkeypatch):
    for term in ("dumb", ""):
        monkeypatch.setenv("TERM", term)
        assert not is_usable(terminal[1])
    assert not is_usable(io.StringIO())


@pytest.mark.parametrize("no_color", ["", "1"])
def test_live(terminal, conscience, counted_service, monkeypatch, no_color):
    user, stream = terminal
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setattr(sys, "stdin", stream)
    for number in range(20):
        addr = counted_service[0] if number else "127.0.0.1:1"
        conscience.add("rawx", addr, **{"tag.service_id": f"r-{number}"})
    manager = SimpleNamespace(namespace="NS", conscience=conscience, queue_urls=[])
    app = SimpleNamespace(client_manager=manager, stdout=stream, request_id=lambda prefix: prefix)
    command = ClusterTop(app, None)
    done = []
    parsed = command.get_parser("x").parse_args(["--interval", "0.5"])
    thread = threading.Thread(target=lambda: done.append(command.run(parsed)), daemon=True)
    thread.start()
    first = read_until(user, b"1-6 of 20")
    assert (b"\x1b[7m" in first) == (not no_color)
    os.write(user, b"G")
    read_until(user, b"15-20 of 20")
    set_size(user, 60, 30)
    read_until(user, b"every 0.5 s; q: quit")
    os.write(user, b"q")
    read_until(user, b"\x1b[?1049l")
    thread.join(10)
    assert done == [0]
