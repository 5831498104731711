# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""One consumer: takes an event, has it handled, settles it, takes the next one.

A consumer is a thread (a green one in the agent) that handles one event at a time. Whatever happens to an event,
the consumer goes on; it ends when the worker stops.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

from oio.event.agent_metrics import ConsumerCounts, TypeNames, shown_url
from oio.event.agent_settings import AgentSettings
from oio.event.pipelines import Answer, Pipelines
from oio.event.source import EventSource, Job, SourceClosed, SourceError
from oio.event.worker.outcomes import (
    Malformed,
    Outcome,
    Verdict,
    judge_answer,
    judge_failure,
    parse_event,
    retry_delay_s,
)
from oio.event.worker.running import RunningEvents

# A consumer asks for an event this long before it looks whether it is to stop, of which the end of its source
# tells sooner: looking costs, also when there is nothing to do.
RESERVE_TIMEOUT_S = 10.0
# A queue that cannot be reached is asked again after this long (contract).
RECONNECT_PERIOD_S = 2.0
# After this many events the other green threads get a turn even if nothing made this one wait.
YIELD_PERIOD = 32
# Events that filters sent back with a delay of their own: those deliveries are not held against them.
EXCUSED_MAX = 10000
# The same complaint is made again after this long.
COMPLAINT_PERIOD_S = 30.0
_BODY_LOGGED_BYTES = 2000
_TEXT_LOGGED_CHARS = 200
# An event at which the agent itself failed is put aside after so many deliveries.
DEFECTS_MAX = 4
# Dates below are seconds, those above microseconds (some tools write seconds).
_MICROSECONDS_MIN = 1e12


class Complaints:
    """Keeps a log readable: a complaint that repeats is written once in a while, with their number."""

    def __init__(self, logger: logging.Logger, period_s: float = COMPLAINT_PERIOD_S) -> None:
        self._logger = logger
        self._period_s = period_s
        self._lock = threading.Lock()
        self._said: dict[Any, tuple[float, int]] = {}

    def say(self, key: Any, level: int, text: str, *args: Any, exc_info: Any = None) -> None:
        """Log, unless the same key was logged a moment ago."""
        now = time.monotonic()
        with self._lock:
            if len(self._said) > 1000:
                self._said.clear()
            last, silent = self._said.get(key, (-self._period_s, 0))
            if now - last < self._period_s:
                self._said[key] = (last, silent + 1)
                return
            self._said[key] = (now, 0)
        if silent:
            text = f"{text} (and {silent} more like this before)"
        self._logger.log(level, text, *args, exc_info=exc_info)


class Shared:
    """What the consumers of a worker share.

    :ivar pipelines: replaced as a whole when the handlers file is read again.
    :ivar idle: tells the consumers to take nothing any more.
    :ivar guilty: ids of events of which workers died.
    :ivar suspects: ids of events that were handled when a worker died; who handles one holds ``alone``.
    :ivar excused: by event, deliveries in this process that ended with a delay that a filter chose.
    """

    def __init__(
        self,
        settings: AgentSettings,
        pipelines: Pipelines,
        logger: logging.Logger,
        guilty: Iterable[str] = (),
        suspects: Iterable[str] = (),
        running: RunningEvents | None = None,
    ) -> None:
        self.settings = settings
        self.pipelines = pipelines
        self.logger = logger
        self.complaints = Complaints(logger)
        self.guilty = frozenset(guilty)
        self.suspects = frozenset(suspects)
        self.alone = threading.Lock()
        self.running = running
        self.type_names = TypeNames()
        self.excused: OrderedDict[str, int] = OrderedDict()
        self.idle = threading.Event()
        self._told = threading.Lock()
        self._down: dict[str, float] = {}
        self._back: dict[str, float] = {}

    def lost(self, source: EventSource, asked_s: float, exc: Exception) -> None:
        """A queue does not answer what it was asked at a moment (monotonic): say it once."""
        with self._told:
            if source.url in self._down:
                self._down[source.url] = time.monotonic()
            elif asked_s >= self._back.get(source.url, asked_s):
                self._down[source.url] = time.monotonic()
                self.logger.error("queue %s lost: %s", shown_url(source.url), exc)

    def found(self, source: EventSource, asked_s: float) -> None:
        """A queue answered."""
        # What was asked before it was lost, or was back, proves nothing.
        if not self._down:
            return
        with self._told:
            if asked_s > self._down.get(source.url, asked_s):
                del self._down[source.url]
                self._back[source.url] = time.monotonic()
                self.logger.info("queue %s is back", shown_url(source.url))


