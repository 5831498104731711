# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""ContainerClient, ConscienceClient and LbClient: what each method asks and returns."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from oio.common import exceptions as exc
from oio.conscience.client import ConscienceClient
from oio.container.client import ContainerClient, extract_chunk_qualities, extract_content_headers_meta
from oio.http.server import Request, Response, Server

CONF = {"namespace": "OPENIO"}
BASE = "http://127.0.0.1:1/v3.0/OPENIO/"


def response(status: int = 204, headers: dict[str, str] | None = None) -> Any:
    return SimpleNamespace(status=status, headers=headers or {})


def mocked(client: Any, *answers: Any) -> Mock:
    """Replace the transport of a client by scripted answers."""
    mock = Mock(side_effect=answers)
    client._direct_request = mock
    return mock


@pytest.fixture
def client() -> ContainerClient:
    return ContainerClient(CONF, endpoint="127.0.0.1:1")


def body_of(mock: Mock) -> Any:
    return json.loads(mock.call_args[1]["data"])


def asked(mock: Mock) -> tuple[str, str, dict[str, Any]]:
    """Method, route, parameters of the last request."""
    method, url = mock.call_args[0]
    params = {key: value for key, value in mock.call_args[1].get("params", {}).items() if value is not None}
    return method, url.removeprefix(BASE), params


NAMES = {"acct": "a", "ref": "c"}
OBJ = {**NAMES, "path": "o"}


# --- containers ---


def test_container_create(client: ContainerClient) -> None:
    mock = mocked(client, (response(201), b""), (response(204), b""), (response(200), b"?"), (None, None))
    assert client.container_create("a", "c", system={"sys.m2.quota": "1"}) is True
    assert asked(mock) == ("POST", "container/create", NAMES)
    assert body_of(mock) == {"properties": {}, "system": {"sys.m2.quota": "1"}}
    assert client.container_create("a", "c") is False
    with pytest.raises(exc.ClientException):
        client.container_create("a", "c")
    assert client.container_create("a", "c") is True


def test_container_create_many(client: ContainerClient) -> None:
    def batch(names: list[str]) -> Any:
        return response(200), {"containers": [{"name": name, "status": 201} for name in names]}

    mock = mocked(client, exc.TooLarge(), batch(["x"]), exc.TooLarge(), batch(["y"]), batch(["z"]))
    assert client.container_create_many("a", ["x", "y", "z"]) == [("x", True), ("y", True), ("z", True)]
    assert mock.call_args[1]["params"] == {"acct": "a"}
    mock = mocked(client, exc.NotFound(), (response(201), b""), exc.Forbidden())
    assert client.container_create_many("a", ["x", "y"]) == [("x", True), ("y", False)]
    mock = mocked(client, (None, None))
    assert client.container_create_many("a", ["x"]) == [("x", True)]
    statuses = {"new": 201, "old": 433, "bad": 480}
    outcomes = [{"name": name, "status": status, "message": "why"} for name, status in statuses.items()]
    mocked(client, (response(200), {"containers": outcomes}), exc.NotFound(), exc.Forbidden("no"))
    failures: list[tuple[str, str]] = []

    def tell(name: str, cause: str) -> None:
        failures.append((name, cause))

    made = client.container_create_many("a", list(statuses), on_failure=tell)
    assert made == [("new", True), ("old", False), ("bad", False)] and failures == [("bad", "why (STATUS 480)")]
    client.container_create_many("a", ["x"], on_failure=tell)
    assert failures[1][0] == "x" and "no" in failures[1][1]
    mock = mocked(client, exc.TooLarge())
    with pytest.raises(exc.TooLarge):
        client.container_create_many("a", ["x"])


