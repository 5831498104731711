# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""object_link: what it asks, and what is left when a step fails."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import pytest
from fake_cluster import NS, FakeCluster, failure

from oio import ObjectStorageApi
from oio.common import exceptions as exc
from oio.common.utils import cid_from_name, compute_chunk_id

DATA = bytes(index % 251 for index in range(2500))


@pytest.fixture
def target(api: ObjectStorageApi) -> dict[str, Any]:
    return api.object_create_ext(
        "acct", "cont", data=DATA, obj_name="target", mime_type="text/x", properties={"k": "v"}
    )[3]


def link(api: ObjectStorageApi, name: str = "link", **kwargs: Any) -> dict[str, Any]:
    return api.object_link("acct", "cont", "target", "acct", "cont", name, **kwargs)


def fetch(api: ObjectStorageApi, name: str) -> bytes:
    return b"".join(api.object_fetch("acct", "cont", name)[1])


def test_a_link_has_chunks_of_its_own(api: ObjectStorageApi, cluster: FakeCluster, target: Any) -> None:
    before = cluster.chunk_count()
    told = link(api, link_content_id="AB" * 16)
    assert cluster.chunk_count() == 2 * before
    stored = cluster.proxy.stored("acct", "cont", "link")
    cid = cid_from_name("acct", "cont")
    for chunk in stored["chunks"]:
        chunk_id = compute_chunk_id(cid, "link", told["version"], chunk["pos"], "THREE")
        assert chunk["url"].endswith(chunk_id)
        assert chunk["real_url"].endswith(chunk_id)
    assert (stored["id"], stored["version"], stored["length"]) == ("AB" * 16, told["version"], "2500")
    assert (stored["mime-type"], stored["properties"]) == ("text/x", {"k": "v"})
    assert told["full_path"] == f"acct/cont/link/{told['version']}/{'AB' * 16}"
    wanted = {"ns": NS, "container_id": cid, "content_path": "link", "name": "link", "properties": {"k": "v"}}
    assert wanted.items() <= told.items()
    api.object_delete("acct", "cont", "target")
    assert fetch(api, "link") == DATA


@pytest.mark.parametrize(
    ("kwargs", "properties"),
    [
        ({}, {"k": "v"}),
        ({"properties_directive": "COPY", "metadata": {"a": "b"}}, {"k": "v"}),
        ({"properties_directive": "REPLACE"}, {}),
        ({"properties_directive": "REPLACE", "properties": {"a": "b"}}, {"a": "b"}),
        ({"properties_directive": "REPLACE", "metadata": {"c": "d"}, "properties": {"a": "b"}}, {"c": "d"}),
    ],
)
def test_directives(api: ObjectStorageApi, target: Any, kwargs: Any, properties: Any) -> None:
    assert link(api, **kwargs)["properties"] == properties
    assert api.object_get_properties("acct", "cont", "link")["properties"] == properties


def test_a_directive_that_does_not_exist(api: ObjectStorageApi, cluster: FakeCluster) -> None:
    with pytest.raises(exc.BadRequest, match="properties_directive"):
        link(api, properties_directive="MERGE")
    assert cluster.proxy.log == []


def test_unknown_keywords_are_swallowed(api: ObjectStorageApi, target: Any) -> None:
    assert link(api, policy="OTHER", mime_type="x/y", cid="AB", nonsense=1)["mime_type"] == "text/x"


def test_missing_things(api: ObjectStorageApi, target: Any) -> None:
    with pytest.raises(exc.NoSuchObject):
        api.object_link("acct", "cont", "missing", "acct", "cont", "link")
    with pytest.raises(exc.NoSuchObject):
        link(api, target_version=1)
    with pytest.raises(exc.NoSuchContainer):
        api.object_link("acct", "nowhere", "target", "acct", "cont", "link")
    with pytest.raises(exc.NotFound) as caught:
        api.object_link("acct", "cont", "target", "acct", "nowhere", "link", autocreate=False, headers={})
    assert caught.value.status == 406


@pytest.mark.parametrize("name", ["target", "other"])
def test_a_version_that_exists_is_a_conflict(
    api: ObjectStorageApi, cluster: FakeCluster, target: Any, name: str
) -> None:
    data = DATA if name == "target" else b"x" * 2500
    version = target["version"]
    if name == "other":
        version = api.object_create_ext("acct", "cont", data=data, obj_name=name)[3]["version"]
    before = cluster.chunk_count()
    with pytest.raises(exc.Conflict):
        link(api, name, version=version)
    assert cluster.chunk_count() == before
    assert fetch(api, name) == data


