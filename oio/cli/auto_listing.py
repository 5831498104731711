# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Listing many containers as one: several at once, results in the order of the containers.

What the account service tells of containers follows them after a short while, and so does this listing.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from oio.common.exceptions import OioException

Item = dict[str, Any]


def list_containers(
    containers: Iterable[str],
    list_one: Callable[[str], Iterable[Item]],
    on_failure: Callable[[str, OioException], None],
    concurrency: int,
) -> Iterator[Item]:
    """Yield the objects of containers, in order; what was listed before a failure is yielded too.

    :param list_one: yields the objects of a container, page after page; called in other threads.
    :param on_failure: told of each container whose listing failed; the next ones follow.
    :param concurrency: containers listed at once, hence listings held in memory.
    """
    stopped = threading.Event()

    def collect(container: str) -> tuple[list[Item], OioException | None]:
        items: list[Item] = []
        try:
            for item in list_one(container):
                if stopped.is_set():
                    break
                items.append(item)
        except OioException as exc:
            return items, exc
        return items, None

    def finished(container: str, future: Future[Any]) -> Iterator[Item]:
        items, exc = future.result()
        yield from items
        if exc is not None:
            on_failure(container, exc)

    pool = ThreadPoolExecutor(concurrency)
    pending: deque[tuple[str, Future[Any]]] = deque()
    try:
        for container in containers:
            pending.append((container, pool.submit(collect, container)))
            if len(pending) >= concurrency:
                yield from finished(*pending.popleft())
        while pending:
            yield from finished(*pending.popleft())
    finally:
        # Whoever has enough stops iterating: the listings under way end at their next object.
        stopped.set()
        pool.shutdown(wait=True, cancel_futures=True)
