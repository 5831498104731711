# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""``oio-account-server`` as a process: its configuration, its workers, its logs."""

import json
import os
import re
import signal
import subprocess
import sys
import threading

import pytest
from processes import Process, free_port
from redis_servers import RedisProcess
from support import ROOT, eventually

from oio.account.client import AccountClient
from oio.account.settings import settings_of
from oio.http.client import HttpPool


@pytest.fixture(scope="module")
def redis_process(tmp_path_factory):
    process = RedisProcess(tmp_path_factory.mktemp("account") / "redis")
    yield process
    process.stop()


@pytest.fixture
def start(tmp_path, redis_process):
    """Starts services with more lines of configuration."""
    started = []
    redis_process.client.flushall()

    def start(*lines):
        port = free_port()
        conf = tmp_path / f"account-{port}.conf"
        keys = [f"bind_port = {port}", f"redis_host = {redis_process.addr}", *lines]
        conf.write_text("\n".join(["[account-server]", *keys]) + "\n")
        process = Process(tmp_path, ["oio-account-server", str(conf)], port)
        started.append(process)
        return process

    yield start
    for process in started:
        process.stop()


@pytest.fixture
def pool():
    pool = HttpPool()
    yield pool
    pool.close()


def client_of(process):
    return AccountClient({"namespace": "NS"}, endpoint=process.addr, proxy_endpoint="127.0.0.1:1")


