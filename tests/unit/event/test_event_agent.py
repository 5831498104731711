# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""The event agent and its cleaner, against a rawx and a proxy made of real sockets."""

import json
import logging
import shutil
import time
from pathlib import Path

import pytest
from support import eventually, held_port

from oio.common.exceptions import ConfigurationException, OioException
from oio.event import agent as agent_module
from oio.event import cleaner as cleaner_module
from oio.event import filters as filters_module
from oio.event.agent import EventAgent, EventAgentSettings, load_event_agent_settings
from oio.event.cleaner import ServiceBackoff, backoff, chunks_of
from oio.event.filters import BuryEvent, Filter
from oio.event.retry_store import PendingChunk, RetryStore, StoreError
from oio.event.spool import SpoolQueue, spool_depth
from oio.http.server import Response, Server

ETC = Path(__file__).parents[3] / "etc"
LOGGER = logging.getLogger("test")


class FakeCluster:
    """A proxy that resolves and a rawx that deletes, on one port each."""

    def __init__(self):
        self.addresses = {}
        self.chunks = set()
        self.answers = {}
        self.deletions = []
        self.resolutions = 0
        self.proxy = Server(self._resolve, [("127.0.0.1", 0)])
        self.proxy.start()
        self.rawx = None
        self.held, self.rawx_port = held_port()
        self.addresses["NS-rawx-1"] = f"127.0.0.1:{self.rawx_port}"

    def start_rawx(self):
        self.rawx = Server(self._delete, [("127.0.0.1", self.rawx_port)])
        self.rawx.start()

    def stop(self):
        self.proxy.stop(0.1)
        if self.rawx:
            self.rawx.stop(0.1)
        self.held.close()

    @property
    def proxy_address(self):
        return f"127.0.0.1:{self.proxy.addresses[0][1]}"

    def _resolve(self, request):
        self.resolutions += 1
        assert request.path == "/v3.0/NS/conscience/resolve" and request.query["type"] == "rawx"
        address = self.addresses.get(request.query["service_id"])
        if address is None:
            return Response(503, b'{"status":503,"message":"not found"}')
        return Response(200, json.dumps({"addr": address}).encode())

    def _delete(self, request):
        chunk = request.path[1:]
        self.deletions.append((request.method, chunk, request.reqid))
        if chunk in self.answers:
            return Response(self.answers[chunk])
        if chunk not in self.chunks:
            return Response(404)
        self.chunks.discard(chunk)
        return Response(204)


@pytest.fixture
def cluster():
    cluster = FakeCluster()
    yield cluster
    cluster.stop()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(cleaner_module, "RETRY_PERIOD_S", 0.02)
    monkeypatch.setattr(cleaner_module, "SERVICE_BACKOFF_MIN_S", 0.05)
    monkeypatch.setattr(cleaner_module, "CHUNK_BACKOFF_MIN_S", 0.05)


@pytest.fixture
def run_agent(tmp_path, cluster):
    agents = []

    def run(**more):
        settings = EventAgentSettings(
            "NS", str(tmp_path / "spools"), str(tmp_path / "state"), concurrency=2, **more
        )
        agent = EventAgent(settings, cluster.proxy_address, LOGGER)
        agents.append(agent)
        agent.start()
        return agent

    yield run
    for agent in agents:
        agent.stop(2)


@pytest.fixture
def queue(tmp_path):
    queue = SpoolQueue(str(tmp_path / "spools" / "NS-meta2-1"), fsync=False)
    yield queue
    queue.close()


def deleted(*urls, kind="storage.content.deleted", **more):
    beans = [{"type": "aliases", "name": "o"}, {"type": "contents_headers", "id": "00"}]
    beans += [{"type": "chunks", "id": url, "pos": "0", "hash": "00", "size": 1} for url in urls]
    return json.dumps({"event": kind, "when": 1, "request_id": "REQ", "data": beans, **more}).encode()


def chunk_id(number):
    return f"{number:064X}"


