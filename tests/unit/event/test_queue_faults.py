# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Queues whose servers are killed, frozen and started again: nothing that was put is lost."""

import contextlib
import math
import subprocess
import sys
import textwrap
import threading
import time

import pytest
from servers import BeanstalkdServer, RedisServer
from support import eventually

from oio.event.beanstalk import Beanstalk
from oio.event.queue import EventsRefused, QueueError, QueueTimeout, open_queue
from oio.event.source import SourceError, TubeStats, open_source
from oio.event.transport import redis_source

SERVERS = {"redis": RedisServer, "beanstalk": BeanstalkdServer}


def make(kind, directory):
    if SERVERS[kind].program is None:
        pytest.skip(f"no server for {kind} on this machine")
    return SERVERS[kind](directory)


@pytest.fixture(params=["redis", "beanstalk"])
def server(request, tmp_path):
    with make(request.param, tmp_path / "queue") as server:
        yield server


def patiently(function, *args, timeout_s=20.0):
    """Call again what failed, as producers and agents do."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return function(*args)
        except (QueueError, SourceError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def drain(source, timeout_s=1.0):
    bodies = []
    while job := patiently(source.reserve, timeout_s):
        if patiently(source.delete, job):
            bodies.append(job.body)
    return bodies


def test_nothing_put_is_lost_when_the_server_dies(server):
    """Killed in the middle of puts, three times."""
    put, stop = [], threading.Event()

    def produce():
        with open_queue(server.url) as queue:
            n = 0
            while not stop.is_set():
                events = [b"%d" % k for k in range(n, n + 20)]
                patiently(queue.put_many, events)
                put.extend(events)
                n += 20

    thread = threading.Thread(target=produce)
    thread.start()
    for _ in range(3):
        # It dies while events are put.
        begin = len(put)
        eventually(lambda begin=begin: len(put) > begin, what="events that were put")
        server.kill()
        server.start()
    stop.set()
    thread.join()
    with open_source(server.url) as source:
        found = drain(source)
    assert len(put) >= 60
    assert set(put) <= set(found)


def test_nothing_is_lost_when_the_server_dies_under_consumers(server):
    """What is reserved when the server dies is delivered again."""
    with open_queue(server.url) as queue:
        events = [b"%d" % n for n in range(3000)]
        queue.put_many(events)
    handled, lock = [], threading.Lock()

    def consume():
        while job := patiently(source.reserve, 2.0):
            time.sleep(0.001)
            with lock:
                handled.append(job.body)
            patiently(source.delete, job)

    with open_source(server.url, ttr_s=1.0) as source:
        threads = [threading.Thread(target=consume) for _ in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(2):
            time.sleep(0.2)
            server.kill()
            server.start()
        for thread in threads:
            thread.join()
        assert set(handled) == set(events)
        assert len(handled) < len(events) * 2
        stats = source.stats()
    assert (stats.ready, stats.reserved, stats.delayed, stats.buried) == (0, 0, 0, 0)


def test_delayed_and_buried_jobs_outlive_the_server(server):
    with open_queue(server.url) as queue, open_source(server.url) as source:
        queue.put_many([b"delayed", b"buried"])
        assert source.release(source.reserve(1), 100)
        assert source.bury(source.reserve(1))
        server.kill()
        server.start()
        stats = patiently(source.stats)
        assert (stats.delayed, stats.buried) == (1, 1)


def test_a_server_that_is_down_is_told(server):
    queue, source = open_queue(server.url), open_source(server.url)
    queue.put(b"x")
    job = source.reserve(1)
    server.kill()
    with pytest.raises(QueueError):
        queue.put(b"y")
    with pytest.raises(QueueError):
        queue.depth()
    with pytest.raises(SourceError):
        while True:
            source.reserve(0.1)
    for call in (source.stats, lambda: source.kick(1)):
        with pytest.raises(SourceError):
            call()
    if server.url.startswith("beanstalk"):
        assert source.attempts(job) == 1
    source.close()
    queue.close()


def test_a_frozen_server_does_not_hold_for_ever(server):
    url = server.url + "?timeout_s=0.5&connect_timeout_s=0.5"
    with open_queue(url) as queue, open_source(url) as source:
        # A slow disk may take longer for these than what waits for a frozen server later.
        patiently(queue.put, b"before")
        job = patiently(source.reserve, 1)
        server.freeze()
        try:
            began = time.monotonic()
            with pytest.raises(QueueTimeout):
                queue.put(b"during")
            with pytest.raises(SourceError):
                source.delete(job)
            with pytest.raises(SourceError):
                source.stats()
            with pytest.raises(SourceError):
                for _ in range(5):
                    source.reserve(0.1)
            assert time.monotonic() - began < 20
        finally:
            server.thaw()
        patiently(queue.put, b"after")
        assert {b"after"} <= set(drain(source))


def test_late_jobs_are_delivered_to_others(server):
    """A job whose time to run is over belongs to somebody else: settling it says False."""
    url = server.url
    options = "?ttr=2" if url.startswith("beanstalk") else ""
    first, other = open_source(url, ttr_s=2.0), open_source(url, ttr_s=2.0)
    with open_queue(url + options) as queue, first, other:
        queue.put(b"slow")
        job = first.reserve(1)
        assert other.reserve(0.2) is None
        deadline = time.monotonic() + 20
        while (again := other.reserve(1)) is None:
            assert time.monotonic() < deadline
            # beanstalkd 1.12 may overlook the time of jobs whose connection is silent.
            first.attempts(job)
        assert again.body == b"slow"
        assert other.attempts(again) == 2
        assert not first.delete(job)
        assert not first.release(job)
        assert not first.bury(job)
        assert not first.touch(job)
        assert other.delete(again)


def test_touching_keeps_a_job(server):
    options = "?ttr=2" if server.url.startswith("beanstalk") else ""
    with open_queue(server.url + options) as queue, open_source(server.url, ttr_s=2.0) as source:
        with open_source(server.url, ttr_s=2.0) as other:
            queue.put(b"long")
            job = source.reserve(1)
            for _ in range(8):
                assert other.reserve(0.01) is None
                time.sleep(0.3)
                assert source.touch(job)
            assert source.delete(job)


def test_the_jobs_of_a_killed_consumer_come_back_at_once(server):
    """Long before their time to run, two minutes, is over."""
    code = f"""
        import os, signal, sys
        from oio.event.source import open_source
        source = open_source({server.url!r})
        jobs = [source.reserve(2) for _ in range(3)]
        os.kill(os.getpid(), signal.SIGKILL)
    """
    with open_queue(server.url) as queue:
        queue.put_many([b"%d" % n for n in range(300)])
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False, timeout=20)
    with open_source(server.url) as source:
        assert sorted(drain(source)) == sorted(b"%d" % n for n in range(300))
        assert source.stats() == TubeStats()


def test_those_who_consume_notice_the_death_of_another(tmp_path, monkeypatch):
    monkeypatch.setattr(redis_source, "RECLAIM_PERIOD_MAX_S", 0.3)
    code = """
        import sys
        from oio.event.source import open_source
        source = open_source(sys.argv[1])
        print(source.reserve(20).body.decode(), flush=True)
        sys.stdin.read()
    """
    with make("redis", tmp_path) as server, open_queue(server.url) as queue, open_source(server.url) as source:
        assert source.reserve(0) is None
        with subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), server.url],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        ) as other:  # fmt: skip
            queue.put(b"precious")
            assert other.stdout.readline() == "precious\n"
            # A process that lives is left alone.
            assert source.reserve(1) is None
            other.kill()
        assert source.reserve(20).body == b"precious"


def test_jobs_whose_delivery_was_lost_come_back_at_once(tmp_path):
    """The server does what it was asked when the consumer has given up waiting for the answer."""
    with make("redis", tmp_path) as server, open_queue(server.url) as queue:
        with open_source(server.url + "?timeout_s=0.5") as source:
            assert source.reserve(0) is None
            queue.put_many([b"%d" % n for n in range(5)])
            server.freeze()
            with pytest.raises(SourceError):
                source.reserve(0)
            server.thaw()
            with open_source(server.url) as observer:
                assert observer.stats().reserved > 0
            assert drain(source) == [b"%d" % n for n in range(5)]
            assert source.stats() == TubeStats()


@pytest.mark.parametrize("again", [True, False])
def test_a_job_whose_deletion_was_lost_comes_back_at_once(tmp_path, again):
    """Unless it is deleted again before anything else is asked for."""
    with make("redis", tmp_path) as server, open_queue(server.url) as queue, open_source(server.url) as source:
        queue.put_many([b"first", b"second", b"third"])
        job, kept, _ = [source.reserve(1) for _ in range(3)]
        server.kill()
        with pytest.raises(SourceError):
            source.delete(job)
        with pytest.raises(SourceError):
            source.touch(kept)
        server.start()
        if again:
            assert source.delete(job)
        else:
            late = source.reserve(0)
            assert (late.body, source.attempts(late)) == (b"first", 2)
            assert not source.delete(job)
            assert source.delete(late)
        assert source.reserve(0) is None
        assert source.delete(kept)
        assert source.stats() == TubeStats(reserved=1)


def test_jobs_that_others_took_are_forgotten(tmp_path):
    with make("redis", tmp_path) as server, open_queue(server.url) as queue:
        # Only the other takes over what was not settled for long.
        with open_source(server.url) as source, open_source(server.url, ttr_s=0.5) as other:
            queue.put(b"unanswered")
            job = source.reserve(1)
            assert other.reserve(5).body == job.body
            eventually(lambda: source.reserve(0) is None and not source._reserved)
            assert not source.delete(job)


GREEN = """
    import eventlet
    eventlet.monkey_patch()
    import sys, threading, time
    from oio.event.queue import open_queue
    from oio.event.source import open_source, SourceClosed
    url = sys.argv[1]
    queue, source = open_queue(url), open_source(url)
    ticks, seen, count = [], [], 500

    def tick():
        while len(seen) < count:
            ticks.append(time.monotonic())
            eventlet.sleep(0.005)

    def consume():
        while True:
            try:
                job = source.reserve(5)
            except SourceClosed:
                return
            if job is None:
                continue
            if int(job.body) % 7 == 0 and source.attempts(job) == 1:
                assert source.release(job)
                continue
            seen.append(job.body)
            assert source.delete(job) if int(job.body) % 7 else source.bury(job)

    ticker = eventlet.spawn(tick)
    threads = [eventlet.spawn(consume) for _ in range(10)]
    time.sleep(0.2)   # all wait
    # Green threads that are killed while they wait leave the others alone.
    for victim in threads[:3]:
        victim.kill()
    queue.put_many([b"%d" % n for n in range(count)])
    limit = time.monotonic() + 40
    while len(seen) < count and time.monotonic() < limit:
        eventlet.sleep(0.01)
    ticker.wait()
    assert sorted(seen, key=int) == [b"%d" % n for n in range(count)], len(seen)
    assert len(ticks) > 20, "the others did not run meanwhile"
    assert max(b - a for a, b in zip(ticks, ticks[1:])) < 5.0
    while source.stats().reserved:
        eventlet.sleep(0.01)
    stats = source.stats()
    assert (stats.ready, stats.buried) == (0, 72), stats
    source.close()
    for thread in threads[3:]:
        thread.wait()
    print("fine")
