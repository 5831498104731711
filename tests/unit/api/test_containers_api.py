# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Container methods: flush, purge, refresh, touch; and the refresh of accounts."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock, call

import pytest
from fake_cluster import NS, FakeCluster

from oio import ObjectStorageApi
from oio.common import exceptions as exc


@pytest.fixture
def mocked() -> Any:
    """An API whose inner clients are mocks."""
    api: Any = ObjectStorageApi(NS, endpoint="127.0.0.1:1")
    api.container = Mock()
    api.account = Mock()
    return api


class Versions:
    """Listing and deletion of versions, in pages cut anywhere."""

    def __init__(self, api: Any, *versions: tuple[str, int], page: int = 3, markers: tuple[int, ...] = ()) -> None:
        self.versions = list(versions)
        self.markers = markers
        self.page = page
        api.container.content_list = self.content_list
        api.container.content_delete = self.content_delete
        api.container.container_get_properties = Mock(return_value={"system": {}})

    def content_list(self, *_args: Any, marker: str | None = None, versions: bool = False, **_kw: Any) -> Any:
        assert versions is True
        left = [
            {"name": name, "version": version, "deleted": version in self.markers}
            for name, version in self.versions
            if not marker or name > marker
        ]
        cut = left[: self.page]
        headers = {"x-oio-list-truncated": str(len(left) > self.page)}
        if len(left) > self.page:
            headers["x-oio-list-marker"] = cut[-1]["name"]
        return headers, {"objects": cut}

    def content_delete(self, _account: str, _container: str, name: str, version: Any = None, **_kw: Any) -> bool:
        self.versions.remove((name, version))
        return True


VERSIONS = (("a", 9), ("b", 5), ("b", 4), ("b", 3), ("b", 2), ("c", 8), ("c", 7))


# --- purge ---


@pytest.mark.parametrize("page", [5, 6, 100])
@pytest.mark.parametrize(
    ("keep", "left"),
    [
        (2, [("a", 9), ("b", 5), ("b", 4), ("c", 8), ("c", 7)]),
        (1, [("a", 9), ("b", 5), ("c", 8)]),
        (0, [("a", 9), ("b", 5), ("c", 8)]),
        (-1, list(VERSIONS)),
    ],
)
def test_purge_keeps_the_newest_versions(mocked: Any, keep: int, left: Any, page: int) -> None:
    fake = Versions(mocked, *VERSIONS, page=page)
    assert mocked.container_purge("acct", "cont", maxvers=keep) is None
    assert fake.versions == left


def test_purge_neither_counts_nor_deletes_markers(mocked: Any) -> None:
    fake = Versions(mocked, *VERSIONS, page=100, markers=(5, 3))
    mocked.container_purge("acct", "cont", maxvers=1)
    assert fake.versions == [("a", 9), ("b", 5), ("b", 4), ("b", 3), ("c", 8)]


def test_purge_asks_the_container_then_the_proxy(mocked: Any) -> None:
    fake = Versions(mocked, *VERSIONS, page=100)
    mocked.container.container_get_properties.return_value = {"system": {"sys.m2.policy.version": "3"}}
    mocked.container_purge("acct", "cont")
    assert fake.versions == [item for item in VERSIONS if item != ("b", 2)]
    mocked.container.container_get_properties.return_value = {"system": {}}
    mocked.proxy_client._request = Mock(return_value=(None, {"meta2.max_versions": "1"}))
    mocked.container_purge("acct", "cont")
    assert mocked.proxy_client._request.call_args[0] == ("GET", "v3.0/config")
    assert fake.versions == [("a", 9), ("b", 5), ("c", 8)]
    mocked.proxy_client._request.return_value = (None, {"meta2.max_versions": "-1"})
    mocked.container_purge("acct", "cont")
    assert len(fake.versions) == 3


def test_a_name_with_more_versions_than_a_page_is_purged_by_its_container(mocked: Any) -> None:
    fake = Versions(mocked, *[("a", version) for version in range(9, 0, -1)], ("b", 2), ("b", 1))
    mocked.container_purge("acct", "cont", maxvers=1)
    assert [call.args[2] for call in mocked.container.content_purge.call_args_list] == ["a"]
    assert mocked.container.content_purge.call_args.kwargs["maxvers"] == 1
    assert ("b", 1) not in fake.versions


def test_purge_of_versions_that_vanish(mocked: Any) -> None:
    Versions(mocked, *VERSIONS, page=100)
    mocked.container.content_delete = Mock(side_effect=exc.NotFound(404, 420, "gone"))
    mocked.container_purge("acct", "cont", maxvers=1)
    assert mocked.container.content_delete.call_count == 4
    mocked.container.content_delete = Mock(side_effect=exc.NotFound(404, 431, "no container"))
    with pytest.raises(exc.NoSuchContainer):
        mocked.container_purge("acct", "cont", maxvers=1)


