# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""container_snapshot: the order of its steps, and what each failure leaves."""

from __future__ import annotations

import threading
import time
from typing import Any
from unittest.mock import Mock

import pytest
from fake_cluster import NS

from oio import ObjectStorageApi
from oio.common import exceptions as exc
from oio.common.utils import cid_from_name, compute_chunk_id

SOURCE, COPY = ("acct", "cont"), ("acct2", "copy")
CID = cid_from_name(*COPY)
NAMES = ("a", "b", "c")


def chunks_of(name: str) -> list[dict[str, Any]]:
    return [
        {"url": f"http://rawx-{host}/{name.upper()}{host}", "real_url": f"http://10.0.0.{host}:6000/{name.upper()}{host}",
         "pos": "0", "size": 5, "hash": "AA", "score": 9} for host in range(3)
    ]  # fmt: skip


class Snapshot:
    """An API whose clients are mocks, attached to one record of calls."""

    def __init__(self) -> None:
        self.api: Any = ObjectStorageApi(NS, endpoint="127.0.0.1:1")
        self.record = Mock()
        self.container = self.api.container = self.record.container
        self.directory = self.api.directory = self.record.directory
        self.blob = self.api._blob_client = self.record.blob
        self.blob.chunk_link.side_effect = self.link
        self.blob.chunk_delete_many.return_value = []
        self.listed = [self.item(name) for name in NAMES]
        self.container.content_list.side_effect = self.list
        self.container.content_locate.side_effect = self.locate

    @staticmethod
    def item(name: str, **more: Any) -> dict[str, Any]:
        return {"name": name, "version": 7, "deleted": False, "content": f"{ord(name):032X}",
                "chunk-method": "plain/nb_copy=3", **more}  # fmt: skip

    def locate(self, _account: str, _container: str, name: str, version: Any = None, **_kw: Any) -> Any:
        meta = {"name": name, "version": str(version), "policy": "THREE", "chunk_method": "plain/nb_copy=3"}
        return meta, chunks_of(name)

    def list(self, *_args: Any, **_kw: Any) -> Any:
        return {}, {"objects": [dict(item) for item in self.listed]}

    def link(self, url: str, chunk_id: str, *_args: Any, **_kw: Any) -> Any:
        return None, f"{url.rpartition('/')[0]}/{chunk_id}"

    def run(self, **kwargs: Any) -> None:
        self.api.container_snapshot(*SOURCE, *COPY, **kwargs)

    def steps(self) -> list[str]:
        """Calls that change something, without repetitions."""
        told = [call[0] for call in self.record.mock_calls if not call[0].startswith("container.content_")]
        return [name for index, name in enumerate(told) if index == 0 or told[index - 1] != name]


@pytest.fixture
def snapshot(monkeypatch: pytest.MonkeyPatch) -> Snapshot:
    monkeypatch.setattr("oio.api._snapshot._PAUSES_S", (0.0, 0.0))
    return Snapshot()


FREEZE, ENABLE = "container.container_freeze", "container.container_enable"
DUPLICATE, UPDATE, TOUCH = (f"container.container_{name}" for name in ("snapshot", "raw_update", "touch"))
LINK, DELETE_CHUNKS = "blob.chunk_link", "blob.chunk_delete_many"
DESTROY, FORGET = "container.container_delete", "directory.delete"


def test_steps(snapshot: Snapshot) -> None:
    snapshot.run()
    assert snapshot.steps() == [FREEZE, DUPLICATE, LINK, UPDATE, TOUCH, ENABLE]
    assert snapshot.container.container_freeze.call_args[0] == SOURCE
    assert snapshot.container.container_snapshot.call_args[0] == (*SOURCE, *COPY)
    assert snapshot.container.container_touch.call_args[0] == COPY
    assert snapshot.container.container_enable.call_args[0] == SOURCE
    (old, new, *where), kwargs = snapshot.container.container_raw_update.call_args
    assert (tuple(where), kwargs["frozen"]) == (COPY, True)
    row = {"type": "chunk", "hash": "AA", "size": 5, "pos": "0", "content": f"{ord('a'):032X}"}
    assert old[0] == {**row, "id": "http://rawx-0/A0"}
    chunk_id = compute_chunk_id(CID, "a", "7", "0", "THREE")
    assert new[0] == {**old[0], "id": f"http://rawx-0/{chunk_id}"}
    assert [bean["id"].split("/")[2] for bean in new] == ["rawx-0", "rawx-1", "rawx-2"] * 3
    target, _id, full_path = snapshot.blob.chunk_link.call_args_list[0][0]
    assert full_path == f"acct2/copy/a/7/{ord('a'):032X}"
    assert target.startswith("http://rawx-")


