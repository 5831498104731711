# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""A working process: consumers for each queue, the pipelines they share, reports for the parent.

Signals: SIGTERM ends gracefully (what runs has the grace to end, what is reserved is given back at once),
SIGINT and SIGQUIT end at once, SIGHUP reads the handlers file again. The process ends by itself when its parent
is gone.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from oio.common import service
from oio.common.exceptions import OioException
from oio.event.agent_metrics import RateMeter, Report, Sample, consumer_samples, encode_report, shown_url
from oio.event.agent_settings import AgentSettings, load_agent_settings, setup_logs
from oio.event.pipelines import Pipelines
from oio.event.source import EventSource, SourceError, open_source
from oio.event.worker.consumer import Consumer, Shared
from oio.event.worker.running import RunningEvents
from oio.http.client import HttpPool

# Exit codes.
EXIT_OK = 0
EXIT_CANNOT_START = 3

REPORT_PERIOD_S = 0.5
# The queue itself is asked how many events it holds this often.
STATS_PERIOD_S = 5.0
# A signal is noticed within this long.
POLL_S = 0.1
# An event that takes longer than its time to run is not given to somebody else meanwhile, up to this many times
# that time: then its filter is taken for stuck.
TTR_EXTENSIONS_MAX = 10
# Consumers that were told to stop and that wait for events have this long to notice.
LEAVE_S = 0.5
# Events may wait for others this long: those of a trickle are then handled together too.
GATHER_S = 0.1
# The agent works behind the services that answer to somebody.
NICENESS = 10
_PR_SET_PDEATHSIG = 1

Labels = tuple[tuple[str, str], ...]


