# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Events are copied to other tubes, all of them, or those of replicated containers."""

import contextlib
import json
import threading

import pytest
from filter_kit import Chain, WebServer, account_server, event
from servers import BeanstalkdServer, RedisServer
from support import eventually, held_port

from oio.account.client import AccountClient
from oio.common.exceptions import ConfigurationException, ExplicitBury
from oio.event.filters.notify import NotifyFilter
from oio.event.queue import EventsRefused, QueueError
from oio.event.source import open_source

NEW = "storage.content.new"


@pytest.fixture(scope="module", params=["redis", "beanstalk"])
def url(request, tmp_path_factory):
    """A real queue server."""
    kind = RedisServer if request.param == "redis" else BeanstalkdServer
    if kind.program is None:
        pytest.skip(f"{request.param} is not installed")
    with kind(tmp_path_factory.mktemp(request.param)) as server:
        yield server.url


@pytest.fixture(scope="module")
def redis(tmp_path_factory):
    with RedisServer(tmp_path_factory.mktemp("notify-redis")) as server:
        yield server.url


@contextlib.contextmanager
def notifier(name="notify", app_env=None, global_conf=None, **options):
    chain = Chain(name, app_env, global_conf, **options)
    try:
        yield chain
    finally:
        chain.filter.close()


def received(url, tube, count):
    """What stands in a tube, of which it is emptied."""
    bodies = []
    with open_source(url, tube) as source:
        for _ in range(count):
            job = source.reserve(5)
            assert job is not None, f"{len(bodies)} of {count} events"
            bodies.append(job.body)
            source.delete(job)
        assert source.reserve(0.01) is None
    return bodies


def test_events_are_copied_as_compact_json(url):
    one = event(NEW, data=[{"type": "aliases", "name": "été"}], job_id="42")
    with notifier(queue_url=url, tube="copies") as chain:
        assert chain.run(one) == 200
        assert chain.counts == {"notified": 1}
    (body,) = received(url, "copies", 1)
    assert body == json.dumps(one, separators=(",", ":")).encode("ascii")
    assert json.loads(body)["job_id"] == "42"


def test_events_that_come_together_are_put_together(url):
    with notifier(queue_url=url, tube="many") as chain:
        batches, entered, gate = [], threading.Event(), threading.Event()
        put_many = chain.filter._queue.put_many

        def slow(events, *args):
            batches.append(len(events))
            entered.set()
            gate.wait(10)
            put_many(events, *args)

        chain.filter._queue.put_many = slow
        callback = lambda status, message="": None  # noqa: E731
        threads = [
            threading.Thread(target=chain.filter, args=(event(NEW, job_id=str(number)), None, callback))
            for number in range(30)
        ]
        for number, thread in enumerate(threads):
            thread.start()
            if number == 0:
                entered.wait(5)
        eventually(lambda: len(chain.filter._batcher._group._queue) == 29)
        gate.set()
        for thread in threads:
            thread.join(10)
    assert batches == [1, 29]
    assert {json.loads(body)["job_id"] for body in received(url, "many", 30)} == {str(n) for n in range(30)}


def test_the_default_tube_is_not_the_one_of_the_agent(redis):
    with notifier(global_conf={"queue_url": redis, "tube": "oio"}) as chain:
        assert chain.filter.tube == "notif"
        assert chain.run(event(NEW)) == 200
    assert len(received(redis, "notif", 1)) == 1


@pytest.mark.parametrize(
    "agent_url, agent_tube, url, tube, refused",
    [
        ("beanstalk://h:1", "oio", "beanstalk://h:1", "oio", True),
        ("beanstalk://h:1", None, "beanstalk://H:1/", "oio", True),
        ("beanstalk://g:1;beanstalk://h:1", "oio", "beanstalk://h:1?ttr=5", "oio", True),
        ("beanstalk://h:1", "notif", "beanstalk://h:1", None, True),
        ("beanstalk://h:1", "oio", "beanstalk://h:2", "oio", False),
        ("beanstalk://h:1", "oio", "beanstalk://h:1", "other", False),
    ],
)
def test_a_loop_is_refused(agent_url, agent_tube, url, tube, refused):
    agent = {"queue_url": agent_url, **({"tube": agent_tube} if agent_tube else {})}
    options = {"queue_url": url, **({"tube": tube} if tube else {})}
    if refused:
        with pytest.raises(ConfigurationException, match="for ever"):
            Chain("notify", None, agent, **options)
    else:
        with notifier(global_conf=agent, **options) as chain:
            assert chain.filter.tube == tube


def test_a_queue_is_needed():
    for options in ({}, {"queue_url": ""}, {"queue_url": "http://127.0.0.1:1"}):
        with pytest.raises(ConfigurationException):
            Chain("notify", **options)


@pytest.mark.parametrize(
    "text, parsed",
    [
        (None, {}),
        ("", {}),
        ("a,b/x,c/y,c/z", {"a": [], "b": ["x"], "c": ["y", "z"]}),
        ("a, a/x", {"a": []}),
        ("a/x,a", {"a": []}),
        ("a/x,a/x", {"a": ["x"]}),
        ("AUTH%2Fdemo/b%2Cc,%C3%A9,,/x", {"AUTH/demo": ["b,c"], "é": []}),
        ("a/x%2Fy/z", {"a": ["x/y/z"]}),
    ],
)
def test_exclusions_are_parsed(text, parsed):
    assert NotifyFilter._parse_exclude(text) == parsed


