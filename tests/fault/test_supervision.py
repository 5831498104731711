# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Local clusters as their users drive them: start, stop, restart, crashes, ports, and what stays behind."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import psutil
import pytest
from faults import read
from processes import CHUNK, UPLOAD_HEADERS, files_below
from support import ACCOUNT, ROOT, eventually

from oio import ObjectStorageApi
from oio.sandbox import Sandbox, SandboxError, event_conf

SMALL = {"rawx": 3, "proxy_workers": 1, "durability": "relaxed"}


@pytest.fixture
def make(tmp_path):
    """Makes small clusters; all are destroyed at the end."""
    made = []

    def build(name="A", **fields):
        namespace = f"SUP{os.getpid()}{name}"
        made.append(Sandbox(str(tmp_path / name), namespace=namespace, **{"base_port": 20000, **SMALL, **fields}))
        return made[-1]

    yield build
    for sandbox in made:
        sandbox.destroy()


def working(sandbox):
    """Store and read an object."""
    api = ObjectStorageApi(sandbox.namespace, endpoint=sandbox.proxy)
    name = f"c{time.time_ns()}"
    api.object_create(ACCOUNT, name, obj_name="o", data=b"some bytes", policy="THREECOPIES")
    return read(api, name, "o") == b"some bytes"


def listens(service):
    with contextlib.suppress(OSError), socket.create_connection((service.host, service.port), 2):
        return True
    return False


def trace_of(sandbox):
    """What is left of a cluster that runs no more: processes, ports, sockets."""
    mark = f"OIO_SANDBOX={sandbox.layout.mark}"
    left = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if mark in [f"{key}={value}" for key, value in process.environ().items() if key == "OIO_SANDBOX"]:
                left.append(process)
    left += [service for service in sandbox.services() if service.port and listens(service)]
    left += [path for path in [sandbox.layout.supervisor_socket] if os.path.exists(path)]
    return left


