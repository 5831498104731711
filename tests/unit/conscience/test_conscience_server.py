# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""The routes of the conscience and its client, over real sockets."""

import logging
import socket

import msgspec
import pytest

from oio.common.status import StatusError
from oio.conscience import registry_client
from oio.conscience.messages import ServiceDef
from oio.conscience.persistence import Persistence
from oio.conscience.registry import Registry
from oio.conscience.registry_client import RegistryClient
from oio.conscience.server import ConscienceServer, make_server
from oio.conscience.settings import ServiceType, Settings, Storage
from oio.http.client import HttpPool

LOGGER = logging.getLogger("test")


@pytest.fixture
def pool():
    pool = HttpPool()
    yield pool
    pool.close()


@pytest.fixture
def running(tmp_path):
    """A conscience that listens; gives (registry, address, state file)."""
    settings = Settings(
        "NS",
        ("127.0.0.1", 0),
        {"rawx": ServiceType("rawx", "num stat.cpu"), "meta0": ServiceType("meta0")},
        Storage({"ONE": "NONE:NONE"}, {"EC": "ec/k=2,m=1"}, {"p": "1,rawx"}),
    )
    registry = Registry(settings, LOGGER)
    persistence = Persistence(registry, str(tmp_path / "state"), "NS", LOGGER)
    server = make_server(ConscienceServer(registry, persistence, LOGGER), settings.listen)
    server.start()
    host, port = server.addresses[0][:2]
    yield registry, f"{host}:{port}", tmp_path / "state"
    server.stop(1)


@pytest.fixture
def client(running, pool):
    return RegistryClient([running[1]], pool)


def rawx(port, **tags):
    return ServiceDef(
        type="rawx", addr=f"127.0.0.1:{port}", ns="NS", tags={k.replace("_", "."): v for k, v in tags.items()}
    )


def test_life_of_a_service(client):
    client.register([rawx(1, tag_up=True, stat_cpu=80, tag_loc="a.b"), rawx(2, tag_up=True, stat_cpu=20)])
    snapshot = client.snapshot()
    assert snapshot.types == ["meta0", "rawx"]
    assert snapshot.namespace.storage_policy == {"ONE": "NONE:NONE"}
    assert snapshot.namespace.data_security == {"EC": "ec/k=2,m=1"}
    assert snapshot.namespace.service_pools == {"p": "1,rawx"}
    first, second = sorted(snapshot.services["rawx"], key=lambda service: service.addr)
    assert (first.addr, first.score, second.score) == ("127.0.0.1:1", 80, 20)
    assert first.tags == {"tag.up": True, "stat.cpu": 80, "tag.loc": "a.b", "tag.lock": False}
    assert client.snapshot(snapshot.generation) is None

    client.lock([msgspec.structs.replace(rawx(1), score=150)])
    assert client.snapshot(snapshot.generation) is not None
    brief = {service.addr: service for service in client.services("rawx")}
    assert brief["127.0.0.1:1"].score == 100
    assert brief["127.0.0.1:1"].tags == {"tag.up": True, "tag.loc": "a.b", "tag.lock": True}
    client.unlock([rawx(1)])
    client.deregister([rawx(2)])
    (left,) = client.services("rawx", full=True)
    assert (left.score, left.tags["tag.lock"]) == (80, False)
    client.flush("rawx")
    assert client.services("rawx") == []
    assert client.types() == ["meta0", "rawx"]
    assert client.info().ns == "NS"


def test_a_lock_is_on_disk_when_it_is_answered(running, client):
    _, _, state = running
    client.lock([msgspec.structs.replace(rawx(1), score=7)])
    assert b'"score":7' in state.read_bytes()
    client.deregister([rawx(1)])
    assert msgspec.json.decode(state.read_bytes())["services"] == []


