# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Connections and locks, against real Redis servers."""

import socket
import subprocess
import sys
import threading
import time

import pytest

from oio.common import redis_conn
from oio.common.exceptions import ConfigurationException, ServiceBusy
from oio.common.redis_conn import RedisConnection, catch_io_errors, catch_service_errors
from oio.common.redis_server import find_redis_server

redis = pytest.importorskip("redis")
REDIS_SERVER_PATH = find_redis_server()
DEADLINE_S = 20.0
SET = "the-set"


def wait_for(condition):
    """First true value of a condition; what it raises is a failure only once the time is over."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        try:
            value = condition()
        except redis.exceptions.RedisError as exc:
            value = exc
        if value and not isinstance(value, Exception):
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not in time: {value!r}")
        time.sleep(0.01)


class Servers:
    """Starts Redis processes on free ports."""

    def __init__(self, directory):
        self.directory = directory
        self.processes = {}

    def start(self, *options, config=None):
        for _try in range(10):
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            home = self.directory / str(port)
            home.mkdir()
            command = [REDIS_SERVER_PATH]
            if config is not None:
                (home / "conf").write_text(config)
                command.append(str(home / "conf"))
            else:
                command += ["--save", "", "--appendonly", "no", "--repl-diskless-sync-delay", "0"]
            command += ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(home), *options]
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
            self.processes[port] = process
            client = redis.Redis(port=port)
            try:
                # Another process may have taken the port meanwhile: then ours has left.
                wait_for(lambda process=process, client=client: process.poll() is not None or client.ping())
            finally:
                client.close()
            if process.poll() is None:
                return port
        raise AssertionError("no free port")

    def stop(self, port):
        process = self.processes.pop(port)
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    if REDIS_SERVER_PATH is None:
        pytest.skip("no redis-server on this machine")
    servers = Servers(tmp_path_factory.mktemp("redis"))
    yield servers
    for port in list(servers.processes):
        servers.stop(port)


@pytest.fixture(scope="module")
def server(servers):
    return f"127.0.0.1:{servers.start()}"


@pytest.fixture
def connection(server):
    connection = RedisConnection(host=server, socket_timeout="5")
    connection.conn.flushall()
    yield connection
    connection.conn.close()


# --- one server -----------------------------------------------------------------------------------


def test_one_server_is_master_and_slave(connection):
    connection.conn.set("key", "value")
    assert connection.conn_slave.get("key") == b"value"
    assert connection.get_slave_conn() is connection.get_slave_conn(force_master=True) is connection.conn


def test_a_script_runs_on_the_server(connection):
    script = connection.register_script("return redis.call('incrby', KEYS[1], ARGV[1])")
    assert script(keys=["n"], args=[4]) == 4
    connection.conn.script_flush()
    assert script(keys=["n"], args=[1]) == 5


def test_a_lock_has_one_owner(connection):
    identifier = connection.acquire_lock_with_timeout("job")
    assert connection.conn.get("lock:job") == identifier.encode()
    assert 0 < connection.conn.pttl("lock:job") <= 10_000
    assert connection.acquire_lock_with_timeout("job", acquire_timeout=0.05) is False
    assert connection.acquire_lock_with_timeout("other", acquire_timeout=0)
    assert connection.release_lock("job", identifier) is True
    assert connection.acquire_lock_with_timeout("job", acquire_timeout=0)


def test_only_the_owner_releases(connection):
    identifier = connection.acquire_lock_with_timeout("job")
    assert connection.release_lock("job", "somebody") is False
    assert connection.release_lock("job", identifier) is True
    assert connection.release_lock("job", identifier) is False


def test_a_lock_is_released_by_itself(connection):
    first = connection.acquire_lock_with_timeout("job", lock_timeout=0.05)
    second = connection.acquire_lock_with_timeout("job", acquire_timeout=DEADLINE_S)
    assert second and second != first
    assert connection.release_lock("job", first) is False
    assert connection.release_lock("job", second) is True


def test_a_waiter_gets_the_lock_when_it_is_released(connection):
    identifier = connection.acquire_lock_with_timeout("job", lock_timeout=DEADLINE_S)
    got = []
    waiter = threading.Thread(
        target=lambda: got.append(connection.acquire_lock_with_timeout("job", acquire_timeout=DEADLINE_S))
    )
    waiter.start()
    assert connection.release_lock("job", identifier)
    waiter.join(DEADLINE_S)
    assert got[0]


def test_locks_exclude_each_other(connection):
    counter = []

    def count():
        for _ in range(20):
            identifier = connection.acquire_lock_with_timeout("sum", acquire_timeout=DEADLINE_S)
            value = int(connection.conn.get("sum") or 0)
            connection.conn.set("sum", value + 1)
            counter.append(connection.release_lock("sum", identifier))

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert connection.conn.get("sum") == b"80" and all(counter)


# --- options --------------------------------------------------------------------------------------


def test_options_are_filtered_and_cast():
    server = "127.0.0.1:6379"
    options = {
        "socket_timeout": "1.5", "socket_connect_timeout": "2", "socket_keepalive": "yes", "max_connections": "3",
        "retry_on_timeout": "on", "health_check_interval": "30", "unknown": "x", "sentinel_socket_timeout": "9",
    }  # fmt: skip
    made = RedisConnection(host=server, **options).conn.connection_pool.connection_kwargs
    assert (made["socket_timeout"], made["socket_connect_timeout"]) == (1.5, 2.0)
    assert (made["socket_keepalive"], made["health_check_interval"]) == (True, 30)
    assert made["retry"].get_retries() == 1 and "unknown" not in made
    pool = RedisConnection(host=server, max_connections="3", retry_on_timeout="").conn.connection_pool
    assert pool.max_connections == 3 and pool.connection_kwargs["retry"].get_retries() == 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"host": "127.0.0.1"}, "IP:PORT"),
        ({"host": ":6379"}, "IP:PORT"),
        ({"host": "a:b"}, "IP:PORT"),
        ({}, "sentinel_name"),
        ({"sentinel_hosts": "127.0.0.1:1"}, "sentinel_name"),
        ({"sentinel_name": "n"}, "sentinel_hosts"),
        ({"sentinel_name": "n", "sentinel_hosts": "127.0.0.1:1,nowhere"}, "nowhere"),
        ({"host": "a:1", "socket_timeout": "soon"}, "socket_timeout"),
    ],
)
def test_wrong_options_are_named(args, message):
    with pytest.raises(ValueError, match=message):
        RedisConnection(**args)


def test_an_ipv6_address_stands_in_brackets():
    made = RedisConnection(host="[::1]:6379").conn.connection_pool.connection_kwargs
    assert (made["host"], made["port"]) == ("::1", 6379)


def test_without_the_package_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(ConfigurationException, match="package 'redis' is needed"):
        RedisConnection(host="a:1")


# --- errors ---------------------------------------------------------------------------------------


def test_a_server_that_is_away_is_busy(servers):
    port = servers.start()
    connection = RedisConnection(host=f"127.0.0.1:{port}")
    get = catch_service_errors(connection.conn.get)
    assert get("key") is None
    servers.stop(port)
    with pytest.raises(ServiceBusy, match="Redis") as caught:
        get("key")
    assert caught.value.http_status == 503


def test_a_server_that_does_not_answer_is_busy():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ServiceBusy):
            catch_service_errors(RedisConnection(host=host, socket_timeout=0.05).conn.ping)()


def test_an_answer_that_makes_no_sense_is_busy():
    @catch_service_errors
    def confused():
        """Doc."""
        raise redis.exceptions.InvalidResponse("what?")

    with pytest.raises(ServiceBusy, match="what"):
        confused()
    assert (confused.__name__, confused.__doc__) == ("confused", "Doc.")


def test_other_errors_pass(connection):
    connection.conn.set("key", "text")
    with pytest.raises(redis.exceptions.ResponseError):
        catch_service_errors(connection.conn.incr)("key")
    with pytest.raises(ZeroDivisionError):
        catch_service_errors(lambda: 1 / 0)()
    with pytest.raises(ValueError, match="other"):
        catch_io_errors(lambda: int("other"))()


def test_a_closed_connection_is_busy(tmp_path):
    path = tmp_path / "file"
    with open(path, "w+") as closed:
        pass
    with pytest.raises(ServiceBusy, match="closed file"):
        catch_io_errors(closed.read)()


def test_errors_before_the_package_is_loaded_pass(monkeypatch):
    monkeypatch.delitem(sys.modules, "redis.exceptions")
    assert redis_conn._service_errors() == ()


# --- Sentinel -------------------------------------------------------------------------------------


@pytest.fixture
def replicated(servers):
    """A master, a slave that follows it, and the Sentinel that watches them: (master, slave, sentinel) ports."""
    master = servers.start()
    slave = servers.start("--replicaof", "127.0.0.1", str(master))
    config = (
        f"sentinel monitor {SET} 127.0.0.1 {master} 1\n"
        f"sentinel down-after-milliseconds {SET} 300\n"
        f"sentinel failover-timeout {SET} 2000\n"
    )
    sentinel = servers.start("--sentinel", config=config)
    with redis.Redis(port=sentinel) as watcher:
        # It learns of slaves from the master.
        wait_for(lambda: [s for s in watcher.sentinel_slaves(SET) if s["port"] == slave and s["flags"] == "slave"])
    yield master, slave, sentinel
    for port in (sentinel, slave, master):
        if port in servers.processes:
            servers.stop(port)


@pytest.mark.parametrize("as_list", [False, True])
def test_sentinel_tells_master_and_slaves(replicated, as_list):
    master, slave, sentinel = replicated
    hosts = [f"127.0.0.1:{sentinel}"]
    connection = RedisConnection(
        sentinel_hosts=hosts if as_list else ",".join(hosts), sentinel_name=SET,
        socket_timeout="5", sentinel_socket_timeout="3", sentinel_unknown=1,
    )  # fmt: skip
    assert connection.conn.config_get("port")["port"] == str(master)
    connection.conn.set("key", "value")
    assert connection.conn_slave.config_get("port")["port"] == str(slave)
    wait_for(lambda: connection.get_slave_conn().get("key") == b"value")
    assert connection.get_slave_conn(force_master=True) is connection.conn
    with pytest.raises(redis.exceptions.ReadOnlyError):
        connection.conn_slave.set("key", "other")
    asked = connection._sentinel.sentinels[0].connection_pool.connection_kwargs
    assert asked["socket_timeout"] == 3.0
    identifier = connection.acquire_lock_with_timeout("job")
    assert connection.release_lock("job", identifier)


def test_the_client_follows_a_change_of_master(servers, replicated):
    master, slave, sentinel = replicated
    connection = RedisConnection(
        sentinel_hosts=f"127.0.0.1:{sentinel}", sentinel_name=SET, socket_timeout=1
    )
    connection.conn.set("key", "value")
    wait_for(lambda: connection.conn_slave.get("key") == b"value")
    servers.stop(master)
    with pytest.raises(ServiceBusy):
        catch_service_errors(connection.conn.set)("key", "lost")
    assert wait_for(lambda: connection.conn.set("key", "again"))
    assert connection.conn.config_get("port")["port"] == str(slave)
    assert connection.conn.get("key") == b"again"
