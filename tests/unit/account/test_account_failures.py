# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Redis that is killed, restarted, suspended, or replaced by its replica while updates arrive."""

import itertools
import logging
import signal
import threading
import time

import pytest
from redis_servers import SET, RedisProcess, ReplicatedRedis
from support import eventually

from oio.account import backend as backend_module
from oio.account.backend import AccountBackend
from oio.account.client import AccountClient
from oio.account.updates import ContainerUpdate, normalize_time
from oio.common import exceptions as exc
from oio.common.redis_conn import RedisConnection
from oio.http.client import HttpPool


@pytest.fixture
def own_redis(tmp_path):
    process = RedisProcess(tmp_path / "redis")
    yield process
    process.stop()


@pytest.fixture
def own_backend(own_redis):
    return AccountBackend(RedisConnection(host=own_redis.addr, socket_timeout=1))


@pytest.fixture
def own_client(serve, own_backend):
    return AccountClient({"namespace": "NS"}, endpoint=serve(own_backend), proxy_endpoint="127.0.0.1:1")


def add(client, name, mtime=1, **kwargs):
    client.container_update("acme", name, {"mtime": mtime, "objects": 1}, **kwargs)


def test_metrics_tell_that_redis_is_down(serve, own_redis, own_backend):
    address, pool = serve(own_backend), HttpPool()
    try:
        assert b"oio_account_accounts 0.0" in pool.request("GET", f"http://{address}/metrics").data
        own_redis.kill()
        assert pool.request("GET", f"http://{address}/status").status == 503
        told = pool.request("GET", f"http://{address}/metrics")
        assert (told.status, b"oio_account_redis_errors_total 1.0" in told.data) == (200, True)
        assert b"\noio_account_accounts " not in told.data
    finally:
        pool.close()


def test_scripts_are_sent_again_after_they_were_forgotten(own_redis, own_client, own_backend):
    add(own_client, "a")
    own_redis.client.script_flush()
    add(own_client, "b")
    assert own_client.account_show("acme")["objects"] == 2
    own_redis.client.script_flush()
    updates = [("acme", ContainerUpdate(f"c{number}", normalize_time(1), objects=1)) for number in range(5)]
    assert own_backend.update_containers(updates) == [None] * 5
    own_redis.client.script_flush()
    assert len(own_client.container_list("acme")["listing"]) == 7
    add(own_client, "a", 9)
    # Sent when they are missing only.
    info = own_redis.client.info("commandstats")
    for number in range(20):
        add(own_client, "a", 10 + number)
    after = own_redis.client.info("commandstats")
    assert after["cmdstat_script|load"] == info["cmdstat_script|load"]


def test_a_redis_that_is_killed_and_comes_back(own_redis, own_client, caplog):
    add(own_client, "a")
    own_redis.kill()
    for call in (
        lambda: add(own_client, "b", reqid="the-request"),
        lambda: own_client.account_show("acme", reqid="the-request"),
        lambda: own_client.account_create("other", reqid="the-request"),
    ):
        caplog.clear()
        with pytest.raises(exc.ServiceBusy, match="Could not satisfy the request"):
            call()
        errors = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
        assert len(errors) == 1
        assert "the-request" in errors[0]
    own_redis.start()
    # No request fails because of connections from before.
    add(own_client, "b")
    assert own_client.account_show("acme")["objects"] == 2
    with pytest.raises(exc.Conflict):
        add(own_client, "a")


def test_a_redis_that_does_not_answer_is_not_waited_for(own_redis, own_client):
    add(own_client, "a")
    own_redis.process.send_signal(signal.SIGSTOP)
    try:
        begin = time.monotonic()
        with pytest.raises(exc.ServiceBusy):
            add(own_client, "b")
        assert time.monotonic() - begin < 5
    finally:
        own_redis.process.send_signal(signal.SIGCONT)
    # What it was asked meanwhile does not come as the answer to another question.
    eventually(lambda: own_client.container_show("acme", "b")["objects"] == 1)
    assert own_client.account_show("acme")["objects"] == 2


def test_a_refresh_of_a_bucket_outlives_a_restart(own_redis, own_backend, monkeypatch):
    names = [f"c{number:02d}" for number in range(20)]
    told = [("acme", ContainerUpdate(name, normalize_time(1), bucket="b", objects=1)) for name in names]
    own_backend.update_containers(told)
    own_redis.client.hset("bucket:b", "objects", 99)
    own_backend.refresh_batch = 4
    steps, real = itertools.count(), backend_module._now

    def now():
        if next(steps) == 3:
            own_redis.kill()
        return real()

    monkeypatch.setattr(backend_module, "_now", now)
    monkeypatch.setattr(backend_module.time, "sleep", lambda _s: own_redis.start())
    own_backend.refresh_bucket("b")
    assert own_backend.show_bucket("b")["objects"] == 20
    assert own_redis.client.keys("bucketlock:*") == []


