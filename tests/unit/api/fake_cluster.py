# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""A proxy and three rawx in one process, just true enough for the API: real sockets, no disk."""

from __future__ import annotations

import json
import threading
import time
from hashlib import md5
from typing import Any
from urllib.parse import quote

from oio.common.utils import cid_from_name, compute_chunk_id
from oio.http.server import Request, Response, Server

NS = "TESTNS"
META = "x-oio-content-meta-"
CHUNK = "x-oio-chunk-meta-"


class FakeRawx:
    """Keeps chunks in memory. `refuse` maps a method to the status it answers instead."""

    def __init__(self) -> None:
        self.chunks: dict[str, tuple[bytes, dict[str, str]]] = {}
        self.refuse: dict[str, int] = {}
        self.log: list[tuple[str, str]] = []
        self.server = Server(self.handle, [("127.0.0.1", 0)])
        self.server.start()
        host, port = self.server.addresses[0][:2]
        self.address = f"{host}:{port}"

    def handle(self, req: Request) -> Response:
        chunk_id = req.path.lstrip("/")
        self.log.append((req.method, chunk_id))
        data = req.read_all(1 << 30)
        if req.method in self.refuse:
            return Response(self.refuse[req.method])
        if req.method == "PUT":
            if chunk_id in self.chunks:
                return Response(409)
            headers = {k: v for k, v in {**req.headers, **req.trailers}.items() if k.startswith(CHUNK)}
            headers[CHUNK + "chunk-size"] = str(len(data))
            headers[CHUNK + "chunk-hash"] = md5(data).hexdigest().upper()
            self.chunks[chunk_id] = (data, headers)
            return Response(201, b"", {k: headers[k] for k in (CHUNK + "chunk-size", CHUNK + "chunk-hash")})
        if req.method == "COPY":
            new_id = req.headers["destination"].rpartition("/")[2]
            if new_id in self.chunks:
                return Response(409)
            self.chunks[new_id] = self.chunks[chunk_id]
            return Response(201)
        found = self.chunks.get(chunk_id)
        if found is None:
            return Response(404)
        if req.method == "DELETE":
            del self.chunks[chunk_id]
            return Response(204)
        data, headers = found
        if req.method == "HEAD":
            return Response(200, b"", headers, content_length=len(data))
        given = req.headers.get("range")
        if not given:
            return Response(200, data, headers)
        first, _, last = given.removeprefix("bytes=").partition("-")
        start, end = int(first), min(int(last or len(data) - 1), len(data) - 1)
        headers = {**headers, "content-range": f"bytes {start}-{end}/{len(data)}"}
        return Response(206, data[start : end + 1], headers)


