# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Listing many containers as one: several at once, results in the order of the containers.

What the account service tells of containers follows them after a short while, and so does this listing.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from oio.common.exceptions import OioException

Item = dict[str, Any]
# Blocks of objects, then an error or None.
Blocks = queue.Queue[list[Item] | BaseException | None]

# Objects handed over at once, and blocks of a container that wait.
BLOCK_ITEMS = 1000
BLOCKS_AHEAD = 2
# A container that waits looks that often whether it still has to.
STOP_LATENCY_S = 0.2


def list_containers(
    containers: Iterable[str],
    list_one: Callable[[str], Iterable[Item]],
    on_failure: Callable[[str, OioException], None],
    concurrency: int,
) -> Iterator[Item]:
    """Yield the objects of containers, in order; what was listed before a failure is yielded too.

    A container waits when it is far ahead of what is yielded: a few blocks of each are held in memory.

    :param list_one: yields the objects of a container, page after page; called in other threads.
    :param on_failure: told of each container whose listing failed; the next ones follow.
    :param concurrency: containers listed at once.
    """
    stopped = threading.Event()

    def collect(container: str, blocks: Blocks) -> None:
        end: BaseException | None = None
        block: list[Item] = []
        try:
            for item in list_one(container):
                block.append(item)
                if len(block) >= BLOCK_ITEMS:
                    if not _put(blocks, block, stopped):
                        return
                    block = []
        except BaseException as exc:
            # Told by whoever waits for the end of the listing.
            end = exc
        if block:
            _put(blocks, block, stopped)
        _put(blocks, end, stopped)

    def finished(container: str, blocks: Blocks) -> Iterator[Item]:
        while (block := blocks.get()) is not None:
            if isinstance(block, OioException):
                on_failure(container, block)
                return
            if isinstance(block, BaseException):
                raise block
            yield from block

    pool = ThreadPoolExecutor(concurrency)
    pending: deque[tuple[str, Blocks]] = deque()
    try:
        for container in containers:
            blocks: Blocks = queue.Queue(BLOCKS_AHEAD)
            pool.submit(collect, container, blocks)
            pending.append((container, blocks))
            if len(pending) >= concurrency:
                yield from finished(*pending.popleft())
        while pending:
            yield from finished(*pending.popleft())
    finally:
        # Whoever has enough stops iterating: the listings under way end at their next block.
        stopped.set()
        pool.shutdown(wait=True, cancel_futures=True)


def _put(blocks: Blocks, block: list[Item] | BaseException | None, stopped: threading.Event) -> bool:
    """Hand a block over. :returns: False when nobody wants it any more."""
    while not stopped.is_set():
        try:
            blocks.put(block, timeout=STOP_LATENCY_S)
            return True
        except queue.Full:
            continue
    return False
