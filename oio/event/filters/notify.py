# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Filter ``notify``: puts a copy of every event in another tube, as compact JSON.

Options: ``queue_url`` (where; by default the one of the agent), ``tube`` (``notif``), ``exclude`` (none): a list
of accounts and containers whose events are not copied, separated by commas, each ``account`` or
``account/container``, percent-encoded. Events that are about no container are always copied.

The tube of the agent is not inherited, and naming it for the queue of the agent is refused: each event would
come back to this filter, for ever.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import unquote, urlsplit

from oio.common.batching import Batcher
from oio.common.exceptions import ConfigurationException
from oio.event.filters.base import Callback, Env, Filter, make_filter_factory
from oio.event.queue import EventQueue, EventsRefused, QueueError, open_queue, split_urls

DEFAULT_TUBE = "notif"


class NotifyFilter(Filter):
    """Copies the event, and goes on."""

    def init(self) -> None:
        """Read the options, and open the queue."""
        url = str(self.conf.get("queue_url") or "")
        if not url:
            raise ConfigurationException("Missing 'queue_url' in the configuration of a notify filter")
        self.queue_url = url
        self.tube = str(self.own_conf.get("tube") or DEFAULT_TUBE)
        self._refuse_loop()
        self.exclude = self._parse_exclude(self.conf.get("exclude"))
        self._batcher: Batcher[bytes, None] = Batcher(self._put_many)
        try:
            self._queue: EventQueue = open_queue(url, self.tube)
        except ValueError as exc:
            raise ConfigurationException(f"queue_url: {exc}") from exc

    def process(self, env: Env, beanstalkd: Any, cb: Callback) -> Any:
        """Handle one event."""
        if self._is_wanted(env):
            # ASCII, no useless blank: the size of a job is limited.
            event = json.dumps(env, separators=(",", ":")).encode("ascii")
            try:
                self._batcher.submit(event)
            except EventsRefused as exc:
                self.bury(f"refused by {self.queue_url}: {exc}")
            except QueueError as exc:
                return self.retry(cb, f"notify {self.tube}: {exc}")
            self.count("notified")
        return self.app(env, beanstalkd, cb)

    def close(self) -> None:
        """Close the queue."""
        self._queue.close()

    def _is_wanted(self, env: Env) -> bool:
        url = env.get("url")
        if not isinstance(url, dict):
            return True
        account, container = url.get("account"), url.get("user")
        return not isinstance(account, str) or self._should_notify(account, container)

    def _should_notify(self, account: Any, container: Any) -> bool:
        excluded = self.exclude.get(account)
        return excluded is None or (bool(excluded) and container not in excluded)

    @staticmethod
    def _parse_exclude(text: str | None) -> dict[str, list[str]]:
        """Excluded containers by account; an empty list is the whole account.

        >>> NotifyFilter._parse_exclude("a,b/x,c/y,c/z")
        {'a': [], 'b': ['x'], 'c': ['y', 'z']}
        """
        exclude: dict[str, list[str]] = {}
        for item in (text or "").split(","):
            account, slash, container = item.strip().partition("/")
            if not account:
                continue
            if slash and container:
                known = exclude.setdefault(unquote(account), [unquote(container)])
                if known and unquote(container) not in known:
                    known.append(unquote(container))
            else:
                exclude[unquote(account)] = []
        return exclude

    def _put_many(self, events: list[bytes]) -> list[BaseException | None]:
        try:
            self._queue.put_many(events)
        except EventsRefused as exc:
            refused = set(exc.events)
            return [exc if event in refused else None for event in events]
        return [None] * len(events)

    def _refuse_loop(self) -> None:
        agent_url = str(self.global_conf.get("queue_url") or "")
        agent_tube = str(self.global_conf.get("tube") or "oio")
        if self.tube == agent_tube and _servers(self.queue_url) & _servers(agent_url):
            raise ConfigurationException(
                f"tube={self.tube}: events would come back to the agent that copies them, for ever"
            )


filter_factory = make_filter_factory(NotifyFilter)


def _servers(url: str) -> set[tuple[str, str, str]]:
    """What makes two URLs of a list the same queue: scheme, address, path."""
    parts = [urlsplit(one) for one in split_urls(url)]
    return {(part.scheme, part.netloc.lower(), part.path.strip("/")) for part in parts}