def test_chunks_are_deleted(run_agent, cluster, queue):
    cluster.start_rawx()
    cluster.chunks = {chunk_id(n) for n in range(1, 5)}
    agent = run_agent()
    queue.put(deleted(f"http://NS-rawx-1/{chunk_id(1)}", f"http://NS-rawx-1/{chunk_id(2)}"))
    queue.put(deleted(f"http://127.0.0.1:{cluster.rawx_port}/{chunk_id(3)}"))
    queue.put(deleted(f"http://NS-rawx-1/{chunk_id(4)}", kind="storage.content.drained"))
    queue.put(deleted(f"http://NS-rawx-1/{chunk_id(9)}"))
    queue.put(b'{"event":"storage.content.new","when":1,"data":[]}')
    eventually(lambda: sum(agent.counts().values()) == 5)
    assert cluster.chunks == set()
    assert {(method, reqid) for method, _, reqid in cluster.deletions} == {("DELETE", "REQ")}
    assert cluster.resolutions <= 2
    assert agent.counts()["storage.content.new", "ignored"] == 1
    assert agent.store.counts() == {"pending": 0, "postponed": 0, "buried": 0}
    assert agent._pipelines.filters["content_cleaner"].metrics()["missing"] == 1
    eventually(lambda: spool_depth(queue.directory) == 0)


def test_a_dead_rawx_delays_nobody_and_nothing_is_forgotten(run_agent, cluster, queue):
    alive = Server(lambda request: Response(204), [("127.0.0.1", 0)])
    alive.start()
    other_port = alive.addresses[0][1]
    cluster.chunks = {chunk_id(n) for n in range(50)}
    agent = run_agent()
    for number in range(50):
        queue.put(deleted(f"http://NS-rawx-1/{chunk_id(number)}"))
    queue.put(deleted(f"http://127.0.0.1:{other_port}/{chunk_id(99)}"))
    eventually(lambda: sum(agent.counts().values()) == 51)
    metrics = agent._pipelines.filters["content_cleaner"].metrics()
    assert metrics["deleted"] == 1
    assert agent.store.counts()["pending"] == 50
    eventually(lambda: spool_depth(queue.directory) == 0)
    # Neither a stop of the agent nor anything else loses them.
    agent.stop(2)
    agent = run_agent()
    cluster.start_rawx()
    eventually(lambda: cluster.chunks == set())
    eventually(lambda: agent.store.counts()["pending"] == 0)
    eventually(lambda: agent.store.services() == [])
    alive.stop(0.1)


def test_an_unknown_service_is_asked_again(run_agent, cluster, queue):
    cluster.start_rawx()
    cluster.chunks = {chunk_id(1)}
    agent = run_agent()
    queue.put(deleted(f"http://NS-rawx-7/{chunk_id(1)}"))
    eventually(lambda: agent.store.counts()["pending"] == 1)
    cluster.addresses["NS-rawx-7"] = cluster.addresses["NS-rawx-1"]
    eventually(lambda: cluster.chunks == set())


@pytest.mark.parametrize("status", [400, 403, 418, 500, 503])
def test_a_refused_chunk_is_tried_again_and_holds_nobody(run_agent, cluster, queue, status):
    cluster.start_rawx()
    cluster.chunks = {chunk_id(1), chunk_id(2)}
    cluster.answers = {chunk_id(1): status}
    agent = run_agent()
    queue.put(deleted(*(f"http://NS-rawx-1/{chunk_id(n)}" for n in (1, 2))))
    eventually(lambda: cluster.chunks == {chunk_id(1)})
    del cluster.answers[chunk_id(1)]
    eventually(lambda: cluster.chunks == set())
    eventually(lambda: agent.store.counts()["pending"] == 0)


def test_delay(run_agent, cluster, queue):
    cluster.start_rawx()
    cluster.chunks = {chunk_id(1), chunk_id(2)}
    agent = run_agent(delay_s=3600)
    now_us = int(time.time() * 1e6)
    queue.put(deleted(f"http://NS-rawx-1/{chunk_id(1)}", when=now_us))
    queue.put(deleted(f"http://NS-rawx-1/{chunk_id(2)}", when=now_us - 3600 * 10**6))
    eventually(lambda: cluster.chunks == {chunk_id(1)})
    assert agent.store.counts()["pending"] >= 1


