# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""A worker of the event agent, with plain threads and a queue in memory."""

import heapq
import json
import logging
import os
import threading
import time
from collections import deque
from pathlib import Path

import pytest
from support import eventually

from oio.common import exceptions
from oio.common.exceptions import ConfigurationException
from oio.event import agent_settings
from oio.event.agent_metrics import TYPES_MAX, Report, encode_report
from oio.event.agent_settings import AgentSettings, load_agent_settings
from oio.event.pipelines import MeasuredFilter, Pipeline
from oio.event.source import EventSource, Job, SourceClosed, SourceError, TubeStats
from oio.event.worker import consumer as consumer_module
from oio.event.worker import running
from oio.event.worker.process import Worker
from oio.http.errors import ConnectError

ETC = Path(__file__).parents[3] / "etc"
LOGGER = logging.getLogger("test")


class MemorySource(EventSource):
    """A tube in memory, with the outcomes that the agent chose."""

    def __init__(self, url="memory://", tube="oio", ttr_s=120.0):
        self.url, self.tube = url, tube
        self.changed = threading.Condition()
        self.ready, self.delayed, self.reserved = deque(), [], {}
        self.deleted, self.buried, self.released, self.touched = [], [], [], []
        self.deliveries = {}
        self.error = None
        self.closed = False

    def put(self, body, job_id=None):
        with self.changed:
            job_id = job_id or str(len(self.deliveries) + 1)
            self.deliveries[job_id] = 0
            self.ready.append(Job(job_id, body))
            self.changed.notify()
        return job_id

    def reserve(self, timeout_s):
        deadline = time.monotonic() + min(timeout_s, 0.05)
        with self.changed:
            while True:
                if self.closed:
                    raise SourceClosed("closed")
                if self.error:
                    raise self.error
                while self.delayed and self.delayed[0][0] <= time.monotonic():
                    self.ready.append(heapq.heappop(self.delayed)[2])
                if self.ready:
                    job = self.ready.popleft()
                    self.reserved[job.id] = job
                    self.deliveries[job.id] += 1
                    return job
                if not self.changed.wait(max(0.0, deadline - time.monotonic())):
                    return None

    def _settle(self, job, where):
        with self.changed:
            if self.reserved.pop(job.id, None) is None:
                return False
            where.append(job.id)
            return True

    def delete(self, job):
        return self._settle(job, self.deleted)

    def bury(self, job):
        return self._settle(job, self.buried)

    def release(self, job, delay_s=0):
        if not self._settle(job, []):
            return False
        with self.changed:
            self.released.append((job.id, delay_s))
            heapq.heappush(self.delayed, (time.monotonic() + delay_s, len(self.released), job))
        return True

    def touch(self, job):
        self.touched.append(job.id)
        return True

    def attempts(self, job):
        return self.deliveries[job.id]

    def stats(self):
        return TubeStats(len(self.ready), len(self.reserved), len(self.delayed), len(self.buried))

    def kick(self, limit):
        return 0

    def close(self):
        with self.changed:
            self.closed = True
            self.ready.extend(self.reserved.values())
            self.reserved.clear()
            self.changed.notify_all()


def event(kind="x", **more):
    return json.dumps({"event": kind, "when": int(time.time() * 1e6), **more}).encode()


@pytest.fixture
def make(monkeypatch):
    """Make a worker whose pipelines are functions; returns it and its source."""
    monkeypatch.setattr(consumer_module, "RECONNECT_PERIOD_S", 0.02)
    workers = []

    def make(pipelines, suspects=(), **more):
        source = MemorySource()
        settings = AgentSettings("NS", queue_urls=("memory://",), proxy="127.0.0.1:1", **more)
        worker = Worker(settings, LOGGER, open_=lambda url, tube, ttr_s: source, suspects=suspects)
        set_pipelines(worker, pipelines)
        workers.append(worker)
        worker.start()
        return worker, source

    yield make
    for worker in workers:
        worker.stop(0.0)


def set_pipelines(worker, functions):
    worker._shared.pipelines.by_type = {
        kind: Pipeline(kind, [step], step)
        for kind, step in ((kind, MeasuredFilter("f", function)) for kind, function in functions.items())
    }


def outcomes(worker):
    found = {}
    for consumer in worker.consumers:
        for key, number in consumer.counts.outcomes.items():
            found[key] = found.get(key, 0) + number
    return found