# --- Sentinel -----------------------------------------------------------------------------------------


@pytest.fixture
def replicated(tmp_path):
    servers = ReplicatedRedis(tmp_path)
    yield servers
    servers.stop()


@pytest.fixture
def connection(replicated):
    return RedisConnection(sentinel_hosts=replicated.sentinel.addr, sentinel_name=SET, socket_timeout=2)


def test_reads_go_to_a_replica_unless_asked_otherwise(replicated, connection, serve):
    address = serve(AccountBackend(connection))
    client = AccountClient({"namespace": "NS"}, endpoint=address, proxy_endpoint="127.0.0.1:1")
    add(client, "a")
    eventually(lambda: replicated.replica.client.exists("container:acme:a"))
    before = replicated.replica.client.info("commandstats")

    def reads():
        client.account_show("acme")
        client.container_show("acme", "a")
        client.container_list("acme")
        client.bucket_list("acme")
        client.account_list()

    reads()
    after = replicated.replica.client.info("commandstats")
    for command in ("hgetall", "evalsha", "zrangebylex", "hkeys"):
        calls = [stats.get(f"cmdstat_{command}", {"calls": 0})["calls"] for stats in (before, after)]
        assert calls[1] > calls[0], command
    # From now on the replica lags behind.
    replicated.replica.client.replicaof("127.0.0.1", 1)
    add(client, "b")
    assert client.account_show("acme")["objects"] == 1
    _response, body = client.account_request("acme", "GET", "show", params={"force_master": "True"})
    assert body["objects"] == 2
    assert client.account_show("acme", force_master=True)["objects"] == 2


def test_updates_during_a_fail_over_are_neither_lost_nor_counted_twice(replicated, connection, serve):
    """Every update that is repeated until it is taken counts once, whichever server took it."""
    address = serve(AccountBackend(connection))
    sent, stop = {}, threading.Event()
    refused = []

    def run(name):
        client = AccountClient({"namespace": "NS"}, endpoint=address, proxy_endpoint="127.0.0.1:1")
        for number in itertools.count(1):
            while True:
                try:
                    client.container_update("acme", name, {"mtime": number, "objects": number})
                    break
                except exc.Conflict:
                    break
                except exc.ServiceBusy as error:
                    refused.append(error)
                    time.sleep(0.02)
            sent[name] = number
            if stop.is_set():
                return

    threads = [threading.Thread(target=run, args=(f"c{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    try:
        eventually(lambda: len(sent) == 4 and min(sent.values()) > 20)
        old = replicated.master
        old.kill()
        eventually(lambda: replicated.master is not old, what="fail-over")
        reached = dict(sent)
        eventually(lambda: all(sent[name] > reached[name] + 20 for name in sent), what="updates after that")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert refused
    client = AccountClient({"namespace": "NS"}, endpoint=address, proxy_endpoint="127.0.0.1:1")
    shown = client.account_show("acme", force_master=True)
    assert (shown["objects"], shown["containers"]) == (sum(sent.values()), 4)


def test_without_sentinel_and_master_requests_are_refused(replicated, connection, serve):
    address = serve(AccountBackend(connection))
    client = AccountClient({"namespace": "NS"}, endpoint=address, proxy_endpoint="127.0.0.1:1")
    add(client, "a")
    replicated.sentinel.kill()
    add(client, "b")
    for server in replicated.servers:
        server.kill()
    with pytest.raises(exc.ServiceBusy):
        client.account_show("acme")
    for server in replicated.servers:
        server.start()
    replicated.sentinel.start()
    eventually(lambda: shows(client) == 2)


def shows(client):
    try:
        return client.account_show("acme", force_master=True)["objects"]
    except exc.ServiceBusy:
        return None


def test_a_master_that_was_demoted_takes_nothing(own_redis, own_client):
    add(own_client, "a")
    own_redis.client.replicaof("127.0.0.1", 1)
    with pytest.raises(exc.ServiceBusy):
        add(own_client, "b")
    own_redis.client.replicaof("NO", "ONE")
    add(own_client, "b")
    assert own_client.account_show("acme")["objects"] == 2


def test_a_redis_that_is_full_changes_nothing_by_halves(own_redis, own_client):
    own_redis.client.config_set("maxmemory", "1mb")
    with pytest.raises(exc.ServiceBusy):
        for number in itertools.count():
            add(own_client, "x" * 1000 + str(number), number)
    own_redis.client.config_set("maxmemory", "0")
    add(own_client, "a")
    shown = own_client.account_show("acme")
    assert shown["objects"] == shown["containers"] == len(own_redis.client.keys("container:*"))