def has_ended(process):
    """Did a process end, whether somebody took note of it or not?"""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def command(sandbox_home, *words):
    """Run the command line tool; gives exit code, output, errors."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "bin/oio-sandbox"), "--home", str(sandbox_home), *words],
        capture_output=True, text=True, timeout=120, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def test_the_life_of_a_cluster(make):
    """Start, crash, stop and start parts, stop, start again: data and ports stay, processes do not."""
    sandbox = make()
    sandbox.start()
    assert working(sandbox)
    addresses = {service.name: service.addr for service in sandbox.services()}

    # Status, for people and programs.
    code, output, _errors = command(sandbox.home, "status", "--json")
    entries = {entry["name"]: entry for entry in json.loads(output)}
    assert code == 0
    assert set(entries) == {service.name for service in sandbox.services()}
    assert {entry["state"] for entry in entries.values()} == {"RUNNING"}
    assert {name: entry["pid"] for name, entry in entries.items()} == sandbox.pids()
    assert all(psutil.pid_exists(entry["pid"]) for entry in entries.values())
    assert all(entries[service.name]["score"] > 0 for service in sandbox.services("rawx", "meta2"))

    # Every service that crashes comes back.
    for service in sandbox.services():
        if service.type in ("rawx", "meta0", "conscience-agent", "event-agent", "account", "proxy"):
            pid = sandbox.pids()[service.name]
            sandbox.kill(service.name)
            assert sandbox.wait_restarted(service.name, pid) != pid
    sandbox.wait_ready()
    assert working(sandbox)

    # A group, one service.
    before = sandbox.pids()
    sandbox.stop("@rawx")
    assert not [service.name for service in sandbox.services("rawx") if listens(service)]
    assert set(sandbox.pids()) == {name for name in before if "-rawx-" not in name}
    assert command(sandbox.home, "status")[0] == 1
    sandbox.start("@rawx")
    assert working(sandbox)
    one = sandbox.services("rawx")[1].name
    sandbox.restart(one)
    after = sandbox.pids()
    assert after[one] != before[one]
    assert {name: pid for name, pid in after.items() if "-rawx-" not in name} == {
        name: pid for name, pid in before.items() if "-rawx-" not in name
    }
    assert working(sandbox)
    # What has just died is not started again behind a stop.
    sandbox.kill(one)
    sandbox.stop(one)
    assert sandbox.status(one)[0]["state"] == "STOPPED"
    sandbox.start(one)
    with pytest.raises(SandboxError, match="no service of this cluster"):
        sandbox.stop("@nothing")

    # Everything.
    api = ObjectStorageApi(sandbox.namespace, endpoint=sandbox.proxy)
    api.object_create(ACCOUNT, "kept", obj_name="o", data=b"kept", policy="THREECOPIES")
    sandbox.stop()
    assert trace_of(sandbox) == []
    assert command(sandbox.home, "status")[0] == 1
    sandbox.start()
    assert {service.name: service.addr for service in sandbox.services()} == addresses
    assert read(api, "kept", "o") == b"kept"
    sandbox.destroy()
    assert not os.path.lexists(sandbox.home)


@pytest.mark.parametrize("then_start", [False, True], ids=["stop", "start"])
def test_a_killed_supervisor_leaves_nothing_that_others_do_not_end(make, then_start):
    sandbox = make()
    sandbox.start()
    with open(os.path.join(sandbox.layout.run_dir, "supervisord.pid"), encoding="ascii") as file:
        supervisor = psutil.Process(int(file.read()))
    services = set(sandbox.pids().values())
    supervisor.kill()
    eventually(lambda: has_ended(supervisor), what="its end")
    assert all(psutil.pid_exists(pid) for pid in services)
    code, _output, errors = command(sandbox.home, "status")
    assert code == 1
    assert "supervisor is gone" in errors
    if then_start:
        sandbox.start()
        assert working(sandbox)
        assert not services & set(sandbox.pids().values())
        assert len(trace_of(sandbox)) > len(services)
    sandbox.stop()
    assert trace_of(sandbox) == []


def test_a_service_that_does_not_start_is_told_with_its_reason(make, monkeypatch):
    """By the start and by the status, while the others can be started and stopped."""
    sandbox = make()
    sandbox.start()
    broken, other = sandbox.services("rawx")[:2]
    agent = sandbox.services("event-agent")[0]
    sandbox.stop(broken.name, agent.name)
    os.setxattr(broken.volume, "user.server.id", b"somebody-else")
    monkeypatch.setattr(event_conf, "agent", lambda _layout, _service: "[somebody]\n")
    reasons = {broken.name: "somebody-else", agent.name: "section [event-agent] is missing"}
    with pytest.raises(SandboxError, match=r"(?s)do not start.*(somebody-else|is missing)"):
        sandbox.start(*reasons)
    eventually(
        lambda: {one["name"] for one in sandbox.status() if one["state"] == "FATAL"} == set(reasons), 60,
        what="the supervisor gives up",
    )  # fmt: skip
    code, output, _errors = command(sandbox.home, "status")
    assert code == 1
    for name, reason in reasons.items():
        assert f"{name} does not start" in output
        assert reason in output
    sandbox.restart(other.name)
    os.setxattr(broken.volume, "user.server.id", broken.service_id.encode())
    monkeypatch.undo()
    sandbox.start()
    assert working(sandbox)
    assert {one["state"] for one in sandbox.status()} == {"RUNNING"}


def test_two_clusters_with_the_same_first_port(make):
    first, second = make("A"), make("B")
    starts = [threading.Thread(target=sandbox.start) for sandbox in (first, second)]
    for thread in starts:
        thread.start()
    for thread in starts:
        thread.join(120)
    assert working(first)
    assert working(second)
    ports = [{service.port for service in sandbox.services() if service.port} for sandbox in (first, second)]
    assert not ports[0] & ports[1]
    first.stop()
    assert trace_of(first) == []
    assert working(second)
    # A cluster that is stopped keeps its ports, its data and its peace.
    first.start()
    assert working(first)
    assert {service.port for service in first.services() if service.port} == ports[0]


def test_ports_that_are_taken_are_avoided(make):
    """The default ones among them: whatever runs here already, some more are taken."""
    taken = []
    try:
        for port in (6000, 6001, 6003, 6007):
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                sock.bind(("127.0.0.1", port))
                sock.listen(1)
            taken.append(sock)
        sandbox = make(base_port=6000)
        sandbox.start()
        assert working(sandbox)
        assert not {6000, 6001, 6003, 6007} & {service.port for service in sandbox.services()}
        sandbox.stop()
        assert trace_of(sandbox) == []
        # Somebody takes a port of a cluster that is stopped: it says whose, and starts nothing.
        victim = sandbox.services("rawx")[0]
        with socket.socket() as thief:
            thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            thief.bind((victim.host, victim.port))
            thief.listen(1)
            with pytest.raises(SandboxError, match=f"{victim.addr} of {victim.name}"):
                sandbox.start()
        assert trace_of(sandbox) == []
        sandbox.start()
        assert working(sandbox)
    finally:
        for sock in taken:
            sock.close()


@pytest.mark.parametrize("enough_time", [True, False], ids=["the client ends", "the client does not end"])
def test_a_stop_during_an_upload_never_makes_half_a_chunk(broken, enough_time):
    service = broken.services("rawx")[0]
    before = files_below(service.volume)
    lines = "".join(f"{name}: {value}\r\n" for name, value in UPLOAD_HEADERS.items())
    head = f"PUT /{CHUNK} HTTP/1.1\r\nHost: {service.addr}\r\nContent-Length: 100000\r\n{lines}\r\n"
    with socket.create_connection((service.host, service.port), 30) as sock:
        sock.sendall(head.encode() + b"x" * 50000)
        eventually(lambda: f"{CHUNK}.pending" in files_below(service.volume), what="the upload begins")
        pid = broken.pids()[service.name]
        stop = threading.Thread(target=broken.stop, args=(service.name,))
        stop.start()
        eventually(lambda: not listens(service), what="new connections are refused")
        answer = b""
        if enough_time:
            sock.sendall(b"x" * 50000)
            answer = sock.recv(65536)
            assert answer.startswith(b"HTTP/1.1 201 ")
        stop.join(60)
        if not enough_time:
            with contextlib.suppress(ConnectionError):
                answer = sock.recv(65536)
            assert not answer or int(answer[9:12]) >= 400
    assert not psutil.pid_exists(pid)
    after = set(files_below(service.volume)) - set(before)
    assert {name for name in after if not name.endswith(".pending")} == ({CHUNK} if enough_time else set())
    broken.start(service.name)
    eventually(
        lambda: set(files_below(service.volume)) - set(before) == ({CHUNK} if enough_time else set()),
        what="leftovers are swept",
    )
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(service.volume, CHUNK[:3], CHUNK))


def test_a_foreground_run_ends_with_everything_at_a_signal(make):
    sandbox = make()
    sandbox.init()
    run = subprocess.Popen(
        [sys.executable, str(ROOT / "bin/oio-sandbox"), "--home", sandbox.home, "run"],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    with run.stdout:
        lines = iter(run.stdout.readline, "")
        assert any("is ready" in line for line in lines)
        assert working(sandbox)
        run.send_signal(signal.SIGINT)
        assert run.wait(60) == 0
    assert trace_of(sandbox) == []
