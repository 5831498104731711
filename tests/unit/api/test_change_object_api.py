# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Truncation, change of policy, draining, conditions, deadlines: what is asked, in which order, what is left."""

from __future__ import annotations

import time
from hashlib import md5
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from fake_cluster import META, FakeCluster, failure

from oio import ObjectStorageApi
from oio.common import exceptions as exc
from oio.container.client import ContainerClient

DATA = bytes(index % 251 for index in range(2500))
WHERE = ("acct", "cont")


@pytest.fixture
def made(api: ObjectStorageApi, cluster: FakeCluster) -> dict[str, Any]:
    meta = api.object_create_ext(*WHERE, data=DATA, obj_name="obj", mime_type="text/x", properties={"k": "v"})[3]
    cluster.proxy.log.clear()
    return meta


def fetch(api: ObjectStorageApi, **kwargs: Any) -> bytes:
    return b"".join(api.object_fetch(*WHERE, "obj", **kwargs)[1])


def routes(cluster: FakeCluster) -> list[str]:
    return [entry[1] for entry in cluster.proxy.log]


# --- truncate ---


@pytest.mark.parametrize("size", [0, 1024, 2048, 2500])
def test_truncation_at_a_border_only_asks_for_it(
    api: ObjectStorageApi, cluster: FakeCluster, made: Any, size: int
) -> None:
    cluster.proxy.script["content/truncate"] = [failure(400, 400, "stop here")]
    with pytest.raises(exc.BadRequest, match="stop here"):
        api.object_truncate(*WHERE, "obj", size=size)
    assert routes(cluster) == ["content/locate", "content/truncate"]
    asked = cluster.proxy.log[-1][2]
    assert (asked["size"], asked["version"]) == (str(size), made["version"])


