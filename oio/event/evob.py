# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""An event as an object, the names of the types of events, and answers that a filter may give.

>>> told = []
>>> EventError(body="the disk is full")({}, None, lambda *answer: told.append(answer))
>>> told
[(500, 'the disk is full')]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class EventTypes:
    """Values of the field ``event``."""

    ACCOUNT_SERVICES = "account.services"
    CHUNK_DELETED = "storage.chunk.deleted"
    CHUNK_NEW = "storage.chunk.new"
    CONTAINER_DELETED = "storage.container.deleted"
    CONTAINER_NEW = "storage.container.new"
    CONTAINER_STATE = "storage.container.state"
    CONTAINER_UPDATE = "storage.container.update"
    CONTENT_APPEND = "storage.content.append"
    CONTENT_BROKEN = "storage.content.broken"
    CONTENT_DELETED = "storage.content.deleted"
    CONTENT_DRAINED = "storage.content.drained"
    CONTENT_NEW = "storage.content.new"
    CONTENT_PERFECTIBLE = "storage.content.perfectible"
    CONTENT_REBUILT = "storage.content.rebuilt"
    CONTENT_UPDATE = "storage.content.update"
    META2_DELETED = "storage.meta2.deleted"
    XCUTE_TASKS = "xcute.tasks"

    CONTAINER_EVENTS = (CONTAINER_DELETED, CONTAINER_NEW, CONTAINER_STATE, CONTAINER_UPDATE)
    CONTENT_EVENTS = (
        CONTENT_APPEND, CONTENT_BROKEN, CONTENT_DELETED, CONTENT_NEW, CONTENT_PERFECTIBLE, CONTENT_REBUILT,
        CONTENT_UPDATE,
    )  # fmt: skip


class Event:
    """Fields of an event, None when they are absent.

    >>> event = Event({"event": "storage.chunk.new", "when": 1, "data": {}})
    >>> event.event_type, event.url
    ('storage.chunk.new', None)
    """

    def __init__(self, env: dict[str, Any]) -> None:
        self.env = env

    @property
    def job_id(self) -> str | None:
        """Id of the job that carries the event."""
        return self.env.get("job_id")

    @property
    def event_type(self) -> str | None:
        """One of :class:`EventTypes`."""
        return self.env.get("event")

    @property
    def data(self) -> Any:
        """Payload."""
        return self.env.get("data")

    @property
    def reqid(self) -> str | None:
        """Id of the request that caused the event."""
        return self.env.get("request_id")

    @property
    def url(self) -> dict[str, str] | None:
        """What the event is about: ``ns``, ``account``, ``user``, ``id``, for contents ``path``..., or nothing."""
        return self.env.get("url")

    @property
    def when(self) -> int | None:
        """Microseconds since the epoch."""
        return self.env.get("when")

    def __repr__(self) -> str:
        return f"Event({self.event_type} [{self.reqid}] {self.url})"


class Response:
    """The end of a pipeline, called as a filter is: gives its status and its text to the callback.

    A subclass has another status: 2xx ends the event, 5xx makes it come again later.
    """

    status = 200

    def __init__(self, body: str | None = None, status: int | None = None, event: Event | None = None) -> None:
        self.body = body or ""
        if status is not None:
            self.status = int(status)
        self.event = event

    def __call__(self, env: dict[str, Any], beanstalkd: Any, cb: Callable[..., Any]) -> None:
        if self.event is None:
            self.event = Event(env)
        cb(self.status, self.body)


class EventOk(Response):
    """The event is handled."""


class EventError(Response):
    """The event cannot be handled now."""

    status = 500


def is_success(status: int) -> bool:
    """Is the event handled?"""
    return 200 <= status < 300


def is_error(status: int) -> bool:
    """Has the event to come again?"""
    return 500 <= status < 600
