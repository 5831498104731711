# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Which tube each kind of event goes to.

Variables of the namespace name a tube for each kind (``meta2.tube.content_deleted``, ...); by default all
events share one. A tube is opened when the first event comes for it.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from oio.event.queue import DEFAULT_TUBE, EventQueue, EventsRefused, open_queue, split_urls

#: Variable that names the tube of each type of event.
TUBE_VARIABLES = {
    "account.services": "meta1.tube.services",
    "storage.container.new": "meta2.tube.container_new",
    "storage.container.deleted": "meta2.tube.container_deleted",
    "storage.container.state": "meta2.tube.container_state",
    "storage.container.update": "meta2.tube.container_updated",
    "storage.content.new": "meta2.tube.content_created",
    "storage.content.append": "meta2.tube.content_appended",
    "storage.content.deleted": "meta2.tube.content_deleted",
    "storage.content.update": "meta2.tube.content_updated",
    "storage.content.drained": "meta2.tube.content_drained",
    "storage.content.broken": "meta2.tube.content_broken",
    # There is no other one for it (contract: "Well-known tubes").
    "storage.content.perfectible": "meta2.tube.content_broken",
    "storage.meta2.deleted": "meta2.tube.meta2_deleted",
    "storage.chunk.new": "rawx.tube.chunk_created",
    "storage.chunk.deleted": "rawx.tube.chunk_deleted",
}


#: Priority of the jobs of chunk servers (contract: "Events" of the rawx); that of the others is a variable.
CHUNK_EVENTS_PRIORITY = 2**31


def emission_url(url: str, variables: Mapping[str, Any] | Any, priority: int | None = None) -> str:
    """URL of a queue with what variables say of its jobs, unless the URL says it already.

    >>> values = {"events.beanstalkd.prio": 7, "events.beanstalkd.ttr": 120.0, "events.beanstalkd.timeout": 4.0,
    ...           "events.beanstalkd.check_period": 0.0, "events.beanstalkd.check_level_deny": 512000}
    >>> emission_url("beanstalk://h:1;beanstalk://h:2?ttr=60", values)
    'beanstalk://h:1?priority=7&ttr=120&timeout_s=4.0;beanstalk://h:2?ttr=60&priority=7&timeout_s=4.0'
    """
    options = {
        "priority": str(variables["events.beanstalkd.prio"] if priority is None else priority),
        "ttr": str(max(1, int(variables["events.beanstalkd.ttr"]))),
        "timeout_s": str(variables["events.beanstalkd.timeout"]),
    }
    if variables["events.beanstalkd.check_period"] > 0:
        options["max_jobs"] = str(variables["events.beanstalkd.check_level_deny"])
    return ";".join([_with_options(one, options) for one in split_urls(url)])


def _with_options(url: str, options: Mapping[str, str]) -> str:
    if not url.startswith("beanstalk://"):
        return url
    address, _, query = url.partition("?")
    own = [part for part in query.split("&") if part]
    names = {part.partition("=")[0] for part in own}
    return f"{address}?{'&'.join(own + [f'{key}={value}' for key, value in options.items() if key not in names])}"


class EventHead(msgspec.Struct):
    """What is read of an event to know where it goes."""

    event: str = ""


_decode_head = msgspec.json.Decoder(EventHead).decode


class RoutedQueue(EventQueue):
    """A queue of several tubes at one URL.

    :param url: as for :func:`oio.event.queue.open_queue`. :raises ValueError: when it is malformed.
    :param variables: read at each call, so that a change at run time is obeyed.
    :param tube: tube of all that no variable says something about.
    """

    def __init__(
        self, url: str, variables: Mapping[str, Any] | Any, tube: str = DEFAULT_TUBE
    ) -> None:
        self._url = url
        self._variables = variables
        self._tube = tube
        self._lock = threading.Lock()
        self._queues: dict[str, EventQueue] = {tube: open_queue(url, tube)}

    def put_many(
        self, events: Sequence[bytes], timeout_s: float | None = None, keys: Sequence[str] | None = None
    ) -> None:
        """Put events, each in its tube.

        A failure of one tube is that of the call: what the other tubes took may be put again. :raises
        EventsRefused: as for one queue, once all the tubes were tried.
        """
        tubes = {kind: self._variables[name] or self._tube for kind, name in TUBE_VARIABLES.items()}
        if all(tube == self._tube for tube in tubes.values()):
            self._queues[self._tube].put_many(events, timeout_s, keys)
            return
        parts: dict[str, list[int]] = {}
        for index, event in enumerate(events):
            tube = tubes.get(_decode_head(event).event, self._tube)
            parts.setdefault(tube, []).append(index)
        refused: list[bytes] = []
        reasons: list[str] = []
        for tube, indexes in parts.items():
            try:
                self._open(tube).put_many(
                    [events[i] for i in indexes], timeout_s, keys and [keys[i] for i in indexes]
                )
            except EventsRefused as exc:
                refused += exc.events
                reasons.append(str(exc))
        if refused:
            raise EventsRefused("; ".join(reasons), refused)

    def _open(self, tube: str) -> EventQueue:
        with self._lock:
            queue = self._queues.get(tube)
            if queue is None:
                queue = self._queues[tube] = open_queue(self._url, tube)
            return queue

    def depth(self) -> int:
        """Events that wait in all the tubes that were used."""
        with self._lock:
            queues = list(self._queues.values())
        return sum(queue.depth() for queue in queues)

    def close(self) -> None:
        """Close the queues of all the tubes."""
        with self._lock:
            queues = list(self._queues.values())
        for queue in queues:
            queue.close()
