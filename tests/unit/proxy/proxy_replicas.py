# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Meta services on real sockets that hold one base, and a script of who is the master and who is not well."""

import threading
from urllib.parse import urlsplit

import msgspec
from proxy_cluster import NS, OPERATIONS
from support import held_port

from oio.common.status import StatusError, http_status
from oio.common.variables import Variables
from oio.conscience.messages import NamespaceInfo, Service
from oio.http.client import HttpPool
from oio.http.server import Response, Server, ServerConfig
from oio.meta.client import MetaClient
from oio.meta.messages import ErrorReply, PrefixMapping, Properties
from oio.proxy.lb import build_world
from oio.proxy.resolver import Resolver


class Replica:
    """One service. ``behaviour`` is "well", "silent", "unsure", or a function that answers (or raises)."""

    def __init__(self, group, name, held=None):
        self.group, self.name = group, name
        self.behaviour = "well"
        self.awake = threading.Event()
        # Nobody else is given the port of a service that is down.
        self.held, self.port = held or held_port()
        listen = [("127.0.0.1", self.port)]
        self.server = Server(self.handle, listen, ServerConfig(linger_s=0.001, access_log=None))
        self.server.start()
        self.address = f"127.0.0.1:{self.port}"

    def handle(self, request):
        """Answer a request as the script says."""
        name = urlsplit(request.target).path.removeprefix("/v1/")
        if self.behaviour == "silent":
            self.group.log.append((self.name, name, dict(request.headers)))
            assert self.awake.wait(30)
        if name == "ping":
            self.group.pings.append(self.name)
            return Response(204)
        headers = dict(request.headers)
        operation = msgspec.msgpack.decode(request.read_all(), type=OPERATIONS[name])
        self.group.log.append((self.name, name, headers))
        try:
            if callable(self.behaviour):
                return reply_of(self.behaviour(self, operation, headers))
            return reply_of(self.group.answer(self, operation, headers))
        except StatusError as exc:
            return Response(
                http_status(exc.code), msgspec.msgpack.encode(ErrorReply(status=exc.code, message=exc.message))
            )

    def kill(self):
        """End without an answer to those who wait for one."""
        self.server.stop(0)
        self.awake.set()

    def die(self):
        """The same, by a request that never gets its answer."""
        threading.Thread(target=self.kill).start()
        assert self.awake.wait(30)
        self.server.wait(10)
        raise StatusError(500, "nobody hears this")


def reply_of(value):
    """A response that holds a message."""
    return Response(204) if value is None else Response(200, msgspec.msgpack.encode(value))


class Group:
    """The copies of one base, of the type ``kind``, and a resolver that knows them."""

    def __init__(self, kind="meta2", count=3, **variables):
        self.kind = kind
        self.log, self.pings = [], []
        #: Id of the operation (or a number, for those without) -> how many times it was made.
        self.made = {}
        self.master = f"{kind}-1"
        self.reply = Properties(properties={"user.a": "b"})
        self.replicas = {f"{kind}-{n}": None for n in range(1, count + 1)}
        for name in self.replicas:
            self.replicas[name] = Replica(self, name)
        self.variables = Variables({"proxy.srv_shuffle": "off", "proxy.dir_shuffle": "off", **variables})
        self.pool = HttpPool()
        self.resolver = Resolver(self.variables, MetaClient(self.pool), self)
        self.world = self.picture()

    def picture(self):
        """What the conscience says."""
        group = [
            Service(type=self.kind, addr=one.address, score=50, tags={"tag.service_id": name})
            for name, one in self.replicas.items()
        ]
        return build_world(NamespaceInfo(ns=NS), {self.kind: group}, {self.kind: group})

    @property
    def names(self):
        """The services, as the directory names them."""
        return list(self.replicas)

    def answer(self, replica, operation, headers):
        """What a service that is well says."""
        if replica.behaviour == "unsure" or (self.master is None and "x-oio-local" not in headers):
            raise StatusError(503, "no master yet")
        if replica.name != self.master and "x-oio-local" not in headers:
            raise StatusError(303, self.master)
        key = headers.get("x-oio-operation", len(self.made))
        self.made[key] = self.made.get(key, 0) + 1
        if operation.operation() == "meta0_get":
            return PrefixMapping(mapping={operation.prefix: self.names})
        return self.reply

    def call(self, request, context, write, **options):
        """Send an operation to the base."""
        return self.resolver.call_services(self.kind, self.names, request, context, write, **options)

    def asked(self):
        """Numbers of the services that got an operation, in order, since the last time."""
        numbers = [int(name.rpartition("-")[2]) for name, path, _ in self.log if path != "ping"]
        self.log.clear()
        return numbers

    def headers(self, name):
        """Values of a header, one for each operation that was received."""
        return [headers.get(name) for _, path, headers in self.log if path != "ping"]

    def kill(self, *numbers):
        """End some services."""
        for number in numbers:
            self.replicas[f"{self.kind}-{number}"].kill()

    def restart(self, number):
        """Start a service again where it was."""
        name = f"{self.kind}-{number}"
        former = self.replicas[name]
        self.replicas[name] = Replica(self, name, (former.held, former.port))

    def stop(self):
        """End everything."""
        for replica in self.replicas.values():
            replica.kill()
            replica.held.close()
        self.pool.close()