# --- flush ---


@pytest.mark.parametrize("limit", [None, 1, 3])
def test_slow_flush_lists_and_deletes_until_nothing_is_left(
    api: ObjectStorageApi, cluster: FakeCluster, limit: int | None
) -> None:
    for number in range(7):
        api.object_create("acct", "cont", data=b"x", obj_name=f"o{number}")
    kwargs = {} if limit is None else {"limit": limit}
    assert api.container_flush("acct", "cont", **kwargs) is None  # type: ignore[arg-type]
    assert api.object_list("acct", "cont")["objects"] == []
    listed = [entry[2].get("max") for entry in cluster.proxy.requests("container/list")][:-1]
    assert set(listed) == {None if limit is None else str(limit)}
    assert len(listed) == {None: 2, 1: 8, 3: 4}[limit]


def test_slow_flush_deletes_in_batches_that_the_proxy_takes(api: ObjectStorageApi, cluster: FakeCluster) -> None:
    api.container_create("acct", "cont")
    names = [f"o{number:03}" for number in range(250)]
    api.object_list = Mock(side_effect=[{"objects": [{"name": name} for name in names]}, {"objects": []}])  # type: ignore[method-assign]
    api.object_delete_many = Mock(side_effect=lambda _a, _c, batch, **_kw: [(name, True) for name in batch])  # type: ignore[method-assign]
    api.container_flush("acct", "cont")
    assert [len(args[0][2]) for args in api.object_delete_many.call_args_list] == [100, 100, 50]


def test_slow_flush_gives_up_when_nothing_can_be_deleted(mocked: Any) -> None:
    mocked.object_list = Mock(return_value={"objects": [{"name": "a"}, {"name": "b"}]})
    mocked.object_delete_many = Mock(return_value=[("a", False), ("b", False)])
    with pytest.raises(exc.OioException, match="None of the 2 objects"):
        mocked.container_flush("acct", "cont")
    mocked.object_list = Mock(side_effect=[{"objects": [{"name": "a"}]}, {"objects": []}])
    mocked.object_delete_many = Mock(return_value=[("a", False), ("b", True)])
    mocked.container_flush("acct", "cont")


def test_fast_flush_is_repeated_while_something_is_left(mocked: Any) -> None:
    mocked.container.container_flush.side_effect = [{"truncated": True}, {"truncated": True}, {"truncated": False}]
    assert mocked.container_flush("acct", "cont", fast=True) is None
    assert mocked.container.container_flush.call_count == 3
    assert mocked.container.container_flush.call_args[0] == ("acct", "cont")


@pytest.mark.parametrize("fast", [True, False])
def test_flush_of_a_missing_container(api: ObjectStorageApi, fast: bool) -> None:
    with pytest.raises(exc.NoSuchContainer):
        api.container_flush("acct", "nowhere", fast=fast)


# --- names of an id ---


def test_names_of_an_unknown_id(mocked: Any) -> None:
    mocked.directory = Mock(list=Mock(return_value={"account": "acct", "name": "cont"}))
    assert mocked.resolve_cid("AB" * 32) == ("acct", "cont")
    mocked.directory.list.side_effect = exc.NotFound(404, 406, "said")
    with pytest.raises(exc.NoSuchContainer) as caught:
        mocked.resolve_cid("AB" * 32)
    assert caught.value.args == (f"Container '{'AB' * 32}' does not exist.", "said")


# --- touch ---


def test_touch(mocked: Any) -> None:
    mocked.container_touch("acct", "cont")
    assert "recompute" not in mocked.container.container_touch.call_args[1]
    mocked.container_touch("acct", "cont", recompute=True)
    told = mocked.container.container_touch.call_args[1]
    assert (told["recompute"], told["damaged_objects"], told["missing_chunks"]) == (True, True, True)
    mocked.container.container_touch.side_effect = exc.Forbidden(403, 406, "No such user")
    with pytest.raises(exc.Forbidden) as caught:
        mocked.container_touch("acct", "cont")
    assert caught.value.status == 406


# --- refresh ---


def test_container_refresh_resets_then_touches(mocked: Any) -> None:
    order = Mock()
    order.attach_mock(mocked.account, "account")
    order.attach_mock(mocked.container, "container")
    before = time.time()
    assert mocked.container_refresh("acct", "cont") is None
    (first, args, _kw), (second, others, _more) = order.mock_calls
    assert (first, second) == ("account.container_reset", "container.container_touch")
    assert args[:2] == others == ("acct", "cont")
    assert before <= args[2] <= time.time()


