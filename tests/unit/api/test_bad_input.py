# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""What a caller may get wrong: one clear error, before anything is written when that can be known, and nothing
left behind.
"""

from __future__ import annotations

import array
import io
import pickle
from collections.abc import Iterator
from hashlib import md5
from pathlib import Path
from typing import Any

import pytest
from fake_cluster import NS, FakeCluster, failure

from oio import ObjectStorageApi
from oio.common import exceptions as exc
from oio.common.utils import cid_from_name

CID = cid_from_name("acct", "cont")


class Source:
    """Gives what it is told to, then nothing."""

    def __init__(self, *blocks: Any) -> None:
        self.blocks = list(blocks)

    def read(self, size: int = -1) -> Any:
        return self.blocks.pop(0) if self.blocks else b""


class TooMuch:
    """Gives more than it is asked for."""

    def read(self, size: int = -1) -> bytes:
        return b"x" * (size + 1)


@pytest.mark.parametrize(
    "source",
    [Source("text"), Source(b"a", None), TooMuch(), io.StringIO("é"), Source(12)],
    ids=["text", "nothing yet", "too much", "text file", "number"],
)
def test_a_source_that_does_not_give_bytes_is_refused(
    api: ObjectStorageApi, cluster: FakeCluster, source: Any
) -> None:
    with pytest.raises(exc.SourceReadError, match="the source gives"):
        api.object_create("acct", "cont", source, obj_name="obj")
    assert cluster.chunk_count() == 0 and cluster.proxy.requests("content/create") == []


@pytest.mark.parametrize(
    "data",
    ["é", bytearray(b"\xc3\xa9"), memoryview(b"\xc3\xa9"), [b"", b"\xc3", "", b"\xa9"], iter(["é"]),
     [memoryview(array.array("H", [0xA9C3]))], Source(bytearray(b"\xc3"), memoryview(b"\xa9"))],
    ids=["text", "bytearray", "memoryview", "items", "texts", "numbers", "source"],
)  # fmt: skip
def test_all_kinds_of_data_are_the_same_bytes(api: ObjectStorageApi, data: Any) -> None:
    given = {"file_or_path": data} if isinstance(data, Source) else {"data": data}
    _chunks, size, checksum = api.object_create("acct", "cont", obj_name="obj", **given)
    assert (size, checksum) == (2, md5("é".encode()).hexdigest())
    assert b"".join(api.object_fetch("acct", "cont", "obj")[1]) == "é".encode()


def test_items_that_are_not_bytes_are_refused(api: ObjectStorageApi, cluster: FakeCluster) -> None:
    for item in (None, 0, 3):
        with pytest.raises(TypeError):
            api.object_create("acct", "cont", data=[b"a", item], obj_name="obj")
    assert cluster.chunk_count() == 0 and cluster.proxy.requests("content/create") == []


def test_a_generator_that_raises_leaves_nothing(api: ObjectStorageApi, cluster: FakeCluster) -> None:
    def broken() -> Iterator[bytes]:
        yield b"x" * 3000
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        api.object_create("acct", "cont", data=broken(), obj_name="obj")
    assert cluster.chunk_count() == 0 and cluster.proxy.requests("content/create") == []


@pytest.mark.parametrize(
    ("kwargs", "text"),
    [
        ({"properties": {"a": 1}}, "the value of 'a' is not a string"),
        ({"properties": {"a": None}}, "the value of 'a' is not a string"),
        ({"properties": {"": "v"}}, "'' is not a name"),
        ({"metadata": {1: "v"}}, "1 is not a name"),
        ({"properties": ["a"]}, "a dictionary is expected, not list"),
        ({"mime_type": "text/plain\r\nx-evil: 1"}, "Invalid mime type"),
    ],
)
def test_what_would_be_refused_at_the_end_is_refused_first(
    api: ObjectStorageApi, cluster: FakeCluster, kwargs: dict[str, Any], text: str
) -> None:
    with pytest.raises(exc.BadRequest, match=text):
        api.object_create("acct", "cont", data=b"z", obj_name="obj", **kwargs)
    assert cluster.proxy.log == []


def test_what_is_no_source_is_refused_first(
    api: ObjectStorageApi, cluster: FakeCluster, tmp_path: Path
) -> None:
    with pytest.raises(TypeError, match="an object with read"):
        api.object_create("acct", "cont", 42, obj_name="obj")
    with pytest.raises(exc.MissingData, match="No data"):
        api.object_create("acct", "cont", obj_name="obj")
    with pytest.raises(exc.MissingName):
        api.object_create("acct", "cont", data=b"z")
    with pytest.raises(exc.FileNotFound, match="absent"):
        api.object_create("acct", "cont", str(tmp_path / "absent"))
    with pytest.raises(IsADirectoryError):
        api.object_create("acct", "cont", str(tmp_path))
    assert cluster.proxy.log == []


@pytest.mark.parametrize("status", [400, 403, 404, 405, 410, 413])
def test_a_refused_commit_leaves_nothing(api: ObjectStorageApi, cluster: FakeCluster, status: int) -> None:
    cluster.proxy.script["content/create"] = [failure(status, status, "no")]  # type: ignore[list-item]
    with pytest.raises(exc.OioException):
        api.object_create("acct", "cont", data=b"z" * 3000, obj_name="obj")
    assert cluster.chunk_count() == 0


def test_a_container_that_may_not_be_made_leaves_nothing(api: ObjectStorageApi, cluster: FakeCluster) -> None:
    with pytest.raises(exc.NoSuchContainer):
        api.object_create("acct", "cont", data=b"z", obj_name="obj", autocreate=False)
    assert cluster.chunk_count() == 0


def test_a_text_is_not_a_list_of_names(api: ObjectStorageApi, cluster: FakeCluster) -> None:
    api.object_create("acct", "cont", data=b"z", obj_name="o", properties={"k": "v"})
    before = len(cluster.proxy.log)
    for call in (
        lambda: api.object_delete_many("acct", "cont", "obj"),
        lambda: api.container_create_many("acct", "cont"),
        lambda: api.container_del_properties("acct", "cont", "k"),
        lambda: api.object_del_properties("acct", "cont", "o", "k"),
        lambda: api.account_del_properties("acct", "k"),
    ):
        with pytest.raises(TypeError, match="a list of names"):
            call()
    assert len(cluster.proxy.log) == before


def test_the_name_of_the_base_is_accepted_as_id(api: ObjectStorageApi, cluster: FakeCluster) -> None:
    api.container.container_create("acct", "cont")
    meta, _handler, _preparer = api._object_prepare(
        "acct", "cont", "obj", io.BytesIO(), {}, cid=CID.lower() + ".1", headers={}, reqid="R"
    )
    assert meta["container_id"] == CID
    with pytest.raises(exc.OioException, match="Invalid cid: ZZ"):
        api.object_fetch("acct", "cont", "obj", cid="ZZ")


def test_a_container_designated_by_its_id_is_named_by_it(api: ObjectStorageApi) -> None:
    with pytest.raises(exc.NoSuchContainer) as told:
        api.container_get_properties(None, None, cid=CID)
    assert told.value.args[0] == f"Container '{CID}' does not exist."


def test_errors_tell_the_request(api: ObjectStorageApi) -> None:
    with pytest.raises(exc.NoSuchContainer) as missing:
        api.container_get_properties("acct", "cont", reqid="MINE")
    assert missing.value.reqid == "MINE"
    assert pickle.loads(pickle.dumps(missing.value)).reqid == "MINE"
    assert exc.NotFound().reqid is None


@pytest.mark.parametrize("kwargs", [{"reqid": "a\nb"}, {"headers": {"x-a": "b\r\n"}}])
def test_what_no_header_can_carry_is_an_error_of_the_api(
    api: ObjectStorageApi, cluster: FakeCluster, kwargs: dict[str, Any]
) -> None:
    with pytest.raises(exc.OioException, match="line break") as told:
        api.container_get_properties("acct", "cont", **kwargs)
    assert f"host={cluster.proxy.address}" in told.value.args[0]
    assert cluster.proxy.log == []


@pytest.mark.parametrize(
    "location", ["http://", ":", ":80", "127.0.0.1:abc", "127.0.0.1:99999", "127.0.0.1:", "http:///v3.0"]
)
def test_the_address_of_the_proxy_is_checked(location: str) -> None:
    with pytest.raises(exc.ConfigurationException, match="Invalid address of the proxy"):
        ObjectStorageApi(NS, endpoint=location)


@pytest.mark.parametrize(
    ("location", "netloc"),
    [("[::1]:6000", "[::1]:6000"), ("[::1]", "[::1]"), ("proxy", "proxy"), ("https://h:1/x", "h:1")],
)
def test_addresses_of_all_forms(location: str, netloc: str) -> None:
    assert ObjectStorageApi(NS, endpoint=location).container.proxy_netloc == netloc