def test_workers_share_accounts_and_metrics(start, pool):
    process = start("workers = 2")

    def create(number):
        client = client_of(process)
        for again in range(5):
            client.container_update("acme", f"c{number}-{again}", {"mtime": 1, "objects": 1})

    threads = [threading.Thread(target=create, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert client_of(process).account_show("acme")["objects"] == 80
    for _ in range(6):
        # A new connection each time, thus any of the workers.
        text = pool.request("GET", f"http://{process.addr}/metrics", headers={"Connection": "close"}).data.decode()
        assert 'oio_account_requests_total{handler="container_update",status="200"} 80.0' in text
        assert "oio_account_accounts 1.0" in text
    workers = children(process.popen.pid)
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    eventually(lambda: workers[0] not in children(process.popen.pid) and len(children(process.popen.pid)) == 2)
    assert client_of(process).account_show("acme")["objects"] == 80
    assert process.terminate() == 0


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as stream:
        return [int(word) for word in stream.read().split()]


def test_every_request_is_logged_but_status(start, pool):
    process = start("workers = 1")
    url = f"http://{process.addr}/v1.0/account/show?id=nobody"
    pool.request("GET", url, headers={"X-oio-req-id": "look-for-me"})
    pool.request("GET", f"http://{process.addr}/status", headers={"X-oio-req-id": "not-for-me"})
    process.terminate()
    text = process.log.read_text()
    line = rf"{process.addr} 127\.0\.0\.1:\d+ GET 404 \d+ \d+ - look-for-me /v1\.0/account/show\?id=nobody"
    assert re.search(line, text)
    assert re.search(r"account_show 404 \d\.\d{6} - - look-for-me", text)
    assert "not-for-me" not in text


def test_it_starts_while_redis_is_down(start, pool, redis_process):
    redis_process.kill()
    try:
        process = start("workers = 1")
        answer = pool.request("GET", f"http://{process.addr}/status", headers={"X-oio-req-id": "look-for-me"})
        assert answer.status == 503
        assert "look-for-me" in process.log.read_text()
    finally:
        redis_process.start()
    assert json.loads(pool.request("GET", f"http://{process.addr}/status").data) == {"account_count": 0}


def test_keys_of_other_servers_and_other_prefixes(start, redis_process):
    process = start(
        "workers = 1", "worker_class = eventlet", "proc_name = x", "access_log_format = %(h)s", "backlog = 10",
        "worker_connections = 50", "account_prefix = a'1:", "bucket_prefix = b]]2:", "bucket_list_prefix = bl:",
        "container_list_prefix = cl:", "bucket_lock_prefix = lk:", "autocreate = off",
    )  # fmt: skip
    client = client_of(process)
    client.account_create("acme")
    client.container_update("acme", "b", {"mtime": 1, "bucket": "b"})
    client.bucket_refresh("b")
    assert client.bucket_show("b")["account"] == "acme"
    assert sorted(redis_process.client.keys("*")) == [
        "a'1:acme", "accounts:", "b]]2:b", "bl:", "bl:acme", "cl:acme", "container:acme:b",
    ]  # fmt: skip
    assert "worker_class is ignored" in process.log.read_text()


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ([], "section [account-server] is missing"),
        (["[account-server]"], "Redis is missing"),
        (["[account-server]", "redis_sentinel_hosts = a:1"], "Redis is missing"),
        (["[account-server]", "redis_host = a", "redis_port = x"], "redis_port = x"),
        (["[account-server]", "redis_host = a", "redis_socket_timeout = soon"], "socket_timeout='soon'"),
        (["[account-server]", "redis_host = a", "redis_port = 70000"], "redis_port = 70000"),
        (["[account-server]", "redis_host = a:70000"], "IP:PORT"),
        (["[account-server]", "redis_host = a", "bind_port = 70000"], "bind_port = 70000"),
        (["[account-server]", "redis_host = a", "redis_socket_timeout = -1"], "socket_timeout='-1'"),
        (["[account-server]", "redis_host = a", "redis_socket_connect_timeout = 0"], "more than 0"),
        (["[account-server]", "redis_host = a", "redis_socket_timeout = nan"], "more than 0"),
        (["[account-server]", "redis_host = a", "redis_max_connections = 0"], "more than 0"),
        (["[account-server]", "redis_host = a", "workers = 0"], "workers = 0"),
        (["[account-server]", "redis_host = a", "autocreate = maybe"], "autocreate"),
        (["[account-server]", "redis_host = a", "log_level = LOUD"], "LOUD"),
        (["[account-server]", "redis_sentinel_name = s", "sentinel_hosts = a"], "IP:PORT"),
    ],
)
def test_bad_configurations_are_told(tmp_path, lines, told):
    conf = tmp_path / "account.conf"
    conf.write_text("\n".join(lines) + "\n")
    done = subprocess.run(
        [sys.executable, str(ROOT / "bin" / "oio-account-server"), str(conf)],
        capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 1
    assert told in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("workers", [1, 2])
def test_a_port_is_not_shared_with_another_service(start, tmp_path, redis_process, workers):
    process = start("workers = 2")
    conf = tmp_path / "second.conf"
    lines = ["[account-server]", f"bind_port = {process.port}", f"redis_host = {redis_process.addr}"]
    conf.write_text("\n".join([*lines, f"workers = {workers}", ""]))
    done = subprocess.run(
        [sys.executable, str(ROOT / "bin" / "oio-account-server"), str(conf)],
        capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 1
    assert "cannot" in done.stderr and str(process.port) in done.stderr
    assert client_of(process).account_list() == []


def test_settings():
    plain = settings_of({"redis_host": "localhost"})
    assert (plain.host, plain.port, plain.workers) == ("127.0.0.1", 8000, os.cpu_count())
    assert plain.redis == {"host": "localhost:6379"}
    assert settings_of({"redis_host": "h:1", "redis_port": "2"}).redis == {"host": "h:1"}
    assert settings_of({"redis_host": "h", "redis_port": "2"}).redis == {"host": "h:2"}
    assert settings_of({"redis_host": "[::1]"}).redis == {"host": "[::1]:6379"}
    old = settings_of({"sentinel_hosts": "h:1,h:2", "sentinel_master_name": "m", "redis_max_connections": "7"})
    assert old.redis == {"sentinel_hosts": "h:1,h:2", "sentinel_name": "m", "max_connections": "7"}
    assert old.threads == 7
    options = {"redis_host": "h", "redis_sentinel_socket_timeout": "2", "redis_retry_on_timeout": "yes"}
    assert settings_of(options).redis == {
        "host": "h:6379", "sentinel_socket_timeout": "2", "retry_on_timeout": "yes",
    }  # fmt: skip
