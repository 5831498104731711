# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Servers on free ports, raw sockets to talk to them, and waiting with a deadline."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator

import pytest
from http_script import Script

from oio.http.client import HttpPool
from oio.http.server import Request, Response, Server, ServerConfig


class Raw:
    """A raw connection: bytes out, bytes in."""

    def __init__(self, server: Server, timeout_s: float = 10.0) -> None:
        self.sock = socket.create_connection(server.addresses[0], timeout_s)

    def send(self, data: bytes) -> Raw:
        self.sock.sendall(data)
        return self

    def read_until_closed(self) -> bytes:
        pieces = []
        try:
            while data := self.sock.recv(65536):
                pieces.append(data)
        except ConnectionResetError:
            pass
        return b"".join(pieces)

    def read_answer(self) -> tuple[int, dict[str, str], bytes]:
        """Read one answer that has a Content-Length."""
        data = b""
        while b"\r\n\r\n" not in data:
            piece = self.sock.recv(1)
            assert piece, f"closed after {data!r}"
            data += piece
        lines = data.decode("latin-1").split("\r\n")
        headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines[1:] if line)}
        body = b""
        length = int(headers.get("content-length", 0))
        while len(body) < length:
            piece = self.sock.recv(length - len(body))
            assert piece
            body += piece
        return int(lines[0].split(" ")[1]), headers, body

    def is_closed(self) -> bool:
        return self.read_until_closed() == b""


def wait_for(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Wait until `condition` holds; fail after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "condition not reached in time"
        time.sleep(0.002)


def echo(request: Request) -> Response:
    """Answer with what was received."""
    body = request.read_all()
    trailers = ",".join(f"{k}={v}" for k, v in request.trailers.items())
    return Response(200, body, [("x-path", request.path), ("x-trailers", trailers)])


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """Start servers that are stopped after the test: ``serve(handler, **config)``."""
    servers: list[Server] = []

    def start(handler=echo, listen=(("127.0.0.1", 0),), tls=None, **config) -> Server:
        server = Server(handler, list(listen), ServerConfig(**config), tls=tls)
        server.start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop(0.2)


@pytest.fixture
def raw() -> Iterator[Callable[..., Raw]]:
    """Open raw connections that are closed after the test."""
    opened: list[Raw] = []

    def connect(server: Server, timeout_s: float = 10.0) -> Raw:
        opened.append(Raw(server, timeout_s))
        return opened[-1]

    yield connect
    for connection in opened:
        connection.sock.close()


@pytest.fixture
def pool() -> Iterator[HttpPool]:
    """A client pool with short timeouts."""
    with HttpPool(connect_timeout_s=5.0, read_timeout_s=10.0) as made:
        yield made


@pytest.fixture
def until() -> Callable[..., None]:
    """`wait_for` as a fixture."""
    return wait_for


@pytest.fixture(scope="session")
def tls_files(tmp_path_factory):
    """A self-signed certificate and its key."""
    import subprocess

    directory = tmp_path_factory.mktemp("tls")
    certificate, key = str(directory / "cert.pem"), str(directory / "key.pem")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -keyout"
    done = subprocess.run([*command.split(), key, "-out", certificate], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("openssl cannot make a certificate")
    return certificate, key


def url_of(server: Server, path: str = "/") -> str:
    """Give the URL of `path` on the first listener of `server`."""
    host, port = server.addresses[0]
    return f"http://{host}:{port}{path}"


@pytest.fixture
def url() -> Callable[..., str]:
    """`url_of` as a fixture."""
    return url_of


@pytest.fixture
def script():
    """Servers that play a list of actions for each connection: ``script([...], [...])``."""
    made = []

    def make(*connections):
        made.append(Script(*connections))
        return made[-1]

    yield make
    for item in made:
        item.end()
