# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""The chunk server as a process: what the kernel is told and in which order, kill -9, a full disk."""

import contextlib
import hashlib
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
CHUNK = "0123456789ABCDEF" * 4
PREFIX = "x-oio-chunk-meta-"
READY_S = 15.0


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class Process:
    """An oio-rawx process, maybe under strace."""

    def __init__(self, tmp_path, volume=None, options="", wrapper=()):
        self.volume = volume or tmp_path / "volume"
        self.volume.mkdir(exist_ok=True)
        self.port = free_port()
        conf = tmp_path / f"rawx-{self.port}.conf"
        conf.write_text(
            f"listen 127.0.0.1:{self.port}\nnamespace NS\ndocroot {self.volume}\n"
            f"service_id NS-rawx-1\nevents off\n{options}"
        )
        program = [sys.executable, str(ROOT / "bin/oio-rawx"), "-f", str(conf)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.stderr = tmp_path / f"rawx-{self.port}.err"
        with open(self.stderr, "wb") as stderr:
            self.popen = subprocess.Popen(
                [*wrapper, *program], env=environment, stderr=stderr, cwd=tmp_path
            )
        self._wait_ready()

    def _wait_ready(self):
        deadline = time.monotonic() + READY_S
        pause = threading.Event()
        while time.monotonic() < deadline:
            assert self.popen.poll() is None, self.stderr.read_text()
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            pause.wait(0.05)
        raise AssertionError("the service does not start")

    def connect(self):
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def head(self, method, chunk_id, extra=""):
        text = f"{method} /{chunk_id} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n{extra}"
        if method == "PUT":
            for name, value in (
                ("content-storage-policy", "SINGLE"),
                ("content-chunk-method", "plain/nb_copy=1"),
                ("chunk-pos", "0"),
                ("full-path", "acme/media/path/1/AA"),
            ):
                text += f"{PREFIX}{name}: {value}\r\n"
        return text.encode() + b"\r\n"

    def call(self, method, chunk_id, body=b""):
        with self.connect() as sock:
            extra = f"Connection: close\r\nContent-Length: {len(body)}\r\n"
            sock.sendall(self.head(method, chunk_id, extra) + body)
            data = b""
            while piece := sock.recv(65536):
                data += piece
        head, _, content = data.partition(b"\r\n\r\n")
        return int(head.split()[1]), content

    def files(self):
        return sorted(name for _, _, names in os.walk(self.volume) for name in names)

    def stop(self):
        if self.popen.poll() is None:
            self.popen.terminate()
            try:
                self.popen.wait(15)
            except subprocess.TimeoutExpired:
                self.popen.kill()
        self.popen.wait()


@pytest.fixture
def start(tmp_path):
    """Starts services; all are stopped at the end."""
    processes = []

    def launch(**options):
        processes.append(Process(tmp_path, **options))
        return processes[-1]

    yield launch
    for process in processes:
        process.stop()


# -- order of the system calls -----------------------------------------------------------------

TRACED = "openat,write,fsetxattr,fsync,fdatasync,renameat2,rename,unlink,sendto,mkdir,close"
STRACE = shutil.which("strace")


def can_trace():
    if STRACE is None:
        return False
    return subprocess.run([STRACE, "-o", "/dev/null", "true"], capture_output=True).returncode == 0


def events_of(trace, volume):
    """(call, what) for the calls that touch the volume or answer, descriptors replaced by paths."""
    names = {}
    found = []
    for line in trace.read_text(errors="replace").splitlines():
        match = re.match(r"(?:\d+\s+)?(\w+)\((.*)\)\s+= (-?\d+)", line)
        if match is None or match[3].startswith("-"):
            continue
        call, arguments, result = match.groups()
        path = re.search(r'"([^"]*)"', arguments)
        if call == "openat":
            if path[1].startswith(str(volume)):
                names[result] = path[1]
                found.append(("create" if "O_CREAT" in arguments else "open", path[1]))
            else:
                names.pop(result, None)
        elif call in ("write", "fsetxattr", "fsync", "fdatasync"):
            if target := names.get(arguments.split(",")[0]):
                found.append((call, target))
        elif call == "close":
            names.pop(arguments, None)
        elif call == "sendto" and '"HTTP/1.1 ' in arguments:
            found.append(("answer", path[1].split()[1]))
        elif call in ("renameat2", "rename", "unlink", "mkdir") and path[1].startswith(str(volume)):
            found.append((call, path[1]))
    return found


@pytest.mark.skipif(not can_trace(), reason="strace is missing, or ptrace is not allowed")
def test_what_reaches_the_disk_before_the_answer(tmp_path, start):
    trace = tmp_path / "trace"
    service = start(wrapper=(STRACE, "-f", "-qq", "-s", "300", "-o", str(trace), "-e", f"trace={TRACED}"))
    try:
        assert service.call("PUT", CHUNK, b"0123456789")[0] == 201
        assert service.call("DELETE", CHUNK)[0] == 204
    finally:
        # The traced process, not strace, is told to stop: strace follows.
        children = pathlib.Path(f"/proc/{service.popen.pid}/task/{service.popen.pid}/children")
        for pid in children.read_text().split():
            os.kill(int(pid), signal.SIGTERM)
        service.popen.wait(15)
    directory = f"{service.volume}/{CHUNK[:3]}"
    pending = f"{directory}/{CHUNK}.pending"
    calls = events_of(trace, service.volume)
    begin = calls.index(("create", pending))
    upload = calls[begin : calls.index(("answer", "201")) + 1]
    steps = [upload[0]]
    for step in upload[1:]:
        if step != steps[-1]:
            steps.append(step)
    assert steps == [
        ("create", pending),
        ("write", pending),
        ("fsetxattr", pending),
        ("fsync", pending),
        ("renameat2", pending),
        ("open", str(service.volume)),
        ("fsync", str(service.volume)),  # the new directory
        ("open", directory),
        ("fsync", directory),
        ("answer", "201"),
    ]
    assert ("mkdir", directory) in calls[:begin]
    after = calls[calls.index(("unlink", f"{directory}/{CHUNK}")) :]
    assert after[:4] == [
        ("unlink", f"{directory}/{CHUNK}"),
        ("open", directory),
        ("fsync", directory),
        ("answer", "204"),
    ]


# -- kill -9 -----------------------------------------------------------------------------------


def test_kill_during_uploads(start):
    """Whatever the moment, what stands under a final name is whole, and what was acknowledged is there."""
    service = start()
    acknowledged, sent = [], {}
    stop = threading.Event()

    def upload(worker):
        number = 0
        while not stop.is_set():
            chunk_id = hashlib.sha256(f"{worker}/{number}".encode()).hexdigest().upper()
            data = hashlib.sha256(chunk_id.encode()).digest() * (1 + 4000 * (number % 7))
            sent[chunk_id] = data
            number += 1
            try:
                if service.call("PUT", chunk_id, data)[0] == 201:
                    acknowledged.append(chunk_id)
            except (OSError, IndexError):
                return

    threads = [threading.Thread(target=upload, args=(worker,)) for worker in range(4)]
    half = service.connect()
    half.sendall(service.head("PUT", CHUNK, "Content-Length: 1000000\r\n") + b"x" * 300000)
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 20
    while len(acknowledged) < 60 and time.monotonic() < deadline:
        stop.wait(0.01)
    service.popen.send_signal(signal.SIGKILL)
    service.popen.wait()
    stop.set()
    for thread in threads:
        thread.join()
    half.close()
    assert len(acknowledged) >= 60
    assert CHUNK + ".pending" in service.files()
    again = start(volume=service.volume)
    finals = {name for name in again.files() if not name.endswith(".pending")}
    assert set(acknowledged) <= finals
    assert CHUNK not in finals
    for name in finals:
        assert again.call("GET", name) == (200, sent[name])
    deadline = time.monotonic() + 10
    while set(again.files()) - finals and time.monotonic() < deadline:
        stop.clear()
        stop.wait(0.05)
    assert set(again.files()) == finals  # the leftovers were swept
    assert again.call("PUT", CHUNK, b"retry")[0] == 201


def test_two_processes_never_serve_one_volume(tmp_path, start):
    service = start()
    with pytest.raises(AssertionError, match="another process"):
        start(volume=service.volume)
    assert service.call("PUT", CHUNK, b"x")[0] == 201


def test_sigterm_lets_running_requests_end(start):
    service = start()
    with service.connect() as sock:
        sock.sendall(service.head("PUT", CHUNK, "Content-Length: 4\r\n") + b"ab")
        deadline = time.monotonic() + 10
        while CHUNK + ".pending" not in service.files() and time.monotonic() < deadline:
            threading.Event().wait(0.01)
        service.popen.terminate()
        threading.Event().wait(0.1)
        sock.sendall(b"cd")
        assert sock.recv(65536).startswith(b"HTTP/1.1 201 ")
    assert service.popen.wait(15) == 0
    assert service.files() == [CHUNK]


# -- full disk ---------------------------------------------------------------------------------


@pytest.fixture
def small_volume(tmp_path):
    """A file system of 4 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root; the injected errors of the unit tests cover this")
    path = tmp_path / "small"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "oio-test", str(path)]
    if subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("mounting is not allowed here; the injected errors of the unit tests cover this")
    try:
        os.setxattr(path, "user.test", b"x")
        os.removexattr(path, "user.test")
        yield path
    except OSError:
        pytest.skip("tmpfs has no user attributes on this kernel")
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def test_full_disk(start, small_volume):
    service = start(volume=small_volume)
    ids = [hashlib.sha256(str(number).encode()).hexdigest().upper() for number in range(8)]
    data = os.urandom(900 * 1024)
    statuses = [service.call("PUT", chunk_id, data)[0] for chunk_id in ids]
    stored = [chunk_id for chunk_id, status in zip(ids, statuses, strict=True) if status == 201]
    assert 1 <= len(stored) < len(ids)
    assert set(statuses) == {201, 500}
    assert service.files() == sorted(stored)
    for chunk_id in stored:
        assert service.call("GET", chunk_id) == (200, data)
    assert service.call("DELETE", stored[0])[0] == 204
    assert service.call("PUT", ids[-1], data)[0] == 201
    service.stop()