@pytest.mark.parametrize(
    ("batch_size", "batches"), [(100, [9]), (8, [9]), (5, [6, 3]), (3, [6, 3]), (2, [3, 3, 3])]
)
def test_batches(snapshot: Snapshot, batch_size: int, batches: list[int]) -> None:
    snapshot.run(batch_size=batch_size)
    assert [len(call[0][0]) for call in snapshot.container.container_raw_update.call_args_list] == batches


def test_what_has_no_chunk_is_skipped(snapshot: Snapshot) -> None:
    snapshot.listed = [
        snapshot.item("a", deleted=True, **{"chunk-method": None}),
        snapshot.item("b", **{"chunk-method": "drained"}),
        snapshot.item("c"),
        snapshot.item("c", version=6, content=f"{ord('c'):032X}"),
    ]
    snapshot.run()
    assert [call[0][2] for call in snapshot.container.content_locate.call_args_list] == ["c"]
    snapshot.container.container_raw_update.assert_called_once()


def test_an_empty_container(snapshot: Snapshot) -> None:
    snapshot.listed = []
    snapshot.run()
    assert snapshot.steps() == [FREEZE, DUPLICATE, TOUCH, ENABLE]


def retried(error: exc.OioException) -> exc.OioException:
    error.retried = True
    return error


LOST = [exc.OioTimeout("lost"), exc.ServiceBusy(), exc.DeadlineReached(), retried(exc.BadRequest())]


@pytest.mark.parametrize("error", LOST)
def test_a_copy_that_was_made_but_not_told_is_removed(snapshot: Snapshot, error: Exception) -> None:
    snapshot.container.container_snapshot.side_effect = error
    with pytest.raises(type(error)):
        snapshot.run()
    assert snapshot.steps() == [FREEZE, DUPLICATE, DESTROY, FORGET, DELETE_CHUNKS, ENABLE]
    assert snapshot.container.container_delete.call_args[0] == COPY


@pytest.mark.parametrize("error", LOST)
@pytest.mark.parametrize("there", ["nothing", "empty", "other"])
def test_a_container_that_is_not_an_unfinished_copy_is_left_alone(
    snapshot: Snapshot, error: Exception, there: str
) -> None:
    def locate(account: str, container: str, name: str, **kwargs: Any) -> Any:
        return Snapshot.locate(snapshot, account, container, name + account, **kwargs)

    snapshot.container.container_snapshot.side_effect = error
    snapshot.container.content_locate.side_effect = locate
    if there == "nothing":
        snapshot.container.content_list.side_effect = exc.NotFound()
    elif there == "empty":
        snapshot.listed = []
    with pytest.raises(type(error)):
        snapshot.run()
    assert snapshot.steps() == [FREEZE, DUPLICATE, ENABLE]
    assert snapshot.container.content_list.call_count == 1


def test_a_refused_copy_is_not_looked_for(snapshot: Snapshot) -> None:
    snapshot.container.container_snapshot.side_effect = exc.BadRequest()
    with pytest.raises(exc.BadRequest):
        snapshot.run()
    assert snapshot.steps() == [FREEZE, DUPLICATE, ENABLE]
    snapshot.container.content_list.assert_not_called()


def test_prepare_meta2_raw_update(snapshot: Snapshot) -> None:
    copies = [{**chunk, "url": chunk["url"] + "X"} for chunk in chunks_of("a")]
    old, new = snapshot.api._prepare_meta2_raw_update(chunks_of("a"), copies, "C0")
    assert [bean["id"] for bean in new] == [bean["id"] + "X" for bean in old]
    row = {"type": "chunk", "hash": "AA", "size": 5, "pos": "0", "content": "C0"}
    assert old[1] == {**row, "id": "http://rawx-1/A1"}