def test_events_are_handled_and_deleted(make):
    seen = []

    def handle(env, source, cb):
        seen.append(env)
        cb(200, "")

    worker, source = make({"x": handle})
    ids = [source.put(event(n=number)) for number in range(50)]
    eventually(lambda: len(source.deleted) == 50)
    assert sorted(source.deleted) == sorted(ids)
    assert {one["job_id"] for one in seen} == set(ids)
    eventually(lambda: outcomes(worker) == {("x", "handled"): 50})
    samples = {(one.name, dict(one.labels).get("type")): one.value for one in worker.samples()}
    assert samples["event_agent_filter_calls", "x"] == 50
    assert samples["event_agent_filter_errors", "x"] == 0
    assert 0 <= samples["event_agent_lag_seconds_max", None] < 60
    worker.ask_queues()
    assert [one.value for one in worker.samples() if one.name == "event_agent_queue"] == [0, 0, 0, 0]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"5", b"{}", b'{"event":5}', b"\xff\xfe"])
def test_what_is_no_event_is_buried(make, body):
    worker, source = make({})
    job = source.put(body)
    eventually(lambda: source.buried == [job])
    eventually(lambda: outcomes(worker) == {("malformed", "buried"): 1})


def test_an_event_without_handler_is_deleted(make, caplog):
    worker, source = make({})
    source.put(event("a"))
    source.put(event("a"))
    eventually(lambda: len(source.deleted) == 2)
    assert len([one for one in caplog.records if "no handler" in one.getMessage()]) == 1
    eventually(lambda: outcomes(worker) == {("a", "ignored"): 2})


def test_a_failed_event_comes_again_until_it_succeeds(make):
    calls = []

    def handle(env, source, cb):
        calls.append(env)
        cb(503 if len(calls) < 4 else 200, "the consumer is away")

    worker, source = make({"x": handle}, retry_delay_s=0.01, retry_delay_max_s=0.02)
    job = source.put(event())
    eventually(lambda: source.deleted == [job])
    eventually(lambda: outcomes(worker) == {("x", "retry"): 3, ("x", "handled"): 1})
    delays = [delay_s for _, delay_s in source.released]
    assert 0.008 <= delays[0] <= 0.012 and all(0.016 <= delay_s <= 0.024 for delay_s in delays[1:])
    errors = [one for one in worker.samples() if one.name == "event_agent_filter_errors"]
    assert [one.value for one in errors] == [3]


def test_a_hopeless_event_is_buried_at_last(make):
    worker, source = make({"x": lambda env, source, cb: cb(500, "no")}, retry_delay_s=0.001, max_attempts=3)
    job = source.put(event())
    eventually(lambda: source.buried == [job])
    eventually(lambda: outcomes(worker) == {("x", "retry"): 2, ("x", "buried"): 1})


def test_an_event_at_which_the_agent_itself_fails_is_put_aside(make, monkeypatch):
    def fail(answer):
        raise RuntimeError("a defect")

    monkeypatch.setattr(consumer_module, "judge_answer", fail)
    worker, source = make({"x": lambda env, source, cb: cb(200, "")})
    job = source.put(event())
    for number in range(1, consumer_module.DEFECTS_MAX + 1):
        eventually(lambda: sum(outcomes(worker).values()) == number)  # noqa: B023
        # What the queue does when the time to run is over.
        with source.changed:
            if job in source.reserved:
                source.ready.append(source.reserved.pop(job))
                source.changed.notify()
    assert source.buried == [job]
    assert outcomes(worker) == {("x", "unanswered"): consumer_module.DEFECTS_MAX - 1, ("x", "buried"): 1}


def test_an_event_cannot_write_lines_of_the_log(make, caplog):
    _worker, source = make({})
    jobs = [source.put(b"{\n2026 all is lost\n"), source.put(event("a\nb", request_id="c\nd"))]
    eventually(lambda: source.buried == jobs[:1] and source.deleted == jobs[1:])
    told = [one.getMessage() for one in caplog.records if "event" in one.getMessage()]
    assert len(told) >= 2 and not any("\n" in text for text in told)


def test_types_that_producers_invent_fill_neither_the_metrics_nor_the_log(make, caplog):
    worker, source = make({"x": lambda env, source, cb: cb(200, "")}, concurrency=20)
    for number in range(500):
        source.put(event(f"type-{number}"))
    source.put(event("x"))
    eventually(lambda: len(source.deleted) == 501)
    eventually(lambda: sum(outcomes(worker).values()) == 501)
    found = outcomes(worker)
    assert len(found) == TYPES_MAX + 2 and found["other", "ignored"] == 500 - TYPES_MAX
    assert found["x", "handled"] == 1
    assert sum("no handler" in one.getMessage() for one in caplog.records) <= TYPES_MAX + 1
    # What a message between the worker and its parent can hold, at least.
    assert len(encode_report(Report(samples=worker.samples()))) < 200_000