class Worker:
    """Consumers of all queues, in this process.

    :raises OioException, ValueError: when the handlers file, a filter or the URL of a queue is wrong.
    """

    def __init__(
        self,
        settings: AgentSettings,
        logger: logging.Logger,
        app_env: dict[str, Any] | None = None,
        open_: Callable[..., EventSource] = open_source,
        guilty: Iterable[str] = (),
        suspects: Iterable[str] = (),
        running: RunningEvents | None = None,
    ) -> None:
        self._settings = settings
        self._logger = logger
        self.sources: list[EventSource] = []
        self._pool = HttpPool(max_idle_per_address=settings.concurrency * len(settings.queue_urls) + 2)
        self.app_env = {**shared_clients(settings, self._pool, logger), **(app_env or {})}
        self._old: list[Pipelines] = []
        try:
            for url in settings.queue_urls:
                source = open_(url, settings.tube, ttr_s=settings.ttr_s)
                source.gather_s = GATHER_S
                self.sources.append(source)
            self.app_env.setdefault("source", self.sources[0])
            self._shared = Shared(settings, self._load(), logger, guilty, suspects, running)
        except BaseException:
            self._close()
            raise
        self.consumers = [
            Consumer(number * settings.concurrency + turn, source, self._shared)
            for number, source in enumerate(self.sources)
            for turn in range(settings.concurrency)
        ]
        self._meters = [RateMeter() for _ in self.sources]
        self._stats: dict[str, list[Sample]] = {}
        self._stats_due_s = 0.0

    def start(self) -> None:
        """Begin to consume."""
        for consumer in self.consumers:
            consumer.start()

    def stop(self, grace_s: float) -> None:
        """Take nothing any more, let what runs end within the grace, give back the rest at once."""
        deadline = time.monotonic() + grace_s
        self._shared.idle.set()
        while time.monotonic() < deadline and any(one.job is not None for one in self.consumers):
            time.sleep(min(0.02, max(0.001, grace_s)))
        left = [one.job.id for one in self.consumers if one.job is not None]
        if left:
            self._logger.warning("events that did not end in time are given back: %s", ", ".join(left))
        for source in self.sources:
            try:
                source.close()
            except SourceError as exc:
                self._logger.warning("queue %s: %s", shown_url(source.url), exc)
        leave = time.monotonic() + LEAVE_S
        for consumer in self.consumers:
            consumer.join(max(0.0, leave - time.monotonic()))
        self._close()

    def _close(self) -> None:
        if hasattr(self, "_shared"):
            self._shared.pipelines.close()
        for pipelines in self._old:
            pipelines.close()
        for source in self.sources:
            with contextlib.suppress(SourceError):
                source.close()
        self._pool.close()

    def reload(self) -> bool:
        """Read the handlers file again; a wrong one changes nothing. Returns whether it was taken."""
        try:
            pipelines = self._load()
        except (OioException, ValueError) as exc:
            self._logger.error("the handlers stay as they are: %s", exc)
            return False
        self._old.append(self._shared.pipelines)
        self._shared.pipelines = pipelines
        self._logger.info("the handlers file was read again")
        return True

    def _load(self) -> Pipelines:
        return Pipelines(self.app_env, self._settings.options, self._settings.handlers_conf)

    def tend(self) -> None:
        """What is to be done now and then: keep the events that take long, close what was replaced."""
        now = time.monotonic()
        for consumer in self.consumers:
            job = consumer.job
            if job is None or now - consumer.touched_s < self._settings.ttr_s / 3:
                continue
            if now - consumer.since_s > self._settings.ttr_s * TTR_EXTENSIONS_MAX:
                continue
            consumer.touched_s = now
            try:
                consumer.source.touch(job)
            except SourceError as exc:
                self._logger.warning("event %s may come twice: %s", job.id, exc)
        for pipelines in list(self._old):
            if not any(consumer.pipelines is pipelines for consumer in self.consumers):
                self._old.remove(pipelines)
                pipelines.close()

    def ask_queues(self) -> None:
        """Ask each queue how many events it holds; one that does not answer has no number."""
        for source in self.sources:
            try:
                stats = source.stats()
            except SourceError:
                self._stats.pop(source.url, None)
                continue
            labels = _labels(source)
            self._stats[source.url] = [
                Sample("event_agent_queue", (*labels, ("state", state)), getattr(stats, state))
                for state in ("ready", "reserved", "delayed", "buried")
            ]

    def samples(self) -> list[Sample]:
        """All numbers of this process."""
        samples: list[Sample] = []
        for source, meter in zip(self.sources, self._meters, strict=True):
            own = [consumer for consumer in self.consumers if consumer.source is source]
            labels = _labels(source)
            samples += consumer_samples(labels, (one.counts for one in own), meter)
            running = sum(one.job is not None for one in own)
            samples.append(Sample("event_agent_running", labels, running))
            samples += self._stats.get(source.url, [])
        samples += filter_samples(self._shared.pipelines)
        return samples


def _labels(source: EventSource) -> Labels:
    return (("queue", shown_url(source.url)), ("tube", source.tube))


def filter_samples(pipelines: Pipelines) -> list[Sample]:
    """Numbers of the filters. Those of a handlers file that was replaced begin anew."""
    samples = []
    for pipeline in pipelines:
        for number, step in enumerate(pipeline.filters):
            labels = (("type", pipeline.event_type), ("filter", step.name))
            inner_s = pipeline.filters[number + 1].seconds if number + 1 < len(pipeline.filters) else 0.0
            samples += [
                Sample("event_agent_filter_calls", labels, step.calls),
                Sample("event_agent_filter_errors", labels, step.errors),
                Sample("event_agent_filter_seconds", labels, max(0.0, step.seconds - inner_s)),
            ]
            samples += [
                Sample("event_agent_filter_counts", (*labels, ("counter", str(name))), float(number_of))
                for name, number_of in dict(step.counts()).items()
            ]
    return samples


def shared_clients(settings: AgentSettings, pool: HttpPool, logger: logging.Logger) -> dict[str, Any]:
    """What filters find in ``app_env``; nothing is asked from any service before a filter does.

    :raises ConfigurationException: when nothing tells where the proxy is.
    """
    from oio.account.client import AccountClient
    from oio.rdir.client import BatchingRdirClient

    conf = {**settings.options, "namespace": settings.namespace}
    proxy = settings.proxy_address()
    conf["proxyd_url"] = f"http://{proxy}"
    env: dict[str, Any] = {"conf": conf, "pool": pool, "logger": logging.getLogger("oio.event")}
    env["account_client"] = AccountClient(
        conf,
        proxy_endpoint=conf["proxyd_url"],
        refresh_delay=settings.acct_refresh_interval,
        logger=env["logger"],
        pool_manager=pool,
    )
    env["rdir_client"] = BatchingRdirClient(
        conf, endpoint=conf["proxyd_url"], logger=env["logger"], pool_manager=pool, gathers=True
    )
    return env


