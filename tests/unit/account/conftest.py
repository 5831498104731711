# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""An account service on a real Redis."""

import json

import pytest
from redis_servers import RedisProcess

from oio.account.backend import AccountBackend
from oio.account.client import AccountClient
from oio.account.server import AccountService
from oio.account.updates import ContainerUpdate, normalize_time
from oio.common.redis_conn import RedisConnection
from oio.http.client import HttpPool
from oio.http.server import Server


@pytest.fixture(scope="session")
def redis_process(tmp_path_factory):
    process = RedisProcess(tmp_path_factory.mktemp("redis") / "home")
    yield process
    process.stop()


@pytest.fixture
def raw(redis_process):
    """A client of the empty Redis, which gives texts."""
    redis_process.client.flushall()
    return redis_process.client


@pytest.fixture
def backend(raw, redis_process):
    connection = RedisConnection(host=redis_process.addr)
    yield AccountBackend(connection)
    connection.conn.close()


@pytest.fixture
def update(backend):
    """Applies an update given by plain values."""

    def update(name="c", mtime=None, dtime=None, account="acct", **fields):
        one = ContainerUpdate(name, normalize_time(mtime), normalize_time(dtime), **fields)
        backend.update_container(account, one)

    return update


@pytest.fixture
def serve():
    """Starts services on backends; gives their addresses."""
    servers = []

    def serve(backend):
        server = Server(AccountService(backend).router, [("127.0.0.1", 0)])
        server.start()
        servers.append(server)
        return "{}:{}".format(*server.addresses[0])

    yield serve
    for server in servers:
        server.stop(1)


@pytest.fixture
def address(serve, backend):
    return serve(backend)


@pytest.fixture
def client(address):
    return AccountClient({"namespace": "NS"}, endpoint=address, proxy_endpoint="127.0.0.1:1")


@pytest.fixture
def ask(address):
    """Sends requests as they are: ``ask(method, path, body)``, the body as JSON unless it is bytes."""
    pool = HttpPool()

    def ask(method, path, body=None, **kwargs):
        data = body if body is None or isinstance(body, bytes) else json.dumps(body)
        return pool.request(method, f"http://{address}{path}", body=data, **kwargs)

    yield ask
    pool.close()
