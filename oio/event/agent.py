# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""``oio-event-agent``: consumes the spools of the services of this host.

Every spool below the directory of ``queue_url`` is read; spools that appear are found within a second. An event
is acknowledged when its pipeline is done with it, which is durable: what could not be done is in the retry base
(see :mod:`oio.event.retry_store`). An event whose pipeline failed is kept there too and handled again later, so
that a consumer that is down holds only its own events. An event without pipeline is counted and acknowledged;
one that cannot be understood is buried in that base. After a crash, the events of the last second are delivered
again.
"""

from __future__ import annotations

import configparser
import contextlib
import heapq
import itertools
import logging
import os
import queue
import random
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import urlsplit

import msgspec

from oio.common import service
from oio.common.configuration import load_namespace_conf
from oio.common.exceptions import OioException
from oio.event.filters import BuryEvent, Event, FilterContext, Pipelines
from oio.event.retry_store import PostponedEvent, RetryStore, StoreError
from oio.event.spool_reader import Delivery, SpoolReader, find_spools
from oio.http.client import HttpPool
from oio.http.router import Router
from oio.http.server import Request, Response, Server

SECTION = "event-agent"
CONCURRENCY_DEFAULT = 10
# Events reserved per thread: enough to keep it busy, few enough to be delivered again after a crash.
RESERVED_PER_THREAD = 8
# A spool gets at most this many turns before the next one is looked at.
RESERVE_AT_ONCE = 16
SCAN_PERIOD_S = 1.0
SAVE_PERIOD_S = 1.0
IDLE_PAUSE_MIN_S = 0.02
IDLE_PAUSE_MAX_S = 0.25
# An event whose pipeline failed is tried again after this long (contract: 15 s), then less and less often.
RETRY_DELAY_S = 15.0
RETRY_DELAY_MAX_S = 600.0
# The same complaint is made again after this long.
COMPLAINT_PERIOD_S = 60.0
# The agent works behind the services that answer to somebody.
NICENESS = 10

_decode_event = msgspec.json.Decoder(dict).decode
_KEYS = {
    "namespace", "queue_url", "concurrency", "handlers_conf", "state_dir", "listen", "proxy", "delay_s",
    "user", "tube", "workers", "acct_refresh_interval", "log_level", "log_facility", "log_address",
    "syslog_prefix",
}  # fmt: skip


@dataclass(frozen=True)
class EventAgentSettings:
    """The configuration file; see ``etc/event-agent.conf-sample``."""

    namespace: str
    spool_dir: str
    state_dir: str
    proxy: str | None = None
    concurrency: int = CONCURRENCY_DEFAULT
    handlers_conf: str | None = None
    delay_s: float = 0.0
    listen: tuple[str, int] | None = None
    log_level: str = "INFO"
    syslog_prefix: str | None = None


def load_event_agent_settings(path: str) -> EventAgentSettings:
    """Read the configuration file. :raises ValueError: on a mistake."""
    parser = configparser.ConfigParser(interpolation=None)
    try:
        with open(path, encoding="utf-8") as stream:
            parser.read_file(stream, path)
    except (OSError, UnicodeDecodeError, configparser.Error) as exc:
        raise ValueError(f"cannot read {path}: {exc}") from exc
    if not parser.has_section(SECTION):
        raise ValueError(f"{path}: section [{SECTION}] is missing")
    options = dict(parser.items(SECTION))
    unknown = options.keys() - _KEYS
    if unknown:
        raise ValueError(f"{path}: unknown key {', '.join(sorted(unknown))}")
    for key in ("namespace", "queue_url"):
        if not options.get(key):
            raise ValueError(f"{path}: key {key} is missing")
    url = urlsplit(options["queue_url"])
    if url.scheme != "spool" or url.netloc or not url.path.startswith("/"):
        raise ValueError(f"{path}: queue_url must be spool:///absolute/directory")
    listen = service.parse_address(options["listen"]) if options.get("listen") else None
    return EventAgentSettings(
        namespace=options["namespace"],
        spool_dir=url.path,
        state_dir=options.get("state_dir") or os.path.join(url.path, ".event-agent"),
        proxy=options.get("proxy") or None,
        concurrency=max(1, int(options.get("concurrency", CONCURRENCY_DEFAULT))),
        handlers_conf=options.get("handlers_conf") or None,
        delay_s=float(options.get("delay_s", 0)),
        listen=listen,
        log_level=options.get("log_level", "INFO").upper(),
        syslog_prefix=options.get("syslog_prefix") or None,
    )


class EventAgent:
    """Reads spools, runs pipelines; ``start`` and ``stop`` suit ``run_until_stopped``."""

    def __init__(self, settings: EventAgentSettings, proxy: str, logger: logging.Logger) -> None:
        """:raises StoreError, ConfigurationException: when the state or the handlers cannot be used."""
        self._settings = settings
        self._logger = logger
        self._pool = HttpPool(max_idle_per_address=settings.concurrency + 1)
        self.store = RetryStore(os.path.join(settings.state_dir, "retry.db"))
        context = FilterContext(settings.namespace, proxy, self._pool, self.store)
        self._pipelines = Pipelines(context, settings.handlers_conf, {"delay": str(settings.delay_s)})
        self._readers: dict[str, SpoolReader] = {}
        self._work: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._count_lock = threading.Lock()
        self._active = 0
        self._counts: Counter[tuple[str, str]] = Counter()
        # Only what could not even be written to the retry base waits in memory, unacknowledged.
        self._delayed: list[tuple[float, int, _Item]] = []
        self._postponed_running: set[int] = set()
        self._complaints: dict[str, float] = {}
        self._order = itertools.count()
        self._stopping = threading.Event()
        self._dispatcher = threading.Thread(target=self._dispatch, name="dispatcher", daemon=True)
        self._threads = [
            threading.Thread(target=self._consume, name=f"consumer-{n}", daemon=True)
            for n in range(settings.concurrency)
        ]

    def start(self) -> None:
        """Begin to consume."""
        self._pipelines.each(lambda step: step.start())
        for thread in (*self._threads, self._dispatcher):
            thread.start()

    def stop(self, grace_s: float = 10.0) -> None:
        """Finish the running events, save the positions; what is only reserved is delivered next time."""
        deadline = time.monotonic() + grace_s
        self._stopping.set()
        for _ in self._threads:
            self._work.put(None)
        for thread in (self._dispatcher, *self._threads):
            thread.join(max(0.1, deadline - time.monotonic()))
        self._pipelines.each(lambda step: step.stop(max(0.1, deadline - time.monotonic())))
        for reader in self._readers.values():
            try:
                reader.close()
            except OSError as exc:
                self._logger.error("cannot save the position of %s: %s", reader.directory, exc)
        self.store.close()
        self._pool.close()

    def counts(self) -> dict[tuple[str, str], int]:
        """``{(event type, outcome): events}``."""
        with self._count_lock:
            return dict(self._counts)

    def metrics(self, request: Request) -> Response:
        """Counters for Prometheus."""
        from oio.common.metrics import CONTENT_TYPE, Metric, render

        stored = self.store.counts()
        families = [
            Metric(
                "event_agent_events", "counter", "Events by type and outcome",
                [({"type": kind, "outcome": out}, count) for (kind, out), count in self.counts().items()],
            ),
            Metric(
                "event_agent_filter", "counter", "Counters of the filters",
                [
                    ({"filter": name, "counter": counter}, count)
                    for name, step in self._pipelines.filters.items()
                    for counter, count in step.metrics().items()
                ],
            ),
            Metric(
                "event_agent_stored", "gauge", "Chunks to delete later, and buried events",
                [({"kind": kind}, count) for kind, count in stored.items()],
            ),
            Metric(
                "event_agent_skipped_bytes", "counter", "Bytes of spools that were no records",
                [
                    ({"spool": os.path.basename(path)}, reader.skipped_bytes)
                    for path, reader in list(self._readers.items())
                ],
            ),
        ]  # fmt: skip
        return Response(200, render(families), [("Content-Type", CONTENT_TYPE)])

    # --- dispatcher thread: the only one that touches the table of readers ----------------------

    def _dispatch(self) -> None:
        scan_s = save_s = 0.0
        pause_s = IDLE_PAUSE_MIN_S
        while not self._stopping.is_set():
            try:
                now = time.monotonic()
                if now >= scan_s:
                    scan_s = now + SCAN_PERIOD_S
                    self._find_spools()
                found = self._reserve(now)
                if now >= save_s:
                    save_s = now + SAVE_PERIOD_S
                    self._save()
                    self._take_postponed()
            except Exception:
                # Nothing is acknowledged by a defect here, so trying again is right.
                self._logger.exception("reading the spools")
                found = False
            pause_s = IDLE_PAUSE_MIN_S if found else min(IDLE_PAUSE_MAX_S, pause_s * 2)
            if not found or self._room() <= 0:
                self._stopping.wait(pause_s)

    def _find_spools(self) -> None:
        for directory in find_spools(self._settings.spool_dir):
            if directory not in self._readers:
                try:
                    self._readers[directory] = SpoolReader(directory)
                    self._logger.info("reading the spool %s", directory)
                except OSError as exc:
                    self._logger.error("cannot read the spool %s: %s", directory, exc)

    def _reserve(self, now: float) -> bool:
        """Give work to the consumers, in turn from each spool; returns whether there was some."""
        found = False
        while self._delayed and self._delayed[0][0] <= now:
            self._submit(heapq.heappop(self._delayed)[2])
            found = True
        for reader in list(self._readers.values()):
            room = min(RESERVE_AT_ONCE, self._room())
            if room <= 0:
                return found
            try:
                deliveries = reader.reserve(room)
            except OSError as exc:
                self._leave(reader, exc)
                continue
            for delivery in deliveries:
                self._submit(_Item(delivery.payload, reader, delivery, None))
                found = True
        return found

    def _take_postponed(self) -> None:
        """Handle postponed events again, with half of the room at most."""
        running = set(self._postponed_running)
        limit = self._settings.concurrency * RESERVED_PER_THREAD // 2 - len(running)
        if limit <= 0:
            return
        for postponed in self.store.postponed_due(time.time(), limit + len(running)):
            # An event that ends just now may be seen as due although it is done: handling it twice is harmless.
            if postponed.id not in running:
                self._postponed_running.add(postponed.id)
                self._submit(_Item(postponed.event, None, None, postponed))

    def _save(self) -> None:
        for reader in list(self._readers.values()):
            try:
                reader.save()
            except OSError as exc:
                self._leave(reader, exc)

    def _leave(self, reader: SpoolReader, reason: OSError) -> None:
        """Leave a spool that fails to the next scan, which opens it again if it still exists."""
        self._logger.error("cannot read the spool %s: %s", reader.directory, reason)
        self._readers.pop(reader.directory, None)
        with contextlib.suppress(OSError):
            reader.close()

    def _room(self) -> int:
        limit = self._settings.concurrency * RESERVED_PER_THREAD
        with self._count_lock:
            return limit - self._active - len(self._delayed)

    def _submit(self, item: _Item) -> None:
        with self._count_lock:
            self._active += 1
        self._work.put(item)

    # --- consumer threads -------------------------------------------------------------------------

    def _consume(self) -> None:
        while True:
            item = self._work.get()
            if item is None or self._stopping.is_set():
                return
            kind, outcome = self._handle(item.payload)
            try:
                self._settle(item, outcome)
            except StoreError as exc:
                self._complain("kept in memory", kind, exc)
                with self._count_lock:
                    when = time.monotonic() + RETRY_DELAY_S
                    heapq.heappush(self._delayed, (when, next(self._order), item))
            with self._count_lock:
                self._active -= 1
                self._counts[kind, outcome] += 1

    def _settle(self, item: _Item, outcome: str) -> None:
        """Acknowledge an event where it came from. :raises StoreError: when that cannot be made durable."""
        if item.postponed is None:
            if outcome == "retry":
                self.store.postpone(item.payload, time.time() + RETRY_DELAY_S)
            if item.reader is not None and item.delivery is not None:
                item.reader.ack(item.delivery)
            return
        if outcome == "retry":
            delay_s = min(RETRY_DELAY_MAX_S, RETRY_DELAY_S * 2.0 ** min(item.postponed.attempts, 20))
            self.store.postpone_again(item.postponed, time.time() + delay_s * random.uniform(0.5, 1))
        else:
            self.store.finish(item.postponed)
        self._postponed_running.discard(item.postponed.id)

    def _handle(self, payload: bytes) -> tuple[str, str]:
        """Run the pipeline of an event; returns its type and what became of it."""
        kind = "malformed"
        try:
            try:
                event = parse_event(payload)
                kind = event["event"]
                return kind, "handled" if self._pipelines.run(event) else "ignored"
            except BuryEvent as exc:
                self._logger.error("event buried: %s: %r", exc, payload[:500])
                self.store.bury(payload, str(exc), time.time())
                return kind, "buried"
        except (OioException, StoreError) as exc:
            self._complain("kept for later", kind, exc)
        except Exception as exc:
            # A defect of a filter: where it is matters, how many events meet it does not.
            self._complain("kept for later", kind, exc, payload)
        return kind, "retry"

    def _complain(self, fate: str, kind: str, exc: Exception, payload: bytes | None = None) -> None:
        """Log a failure, once per period for each kind of failure, however many events meet it.

        With ``payload``, as an error with its traceback.
        """
        cause = f"{type(exc).__name__} {fate}"
        now = time.monotonic()
        with self._count_lock:
            said = self._complaints.get(cause)
            if said is not None and now - said < COMPLAINT_PERIOD_S:
                return
            self._complaints[cause] = now
        if payload is None:
            self._logger.warning("events %s (first of type %s): %s", fate, kind, exc)
        else:
            self._logger.error("events %s, such as %r", fate, payload[:500], exc_info=exc)


class _Item(NamedTuple):
    """An event on its way to a pipeline, and where it comes from: a spool, or the retry base."""

    payload: bytes
    reader: SpoolReader | None
    delivery: Delivery | None
    postponed: PostponedEvent | None


def parse_event(payload: bytes) -> Event:
    """Decode an event. :raises BuryEvent: when it is not an object with a type."""
    try:
        event: Event = _decode_event(payload)
    except msgspec.DecodeError as exc:
        raise BuryEvent(f"malformed: {exc}") from exc
    if not isinstance(event.get("event"), str):
        raise BuryEvent("malformed: no type")
    return event


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``oio-event-agent CONFIG [-v]``."""
    parser = service.command_line("oio-event-agent", "Consumes the events of this host")
    parser.add_argument("-v", "--verbose", action="store_true", help="debug logs")
    parser.add_argument("config", help="INI file with a section [event-agent]")
    args = parser.parse_args(argv)
    logger = logging.getLogger("oio.event.agent")
    try:
        settings = load_event_agent_settings(args.config)
        service.setup_logging(settings.syslog_prefix, "DEBUG" if args.verbose else settings.log_level)
        proxy = settings.proxy or load_namespace_conf(settings.namespace)["proxy"]
        agent = EventAgent(settings, str(proxy), logger)
    except (OioException, StoreError, ValueError) as exc:
        print(f"oio-event-agent: {exc}", file=sys.stderr)
        return 1
    with contextlib.suppress(OSError):  # forbidden in some containers
        os.nice(NICENESS)
    servers: list[service.Stoppable] = [agent]
    if settings.listen:
        router = Router()
        router.add("GET", "/metrics", agent.metrics)
        servers.insert(0, Server(router, [settings.listen]))
    return service.run_until_stopped(servers, name="event.agent")


if __name__ == "__main__":
    sys.exit(main())
