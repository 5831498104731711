# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""What can be done with an event: filters, chained into the pipeline of its type by the handlers file.

    [handler:storage.content.deleted]
    pipeline = content_cleaner

    [filter:content_cleaner]
    use = egg:oio#content_cleaner
    timeout = 4.5

A filter returns when the event needs nothing more from it, durably; it raises :class:`BuryEvent` on one
that can never be handled, and anything else to be called again later with the same event. Deliveries may
repeat.
"""

from __future__ import annotations

import configparser
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from oio.common.exceptions import ConfigurationException

if TYPE_CHECKING:
    from oio.event.retry_store import RetryStore
    from oio.http.client import HttpPool

Event = dict[str, Any]

# What is done when no handlers file is configured.
DEFAULT_PIPELINES = {
    "storage.content.deleted": ["content_cleaner"],
    "storage.content.drained": ["content_cleaner"],
    "storage.container.new": ["account_update"],
    "storage.container.state": ["account_update"],
    "storage.container.deleted": ["account_update"],
    "account.services": ["account_update"],
}


class BuryEvent(Exception):
    """Raised by a filter on an event that no retry can help; it is kept for a person."""


class FilterContext:
    """What filters share: the namespace, its proxy, connections, and the base of what is left to do."""

    def __init__(self, namespace: str, proxy: str, pool: HttpPool, store: RetryStore) -> None:
        self.namespace = namespace
        self.proxy_url = f"http://{proxy}"
        self.pool = pool
        self.store = store
        self.logger = logging.getLogger("oio.event")


class Filter:
    """One step of a pipeline; used by several threads at once."""

    def __init__(self, context: FilterContext, options: dict[str, str]) -> None:
        """:raises ValueError: on a bad option."""
        self.context = context
        self.options = options

    def start(self) -> None:
        """Start background work, if any."""

    def stop(self, grace_s: float) -> None:
        """End background work."""

    def process(self, event: Event) -> None:
        """Handle one event."""

    def metrics(self) -> dict[str, int]:
        """Counters by name."""
        return {}


class LoggerFilter(Filter):
    """Logs every event."""

    def process(self, event: Event) -> None:
        """Handle one event."""
        self.context.logger.info("got event: %s", event)


def builtin_filters() -> dict[str, type[Filter]]:
    """Filters by the name that ``use = egg:oio#name`` gives them."""
    from oio.event.account_update import AccountUpdate
    from oio.event.cleaner import ContentCleaner

    return {
        "account_update": AccountUpdate,
        "content_cleaner": ContentCleaner,
        "logger": LoggerFilter,
        "noop": Filter,
    }


class Pipelines:
    """Filters to run for each type of event; sections used twice give one filter."""

    def __init__(
        self,
        context: FilterContext,
        handlers_path: str | None = None,
        defaults: dict[str, str] | None = None,
    ) -> None:
        """``defaults`` are options for all filters. :raises ConfigurationException: on a wrong file."""
        self._defaults = defaults or {}
        self._classes = builtin_filters()
        self._context = context
        self.filters: dict[str, Filter] = {}
        self.by_type: dict[str, list[Filter]] = {}
        if handlers_path is None:
            options: dict[str, dict[str, str]] = {}
            pipelines = DEFAULT_PIPELINES
        else:
            pipelines, options = _read_handlers(handlers_path)
        for event_type, names in pipelines.items():
            self.by_type[event_type] = [
                self._filter(name, options, handlers_path or "built-in") for name in names
            ]

    def run(self, event: Event) -> bool:
        """Run the pipeline of an event; returns whether there is one."""
        filters = self.by_type.get(event["event"])
        for step in filters or ():
            step.process(event)
        return filters is not None

    def each(self, action: Callable[[Filter], None]) -> None:
        """Apply something to every filter."""
        for step in self.filters.values():
            action(step)

    def _filter(self, name: str, sections: dict[str, dict[str, str]], where: str) -> Filter:
        if name in self.filters:
            return self.filters[name]
        section = sections.get(name, {"use": f"egg:oio#{name}"} if not sections else None)
        if section is None:
            raise ConfigurationException(f"{where}: section [filter:{name}] is missing")
        use = section.get("use", "")
        kind = use.removeprefix("egg:").partition("#")[2]
        if not use.startswith("egg:") or kind not in self._classes:
            known = ", ".join(sorted(self._classes))
            raise ConfigurationException(f"{where}: [filter:{name}] use={use!r} is not one of egg:oio#{known}")
        try:
            self.filters[name] = self._classes[kind](self._context, {**self._defaults, **section})
        except ValueError as exc:
            raise ConfigurationException(f"{where}: [filter:{name}] {exc}") from exc
        return self.filters[name]


def _read_handlers(path: str) -> tuple[dict[str, list[str]], dict[str, dict[str, str]]]:
    parser = configparser.ConfigParser(delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    pipelines, sections = {}, {}
    try:
        with open(path, encoding="utf-8") as stream:
            parser.read_file(stream, path)
        for name in parser.sections():
            kind, _, rest = name.partition(":")
            if kind == "handler":
                pipelines[rest] = parser.get(name, "pipeline", fallback="").split()
            elif kind == "filter":
                sections[rest] = dict(parser.items(name))
    except (OSError, UnicodeDecodeError, configparser.Error) as exc:
        raise ConfigurationException(f"Cannot read {path}: {exc}") from exc
    return pipelines, sections
