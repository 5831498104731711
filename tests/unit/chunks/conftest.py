# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""A scripted rawx: real sockets, chunks in memory, and failures on demand."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from oio.common import blocksums

PREFIX = "x-oio-chunk-meta-"
SUMS = PREFIX + "block-sums"


class Stored:
    """A chunk that was received."""

    def __init__(self, body: bytes, headers: dict[str, str], trailers: dict[str, str]) -> None:
        self.body = body
        self.headers = headers
        self.trailers = trailers


class ScriptedRawx:
    """Serves PUT and GET of chunks. `script` holds the failures to play; see the methods for its keys."""

    def __init__(self) -> None:
        self.chunks: dict[str, Stored] = {}
        self.script: dict[str, Any] = {}
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.released = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._peers: list[socket.socket] = []
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def url(self, name: str) -> str:
        return f"http://{self.address}/{name}"

    def stop(self) -> None:
        self.released.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for peer in self._peers:
            with contextlib.suppress(OSError):
                peer.shutdown(socket.SHUT_RDWR)
            peer.close()

    def _accept(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            self._peers.append(peer)
            if "receive_buffer" in self.script:
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.script["receive_buffer"])
            threading.Thread(target=self._serve, args=(peer,), daemon=True).start()

    def _serve(self, peer: socket.socket) -> None:
        stream = peer.makefile("rb")
        try:
            while self._one(peer, stream):
                continue
        except (OSError, ValueError, EOFError):
            pass
        finally:
            stream.close()
            peer.close()

    def _one(self, peer: socket.socket, stream: Any) -> bool:
        line = stream.readline()
        if not line:
            return False
        method, path, _ = line.decode("latin-1").split(" ")
        headers = _fields(stream)
        self.requests.append((method, path, headers))
        return self._put(peer, stream, path, headers) if method == "PUT" else self._get(peer, path, headers)

    def _put(self, peer: socket.socket, stream: Any, path: str, headers: dict[str, str]) -> bool:
        """Keys: put_status, put_early (answer before the body), put_stuck (read nothing), put_die (close after n
        bytes), put_silent (never answer), put_headers (of the answer), once (play the script once only)."""
        script = dict(self.script)
        if script.get("once"):
            self.script = {}
        if "put_early" in script:
            peer.sendall(b"HTTP/1.1 %d Refused\r\nContent-Length: 0\r\n\r\n" % script["put_early"])
            self.released.wait(5)
            return False
        if script.get("put_stuck"):
            self.released.wait(20)
            return False
        body = bytearray()
        while size := int(_line(stream), 16):
            body += _exactly(stream, size)
            _exactly(stream, 2)
            if "put_die" in script and len(body) >= script["put_die"]:
                return False
        trailers = _fields(stream)
        if "put_die" in script:
            return False
        if script.get("put_silent"):
            self.released.wait(20)
            return False
        status = script.get("put_status", 201)
        if status == 201 and path in self.chunks:
            status = 409
        if status == 201 and SUMS in trailers:
            try:
                blocksums.verify(trailers[SUMS], body)
            except ValueError:
                status = 400
        answer = {}
        if status == 201:
            self.chunks[path] = Stored(bytes(body), headers, trailers)
            announced = trailers.get(PREFIX + "chunk-hash") or hashlib.md5(body).hexdigest()
            answer = {PREFIX + "chunk-hash": announced.upper(), PREFIX + "chunk-size": str(len(body))}
            answer.update(script.get("put_headers", {}))
        head = f"HTTP/1.1 {status} Scripted\r\nContent-Length: 0\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in answer.items())
        peer.sendall(head.encode() + b"\r\n")
        return True

    def _get(self, peer: socket.socket, path: str, headers: dict[str, str]) -> bool:
        """Keys: get_status, get_silent, get_truncate / get_stall (after n bytes of the body), get_corrupt (offset
        in the chunk), get_whole (ignore ranges), get_no_sums, get_short (the chunk is n bytes shorter)."""
        script = self.script
        stored = self.chunks.get(path)
        status = script.get("get_status", 200 if stored else 404)
        if script.get("get_silent"):
            self.released.wait(20)
            return False
        if status != 200 or stored is None:
            peer.sendall(b"HTTP/1.1 %d Scripted\r\nContent-Length: 0\r\n\r\n" % status)
            return True
        body = bytearray(stored.body)
        if "get_short" in script:
            del body[-script["get_short"] :]
        size = len(body)
        first, last = 0, size - 1
        text = "HTTP/1.1 200 OK\r\n"
        if "range" in headers and not script.get("get_whole"):
            start, end = headers["range"].removeprefix("bytes=").split("-")
            first, last = int(start), min(int(end), size - 1)
            if first >= size:
                peer.sendall(b"HTTP/1.1 416 Range\r\nContent-Length: 0\r\n\r\n")
                return True
            text = f"HTTP/1.1 206 Partial\r\nContent-Range: bytes {first}-{last}/{size}\r\n"
        for offset in _list(script.get("get_corrupt")):
            body[offset] ^= 1
            block = offset >> 20 << 20
            whole = first <= block and min(block + (1 << 20), size) - 1 <= last
            if first <= offset <= last and not whole and not script.get("get_no_sums"):
                # As a real rawx does: blocks that are only partly sent are verified before the answer.
                peer.sendall(b"HTTP/1.1 412 Corrupt\r\nContent-Length: 0\r\n\r\n")
                return True
        data = body[first : last + 1]
        text += f"Content-Length: {len(data)}\r\n"
        fields = {key: value for key, value in stored.trailers.items() if key.startswith(PREFIX)}
        fields.setdefault(SUMS, _sums(stored.body))
        fields[PREFIX + "chunk-size"] = str(size)
        if script.get("get_no_sums"):
            del fields[SUMS]
        text += "".join(f"{name}: {value}\r\n" for name, value in fields.items()) + "\r\n"
        peer.sendall(text.encode())
        if "get_truncate" in script:
            peer.sendall(data[: script["get_truncate"]])
            return False
        if "get_stall" in script:
            peer.sendall(data[: script["get_stall"]])
            self.released.wait(20)
            return False
        peer.sendall(data)
        return True


