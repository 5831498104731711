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
from contextlib import contextmanager, suppress

from oio.sandbox.errors import SandboxError

_LAST_PORT = 65535
_LOCK = "lock"


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

    :raises SandboxError: when there are not enough of them, or a host is not this machine.
    """
    for host in set(hosts):
        if not is_free(host, 0):
            raise SandboxError(f"{host} is no address of this machine to listen on")
    found: list[int] = []
    with _locked() as directory:
        _sweep(directory)
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
            with open(os.path.join(directory, str(port)), "wb") as out:
                out.write(os.fsencode(owner))
    return found


def release(ports: Sequence[int], owner: str) -> None:
    """Forget the reservations of a layout."""
    with _locked() as directory:
        for port in ports:
            if _owner(directory, port) == owner:
                os.unlink(os.path.join(directory, str(port)))
        _sweep(directory)
        if os.listdir(directory) == [_LOCK]:
            os.unlink(os.path.join(directory, _LOCK))
            with suppress(OSError):  # somebody has just made another lock in it
                os.rmdir(directory)


@contextmanager
def _locked() -> Iterator[str]:
    directory = os.path.join(tempfile.gettempdir(), f"oio-sandbox-{os.getuid()}")
    while True:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        if os.stat(directory).st_uid != os.getuid():
            raise SandboxError(f"{directory} belongs to somebody else")
        try:
            lock = open(os.path.join(directory, _LOCK), "w", encoding="ascii")  # noqa: SIM115
        except FileNotFoundError:
            continue  # the last reservation has just gone, and the directory with it
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # The former holder may have removed the file: this lock would then exclude nobody.
            if os.fstat(lock.fileno()).st_nlink:
                yield directory
                return


def _sweep(directory: str) -> None:
    """Remove the reservations of layouts that are gone."""
    for name in os.listdir(directory):
        if name.isdigit() and _owner(directory, int(name)) is None:
            os.unlink(os.path.join(directory, name))


def _owner(directory: str, port: int) -> str | None:
    """Layout that reserved this port, ``None`` when there is none or it is gone."""
    path = os.path.join(directory, str(port))
    try:
        with open(path, "rb") as stream:
            owner = os.fsdecode(stream.read())
    except FileNotFoundError:
        return None
    return owner if os.path.exists(owner) else None
