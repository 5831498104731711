# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Free ports for a local cluster, without collision with other programs nor with other local clusters.

A port is taken when nobody listens on it *and* no other local cluster of the same user has reserved it: a
cluster that is stopped keeps its ports, so that it finds them again. Reservations are files named after the
port, below a directory of the user in the temporary directory; each holds the path of the layout that owns
it, and is void when that layout is gone. All is decided under one file lock.
"""

from __future__ import annotations

import fcntl
import os
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from oio.sandbox.errors import SandboxError

_LAST_PORT = 65535


def is_free(host: str, port: int) -> bool:
    """Can a server listen on this port now?"""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # Connections of a former server that linger in TIME_WAIT do not prevent a server from listening.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def reserve(hosts: Sequence[str], first: int, count: int, owner: str) -> list[int]:
    """Reserve ``count`` ports from ``first`` on, free on every host, for the layout file ``owner``.

    :raises SandboxError: when there are not enough of them.
    """
    found: list[int] = []
    with _locked() as directory:
        for port in range(first, _LAST_PORT + 1):
            if len(found) == count:
                break
            if _owner(directory, port) not in (None, owner):
                continue
            if all(is_free(host, port) for host in set(hosts)):
                found.append(port)
        if len(found) < count:
            raise SandboxError(f"Only {len(found)} free ports from {first} on, {count} are needed")
        for port in found:
            with open(os.path.join(directory, str(port)), "w", encoding="utf-8") as out:
                out.write(owner)
    return found


def release(ports: Sequence[int], owner: str) -> None:
    """Forget the reservations of a layout."""
    with _locked() as directory:
        for port in ports:
            if _owner(directory, port) == owner:
                os.unlink(os.path.join(directory, str(port)))


@contextmanager
def _locked() -> Iterator[str]:
    directory = os.path.join(tempfile.gettempdir(), f"oio-sandbox-{os.getuid()}")
    os.makedirs(directory, mode=0o700, exist_ok=True)
    if os.stat(directory).st_uid != os.getuid():
        raise SandboxError(f"{directory} belongs to somebody else")
    with open(os.path.join(directory, "lock"), "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield directory


def _owner(directory: str, port: int) -> str | None:
    """Layout that reserved this port, ``None`` when there is none or it is gone."""
    path = os.path.join(directory, str(port))
    try:
        with open(path, encoding="utf-8") as stream:
            owner = stream.read()
    except FileNotFoundError:
        return None
    return owner if os.path.exists(owner) else None