def _list(value: Any) -> list[int]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _sums(body: bytes) -> str:
    sums = blocksums.BlockSums()
    sums.update(body)
    return sums.text()


def _fields(stream: Any) -> dict[str, str]:
    fields = {}
    while (line := _line(stream)) != b"":
        name, _, value = line.decode("latin-1").partition(":")
        fields[name.lower()] = value.strip()
    return fields


def _line(stream: Any) -> bytes:
    line: bytes = stream.readline()
    if not line.endswith(b"\r\n"):
        raise EOFError
    return line[:-2]


def _exactly(stream: Any, size: int) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise EOFError
    return data


_names = itertools.count()


class Cluster:
    """Several scripted rawx, and the description of chunks on them."""

    def __init__(self) -> None:
        self.rawx: list[ScriptedRawx] = []

    def grow(self, count: int) -> Cluster:
        while len(self.rawx) < count:
            self.rawx.append(ScriptedRawx())
        return self

    def metachunk(self, count: int, position: int = 0, ec: bool = False) -> list[dict[str, Any]]:
        """Chunks of one metachunk, one on each of the first rawx."""
        self.grow(count)
        number = next(_names)
        chunks = []
        for index in range(count):
            url = self.rawx[index].url(f"{number:060X}{index if ec else 0:04X}")
            chunk = {"url": url, "pos": f"{position}.{index}" if ec else str(position), "score": 0, "size": 0}
            if ec:
                chunk["num"] = index
            chunks.append(chunk)
        return chunks

    def preparer(self, count: int, ec: bool = False) -> Callable[[], Iterator[list[dict[str, Any]]]]:
        """What a write handler takes: metachunks on demand."""
        return lambda: (self.metachunk(count, position, ec) for position in itertools.count())

    def stored(self, chunk: dict[str, Any]) -> Stored:
        """What the rawx of a chunk has received."""
        _, _, rest = chunk["url"].partition("://")
        address, _, name = rest.partition("/")
        return next(rawx for rawx in self.rawx if rawx.address == address).chunks["/" + name]

    def of(self, chunk: dict[str, Any]) -> ScriptedRawx:
        """The rawx of a chunk."""
        return next(rawx for rawx in self.rawx if rawx.address in chunk["url"])

    def stop(self) -> None:
        for rawx in self.rawx:
            rawx.stop()


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Scripted rawx, as many as a test asks for."""
    made = Cluster()
    yield made
    made.stop()


@pytest.fixture
def sysmeta() -> dict[str, Any]:
    """Metadata of an object being written."""
    return {
        "id": "0123456789ABCDEF" * 2,
        "version": "1600000000000000",
        "content_path": "some object",
        "chunk_method": "plain/nb_copy=3",
        "policy": "THREECOPIES",
        "container_id": "C0" * 32,
        "full_path": "acme/media/some%20object/1600000000000000/" + "0123456789ABCDEF" * 2,
        "chunk_size": 10 << 20,
    }