class Consumer:
    """See the module.

    :ivar job: what is being handled, since ``since_s`` (monotonic), touched at ``touched_s``.
    """

    def __init__(self, place: int, source: EventSource, shared: Shared) -> None:
        self.place = place
        self.source = source
        self.counts = ConsumerCounts(shared.type_names)
        self.job: Job | None = None
        self.since_s = self.touched_s = 0.0
        #: The pipelines in use; those that were replaced are closed when nobody uses them.
        self.pipelines: Pipelines | None = None
        self._shared = shared
        self._thread = threading.Thread(target=self._run, name=f"consumer-{place}", daemon=True)

    def start(self) -> None:
        """Begin to consume."""
        self._thread.start()

    def join(self, timeout_s: float) -> bool:
        """Wait for the end; returns whether it came."""
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        shared = self._shared
        turn = 0
        while not shared.idle.is_set():
            asked_s = time.monotonic()
            try:
                job = self.source.reserve(RESERVE_TIMEOUT_S)
            except SourceClosed:
                return
            except SourceError as exc:
                self.counts.source_errors += 1
                shared.lost(self.source, asked_s, exc)
                shared.idle.wait(RECONNECT_PERIOD_S)
                continue
            except Exception:
                self.counts.source_errors += 1
                shared.complaints.say("reserve", logging.ERROR, "taking an event", exc_info=True)
                shared.idle.wait(RECONNECT_PERIOD_S)
                continue
            shared.found(self.source, asked_s)
            if job is None:
                continue
            self._consume(job)
            turn += 1
            if turn % YIELD_PERIOD == 0:
                time.sleep(0)

    def _consume(self, job: Job) -> None:
        self.since_s = self.touched_s = time.monotonic()
        self.job = job
        if job.id in self._shared.suspects:
            with self._shared.alone:
                self._consume_noted(job)
        else:
            self._consume_noted(job)

    def _consume_noted(self, job: Job) -> None:
        """Consume an event, which the parent is told if the worker dies."""
        running = self._shared.running
        if running is not None:
            running.begin(self.place, job.id)
        kind, when_us, outcome = "malformed", 0.0, Outcome.RETURNED
        try:
            if self._shared.idle.is_set():
                # The end of the source gives it back. Released, it would go to the next consumer that waits here,
                # and so on, and be a failure each time.
                return
            event: dict[str, Any] = {}
            try:
                event = parse_event(job.body)
                kind = event["event"]
                when_us = event.get("when") or 0
                if job.id in self._shared.guilty:
                    verdict = Verdict(Outcome.BURIED, "workers died while they handled it")
                else:
                    verdict = self._handle(event, job)
            except Malformed as exc:
                verdict = Verdict(Outcome.BURIED, str(exc))
            outcome = self._apply(verdict, kind, event, job)
        except Exception:
            # A defect of the agent itself: the event is left to the queue, which gives it again; not for ever.
            self._shared.complaints.say("defect", logging.ERROR, "consuming the event %s", job.id, exc_info=True)
            outcome = self._after_defect(job)
        finally:
            self.job = None
            if running is not None:
                running.end(self.place)
            self.counts.count(kind, outcome, *_lag(outcome, when_us))

    def _handle(self, event: dict[str, Any], job: Job) -> Verdict:
        event["job_id"] = job.id
        # Read once: a new one may take its place at any moment.
        pipelines = self.pipelines = self._shared.pipelines
        try:
            pipeline = pipelines.by_type.get(event["event"])
            if pipeline is None:
                return Verdict(Outcome.IGNORED, "no handler")
            answer = Answer()
            try:
                pipeline.call(event, self.source, answer)
            except (SystemExit, KeyboardInterrupt, GeneratorExit):
                raise
            except BaseException as exc:
                if type(exc).__name__ == "GreenletExit":
                    raise
                return judge_failure(exc)
            return judge_answer(answer)
        finally:
            self.pipelines = None

    def _apply(self, verdict: Verdict, kind: str, event: dict[str, Any], job: Job) -> Outcome:
        """Settle the event as decided; returns what was done at last."""
        outcome = verdict.outcome
        if outcome is Outcome.HANDLED:
            if self._shared.excused:
                self._shared.excused.pop(job.id, None)
            self._settle(job, self.source.delete)
            return outcome
        delay_s = 0.0
        if verdict.delay_s is not None:
            # A filter that names a delay waits for something: that is no failure.
            delay_s = max(0.0, verdict.delay_s)
            self._excuse(job)
        elif outcome in (Outcome.RETRY, Outcome.UNANSWERED):
            settings = self._shared.settings
            failures = self._attempts(job) - self._excused(job)
            if settings.max_attempts and failures >= settings.max_attempts:
                outcome = Outcome.BURIED
                verdict = verdict._replace(reason=f"{verdict.reason} (given up after {failures} deliveries)")
            else:
                delay_s = retry_delay_s(failures, settings.retry_delay_s, settings.retry_delay_max_s)
        self._log(verdict, outcome, kind, event, job, delay_s)
        if outcome is Outcome.IGNORED:
            self._settle(job, self.source.delete)
        elif outcome is Outcome.RETRY:
            self._settle(job, lambda one: self.source.release(one, delay_s))
        elif outcome is Outcome.BURIED:
            self._shared.excused.pop(job.id, None)  # deliveries are counted anew
            self._settle(job, self.source.bury)
        return outcome

    def _excuse(self, job: Job) -> None:
        excused = self._shared.excused
        excused[job.id] = excused.get(job.id, 0) + 1
        excused.move_to_end(job.id)
        while len(excused) > EXCUSED_MAX:
            excused.popitem(last=False)

    def _excused(self, job: Job) -> int:
        """Deliveries that do not count: those of this process, and about as many of each of the others."""
        return self._shared.excused.get(job.id, 0) * self._shared.settings.workers

    def _attempts(self, job: Job) -> int:
        try:
            return self.source.attempts(job)
        except SourceError:
            return 1

    def _after_defect(self, job: Job) -> Outcome:
        """Put an event aside at which the agent failed several times."""
        try:
            if self._attempts(job) >= DEFECTS_MAX and self._settle(job, self.source.bury):
                return Outcome.BURIED
        except Exception:
            self._shared.complaints.say("defect", logging.ERROR, "consuming the event %s", job.id, exc_info=True)
        return Outcome.UNANSWERED

    def _settle(self, job: Job, action: Callable[[Job], bool]) -> bool:
        """Tell the queue; when that fails, the event comes again, which filters must stand."""
        try:
            if action(job):
                return True
            self._shared.complaints.say(
                "not ours", logging.WARNING, "event %s took too long, it comes again", job.id
            )
        except SourceClosed:
            return False
        except SourceError as exc:
            self.counts.source_errors += 1
            self._shared.complaints.say(
                "settle", logging.WARNING, "event %s is not settled, it comes again: %s", job.id, exc
            )
        return False

    def _log(
        self, verdict: Verdict, outcome: Outcome, kind: str, event: dict[str, Any], job: Job, delay_s: float
    ) -> None:
        request_id = _one_line(event.get("request_id") or "-")
        kind = _one_line(kind)
        if outcome is Outcome.BURIED:
            # What was asked for is no news; everything else is, with the event itself.
            body = _one_line(job.body[:_BODY_LOGGED_BYTES].decode("utf-8", "replace"), _BODY_LOGGED_BYTES)
            self._shared.logger.log(
                verdict.level, "event %s %s buried: %s [%s] %s", job.id, kind, verdict.reason, request_id,
                body if verdict.level > logging.INFO else "", exc_info=verdict.trace,
            )  # fmt: skip
            return
        fate = {
            Outcome.IGNORED: "deleted",
            Outcome.RETRY: f"comes again in {delay_s:.1f} s",
            Outcome.UNANSWERED: "comes again when its time to run is over",
        }.get(outcome, outcome.value)
        shown = self._shared.type_names.shown(kind, outcome is not Outcome.IGNORED)
        key = (outcome, shown, verdict.reason.partition(":")[0])
        self._shared.complaints.say(
            key, verdict.level, "event %s %s %s: %s [%s]", job.id, kind, fate, verdict.reason, request_id
        )


def _one_line(text: Any, chars_max: int = _TEXT_LOGGED_CHARS) -> str:
    """What an event says, so that it cannot pass for other lines of the log."""
    shown = str(text)[:chars_max]
    return shown if shown.isprintable() else ascii(shown)


def _lag(outcome: Outcome, when: Any) -> tuple[float | None, float]:
    """Age of an event that is done (None: it is not, or has no date), and the present time."""
    now_s = time.time()
    if outcome not in (Outcome.HANDLED, Outcome.IGNORED) or type(when) not in (int, float) or when <= 0:
        return None, now_s
    when_s = when / 1e6 if when > _MICROSECONDS_MIN else when
    return max(0.0, now_s - when_s), now_s
