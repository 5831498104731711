# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Every operation on a real cluster, and the events that it emits, field by field.

All tubes have another name than usual: the event agent sees nothing, and changes nothing.
"""

import configparser
import json
import os
import re
import threading
import time

import pytest
from proxy_http import CHUNK, ZERO, RawContainer, RawProxy, fresh_name
from support import ACCOUNT, eventually, start_cluster

from oio import ObjectStorageApi
from oio.blob.client import BlobClient
from oio.event.queue import split_urls
from oio.event.routing import TUBE_VARIABLES
from oio.event.source import open_source

TUBE = "seen"
BEAN_KEYS = {
    "aliases": {
        "type": str, "name": str, "version": int, "ctime": int, "mtime": int, "deleted": bool, "header": str,
    },
    "contents_headers": {
        "type": str, "id": str, "hash": (str, type(None)), "size": int, "policy": (str, type(None)),
        "chunk-method": str, "mime-type": str,
    },
    "chunks": {"type": str, "id": str, "pos": str, "hash": str, "size": int},
    "properties": {"type": str, "alias": str, "version": int, "key": str, "value": (str, type(None))},
}  # fmt: skip
STATE_KEYS = {
    "bucket": (str, type(None)), "policy": str, "ctime": int, "bytes-count": int, "object-count": int,
    "damaged-objects": int, "missing-chunks": int,
}  # fmt: skip
CHUNK_KEYS = {
    "volume_id", "volume_service_id", "full_path", "container_id", "content_path", "content_version", "content_id",
    "content_storage_policy", "metachunk_hash", "metachunk_size", "chunk_id", "content_chunk_method",
    "chunk_position", "chunk_hash", "chunk_size", "oio_version",
}  # fmt: skip
#: Those that events of deleted and linked chunks fill.
OWNER_KEYS = {
    "volume_id", "volume_service_id", "full_path", "container_id", "content_path", "content_version", "content_id",
    "chunk_id",
}  # fmt: skip
WITH_CHUNKS = ("storage.content.deleted", "storage.content.drained")
CONTENT_BEANS = (*WITH_CHUNKS, "storage.content.new", "storage.content.append", "storage.content.update")
HEX64 = re.compile(r"[0-9A-F]{64}\Z")


# -- the catalogue -----------------------------------------------------------------------------


def shaped(item, shape):
    """Does a dictionary have exactly these keys, with values of these types?"""
    assert set(item) == set(shape), item
    for key, kinds in shape.items():
        assert isinstance(item[key], kinds) and (kinds is not int or not isinstance(item[key], bool)), (key, item)


def check_container_url(event, namespace):
    url = event["url"]
    assert set(url) == {"ns", "account", "user", "id"}, url
    assert url["ns"] == namespace and HEX64.match(url["id"])


def check_content_url(event, namespace):
    url = event["url"]
    assert set(url) == {"ns", "account", "user", "id", "path", "version", "content"}, url
    assert url["ns"] == namespace and HEX64.match(url["id"])
    assert url["version"].isdecimal() and re.match(r"[0-9A-F]+\Z", url["content"])


def check_beans(event):
    kinds = [bean["type"] for bean in event["data"]]
    assert kinds.count("aliases") == 1 and kinds[0] == "aliases"
    for bean in event["data"]:
        shaped(bean, BEAN_KEYS[bean["type"]])
    assert isinstance(event["part"], int) and 0 <= event["part"] < event["parts"]
    if event["event"] not in WITH_CHUNKS:
        assert "chunks" not in kinds and (event["part"], event["parts"]) == (0, 1)
    alias = event["data"][0]
    hidden = alias["version"] - 1 if alias["deleted"] else alias["version"]
    url = event["url"]
    assert (url["path"], url["version"], url["content"]) == (alias["name"], str(hidden), alias["header"])


def check_chunk(event):
    data = event["data"]
    assert set(data) == CHUNK_KEYS and all(isinstance(value, str) for value in data.values())
    for key in OWNER_KEYS - {"volume_service_id"}:
        assert data[key], key
    assert HEX64.match(data["chunk_id"]) and HEX64.match(data["container_id"])


def check(event, namespace):
    """Compare an event with what the catalogue says of its type."""
    kind, data = event["event"], event["data"]
    allowed = {"event", "when", "data", "request_id", "origin"}
    assert isinstance(event["when"], int) and abs(event["when"] / 1e6 - time.time()) < 600
    for key in ("request_id", "origin"):
        assert isinstance(event.get(key, ""), str)
    if kind in CONTENT_BEANS:
        check_content_url(event, namespace)
        check_beans(event)
        allowed |= {"url", "part", "parts"}
    elif kind == "storage.content.broken":
        check_content_url(event, namespace)
        assert set(data) == {"present_chunks", "missing_chunks"}
        for chunk in data["present_chunks"]:
            shaped(chunk, {"id": str, "pos": str, "hash": str, "size": int})
        assert all(isinstance(position, str) for position in data["missing_chunks"]) and data["missing_chunks"]
        allowed.add("url")
    elif kind == "storage.content.perfectible":
        check_content_url(event, namespace)
        assert set(data) == {"pos", "chunks"} and isinstance(data["pos"], int)
        for chunk in data["chunks"]:
            shaped(chunk, {"id": str, "pos": str, "hash": str, "size": int, "quality": dict})
            assert set(chunk["quality"]) >= {
                "expected_dist", "final_dist", "warn_dist", "expected_slot", "final_slot",
            }  # fmt: skip
        allowed.add("url")
    elif kind.startswith("storage.chunk."):
        assert kind.removeprefix("storage.chunk.") in ("new", "deleted")
        check_chunk(event)
        assert event["request_id"]
    else:
        check_container_url(event, namespace)
        allowed.add("url")
        check_container(kind, data)
    assert set(event) <= allowed, event


def check_container(kind, data):
    if kind == "account.services":
        for service in data:
            shaped(service, {"seq": int, "type": str, "host": str, "args": str})
    elif kind == "storage.container.new":
        assert set(data) == {"system", "properties", "peers", "bucket"}
        assert data["peers"] and all(isinstance(peer, str) for peer in data["peers"])
        assert all(isinstance(value, str) for part in ("system", "properties") for value in data[part].values())
    elif kind == "storage.container.update":
        assert set(data) == {"system", "properties", "bucket"}
        values = [*data["system"].values(), *data["properties"].values()]
        assert all(value is None or isinstance(value, str) for value in values)
    elif kind == "storage.container.state":
        shaped(data, STATE_KEYS)
    elif kind == "storage.container.deleted":
        assert set(data) == {"bucket"}
    else:
        assert kind == "storage.meta2.deleted"
        assert set(data) == {"peer"} and isinstance(data["peer"], str) and data["peer"]


# -- a cluster whose events are seen -----------------------------------------------------------


def by_service(event):
    """Order is kept by each service, not between them."""
    return event["event"].startswith("account.")


def same_kinds(events, kinds):
    """Are events of these kinds, in this order for each service?"""
    found = [event["event"].removeprefix("storage.") for event in events]
    assert sorted(found, key=lambda kind: kind.startswith("account.")) == list(kinds)
    return found


class Tap:
    """Takes all events out of a queue, and keeps them."""

    def __init__(self, url):
        self.events = []
        self._stop = threading.Event()
        self._sources = [open_source(one, TUBE) for one in split_urls(url)]
        self._threads = [threading.Thread(target=self._run, args=(one,), daemon=True) for one in self._sources]
        for thread in self._threads:
            thread.start()

    def _run(self, source):
        while not self._stop.is_set():
            job = source.reserve(0.2)
            if job is not None:
                self.events.append(json.loads(job.body))
                source.delete(job)

    def of(self, reqid, *kinds):
        """Events of a request, once at least these are there; states of containers belong to no request."""

        def found():
            mine = [event for event in self.events if event.get("request_id") == reqid]
            return len(mine) >= len(kinds) and mine

        events = eventually(found, what=f"events {kinds} of {reqid}") if kinds else found() or []
        return sorted(events, key=by_service) if same_kinds(events, kinds) else []

    def state(self, box, predicate):
        """A state of a container that fulfils something."""

        def found():
            states = [
                event
                for event in self.events
                if event["event"] == "storage.container.state" and event["url"]["user"] == box.name
            ]
            return [event["data"] for event in states if predicate(event["data"])]

        return eventually(found, what=f"state of {box.name}")[0]

    def close(self):
        self._stop.set()
        for thread in self._threads:
            thread.join()
        for source in self._sources:
            source.close()


class Box(RawContainer):
    """A container whose requests have ids; remembers what each was expected to emit."""

    def __init__(self, proxy, tap, name):
        super().__init__(proxy, ACCOUNT, name)
        self.tap = tap
        self.expected = {}
        self._count = 0

    def did(self, answer, *kinds):
        """Events of the last request, which are exactly these."""
        assert answer.status < 300, answer
        self.expected[self.reqid] = kinds
        return self.tap.of(self.reqid, *kinds)

    @property
    def reqid(self):
        return f"{self.name}:{self._count}"[-60:]

    def post(self, route, body=None, headers=None, **query):
        self._count += 1
        headers = {"x-oio-req-id": self.reqid, "user-agent": "catalogue/1.0", **(headers or {})}
        return super().post(route, body, headers, **query)


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """A cluster whose events go to a tube that nobody reads."""
    home = tmp_path_factory.mktemp("seen")
    config = dict.fromkeys(TUBE_VARIABLES.values(), TUBE)
    sandbox = start_cluster(home, f"SEEN{os.getpid()}", chunk_size=2**16, rawx=4, config=config)
    yield sandbox
    sandbox.destroy()


@pytest.fixture(scope="module")
def seen_proxy(seen):
    proxy = RawProxy(seen.proxy, seen.namespace)
    yield proxy
    proxy.pool.close()


@pytest.fixture(scope="module")
def tap(seen, request):
    """What came out of the queue; at the end all of it is compared with the catalogue."""
    conf = configparser.ConfigParser(interpolation=None)
    conf.read(seen.layout.sds_conf)
    tap = Tap(conf[seen.namespace]["event-agent"])
    yield tap
    tap.close()
    for event in tap.events:
        check(event, seen.namespace)
    kinds = {event["event"] for event in tap.events}
    tests = {name for name in globals() if name.startswith("test_")}
    if tests <= {getattr(item, "originalname", None) for item in request.session.items}:
        assert kinds == set(TUBE_VARIABLES), "each type was seen, unless some tests only were run"


@pytest.fixture
def new_box(seen_proxy, tap, request):
    """A container that does not exist; at the end no request may have emitted more than was expected."""
    box = Box(seen_proxy, tap, fresh_name(request.node.name))
    yield box
    for reqid, kinds in box.expected.items():
        tap.of(reqid, *kinds)


@pytest.fixture
def box(new_box):
    assert new_box.post("container/create").status == 201
    return new_box


def beans(event, kind):
    return [bean for bean in event["data"] if bean["type"] == kind]


# -- meta1 -------------------------------------------------------------------------------------


def test_references(new_box, seen):
    created = new_box.did(new_box.post("reference/create"), "account.services")[0]
    assert created["data"] == [] and created["origin"] == "catalogue/1.0"
    linked = new_box.did(new_box.post("reference/link", type="meta2"), "account.services")[0]
    assert [(one["seq"], one["type"]) for one in linked["data"]] == [(1, "meta2")]
    assert new_box.did(new_box.post("reference/link", type="meta2")) == []
    service = {"seq": 7, "type": "rawx", "host": "127.0.0.1:9", "args": "x"}
    forced = new_box.did(new_box.post("reference/force", service, type="rawx"), "account.services")[0]
    assert service in forced["data"] and len(forced["data"]) == 2
    unlinked = new_box.did(new_box.post("reference/unlink", type="rawx"), "account.services")[0]
    assert [one["type"] for one in unlinked["data"]] == ["meta2"]
    new_box.did(new_box.post("reference/unlink", type="meta2"), "account.services")
    new_box.did(new_box.post("reference/destroy"))


# -- containers --------------------------------------------------------------------------------


def test_life_of_a_container(new_box, tap, seen):
    body = {"properties": {"color": "blue"}, "system": {"sys.m2.quota": "1000000"}}
    new, services = new_box.did(new_box.post("container/create", body), "container.new", "account.services")
    listing = new_box.get("reference/show", type="meta2").json["srv"]
    hosts = [one["host"] for one in listing]
    assert [one["host"] for one in services["data"]] == hosts
    assert new["data"] == {
        "system": {"sys.m2.quota": "1000000"}, "properties": {"color": "blue"}, "peers": hosts, "bucket": None,
    }  # fmt: skip
    assert services["url"] == new["url"]
    state = tap.state(new_box, lambda data: True)
    assert (state["object-count"], state["bytes-count"]) == (0, 0) and state["ctime"] > 10**15
    assert new_box.did(new_box.post("container/create")) == []
    events = new_box.did(
        new_box.post("container/destroy"), "container.deleted", "meta2.deleted", "account.services"
    )
    assert events[0]["data"] == {"bucket": None}
    assert [event["data"]["peer"] for event in events if event["event"] == "storage.meta2.deleted"] == hosts
    assert events[-1]["data"] == []


def test_properties_of_a_container(box, tap):
    body = {"system": {"sys.m2.bucket.name": "bucket"}, "properties": {"a": "1", "b": "2"}}
    data = box.did(box.post("container/set_properties", body), "container.update")[0]["data"]
    assert data == {**body, "bucket": "bucket"}
    tap.state(box, lambda data: data["bucket"] == "bucket")
    data = box.did(box.post("container/del_properties", ["a", "unknown"]), "container.update")[0]["data"]
    assert data == {"system": {}, "properties": {"a": None}, "bucket": "bucket"}
    assert box.did(box.post("container/del_properties", ["unknown"])) == []
    body = {"properties": {"c": "3", "never": ""}}
    data = box.did(box.post("container/set_properties", body, flush="1"), "container.update")[0]["data"]
    assert data["properties"] == {"b": None, "c": "3"}


def test_touching_a_container_tells_its_state(box, tap):
    tap.state(box, lambda data: True)
    count = len(tap.events)
    assert box.did(box.post("container/touch")) == []
    eventually(
        lambda: [e for e in tap.events[count:] if e["event"].endswith(".state") and e["url"]["user"] == box.name],
        what="the state again",
    )


def test_a_copy_of_a_container(box, tap):
    box.did(box.put("o"), "content.new")
    target = f"{box.name}-copy"
    answer = box.post("container/snapshot", {"account": ACCOUNT, "container": target, "seq_num": 1})
    assert answer.status < 300, answer
    new = eventually(
        lambda: [e for e in tap.events if e["event"] == "storage.container.new" and e["url"]["user"] == target],
        what="the announcement of the copy",
    )
    assert len(new) == 1


# -- objects -----------------------------------------------------------------------------------


def test_a_new_object_and_its_deletion(box, tap):
    new = box.did(box.put("o", policy="THREECOPIES", properties={"k": "v"}), "content.new")[0]
    assert [bean["type"] for bean in new["data"]] == ["aliases", "contents_headers", "properties"]
    header, prop = new["data"][1:]
    assert (header["size"], header["policy"], header["chunk-method"], header["hash"]) == (
        CHUNK, "THREECOPIES", header["chunk-method"], ZERO
    )  # fmt: skip
    assert (prop["key"], prop["value"]) == ("k", "v")
    assert new["origin"] == "catalogue/1.0"
    tap.state(box, lambda data: (data["object-count"], data["bytes-count"]) == (1, CHUNK))
    deleted = box.did(box.post("content/delete", path="o"), "content.deleted")[0]
    assert len(beans(deleted, "chunks")) == 3 and len(beans(deleted, "properties")) == 1
    assert all(bean["id"].startswith("http://") for bean in beans(deleted, "chunks"))
    assert deleted["url"] == new["url"]


def test_an_object_that_replaces_another(box):
    first = box.did(box.put("o"), "content.new")[0]
    deleted, new = box.did(box.put("o"), "content.deleted", "content.new")
    assert deleted["url"] == first["url"] != new["url"]


def test_many_chunks_are_told_in_several_parts(box):
    box.did(box.put("o", metachunks=6, policy="THREECOPIES", properties={"k": "v"}), "content.new")
    events = box.did(box.post("content/delete", path="o"), *["content.deleted"] * 3)
    assert [(event["part"], event["parts"]) for event in events] == [(0, 3), (1, 3), (2, 3)]
    assert [len(beans(event, "chunks")) for event in events] == [0, 16, 2]
    assert [len(beans(event, "properties")) for event in events] == [1, 0, 0]
    assert all(len(beans(event, "contents_headers")) == 1 for event in events)
    urls = [bean["id"] for event in events for bean in beans(event, "chunks")]
    assert len(set(urls)) == 18


@pytest.mark.parametrize(("metachunks", "properties", "parts"), [(4, 2, 1), (4, 3, 2), (5, 0, 2)])
def test_sixteen_beans_make_one_part(box, metachunks, properties, parts):
    """Alias and header are beans too: 2 + 12 + 2 = 16."""
    names = {f"k{number}": "v" for number in range(properties)}
    box.did(box.put("o", metachunks=metachunks, policy="THREECOPIES", properties=names), "content.new")
    events = box.did(box.post("content/delete", path="o"), *["content.deleted"] * parts)
    assert [event["parts"] for event in events] == [parts] * parts


def test_markers_and_versions(box):
    assert box.post("container/set_properties", {"system": {"sys.m2.policy.version": "-1"}}).status == 200
    first = box.did(box.put("o"), "content.new")[0]
    box.did(box.put("o"), "content.new")
    marker = box.did(box.post("content/delete", path="o"), "content.deleted")[0]
    alias = marker["data"][0]
    assert len(marker["data"]) == 1 and alias["deleted"] and alias["header"] == b"DELETED".hex().upper()
    assert marker["url"]["version"] == str(alias["version"] - 1)
    assert box.did(box.post("content/delete", path="o", version=alias["version"])) == []
    version = first["url"]["version"]
    gone = box.did(box.post("content/delete", path="o", version=version), "content.deleted")[0]
    assert gone["url"] == first["url"] and len(beans(gone, "chunks")) == 1


def test_properties_of_an_object(box):
    box.did(box.put("o", properties={"a": "1"}), "content.new")
    update = box.did(
        box.post("content/set_properties", {"properties": {"b": "2"}}, path="o"), "content.update"
    )[0]
    assert [(p["key"], p["value"]) for p in beans(update, "properties")] == [("b", "2")]
    update = box.did(box.post("content/del_properties", ["a"], path="o"), "content.update")[0]
    assert [(p["key"], p["value"]) for p in beans(update, "properties")] == [("a", None)]
    assert box.did(box.post("content/del_properties", ["a"], path="o")) == []
    touched = box.did(box.post("content/touch", path="o"), "content.new")[0]
    assert [(p["key"], p["value"]) for p in beans(touched, "properties")] == [("b", "2")]


def test_appending_truncating_draining(box, tap):
    box.did(box.put("o"), "content.new")
    append = box.did(box.put("o", append="1"), "content.append")[0]
    assert beans(append, "contents_headers")[0]["size"] == 2 * CHUNK
    deleted, new = box.did(
        box.post("content/truncate", path="o", size=CHUNK), "content.deleted", "content.new"
    )
    assert len(beans(deleted, "chunks")) == 1 and beans(new, "contents_headers")[0]["size"] == CHUNK
    drained = box.did(box.post("content/drain", path="o"), "content.drained")[0]
    assert len(beans(drained, "chunks")) == 1


def test_a_change_of_policy(box):
    first = box.did(box.put("o"), "content.new")[0]
    version = first["url"]["version"]
    answer = box.put("o", policy="THREECOPIES", version=version, change_policy="1")
    deleted, new = box.did(answer, "content.deleted", "content.new")
    assert deleted["url"] == first["url"] and len(beans(deleted, "chunks")) == 1
    assert beans(new, "contents_headers")[0]["policy"] == "THREECOPIES"
    assert (new["url"]["version"], new["url"]["content"] != deleted["url"]["content"]) == (version, True)


def test_what_lacks_chunks_is_told(box, tap):
    answer = box.put("o", metachunks=2, policy="THREECOPIES", drop=1)
    _, broken = box.did(answer, "content.new", "content.broken")
    assert broken["data"]["missing_chunks"] == ["0"] and len(broken["data"]["present_chunks"]) == 5
    tap.state(box, lambda data: (data["damaged-objects"], data["missing-chunks"]) == (1, 1))


def test_what_could_be_placed_better_is_told(box):
    chunks, meta = box.prepared("o", 2, "THREECOPIES")
    good = {"expected_dist": 1, "final_dist": 1, "warn_dist": 0, "expected_slot": "rawx", "final_slot": "rawx"}
    bad = {**good, "final_slot": "elsewhere"}
    for index, chunk in enumerate(chunks):
        chunk["quality"] = bad if index == 4 else good
    properties = {f"__OIO_CHUNK__{chunk['url']}": json.dumps(chunk.pop("quality")) for chunk in chunks}
    answer = box.post(
        "content/create", {"chunks": chunks, "properties": properties},
        {**meta, "x-oio-content-meta-hash": ZERO}, path="o",
    )  # fmt: skip
    new, perfectible = box.did(answer, "content.new", "content.perfectible")
    assert not beans(new, "properties")
    assert perfectible["data"]["pos"] == 1
    assert sorted(chunk["quality"]["final_slot"] for chunk in perfectible["data"]["chunks"]) == [
        "elsewhere", "rawx", "rawx",
    ]  # fmt: skip


def test_purging_and_flushing(box, tap):
    assert box.post("container/set_properties", {"system": {"sys.m2.policy.version": "-1"}}).status == 200
    for _ in range(4):
        box.did(box.put("o"), "content.new")
    gone = box.did(box.post("content/purge", path="o", maxvers=2), *["content.deleted"] * 2)
    assert all(len(beans(event, "chunks")) == 1 for event in gone)
    box.did(box.post("container/purge", maxvers=1), "content.deleted")
    box.did(box.post("container/flush"), "content.deleted")
    tap.state(box, lambda data: data["object-count"] == 0)


# -- chunks ------------------------------------------------------------------------------------


def test_chunks_are_told_by_their_servers(seen, tap, monkeypatch):
    monkeypatch.setenv("OIO_SDS_CONF", seen.layout.sds_conf)
    api = ObjectStorageApi(seen.namespace, endpoint=seen.proxy)
    name = fresh_name("chunks")
    api.container_create(ACCOUNT, name)
    stamp = time.time_ns()
    api.object_create(ACCOUNT, name, obj_name="o é/1", data=b"x" * 10, policy="THREECOPIES", reqid=f"put-{stamp}")
    meta, chunks = api.object_locate(ACCOUNT, name, "o é/1")

    def of(reqid, count):
        found = [e for e in tap.events if e.get("request_id") == reqid and ".chunk." in e["event"]]
        return len(found) == count and found

    new = eventually(lambda: of(f"put-{stamp}", 3), what="the events of the chunks")
    assert {event["data"]["chunk_id"] for event in new} == {chunk["url"].rpartition("/")[2] for chunk in chunks}
    for event in new:
        data = event["data"]
        assert event["event"] == "storage.chunk.new" and "url" not in event
        assert data["volume_service_id"].startswith(f"{seen.namespace}-rawx-")
        assert (data["content_path"], data["chunk_size"], data["chunk_position"]) == ("o é/1", "10", "0")
        assert data["content_storage_policy"] == "THREECOPIES" and data["content_version"] == meta["version"]
        assert data["chunk_hash"] and data["content_chunk_method"] and data["oio_version"]
    blob = BlobClient({"namespace": seen.namespace}, proxy_url=f"http://{seen.proxy}/v3.0")
    link = blob.chunk_link(
        chunks[0]["url"], None, f"{ACCOUNT}/{name}/link/1/0123456789ABCDEF0123456789ABCDEF", reqid=f"link-{stamp}"
    )
    linked = eventually(lambda: of(f"link-{stamp}", 1), what="the event of the link")[0]
    blob.chunk_delete(link[1] if isinstance(link, tuple) else link, reqid=f"del-{stamp}")
    deleted = eventually(lambda: of(f"del-{stamp}", 1), what="the event of the deletion")[0]
    assert (linked["event"], deleted["event"]) == ("storage.chunk.new", "storage.chunk.deleted")
    assert linked["data"] == deleted["data"]
    assert {key for key, value in linked["data"].items() if value} == OWNER_KEYS