def test_no_limit(make):
    worker, source = make(
        {"x": lambda env, source, cb: cb(500, "no")}, retry_delay_s=0.0, max_attempts=0, concurrency=1
    )
    source.put(event())
    eventually(lambda: outcomes(worker).get(("x", "retry"), 0) > 100)
    assert source.buried == []


def test_a_filter_may_name_the_delay_and_is_never_given_up(make):
    _worker, source = make({"x": lambda env, source, cb: cb(503, "wait", delay_s=0.01)}, max_attempts=2)
    job = source.put(event())
    eventually(lambda: len(source.released) >= 5)
    assert set(source.released) == {(job, 0.01)}
    assert source.buried == []


def test_deliveries_that_a_filter_excused_do_not_count(make):
    calls = []

    def handle(env, source, cb):
        calls.append(env)
        cb(503, "", delay_s=0.001) if len(calls) <= 10 else cb(503, "")

    _worker, source = make({"x": handle}, max_attempts=3, retry_delay_s=0.001)
    job = source.put(event())
    eventually(lambda: source.buried == [job])
    assert len(calls) == 13


def test_suspects(tmp_path):
    fd = running.create(3)
    events = running.RunningEvents(fd, 3)
    events.begin(0, "12")
    events.begin(2, "x" * 100)
    events.begin(1, "13")
    events.end(1)
    assert running.read(fd) == ["12", "x" * 64]
    os.close(fd)
    suspects = running.Suspects()
    for number in range(running.DEATHS_MAX):
        assert suspects.guilty() == []
        suspects.died(["12", str(number)])
    assert suspects.guilty() == ["12"]
    assert set(suspects.suspects()) == {"12", *map(str, range(running.DEATHS_MAX))}
    suspects.died([f"other {number}" for number in range(running.SUSPECTS_MAX)])
    assert suspects.guilty() == []


def test_events_of_which_a_worker_died_are_handled_one_at_a_time(make):
    running_now, together, others = set(), [], threading.Semaphore(0)

    def handle(env, source, cb):
        running_now.add(env["job_id"])
        together.append(sorted(running_now & {"1", "2", "3"}))
        if env["job_id"] in ("1", "2", "3"):
            assert others.acquire(timeout=60)  # those that nobody suspects do not wait
        else:
            others.release()
        running_now.discard(env["job_id"])
        cb(200)

    _worker, source = make({"x": handle}, suspects=["1", "2", "3"], concurrency=6)
    for _ in range(6):
        source.put(event())
    eventually(lambda: len(source.deleted) == 6)
    assert max(map(len, together)) == 1


@pytest.mark.parametrize("answer", [None, 100, 302, 404])
def test_what_gets_no_answer_is_left_to_the_queue(make, answer):
    worker, source = make({"x": lambda env, source, cb: answer and cb(answer, "?")})
    job = source.put(event())
    eventually(lambda: outcomes(worker) == {("x", "unanswered"): 1})
    assert list(source.reserved) == [job] and not source.deleted and not source.released


def raising(exc):
    def handle(env, source, cb):
        raise exc

    return handle


class GreenTimeout(BaseException):
    """Like those of green programs."""


@pytest.mark.parametrize(
    ("exc", "expected"),
    [
        (exceptions.OioNetworkException("x"), "retry"),
        (exceptions.OioTimeout("x"), "retry"),
        (exceptions.DeadlineReached(), "retry"),
        (exceptions.ServiceBusy(503, None, "x"), "retry"),
        (exceptions.ClientException(500, None, "x"), "retry"),
        (exceptions.ClientException(429, None, "x"), "retry"),
        (ConnectError("x", "127.0.0.1:1"), "retry"),
        (ConnectionResetError(), "retry"),
        (TimeoutError(), "retry"),
        (SourceError("x"), "retry"),
        (GreenTimeout(), "retry"),
        (exceptions.NotFound(404, None, "x"), "buried"),
        (exceptions.BadRequest(400, None, "x"), "buried"),
        (exceptions.ExplicitBury("x"), "buried"),
        (ValueError("x"), "buried"),
        (KeyError("x"), "buried"),
    ],
)
def test_what_a_filter_raises(make, exc, expected, caplog):
    worker, source = make({"x": raising(exc)})
    job = source.put(event(secret="body"))
    eventually(lambda: outcomes(worker) == {("x", expected): 1})
    assert source.buried == ([job] if expected == "buried" else [])
    assert [one for one, _ in source.released] == ([job] if expected == "retry" else [])
    traces = [one for one in caplog.records if one.exc_info]
    assert len(traces) == isinstance(exc, (ValueError, KeyError))
    # The agent goes on.
    set_pipelines(worker, {"x": lambda env, source, cb: cb(200)})
    later = source.put(event())
    eventually(lambda: later in source.deleted)