def test_container_changes(client: ContainerClient) -> None:
    mock = mocked(client, *[(response(), b"")] * 20)
    client.container_delete("a", "c")
    assert asked(mock) == ("POST", "container/destroy", NAMES)
    client.container_touch(cid="AB")
    assert asked(mock) == ("POST", "container/touch", {"cid": "AB"})
    client.container_touch("a", "c", recompute=True, damaged_objects=1, missing_chunks=2)
    assert asked(mock)[2] == {**NAMES, "recompute": True, "damaged_objects": 1, "missing_chunks": 2}
    client.container_purge("a", "c", maxvers=3)
    assert asked(mock) == ("POST", "container/purge", {**NAMES, "maxvers": 3})
    client.container_freeze("a", "c")
    assert asked(mock) == ("POST", "admin/freeze", {**NAMES, "type": "meta2"})
    client.container_enable("a", "c")
    assert asked(mock) == ("POST", "admin/enable", {**NAMES, "type": "meta2"})
    client.container_snapshot("a", "c", "A", "C")
    assert (asked(mock)[1], body_of(mock)) == ("container/snapshot", {"account": "A", "container": "C"})
    client.container_raw_insert({"type": "chunk"}, "a", "c", frozen=True)
    assert (asked(mock)[2], body_of(mock)) == ({**NAMES, "frozen": 1}, [{"type": "chunk"}])
    client.container_raw_update([{}], [{}], cid="AB")
    assert (asked(mock)[2], body_of(mock)) == ({"cid": "AB"}, {"old": [{}], "new": [{}]})
    client.container_raw_delete("a", "c", [{}])
    assert (asked(mock)[1], body_of(mock)) == ("container/raw_delete", [{}])
    client.container_set_properties("a", "c", {"k": "v"}, clear=True)
    assert asked(mock) == ("POST", "container/set_properties", {**NAMES, "flush": 1})
    assert mock.call_args[1]["data"] == json.dumps({"properties": {"k": "v"}, "system": {}})
    client.container_del_properties("a", "c", {"k": 1}.keys())
    assert (asked(mock)[1], body_of(mock)) == ("container/del_properties", ["k"])


def test_container_not_empty(client: ContainerClient) -> None:
    mocked(client, exc.Conflict(""))
    with pytest.raises(exc.ContainerNotEmpty):
        client.container_delete("a", "c")


def test_container_flush(client: ContainerClient) -> None:
    mocked(client, (response(204, {"x-oio-truncated": "true"}), b""), (response(204), b""))
    assert client.container_flush("a", "c") == {"truncated": True}
    assert client.container_flush("a", "c") == {"truncated": False}


def test_container_get_properties(client: ContainerClient) -> None:
    mock = mocked(client, (response(200), {"properties": {}}))
    client.container_get_properties("a", "c", params={"service_id": "m1"})
    mock.assert_called_once_with(
        "POST", BASE + "container/get_properties", params={**NAMES, "service_id": "m1"}, data="[]", path=None
    )


# --- objects ---


def test_content_list(client: ContainerClient) -> None:
    mock = mocked(client, *[(response(200, {"h": "v"}), {"objects": []})] * 2)
    assert client.content_list("a", "c", versions=True, deleted=True, local=True, version=None) == (
        {"h": "v"}, {"objects": []},
    )  # fmt: skip
    assert asked(mock)[2] == {**NAMES, "properties": False, "all": "1", "deleted": "1", "local": "1"}
    assert mock.call_args[1]["params"]["version"] is None
    assert mock.call_args[1]["path"] is None
    client.content_list(cid="AB", params={"extra": 1})
    assert asked(mock)[2] == {"cid": "AB", "properties": False, "extra": 1}


PREPARED = {"x-oio-content-meta-id": "AB", "x-oio-ns-chunk-size": "1024", "x-oio-content-meta-version": "7"}


def test_content_prepare(client: ContainerClient) -> None:
    mock = mocked(client, (response(200, PREPARED), {"chunks": [{}], "properties": {"p": "q"}}))
    meta, chunks = client.content_prepare("a", "c", "o", size=1, stgpol="EC", version=7, content_id="AB")
    assert (meta["chunk_size"], meta["id"], meta["properties"], chunks) == (1024, "AB", {"p": "q"}, [{}])
    assert asked(mock) == ("POST", "content/prepare2", {**OBJ, "content": "AB", "version": 7})
    assert body_of(mock) == {"size": 1, "position": 0, "policy": "EC"}
    old = {**PREPARED, "x-oio-content-meta-__OIO_CHUNK__http://r/1": "%7B%7D"}
    mock = mocked(client, exc.NotFound(), (response(200, old), [{}]))
    meta, chunks = client.content_prepare("a", "c", "o", size=1, position=2)
    assert meta["properties"] == {"__OIO_CHUNK__http://r/1": "{}"}
    assert (asked(mock)[1], body_of(mock), chunks) == ("content/prepare", {"size": 1, "position": 2}, [{}])


