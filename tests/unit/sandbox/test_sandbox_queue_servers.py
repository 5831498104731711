# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Redis and beanstalkd in local clusters: laid out, configured, probed, started first and stopped last."""

import os
import shutil
import socket
import subprocess
import threading

import pytest
import yaml
from support import eventually

from oio.common.redis_server import find_redis_server
from oio.sandbox import Options, Sandbox, SandboxError, generate, layout, queues
from oio.sandbox.options import from_map, merge
from oio.sandbox.supervision import Supervision


@pytest.fixture(autouse=True)
def _own_reservations(tmp_path, monkeypatch):
    """Keep the reservations of ports of the tests apart from those of the user."""
    directory = tmp_path / "tmp"
    directory.mkdir()
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(directory))


@pytest.fixture
def home(tmp_path):
    return str(tmp_path / "home")


def compute(home, **fields):
    return layout.compute(home, Options(namespace="DEMO", rawx=1, base_port=21500, **fields))


@pytest.fixture
def run(tmp_path):
    """Starts programs that are ended at the end of the test."""
    started = []

    def start(command):
        with open(tmp_path / "program.log", "ab") as log:
            started.append(subprocess.Popen(command, stdout=log, stderr=log))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_there_is_one_redis_and_no_beanstalkd(home):
    found = compute(home)
    (redis,) = found.of_type("redis")
    assert redis.name == "DEMO-redis-1" and redis.port and redis.volume.endswith("DEMO-redis-1")
    assert found.of_type("beanstalkd") == []
    assert queues.redis_address(found) == redis.addr
    assert len(found.of_type("event-agent")) == 1


def test_each_beanstalkd_has_an_event_agent(home):
    found = compute(home, beanstalkd=3)
    assert [one.num for one in found.of_type("beanstalkd")] == [1, 2, 3]
    assert len(found.of_type("event-agent")) == 3


def test_a_redis_of_somebody_else(home):
    found = compute(home, redis=0, redis_host="10.0.0.1:6379")
    assert found.of_type("redis") == []
    assert queues.redis_address(found) == "10.0.0.1:6379"
    assert merge(from_map({"redis": False}, "file")).redis_host == "127.0.0.1:6379"
    assert merge(from_map({"redis": True}, "file")).redis == 1


@pytest.mark.parametrize(("durability", "options"), [("durable", "?replicas=1"), ("relaxed", "")])
def test_a_redis_behind_sentinels(home, durability, options):
    found = compute(home, redis=0, redis_host="h:1,h:2/name", durability=durability)
    assert queues.redis_url(found, 1) == f"redis+sentinel://h:1,h:2/name/1{options}"
    conf = generate.account_conf(found, found.of_type("account")[0])
    assert "redis_sentinel_hosts=h:1,h:2\nredis_sentinel_name=name\n" in conf and "redis_host" not in conf


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"redis": 0}, "redis_host"),
        ({"redis": 0, "redis_host": "there"}, "redis_host"),
        ({"redis": 0, "redis_host": "h:1,h:2"}, "redis_host"),
        ({"redis": 0, "redis_host": "h:1/"}, "redis_host"),
        ({"redis": 2}, "redis"),
        ({"beanstalkd": -1}, "beanstalkd"),
        ({"webhook_enabled": True, "webhook_endpoint": "there"}, "webhook"),
    ],
)
def test_bad_options(fields, message):
    with pytest.raises(SandboxError, match=message):
        merge(fields)


def test_options_of_the_contract():
    fields = from_map(
        {
            "beanstalkd": {"count": 3}, "rdir": {"count": 2}, "preserve_events": True, "monitor_period": 2,
            "replication_events": True, "webhook_enabled": True, "webhook_endpoint": "",
        },
        "file",
    )  # fmt: skip
    assert "" not in fields
    options = merge(fields)
    assert (options.beanstalkd, options.rdir, options.check_interval_s) == (3, 2, 2.0)
    assert options.preserve_events and options.replication_events and options.webhook_enabled
    assert options.webhook_endpoint == ""


@pytest.mark.parametrize(("durability", "sync"), [("durable", "always"), ("relaxed", "everysec")])
def test_a_redis_starts_with_its_configuration(home, run, durability, sync):
    if find_redis_server() is None:
        pytest.skip("no Redis server for this machine")
    found = Sandbox(home + " with spaces", Options(namespace="DEMO", rawx=0, durability=durability)).init()
    (service,) = found.of_type("redis")
    path = os.path.join(found.conf_dir, "DEMO-redis-1.conf")
    assert queues.probe(service).startswith(service.addr)
    process = run(queues.redis_command(path))
    eventually(lambda: process.poll() is not None or not queues.probe(service), what="Redis")
    import redis

    with redis.Redis(service.host, service.port) as client:
        assert client.config_get("appendfsync") == {"appendfsync": sync}
        assert client.config_get("appendonly") == {"appendonly": "yes"}
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        client.set("key", "value")
    process.kill()
    process.wait()
    process = run(queues.redis_command(path))
    eventually(lambda: process.poll() is not None or not queues.probe(service), what="Redis again")
    with redis.Redis(service.host, service.port) as client:
        assert client.get("key") == b"value"


