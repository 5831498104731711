# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Tells of a process of this host, by a name that it left somewhere, whether it is dead.

A number alone does not name a process: numbers are used again, and each container has its own. A mark holds the
boot of the host, the space of process numbers, the number and the date of birth. "Dead" is only said of what
cannot be alive; of other hosts, other containers and former boots nothing is known.

>>> is_dead(mark())
False
>>> is_dead("anything else")
False
"""

from __future__ import annotations

import os
import socket

_BOOT_PATH = "/proc/sys/kernel/random/boot_id"
_NUMBERS_PATH = "/proc/self/ns/pid"
# Fields of /proc/PID/stat behind the name of the program: state, and birth in ticks since boot.
_STATE, _BIRTH = 0, 19


def mark() -> str | None:
    """``HOST/BOOT/SPACE/PID/BIRTH`` of the caller (the host is for people); None when /proc does not tell."""
    try:
        birth = _stat(os.getpid())[_BIRTH]
        return "/".join((socket.gethostname().replace("/", ""), _boot(), _space(), str(os.getpid()), birth))
    except (OSError, IndexError):
        return None


def is_dead(text: str) -> bool:
    """Whether the process that has, or had, this mark is known to be dead; text behind the mark does no harm."""
    parts = text.split("/")
    try:
        _, boot, space, pid, birth = parts[:5]
        if boot != _boot() or space != _space():
            return False
        try:
            stat = _stat(int(pid))
        except FileNotFoundError:
            return not _answers(int(pid))  # /proc may be told to hide the processes of others
        return stat[_BIRTH] != birth or stat[_STATE] in ("Z", "X")
    except (OSError, IndexError, ValueError):
        return False


def _boot() -> str:
    with open(_BOOT_PATH, encoding="ascii") as stream:
        return stream.read().strip()


def _space() -> str:
    return str(os.stat(_NUMBERS_PATH).st_ino)


def _stat(pid: int) -> list[str]:
    with open(f"/proc/{pid}/stat", "rb") as stream:
        # The name of the program, in parentheses, may hold anything.
        return stream.read().rpartition(b")")[2].decode("ascii").split()


def _answers(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
