# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Runs filters as the agent does, against HTTP servers that a test scripts."""

from __future__ import annotations

import contextlib
import json
import threading
from types import SimpleNamespace

from servers import RedisServer

from oio.account.backend import AccountBackend
from oio.account.client import AccountClient
from oio.account.server import AccountService
from oio.common.exceptions import BadRequest, NotFound
from oio.common.redis_conn import RedisConnection
from oio.event.pipelines import load_factory
from oio.http.client import HttpPool
from oio.http.server import Response, Server
from oio.rdir.client import BatchingRdirClient
from oio.rdir.server import RdirService
from oio.rdir.store import Store

CID = "0A" * 32


class Chain:
    """A filter found by its entry point, and what comes after it."""

    def __init__(self, name, app_env=None, global_conf=None, **options):
        self.app_env = {"pool": HttpPool()} if app_env is None else app_env
        self.passed = []
        factory = load_factory(f"egg:oio#{name}", "oio.event.filter_factory", "test")
        self.filter = factory({"namespace": "NS", **(global_conf or {})}, **options)(self)

    def __call__(self, env, beanstalkd, cb):
        self.passed.append(env)
        return cb(200, "")

    def run(self, env):
        """Status of the answer to an event."""
        return self.answer(env).status

    def answer(self, env):
        """Answer to an event: status, message, delay_s."""
        answers = []

        def callback(status, message="", delay_s=None):
            answers.append(SimpleNamespace(status=status, message=message, delay_s=delay_s))

        before = self._times_passed(env)
        self.filter(env, None, callback)
        assert len(answers) == 1
        assert self._times_passed(env) - before == (answers[0].status == 200)
        return answers[0]

    def _times_passed(self, env):
        return sum(one is env for one in list(self.passed))

    def forget_pauses(self):
        """What the passing of a moment does: services that did not answer are tried again."""
        self.app_env.pop("service_pauses", None)

    @property
    def counts(self):
        return dict(self.filter.counts)


class WebServer:
    """An HTTP server that answers what ``answers`` tells, and remembers what it was asked.

    :param answers: called with the request and its body; gives a status, a (status, object), or a Response.
    """

    def __init__(self, answers):
        self.answers = answers
        self.requests = []
        self._lock = threading.Lock()
        self._server = Server(self._answer, [("127.0.0.1", 0)])
        self._server.start()
        host, port = self._server.addresses[0]
        self.address = f"{host}:{port}"
        self.url = f"http://{self.address}"

    def _answer(self, request):
        body = request.read_all(1 << 20)
        with self._lock:
            self.requests.append(
                SimpleNamespace(
                    method=request.method, path=request.path, query=dict(request.query),
                    headers=dict(request.headers),
                    body=body, json=json.loads(body) if body[:1] in (b"{", b"[") else None,
                )
            )  # fmt: skip
        answer = self.answers(request, body)
        if isinstance(answer, Response):
            return answer
        status, value = answer if isinstance(answer, tuple) else (answer, None)
        return Response(status, b"" if value is None else json.dumps(value).encode())

    def asked(self, path):
        """Requests about paths that end so."""
        with self._lock:
            return [request for request in self.requests if request.path.endswith(path)]

    def stop(self):
        self._server.stop(1)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