def test_content_create(client: ContainerClient) -> None:
    mock = mocked(client, *[(response(), b"")] * 4)
    headers = {"x-oio-req-id": "r"}
    client.content_create(
        "a", "c", "o", size=5, checksum="C", data=[{"url": "u"}], content_id="AB", stgpol="EC", version=7,
        mime_type="t/p", chunk_method="plain", headers=headers, append=True,
    )  # fmt: skip
    assert asked(mock) == ("POST", "content/create", {**OBJ, "append": "1"})
    meta = {"length": "5", "hash": "C", "id": "AB", "policy": "EC", "version": "7", "mime-type": "t/p",
            "chunk-method": "plain"}  # fmt: skip
    sent = {f"x-oio-content-meta-{key}": value for key, value in meta.items()}
    assert mock.call_args[1]["headers"] == {**sent, **headers}
    assert headers == {"x-oio-req-id": "r"}
    assert body_of(mock) == {"chunks": [{"url": "u"}]}
    client.content_create("a", "c", "o", size=5, data={"chunks": []}, content_id="AB", meta_pos=0)
    assert (asked(mock), body_of(mock)) == (("POST", "content/update", {**OBJ, "id": "AB"}), [])
    client.content_create("a", "c", "o", size=5, data={"chunks": []}, change_policy=True)
    assert asked(mock)[2] == {**OBJ, "change_policy": "1"}


def test_busy_and_conflict_rules_of_create() -> None:
    client = ContainerClient(CONF, endpoint="127.0.0.1:1", request_attempts=3)
    client.pool_manager = Mock()

    def create(*codes: int) -> Any:
        client.pool_manager.request = Mock(
            side_effect=[SimpleNamespace(status=code, headers={}, data=b"", reason="") for code in codes]
        )
        return client.content_create("a", "c", "o", size=1, data={"chunks": []}, version=1)

    from oio.common import client as client_module

    client_module.random.seed(1)
    sleeps = Mock()
    original, client_module.time.sleep = client_module.time.sleep, sleeps
    try:
        with pytest.raises(exc.ServiceBusy):
            create(503, 503, 503)
        with pytest.raises(exc.Conflict):
            create(409)
        assert create(503, 409) == (None, None)
    finally:
        client_module.time.sleep = original


def test_content_changes(client: ContainerClient) -> None:
    mock = mocked(client, *[(response(), b"")] * 10)
    assert client.content_delete("a", "c", "o", version=3) is True
    assert asked(mock) == ("POST", "content/delete", {**OBJ, "version": 3})
    assert client.content_drain("a", "c", "o") is True
    client.content_touch("a", "c", "o")
    assert asked(mock) == ("POST", "content/touch", OBJ)
    client.content_truncate("a", "c", "o", size=8)
    assert asked(mock) == ("POST", "content/truncate", {**OBJ, "size": 8})
    client.content_purge("a", "c", "o", maxvers=0)
    assert asked(mock) == ("POST", "content/purge", {**OBJ, "maxvers": 0})
    client.content_set_properties("a", "c", "o", {"k": "v"}, clear=True)
    assert asked(mock) == ("POST", "content/set_properties", {**OBJ, "flush": 1})
    assert body_of(mock) == {"properties": {"k": "v"}}
    assert client.content_del_properties("a", "c", "o", ("k",)) is True
    assert (asked(mock)[1], body_of(mock)) == ("content/del_properties", ["k"])