def test_excluded_events_are_not_copied_and_go_on(redis):
    with notifier(queue_url=redis, tube="excluded", exclude="gone,acct/skip") as chain:
        for account, container in (("gone", "x"), ("acct", "skip"), ("acct", "keep"), ("other", "skip")):
            assert chain.run(event(NEW, url={"account": account, "user": container})) == 200
        assert chain.run(event("storage.chunk.new", url=None)) == 200
        assert chain.run({"event": "storage.chunk.new"}) == 200
    urls = [json.loads(body).get("url") for body in received(redis, "excluded", 4)]
    assert [url and url["user"] for url in urls] == ["keep", "skip", None, None]


@pytest.mark.parametrize("scheme", ["redis", "beanstalk"])
def test_a_queue_that_is_down_brings_the_event_back(scheme):
    sock, port = held_port()
    with sock, notifier(queue_url=f"{scheme}://127.0.0.1:{port}", tube="x") as chain:
        assert chain.run(event(NEW)) == 503


def test_what_the_queue_will_never_take_is_buried():
    with notifier(queue_url="redis://127.0.0.1:1/0") as chain:

        def refuse(events):
            raise EventsRefused("too large", events[:1])

        chain.filter._queue.put_many = refuse
        with pytest.raises(ExplicitBury):
            chain.run(event(NEW))
        # Those that came with it were put.
        assert [type(outcome) for outcome in chain.filter._put_many([b"1", b"2"])] == [EventsRefused, type(None)]
        chain.filter._queue.put_many = lambda events: (_ for _ in ()).throw(QueueError("full"))
        assert chain.run(event(NEW)) == 503


# --- replicate ---


@pytest.fixture
def account(tmp_path):
    with account_server(tmp_path) as server:
        yield server


def test_everything_that_can_be_replicated_is_copied_when_nothing_is_asked(redis):
    kinds = (NEW, "storage.container.state", "storage.content.rebuilt", "storage.content.perfectible")
    with notifier("replicate", queue_url=redis, tube="repli") as chain:
        for kind in (*kinds, "storage.content.drained", "storage.chunk.new", "account.services"):
            assert chain.run(event(kind)) == 200
    assert [json.loads(body)["event"] for body in received(redis, "repli", 4)] == list(kinds)


def test_events_of_replicated_containers_are_copied(redis, account):
    client = account.client
    client.container_update("acct", "b", {"mtime": 1.0, "bucket": "b"})
    client.container_update("acct", "c", {"mtime": 1.0, "bucket": "c"})
    client.bucket_update("b", {"replication_enabled": "true"}, None)
    options = {"queue_url": redis, "tube": "repli2", "check_replication_enabled": "true"}
    with notifier("replicate", account.env, **options) as chain:
        for _ in range(2):
            for container in ("b", "c", "unknown"):
                assert chain.run(event(NEW, url={"account": "acct", "user": container})) == 200
        assert chain.run(event(NEW, url=None)) == 200
    assert [json.loads(body)["url"]["user"] for body in received(redis, "repli2", 2)] == ["b", "b"]


def test_exclusions_hold_for_replication_too(redis):
    with notifier("replicate", queue_url=redis, tube="repli3", exclude="acct/c") as chain:
        assert chain.run(event(NEW)) == 200
    assert received(redis, "repli3", 0) == []


class FakeAccount:
    """What an account service tells, and how often it was asked."""

    def __init__(self):
        self.answer = (200, {"replication_enabled": True})
        self.server = WebServer(lambda request, _body: self.answer)
        self.client = AccountClient({"namespace": "NS"}, self.server.address, proxy_endpoint="127.0.0.1:1")


@pytest.fixture
def fake():
    fake = FakeAccount()
    yield fake
    fake.server.stop()


def test_answers_are_kept_and_asked_again(redis, fake):
    options = {"queue_url": redis, "tube": "repli4", "check_replication_enabled": "yes"}
    with notifier("replicate", {"account_client": fake.client}, cache_duration="3600", **options) as chain:
        assert [chain.run(event(NEW)) for _ in range(3)] == [200] * 3
        assert len(fake.server.requests) == 1
    with notifier(
        "replicate", {"account_client": fake.client}, cache_duration="0", force_master="1", **options
    ) as chain:
        assert [chain.run(event(NEW)) for _ in range(2)] == [200] * 2
        assert [request.query.get("force_master") for request in fake.server.requests[1:]] == ["True", "True"]
        # While it fails, the last answer holds.
        fake.answer = (503, {"message": "busy"})
        assert chain.run(event(NEW)) == 200
        chain.forget_pauses()
        fake.answer = (200, {"replication_enabled": False})
        assert chain.run(event(NEW)) == 200
        assert chain.counts == {"notified": 3, "not_replicated": 1}
    received(redis, "repli4", 6)


def test_an_event_whose_container_nothing_is_known_about_comes_again(redis, fake):
    fake.answer = (503, {"message": "busy"})
    options = {"queue_url": redis, "tube": "repli5", "check_replication_enabled": "1"}
    with notifier("replicate", {"account_client": fake.client}, **options) as chain:
        assert chain.run(event(NEW)) == 503
        assert chain.passed == []
    assert received(redis, "repli5", 0) == []


def test_the_cache_has_a_limit(redis, fake):
    options = {"queue_url": redis, "tube": "repli6", "check_replication_enabled": "1", "cache_size": "2"}
    with notifier("replicate", {"account_client": fake.client}, **options) as chain:
        for container in ("a", "b", "c", "a"):
            assert chain.run(event(NEW, url={"account": "acct", "user": container})) == 200
    assert len(fake.server.requests) == 4
    received(redis, "repli6", 4)
