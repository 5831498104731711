# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""The client of beanstalkd, its listener and its sender, and the client of queues, on real servers."""

import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
import time

import pytest
from servers import BeanstalkdServer, RedisServer
from support import ROOT, eventually

from oio.common.exceptions import (
    ConfigurationException,
    ExplicitBury,
    OioException,
    OioNetworkException,
    OioTimeout,
)
from oio.event import beanstalk as module
from oio.event.beanstalk import (
    Beanstalk,
    BeanstalkdListener,
    BeanstalkdSender,
    BeanstalkError,
    InvalidResponse,
    ResponseError,
)
from oio.event.client import EventClient
from oio.event.evob import Event, EventTypes
from oio.event.queue import open_queue
from oio.event.source import open_source

LOGGER = logging.getLogger("test")
needs_beanstalkd = pytest.mark.skipif(BeanstalkdServer.program is None, reason="no beanstalkd on this machine")
needs_redis = pytest.mark.skipif(RedisServer.program is None, reason="no Redis server on this machine")


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    with BeanstalkdServer(tmp_path_factory.mktemp("beanstalkd")) as server:
        yield server


@pytest.fixture
def server(tmp_path):
    with BeanstalkdServer(tmp_path / "beanstalkd") as server:
        yield server


@pytest.fixture
def tube(request):
    return f"t{abs(hash(request.node.name))}"


@pytest.fixture
def client(shared, tube):
    client = Beanstalk.from_url(shared.url, socket_timeout=5)
    client.use(tube)
    client.watch(tube)
    yield client
    client.close()


@needs_beanstalkd
def test_another_client_and_ours_understand_each_other(shared, tube):
    import greenstalk

    host, port = shared.address.split(":")
    with (
        greenstalk.Client((host, int(port)), encoding=None, use=tube, watch=tube) as other,
        open_queue(shared.url, tube) as queue,
        open_source(shared.url, tube) as source,
    ):
        queue.put_many([b"ours\r\n\0", b"second"])
        jobs = [other.reserve(timeout=5) for _ in range(2)]
        assert [job.body for job in jobs] == [b"ours\r\n\0", b"second"]
        other.delete(jobs[0])
        other.bury(jobs[1])
        assert source.kick(10) == 1
        job = source.reserve(5)
        # A burial ends the count of deliveries.
        assert (job.body, source.attempts(job)) == (b"second", 1)
        assert source.delete(job)
        other.put(b"theirs\r\n")
        job = source.reserve(5)
        assert (job.body, source.attempts(job)) == (b"theirs\r\n", 1)
        assert source.bury(job)
        assert other.kick(10) == 1
        other.delete(other.reserve(timeout=5))


# --- client ---------------------------------------------------------------------------------------


@needs_beanstalkd
def test_the_life_of_a_job(client, tube):
    job_id = client.put("héllo\r\n")
    assert isinstance(job_id, str)
    assert client.peek_ready() == (job_id, "héllo\r\n")
    assert client.reserve(timeout=1) == (job_id, "héllo\r\n")
    assert client.release(job_id) is None
    assert client.reserve() == (job_id, "héllo\r\n")
    assert client.bury(job_id) is None
    assert client.peek_buried() == (job_id, "héllo\r\n")
    assert client.kick_job(job_id) is None
    client.bury(client.reserve(timeout=1)[0])
    assert client.kick() == 1
    assert client.kick() == 0
    assert client.delete(client.reserve(timeout=1)[0]) is None
    assert client.peek_ready() == (None, None)
    assert client.peek_buried() == (None, None)
    stats = client.stats_tube(tube)
    assert stats["name"] == tube
    assert stats["current-jobs-ready"] == 0
    assert client.stats()["max-job-size"] == 65535
    assert {tube, "default"} <= set(client.tubes())


@needs_beanstalkd
def test_refusals_are_told(client):
    with pytest.raises(ResponseError, match="TIMED_OUT"):
        client.reserve(timeout=0)
    for call in (client.delete, client.release, client.bury, client.kick_job):
        with pytest.raises(ResponseError, match="NOT_FOUND") as caught:
            call("999999")
        assert isinstance(caught.value, BeanstalkError)
        assert caught.value.status == "NOT_FOUND"
    with pytest.raises(ResponseError, match="NOT_FOUND"):
        client.stats_tube("no-such-tube")
    with pytest.raises(ResponseError, match="JOB_TOO_BIG"):
        client.put("x" * 65536)
    with pytest.raises(AssertionError):
        client.put(b"bytes")
    client.put("still fine")
    client.delete(client.reserve(timeout=1)[0])