def test_what_cannot_be_understood_is_kept(run_agent, cluster, queue):
    agent = run_agent()
    bad = [b"{", b"[]", b"{}", b'{"event":5}', deleted("http://rawx/x"), deleted(data=[1]), deleted(data={"a": 1})]
    queue.put_many(bad)
    eventually(lambda: sum(agent.counts().values()) == len(bad))
    assert agent.store.counts()["buried"] == len(bad)
    assert sum(count for (_, outcome), count in agent.counts().items() if outcome == "buried") == len(bad)


def test_what_cannot_be_remembered_stays_in_the_spool(run_agent, cluster, queue, monkeypatch):
    agent = run_agent()

    def broken(*statements):
        raise StoreError("no space")

    with monkeypatch.context() as patch:
        patch.setattr(agent.store, "_change", broken)
        queue.put(deleted(f"http://NS-rawx-1/{chunk_id(1)}"))
        eventually(lambda: ("storage.content.deleted", "retry") in agent.counts())
        agent.stop(2)
    assert spool_depth(queue.directory) == 1


def test_a_failing_pipeline_holds_only_its_own_events(run_agent, cluster, queue, monkeypatch, caplog):
    monkeypatch.setattr(agent_module, "RETRY_DELAY_S", 0.05)
    monkeypatch.setattr(agent_module, "RETRY_DELAY_MAX_S", 0.1)
    monkeypatch.setattr(agent_module, "SAVE_PERIOD_S", 0.05)
    failing = [True]
    handled = []

    class Fragile(Filter):
        def process(self, event):
            if failing:
                raise OioException("the consumer is down")
            handled.append(event["n"])

    builtin = {**filters_module.builtin_filters(), "fragile": Fragile}
    monkeypatch.setattr(filters_module, "builtin_filters", lambda: builtin)
    monkeypatch.setitem(filters_module.DEFAULT_PIPELINES, "fragile", ["fragile"])
    cluster.start_rawx()
    cluster.chunks = {chunk_id(1)}
    agent = run_agent()
    count = 100
    queue.put_many([b'{"event":"fragile","n":%d}' % n for n in range(count)])
    queue.put(deleted(f"http://NS-rawx-1/{chunk_id(1)}"))
    eventually(lambda: cluster.chunks == set())
    eventually(lambda: spool_depth(queue.directory) == 0)
    assert agent.store.counts()["postponed"] == count
    eventually(lambda: agent.counts()["fragile", "retry"] > 2 * count)
    agent.stop(2)
    complaints = [one for one in caplog.records if "fragile" in one.getMessage()]
    assert [(one.levelname, one.exc_info) for one in complaints] == [("WARNING", None)]
    failing.clear()
    agent = run_agent()
    eventually(lambda: agent.store.counts()["postponed"] == 0)
    assert sorted(set(handled)) == list(range(count))


def test_new_spools_are_found(run_agent, cluster, tmp_path):
    agent = run_agent()
    with SpoolQueue(str(tmp_path / "spools" / "NS-rawx-1" / "w0")) as queue:
        queue.put(b'{"event":"test.ignored"}')
        eventually(lambda: sum(agent.counts().values()) == 1)
    assert b"event_agent_events_total" in agent.metrics(None).body


def test_a_removed_spool_disturbs_nobody(run_agent, cluster, queue, tmp_path):
    doomed = tmp_path / "spools" / "AA"
    agent = run_agent()
    with SpoolQueue(str(doomed)) as other:
        other.put(b'{"event":"x"}')
        eventually(lambda: sum(agent.counts().values()) == 1)
    shutil.rmtree(doomed)
    eventually(lambda: str(doomed) not in agent._readers)
    queue.put(b'{"event":"y"}')
    eventually(lambda: sum(agent.counts().values()) == 2)


def test_handlers_file(run_agent, cluster, queue, tmp_path):
    path = tmp_path / "handlers.conf"
    path.write_text(
        "[handler:storage.content.deleted]\npipeline = log content_cleaner\n[handler:other]\n"
        "[filter:log]\nuse = egg:oio#logger\n[filter:content_cleaner]\n"
        "use = egg:oio#content_cleaner\ntimeout = 4.5\n"
    )
    cluster.start_rawx()
    cluster.chunks = {chunk_id(1)}
    agent = run_agent(handlers_conf=str(path))
    queue.put(deleted(f"http://NS-rawx-1/{chunk_id(1)}"))
    queue.put(b'{"event":"other"}')
    eventually(lambda: sum(agent.counts().values()) == 2)
    assert cluster.chunks == set()
    assert agent.counts()["other", "handled"] == 1


