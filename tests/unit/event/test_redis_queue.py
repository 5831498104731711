# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""What only tubes in Redis do: keys, reclaiming, fail-over of Sentinel."""

import threading
import time

import pytest
import redis
from redis_servers import SET, ReplicatedRedis
from servers import RedisServer

from oio.common.redis_server import find_redis_server
from oio.event.queue import QueueError, QueueFull, QueueTimeout, open_queue
from oio.event.source import SourceError, TubeStats, open_source
from oio.event.transport import redis_source

pytestmark = pytest.mark.skipif(find_redis_server() is None, reason="no Redis server on this machine")


@pytest.fixture
def server(tmp_path):
    with RedisServer(tmp_path / "redis") as server:
        yield server


@pytest.fixture
def client(server):
    with redis.Redis(port=server.port) as client:
        yield client


def patiently(function, *args):
    deadline = time.monotonic() + 20
    while True:
        try:
            return function(*args)
        except (QueueError, SourceError):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_the_keys_are_as_documented(server, client):
    with open_queue(server.url) as queue, open_source(server.url) as source:
        queue.put_many([b"ready", b"delayed", b"buried"])
        ((place, fields), *_) = client.xrange("oio:oio")
        assert fields == {b"b": b"ready"}
        jobs = [source.reserve(1) for _ in range(3)]
        milliseconds, _, rank = place.partition(b"-")
        assert int(jobs[0].id) == int(milliseconds) * 2**20 + int(rank)
        assert client.xinfo_groups("oio:oio")[0]["name"] == b"agents"
        source.release(jobs[0])
        ((_, moved), *_) = client.xrange("oio:oio", min="(" + client.xrange("oio:oio")[1][0].decode())
        assert moved == {b"b": b"ready", b"i": place, b"n": b"1"}
        source.release(jobs[1], 1000)
        ((member, due_ms),) = client.zrange("oio:oio:delayed", 0, -1, withscores=True)
        assert member.split(b" ", 2)[1:] == [b"1", b"delayed"]
        assert 990 < due_ms / 1000 - time.time() < 1010
        source.bury(jobs[2])
        ((_, buried),) = client.xrange("oio:oio:buried")
        assert buried[b"b"] == b"buried"
        assert client.smembers("oio:tubes") == {b"oio"}
        assert sorted(client.keys()) == [b"oio:oio", b"oio:oio:buried", b"oio:oio:delayed", b"oio:tubes"]


def test_consumers_leave_no_trace(server, client):
    with open_queue(server.url) as queue:
        queue.put_many([b"%d" % n for n in range(5)])
        for _ in range(3):
            with open_source(server.url) as source:
                assert source.reserve(1)
        assert client.xinfo_consumers("oio:oio", "agents") == []
        assert client.xlen("oio:oio") == 5
        with open_source(server.url) as source:
            # What was only given back was no attempt.
            assert source.attempts(source.reserve(1)) == 1


def test_scripts_and_groups_that_the_server_forgot_are_made_again(server, client):
    with open_queue(server.url) as queue, open_source(server.url) as source:
        queue.put(b"1")
        job = source.reserve(1)
        client.script_flush()
        queue.put(b"2")
        assert source.delete(job)
        client.flushall()
        assert patiently(source.reserve, 0.1) is None
        queue.put(b"3")
        assert patiently(source.reserve, 2).body == b"3"


def test_jobs_read_ahead_are_not_kept_for_long(server, monkeypatch):
    """A slow consumer takes few jobs in advance, and checks those that waited."""
    monkeypatch.setattr(redis_source, "READ_AHEAD_LONG_S", 0.02)
    monkeypatch.setattr(redis_source, "READ_AHEAD_SHORT_S", 0.0)
    with open_queue(server.url) as queue, open_source(server.url, ttr_s=0.6) as slow:
        queue.put_many([b"%d" % n for n in range(100)])
        for _ in range(30):
            job = slow.reserve(1)
            time.sleep(0.01)
            assert slow.delete(job)
        assert slow._read_ahead == 1
    with open_queue(server.url, "x") as queue, open_source(server.url, "x", ttr_s=2.0) as slow:
        queue.put_many([b"%d" % n for n in range(4)])
        with open_source(server.url, "x", ttr_s=2.0) as other:
            first = slow.reserve(1)
            time.sleep(2.1)
            taken = [other.reserve(3) for _ in range(4)]
            assert sorted(job.body for job in taken) == [b"0", b"1", b"2", b"3"]
            assert slow.reserve(0.1) is None
            assert not slow.delete(first)
            assert all(other.delete(job) for job in taken)


def test_a_server_without_memory_is_full(server, client):
    with open_queue(server.url) as queue, open_source(server.url) as source:
        assert source.reserve(0) is None
        queue.put(b"x")
        client.config_set("maxmemory", 1)
        with pytest.raises(QueueFull):
            queue.put(b"y")
        # Consumers empty it all the same, new ones too.
        job = source.reserve(1)
        with open_source(server.url) as other:
            assert other.reserve(0) is None
        assert source.delete(job)
        client.config_set("maxmemory", 0)
        queue.put(b"y")