@pytest.mark.parametrize("error", [exc.OioNetworkException("lost"), exc.Conflict(), KeyboardInterrupt()])
@pytest.mark.parametrize(
    "step", ["container.container_raw_update", "container.container_touch", "container.content_locate", LINK,
             "container.content_list"]
)  # fmt: skip
def test_a_failure_removes_the_copy_and_enables_the_source(
    snapshot: Snapshot, step: str, error: BaseException
) -> None:
    room, name = step.split(".")
    getattr(getattr(snapshot, room), name).side_effect = error
    interrupted = isinstance(error, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt if interrupted else exc.OioException):
        snapshot.run()
    steps = snapshot.steps()
    assert steps[:2] == [FREEZE, DUPLICATE]
    assert steps[-4:] == [DESTROY, FORGET, DELETE_CHUNKS, ENABLE]
    args, kwargs = snapshot.container.container_delete.call_args
    assert (args, kwargs["force"]) == (COPY, True)
    deleted, cid = snapshot.blob.chunk_delete_many.call_args[0]
    assert cid == CID
    made = {"container.container_raw_update": 9, "container.container_touch": 9}
    assert len(deleted) == made.get(step, 0)
    for chunk in deleted:
        chunk_id = chunk["url"].rpartition("/")[2]
        assert chunk_id not in {one["url"].rpartition("/")[2] for name in NAMES for one in chunks_of(name)}
        assert set(chunk) == {"url"}


def test_a_link_that_fails_midway_deletes_the_links_made_so_far(snapshot: Snapshot) -> None:
    def fail_on_c(url: str, chunk_id: str, *_args: Any, **_kw: Any) -> Any:
        if "/C" in url and not url.endswith("C0"):
            raise exc.OioNetworkException("lost")
        return snapshot.link(url, chunk_id)

    snapshot.blob.chunk_link.side_effect = fail_on_c
    with pytest.raises(exc.ServiceBusy, match="quorum"):
        snapshot.run(batch_size=1)
    assert snapshot.container.container_raw_update.call_count == 2
    assert len(snapshot.blob.chunk_delete_many.call_args[0][0]) == 7
    assert snapshot.steps()[-1] == ENABLE


def test_links_that_are_being_made_are_waited_for_then_deleted(snapshot: Snapshot) -> None:
    failed, made = threading.Event(), []

    def link(url: str, chunk_id: str, *_args: Any, **_kw: Any) -> Any:
        if "/B" in url:
            failed.set()
            raise exc.OioNetworkException("lost")
        if "/C" in url:
            assert failed.wait(10)
        made.append(url)
        return snapshot.link(url, chunk_id)

    def delete(chunks: list[Any], *_args: Any, **_kw: Any) -> list[Any]:
        assert len(chunks) == len(made) == 6
        return []

    snapshot.blob.chunk_link.side_effect = link
    snapshot.blob.chunk_delete_many.side_effect = delete
    with pytest.raises(exc.ServiceBusy, match="quorum"):
        snapshot.run()
    snapshot.blob.chunk_delete_many.assert_called_once()


def test_a_copy_that_lacks_one_link_knows_its_name(snapshot: Snapshot) -> None:
    def lose_one(url: str, chunk_id: str, *_args: Any, **_kw: Any) -> Any:
        if url.endswith("B1"):
            raise exc.NotFound()
        return snapshot.link(url, chunk_id)

    snapshot.blob.chunk_link.side_effect = lose_one
    snapshot.run()
    old, new = snapshot.container.container_raw_update.call_args[0][:2]
    assert len(old) == len(new) == 9
    assert [one["id"].split("/")[2] for one in old] == [one["id"].split("/")[2] for one in new]
    assert not {one["id"] for one in old} & {one["id"] for one in new}


def test_the_chunks_of_a_copy_that_stays_are_kept(snapshot: Snapshot) -> None:
    snapshot.container.container_touch.side_effect = exc.OioNetworkException("lost")
    snapshot.container.container_delete.side_effect = exc.OioNetworkException("lost too")
    with pytest.raises(exc.OioNetworkException, match=r"^lost$"):
        snapshot.run()
    snapshot.blob.chunk_delete_many.assert_not_called()
    assert snapshot.steps()[-1] == ENABLE


