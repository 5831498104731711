# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""CPU time and memory of the processes of the cluster, by kind of service."""

from __future__ import annotations

import os
from collections import defaultdict
from typing import NamedTuple

_TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")
_PAGE_MIB = os.sysconf("SC_PAGE_SIZE") / 2**20


class Usage(NamedTuple):
    """CPU seconds used since the process started, and resident memory."""

    cpu_s: float
    rss_mib: float


def children_of(pid: int) -> list[int]:
    """The process and all its descendants."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as listing:
            direct = [int(word) for word in listing.read().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [pid, *(grandchild for child in direct for grandchild in children_of(child))]


def usage_by_kind(pids: dict[str, int]) -> dict[str, Usage]:
    """Sum over the services of each kind.

    :param pids: service name (``NS-rawx-3``) to process id.
    """
    cpu: dict[str, float] = defaultdict(float)
    rss: dict[str, float] = defaultdict(float)
    for service, pid in pids.items():
        kind = kind_of(service)
        for member in children_of(pid):
            try:
                with open(f"/proc/{member}/stat", encoding="ascii") as stat:
                    fields = stat.read().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            cpu[kind] += (int(fields[11]) + int(fields[12])) * _TICK_S
            rss[kind] += int(fields[21]) * _PAGE_MIB
    return {kind: Usage(cpu[kind], rss[kind]) for kind in cpu}


def kind_of(service: str) -> str:
    """``OPENIO-conscience-agent-1`` → ``conscience-agent``."""
    return service.partition("-")[2].rpartition("-")[0]
