# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""A live chunk server on a real directory, and a client that sends what it is told to."""

import hashlib
import http.client
import os
import socket
import threading
import time

from oio.rawx.config import RawxConfig
from oio.rawx.server import Rawx

PREFIX = "x-oio-chunk-meta-"
CHUNK = "0123456789ABCDEF" * 4
OTHER = "FEDCBA9876543210" * 4


def cid(account, container):
    return hashlib.sha256(f"{account}\0{container}".encode()).hexdigest().upper()


def headers_for(chunk_id=CHUNK, **changes):
    """Headers of a valid upload. `changes`: underscores stand for dashes, None removes."""
    headers = {
        "content-storage-policy": "THREECOPIES",
        "content-chunk-method": "plain/nb_copy=3",
        "chunk-pos": "0",
        "chunk-id": chunk_id,
        "full-path": "acme/media/a%20b%2Fc%2Bd.txt/1700000000000001/0011AABB",
        "container-id": cid("acme", "media"),
        "content-path": "a%20b/c%2Bd.txt",
        "content-version": "1700000000000001",
        "content-id": "0011aabb",
    }
    for name, value in changes.items():
        headers[name.replace("_", "-")] = value
    return {PREFIX + name: value for name, value in headers.items() if value is not None}


class Reply:
    def __init__(self, status, headers, body):
        self.status = status
        self.headers = headers
        self.body = body

    def meta(self, name):
        return self.headers.get(PREFIX + name)


class Client:
    """Sends one request per connection, exactly as described."""

    def __init__(self, address):
        self.address = address
        self.host, _, port = address.rpartition(":")
        self.port = int(port)

    def request(self, method, path, headers=None, body=None, chunks=None, trailers=None, host=None):
        """`body` goes with a Content-Length, `chunks` (list of bytes) in chunked coding."""
        with socket.create_connection((self.host, self.port), timeout=10) as sock:
            sock.sendall(self.head(method, path, headers, body, chunks, host))
            if body:
                sock.sendall(body)
            if chunks is not None:
                for chunk in chunks:
                    sock.sendall(b"%x\r\n%b\r\n" % (len(chunk), chunk))
                tail = "".join(f"{k}: {v}\r\n" for k, v in (trailers or {}).items())
                sock.sendall(b"0\r\n" + tail.encode("latin-1") + b"\r\n")
            return read_reply(sock, method)

    def head(self, method, path, headers=None, body=None, chunks=None, host=None):
        lines = [f"{method} {path} HTTP/1.1"]
        if host != "":
            lines.append(f"Host: {host or self.address}")
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        if chunks is not None:
            lines.append("Transfer-Encoding: chunked")
        elif body is not None:
            lines.append(f"Content-Length: {len(body)}")
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    def put(self, data=b"", target=CHUNK, headers=None, trailers=None, plain=False, **changes):
        headers = {**headers_for(**{"chunk_id": target, **changes}), **(headers or {})}
        if plain:
            return self.request("PUT", f"/{target}", headers, body=data)
        chunks = [data[i : i + 65536] for i in range(0, len(data), 65536)]
        return self.request("PUT", f"/{target}", headers, chunks=chunks, trailers=trailers)

    def get(self, chunk_id=CHUNK, **headers):
        return self.request("GET", f"/{chunk_id}", headers)

    def head_chunk(self, chunk_id=CHUNK, **headers):
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.request("HEAD", f"/{chunk_id}", headers)

    def delete(self, chunk_id=CHUNK):
        return self.request("DELETE", f"/{chunk_id}")

    def copy(self, source=CHUNK, target=OTHER, destination=None, **changes):
        headers = {
            name: value
            for name, value in headers_for(**changes).items()
            if "chunk-id" not in name
        }
        if destination != "":
            headers["Destination"] = destination or f"http://{self.address}/{target}"
        return self.request("COPY", f"/{source}", headers)


def wait_for(condition, seconds=5.0):
    """Wait until the condition holds; what follows an answer in the server takes a moment."""
    pause = threading.Event()
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        pause.wait(0.01)


def open_files():
    return len(os.listdir("/proc/self/fd"))


def read_reply(sock, method="GET"):
    reply = http.client.HTTPResponse(sock, method=method)
    reply.begin()
    body = reply.read()
    return Reply(reply.status, {k.lower(): v for k, v in reply.getheaders()}, body)


class Service:
    """A running rawx, its volume, its client and the events it emitted."""

    def __init__(self, root, **options):
        self.root = root
        self.events = []
        parts = {k: options.pop(k) for k in ("probe", "log", "verbose") if k in options}
        options.setdefault("fsync", False)
        options.setdefault("fsync_dir", False)
        config = RawxConfig(listen="127.0.0.1:0", namespace="NS", docroot=str(root), **options)
        self.rawx = Rawx(config, emit=self._emit, **parts)
        self.rawx.start()
        self.client = Client(self.rawx.address)

    def _emit(self, kind, meta, reqid, whole, when_us):
        assert abs(when_us / 1e6 - time.time()) < 60
        self.events.append((kind, meta, reqid, whole))

    def path(self, chunk_id=CHUNK):
        return self.rawx.volume.path_of(chunk_id)

    def files(self):
        return sorted(name for _, _, names in os.walk(self.root) for name in names)

    def close(self):
        self.rawx.stop(2.0)
