# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""A live proxy in front of scripted backends that speak the real wire formats."""

import msgspec
from proxy_http import Answer

from oio.common.status import StatusError, http_status
from oio.conscience.messages import NamespaceInfo, Service, ServiceDef, Snapshot
from oio.http.client import HttpPool
from oio.http.server import Response, Server, ServerConfig
from oio.meta import base_messages, messages
from oio.meta.messages import ErrorReply
from oio.proxy.server import ProxyProcess, server_config

NS = "NSTEST"
VARIABLES = {
    "ns.chunk_size": "1000",
    "ns.service_update_policy": "meta2=KEEP|1|1;rdir=KEEP|1|1|",
    "proxy.period.cs.upstream": "50ms",
    "proxy.period.cs.downstream": "1h",
}
OPERATIONS = {
    kind.operation(): kind
    for kind in [*vars(messages).values(), *vars(base_messages).values()]
    if isinstance(kind, type) and issubclass(kind, messages.Operation)
}


def rawx(number, *, host=None, score=80, **tags):
    """A chunk server as the conscience would describe it."""
    host = number if host is None else host
    return Service(
        type="rawx",
        addr=f"127.0.0.1:{6200 + number}",
        score=score,
        tags={
            "tag.service_id": f"{NS}-rawx-{number}",
            "tag.loc": f"room.rack.host{host}.vol{number}",
            **tags,
        },
    )


class FakeMeta:
    """A meta service whose answers are scripted: ``answers[operation] = value, exception or callable``."""

    def __init__(self):
        self.answers = {"container_get_properties": StatusError(431, "no such base")}
        #: Answers to what is not an operation: ``orders["POST /path"] = status, body``.
        self.orders = {}
        self.ordered = []
        self.calls = []
        self.headers = []
        config = ServerConfig(linger_s=0.001, access_log=None)
        self.server = Server(self._handle, [("127.0.0.1", 0)], config)
        self.server.start()
        self.addr = f"127.0.0.1:{self.server.addresses[0][1]}"

    def _handle(self, request):
        order = self.orders.get(f"{request.method} {request.path}")
        if order is not None:
            self.ordered.append((request.target, bytes(request.read_all())))
            return Response(*(order() if callable(order) else order))
        if request.path == "/v1/ping":
            return Response(204)
        if request.path == "/status":
            return Response(200, b'{"version":"1.2","replication":"NONE"}', {"Content-Type": "application/json"})
        if request.path == "/stats":
            return Response(200, b"counter.requests=12\ngauge.threads=3\n")
        if request.path == "/config":
            return Response(200, b'{"meta2.max_versions":"1"}', {"Content-Type": "application/json"})
        name = request.path.removeprefix("/v1/")
        if name not in OPERATIONS:
            return Response(404, b"")
        operation = msgspec.msgpack.decode(request.read_all(), type=OPERATIONS[name])
        self.calls.append(operation)
        self.headers.append(dict(request.headers))
        try:
            answer = self.answers.get(name)
            if isinstance(answer, list):
                answer = answer.pop(0) if len(answer) > 1 else answer[0]
            if callable(answer):
                answer = answer(operation)
            if isinstance(answer, Exception):
                raise answer
        except StatusError as exc:
            body = msgspec.msgpack.encode(ErrorReply(status=exc.code, message=exc.message))
            return Response(http_status(exc.code), body)
        if answer is None:
            return Response(204)
        return Response(200, msgspec.msgpack.encode(answer))

    def names(self):
        """Operations received, in order."""
        return [call.operation() for call in self.calls]

    def last(self, name):
        """The last call of an operation."""
        return next(call for call in reversed(self.calls) if call.operation() == name)


