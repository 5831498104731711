# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""How fast is this machine at this moment? Two figures that let results of different moments be compared.

A figure in operations per second means little on a shared machine; divided by one of these, measured in the
same minute, it can be compared.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import time
from pathlib import Path
from threading import Barrier, Thread

MESSAGE_BYTES = 350
FILE_BYTES = 4096
_BATCH = 200


def round_trips_s(duration_s: float = 1.0) -> float:
    """Request/answer pairs per second over one loopback TCP connection between two Python processes."""
    listener = socket.create_server(("127.0.0.1", 0))
    pid = os.fork()
    if pid == 0:
        _echo(listener)
    connection = socket.create_connection(listener.getsockname())
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    message = b"x" * MESSAGE_BYTES
    done, begin = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - begin) < duration_s:
        for _ in range(_BATCH):
            connection.sendall(message)
            connection.recv(4096)
        done += _BATCH
    connection.close()
    listener.close()
    os.waitpid(pid, 0)
    return done / elapsed


def _echo(listener: socket.socket) -> None:
    try:
        peer, _address = listener.accept()
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        message = b"x" * MESSAGE_BYTES
        while peer.recv(4096):
            peer.sendall(message)
    finally:
        os._exit(0)


def durable_files_s(folder: str | Path, duration_s: float = 1.0) -> float:
    """4 KiB files per second, one after the other: create, write, fsync, rename, fsync of the folder."""
    directory = tempfile.mkdtemp(dir=folder)
    data = os.urandom(FILE_BYTES)
    directory_fd = os.open(directory, os.O_RDONLY)
    done, begin = 0, time.perf_counter()
    try:
        while (elapsed := time.perf_counter() - begin) < duration_s:
            path = f"{directory}/{done}"
            fd = os.open(path + ".tmp", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            os.write(fd, data)
            os.fsync(fd)
            os.close(fd)
            os.rename(path + ".tmp", path)
            os.fsync(directory_fd)
            done += 1
    finally:
        os.close(directory_fd)
        shutil.rmtree(directory)
    return done / elapsed


def disk_limit_mib_s(folder: str | Path, data_mib: int, copies: int, overhead: float = 1.0) -> float:
    """User MiB per second that the disk itself takes when ``copies`` files are written at once and synced.

    :param overhead: bytes on disk per user byte and copy (erasure coding: 1/k per fragment).
    """
    directory = tempfile.mkdtemp(dir=folder)
    block = os.urandom(2**20)
    blocks = max(1, round(data_mib * overhead))
    barrier = Barrier(copies + 1)

    def write(number: int) -> None:
        barrier.wait()
        fd = os.open(f"{directory}/{number}", os.O_CREAT | os.O_WRONLY)
        for _ in range(blocks):
            os.write(fd, block)
        os.fsync(fd)
        os.close(fd)

    threads = [Thread(target=write, args=(number,)) for number in range(copies)]
    for thread in threads:
        thread.start()
    barrier.wait()
    begin = time.perf_counter()
    for thread in threads:
        thread.join()
    elapsed = time.perf_counter() - begin
    shutil.rmtree(directory)
    return data_mib / elapsed