def test_a_link_below_the_quorum_leaves_nothing(api: ObjectStorageApi, cluster: FakeCluster, target: Any) -> None:
    before = cluster.chunk_count()
    for rawx in cluster.rawx[:2]:
        rawx.refuse["COPY"] = 500
    with pytest.raises(exc.ServiceBusy, match="quorum"):
        link(api)
    assert cluster.chunk_count() == before
    assert fetch(api, "target") == DATA


def test_a_link_that_fails_later_leaves_nothing(api: ObjectStorageApi, cluster: FakeCluster, target: Any) -> None:
    before = cluster.chunk_count()
    real, calls = api.blob_client.chunk_link, []

    def fail_at_last(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) > 7:
            raise exc.OioNetworkException("lost")
        return real(*args, **kwargs)

    api.blob_client.chunk_link = fail_at_last  # type: ignore[method-assign]
    with pytest.raises(exc.OioException):
        link(api)
    assert len(calls) == 9
    assert cluster.chunk_count() == before
    assert fetch(api, "target") == DATA


def test_the_original_exception_is_raised(api: ObjectStorageApi, target: Any) -> None:
    cause = exc.Conflict(message="the cause")
    api._link_chunks = Mock(side_effect=exc.UnfinishedUploadException(cause, []))  # type: ignore[method-assign]
    with pytest.raises(exc.Conflict) as caught:
        link(api)
    assert caught.value is cause


@pytest.mark.parametrize(
    ("answered", "kept"),
    [(failure(409, 421, "exists"), 0), (failure(500, 445, "full"), 0), (failure(503, 503, "?"), 9)],
)
def test_links_are_deleted_when_the_commit_is_refused(
    api: ObjectStorageApi, cluster: FakeCluster, target: Any, answered: Any, kept: int
) -> None:
    before = cluster.chunk_count()
    cluster.proxy.script["content/create"] = [answered]
    with pytest.raises(exc.ClientException):
        link(api)
    assert cluster.chunk_count() == before + kept
    assert fetch(api, "target") == DATA


def test_links_are_deleted_when_the_time_is_over(api: ObjectStorageApi, cluster: FakeCluster, target: Any) -> None:
    before = cluster.chunk_count()
    api.container.content_create = Mock(side_effect=exc.DeadlineReached())  # type: ignore[method-assign]
    with pytest.raises(exc.DeadlineReached):
        link(api)
    assert cluster.chunk_count() == before


def test_a_missing_copy_is_tolerated(api: ObjectStorageApi, cluster: FakeCluster, target: Any) -> None:
    cluster.rawx[1].refuse["COPY"] = 404
    link(api)
    assert len(cluster.proxy.stored("acct", "cont", "link")["chunks"]) == 6
    assert fetch(api, "link") == DATA


def test_a_condition_on_the_link(api: ObjectStorageApi, cluster: FakeCluster, target: Any) -> None:
    link(api, if_none_match="*")
    with pytest.raises(exc.ClientPreconditionFailed):
        link(api, if_none_match="*")
    asked = [entry for entry in cluster.proxy.log if "if-none-match" in entry[3]]
    assert {entry[1] for entry in asked} == {"content/create"}


def test_a_condition_that_fails_because_of_ones_own_first_attempt(
    api: ObjectStorageApi, cluster: FakeCluster, target: Any, monkeypatch: Any
) -> None:
    """The first commit is done, its answer lost; the second finds the link of the first."""
    monkeypatch.setattr("oio.common.client._pause", lambda *_args: None)
    real = cluster.proxy.on_content_create

    def done_then_busy(*args: Any) -> Any:
        answer = real(*args)
        return failure(503, 503, "busy") if answer.status == 204 else answer

    cluster.proxy.on_content_create = done_then_busy  # type: ignore[method-assign]
    link(api, if_none_match="*", request_attempts=3)
    assert fetch(api, "link") == DATA
    before = cluster.chunk_count()
    with pytest.raises(exc.ClientPreconditionFailed):
        link(api, if_none_match="*", request_attempts=3)
    assert fetch(api, "link") == DATA
    assert cluster.chunk_count() == before


def test_fastcopy_is_deprecated(api: ObjectStorageApi, target: Any) -> None:
    with pytest.warns(DeprecationWarning):
        api.object_fastcopy("acct", "cont", "target", "acct", "cont", "link")
    assert fetch(api, "link") == DATA