class _Process:
    """The main thread of a worker."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._stop = ""
        self._reload = False

    def run(self) -> int:
        """Consume until told to stop; returns the exit code."""
        self._signals()
        try:
            settings = load_agent_settings(self._args.config)
            logger = setup_logs(settings, self._args.verbose)
            running = RunningEvents(self._args.running_fd, settings.consumers)
            worker = Worker(
                settings, logger, guilty=self._args.guilty, suspects=self._args.suspect, running=running
            )
        except (OioException, ValueError, OSError) as exc:
            self._report(Report(error=str(exc)))
            return EXIT_CANNOT_START
        except Exception as exc:
            # A defect must not make the parent start workers for ever.
            logging.getLogger("oio.event.agent").exception("the worker cannot begin")
            self._report(Report(error=f"a worker cannot begin: {type(exc).__name__}: {exc}"))
            return EXIT_CANNOT_START
        with contextlib.suppress(OSError):  # forbidden in some containers
            os.nice(NICENESS)
        service.install_verbosity_signals()
        worker.start()
        logger.info("worker %d consumes %s", self._args.index, ", ".join(_shown(settings)))
        last_report_s = stats_due_s = 0.0
        while not self._stop:
            if self._reload:
                self._reload = False
                worker.reload()
            now = time.monotonic()
            if now - last_report_s >= REPORT_PERIOD_S:
                last_report_s = now
                worker.tend()
                self._report(Report(ready=True, samples=worker.samples()))
                if os.getppid() != self._args.parent:
                    self._stop = "the end of its parent"
            if self._args.index == 0 and now >= stats_due_s:
                # One of the workers asks for all of them, without making anybody wait.
                stats_due_s = now + STATS_PERIOD_S
                threading.Thread(target=worker.ask_queues, name="stats", daemon=True).start()
            time.sleep(POLL_S)
        logger.info("worker %d stops: %s", self._args.index, self._stop)
        worker.stop(settings.stop_grace_s)
        self._report(Report(ready=True, samples=worker.samples()))
        return EXIT_OK

    def _report(self, report: Report) -> None:
        """Send a report; one that does not fit now is replaced by the next one."""
        with contextlib.suppress(OSError):
            os.write(self._args.report_fd, encode_report(report))

    def _signals(self) -> None:
        def stop(number: int, _frame: object) -> None:
            self._stop = signal.Signals(number).name

        def leave(number: int, _frame: object) -> None:
            logging.shutdown()
            os._exit(EXIT_OK)

        def reload(_number: int, _frame: object) -> None:
            self._reload = True

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGHUP, reload)
        signal.signal(signal.SIGINT, leave)
        signal.signal(signal.SIGQUIT, leave)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _shown(settings: AgentSettings) -> list[str]:
    return [f"{shown_url(url)} ({settings.tube})" for url in settings.queue_urls]


def main(argv: list[str] | None = None) -> int:
    """Entry point of a worker; the agent gives the arguments."""
    parser = argparse.ArgumentParser(prog="oio-event-agent worker")
    parser.add_argument("config")
    parser.add_argument("--index", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--report-fd", type=int, required=True)
    parser.add_argument("--running-fd", type=int, required=True)
    parser.add_argument("--guilty", action="append", default=[], help="id of an event to bury")
    parser.add_argument("--suspect", action="append", default=[], help="id of an event to handle beside no other")
    parser.add_argument("--verbose", action="store_true")
    code = _Process(parser.parse_args(argv)).run()
    # Consumers that are stuck in a filter must not hold the end of the process.
    logging.shutdown()
    os._exit(code)