@needs_beanstalkd
def test_what_the_server_would_misunderstand_is_never_sent(client, tube):
    """The body of a refused ``put`` would be taken for commands, and all later replies be those of others."""
    kept = client.put("kept")
    client.reserve(timeout=1)
    for numbers in ({"priority": -1}, {"priority": 2**32}, {"delay": -1}, {"ttr": 2**32}):
        with pytest.raises(InvalidResponse):
            client.put(f"delete {kept}\r\nx", **numbers)
    for bad in ("a b", "", "-a", "x" * 201, "é", None, f"{tube}\r\ndelete {kept}"):
        for call in (client.use, client.watch, client.stats_tube):
            with pytest.raises(InvalidResponse):
                call(bad)
    with pytest.raises(InvalidResponse):
        client.delete(f"999999\r\ndelete {kept}")
    # The connection, its tubes and what it reserved are as before.
    assert client.stats_tube(tube)["current-jobs-reserved"] == 1
    job_id = client.put("later")
    assert client.peek_ready() == (job_id, "later")
    client.delete(kept)


@needs_beanstalkd
def test_an_unknown_reply_is_invalid_and_ends_the_connection(client, tube):
    with pytest.raises(InvalidResponse):
        client.delete("no number")
    assert client.put("x") == client.peek_ready()[0]


@needs_beanstalkd
def test_closing_wakes_the_thread_that_waits(shared, tube):
    client = Beanstalk.from_url(shared.url)
    client.watch(tube)
    failures = []

    def wait():
        try:
            client.reserve()
        except BeanstalkError as exc:
            failures.append(exc)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    with contextlib.closing(Beanstalk.from_url(shared.url)) as other:
        eventually(lambda: tube in other.tubes() and other.stats_tube(tube)["current-waiting"] == 1)
    client.close()
    thread.join(10)
    assert not thread.is_alive()
    assert isinstance(failures[0], module.ConnectionError)


@needs_beanstalkd
def test_priorities_and_delays(client):
    client.put("low", priority=2**32 - 1)
    client.put("usual")
    client.put("high", priority=1)
    client.put("late", delay=3, ttr=10)
    assert [client.reserve(timeout=10)[1] for _ in range(4)] == ["high", "usual", "low", "late"]
    client.close()  # gives them back, and connects again
    assert client.reserve(timeout=1)[1] == "high"
    client.drain_tube("nothing-here")


@needs_beanstalkd
def test_draining_and_waiting(client, shared, tube):
    for n in range(5):
        client.put(str(n))
    client.bury(client.reserve(timeout=1)[0])
    assert client.wait_for_ready_job(tube, timeout=1)[1] == "1"
    client.drain_tube(tube)
    client.drain_buried(tube)
    client.wait_until_empty(tube, timeout=1)
    began = time.monotonic()
    assert client.wait_for_ready_job(tube, timeout=0.3, poll_interval=0.1) == (None, None)
    client.put("x")
    client.wait_until_empty(tube, timeout=0.3, poll_interval=0.1)
    assert 0.3 <= time.monotonic() - began < 3
    client.wait_until_empty("no-such-tube", timeout=9)
    client.drain_tube(tube)


@needs_beanstalkd
def test_tubes_are_chosen_again_after_a_failure(server):
    client = Beanstalk.from_url(server.url, socket_timeout=2)
    client.use("mine")
    client.watch("mine")
    client.put("one")
    server.kill()
    with pytest.raises(module.ConnectionError):
        client.put("two")
    with pytest.raises(module.ConnectionError):
        client.put("two")
    server.start()
    client.put("three")
    assert [client.reserve(timeout=1)[1] for _ in range(2)] == ["one", "three"]
    server.freeze()
    with pytest.raises(module.TimeoutError):
        client.stats()
    server.thaw()
    assert client.stats()
    client.close()


def test_urls():
    assert Beanstalk.from_url("beanstalk://h:12").port == 12
    assert Beanstalk.from_url("beanstalk://h").port == 11300
    with pytest.raises(module.ConnectionError, match="Empty URL"):
        Beanstalk.from_url("")
    for bad in ("beanstalk://", "beanstalk://h:x"):
        with pytest.raises(module.ConnectionError, match="Invalid URL"):
            Beanstalk.from_url(bad)
    with pytest.warns(DeprecationWarning):
        assert Beanstalk.from_url("tcp://h:12").host == "h"
    assert (module.DEFAULT_PRIORITY, module.DEFAULT_TTR) == (2**31, 120)
    for error in (module.ConnectionError, module.TimeoutError, ResponseError, module.InvalidResponse):
        assert issubclass(error, BeanstalkError)