def test_a_queue_that_is_away_is_waited_for(make, caplog):
    caplog.set_level("INFO")
    worker, source = make({"x": lambda env, source, cb: cb(200)})
    source.error = SourceError("refused")
    eventually(lambda: sum(one.counts.source_errors for one in worker.consumers) > 30)
    source.error = None
    source.put(event())
    eventually(lambda: len(source.deleted) == 1)

    def said(word):
        texts = [one.getMessage() for one in caplog.records]
        return sum("memory" in text and word in text for text in texts)

    # Who took the event may have asked before the last one who was refused has told so.
    eventually(lambda: said("back"), what="the end of the refusals")
    assert (said("lost"), said("back")) == (1, 1)


def test_what_cannot_be_settled_is_no_reason_to_end(make):
    _worker, source = make({"x": lambda env, source, cb: cb(200)}, concurrency=1)
    delete = source.delete

    def broken(job):
        source.delete = delete
        raise SourceError("connection lost")

    source.delete = broken
    source.put(event())
    second = source.put(event())
    eventually(lambda: source.deleted == [second])


def test_stop_lets_running_events_end(make):
    go, running = threading.Event(), threading.Event()

    def handle(env, source, cb):
        running.set()
        go.wait(5)
        cb(200)

    worker, source = make({"x": handle}, concurrency=1)
    first = source.put(event())
    second = source.put(event())
    running.wait(5)
    stop = threading.Thread(target=worker.stop, args=(20.0,))
    stop.start()
    eventually(worker._shared.idle.is_set, what="the stop")
    go.set()
    stop.join()
    assert source.deleted == [first]
    assert [job.id for job in source.ready] == [second]


def test_what_comes_during_the_stop_is_given_back_once(make):
    """All the consumers wait for an event; it does not go from one to the other."""
    worker, source = make({}, concurrency=8)
    worker._shared.idle.set()
    job = source.put(event())
    worker.stop(1.0)
    assert source.released == [] and [one.id for one in source.ready] == [job]
    assert source.deliveries[job] <= 1


def test_stop_gives_back_what_does_not_end(make):
    go, running = threading.Event(), threading.Event()

    def handle(env, source, cb):
        running.set()
        go.wait(5)
        cb(200)

    worker, source = make({"x": handle}, concurrency=2)
    job = source.put(event())
    running.wait(5)
    begin = time.monotonic()
    worker.stop(0.1)
    assert time.monotonic() - begin < 2
    go.set()
    assert [one.id for one in source.ready] == [job] and source.deleted == []


def test_long_events_are_kept(make):
    go = threading.Event()
    worker, source = make({"x": lambda env, source, cb: (go.wait(5), cb(200))}, ttr_s=0.03)
    job = source.put(event())
    eventually(lambda: list(source.reserved) == [job])
    eventually(lambda: worker.tend() or job in source.touched)
    # A filter that is stuck does not keep its event for ever.
    for consumer in worker.consumers:
        consumer.since_s -= 10
    time.sleep(0.02)
    before = len(source.touched)
    worker.tend()
    assert len(source.touched) == before
    go.set()
    eventually(lambda: source.deleted == [job])


def test_reload(tmp_path, monkeypatch):
    path = tmp_path / "handlers.conf"
    path.write_text("[handler:a]\npipeline = n\n[filter:n]\nuse = egg:oio#noop\n")
    source = MemorySource()
    settings = AgentSettings(
        "NS", queue_urls=("memory://",), proxy="127.0.0.1:1", handlers_conf=str(path), concurrency=1
    )
    worker = Worker(settings, LOGGER, open_=lambda url, tube, ttr_s: source)
    worker.start()
    try:
        source.put(event("b"))
        eventually(lambda: outcomes(worker) == {("b", "ignored"): 1})
        path.write_text("[handler:b]\npipeline =\n")
        assert worker.reload()
        worker.tend()
        source.put(event("b"))
        eventually(lambda: outcomes(worker).get(("b", "handled")) == 1)
        path.write_text("[handler:b]\npipeline = missing\n")
        assert not worker.reload()
        source.put(event("b"))
        eventually(lambda: outcomes(worker).get(("b", "handled")) == 2)
    finally:
        worker.stop(0.5)


