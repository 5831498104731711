# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""What a whole cluster is doing, asked from all its services at once, within a deadline.

A service that does not answer costs the others nothing: each question has a thread of its own as long as there
are some, those who failed last time are asked last, and nobody waits beyond the deadline. What was not learned in
time is told as unknown.
"""

from __future__ import annotations

import itertools
import json
import logging
import queue
import re
import threading
import time
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from oio.cli.common.backlog import Backlog, read_backlog
from oio.cli.common.errors import short_error
from oio.common.constants import REQID_HEADER
from oio.common.exceptions import OioException
from oio.http.client import HttpPool
from oio.http.errors import HttpClientError, ProtocolError

if TYPE_CHECKING:
    from oio.conscience.client import ConscienceClient

_log = logging.getLogger("openio.watch")

THREADS = 32
# Asking these in HTTP would only fill their logs.
NO_HTTP = frozenset(("redis", "beanstalkd", "zookeeper"))
WITH_ELECTIONS = frozenset(("meta0", "meta1", "meta2"))
ELECTION_STATES = ("master", "slave", "pending", "failed")
# Requests of those who watch: checks of agents, registrations, this program.
WATCHING = frozenset((
    "info", "stat", "stats", "status", "metrics", "status_GET", "metrics_GET", "local_list_GET",
    "conscience_register_POST", "conscience_list_GET", "conscience_info_GET",
    "forward_stats_GET", "forward_stats_POST", "forward_info_GET",
))  # fmt: skip
_COUNTER = re.compile(r"^oio_\w+_requests_total(?:\{([^}]*)\})? ([0-9.eE+]+)$", re.MULTILINE)
_LABEL = re.compile(r'"([^"]*)"')
_RAWX_COUNTER = re.compile(r"^counter req\.hits\.(\w+) ([0-9]+)$", re.MULTILINE)


@dataclass
class ServiceView:
    """A service as it was last seen. Unknown numbers are None; shares are percentages in use."""

    type: str
    id: str
    addr: str
    up: bool
    score: int
    locked: bool
    location: str
    cpu: float | None = None
    disk: float | None = None
    io: float | None = None
    rate: float | None = None
    elections: dict[str, int] | None = None
    problem: str = ""


@dataclass
class Snapshot:
    """The cluster at one moment."""

    namespace: str
    date: float
    services: list[ServiceView] = field(default_factory=list)
    queues: list[Backlog] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def elections(self) -> dict[str, int]:
        """Bases, or groups of them, by state, added up over the services; all 0 without copies."""
        return {
            state: sum((service.elections or {}).get(state, 0) for service in self.services)
            for state in ELECTION_STATES
        }


class ClusterWatch:
    """Looks at a cluster again and again.

    >>> watch = ClusterWatch("OPENIO", conscience, ["redis://127.0.0.1:6379/1"])      # doctest: +SKIP
    >>> watch.look(time.monotonic() + 2).services[0].score                            # doctest: +SKIP
    100

    :param reqid: id of all the requests.
    """

    def __init__(
        self, namespace: str, conscience: ConscienceClient, queue_urls: Iterable[str], reqid: str | None = None
    ) -> None:
        self._namespace = namespace
        self._reqid = reqid
        self._conscience = conscience
        self._queue_urls = list(queue_urls)
        self._pool = HttpPool(max_idle_per_address=1)
        self._crew = _Crew(THREADS)
        self._lock = threading.Lock()
        self._listed: list[dict[str, Any]] = []
        self._meters: dict[tuple[str, str], _Meter] = {}
        self._backlogs: dict[str, Backlog] = {}
        self._problems: dict[str, str] = {}

    def look(self, deadline: float) -> Snapshot:
        """Ask everybody, until ``deadline`` (monotonic) at most; what the services did since the last look."""
        start = time.monotonic()
        for meter in self._meters.values():
            meter.fresh = False
        for url in self._queue_urls:
            self._crew.start(url, 0, partial(self._look_at_queue, url, deadline))
        self._crew.start("services", 0, partial(self._list, deadline))
        # Services that are not known yet can be asked only once the list is there.
        if not self._listed:
            self._crew.wait(("services",), deadline)
        with self._lock:
            listed = list(self._listed)
        asked: list[Hashable] = ["services", *self._queue_urls]
        for service in listed:
            key = (service["type"], service["addr"])
            meter = self._meters.setdefault(key, _Meter(*key, self._reqid))
            if service["type"] not in NO_HTTP and meter.has_pages:
                self._crew.start(key, meter.failures, partial(meter.read, self._pool, deadline))
                asked.append(key)
        late = self._crew.wait(asked, deadline)
        waited_s = time.monotonic() - start
        with self._lock:
            listed = list(self._listed)
            problems = dict(self._problems)
        if "services" in late:
            problems["services"] = f"The proxy has not answered for {waited_s:.1f} s: the list is an old one"
        for url in self._queue_urls:
            if url in late:
                problems[url] = f"A queue of events has not answered for {waited_s:.1f} s"
        views = [self._view(service, late, waited_s) for service in listed]
        views.sort(key=lambda view: (view.type, _natural(view.id)))
        queues = [self._backlogs[url] for url in self._queue_urls if url in self._backlogs and url not in problems]
        return Snapshot(self._namespace, time.time(), views, queues, list(problems.values()))

    def _list(self, deadline: float) -> None:
        try:
            listed = []
            asked = {"deadline": deadline, "reqid": self._reqid}
            for srv_type in self._conscience.service_types(**asked):
                for service in self._conscience.all_services(srv_type, True, **asked):
                    listed.append({**service, "type": srv_type})
        except OioException as exc:
            with self._lock:
                self._problems["services"] = f"Services cannot be listed: {short_error(exc)}"
            return
        with self._lock:
            self._listed = listed
            self._problems.pop("services", None)

    def _look_at_queue(self, url: str, deadline: float) -> None:
        try:
            backlog = read_backlog(url, timeout_s=max(0.1, deadline - time.monotonic()))
        except (OioException, OSError, ValueError) as exc:
            with self._lock:
                self._problems[url] = str(exc)
            return
        with self._lock:
            self._backlogs[url] = backlog
            self._problems.pop(url, None)

    def _view(self, service: dict[str, Any], late: set[Hashable], waited_s: float) -> ServiceView:
        tags = service.get("tags", {})
        key = (service["type"], service["addr"])
        meter = self._meters.get(key) or _Meter(*key)
        view = ServiceView(
            type=service["type"],
            id=service["id"],
            addr=service["addr"],
            up=bool(tags.get("tag.up", False)),
            score=int(service.get("score", 0)),
            locked=bool(tags.get("tag.lock", False)),
            location=str(tags.get("tag.loc", "")),
            cpu=_used(tags.get("stat.cpu")),
            disk=_used(tags.get("stat.space")),
            io=_used(tags.get("stat.io")),
        )
        if key in late:
            meter.failures += 1
            view.problem = f"no answer in {waited_s:.1f} s"
        elif meter.problem:
            view.problem = meter.problem
        elif meter.fresh:
            view.rate, view.elections = meter.rate, meter.elections
        if view.rate is None and not view.problem:
            view.rate = _number(tags.get("stat.total_reqpersec"))
        return view


class _Meter:
    """Reads the counters of one service. One thread at a time reads it."""

    def __init__(self, srv_type: str, addr: str, reqid: str | None = None) -> None:
        self._type = srv_type
        self._addr = addr
        self._headers = {REQID_HEADER: reqid} if reqid else None
        self._seen: tuple[float, float] | None = None
        self.has_pages = True
        self.fresh = False
        self.failures = 0
        self.problem = ""
        self.rate: float | None = None
        self.elections: dict[str, int] | None = None

    def read(self, pool: HttpPool, deadline: float) -> None:
        """Ask the service; what fails is told in ``problem``."""
        try:
            count = self._count(pool, deadline)
            now = time.monotonic()
            elections = self._ask_elections(pool, deadline) if self._type in WITH_ELECTIONS else None
        except ProtocolError:
            # It speaks something else: it is not asked again.
            self.has_pages = False
            return
        except HttpClientError as exc:
            self.problem, self.failures, self._seen = _shortly(exc), self.failures + 1, None
            return
        self.rate = None
        # Counters that went back are those of a service that was started anew.
        if self._seen and count is not None and count >= self._seen[0]:
            self.rate = (count - self._seen[0]) / max(now - self._seen[1], 1e-3)
        self._seen = None if count is None else (count, now)
        self.elections, self.problem, self.failures, self.fresh = elections, "", 0, True

    def _count(self, pool: HttpPool, deadline: float) -> float | None:
        """Requests so far, those of watchers left out; None when the service does not tell."""
        page = self._page(pool, "/metrics", deadline)
        if page is not None:
            return requests_in(page)
        page = self._page(pool, "/stat", deadline) if self._type == "rawx" else None
        if page is not None:
            return float(sum(int(hits) for kind, hits in _RAWX_COUNTER.findall(page) if kind not in WATCHING))
        return None

    def _ask_elections(self, pool: HttpPool, deadline: float) -> dict[str, int] | None:
        page = self._page(pool, "/status", deadline)
        try:
            elections = json.loads(page or "{}").get("elections") or {}
        except (ValueError, AttributeError):
            return None
        if not elections.get("total"):
            # Without copies there are none.
            return None
        return {state: int(elections.get(state, 0)) for state in ELECTION_STATES}

    def _page(self, pool: HttpPool, path: str, deadline: float) -> str | None:
        response = pool.request("GET", f"http://{self._addr}{path}", self._headers, deadline=deadline)
        return response.data.decode("utf-8", "replace") if response.status == 200 else None


class _Crew:
    """Threads that do what they are told, the urgent first; what still runs at the end is left alone."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._threads = 0
        self._order = itertools.count()
        self._waiting: queue.PriorityQueue[tuple[int, int, Hashable, Callable[[], None]]] = queue.PriorityQueue()
        self._changed = threading.Condition()
        self._busy: set[Hashable] = set()

    def start(self, key: Hashable, priority: int, work: Callable[[], None]) -> None:
        """Have something done, unless the same is still to be done since last time."""
        with self._changed:
            if key in self._busy:
                return
            self._busy.add(key)
            if self._threads < min(self._size, len(self._busy)):
                self._threads += 1
                threading.Thread(target=self._run, daemon=True).start()
        self._waiting.put((priority, next(self._order), key, work))

    def wait(self, keys: Iterable[Hashable], deadline: float) -> set[Hashable]:
        """Wait until all that is done; returns what is not at ``deadline``."""
        wanted = set(keys)
        with self._changed:
            while (late := wanted & self._busy) and (left_s := deadline - time.monotonic()) > 0:
                self._changed.wait(left_s)
            return late

    def _run(self) -> None:
        while True:
            _priority, _number, key, work = self._waiting.get()
            try:
                work()
            except Exception:
                # A defect in one question must not end the thread that others need.
                _log.exception("%s cannot be looked at", key)
            finally:
                with self._changed:
                    self._busy.discard(key)
                    self._changed.notify_all()


def requests_in(page: str) -> float | None:
    """Requests that a page of metrics counts, those of watchers left out; None when it counts none.

    >>> requests_in('oio_rawx_requests_total{kind="put"} 3.0\\noio_rawx_requests_total{kind="info"} 50.0\\n')
    3.0
    """
    found = _COUNTER.findall(page)
    if not found:
        return None
    return sum(float(count) for labels, count in found if not WATCHING.intersection(_LABEL.findall(labels)))


def _used(idle: Any) -> float | None:
    """Percentage in use, of one that is idle or free."""
    number = _number(idle)
    return None if number is None else min(100.0, max(0.0, 100.0 - number))


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _natural(name: str) -> list[Any]:
    """Key to sort names that end with numbers: rawx-2 comes before rawx-10."""
    return [(part.isdigit(), int(part) if part.isdigit() else part) for part in re.split("([0-9]+)", name)]


def _shortly(exc: HttpClientError) -> str:
    """A word or two for a column."""
    words = {
        "ConnectError": "refused", "ConnectTimeout": "no connection", "ReadTimeout": "no answer",
        "WriteTimeout": "no answer", "ConnectionClosed": "closed",
    }  # fmt: skip
    return words.get(type(exc).__name__, type(exc).__name__)
