# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Services started one by one by the fault tests: alone, under strace, on a file system of their own."""

import contextlib
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys

import pytest
from support import ROOT, eventually, held_port

CHUNK = "0123456789ABCDEF" * 4
PREFIX = "x-oio-chunk-meta-"
STRACE = shutil.which("strace")


#: Sockets that keep the ports that were given away.
_HELD = []


def free_port():
    """A port of loopback that is ours until the end of the run.

    Without that the kernel may give it to any connection before our server listens, or while it is down.
    """
    sock, port = held_port()
    _HELD.append(sock)
    return port


def can_trace():
    """Is there an strace that is allowed to work?"""
    if STRACE is None:
        return False
    return subprocess.run([STRACE, "-o", "/dev/null", "true"], capture_output=True).returncode == 0


def tracer(path, calls):
    """Words before a command line, that write its system calls to a file."""
    return (STRACE, "-f", "-qq", "-s", "300", "-o", str(path), "-e", f"trace={calls}")


def whole_calls(trace):
    """Lines of a trace, where a call that others interrupted is one line: at its end, when its effect is there.

    But a descriptor is free when its closing begins: another thread may be given its number before the end.
    """
    begun = {}
    for line in trace.read_text(errors="replace").splitlines():
        pid = line.split(None, 1)[0]
        if line.endswith("<unfinished ...>"):
            text = line.removesuffix("<unfinished ...>").rstrip()
            if " close(" in text:
                yield f"{text}) = 0"
            else:
                begun[pid] = text
        elif "resumed>" in line and pid in begun:
            yield begun.pop(pid) + line.partition("resumed>")[2]
        else:
            yield line


class Process:
    """One of our programs, maybe under strace."""

    def __init__(self, tmp_path, words, port, wrapper=()):
        self.port = port
        self.addr = f"127.0.0.1:{port}"
        self.log = tmp_path / f"service-{port}.log"
        self._traced = bool(wrapper)
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with open(self.log, "wb") as log:
            self.popen = subprocess.Popen(
                [*wrapper, sys.executable, str(ROOT / "bin" / words[0]), *words[1:]],
                env=environment, stdout=log, stderr=log, cwd=tmp_path,
            )  # fmt: skip
        try:
            eventually(self._listens, what="listening")
        except BaseException:
            self.stop()
            raise

    def _listens(self):
        assert self.popen.poll() is None, self.log.read_text()
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), 1).close()
            return True
        return False

    @property
    def pid(self):
        """Of the service itself, not of what traces it."""
        if not self._traced:
            return self.popen.pid
        return int(pathlib.Path(f"/proc/{self.popen.pid}/task/{self.popen.pid}/children").read_text().split()[0])

    def connect(self):
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def exchange(self, data):
        """Send bytes; gives status and body of the answer, which must close the connection."""
        with self.connect() as sock:
            sock.sendall(data)
            answer = b""
            while piece := sock.recv(65536):
                answer += piece
        head, _, content = answer.partition(b"\r\n\r\n")
        return int(head.split()[1]), content

    def terminate(self):
        """SIGTERM; gives the exit code."""
        with contextlib.suppress(ProcessLookupError, IndexError, FileNotFoundError):
            os.kill(self.pid, signal.SIGTERM)
        return self.popen.wait(15)

    def stop(self):
        if self.popen.poll() is None:
            try:
                self.terminate()
            except subprocess.TimeoutExpired:
                self.popen.kill()
        self.popen.wait()


class RawxProcess(Process):
    """An oio-rawx process."""

    def __init__(self, tmp_path, volume=None, options="", wrapper=(), words=()):
        self.volume = volume or tmp_path / "volume"
        self.volume.mkdir(exist_ok=True)
        port = free_port()
        conf = tmp_path / f"rawx-{port}.conf"
        conf.write_text(
            f"listen 127.0.0.1:{port}\nnamespace NS\ndocroot {self.volume}\n"
            f"service_id NS-rawx-1\nevents off\n{options}"
        )
        super().__init__(tmp_path, ["oio-rawx", *words, "-f", str(conf)], port, wrapper)

    def head(self, method, chunk_id, extra=""):
        text = f"{method} /{chunk_id} HTTP/1.1\r\nHost: {self.addr}\r\n{extra}"
        if method == "PUT":
            text += "".join(f"{name}: {value}\r\n" for name, value in UPLOAD_HEADERS.items())
        return text.encode() + b"\r\n"

    def call(self, method, chunk_id, body=b""):
        extra = f"Connection: close\r\nContent-Length: {len(body)}\r\n"
        return self.exchange(self.head(method, chunk_id, extra) + body)

    def files(self):
        return files_below(self.volume)


UPLOAD_HEADERS = {
    f"{PREFIX}content-storage-policy": "SINGLE",
    f"{PREFIX}content-chunk-method": "plain/nb_copy=1",
    f"{PREFIX}chunk-pos": "0",
    f"{PREFIX}full-path": "acme/media/path/1/AA",
}


class Meta2Process(Process):
    """An oio-meta2-server process without a namespace around it; ``conf`` holds its options."""

    def __init__(self, tmp_path, volume=None, conf="", wrapper=(), words=()):
        self.volume = volume or tmp_path / "volume"
        self.volume.mkdir(exist_ok=True)
        port = free_port()
        path = tmp_path / f"meta2-{port}.conf"
        path.write_text(f"[NS]\n{conf}")
        options = [f"Endpoint=127.0.0.1:{port}", "ServiceId=NS-meta2-1", "SysConfig=off", f"Config={path}"]
        dashes = [word for option in options for word in ("-O", option)]
        command = ["oio-meta2-server", *words, *dashes, "NS", str(self.volume)]
        super().__init__(tmp_path, command, port, wrapper)


def files_below(directory):
    """Names of all files below a volume, sorted; the journal of its events is not looked at."""
    journal = os.path.join(directory, ".events")
    return sorted(
        name for path, _, names in os.walk(directory) if not path.startswith(journal) for name in names
    )


# -- small disks -------------------------------------------------------------------------------


def fill(directory, leave_bytes=0):
    """Take all the room of a file system; gives the file to remove."""
    filler = pathlib.Path(directory, "filler")
    with open(filler, "ab", buffering=0) as file:
        for size in (65536, 4096, 512):
            with contextlib.suppress(OSError):
                while file.write(b"\0" * size) == size:
                    pass
        if leave_bytes:
            file.truncate(max(0, file.tell() - leave_bytes))
    return filler


@contextlib.contextmanager
def small_disk(path, size_mib):
    """A file system of its own on a directory, or the test is skipped; it keeps the directory's attributes."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root; the injected errors of the unit tests cover this")
    attributes = {name: os.getxattr(path, name) for name in os.listxattr(path) if name.startswith("user.")}
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_mib}m,mode=0700", "oio-test", str(path)]
    if subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("mounting is not allowed here; the injected errors of the unit tests cover this")
    try:
        try:
            os.setxattr(path, "user.test", b"x")
            os.removexattr(path, "user.test")
        except OSError:
            pytest.skip("tmpfs has no user attributes on this kernel")
        for name, value in attributes.items():
            os.setxattr(path, name, value)
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)