def test_a_worker_that_cannot_begin(tmp_path):
    missing = str(tmp_path / "no")
    settings = AgentSettings("NS", queue_urls=("memory://",), proxy="127.0.0.1:1", handlers_conf=missing)
    with pytest.raises(ConfigurationException, match="Cannot read"):
        Worker(settings, LOGGER, open_=lambda url, tube, ttr_s: MemorySource())
    with pytest.raises(ValueError, match="not the URL"):
        Worker(AgentSettings("NS", queue_urls=("ftp://x",), proxy="127.0.0.1:1"), LOGGER)


def test_two_queues(monkeypatch):
    sources = {url: MemorySource(url) for url in ("memory://a", "memory://b")}
    settings = AgentSettings("NS", queue_urls=tuple(sources), proxy="127.0.0.1:1", concurrency=2)
    worker = Worker(settings, LOGGER, open_=lambda url, tube, ttr_s: sources[url])
    set_pipelines(worker, {"x": lambda env, source, cb: cb(200)})
    worker.start()
    try:
        assert len(worker.consumers) == 4
        for source in sources.values():
            source.put(event())
            eventually(lambda source=source: len(source.deleted) == 1)
    finally:
        worker.stop(0.5)


# --- configuration ------------------------------------------------------------------------------------


def test_samples():
    settings = load_agent_settings(str(ETC / "event-agent.conf-sample"))
    assert (settings.namespace, settings.tube, settings.concurrency) == ("OPENIO", "oio", 64)
    # The commented keys show the defaults, and are understood.
    settings = AgentSettings("NS", handlers_conf=str(ETC / "event-handlers.conf-sample"), proxy="127.0.0.1:1")
    Worker(settings, LOGGER, open_=lambda url, tube, ttr_s: MemorySource()).stop(0)


def settings_of(tmp_path, text):
    path = tmp_path / "agent.conf"
    path.write_text(f"[event-agent]\n{text}")
    return load_agent_settings(str(path))


def test_settings(tmp_path):
    found = settings_of(
        tmp_path,
        "namespace = NS\nqueue_url = redis://127.0.0.1:1/0; beanstalk://127.0.0.1:2\nworkers=3\nconcurrency=7\n"
        "other = kept\nlisten = 127.0.0.1:6020\nmax_attempts = 0\nhandlers_conf =\n",
    )
    assert found.queue_urls == ("redis://127.0.0.1:1/0", "beanstalk://127.0.0.1:2")
    assert (found.workers, found.concurrency, found.max_attempts) == (3, 7, 0)
    assert found.options["other"] == "kept" and found.handlers_conf is None
    assert found.listen == ("127.0.0.1", 6020)
    found = settings_of(tmp_path, "namespace = NS\n")
    assert found.queue_urls == ("beanstalk://127.0.0.1:11300",) and found.workers >= 1
    found = settings_of(
        tmp_path, "namespace = NS\nqueue_url = spool:///a?fsync=0\nstate_dir = /b c\nworkers = 4\ndelay_s = 5\n"
    )
    assert found.queue_urls == ("spool:///a?fsync=0&state_dir=/b%20c",)
    assert found.workers == 1 and found.options["delay"] == "5"


@pytest.mark.parametrize(
    "text",
    [
        "", "queue_url = spool:///x\n", "namespace =\n", "namespace = NS\nconcurrency = many\n",
        "namespace = NS\nconcurrency = 0\n", "namespace = NS\nqueue_url = nowhere\n",
        "namespace = NS\nlisten = nowhere\n", "namespace = NS\nretry_delay_s = -1\n", "junk",
    ],
)  # fmt: skip
def test_bad_settings(tmp_path, text):
    with pytest.raises(ValueError):
        settings_of(tmp_path, text)


def test_missing_settings(tmp_path):
    with pytest.raises(ValueError):
        load_agent_settings(str(tmp_path / "missing"))
    path = tmp_path / "other.conf"
    path.write_text("[other]\n")
    with pytest.raises(ValueError, match="section"):
        load_agent_settings(str(path))


def test_obsolete_keys(caplog):
    settings = AgentSettings("NS", options={"batch_size": "5", "tube": "x"})
    agent_settings.warn_about_obsolete_keys(settings, LOGGER)
    assert [one.args for one in caplog.records] == [("batch_size",)]