def test_processes_of_redis_carry_the_mark_of_the_cluster(home, run, monkeypatch):
    if find_redis_server() is None:
        pytest.skip("no Redis server for this machine")
    found = Sandbox(home, Options(namespace="DEMO", rawx=0)).init()
    monkeypatch.setenv("OIO_SANDBOX", found.mark)
    process = run(queues.redis_command(os.path.join(found.conf_dir, "DEMO-redis-1.conf")))
    (service,) = found.of_type("redis")
    eventually(lambda: process.poll() is not None or not queues.probe(service), what="Redis")
    assert Supervision(found).leftovers() == [process.pid]


@pytest.mark.skipif(shutil.which("beanstalkd") is None, reason="beanstalkd is not installed")
@pytest.mark.parametrize("durability", ["durable", "relaxed"])
def test_a_beanstalkd_starts_and_takes_the_largest_event(home, run, durability):
    import greenstalk

    from oio.event.queue import EVENT_MAX_BYTES

    options = Options(namespace="DEMO", rawx=0, beanstalkd=1, durability=durability)
    found = Sandbox(home, options).init()
    (service,) = found.of_type("beanstalkd")
    process = run(queues.beanstalkd_command(found, service))
    eventually(lambda: process.poll() is not None or not queues.probe(service), what="beanstalkd")
    with greenstalk.Client((service.host, service.port)) as client:
        client.put(b"x" * EVENT_MAX_BYTES)
    assert any(os.scandir(service.volume))


def test_a_server_that_loads_is_not_ready(home):
    (service,) = compute(home).of_type("redis")
    with socket.create_server((service.host, service.port)) as server:

        def answer():
            connection, _peer = server.accept()
            with connection:
                connection.recv(100)
                connection.sendall(b"-LOADING Redis is loading the dataset in memory\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        assert "LOADING" in queues.probe(service)
        thread.join(5)


def test_programs_that_are_not_installed_are_named(home, monkeypatch):
    found = compute(home, beanstalkd=1)
    monkeypatch.setattr(queues, "find_redis_server", lambda: None)
    with pytest.raises(SandboxError, match="No Redis server"):
        queues.redis_command("/conf")
    monkeypatch.setattr(queues.shutil, "which", lambda _name: None)
    with pytest.raises(SandboxError, match="beanstalkd is not installed"):
        queues.beanstalkd_command(found, found.of_type("beanstalkd")[0])


def test_the_conscience_agent_watches_them(home, monkeypatch):
    monkeypatch.setattr(queues.shutil, "which", lambda name: f"/usr/bin/{name}")
    found = Sandbox(home, Options(namespace="DEMO", rawx=0, beanstalkd=1)).init()
    for name, stats in (("redis", {"volume", "system"}), ("beanstalkd", {"beanstalkd", "system", "volume"})):
        with open(os.path.join(found.conf_dir, "watch", f"DEMO-{name}-1.yml"), encoding="utf-8") as stream:
            conf = yaml.safe_load(stream)
        assert conf["type"] == name and conf["checks"] == [{"type": "tcp"}]
        assert {one["type"] for one in conf["stats"]} == stats | {"look"}


def test_producers_stop_first_and_queues_last(home, monkeypatch):
    found = compute(home, beanstalkd=1)
    supervision = Supervision(found)
    steps = []
    monkeypatch.setattr(
        supervision, "_stop_at_once", lambda services: steps.append({one.type for one in services})
    )
    supervision.stop(found.services)
    assert len(steps) == 3
    assert {"rawx", "meta2", "proxy", "conscience-agent"} <= steps[0]
    assert steps[1] == {"event-agent"}
    assert {"redis", "beanstalkd", "account"} <= steps[2] and not steps[0] & steps[2]
    steps.clear()
    supervision.stop(found.of_type("redis"))
    assert steps == [{"redis"}]


def test_a_single_index_is_at_no_place_of_a_volume(home):
    """Else the volume of this place could not be given an index."""
    found = compute(home)
    (rdir,) = found.of_type("rdir")
    assert rdir.location not in {one.location for one in found.of_type("rawx", "meta2")}


@pytest.mark.parametrize(("durability", "sync"), [("durable", "on"), ("relaxed", "off")])
def test_the_index_is_as_durable_as_the_cluster(home, durability, sync):
    found = Sandbox(home, Options(namespace="DEMO", rawx=0, durability=durability)).init()
    with open(os.path.join(found.conf_dir, "DEMO-rdir-1.conf"), encoding="utf-8") as stream:
        text = stream.read()
    assert f"sync={sync}" in text and f"db_path={found.of_type('rdir')[0].volume}" in text
