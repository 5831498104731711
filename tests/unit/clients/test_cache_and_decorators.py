# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""The metadata cache and the decorators of the API."""

from __future__ import annotations

import time
from typing import Any

import pytest

from oio.common import cache as cache_module
from oio.common import exceptions as exc
from oio.common.decorators import (
    api_call,
    ensure_headers,
    ensure_request_id,
    ensure_request_id2,
    handle_account_not_found,
    handle_container_not_found,
    handle_object_not_found,
    patch_kwargs,
    raise_no_such_object,
)
from oio.common.utils import cid_from_name

CID = cid_from_name("a", "c")
OBJ = {"account": "a", "reference": "c", "path": "o"}

# --- cache ---


def test_container_entries() -> None:
    cache: dict[str, Any] = {}
    names = {"account": "a", "reference": "c", "cache": cache}
    assert cache_module.get_cached_container_metadata(**names) is None
    cache_module.set_cached_container_metadata({"system": {}}, **names)
    assert list(cache) == [f"meta/{CID}"]
    assert cache_module.get_cached_container_metadata(cid=CID.lower(), cache=cache) == {"system": {}}
    cache_module.del_cached_container_metadata(**names)
    cache_module.del_cached_container_metadata(**names)
    assert cache == {}


def test_object_entries() -> None:
    cache: dict[str, Any] = {}
    chunks = [{"url": "u", "score": 5}]
    meta = {"name": "o", "properties": {"k": "v"}}
    cache_module.set_cached_object_metadata(meta, chunks, **OBJ, properties=True, cache=cache)
    assert list(cache) == [f"meta/{CID}/o"]
    assert chunks == [{"url": "u", "score": 5}]
    assert cache_module.get_cached_object_metadata(**OBJ, cache=cache) == (
        {"name": "o", "properties": {}}, [{"url": "u"}],
    )  # fmt: skip
    assert cache_module.get_cached_object_metadata(**OBJ, properties=True, cache=cache)[0] == meta
    assert cache_module.get_cached_object_metadata(**OBJ, version=1, cache=cache) == (None, None)
    assert cache_module.get_cached_object_metadata(**OBJ) == (None, None)
    cache_module.del_cached_object_metadata(**OBJ, version=1, cache=cache)
    assert cache == {}
    cache_module.set_cached_object_metadata(meta, chunks, **OBJ, version=1, cache=cache)
    assert cache == {}
    cache_module.set_cached_object_metadata(meta, None, **OBJ, cache=cache)
    assert cache_module.get_cached_object_metadata(**OBJ, properties=True, cache=cache) == (None, None)
    assert cache_module.get_cached_object_metadata(**OBJ, cache=cache)[1] is None
    with pytest.raises(ValueError):
        cache_module.get_cached_object_metadata(account="a", reference="c", cache=cache)


def test_entries_are_snapshots() -> None:
    cache: dict[str, Any] = {}
    meta: dict[str, Any] = {"properties": {"k": "v"}}
    cache_module.set_cached_object_metadata(meta, [{"url": "u"}], **OBJ, properties=True, cache=cache)
    meta["properties"]["k"] = "changed"
    got, chunks = cache_module.get_cached_object_metadata(**OBJ, properties=True, cache=cache)
    assert got is not None
    assert chunks is not None
    got["properties"]["k"] = "changed"
    chunks[0]["url"] = "changed"
    got, chunks = cache_module.get_cached_object_metadata(**OBJ, properties=True, cache=cache)
    assert (got, chunks) == ({"properties": {"k": "v"}}, [{"url": "u"}])
    names = {"account": "a", "reference": "c", "cache": cache}
    told = {"properties": {}, "system": {"sys.status": "0"}}
    cache_module.set_cached_container_metadata(told, **names)
    told["system"]["sys.status"] = "changed"
    cache_module.get_cached_container_metadata(**names)["properties"]["k"] = "changed"
    assert cache_module.get_cached_container_metadata(**names) == {
        "properties": {},
        "system": {"sys.status": "0"},
    }


# --- decorators ---


class Api:
    """Methods that return, or raise, what they were given."""

    _global_kwargs = {"read_timeout": 5.0, "autocreate": True}

    @handle_account_not_found
    def account(self, account: Any = None, error: Any = None) -> None:
        raise error

    @handle_container_not_found
    def container(self, account: Any, container: Any, error: Any = None) -> None:
        raise error

    @handle_object_not_found
    def object(self, account: Any, container: Any, obj: Any, error: Any = None) -> None:
        raise error

    @patch_kwargs
    def patched(self, **kwargs: Any) -> dict[str, Any]:
        return kwargs

    @ensure_headers
    @ensure_request_id
    def identified(self, **kwargs: Any) -> dict[str, Any]:
        return kwargs

    @ensure_request_id2(prefix="pre-")
    def prefixed(self, **kwargs: Any) -> dict[str, Any]:
        return kwargs

    @api_call(raise_no_such_object, prefix="all-")
    def everything(self, account: Any, container: Any, obj: Any, error: Any = None, **kwargs: Any) -> Any:
        if error:
            raise error
        return kwargs


@pytest.mark.parametrize(
    ("method", "status", "expected", "text"),
    [
        ("account", 431, exc.NoSuchAccount, "Account 'a' does not exist."),
        ("container", 420, exc.NoSuchContainer, "Container 'c' does not exist."),
        ("object", 406, exc.NoSuchContainer, "Container 'c' does not exist."),
        ("object", 431, exc.NoSuchContainer, "Container 'c' does not exist."),
        ("object", 420, exc.NoSuchObject, "Object 'o' does not exist."),
        ("everything", 420, exc.NoSuchObject, "Object 'o' does not exist."),
        ("everything", 431, exc.NoSuchContainer, "Container 'c' does not exist."),
    ],
)
def test_not_found(method: str, status: int, expected: type[Exception], text: str) -> None:
    names = {"account": 1, "container": 2}.get(method, 3)
    with pytest.raises(expected) as caught:
        getattr(Api(), method)(*("a", "c", "o")[:names], error=exc.NotFound(404, status, "said"))
    assert type(caught.value) is expected
    assert caught.value.args == (text, "said")
    assert not hasattr(caught.value, "status")


def test_not_found_by_keyword() -> None:
    with pytest.raises(exc.NoSuchObject, match="Object 'o'"):
        Api().everything("a", obj="o", container="c", error=exc.NotFound())
    with pytest.raises(exc.Conflict):
        Api().everything("a", "c", "o", error=exc.Conflict())


def test_defaults_and_deadline() -> None:
    kwargs = Api().patched(autocreate=False)
    assert kwargs["autocreate"] is False
    assert 4 < kwargs["deadline"] - time.monotonic() <= 5
    assert Api().patched(deadline=1.0)["deadline"] == 1.0
    kwargs = Api().everything("a", "c", "o", read_timeout=2)
    assert 1 < kwargs["deadline"] - time.monotonic() <= 2
    assert kwargs["reqid"].startswith("all-")


def test_request_ids() -> None:
    headers: dict[str, str] = {}
    kwargs = Api().identified(headers=headers)
    assert kwargs["headers"] is headers
    assert headers["x-oio-req-id"] == kwargs["reqid"]
    assert len(kwargs["reqid"]) == 32
    assert Api().identified(reqid="given")["headers"] == {"x-oio-req-id": "given"}
    kwargs = Api().identified(reqid="given", headers={"x-oio-req-id": "header"})
    assert kwargs["reqid"] == "header"
    assert Api().prefixed()["reqid"].startswith("pre-")