class FakeConscience:
    """A conscience that gives whatever ``services`` holds, and keeps what is pushed."""

    def __init__(self):
        self.namespace = NamespaceInfo(
            ns=NS,
            storage_policy={
                "SINGLE": "NONE:NONE", "THREE": "rawx3:DUP3", "EC": "NONE:EC", "BROKEN": "NONE:ABSENT",
                "FAST": "fast:DUP3",
            },
            service_pools={"rawx3": "3,rawx", "fast": "3,rawx-fast,rawx;warn_dist=0"},
            data_security={
                "DUP3": "plain/nb_copy=3,min_dist=1",
                "EC": "ec/k=4,m=2,algo=isa_l_rs_cauchy,min_dist=1",
            },
        )
        self.types = ["account", "meta0", "meta1", "meta2", "rawx", "rdir"]
        self.services = {}
        self.generation = 1
        self.pushed = []
        self.deregistered = []
        self.failure = None
        config = ServerConfig(linger_s=0.001, access_log=None)
        self.server = Server(self._handle, [("127.0.0.1", 0)], config)
        self.server.start()
        self.addr = f"127.0.0.1:{self.server.addresses[0][1]}"

    def _handle(self, request):
        if self.failure is not None:
            body = msgspec.json.encode({"status": self.failure, "message": "scripted"})
            return Response(http_status(self.failure), body)
        query = request.query
        if request.path == "/v1/snapshot":
            if query.get("generation") == str(self.generation):
                return Response(304)
            snapshot = Snapshot(
                generation=self.generation, namespace=self.namespace, types=self.types, services=self.services
            )
            return Response(200, msgspec.json.encode(snapshot))
        if request.path == "/v1/services":
            return Response(200, msgspec.json.encode(self.services.get(query["type"], [])))
        body = request.read_all()
        if request.path == "/v1/push":
            self.pushed.extend(msgspec.json.decode(body, type=list[ServiceDef]))
        elif request.path == "/v1/deregister":
            self.deregistered.extend(msgspec.json.decode(body, type=list[ServiceDef]))
        elif request.path == "/v1/flush":
            self.services.pop(query["type"], None)
        return Response(204)

    def put(self, *services):
        """Add services, or replace those of the same address."""
        for service in services:
            group = [one for one in self.services.get(service.type, []) if one.addr != service.addr]
            self.services[service.type] = [*group, service]
        self.generation += 1


class Cluster:
    """One proxy, one conscience, one service that plays meta0, meta1 and meta2."""

    def __init__(self, **variables):
        self.conscience = FakeConscience()
        self.meta = FakeMeta()
        for kind in ("meta0", "meta1", "meta2"):
            tags = {"tag.service_id": f"{NS}-meta2-1"} if kind == "meta2" else {}
            self.conscience.put(Service(type=kind, addr=self.meta.addr, score=90, tags=tags))
        self.conscience.put(*(rawx(number) for number in range(1, 7)))
        conf = {"conscience": self.conscience.addr, **VARIABLES, **variables}
        self.process = ProxyProcess(NS, conf)
        self.process.start()
        self.app = self.process.app
        config = server_config(self.process.variables)
        config.linger_s = 0.001
        self.server = Server(self.app, [("127.0.0.1", 0)], config)
        self.server.start()
        self.url = f"http://127.0.0.1:{self.server.addresses[0][1]}"
        self.pool = HttpPool()
        link = messages.ServiceLink(type="meta2", host=f"{NS}-meta2-1")
        self.reference = messages.ReferenceReply(cid="0" * 64, account="acct", name="ref", services=[link])
        self.meta.answers.update(
            meta0_get=lambda call: messages.PrefixMapping(mapping={call.prefix: [self.meta.addr]}),
            reference_show=lambda call: self.reference,
            reference_link=messages.ServiceLinks(services=[link]),
            container_create=messages.Created(created=True),
        )

    def request(self, method, path, body=None, headers=None, raw=False):
        """Send a request below ``/v3.0/NS/`` (or to an absolute path)."""
        if not raw:
            path = f"/v3.0/{NS}/{path}"
        if body is not None and not isinstance(body, (bytes, str)):
            body = msgspec.json.encode(body)
        headers = {"Connection": "keep-alive", **(headers or {})}
        response = self.pool.request(method, self.url + path, headers=headers, body=body)
        return Answer(response)

    def get(self, path, **kwargs):
        """A GET request."""
        return self.request("GET", path, **kwargs)

    def post(self, path, body=None, **kwargs):
        """A POST request."""
        return self.request("POST", path, body, **kwargs)

    def reload(self):
        """Take what the conscience says now."""
        self.process.feed.refresh(force=True)

    def stop(self):
        """End all the servers."""
        self.server.stop(0.2)
        self.process.stop()
        self.pool.close()
        self.meta.server.stop(0.2)
        self.conscience.server.stop(0.2)
