# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""What one client process does: a timed loop over one operation of the public API."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

ACCOUNT = "benchmark"
SMALL_BYTES = 4096
LARGE_BYTES = 100 * 2**20
LISTED_OBJECTS = 10_000


@dataclass
class Task:
    """Work of one client: what, with which policy, for how long, on which objects."""

    test: str
    namespace: str
    policy: str
    client: int
    run: str
    duration_s: float
    names: list[str] = field(default_factory=list)


@dataclass
class Outcome:
    """What one client did: when, how long each operation took, and the objects that exist now."""

    begin: float
    end: float
    latencies_s: list[float]
    operations: int
    cpu_s: float
    names: list[str]
    peak_rss_mib: float


# A client starts within seconds, also on a busy machine.
_SETUP_TIMEOUT_S = 600.0


def client_main(task: Task, barrier: Any, pipe: Any) -> None:
    """Body of a client process: perform the task, send the outcome, or the traceback of what went wrong."""
    try:
        pipe.send(perform(task, lambda: barrier.wait(_SETUP_TIMEOUT_S)))
    except Exception:
        barrier.abort()
        pipe.send(traceback.format_exc())


def container_of(task: Task) -> str:
    """Each client has a container of its own for each policy."""
    return f"{task.run}-{task.policy}-{task.client}".lower()


def perform(task: Task, wait: Callable[[], Any]) -> Outcome:
    """Warm the connections, wait for the other clients, then run the loop."""
    from oio import ObjectStorageApi

    api = ObjectStorageApi(task.namespace)
    container = container_of(task)
    api.container_create(ACCOUNT, container)
    names = list(task.names)
    operation = _OPERATIONS[task.test](api, container, task, names)
    next(operation)
    wait()
    latencies: list[float] = []
    cpu_begin, begin = time.process_time(), time.perf_counter()
    stop_at = begin + task.duration_s
    before = begin
    for _ in operation:
        now = time.perf_counter()
        latencies.append(now - before)
        before = now
        if now >= stop_at:
            break
    end = time.perf_counter()
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return Outcome(begin, end, latencies, len(latencies), time.process_time() - cpu_begin, names, peak)


def _create(size_bytes: int) -> Callable[..., Iterator[None]]:
    def operation(api: Any, container: str, task: Task, names: list[str]) -> Iterator[None]:
        data = os.urandom(size_bytes)
        api.object_create(ACCOUNT, container, data=b"warm", obj_name="warm", policy=task.policy)
        yield
        for number in range(10**9):
            name = f"{task.test}-{number:08d}"
            api.object_create(ACCOUNT, container, data=data, obj_name=name, policy=task.policy)
            names.append(name)
            yield

    return operation


def _fetch(api: Any, container: str, task: Task, names: list[str]) -> Iterator[None]:
    expected = SMALL_BYTES if task.test.endswith("4k") else LARGE_BYTES
    yield
    while True:
        for name in names:
            _meta, stream = api.object_fetch(ACCOUNT, container, name)
            size = sum(map(len, stream))
            if size != expected:
                raise AssertionError(f"{name}: {size} bytes instead of {expected}")
            yield


def _delete(api: Any, container: str, task: Task, names: list[str]) -> Iterator[None]:
    yield
    while names:
        api.object_delete(ACCOUNT, container, names.pop())
        yield


def _fill_once(api: Any, container: str, task: Task, names: list[str]) -> Iterator[None]:
    yield
    _fill(api, container, task)
    yield


def _list(api: Any, container: str, task: Task, names: list[str]) -> Iterator[None]:
    yield
    while True:
        page = api.object_list(ACCOUNT, container, limit=LISTED_OBJECTS, prefix="listed-")
        if len(page["objects"]) != LISTED_OBJECTS:
            raise AssertionError(f"{len(page['objects'])} objects listed instead of {LISTED_OBJECTS}")
        yield


def _fill(api: Any, container: str, task: Task) -> None:
    """Declare objects without uploading anything: a listing does not look at the chunks."""
    meta, chunks = api.container.content_prepare(ACCOUNT, container, "listed", size=1, stgpol=task.policy)
    for chunk in chunks:
        chunk["size"] = 1
    for number in range(LISTED_OBJECTS):
        for chunk in chunks:
            chunk["url"] = chunk["url"][:-8] + f"{number:08X}"
        api.container.content_create(
            ACCOUNT, container, f"listed-{number:08d}", size=1, checksum=meta.get("hash") or "00" * 16,
            data={"chunks": chunks, "properties": {}}, content_id=os.urandom(16).hex().upper(),
            stgpol=meta["policy"], version=meta["version"], mime_type="application/octet-stream",
            chunk_method=meta["chunk_method"],
        )


_OPERATIONS: dict[str, Callable[..., Iterator[None]]] = {
    "create_4k": _create(SMALL_BYTES),
    "fetch_4k": _fetch,
    "delete_4k": _delete,
    "create_100m": _create(LARGE_BYTES),
    "fetch_100m": _fetch,
    "fill_10k": _fill_once,
    "list_10k": _list,
}