def test_container_refresh_tries_again_on_conflict(mocked: Any) -> None:
    reset = mocked.account.container_reset
    reset.side_effect = [exc.Conflict(), exc.Conflict(), None]
    mocked.container_refresh("acct", "cont")
    assert reset.call_count == 3
    reset.side_effect = exc.Conflict(message="No update needed")
    mocked.container.reset_mock()
    with pytest.raises(exc.Conflict):
        mocked.container_refresh("acct", "cont", attempts=2)
    assert reset.call_count == 5
    mocked.container.container_touch.assert_not_called()


def test_container_refresh_of_an_unknown_entry(mocked: Any) -> None:
    mocked.account.container_reset.side_effect = exc.NotFound(message="Container cont not found")
    with pytest.raises(exc.NoSuchContainer):
        mocked.container_refresh("acct", "cont")


@pytest.mark.parametrize("code", [406, 431])
def test_container_refresh_removes_the_entry_of_a_missing_container(mocked: Any, code: int) -> None:
    mocked.container.container_touch.side_effect = exc.Forbidden(403, code, "missing")
    assert mocked.container_refresh("acct", "cont") is None
    args = mocked.account.container_update.call_args[0]
    assert args[:2] == ("acct", "cont")
    assert set(args[2]) == {"dtime"}
    assert args[2]["dtime"] >= mocked.account.container_reset.call_args[0][2]


def test_container_refresh_raises_other_refusals(mocked: Any) -> None:
    mocked.container.container_touch.side_effect = exc.Forbidden(403, 403, "not allowed")
    with pytest.raises(exc.Forbidden):
        mocked.container_refresh("acct", "cont")
    mocked.account.container_update.assert_not_called()


# --- accounts ---


def pages(*entries: list[str]) -> Any:
    left = [{"listing": [[name, 0, 0, 0, 0.0] for name in names]} for names in (*entries, [])]
    return Mock(side_effect=left)


def test_account_refresh_goes_through_all_pages(mocked: Any) -> None:
    mocked.account.container_list = pages(["a", "b"], ["c"])
    mocked.container_refresh = Mock(side_effect=[None, exc.NoSuchContainer("gone"), None])
    assert mocked.account_refresh("acct") is None
    assert mocked.account.account_refresh.call_args[0] == ("acct",)
    assert [args[0] for args in mocked.container_refresh.call_args_list] == [("acct", name) for name in "abc"]
    markers = [args[1]["marker"] for args in mocked.account.container_list.call_args_list]
    assert markers == [None, "b", "c"]


@pytest.mark.parametrize("method", ["account_refresh", "all_accounts_refresh"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_refresh_of_all_accounts_ignores_those_that_vanish(mocked: Any, method: str) -> None:
    mocked.account.account_list.return_value = ["a", "b", "c"]
    mocked.account.account_refresh.side_effect = [None, exc.NotFound(message="b"), None]
    mocked.account.container_list = pages([], [])
    assert getattr(mocked, method)() is None
    assert [args[0][0] for args in mocked.account.account_refresh.call_args_list] == ["a", "b", "c"]


def test_unknown_accounts(mocked: Any) -> None:
    mocked.account.account_refresh.side_effect = mocked.account.account_flush.side_effect = exc.NotFound()
    with pytest.raises(exc.NoSuchAccount):
        mocked.account_refresh("nobody")
    with pytest.raises(exc.NoSuchAccount):
        mocked.account_flush("nobody")


def test_account_flush(mocked: Any) -> None:
    assert mocked.account_flush("acct") is None
    assert mocked.account.account_flush.call_args[0] == ("acct",)
    assert mocked.account.mock_calls == [call.account_flush("acct", **mocked.account.account_flush.call_args[1])]


def test_all_accounts_refresh_is_deprecated(mocked: Any) -> None:
    mocked.account.account_list.return_value = []
    with pytest.warns(DeprecationWarning):
        mocked.all_accounts_refresh()


# --- low level ---


def test_a_container_is_destroyed_by_force(mocked: Any) -> None:
    client = ObjectStorageApi(NS, endpoint="127.0.0.1:1").container
    client._direct_request = Mock(return_value=(SimpleNamespace(status=204), b""))  # type: ignore[method-assign]
    client.container_delete("acct", "cont", force=True)
    assert client._direct_request.call_args[1]["params"] == {"acct": "acct", "ref": "cont", "force": 1}