@pytest.mark.parametrize(
    "text",
    [
        "nonsense",
        "[handler:a]\npipeline = x\n",
        "[handler:a]\npipeline = x\n[filter:x]\nuse = egg:oio#none\n",
        "[handler:a]\npipeline = x\n[filter:x]\n",
        "[handler:a]\npipeline = x\n[filter:x]\nuse = egg:oio#content_cleaner\ntimeout = soon\n",
    ],
)
def test_bad_handlers_file(run_agent, tmp_path, text):
    path = tmp_path / "handlers.conf"
    path.write_text(text)
    with pytest.raises(ConfigurationException):
        run_agent(handlers_conf=str(path))


def test_two_agents_do_not_share_their_state(run_agent):
    run_agent()
    with pytest.raises(StoreError):
        run_agent()


def test_store(tmp_path):
    store = RetryStore(str(tmp_path / "x" / "retry.db"))
    rows = [PendingChunk("a", "1", 5.0), PendingChunk("a", "2", 6.0, 3, "r"), PendingChunk("b", "1")]
    store.add(rows)
    store.add([PendingChunk("a", "2", 9.0)])
    assert sorted(store.services()) == ["a", "b"]
    assert store.due("a", 5.5, 10) == rows[:1]
    assert store.due("a", 6.0, 10) == rows[:2]
    store.settle([rows[0]], [rows[1]._replace(due_s=7.0, attempts=4)])
    assert store.due("a", 7.0, 10) == [PendingChunk("a", "2", 7.0, 4, "r")]
    store.forget_service("a")
    store.settle([rows[1]], [])
    store.forget_service("a")
    assert store.services() == ["b"]
    store.close()
    with pytest.raises(StoreError):
        store.add(rows)


def test_chunks_of():
    url = f"http://NS-rawx-1/{chunk_id(1)}"
    event = json.loads(deleted(url, url, f"https://[::1]:60/{chunk_id(2)}"))
    found = [(chunk.service, chunk.chunk, chunk.request_id) for chunk in chunks_of(event)]
    assert found == [("NS-rawx-1", chunk_id(1), "REQ"), ("[::1]:60", chunk_id(2), "REQ")]
    assert chunks_of({"event": "x"}) == []
    assert chunks_of({"event": "x", "data": []}) == []
    for bad in ("", "http://rawx", "http://rawx/xyz", f"ftp://rawx/{chunk_id(1)}", f"http://a b/{chunk_id(1)}"):
        with pytest.raises(BuryEvent):
            chunks_of(json.loads(deleted(bad)))


def test_backoff(monkeypatch):
    assert all(0.5 <= backoff(0, 1, 60) <= 1 for _ in range(100))
    assert all(30 <= backoff(1000, 1, 60) <= 60 for _ in range(100))
    monkeypatch.setattr(cleaner_module, "SERVICE_BACKOFF_MIN_S", 100)
    services = ServiceBackoff()
    assert not services.is_closed("a")
    assert services.failed("a") is not None
    assert services.is_closed("a") and not services.is_closed("b")
    assert services.failed("a") is None
    services.succeeded("a")
    assert not services.is_closed("a")


def test_sample(tmp_path):
    settings = load_event_agent_settings(str(ETC / "event-agent.conf-sample"))
    assert settings.namespace == "OPENIO"
    assert settings.spool_dir.startswith("/")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[event-agent]\nnamespace=NS\n",
        "[event-agent]\nqueue_url=spool:///x\n",
        "[event-agent]\nnamespace=NS\nqueue_url=beanstalk://127.0.0.1:11300\n",
        "[event-agent]\nnamespace=NS\nqueue_url=spool:///x\nconcurency=1\n",
        "[event-agent]\nnamespace=NS\nqueue_url=spool:///x\nconcurrency=many\n",
        "junk",
    ],
)
def test_bad_configuration(tmp_path, text):
    path = tmp_path / "agent.conf"
    path.write_text(text)
    with pytest.raises(ValueError):
        load_event_agent_settings(str(path))