@pytest.mark.parametrize(
    ("method", "target", "body", "status", "code", "word"),
    [
        ("GET", "/v1/services", None, 400, 400, "type"),
        ("GET", "/v1/services?type=nope", None, 404, 453, "nope"),
        ("POST", "/v1/flush", None, 400, 400, "type"),
        ("POST", "/v1/push", b"", 400, 400, "nvalid"),
        ("POST", "/v1/push", b'[{"type":"rawx","addr":"x"}]', 400, 400, "addr"),
        ("POST", "/v1/push", b'{"type":"rawx"}', 400, 400, "addr"),
        ("POST", "/v1/push", b'{"type":"nope","addr":"127.0.0.1:1"}', 404, 453, "nope"),
        ("POST", "/v1/push", b'{"type":"rawx","addr":"127.0.0.1:1","ns":"B"}', 404, 418, "B"),
    ],
)
def test_refusals(running, pool, method, target, body, status, code, word):
    registry, address, _ = running
    generation = registry.generation
    response = pool.request(method, f"http://{address}{target}", body=body)
    error = msgspec.json.decode(response.data)
    assert (response.status, error["status"]) == (status, code)
    assert word in error["message"]
    assert registry.generation == generation


def test_one_object_is_a_batch_of_one(running, pool):
    registry, address, _ = running
    body = b' {"type":"rawx","addr":"127.0.0.1:1","tags":{"tag.up":true,"stat.cpu":3}}'
    assert pool.request("POST", f"http://{address}/v1/push", body=body).status == 204
    assert registry.scores()["rawx"] == {"127.0.0.1:1": 3}


def test_status_and_metrics(running, client, pool):
    _, address, _ = running
    client.register([rawx(1, tag_up=True, stat_cpu=80)])
    counts = msgspec.json.decode(pool.request("GET", f"http://{address}/status").data)
    assert counts["services"]["rawx"] == {"count": 1, "locked": 0, "available": 1}
    text = pool.request("GET", f"http://{address}/metrics").data.decode()
    assert 'conscience_score{addr="127.0.0.1:1",type="rawx"} 80.0' in text
    assert pool.request("GET", f"http://{address}/v1/ping").status == 204


def test_the_next_conscience_is_tried(running, pool):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        dead = "{}:{}".format(*closed.getsockname())
    assert RegistryClient([dead, running[1]], pool).types() == ["meta0", "rawx"]
    with pytest.raises(StatusError) as caught:
        RegistryClient([dead], pool).types()
    assert caught.value.code == 503
    assert dead in str(caught.value)
    with pytest.raises(StatusError):
        RegistryClient([], pool).types()


def test_a_silent_conscience_is_asked_last_for_a_while(running, pool, monkeypatch):
    monkeypatch.setattr(registry_client, "TIMEOUT_WITH_OTHERS_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hung = "{}:{}".format(*silent.getsockname())
        client = RegistryClient([hung, running[1]], pool)
        for _ in range(3):
            client.register([rawx(1, tag_up=True, stat_cpu=80)])
        silent.settimeout(0.2)
        peers = []
        with pytest.raises(TimeoutError):
            while True:
                peers.append(silent.accept()[0])
        assert len(peers) == 1, "asked once"
        monkeypatch.setattr(registry_client, "SUSPICION_S", 0.0)
        assert client.types() == ["meta0", "rawx"]
        peers.append(silent.accept()[0])
        for peer in peers:
            peer.close()
    assert running[0].scores()["rawx"] == {"127.0.0.1:1": 80}


def test_the_only_conscience_is_given_its_time(running, pool, monkeypatch):
    monkeypatch.setattr(registry_client, "TIMEOUT_WITH_OTHERS_S", 0.0)
    assert RegistryClient([running[1]], pool).types() == ["meta0", "rawx"]


@pytest.mark.parametrize("action", ["push", "deregister"])
@pytest.mark.parametrize(
    "body", [b"[" * 100000, b'{"a":' * 50000, b'{"type":"\xff"}', b'[{"type":"rawx","tags":{"a":' + b"[" * 50000]
)
def test_bodies_that_cannot_be_read_are_refused(running, pool, action, body):
    registry, address, _ = running
    answer = pool.request("POST", f"http://{address}/v1/{action}", body=body)
    assert (answer.status, b"Invalid service" in answer.data) == (400, True)
    assert not registry.services_of("rawx", full=True)