"""


def test_green_threads(server):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(GREEN), server.url],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.stdout == "fine\n", done.stdout + done.stderr


# --- several beanstalkd ---------------------------------------------------------------------------


@pytest.fixture
def three(tmp_path):
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(make("beanstalk", tmp_path / str(n))) for n in range(3)]


def url_of(servers, options=""):
    return ";".join(server.url for server in servers) + options


def counts(servers):
    found = []
    for server in servers:
        with open_source(server.url) as source:
            stats = source.stats()
            found.append(stats.ready + stats.reserved)
    return found


def test_events_are_balanced_and_keys_stay_together(three):
    with open_queue(url_of(three)) as queue:
        for n in range(30):
            queue.put(b"%d" % n)
        assert counts(three) == [10, 10, 10]
        keys = [f"base-{n % 50}" for n in range(500)]
        queue.put_many([f"{key} {n}".encode() for n, key in enumerate(keys)], keys=keys)
        assert queue.depth() == 530
    homes = {}
    for number, server in enumerate(three):
        with open_source(server.url) as source:
            last = {}
            for body in drain(source):
                if b" " in body:
                    key, n = body.split()
                    assert homes.setdefault(key, number) == number
                    assert last.get(key, -1) < int(n)
                    last[key] = int(n)
    assert len(homes) == 50
    assert len(set(homes.values())) == 3


def test_another_server_stands_in_and_the_first_comes_back(three):
    options = "?timeout_s=0.5&connect_timeout_s=0.3"
    put = []
    with open_queue(url_of(three, options)) as queue:
        for n in range(60):
            if n == 10:
                three[0].kill()
            if n == 20:
                three[1].freeze()
            queue.put(b"%d" % n, timeout_s=5)
            put.append(b"%d" % n)
        down = counts(three[2:])
        assert down[0] >= 40
        three[0].start()
        three[1].thaw()
        deadline = time.monotonic() + 10
        before = counts(three)
        while time.monotonic() < deadline and min(
            now - then for now, then in zip(counts(three), before, strict=True)
        ) < 1:
            queue.put(b"more")
            time.sleep(0.05)
        assert all(now > then for now, then in zip(counts(three), before, strict=True))
    found = []
    for server in three:
        with open_source(server.url) as source:
            found += drain(source)
    assert set(put) <= set(found)


def test_all_servers_down_is_told_fast(three):
    with open_queue(url_of(three)) as queue:
        for server in three:
            server.kill()
        with pytest.raises(QueueError, match="0 of 3"):
            queue.put(b"x")
        # However long the test itself takes, none is asked again.
        for server in queue.servers:
            server._retry_s = math.inf
        with pytest.raises(QueueError) as caught:
            queue.put(b"x")
        assert str(caught.value).count("failed a moment ago") == 3
        for server in queue.servers:
            server._retry_s = 0.0
        three[1].start()
        patiently(queue.put, b"back")
    assert counts(three[1:2]) == [1]


def test_a_restarted_server_is_used_at_once(server):
    with open_queue(server.url) as queue:
        queue.put(b"before")
        server.kill()
        server.start()
        queue.put(b"after")
    with open_source(server.url) as source:
        assert drain(source) == [b"before", b"after"]


def test_the_limit_of_jobs_is_learned(tmp_path):
    server = make("beanstalk", tmp_path)
    server.options = ("-z", "1000")
    with server, open_queue(server.url) as queue:
        events = [b"a" * 1000, b"b" * 1001, b"c", b"d" * 100000, b"e"]
        with pytest.raises(EventsRefused) as caught:
            queue.put_many(events)
        assert caught.value.events == [events[1], events[3]]
        assert "2 events" in str(caught.value)
        with open_source(server.url) as source:
            assert drain(source) == [events[0], b"c", b"e"]


def test_a_draining_server_is_left_for_another(three):
    import signal

    with open_queue(url_of(three[:2])) as queue:
        queue.put(b"1")
        queue.put(b"2")
        three[0].process.send_signal(signal.SIGUSR1)
        with contextlib.closing(Beanstalk.from_url(three[0].url)) as client:
            eventually(lambda: client.stats().get("draining") in ("true", True), what="the refusal of events")
        for n in range(10):
            queue.put(b"%d" % n)
    assert counts(three[:2]) == [1, 11]


def test_a_full_tube_is_told(server):
    from oio.event.queue import QueueFull

    with open_queue(server.url + "?max_jobs=10") as queue:
        queue.put_many([b"x"] * 10)
        time.sleep(1.1 if server.url.startswith("beanstalk") else 0)
        with pytest.raises(QueueFull):
            queue.put(b"x")
        with open_source(server.url) as source:
            assert len(drain(source)) == 10
        patiently(queue.put, b"x")