def test_settlements_travel_together(server, monkeypatch):
    """Threads share round trips, and each gets its own answer."""
    with open_queue(server.url) as queue, open_source(server.url) as source:
        queue.put_many([b"%d" % n for n in range(64)])
        jobs = [source.reserve(1) for _ in range(64)]
        for job in jobs[::2]:
            source.delete(job)
        calls, outcomes = [], {}
        run = source._redis.run
        monkeypatch.setattr(source._redis, "run", lambda *args: (calls.append(1), time.sleep(0.01), run(*args))[2])
        threads = [
            threading.Thread(target=lambda job=job: outcomes.__setitem__(job.body, source.delete(job)))
            for job in jobs
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert outcomes == {b"%d" % n: n % 2 == 1 for n in range(64)}
        assert len(calls) < 16
        assert source.stats() == TubeStats()


def test_passwords_are_used_and_not_told(server, client):
    client.config_set("requirepass", "se:cret/@")
    url = f"redis://:se%3Acret%2F%40@{server.address}/0"
    with open_queue(url) as queue, open_source(url) as source:
        queue.put(b"x")
        assert source.reserve(1).body == b"x"
    with open_queue(url.replace("se%3A", "wrong")) as queue, open_source(url.replace("se%3A", "wrong")) as source:
        for call in (lambda: queue.put(b"x"), queue.depth, source.stats, lambda: source.reserve(0)):
            with pytest.raises((QueueError, SourceError), match=server.address) as caught:
                call()
            assert "cret" not in str(caught.value)
    with pytest.raises(ValueError, match="h") as malformed:
        open_queue("redis://:secret@h/0")
    assert "secret" not in str(malformed.value)


def test_replicas_must_have_the_events(server):
    with open_queue(server.url + "?replicas=1&timeout_s=0.5") as queue:
        with pytest.raises(QueueTimeout, match="0 of 1"):
            queue.put(b"x")


def test_events_outlive_their_master(tmp_path):
    """Sentinel promotes the replica; what was confirmed by both is delivered."""
    servers = ReplicatedRedis(tmp_path)
    try:
        url = f"redis+sentinel://{servers.sentinel.addr}/{SET}/0?replicas=1&timeout_s=1"
        put = []
        with open_queue(url) as queue, open_source(url) as source:
            patiently(queue.put, b"first")
            job = source.reserve(2)
            former = servers.master
            for n in range(100):
                if n == 50:
                    former.kill()
                    limit = time.monotonic() + 20
                    while servers.master is former:
                        assert time.monotonic() < limit
                        time.sleep(0.05)
                    former.start()
                patiently(queue.put, b"%d" % n)
                put.append(b"%d" % n)
            # The new master knows who has reserved what.
            assert patiently(source.delete, job)
            found = []
            while job := patiently(source.reserve, 0.5):
                found.append(job.body)
                assert patiently(source.delete, job)
        assert set(put) <= set(found)
        assert b"first" not in found
    finally:
        servers.stop()


def test_jobs_of_a_trickle_gather(server, monkeypatch):
    """Who keeps up waits a bit before it fetches again, and then fetches for all that came meanwhile."""
    with open_queue(server.url) as queue, open_source(server.url) as source:
        source.gather_s = 0.001
        assert source.reserve(0.1) is None
        calls = []
        run = source._redis.run
        monkeypatch.setattr(source._redis, "run", lambda *args: (calls.append(args[0]), run(*args))[1])

        def pause(deadline):
            if source._fetch_s:
                queue.put_many([b"2", b"3"])

        monkeypatch.setattr(source, "_pause", pause)
        queue.put(b"1")
        assert source.reserve(60).body == b"1"
        assert not source._buffer
        # The pause before the next fetch brings two.
        assert [source.reserve(60).body for _ in range(2)] == [b"2", b"3"]
        assert calls.count(redis_source.FETCH) == 2
        # An event that wakes up who waits is not alone either.
        source._fetch_s = 0.0
        assert source.reserve(0.1) is None
        threading.Timer(0.1, queue.put, [b"4"]).start()
        assert [source.reserve(60).body for _ in range(3)] == [b"4", b"2", b"3"]
        for job in list(source._reserved.values()):
            assert source.delete(job)


FOREIGN = [
    {"foo": "bar"}, {"b": "x", "i": "y", "n": "z"}, {"b": "x", "i": "1-1", "n": "9" * 20}, {b"\xff": b"\xfe"},
    {"b": ""}, {"b": "x", "i": "1-1", "n": "2", "more": "1"},
]  # fmt: skip


@pytest.mark.parametrize("waiting", [False, True])
def test_entries_that_others_wrote_are_delivered_and_hide_no_others(server, client, waiting):
    """They come as events without meaning, which the agent puts aside."""
    with open_queue(server.url) as queue, open_source(server.url) as source:
        if waiting:
            # One at a time, to a consumer that waits.
            for fields in FOREIGN:
                threading.Timer(0.05, client.xadd, ("oio:oio", fields)).start()
                job = source.reserve(10)
                assert job.id.isdigit() and source.attempts(job) >= 1
                assert source.bury(job)
        else:
            for fields in FOREIGN:
                client.xadd("oio:oio", fields)
                queue.put(b"good")
            client.zadd("oio:oio:delayed", {"junk": 1, "1-1 x y": 2})
            bodies = []
            for _ in range(2 * len(FOREIGN) + 2):
                job = source.reserve(10)
                bodies.append(job.body)
                assert source.bury(job) if job.body != b"good" else source.delete(job)
            assert bodies.count(b"good") == len(FOREIGN) and {b"junk", b"1-1 x y"} <= set(bodies)
        buried = len(FOREIGN) + (0 if waiting else 2)
        assert patiently(source.stats) == TubeStats(0, 0, 0, buried)
        assert source.kick(100) == buried
        for _ in range(buried):
            assert source.delete(source.reserve(10))
        assert patiently(source.stats) == TubeStats(0, 0, 0, 0)
