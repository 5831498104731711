# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""What every filter of the event agent is made of.

A filter is one step of the pipeline of a type of event. The agent builds it with the next step and its options,
and calls it with an event, the queue the event came from, and a callback::

    from oio.event.filters.base import Filter, make_filter_factory

    class CountObjects(Filter):
        def init(self):
            self.seen = 0

        def process(self, env, beanstalkd, cb):
            self.seen += 1
            return self.app(env, beanstalkd, cb)

    filter_factory = make_filter_factory(CountObjects)

A step ends in one of four ways, and each tells the agent what becomes of the event:

- it calls the next step, ``self.app(env, beanstalkd, cb)``: it is done, durably (the last step answers 200);
- :meth:`Filter.retry`: time can heal what failed (a service is down, or slow); the event comes again later;
- :meth:`Filter.bury`: nothing but a person can help (the event makes no sense); it is kept aside;
- it raises something else: a defect; the agent decides.

Deliveries may repeat and may come in any order: every filter must be idempotent and order-tolerant. One object is
used by many green threads at once.
"""

from __future__ import annotations

import logging
import math
import re
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from logging import Logger
from typing import Any, NoReturn

from oio.common.constants import STRLEN_REQID
from oio.common.exceptions import ConfigurationException, ExplicitBury
from oio.common.utils import request_id

# An event: the decoded JSON object, and the ``job_id`` that the agent added.
Env = dict[str, Any]
# ``cb(status, message, delay_s=None)``: 2xx = done, 5xx = deliver again later.
Callback = Callable[..., Any]
# The next step of a pipeline; its attribute ``app_env`` holds what the steps of a process share.
Application = Callable[[Env, Any, Callback], Any]

STATUS_RETRY = 503
# No date in microseconds is as large: it fits in 64 bits.
_WHEN_END = 2.0**63
# What a header can hold, and no service cuts in two.
_REQUEST_ID = re.compile(r"[\x21-\x7e]+")
# What a rawx writes for a request without id.
_NO_REQUEST_ID = "-"


class Filter:
    """One step of a pipeline; by itself, it only calls the next one.

    :ivar app: the next step.
    :ivar app_env: what the filters of a process share: ``account_client``, ``rdir_client``, ``pool``, ``logger``…
    :ivar conf: the options: those of the agent, overridden by those of the section of the filter.
    :ivar own_conf: the options of the section of the filter alone.
    :ivar global_conf: the options of the agent alone.
    :ivar counts: events by outcome, and whatever else the filter counts; shown by the metrics of the agent.
    """

    def __init__(
        self,
        app: Application,
        conf: Mapping[str, Any],
        logger: Logger | None = None,
        own_conf: Mapping[str, Any] | None = None,
        global_conf: Mapping[str, Any] | None = None,
    ) -> None:
        """:raises ConfigurationException: when an option is wrong."""
        self.app = app
        self.app_env: dict[str, Any] = getattr(app, "app_env", None) or {}
        self.conf = dict(conf)
        self.own_conf = dict(conf if own_conf is None else own_conf)
        self.global_conf = dict(global_conf or {})
        self.logger = logger or self.app_env.get("logger") or logging.getLogger("oio.event")
        self.counts: Counter[str] = Counter()
        self._counts_lock = threading.Lock()
        self.init()

    def init(self) -> None:
        """Read the options; called once, at the end of the construction."""

    def process(self, env: Env, beanstalkd: Any, cb: Callback) -> Any:
        """Handle one event, then call the next step or answer."""
        return self.app(env, beanstalkd, cb)

    def __call__(self, env: Env, beanstalkd: Any, cb: Callback) -> Any:
        return self.process(env, beanstalkd, cb)

    def close(self) -> None:
        """Release what :meth:`init` opened; idempotent."""

    def retry(self, cb: Callback, message: str, delay_s: float | None = None) -> Any:
        """Ask for the event to be delivered again, later.

        :param delay_s: how much later; else the agent waits longer and longer.
        """
        self.count("retries")
        if delay_s is None:
            return cb(STATUS_RETRY, message)
        return cb(STATUS_RETRY, message, delay_s)

    def bury(self, message: str) -> NoReturn:
        """Put the event aside, for a person. :raises ExplicitBury: always."""
        self.count("buried")
        self.logger.warning("event buried: %s", message)
        raise ExplicitBury(message)

    def when_of(self, env: Env) -> int:
        """Date of an event, in microseconds. :raises ExplicitBury: when it has none."""
        when = env.get("when")
        if not isinstance(when, (int, float)) or isinstance(when, bool) or not 0 <= when < _WHEN_END:
            self.bury(f"{env.get('event')} without date: {when!r}")
        return int(when)

    @staticmethod
    def reqid_of(env: Env, prefix: str) -> str:
        """Request id for what an event makes its filter ask: that of the event, else a fresh one.

        The one of an event that no header can hold says nothing against the event, nor against who is asked.
        """
        given = env.get("request_id")
        if isinstance(given, str) and given != _NO_REQUEST_ID and _REQUEST_ID.fullmatch(given):
            return given[:STRLEN_REQID]
        return request_id(prefix)

    def float_option(self, name: str, default: float, minimum: float = 0.0) -> float:
        """Value of an option that is a number. :raises ConfigurationException: when it is not."""
        return self._number(name, self.conf.get(name), default, minimum)

    def timeouts(self, connection_s: float, read_s: float) -> dict[str, float]:
        """Keywords of requests, out of the options ``connection_timeout`` and ``read_timeout``.

        :raises ConfigurationException: when one of them is not a number.
        """
        return {
            "connection_timeout": self.float_option("connection_timeout", connection_s),
            "read_timeout": self.float_option("read_timeout", read_s),
        }

    def int_option(self, name: str, default: int, minimum: int = 0, own: bool = False) -> int:
        """Value of an option that is an integer. :raises ConfigurationException: when it is not.

        :param own: do not take the option of the agent that has the same name.
        """
        given = (self.own_conf if own else self.conf).get(name)
        value = self._number(name, given, default, minimum)
        if value != int(value):
            raise ConfigurationException(f"{name}={given!r} is not an integer")
        return int(value)

    @staticmethod
    def _number(name: str, given: Any, default: float, minimum: float) -> float:
        if given in (None, "", "None"):
            return default
        try:
            value = float(given)
        except ValueError:
            value = math.nan
        if not minimum <= value < math.inf:
            raise ConfigurationException(f"{name}={given!r} is not a number of at least {minimum:g}")
        return value

    def count(self, name: str, more: int = 1) -> None:
        """Add to a counter."""
        with self._counts_lock:
            self.counts[name] += more


FilterFactory = Callable[..., Callable[[Application], Filter]]


def make_filter_factory(filter_class: type[Filter]) -> FilterFactory:
    """The ``filter_factory`` of a module: what an entry point of ``oio.event.filter_factory`` names.

    It takes the options of the agent as a mapping, those of the section as keywords, and returns what builds the
    filter from the next step.
    """

    def filter_factory(global_conf: Mapping[str, Any], **local_conf: Any) -> Callable[[Application], Filter]:
        conf = {**global_conf, **local_conf}

        def build(app: Application) -> Filter:
            return filter_class(app, conf, own_conf=local_conf, global_conf=global_conf)

        return build

    return filter_factory