def test_content_delete_many(client: ContainerClient) -> None:
    listing = {"contents": [{"name": "x", "status": 204}, {"name": "y", "status": 420}]}
    mock = mocked(client, (response(200), listing))
    assert client.content_delete_many("a", "c", ["x", "y"]) == [("x", True), ("y", False)]
    assert body_of(mock) == {"contents": [{"name": "x"}, {"name": "y"}]}
    mocked(client, exc.NotFound(), (response(), b""), exc.NotFound())
    assert client.content_delete_many("a", "c", ["x", "y"]) == [("x", True), ("y", False)]
    mocked(client, exc.TooLarge(), *[(response(200), {"contents": [item]}) for item in listing["contents"]])
    assert client.content_delete_many("a", "c", ["x", "y"]) == [("x", True), ("y", False)]
    mocked(client, (None, None))
    assert client.content_delete_many("a", "c", ["x"]) == [("x", True)]


def test_content_locate(client: ContainerClient) -> None:
    mock = mocked(client, *[(response(200, PREPARED), [])] * 3)
    client.content_locate("a", "c", "o", version=None, properties=False)
    assert mock.call_args[1]["params"] == {**OBJ, "version": None, "properties": False}
    client.content_locate(cid="AB", content="CD")
    assert mock.call_args[1]["params"] == {"cid": "AB", "content": "CD", "properties": True}
    client.content_locate("a", "c", "o", params={"x": 1})
    assert asked(mock)[2] == {**OBJ, "properties": True, "x": 1}


def test_content_spare(client: ContainerClient) -> None:
    mock = mocked(client, (response(200), {"chunks": []}))
    data = {"notin": [], "broken": []}
    assert client.content_spare("a", "c", "o", data=data, stgpol="EC", position="0") == {"chunks": []}
    assert asked(mock) == ("POST", "content/spare", {**OBJ, "stgpol": "EC", "position": "0"})
    with pytest.raises(ValueError):
        client.content_spare("a", "c", "o", data=data, stgpol="EC")


def test_metadata_from_headers() -> None:
    meta = extract_content_headers_meta(
        {
            "X-OIO-Content-Meta-Mime-Type": "text%2Fplain",
            "x-oio-content-meta-hash-method": "md5",
            "x-oio-content-meta-x-size": "prop",
            "x-oio-content-meta-Colour": "d%C3%A9",
            "x-oio-ns-chunk-size": "10",
            "other": "x",
        }
    )
    assert (meta["mime_type"], meta["hash_method"], meta["chunk_size"]) == ("text/plain", "md5", 10)
    assert meta["properties"]["x-size"] == "prop"
    assert "dé" in meta["properties"].values()


def test_case_of_property_names() -> None:
    def handle(_req: Request) -> Response:
        prefix = "X-oio-content-meta-"
        return Response(200, b"[]", [(prefix + "Name", "n"), (prefix + "Key", "A"), (prefix + "key", "a%20a")])

    server = Server(handle, [("127.0.0.1", 0)])
    server.start()
    try:
        client = ContainerClient(CONF, endpoint="{}:{}".format(*server.addresses[0][:2]))
        meta, _chunks = client.content_locate("a", "c", "o")
    finally:
        server.stop()
    assert meta == {"name": "n", "properties": {"Key": "A", "key": "a a"}}


def test_chunk_qualities() -> None:
    quality = {"final_dist": 1}
    raw = [{"key": "__OIO_CHUNK__u", "value": json.dumps(quality)}, {"key": "k", "value": "v"}]
    assert extract_chunk_qualities(raw, raw=True) == {"u": quality}
    assert extract_chunk_qualities({item["key"]: item["value"] for item in raw}) == {"u": quality}


# --- conscience ---


@pytest.fixture
def conscience() -> ConscienceClient:
    return ConscienceClient(CONF, endpoint="127.0.0.1:1")


def test_services(conscience: ConscienceClient) -> None:
    services = [
        {"addr": "h:1", "score": 1, "tags": {"tag.service_id": "rawx-1"}},
        {"addr": "h:2", "score": 0, "tags": {}},
    ]
    mock = mocked(conscience, *[(response(200), services)] * 2)
    assert [service["id"] for service in conscience.all_services("rawx", full=True)] == ["rawx-1", "h:2"]
    assert asked(mock) == ("GET", "conscience/list", {"type": "rawx", "full": "1"})
    conscience.local_services()
    assert asked(mock) == ("GET", "local/list", {})