# --- freezing and enabling ---


@pytest.mark.parametrize(
    ("error", "raised", "thawed"),
    [
        (exc.NotFound(404, 406, "missing"), exc.NoSuchContainer, False),
        (exc.ServiceBusy(503, 436, "frozen"), exc.ServiceBusy, False),
        (exc.Forbidden(), exc.Forbidden, False),
        (exc.ServiceBusy(503, 503, "busy"), exc.ServiceBusy, True),
        (exc.OioNetworkException("lost"), exc.OioNetworkException, True),
        (KeyboardInterrupt(), KeyboardInterrupt, True),
    ],
)
def test_a_freeze_that_fails(snapshot: Snapshot, error: BaseException, raised: Any, thawed: bool) -> None:
    snapshot.container.container_freeze.side_effect = error
    with pytest.raises(raised):
        snapshot.run(request_attempts=5)
    assert snapshot.container.container_freeze.call_args[1]["request_attempts"] == 1
    assert snapshot.steps() == ([FREEZE, ENABLE] if thawed else [FREEZE])


def test_a_copy_that_is_refused(snapshot: Snapshot) -> None:
    snapshot.container.container_snapshot.side_effect = exc.BadRequest(message="Container already exists")
    with pytest.raises(exc.BadRequest):
        snapshot.run()
    assert snapshot.steps() == [FREEZE, DUPLICATE, ENABLE]


def test_the_source_is_enabled_out_of_time(snapshot: Snapshot) -> None:
    snapshot.container.container_snapshot.side_effect = exc.DeadlineReached()
    with pytest.raises(exc.DeadlineReached):
        snapshot.run(deadline=time.monotonic() + 5)
    assert "deadline" in snapshot.container.container_snapshot.call_args[1]
    assert "deadline" not in snapshot.container.container_enable.call_args[1]


def test_enabling_is_tried_again(snapshot: Snapshot) -> None:
    snapshot.container.container_enable.side_effect = [exc.ServiceBusy(), exc.OioNetworkException("lost"), None]
    snapshot.run()
    assert snapshot.container.container_enable.call_count == 3
    snapshot.container.container_enable.side_effect = exc.ClientException(500, 439, "enabled already")
    snapshot.run()
    assert snapshot.container.container_enable.call_count == 4
    snapshot.container.container_enable.side_effect = exc.Forbidden()
    with pytest.raises(exc.Forbidden):
        snapshot.run()
    assert snapshot.container.container_enable.call_count == 5


def test_removing_the_copy_is_tried_again(snapshot: Snapshot) -> None:
    snapshot.container.container_touch.side_effect = exc.Conflict(message="the first failure")
    snapshot.container.container_delete.side_effect = [exc.OioNetworkException("lost"), exc.NotFound()]
    with pytest.raises(exc.Conflict, match="the first failure"):
        snapshot.run()
    assert snapshot.container.container_delete.call_count == 2
    assert snapshot.steps()[-2:] == [DELETE_CHUNKS, ENABLE]


def test_a_source_that_stays_frozen_is_told(snapshot: Snapshot) -> None:
    snapshot.container.container_enable.side_effect = exc.OioNetworkException("cannot enable")
    with pytest.raises(exc.OioNetworkException, match="cannot enable"):
        snapshot.run()
    snapshot.container.container_touch.side_effect = exc.Conflict(message="the first failure")
    with pytest.raises(exc.Conflict, match="the first failure"):
        snapshot.run()


@pytest.mark.parametrize("target", [("", "x"), ("x", ""), (None, "x"), SOURCE])
def test_bad_destinations_are_refused_before_anything(snapshot: Snapshot, target: Any) -> None:
    with pytest.raises(exc.BadRequest, match="Invalid dst_"):
        snapshot.api.container_snapshot(*SOURCE, *target)
    assert snapshot.record.mock_calls == []


def test_the_cache_is_not_used(snapshot: Snapshot) -> None:
    snapshot.run(cache={"meta/x": 1})
    assert snapshot.container.content_locate.call_args[1]["cache"] is None
