# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Talking to a proxy in plain HTTP, as programs in other languages do."""

import json
import time
from urllib.parse import urlencode

from oio.http.client import HttpPool

ZERO = "0" * 32
#: Chunk size that tests announce for each metachunk of an object.
CHUNK = 10


class Answer:
    """Status, headers and body of a response."""

    def __init__(self, response):
        self.status = response.status
        self.headers = response.headers
        self.data = bytes(response.data)

    @property
    def json(self):
        """The decoded body."""
        return json.loads(self.data)

    @property
    def code(self):
        """HTTP status and internal code of an error, (status, None) of a success."""
        return self.status, self.json.get("status") if self.status >= 400 else None

    def __repr__(self):
        return f"<{self.status} {self.data[:200]!r}>"


class RawProxy:
    """A proxy."""

    def __init__(self, address, namespace):
        self.address, self.namespace = address, namespace
        self.pool = HttpPool()

    def request(self, method, path, query=None, body=None, headers=None):
        """Send a request; a path that begins with a slash is taken as it is, others are below the namespace."""
        path = path if path.startswith("/") else f"/v3.0/{self.namespace}/{path}"
        if query:
            path += "?" + urlencode(query)
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        return Answer(self.pool.request(method, f"http://{self.address}{path}", headers=headers, body=body))

    def get(self, path, query=None, headers=None):
        """A GET request."""
        return self.request("GET", path, query, headers=headers)

    def post(self, path, query=None, body=None, headers=None):
        """A POST request."""
        return self.request("POST", path, query, body, headers)

    def set_variable(self, name, value, *services):
        """Set a variable of the proxy, and of other services; the former values are returned."""
        former = self.get("/v3.0/config").json[name]
        for path, query in [("/v3.0/config", None), *(("/v3.0/forward/config", {"id": one}) for one in services)]:
            answer = self.post(path, query, {name: value})
            assert answer.json == {name: True}, answer
        return former


class RawContainer:
    """A container, by its names."""

    def __init__(self, proxy, account, name):
        self.proxy, self.account, self.name = proxy, account, name
        self.where = {"acct": account, "ref": name}

    def get(self, route, headers=None, **query):
        """A GET request about the container."""
        return self.proxy.get(route, {**self.where, **query}, headers)

    def post(self, route, body=None, headers=None, **query):
        """A POST request about the container."""
        return self.proxy.post(route, {**self.where, **query}, body, headers)

    def system(self):
        """System properties."""
        return self.post("container/get_properties").json["system"]

    def rows(self, **query):
        """Objects that a listing shows."""
        answer = self.get("container/list", **query)
        assert answer.status == 200, answer
        return answer.json["objects"]

    def prepared(self, path, metachunks=1, policy="SINGLE", **query):
        """What an object would be: chunks for a body, headers."""
        answer = self.post(
            "content/prepare2", {"size": 1, "policy": policy, "position": 0}, path=path, **query
        )
        assert answer.status == 200, answer
        meta = {
            f"x-oio-content-meta-{name}": answer.headers[f"x-oio-content-meta-{name}"]
            for name in ("id", "version", "policy", "chunk-method")
        }
        chunks = []
        for position in range(metachunks):
            for chunk in answer.json["chunks"]:
                _, dot, fragment = chunk["pos"].partition(".")
                url = chunk["url"][:-4] + f"{position:04X}"
                chunks.append({"url": url, "pos": f"{position}{dot}{fragment}", "size": CHUNK, "hash": ZERO})
        return chunks, {**meta, "x-oio-content-meta-length": str(CHUNK * metachunks)}

    def put(
        self, path, *, metachunks=1, policy="SINGLE", digest=ZERO, headers=None, drop=0, properties=None, **query
    ):
        """Commit an object whose chunks were never written; ``drop`` of them are not even announced."""
        version = {"version": query.pop("version")} if "version" in query else {}
        chunks, meta = self.prepared(path, metachunks, policy, **version)
        body = {"chunks": chunks[drop:], "properties": properties or {}}
        headers = {**meta, "x-oio-content-meta-hash": digest, **(headers or {})}
        return self.post("content/create", body, headers, path=path, **query)


def fresh_name(base):
    """A name that no other test uses."""
    return f"{base[:60]}-{time.time_ns()}"