class FakeProxy:
    """Keeps objects in memory, without versions. `script` holds answers to give first, by route."""

    def __init__(self, rawx: list[FakeRawx], chunk_size: int, copies: int) -> None:
        self.rawx = rawx
        self.chunk_size = chunk_size
        self.copies = copies
        self.containers: dict[str, dict[str, Any]] = {}
        self.script: dict[str, list[Response]] = {}
        self.log: list[tuple[str, str, dict[str, str], dict[str, str], Any]] = []
        self.last_version = 0
        self.lock = threading.Lock()
        self.server = Server(self.handle, [("127.0.0.1", 0)])
        self.server.start()
        host, port = self.server.addresses[0][:2]
        self.address = f"{host}:{port}"

    def requests(self, route: str = "") -> list[Any]:
        """What was asked so far, on one route."""
        return [entry for entry in self.log if not route or entry[1] == route]

    def handle(self, req: Request) -> Response:
        route = req.path.partition(f"/v3.0/{NS}/")[2]
        body = req.read_all(1 << 24)
        value = json.loads(body) if body else None
        query = req.query
        self.log.append((req.method, route, query, dict(req.headers), value))
        if self.script.get(route):
            return self.script[route].pop(0)
        cid = query.get("cid", "").partition(".")[0].upper() or cid_from_name(
            query.get("acct", ""), query.get("ref", "")
        )
        method = getattr(self, "on_" + route.replace("/", "_"), None)
        if method is None:
            return failure(404, 404, "No handler found")
        with self.lock:
            return method(cid, query, value, req.headers)

    # --- containers ---

    def on_container_create(self, cid: str, query: Any, value: Any, _headers: Any) -> Response:
        if cid in self.containers:
            return Response(204)
        self.containers[cid] = {"objects": {}, "properties": dict(value["properties"]), "name": query.get("ref")}
        return Response(201)

    def on_container_destroy(self, cid: str, *_: Any) -> Response:
        if cid not in self.containers:
            return failure(404, 431, "Container not found")
        if self.containers[cid]["objects"]:
            return failure(409, 438, "Container not empty")
        del self.containers[cid]
        return Response(204)

    def on_reference_destroy(self, *_: Any) -> Response:
        return Response(204)

    def on_container_get_properties(self, cid: str, *_: Any) -> Response:
        if cid not in self.containers:
            return failure(404, 406, "No such user")
        return answer({"properties": self.containers[cid]["properties"], "system": {"sys.m2.objects": "0"}})

    def on_container_set_properties(self, cid: str, query: Any, value: Any, _h: Any) -> Response:
        if cid not in self.containers:
            return failure(404, 406, "No such user")
        if "flush" in query:
            self.containers[cid]["properties"].clear()
        self.containers[cid]["properties"].update(value["properties"])
        return answer({})

    def on_container_list(self, cid: str, query: Any, *_: Any) -> Response:
        if cid not in self.containers:
            return failure(404, 406, "No such user")
        names = sorted(self.containers[cid]["objects"])
        names = [name for name in names if name.startswith(query.get("prefix", ""))]
        marker = query.get("marker")
        if marker:
            names = [name for name in names if name > marker]
        limit = int(query.get("max", 1000))
        page = names[:limit]
        headers = {"x-oio-list-truncated": "true" if len(names) > limit else "false"}
        if len(names) > limit:
            headers["x-oio-list-marker"] = quote(page[-1], "")
        items = []
        for name in page:
            obj = self.containers[cid]["objects"][name]
            items.append(
                {
                    "name": name, "version": int(obj["version"]), "ctime": 1, "mtime": 1, "deleted": False,
                    "id": obj["id"], "content": obj["id"], "policy": obj["policy"],
                    "chunk-method": obj["chunk-method"], "hash": obj["hash"], "size": int(obj["length"]),
                    "mime-type": obj["mime-type"],
                }
            )  # fmt: skip
        return answer({"prefixes": [], "properties": {}, "system": {}, "objects": items}, headers)

    # --- objects ---

    def on_content_prepare2(self, cid: str, query: Any, value: Any, _headers: Any) -> Response:
        version = query.get("version") or str(self._version())
        position = int(value["position"])
        policy = value.get("policy", "THREE")
        chunks, properties = [], {}
        for index in range(self.copies):
            rawx = self.rawx[index % len(self.rawx)]
            chunk_id = compute_chunk_id(cid, query["path"], version, position, policy)
            url = f"http://{rawx.address}/{chunk_id}"
            chunks.append({"url": url, "real_url": url, "pos": str(position), "size": self.chunk_size,
                           "hash": "0" * 32, "score": 90})  # fmt: skip
            properties["__OIO_CHUNK__" + url] = "{}"
        meta = {
            "name": quote(query["path"], ""), "version": version, "deleted": "False", "ctime": "1", "mtime": "1",
            "size": "1", "length": "1", "policy": policy, "hash-method": "md5",
            "mime-type": "application/octet-stream", "chunk-method": f"plain/nb_copy={self.copies}",
            "id": query.get("content") or f"{int(version):032X}",
        }  # fmt: skip
        headers = {META + key: text for key, text in meta.items()}
        headers["x-oio-ns-chunk-size"] = str(self.chunk_size)
        return answer({"chunks": chunks, "properties": properties}, headers)

    def on_content_spare(self, _cid: str, query: Any, value: Any, _headers: Any) -> Response:
        """One more rawx, the last, for each broken chunk."""
        rawx = self.rawx[-1]
        used = [chunk["url"] for chunk in [*value["notin"], *value["broken"]]]
        if len(self.rawx) <= self.copies or any(rawx.address in url for url in used):
            return failure(500, 481, "not enough services")
        url = f"http://rawx-{len(self.rawx) - 1}/" + used[0].rpartition("/")[2]
        chunk = {"id": url, "pos": "", "hash": "", "size": 0}
        properties = [{"alias": "", "version": 0, "key": "__OIO_CHUNK__" + url, "value": "{}"}]
        return answer({"aliases": [], "headers": [], "chunks": [chunk], "properties": properties})

    def _version(self) -> int:
        self.last_version = max(self.last_version + 1, time.time_ns() // 1000)
        return self.last_version

    def on_content_create(self, cid: str, query: Any, value: Any, headers: Any) -> Response:
        if cid not in self.containers:
            if headers.get("x-oio-action-mode") != "autocreate":
                return failure(404, 406, "No such user")
            self.containers[cid] = {"objects": {}, "properties": {}, "name": query.get("ref")}
        obj = {name[len(META) :]: text for name, text in headers.items() if name.startswith(META)}
        obj.setdefault("mime-type", "application/octet-stream")
        obj["chunks"] = value["chunks"]
        obj["properties"] = {
            key: text for key, text in value["properties"].items() if not key.startswith("__OIO_CHUNK__")
        }
        objects = self.containers[cid]["objects"]
        old = objects.get(query["path"])
        tag = None if old is None else f'"{old["hash"]}"'
        wanted, unwanted = headers.get("if-match"), headers.get("if-none-match")
        if (wanted and (old is None or wanted not in ("*", tag))) or (unwanted == "*" and old):
            return failure(412, 412, "Condition not met")
        if "change_policy" in query and (old is None or old["version"] != obj["version"]):
            return failure(404, 420, "Content not found")
        if "append" in query and query["path"] in objects:
            old = objects[query["path"]]
            shift = 1 + max(int(chunk["pos"]) for chunk in old["chunks"])
            for chunk in obj["chunks"]:
                chunk["pos"] = str(int(chunk["pos"]) + shift)
            old["chunks"] += obj["chunks"]
            old["length"] = str(int(old["length"]) + int(obj["length"]))
            old["hash"] = ""
        else:
            objects[query["path"]] = obj
        return Response(204)

    def _find(self, cid: str, query: Any) -> tuple[Any, Response | None]:
        if cid not in self.containers:
            return None, failure(404, 431, "Container not found")
        obj = self.containers[cid]["objects"].get(query.get("path"))
        if obj is None or query.get("version", obj["version"]) != obj["version"]:
            return None, failure(404, 420, "Content not found")
        return obj, None

    def stored(self, account: str, container: str, name: str) -> Any:
        """An object as it is kept."""
        return self.containers[cid_from_name(account, container)]["objects"][name]

    def _headers(self, obj: Any, name: str, properties: bool) -> list[tuple[str, str]]:
        meta = {
            key: obj[key] for key in ("hash", "id", "policy", "version", "mime-type", "chunk-method", "length")
        }
        meta |= {"name": quote(name, ""), "deleted": "False", "ctime": "1", "mtime": "1", "size": obj["length"],
                 "hash-method": "md5"}  # fmt: skip
        if properties:
            meta |= {quote(key, ""): quote(text, "") for key, text in obj["properties"].items()}
        return [(META + key, str(text)) for key, text in meta.items()]

    def on_content_locate(self, cid: str, query: Any, *_: Any) -> Response:
        obj, error = self._find(cid, query)
        if error:
            return error
        if obj["chunk-method"] == "drained":
            return failure(410, 427, "Content drained")
        keys = ("url", "real_url", "pos", "size", "hash")
        chunks = [{**{key: chunk[key] for key in keys}, "score": 90} for chunk in obj["chunks"]]
        return answer(chunks, self._headers(obj, query["path"], query.get("properties") != "False"))

    def on_content_get_properties(self, cid: str, query: Any, *_: Any) -> Response:
        obj, error = self._find(cid, query)
        return error or answer({"properties": obj["properties"]}, self._headers(obj, query["path"], False))

    def on_content_set_properties(self, cid: str, query: Any, value: Any, _h: Any) -> Response:
        obj, error = self._find(cid, query)
        if error:
            return error
        if "flush" in query:
            obj["properties"].clear()
        obj["properties"].update(value["properties"])
        return Response(204)

    def on_content_del_properties(self, cid: str, query: Any, value: Any, _h: Any) -> Response:
        obj, error = self._find(cid, query)
        if error:
            return error
        for key in value or list(obj["properties"]):
            obj["properties"].pop(key, None)
        return Response(204)

    def on_content_delete(self, cid: str, query: Any, *_: Any) -> Response:
        _obj, error = self._find(cid, query)
        if error:
            return error
        del self.containers[cid]["objects"][query["path"]]
        return Response(204)

    def on_content_delete_many(self, cid: str, query: Any, value: Any, headers: Any) -> Response:
        items = []
        for item in value["contents"]:
            resp = self.on_content_delete(cid, {"path": item["name"]}, None, headers)
            items.append({"name": item["name"], "status": 204 if resp.status == 204 else 420, "message": ""})
        return answer({"contents": items})

    def on_content_update(self, cid: str, query: Any, value: Any, _headers: Any) -> Response:
        obj, error = self._find(cid, query)
        if error:
            return error
        if query.get("id") != obj["id"]:
            return failure(404, 420, "Content not found")
        positions = {chunk["pos"].partition(".")[0] for chunk in value}
        obj["chunks"] = [c for c in obj["chunks"] if c["pos"].partition(".")[0] not in positions] + value
        self._measure(obj)
        return Response(204)

    def on_content_truncate(self, cid: str, query: Any, *_: Any) -> Response:
        obj, error = self._find(cid, query)
        if error:
            return error
        sizes = {int(chunk["pos"]): int(chunk["size"]) for chunk in obj["chunks"]}
        ends = {sum(sizes[pos] for pos in range(last + 1)): last for last in sorted(sizes)}
        size = int(query["size"])
        if size not in ends:
            return failure(400, 400, "Cannot truncate amid a metachunk")
        obj["chunks"] = [chunk for chunk in obj["chunks"] if int(chunk["pos"]) <= ends[size]]
        self._measure(obj)
        return Response(204)

    def _measure(self, obj: Any) -> None:
        sizes = {chunk["pos"].partition(".")[0]: int(chunk["size"]) for chunk in obj["chunks"]}
        obj["length"] = str(sum(sizes.values()))
        obj["hash"] = ""

    def on_content_drain(self, cid: str, query: Any, *_: Any) -> Response:
        obj, error = self._find(cid, query)
        if error:
            return error
        obj["chunks"], obj["chunk-method"] = [], "drained"
        return Response(204)

    def on_content_purge(self, cid: str, *_: Any) -> Response:
        return Response(204) if cid in self.containers else failure(404, 431, "Container not found")

    def on_admin_freeze(self, cid: str, *_: Any) -> Response:
        return Response(204) if cid in self.containers else failure(404, 406, "No such user")

    on_admin_enable = on_admin_freeze

    def on_content_touch(self, cid: str, query: Any, *_: Any) -> Response:
        _obj, error = self._find(cid, query)
        return error or Response(204)

    # --- conscience ---

    def on_conscience_list(self, *_: Any) -> Response:
        return answer([{"addr": rawx.address, "score": 80, "tags": {}} for rawx in self.rawx])

    def on_conscience_resolve(self, _cid: str, query: Any, *_: Any) -> Response:
        if not query["service_id"].startswith("rawx-"):
            return failure(503, 503, "Service ID not found")
        return answer({"addr": self.rawx[int(query["service_id"][-1])].address})


def answer(value: Any, headers: Any = None) -> Response:
    return Response(200, json.dumps(value).encode(), headers)


def failure(http_status: int, status: int, message: str) -> Response:
    return Response(http_status, json.dumps({"status": status, "message": message}).encode())


class FakeCluster:
    """Three rawx (or more) and a proxy."""

    def __init__(self, chunk_size: int = 1 << 20, copies: int = 3, rawx: int = 3) -> None:
        self.rawx = [FakeRawx() for _ in range(rawx)]
        self.proxy = FakeProxy(self.rawx, chunk_size, copies)

    def stop(self) -> None:
        for service in [self.proxy, *self.rawx]:
            service.server.stop()

    def chunk_count(self) -> int:
        return sum(len(rawx.chunks) for rawx in self.rawx)