def test_what_is_no_beanstalkd():
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer():
            for line in (b"HTTP/1.1 400 what\r\n", b"OK many\r\n", b"x" * 5000):
                connection = listener.accept()[0]
                with connection:
                    connection.recv(100)
                    connection.sendall(line)

        thread = threading.Thread(target=answer)
        thread.start()
        client = Beanstalk("127.0.0.1", listener.getsockname()[1], socket_timeout=2)
        for _ in range(3):
            with pytest.raises((module.InvalidResponse, module.ConnectionError)):
                client.stats()
        thread.join()


# --- listener and sender --------------------------------------------------------------------------


@needs_beanstalkd
def test_a_listener_deletes_what_is_consumed(client, shared, tube):
    listener = BeanstalkdListener(shared.address, tube, LOGGER)
    assert listener.addr == shared.url
    client.put("abc")
    client.put("de")
    assert list(listener.fetch_job(lambda job_id, data: iter(data))) == ["a", "b", "c"]
    reader = listener.fetch_job(lambda job_id, data, more: iter(data + more), more="f")
    assert next(reader) == "d"
    reader.close()
    with pytest.raises(OioTimeout):
        list(listener.fetch_job(lambda job_id, data: iter(data), timeout=0))
    assert client.stats_tube(tube)["current-jobs-buried"] == 0
    listener.close()


@needs_beanstalkd
def test_a_listener_buries_what_fails(client, shared, tube, caplog):
    listener = BeanstalkdListener(shared.url, tube, LOGGER)

    def fail(_job_id, data):
        yield data
        raise {"bury": ExplicitBury, "bug": ValueError}[data](data)

    for body in ("bury", "bug"):
        client.put(body)
        assert list(listener.fetch_job(fail, timeout=1)) == [body]
    assert client.stats_tube(tube)["current-jobs-buried"] == 2
    assert [record.levelname for record in caplog.records] == ["WARNING", "ERROR"]
    client.kick()
    client.drain_tube(tube)
    listener.close()


@needs_beanstalkd
def test_a_listener_listens_until_it_is_told(client, shared, tube):
    listener = BeanstalkdListener(shared.url, tube, LOGGER)
    seen = []

    def listen():
        seen.extend(listener.fetch_jobs(lambda job_id, data: [data], reserve_timeout=0))

    thread = threading.Thread(target=listen)
    thread.start()
    for n in range(5):
        client.put(str(n))
    client.wait_until_empty(tube, timeout=5, poll_interval=0.02)
    listener.running = False
    thread.join()
    assert seen == ["0", "1", "2", "3", "4"]
    listener.close()


@needs_beanstalkd
def test_a_listener_waits_for_its_server(server, monkeypatch):
    monkeypatch.setattr(module, "RECONNECT_PAUSE_S", 0.01)
    listener = BeanstalkdListener(server.url, "x", LOGGER)
    server.kill()
    assert list(listener.fetch_job(lambda job_id, data: [data], timeout=0)) == []
    server.start()
    sender = BeanstalkdSender(server.address, "x", LOGGER)
    assert sender.send_job("back")
    assert list(listener.fetch_job(lambda job_id, data: [data], timeout=1)) == ["back"]
    server.kill()
    assert not sender.send_job("lost")
    assert not sender.send_job("lost")
    server.start()
    assert sender.send_job("again")
    assert sender.nb_jobs == 2
    for user in (listener, sender):
        user.close()
    with pytest.raises(module.ConnectionError):
        BeanstalkdListener("127.0.0.1:1", "x", LOGGER)


@needs_beanstalkd
def test_a_sender_refuses_when_too_much_is_not_done(client, shared, tube):
    sender = BeanstalkdSender(shared.address, tube, LOGGER, low_limit=2, high_limit=4)
    assert [sender.send_job(str(n), delay=0) for n in range(6)] == [True] * 4 + [False] * 2
    sender.job_done()
    assert not sender.send_job("no")
    sender.job_done()
    assert sender.nb_jobs == 2
    assert sender.send_job("yes")
    assert not sender.send_job("x" * 70000)
    client.drain_tube(tube)
    sender.close()


# --- client of queues -----------------------------------------------------------------------------


@pytest.fixture(params=["redis", "beanstalk", "spool"])
def url(request, tmp_path):
    if request.param == "spool":
        yield f"spool://{tmp_path}"
        return
    kind = {"redis": RedisServer, "beanstalk": BeanstalkdServer}[request.param]
    if kind.program is None:
        pytest.skip(f"no server for {request.param} on this machine")
    with kind(tmp_path / "queue") as server:
        yield server.url