@pytest.mark.parametrize("size", [1, 1000, 1025, 2047, 2049, 2499])
def test_truncation_amid_a_metachunk(api: ObjectStorageApi, cluster: FakeCluster, made: Any, size: int) -> None:
    api.object_truncate(*WHERE, "obj", size=size, deadline=time.monotonic() + 60)
    stored = cluster.proxy.stored(*WHERE, "obj")
    assert (stored["length"], stored["version"], stored["id"]) == (str(size), made["version"], made["id"])
    assert fetch(api) == DATA[:size]
    update = cluster.proxy.requests("content/update")[0]
    assert (update[2]["id"], update[3][META + "version"]) == (made["id"], made["version"])
    position = str(size // 1024)
    assert {chunk["pos"] for chunk in update[4]} == {position}
    last = size > 2048
    assert [route for route in routes(cluster) if route != "content/locate"] == [
        "content/prepare2", *([] if last else ["content/truncate"]), "content/update",
    ]  # fmt: skip
    for chunk in update[4]:
        _data, headers = cluster.rawx[0].chunks[chunk["url"].rpartition("/")[2]]
        assert headers["x-oio-chunk-meta-full-path"] == f"acct/cont/obj/{made['version']}/{made['id']}"
        assert headers["x-oio-chunk-meta-content-version"] == made["version"]
        assert headers["x-oio-chunk-meta-chunk-pos"] == position


@pytest.mark.parametrize("size", [-1, 2501, None, "3", 2.5])
def test_truncation_outside_of_it(api: ObjectStorageApi, cluster: FakeCluster, made: Any, size: Any) -> None:
    with pytest.raises(exc.OioException, match=r"Cannot truncate obj to .* 0 to 2500"):
        api.object_truncate(*WHERE, "obj", size=size)
    assert routes(cluster) == ["content/locate"]


def test_truncation_of_missing_things(api: ObjectStorageApi, made: Any) -> None:
    with pytest.raises(exc.NoSuchObject):
        api.object_truncate(*WHERE, "obj", version=1, size=1)
    with pytest.raises(exc.NoSuchContainer):
        api.object_truncate("acct", "nowhere", "obj", size=1)


@pytest.mark.parametrize("route", ["content/truncate", "content/update"])
@pytest.mark.parametrize(("answer", "kept"), [(failure(409, 421, "no"), 0), (failure(503, 436, "frozen"), 0)])
def test_a_truncation_that_is_refused_leaves_no_new_chunk(
    api: ObjectStorageApi, cluster: FakeCluster, made: Any, route: str, answer: Any, kept: int
) -> None:
    before = cluster.chunk_count()
    cluster.proxy.script[route] = [answer]
    with pytest.raises(exc.ClientException):
        api.object_truncate(*WHERE, "obj", size=100)
    assert cluster.chunk_count() == before + kept
    shortened = 2500 if route == "content/truncate" else 1024
    assert fetch(api) == DATA[:shortened]


def test_a_truncation_whose_data_cannot_be_read_changes_nothing(
    api: ObjectStorageApi, cluster: FakeCluster, made: Any
) -> None:
    for rawx in cluster.rawx:
        rawx.refuse["GET"] = 500
    with pytest.raises(exc.OioException):
        api.object_truncate(*WHERE, "obj", size=100)
    assert "content/truncate" not in routes(cluster)
    for rawx in cluster.rawx:
        rawx.refuse.clear()
    assert fetch(api) == DATA


# --- policy ---


def test_change_of_policy(api: ObjectStorageApi, cluster: FakeCluster, made: Any) -> None:
    chunks, size, checksum, meta = api.object_change_policy(*WHERE, "obj", "OTHER")
    assert (len(chunks), size, checksum) == (9, 2500, md5(DATA).hexdigest())
    assert (meta["version"], meta["policy"]) == (made["version"], "OTHER")
    sent = cluster.proxy.requests("content/create")[0]
    assert sent[2]["change_policy"] == "1"
    told = {key: sent[3][META + key] for key in ("version", "policy", "mime-type", "hash", "length")}
    assert told == {
        "version": made["version"], "policy": "OTHER", "mime-type": "text/x", "hash": md5(DATA).hexdigest(),
        "length": "2500",
    }  # fmt: skip
    assert "x-oio-action-mode" not in sent[3]


def test_change_to_the_same_policy(api: ObjectStorageApi, cluster: FakeCluster, made: Any) -> None:
    with pytest.raises(exc.Conflict, match="already using the THREE"):
        api.object_change_policy(*WHERE, "obj", "THREE")
    assert routes(cluster) == ["content/locate"]


@pytest.mark.parametrize("in_place", ["", "AB" * 32])
def test_a_hash_that_cannot_be_checked_is_left_as_it_is(
    api: ObjectStorageApi, cluster: FakeCluster, made: Any, in_place: str
) -> None:
    cluster.proxy.stored(*WHERE, "obj")["hash"] = in_place
    api.object_change_policy(*WHERE, "obj", "OTHER")
    sent = cluster.proxy.requests("content/create")[0][3]
    assert sent.get(META + "hash", "") == in_place


def test_change_of_policy_of_missing_things(api: ObjectStorageApi, cluster: FakeCluster, made: Any) -> None:
    with pytest.raises(exc.NoSuchObject):
        api.object_change_policy(*WHERE, "missing", "OTHER")
    with pytest.raises(exc.NoSuchObject):
        api.object_change_policy(*WHERE, "obj", "OTHER", version=1)
    with pytest.raises(exc.NoSuchContainer):
        api.object_change_policy("acct", "nowhere", "obj", "OTHER")
    low = {"data": DATA, "change_policy": True, "policy": "OTHER"}
    for name, kwargs in (("missing", {"version": 5}), ("obj", {}), ("obj", {"version": 5})):
        with pytest.raises(exc.NoSuchContainer):
            api.object_create(*WHERE, obj_name=name, **low, **kwargs)
    with pytest.raises(exc.NoSuchContainer):
        api.object_create("acct", "nowhere", obj_name="obj", version=5, **low)
    assert len(cluster.proxy.containers) == 1


# --- what is deleted after a failure ---


@pytest.mark.parametrize("policy", ["THREE", "EC"])
def test_chunks_of_a_client_that_was_given_the_same_version_are_not_deleted(
    api: ObjectStorageApi, cluster: FakeCluster, policy: str
) -> None:
    for rawx in cluster.rawx:
        rawx.refuse["PUT"] = 409
    with pytest.raises(exc.OioException):
        api.object_create(*WHERE, data=DATA, obj_name="obj", policy=policy)
    assert not [entry for rawx in cluster.rawx for entry in rawx.log if entry[0] == "DELETE"]


def test_chunks_in_place_are_not_deleted_by_an_upload_of_the_same_version(
    api: ObjectStorageApi, cluster: FakeCluster, made: Any
) -> None:
    before = cluster.chunk_count()
    with pytest.raises(exc.Conflict):
        api.object_create(*WHERE, data=b"again", obj_name="obj", version=made["version"])
    assert cluster.chunk_count() == before
    assert fetch(api) == DATA


def test_chunks_of_a_given_version_that_were_written_are_deleted(
    api: ObjectStorageApi, cluster: FakeCluster
) -> None:
    for rawx in cluster.rawx[:2]:
        rawx.refuse["PUT"] = 500
    with pytest.raises(exc.ServiceBusy):
        api.object_create(*WHERE, data=b"x", obj_name="obj", version=5)
    assert cluster.chunk_count() == 0


@pytest.mark.parametrize("code", [425, 436, 437, 445, 480, 481])
def test_decisions_of_the_container_are_refusals(api: ObjectStorageApi, cluster: FakeCluster, code: int) -> None:
    cluster.proxy.script["content/create"] = [failure(503 if code == 436 else 500, code, "refused")]
    with pytest.raises(exc.ClientException) as caught:
        api.object_create(*WHERE, data=b"x", obj_name="obj")
    assert caught.value.status == code
    assert cluster.chunk_count() == 0


# --- drain and touch ---


@pytest.mark.parametrize("method", ["object_drain", "object_touch"])
def test_not_found_is_not_converted(api: ObjectStorageApi, made: Any, method: str) -> None:
    assert getattr(api, method)(*WHERE, "obj") is None
    for container, name, code in (("cont", "missing", 420), ("nowhere", "obj", 431)):
        with pytest.raises(exc.NotFound) as caught:
            getattr(api, method)("acct", container, name)
        assert (type(caught.value), caught.value.status) == (exc.NotFound, code)


def test_a_drained_object(api: ObjectStorageApi, made: Any) -> None:
    api.object_drain(*WHERE, "obj", version=made["version"])
    assert api.object_get_properties(*WHERE, "obj")["chunk_method"] == "drained"
    with pytest.raises(exc.ClientException) as caught:
        fetch(api)
    assert (caught.value.http_status, caught.value.status) == (410, 427)


# --- conditions ---


@pytest.mark.parametrize(
    ("given", "header"),
    [
        ("ab" * 16, '"' + "ab" * 16 + '"'),
        ("*", "*"),
        ('"AB"', '"AB"'),
        ('W/"AB"', 'W/"AB"'),
        (["AB", "CD"], '"AB", "CD"'),
        (("AB",), '"AB"'),
    ],
)
def test_conditions_are_headers_of_the_commit_alone(
    api: ObjectStorageApi, cluster: FakeCluster, given: Any, header: str
) -> None:
    headers: dict[str, str] = {}
    cluster.proxy.script["content/create"] = [failure(412, 412, "no")]
    with pytest.raises(exc.ClientPreconditionFailed):
        api.object_create(*WHERE, data=b"x", obj_name="obj", if_match=given, headers=headers)
    sent = {entry[1]: entry[3] for entry in cluster.proxy.log}
    assert sent["content/create"]["if-match"] == header
    assert "if-match" not in sent["content/prepare2"]
    assert not {name for name in headers if name.lower().startswith("if-")}
    assert cluster.chunk_count() == 0
    with pytest.raises(exc.NoSuchContainer):
        api.object_delete(*WHERE, "obj", if_none_match=given, headers=headers)
    assert cluster.proxy.log[-1][3]["if-none-match"] == header
    assert not {name for name in headers if name.lower().startswith("if-")}


@pytest.mark.parametrize("tags", ["", "a b", "é", 'x"y', [], ["*", "AB"], 3, [None], "a\r\nb"])
@pytest.mark.parametrize("name", ["if_match", "if_none_match"])
def test_tags_that_cannot_be_are_refused_before_any_request(
    api: ObjectStorageApi, cluster: FakeCluster, name: str, tags: Any
) -> None:
    for call in (
        lambda: api.object_create(*WHERE, data=b"x", obj_name="obj", **{name: tags}),
        lambda: api.object_delete(*WHERE, "obj", **{name: tags}),
    ):
        with pytest.raises(exc.BadRequest, match=f"Invalid {name}"):
            call()
    assert cluster.proxy.log == []


def test_a_condition_that_fails_because_of_ones_own_first_attempt(
    api: ObjectStorageApi, cluster: FakeCluster, monkeypatch: Any
) -> None:
    """The first commit is done, its answer lost; the second finds the object of the first."""
    monkeypatch.setattr("oio.common.client._pause", lambda *_args: None)
    real = cluster.proxy.on_content_create

    def done_then_busy(*args: Any) -> Any:
        answer = real(*args)
        return failure(503, 503, "busy") if answer.status == 204 else answer

    cluster.proxy.on_content_create = done_then_busy  # type: ignore[method-assign]
    api.object_create(*WHERE, data=b"mine", obj_name="obj", if_none_match="*", request_attempts=3)
    assert len(cluster.proxy.requests("content/create")) == 2
    assert fetch(api) == b"mine"
    with pytest.raises(exc.ClientPreconditionFailed):
        api.object_create(*WHERE, data=b"other", obj_name="obj", if_none_match="*", request_attempts=3)
    assert fetch(api) == b"mine"
    assert cluster.chunk_count() == 3


def test_what_was_appended_is_never_deleted_after_several_attempts(
    api: ObjectStorageApi, cluster: FakeCluster, monkeypatch: Any
) -> None:
    """An append changes the hash, thus fails the condition of its own second attempt."""
    monkeypatch.setattr("oio.common.client._pause", lambda *_args: None)
    api.object_create(*WHERE, data=b"mine", obj_name="obj")
    refused = failure(412, 412, "If-Match does not hold")
    cluster.proxy.script["content/create"] = [failure(503, 503, "busy"), refused]
    with pytest.raises(exc.ClientPreconditionFailed):
        api.object_create(
            *WHERE, data=b"more", obj_name="obj", append=True, if_match="AB" * 16, request_attempts=3
        )
    assert cluster.chunk_count() == 6


def test_a_condition_that_another_writer_broke_between_two_attempts(
    api: ObjectStorageApi, cluster: FakeCluster, monkeypatch: Any
) -> None:
    monkeypatch.setattr("oio.common.client._pause", lambda *_args: None)
    api.object_create(*WHERE, data=b"other", obj_name="obj")
    cluster.proxy.script["content/create"] = [failure(503, 503, "busy")]
    with pytest.raises(exc.ClientPreconditionFailed):
        api.object_create(*WHERE, data=b"mine", obj_name="obj", if_none_match="*", request_attempts=3)
    assert fetch(api) == b"other"
    assert cluster.chunk_count() == 3


def test_the_last_of_several_attempts_tells_that_it_is(monkeypatch: Any) -> None:
    monkeypatch.setattr("oio.common.client._pause", lambda *_args: None)
    client = ContainerClient({"namespace": "NS"}, endpoint="127.0.0.1:1", request_attempts=2)
    for errors, retried in (
        ([exc.ServiceBusy(), exc.ServiceBusy()], True),
        ([exc.ServiceBusy(), exc.ClientPreconditionFailed()], True),
        ([exc.ServiceBusy(), exc.DeadlineReached()], True),
        ([exc.ClientPreconditionFailed()], False),
    ):
        monkeypatch.setattr("oio.api.base.HttpApi._direct_request", Mock(side_effect=errors))
        with pytest.raises(exc.OioException) as caught:
            client.content_delete("a", "c", "o")
        assert caught.value.retried is retried


def test_chunks_are_kept_when_an_attempt_may_have_succeeded(
    api: ObjectStorageApi, cluster: FakeCluster, monkeypatch: Any
) -> None:
    monkeypatch.setattr("oio.common.client._pause", lambda *_args: None)
    cluster.proxy.script["content/create"] = [failure(503, 503, "busy"), failure(503, 436, "frozen")]
    with pytest.raises(exc.ServiceBusy):
        api.object_create(*WHERE, data=b"mine", obj_name="obj", request_attempts=2)
    assert cluster.chunk_count() == 3


# --- deadlines ---


def test_the_deadline_is_armed_again_before_each_prepare_and_the_commit(
    api: ObjectStorageApi, cluster: FakeCluster, monkeypatch: Any
) -> None:
    clock = SimpleNamespace(now=time.monotonic(), real=time.monotonic)
    seen: list[tuple[str, float]] = []
    real = api.container._direct_request

    def spy(method: str, url: str, **kwargs: Any) -> Any:
        seen.append((url.rpartition("/")[2], kwargs["deadline"] - time.monotonic()))
        return real(method, url, **kwargs)

    api.container._direct_request = spy  # type: ignore[method-assign]

    def slow() -> Any:
        for _ in range(3):
            clock.now += 3.0
            yield b"x" * 1024

    monkeypatch.setattr(time, "monotonic", lambda: clock.real() + clock.now)
    api.object_create(*WHERE, data=slow(), obj_name="obj", read_timeout=5.0)
    assert [name for name, _left in seen] == ["prepare2"] * 3 + ["create"]
    assert all(4.0 < left <= 5.0 for _name, left in seen)


def test_a_deadline_bounds_what_is_not_an_upload(api: ObjectStorageApi, made: Any) -> None:
    for call in (
        lambda **kw: api.object_truncate(*WHERE, "obj", size=0, **kw),
        lambda **kw: api.object_drain(*WHERE, "obj", **kw),
        lambda **kw: api.object_link(*WHERE, "obj", *WHERE, "link", **kw),
        lambda **kw: api.object_change_policy(*WHERE, "obj", "OTHER", **kw),
        lambda **kw: api.container_flush(*WHERE, **kw),
        lambda **kw: api.container_purge(*WHERE, **kw),
    ):
        with pytest.raises(exc.DeadlineReached):
            call(deadline=time.monotonic() - 1)
