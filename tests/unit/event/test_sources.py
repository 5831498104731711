# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""What every source of events does, each on its real server."""

import threading
import time

import pytest
from servers import BeanstalkdServer, RedisServer

from oio.event.queue import EventsRefused, open_queue, producer_url, split_urls
from oio.event.source import Job, SourceClosed, TubeStats, open_source

SERVERS = {"redis": RedisServer, "beanstalk": BeanstalkdServer}


@pytest.fixture(scope="module", params=["redis", "beanstalk", "spool"])
def url(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp(request.param)
    if request.param == "spool":
        yield f"spool://{directory}"
        return
    if SERVERS[request.param].program is None:
        pytest.skip(f"no server for {request.param} on this machine")
    with SERVERS[request.param](directory) as server:
        yield server.url


@pytest.fixture
def tube(request):
    return "t" + str(abs(hash(request.node.name)) % 10**9)


@pytest.fixture
def queue(url, tube):
    with open_queue(producer_url(url, "test", "1"), tube) as queue:
        yield queue


@pytest.fixture
def source(url, tube):
    with open_source(url, tube) as source:
        yield source


def eventually(source, timeout_s=10.0):
    job = source.reserve(timeout_s)
    assert job is not None
    return job


def drain(source):
    bodies = []
    # A server is asked at once; spools are looked at from time to time.
    while job := source.reserve(1.0 if source.url.startswith("spool") else 0):
        bodies.append(job.body)
        assert source.delete(job)
    return bodies


def test_events_come_out_in_order_and_once(queue, source):
    assert source.reserve(0) is None
    events = [b'{"n":%d}' % n for n in range(300)]
    queue.put_many(events)
    queue.put_many([])
    queue.put(b"last")
    assert queue.depth() == 301
    assert source.stats() == TubeStats(ready=301)
    assert drain(source) == [*events, b"last"]
    assert source.stats() == TubeStats()
    assert queue.depth() == 0


def test_a_job_is_settled_once(queue, source):
    queue.put_many([b"a", b"b", b"c"])
    jobs = [eventually(source) for _ in range(3)]
    assert [job.body for job in jobs] == [b"a", b"b", b"c"]
    assert source.touch(jobs[0])
    assert source.delete(jobs[0])
    assert not source.delete(jobs[0])
    assert source.bury(jobs[1])
    assert not source.release(jobs[1])
    assert source.release(jobs[2])
    assert not source.bury(jobs[2])
    assert drain(source) == [b"c"]
    assert source.stats() == TubeStats(buried=1)
    assert source.kick(10) == 1
    assert source.kick(10) == 0
    assert source.kick(0) == 0
    assert drain(source) == [b"b"]


def test_deliveries_are_counted(queue, source):
    queue.put(b"again")
    for attempt in range(1, 4):
        job = eventually(source)
        assert source.attempts(job) == attempt
        assert source.release(job)
    assert drain(source) == [b"again"]


def test_deliveries_are_counted_anew_after_a_burial(queue, source):
    queue.put_many([b"again", b"other"])
    for burial in range(3):
        for attempt in range(1, 4 - burial):
            job, other = eventually(source), eventually(source)
            if job.body == b"other":
                job, other = other, job
            assert source.attempts(job) == attempt
            # Whatever else is asked meanwhile, and with or without having asked.
            assert source.attempts(other) >= attempt
            assert source.release(other)
            if attempt < 3 - burial:
                assert source.release(job)
        assert source.bury(job)
        assert source.kick(10) == 1
    bodies = {job.body: source.attempts(job) for job in (eventually(source), eventually(source))}
    assert bodies == {b"again": 1, b"other": 7}


def test_the_id_stays_and_grows(url, queue, source):
    if url.startswith("spool:"):
        pytest.skip("ids of spools change when an event is released")
    queue.put_many([b"1", b"2"])
    first, second = eventually(source), eventually(source)
    assert int(first.id) < int(second.id)
    assert source.release(first)
    assert eventually(source).id == first.id


def test_a_delayed_job_waits(queue, source):
    queue.put(b"later")
    began = time.monotonic()
    assert source.release(eventually(source), 1)
    assert source.reserve(0.2) is None
    assert source.stats() == TubeStats(delayed=1)
    assert eventually(source).body == b"later"
    # beanstalkd counts from the last whole second.
    assert 0.9 <= time.monotonic() - began < 10


def test_delayed_jobs_can_be_kicked(queue, source):
    queue.put_many([b"one", b"two"])
    for _ in range(2):
        assert source.release(eventually(source), 100)
    assert source.reserve(0) is None
    assert source.kick(1) == 1
    assert len(drain(source)) == 1
    assert source.kick(100) == 1
    assert len(drain(source)) == 1


def test_what_is_put_later_is_seen_at_once(queue, source):
    for n in range(20):
        queue.put(b"%d" % n)
        assert source.delete(eventually(source))
        queue.put(b"more")
        assert source.delete(eventually(source))


def test_tubes_are_apart(url, queue, source, tube):
    queue.put(b"mine")
    with open_source(url, tube + "x") as other:
        assert other.stats() == TubeStats()
        assert other.reserve(0.1) is None
    assert drain(source) == [b"mine"]


def test_closing_gives_back(url, tube, queue, source):
    queue.put_many([b"%d" % n for n in range(40)])
    kept = {eventually(source).body for _ in range(3)}
    source.close()
    source.close()
    with pytest.raises(SourceClosed):
        source.reserve(1)
    with open_source(url, tube) as other:
        bodies = drain(other)
    assert sorted(bodies) == sorted(b"%d" % n for n in range(40))
    assert kept <= set(bodies)


def test_what_is_given_back_by_closing_is_no_attempt(url, tube, queue):
    queue.put(b"x")
    for _ in range(5):
        with open_source(url, tube) as other:
            eventually(other)
    with open_source(url, tube) as last:
        job = eventually(last)
        assert last.attempts(job) == 1
        assert last.release(job)
        assert last.attempts(eventually(last)) == 2


def test_settling_after_close_changes_nothing(url, tube, queue, source):
    queue.put(b"x")
    job = eventually(source)
    source.close()
    assert not source.delete(job)
    assert not source.release(job)
    with open_source(url, tube) as other:
        assert drain(other) == [b"x"]


def test_closing_wakes_those_who_wait(source):
    ended = []

    def wait():
        try:
            source.reserve(20)
        except SourceClosed:
            ended.append(True)

    threads = [threading.Thread(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    began = time.monotonic()
    source.close()
    for thread in threads:
        thread.join()
    assert ended == [True] * 3
    assert time.monotonic() - began < 10


def test_many_threads_share_a_source(queue, source):
    count = 1000
    seen, lock = [], threading.Lock()

    def consume():
        while job := source.reserve(1):
            with lock:
                seen.append(job.body)
            if int(job.body) % 10 == 0 and source.attempts(job) == 1:
                assert source.release(job)
            else:
                assert source.delete(job)

    def produce(start):
        for n in range(start, count, 4):
            queue.put(b"%d" % n)

    threads = [threading.Thread(target=consume) for _ in range(10)]
    threads += [threading.Thread(target=produce, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(seen) == {b"%d" % n for n in range(count)}
    assert len(seen) == count + count // 10
    assert source.stats() == TubeStats()


def test_two_sources_never_share_a_job(url, tube, queue, source):
    if url.startswith("spool:"):
        pytest.skip("a spool has one reader")
    queue.put_many([b"%d" % n for n in range(200)])
    with open_source(url, tube) as other:
        seen = []
        for n in range(200):
            taker = (source, other)[n % 2]
            job = taker.reserve(0.01)
            if job is not None:
                seen.append(job.body)
                assert taker.delete(job)
        seen += drain(source) + drain(other)
    assert sorted(seen) == sorted(b"%d" % n for n in range(200))


def test_bodies_are_bytes(queue, source):
    bodies = [bytes(range(256)), b"\r\n", b"a" * 60000, "é\0\n".encode()]
    queue.put_many(bodies)
    for body in bodies:
        job = eventually(source)
        assert job.body == body
        assert source.bury(job)
    assert source.kick(10) == len(bodies)
    assert sorted(drain(source)) == sorted(bodies)


def test_what_no_retry_can_help_is_refused(queue, source):
    large = b"x" * (17 << 20)
    with pytest.raises(EventsRefused) as caught:
        queue.put_many([b"before", large, b"after"])
    assert caught.value.events == [large]
    assert drain(source) == [b"before", b"after"]


BAD_URLS = [
    "", "nothing", "kafka://h:1", "redis://", "redis://h", "beanstalk://", "beanstalk://h:99999", "spool://h/x",
    "redis://h:1/0?depth=1", "redis://h:1/0?timeout_s=x", "redis://h:1/zero", "redis+sentinel://h:1",
]  # fmt: skip


@pytest.mark.parametrize("bad", BAD_URLS)
def test_malformed_urls_are_refused(bad):
    for opener in (open_queue, open_source):
        with pytest.raises(ValueError, match=r"://|URL"):
            opener(bad)


def test_a_source_is_one_server():
    assert split_urls("redis://h:1/0") == ["redis://h:1/0"]
    with pytest.raises(ValueError, match="one source"):
        open_source("beanstalk://h:1;beanstalk://h:2")


@pytest.mark.parametrize("name", ["", "a/b" * 100, "a b"])
def test_bad_names_of_tubes(name, tmp_path):
    with pytest.raises(ValueError, match="tube"):
        open_source("beanstalk://h:1", name)
    if " " not in name:
        with pytest.raises(ValueError, match="tube"):
            open_source(f"spool://{tmp_path}", name)


def test_jobs_tell_what_they_are():
    assert repr(Job("7", b"x" * 200)) == f"Job('7', {b'x' * 100!r})"