def test_operating_a_queue(url):
    client = EventClient({"namespace": "NS", "event-agent": url})
    queue_url = url + "/producer" if url.startswith("spool") else url
    with open_queue(queue_url) as queue, open_queue(queue_url, "other") as other:
        other.put(b"2")
        queue.put_many([b"1", b"2", b"3"])
        with open_source(url) as source:
            for _ in range(2):
                assert source.bury(source.reserve(1))
            assert source.release(source.reserve(1), 100)
        assert {"oio", "other"} <= set(client.list_tubes())
        stats = client.stats()
        assert stats["name"] == "oio"
        states = ("ready", "reserved", "delayed", "buried")
        assert [stats[f"current-jobs-{state}"] for state in states] == [0, 0, 1, 2]
        assert client.exhume(limit=1) == 1
        assert client.exhume() == 1
        assert client.exhume() == 1
        assert client.exhume(tube="other") == 0
        assert client.stats(tube="other")["current-jobs-ready"] == 1


def test_the_queue_is_drawn_from_the_configuration():
    drawn = {
        EventClient({"event-agent": "beanstalk://h:1; beanstalk://h:2;"}).queue_url for _ in range(100)
    }
    assert drawn == {"beanstalk://h:1", "beanstalk://h:2"}
    with pytest.raises(ConfigurationException):
        EventClient({"namespace": "no such namespace"})


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1/0", "beanstalk://127.0.0.1:1"])
def test_a_queue_that_is_down(url):
    client = EventClient({"event-agent": url})
    for call in (client.exhume, client.list_tubes, client.stats):
        with pytest.raises(OioNetworkException, match="Event queue"):
            call()


@needs_beanstalkd
def test_statistics_of_no_tube(shared):
    with pytest.raises(OioException, match="NOT_FOUND"):
        EventClient({"event-agent": shared.url}).stats(tube="none")


@needs_redis
def test_the_commands(tmp_path, monkeypatch, capsys):
    from oio.cli.openio import main

    with RedisServer(tmp_path / "queue") as server:
        conf = tmp_path / "sds.conf"
        conf.write_text(f"[QNS]\nproxy=127.0.0.1:1\nevent-agent={server.url}\n")
        monkeypatch.setenv("OIO_CONFIG", str(conf))
        monkeypatch.setattr("oio.common.configuration._config_paths", lambda: [(str(conf), True)])
        with open_queue(server.url, "mine") as queue, open_source(server.url, "mine") as source:
            queue.put(b"x")
            source.bury(source.reserve(1))

        def run(*words):
            assert main(["--ns", "QNS", "events", *words, "-f", "json"]) == 0
            return json.loads(capsys.readouterr().out)

        assert run("tubes") == [{"Tubes": "mine"}]
        assert run("stats", "--tube", "mine")["current-jobs-buried"] == 1
        assert run("exhume", "--tube", "mine", "--limit", "5") == {"Exhumed": 1}
        assert run("exhume") == {"Exhumed": 0}


def test_events_as_objects():
    event = Event({"event": EventTypes.CHUNK_NEW, "when": 5, "request_id": "r", "job_id": "9", "data": {"a": 1}})
    assert (event.event_type, event.when, event.reqid, event.job_id, event.data, event.url) == (
        "storage.chunk.new", 5, "r", "9", {"a": 1}, None
    )  # fmt: skip
    assert "storage.chunk.new" in repr(event)
    assert EventTypes.CONTENT_DELETED in EventTypes.CONTENT_EVENTS


@needs_beanstalkd
@pytest.mark.parametrize("prefix", ["", "beanstalk://"])
def test_buried_events_are_dumped_and_deleted(shared, client, tube, prefix):
    bodies = ['{"event":"a"}', '{"path":"\u00e9"}', "no event"]
    for body in bodies:
        client.put(body)
        client.bury(client.reserve(timeout=1)[0])
    client.put("ready")
    program = str(ROOT / "tools/oio-dump-buried-events.py")
    command = [sys.executable, program, prefix + shared.address, "--tube", tube]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, env=environment, timeout=60, check=True)
    assert done.stdout.decode().splitlines() == bodies
    assert b"3 events" in done.stderr
    assert client.peek_buried() == (None, None)
    assert client.peek_ready()[1] == "ready"


def test_events_cannot_be_dumped_from_nowhere():
    command = [sys.executable, str(ROOT / "tools/oio-dump-buried-events.py"), "127.0.0.1:1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, env=environment, timeout=60, check=False)
    assert done.returncode == 1 and b"refused" in done.stderr and b"Traceback" not in done.stderr