def test_registry(conscience: ConscienceClient) -> None:
    mock = mocked(conscience, *[(response(200), ["rawx"])] * 8)
    assert conscience.service_types() == ["rawx"]
    assert asked(mock) == ("GET", "conscience/info", {"what": "types"})
    service = conscience.get_service_definition("rawx", "h:1", score=3, tags={"tag.loc": "x"})
    assert service == {"ns": "OPENIO", "type": "rawx", "addr": "h:1", "score": 3, "tags": {"tag.loc": "x"}}
    assert conscience.register(service) is None
    assert (asked(mock)[1], body_of(mock)) == ("conscience/register", service)
    conscience.lock_score([service])
    assert (asked(mock)[1], body_of(mock)) == ("conscience/lock", [service])
    conscience.unlock_score(service)
    assert asked(mock)[1] == "conscience/unlock"
    conscience.deregister(service)
    assert asked(mock)[1] == "conscience/deregister"
    conscience.flush("rawx")
    assert asked(mock) == ("POST", "conscience/flush", {"type": "rawx"})
    conscience.info()
    assert asked(mock) == ("GET", "conscience/info", {})


def test_load_balancer(conscience: ConscienceClient) -> None:
    mock = mocked(conscience.lb, *[(response(200), [{"addr": "h:1"}])] * 6)
    assert conscience.next_instances("rawx") == conscience.next_instance("rawx") == {"addr": "h:1"}
    assert asked(mock) == ("GET", "lb/choose", {"type": "rawx", "size": 1})
    assert conscience.lb.next_instances("rawx", size=2) == [{"addr": "h:1"}]
    conscience.poll("pool3", avoid=["NS|rawx|1"], known=[], reqid="r")
    assert (asked(mock), body_of(mock)) == (
        ("POST", "lb/poll", {"pool": "pool3"}),
        {"avoid": ["NS|rawx|1"], "known": []},
    )
    conscience.lb.create_pool("p", [(1, "slotA", "slotB"), (2, "slotC")], force=True)
    assert asked(mock) == ("POST", "lb/create_pool", {"name": "p", "force": "True"})
    assert body_of(mock) == {"targets": "1,slotA,slotB;2,slotC", "options": None}
    assert conscience.lb is conscience.lb
    assert conscience.lb.pool_manager is conscience.pool_manager


def test_resolution_is_cached(conscience: ConscienceClient, monkeypatch: pytest.MonkeyPatch) -> None:
    mock = mocked(conscience, *[(response(200), {"addr": "h:1"})] * 3)
    assert conscience.resolve_service_id("rawx", "10.0.0.1:6200") == "10.0.0.1:6200"
    assert mock.call_count == 0
    assert conscience.resolve_service_id("rawx", "rawx-1") == "h:1"
    assert conscience.resolve_url("rawx", "http://RAWX-1/AB") == "http://h:1/AB"
    assert conscience.resolve_url("rawx", "https://rawx-1/AB") == "https://h:1/AB"
    assert conscience.resolve_url("rawx", "rawx-1/AB") == "http://h:1/AB"
    assert conscience.resolve_url("rawx", "http://h:2/AB") == "http://h:2/AB"
    assert conscience.resolve_url("rawx", "h:2/AB") == "http://h:2/AB"
    assert mock.call_count == 1
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 61)
    conscience.resolve_service_id("rawx", "rawx-1")
    assert mock.call_count == 2


def test_ids_with_capitals_are_found(conscience: ConscienceClient) -> None:
    mock = mocked(conscience, exc.ServiceBusy(), (response(200), {"addr": "h:1"}))
    assert conscience.resolve_url("rawx", "http://NS-rawx-1/AB") == "http://h:1/AB"
    assert conscience.resolve_url("rawx", "http://NS-rawx-1/AB") == "http://h:1/AB"
    assert mock.call_count == 2
    mocked(conscience, exc.ServiceBusy())
    with pytest.raises(exc.ServiceBusy):
        conscience.resolve_url("rawx", "http://unknown/AB")