class AccountServer:
    """A real account service on a real Redis.

    :ivar client: how tests look at it.
    :ivar env: what the agent would share: a client of this service.
    """

    def __init__(self, redis, pool):
        self.connection = RedisConnection(redis.address)
        self.backend = AccountBackend(self.connection)
        self._server = Server(AccountService(self.backend).router, [("127.0.0.1", 0)])
        self._server.start()
        self.address = "{}:{}".format(*self._server.addresses[0])
        conf = {"namespace": "NS"}
        self.client = AccountClient(conf, self.address, proxy_endpoint="127.0.0.1:1", pool_manager=pool)
        self.env = {"pool": pool, "account_client": self.client}

    def forget_tombstones(self):
        """What the passing of a minute does."""
        for key in self.connection.conn.keys("container:*"):
            if self.connection.conn.ttl(key) >= 0:
                self.connection.conn.delete(key)

    def container(self, name="c", account="acct"):
        """Counters of a container: objects, bytes; None when it is not listed."""
        return self.containers(account).get(name)

    def containers(self, account="acct"):
        """Counters of all listed containers, by name."""
        try:
            listing = self.client.container_list(account)["listing"]
        except NotFound:
            return {}
        return {entry[0]: (entry[1], entry[2]) for entry in listing}

    def totals(self, account="acct"):
        """Counters of an account: containers, objects, bytes."""
        try:
            shown = self.client.account_show(account)
        except NotFound:
            return 0, 0, 0
        return shown["containers"], shown["objects"], shown["bytes"]

    def stop(self):
        self._server.stop(1)


@contextlib.contextmanager
def account_server(directory):
    """An account service that lives as long as the context."""
    with RedisServer(directory, "--appendonly", "no") as redis, HttpPool() as pool:
        server = AccountServer(redis, pool)
        try:
            yield server
        finally:
            server.stop()


class RdirServer:
    """A real reverse directory in charge of all volumes, and a proxy that tells so.

    :ivar client: how tests look at it.
    :ivar env: what the agent would share: a client of this service.
    :ivar linked: meta2 services of each container, for the proxy: ``{"acct/c": ["m2-1"]}``.
    :ivar rawx: addresses of rawx by id, for the proxy.
    """

    def __init__(self, directory, pool):
        self._store = Store(str(directory), sync=False)
        self._server = Server(RdirService(self._store), [("127.0.0.1", 0)])
        self._server.start()
        self.address = "{}:{}".format(*self._server.addresses[0])
        self.linked, self.rawx, self.assigned = {}, {}, True
        self.proxy = WebServer(self._proxy)
        conf = {"namespace": "NS", "proxyd_url": self.proxy.url}
        self.client = BatchingRdirClient(conf, endpoint=self.proxy.url, pool_manager=pool)
        self.env = {"conf": conf, "pool": pool, "rdir_client": self.client}

    def _proxy(self, request, _body):
        if request.path.endswith("/conscience/resolve"):
            address = self.rawx.get(request.query["service_id"])
            return (200, {"addr": address}) if address else (404, {"status": 404, "message": "unknown service"})
        if request.query["acct"] == "_RDIR":
            if not self.assigned:
                return 404, {"status": 406, "message": "no such reference"}
            return 200, {"dir": [], "srv": [{"seq": 1, "type": "rdir", "host": self.address, "args": ""}]}
        hosts = self.linked.get("{acct}/{ref}".format(**request.query))
        if hosts is None:
            return 404, {"status": 406, "message": "no such reference"}
        return 200, {"dir": [], "srv": [{"seq": 1, "type": "meta2", "host": host, "args": ""} for host in hosts]}

    def chunks(self, volume):
        """Ids of the chunks of a volume, with the mtime of each."""
        try:
            return {chunk: value["mtime"] for _, _, chunk, value in self.client.chunk_fetch(volume)}
        except NotFound:
            return {}

    def containers(self, volume):
        """Paths of the containers of a meta2."""
        try:
            return [one["container_url"] for one in self.client.meta2_index_fetch_all(volume)]
        except BadRequest:
            return []

    def stop(self):
        self.proxy.stop()
        self._server.stop(1)
        self._store.close()


@contextlib.contextmanager
def rdir_server(directory):
    """A reverse directory that lives as long as the context."""
    with HttpPool() as pool:
        server = RdirServer(directory, pool)
        try:
            yield server
        finally:
            server.stop()


def event(kind, when_s=1700000000.0, data=None, **fields):
    """An event about the container ``c`` of the account ``acct``."""
    url = {"ns": "NS", "account": "acct", "user": "c", "id": CID}
    return {
        "event": kind, "when": int(when_s * 1e6), "url": url, "request_id": "REQ-1", "job_id": "7",
        "data": data, **fields,
    }  # fmt: skip
