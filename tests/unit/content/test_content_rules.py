# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""What is asked, in which order, and what is undone, when a chunk is rebuilt or moved: against fake clients."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest

from oio.common import exceptions as exc
from oio.common.status import CONTENT_DRAINED
from oio.common.storage_method import STORAGE_METHODS
from oio.content import content as content_module
from oio.content.content import Content
from oio.content.ec import ECContent
from oio.content.plain import PlainContent

CID = "C0" * 32
ID = "AA" * 32


class Containers:
    """Fake ContainerClient. ``spares``: answers of content_spare (URLs, or errors), the last one for ever."""

    def __init__(self) -> None:
        self.spares: list[Any] = [["http://new/" + ID]]
        self.calls: list[tuple[str, Any]] = []
        self.error: Exception | None = None
        self.located: list[dict[str, Any]] | Exception = []

    def content_spare(self, **kwargs: Any) -> dict[str, Any]:
        self.calls.append(("spare", kwargs))
        answer = self.spares.pop(0) if len(self.spares) > 1 else self.spares[0]
        if isinstance(answer, Exception):
            raise answer
        quality = {"expected_dist": 2, "final_dist": 2, "expected_slot": "rawx", "final_slot": "rawx"}
        return {
            "chunks": [{"id": url, "pos": "", "hash": "", "size": 0} for url in answer],
            "properties": [{"key": "__OIO_CHUNK__" + url, "value": json.dumps(quality)} for url in answer],
        }

    def container_raw_update(self, old: Any, new: Any, **kwargs: Any) -> None:
        self._register("update", {"old": old, "new": new, **kwargs})

    def container_raw_insert(self, bean: Any, **kwargs: Any) -> None:
        self._register("insert", {"bean": bean, **kwargs})

    def _register(self, name: str, what: dict[str, Any]) -> None:
        self.calls.append((name, what))
        if self.error is not None:
            raise self.error

    def content_locate(self, **kwargs: Any) -> Any:
        self.calls.append(("locate", kwargs))
        if isinstance(self.located, Exception):
            raise self.located
        return {}, self.located

    def of(self, name: str) -> list[Any]:
        return [what for called, what in self.calls if called == name]


class Blobs:
    """Fake BlobClient. ``failing`` holds the errors of copies, by source or destination URL."""

    def __init__(self) -> None:
        self.copies: list[tuple[str, str]] = []
        self.deleted: list[str] = []
        self.failing: dict[str, list[Exception]] = {}
        self.delete_error: Exception | None = None
        self.options: list[dict[str, Any]] = []

    def chunk_copy(self, source: str, target: str, **kwargs: Any) -> None:
        self.copies.append((source, target))
        self.options.append(kwargs)
        for url in (source, target):
            if self.failing.get(url):
                raise self.failing[url].pop(0)

    def chunk_put(self, url: str, meta: dict[str, Any], data: Any, **kwargs: Any) -> tuple[int, str]:
        self.options.append(meta)
        return len(data.read(1 << 20)), "hash"

    def chunk_delete(self, url: str, **_kwargs: Any) -> None:
        self.deleted.append(url)
        if self.delete_error is not None:
            raise self.delete_error

    def resolve_url(self, url: str) -> str:
        return url.replace("http://", "http://address-of-")


@pytest.fixture
def containers() -> Containers:
    return Containers()


@pytest.fixture
def blobs() -> Blobs:
    return Blobs()


@pytest.fixture
def make(containers: Containers, blobs: Blobs) -> Callable[..., Any]:
    """Makes an object of chunks ``(position, host, id)``."""

    def build(method: str, *chunks: tuple[str, str, str], scores: dict[str, int] | None = None) -> Content:
        raw = [
            {
                "pos": pos, "url": f"http://{host}/{chunk_id}", "real_url": f"http://1.2.3.4:1/{chunk_id}",
                "size": 10, "hash": "ab" * 16, "score": (scores or {}).get(host, 50),
            }
            for pos, host, chunk_id in chunks
        ]  # fmt: skip
        meta = {
            "id": "EF" * 16, "name": "a b", "length": "10", "version": "7", "hash": "ab" * 16,
            "chunk_method": method, "policy": "SOME", "mime_type": "x/y", "properties": {},
        }  # fmt: skip
        kind = ECContent if method.startswith("ec") else PlainContent
        return kind({"namespace": "NS"}, CID, meta, raw, STORAGE_METHODS.load(method), "acct", "cont",
                    blob_client=blobs, container_client=containers)  # type: ignore[arg-type]  # fmt: skip

    return build


THREE = ("plain/nb_copy=3", ("0", "a", ID), ("0", "b", ID), ("0", "c", ID))
EC = ("ec/algo=liberasurecode_rs_vand,k=2,m=1", ("0.0", "a", "11"), ("0.1", "b", "22"), ("0.2", "c", "33"))


def hosts_of(chunks: Any) -> list[str]:
    return sorted(chunk["url"].split("/")[2] for chunk in chunks)


# --- attributes ---------------------------------------------------------------------------------


def test_attributes(make: Any) -> None:
    content = make(*THREE)
    assert (content.container_id, content.content_id, content.path, content.length) == (CID, "EF" * 16, "a b", 10)
    assert (content.version, content.chunk_method, content.policy, content.mime_type) == (
        "7",
        THREE[0],
        "SOME",
        "x/y",
    )
    assert content.full_path == "acct/cont/a%20b/7/" + "EF" * 16
    content.policy, content.mime_type, content.properties = "OTHER", "z/z", {"k": "v"}
    assert (content.metadata["policy"], content.metadata["mime_type"]) == ("OTHER", "z/z")
    assert content.metadata["properties"] == {"k": "v"}
    with pytest.raises(ValueError, match="list"):
        content.properties = ["k"]


def test_the_full_path_of_the_metadata_wins(make: Any) -> None:
    plain = make(*THREE)
    content = PlainContent(
        {"namespace": "NS"}, CID, {**plain.metadata, "full_path": "given"}, plain.chunks.raw(),
        plain.storage_method, "acct", "cont", blob_client=plain.blob_client,
        container_client=plain.container_client,
    )  # fmt: skip
    assert content.full_path == "given"


# --- spare chunks -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "notin", "broken"),
    [({}, ["b", "c"], ["a"]), ({"allow_same_rawx": True}, ["b", "c"], [])],
)
@pytest.mark.parametrize("kind", [THREE, EC], ids=["plain", "ec"])
def test_a_rebuild_keeps_the_others_and_avoids_the_lost(
    make: Any, containers: Containers, monkeypatch: Any, kind: Any, options: Any, notin: Any, broken: Any
) -> None:
    content = make(*kind)
    fake_rebuild(monkeypatch, b"x" * 10, 10)
    content.rebuild_chunk(content.chunks[0].id, service_id="a", **options)
    (asked,) = containers.of("spare")
    assert hosts_of(asked["data"]["notin"]) == notin
    assert hosts_of(asked["data"]["broken"]) == broken
    assert set(asked["data"]["notin"][0]) == {"url", "pos", "size", "hash"}
    assert (asked["cid"], asked["path"], asked["version"], asked["stgpol"]) == (CID, "a b", "7", "SOME")
    assert asked["position"] == kind[1][0]


@pytest.mark.parametrize("kind", [THREE, EC], ids=["plain", "ec"])
def test_a_rebuild_by_position_avoids_nothing(
    make: Any, containers: Containers, monkeypatch: Any, kind: Any
) -> None:
    content = make(kind[0], *kind[1:3])
    fake_rebuild(monkeypatch, b"x" * 10, 10)
    content.rebuild_chunk(None, chunk_pos="0" if kind is THREE else "0.2")
    (asked,) = containers.of("spare")
    assert hosts_of(asked["data"]["notin"]) == ["a", "b"]
    assert asked["data"]["broken"] == []
    (inserted,) = containers.of("insert")
    assert inserted["bean"] == {
        "type": "chunk", "id": "http://new/" + ID, "hash": "AB" * 16, "size": 10,
        "pos": "0" if kind is THREE else "0.2", "content": "EF" * 16,
    }  # fmt: skip
    assert len(content.chunks) == 3


@pytest.mark.parametrize(
    "error", [exc.ServiceBusy(503), exc.BadRequest(400), exc.SpareChunkException("x"), exc.NotFound(404)]
)
def test_a_spare_is_asked_for_three_times(make: Any, containers: Containers, error: Exception) -> None:
    containers.spares = [error, error, ["http://new/" + ID]]
    content = make(*THREE)
    content.move_chunk(ID, service_id="a")
    assert len(containers.of("spare")) == 3
    containers.calls.clear()
    containers.spares = [error]
    with pytest.raises(exc.SpareChunkException, match="No spare chunk: "):
        content.move_chunk(ID, service_id="b")
    assert len(containers.of("spare")) == 3
    containers.calls.clear()
    with pytest.raises(exc.SpareChunkException):
        content.move_chunk(ID, service_id="b", max_attempts=5)
    assert len(containers.of("spare")) == 5


@pytest.mark.parametrize("error", [exc.OioNetworkException("x"), exc.OioTimeout("x")])
def test_network_errors_are_not_retried(make: Any, containers: Containers, error: Exception) -> None:
    containers.spares = [error]
    with pytest.raises(type(error)):
        make(*THREE).move_chunk(ID, service_id="a")
    assert len(containers.of("spare")) == 1


def test_an_empty_answer_is_no_spare(make: Any, containers: Containers) -> None:
    containers.spares = [[]]
    with pytest.raises(exc.SpareChunkException):
        make(*THREE).move_chunk(ID, service_id="a")


def test_excluded_chunks_look_like_the_real_one(make: Any, containers: Containers) -> None:
    excluded = {"url": "http://x/1", "hash": "", "pos": "", "size": 0}
    make(*THREE).move_chunk(ID, service_id="a", fake_excluded_chunks=[excluded])
    (asked,) = containers.of("spare")
    assert hosts_of(asked["data"]["broken"]) == ["a", "x"]
    assert asked["data"]["broken"][1] == {"url": "http://x/1", "hash": "ab" * 16, "pos": "0", "size": 10}
    assert excluded["hash"] == ""


# --- copies -------------------------------------------------------------------------------------


def test_the_best_copy_is_tried_first(make: Any, blobs: Blobs) -> None:
    for best in ("b", "c"):
        content = make(*THREE, scores={"a": 80, best: 100})
        blobs.copies.clear()
        content.rebuild_chunk(ID, service_id="a")
        assert blobs.copies == [(f"http://{best}/{ID}", "http://new/" + ID)]
    assert {key: blobs.options[0][key] for key in ("fullpath", "cid", "path", "version", "content_id")} == {
        "fullpath": "acct/cont/a%20b/7/" + "EF" * 16, "cid": CID, "path": "a b", "version": "7",
        "content_id": "EF" * 16,
    }  # fmt: skip


def test_a_copy_that_fails_leaves_the_place_to_another(make: Any, blobs: Blobs) -> None:
    blobs.failing = {f"http://b/{ID}": [exc.NotFound(404)]}
    content = make(*THREE, scores={"b": 100})
    assert content.rebuild_chunk(ID, service_id="a") == 10
    assert [source for source, _ in blobs.copies] == [f"http://b/{ID}", f"http://c/{ID}"]


def test_the_remains_of_a_copy_that_broke_off_are_waited_for(make: Any, blobs: Blobs, monkeypatch: Any) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(content_module.time, "sleep", pauses.append)
    blobs.failing = {
        f"http://b/{ID}": [exc.CorruptedChunk("x")],
        f"http://c/{ID}": [exc.Conflict(409), exc.Conflict(409)],
    }
    content = make(*THREE, scores={"b": 100})
    content.rebuild_chunk(ID, service_id="a")
    assert pauses == [0.05, 0.1]


def test_nothing_is_registered_when_all_copies_fail(make: Any, containers: Containers, blobs: Blobs) -> None:
    blobs.failing = {f"http://{host}/{ID}": [exc.NotFound(404)] for host in "bc"}
    with pytest.raises(exc.UnrecoverableContent):
        make(*THREE).rebuild_chunk(ID, service_id="a")
    assert not containers.of("update")


def test_a_service_that_got_a_copy_meanwhile_is_left_for_another(
    make: Any, containers: Containers, blobs: Blobs
) -> None:
    containers.spares = [["http://taken/" + ID], ["http://free/" + ID]]
    blobs.failing = {"http://taken/" + ID: [exc.Conflict(409)]}
    content = make(THREE[0], THREE[1])
    content.rebuild_chunk(None, chunk_pos=0)
    first, second = containers.of("spare")
    assert hosts_of(first["data"]["notin"]) == ["a"]
    assert hosts_of(second["data"]["notin"]) == ["a", "taken"]
    (inserted,) = containers.of("insert")
    assert inserted["bean"]["id"] == "http://free/" + ID


def test_a_conflict_is_told_when_there_is_no_room_or_the_second_time(
    make: Any, containers: Containers, blobs: Blobs
) -> None:
    blobs.failing = {"http://new/" + ID: [exc.Conflict(409), exc.Conflict(409), exc.Conflict(409)]}
    with pytest.raises(exc.Conflict):
        make(*THREE).rebuild_chunk(ID, service_id="a")
    assert len(containers.of("spare")) == 1
    with pytest.raises(exc.Conflict):
        make(THREE[0], THREE[1]).rebuild_chunk(None, chunk_pos=0)
    assert len(containers.of("spare")) == 3
    assert not containers.of("insert") and blobs.deleted == []


# --- registration -------------------------------------------------------------------------------


@pytest.mark.parametrize("frozen", [False, True])
def test_the_container_is_told(make: Any, containers: Containers, blobs: Blobs, frozen: bool) -> None:
    content = make(*THREE)
    content.rebuild_chunk(ID, service_id="a", allow_frozen_container=frozen)
    (update,) = containers.of("update")
    bean = {"type": "chunk", "hash": "AB" * 16, "size": 10, "pos": "0", "content": "EF" * 16}
    assert update["old"] == [{**bean, "id": f"http://a/{ID}"}]
    assert update["new"] == [{**bean, "id": "http://new/" + ID}]
    assert (update["cid"], update["frozen"], update["strict"]) == (CID, frozen, True)
    assert blobs.deleted == [], "the lost chunk is not deleted"
    assert [chunk.host for chunk in content.chunks.filter(pos=0)] == ["new", "b", "c"]
    assert content.chunks[0].raw()["real_url"] == "http://address-of-new/" + ID


REFUSALS = [exc.BadRequest(400, 400), exc.ServiceBusy(503, 436), exc.Forbidden(403, 405)]
# The answers to a request whose first attempt was served, and whose answer was lost.
ECHOES = [exc.NotFound(404, 420), exc.Conflict(409, 421)]
DOUBTS = [exc.OioTimeout("x"), exc.ServiceBusy(503, 7), exc.OioNetworkException("x"), exc.DeadlineReached()]


@pytest.mark.parametrize("error", REFUSALS, ids=repr)
def test_a_chunk_that_is_refused_is_deleted(
    make: Any, containers: Containers, blobs: Blobs, error: Exception
) -> None:
    containers.error = error
    for call in (
        lambda content: content.rebuild_chunk(ID, service_id="a"),
        lambda content: content.move_chunk(ID, service_id="a"),
    ):
        content = make(*THREE)
        blobs.deleted.clear()
        with pytest.raises(type(error)):
            call(content)
        assert blobs.deleted == ["http://new/" + ID]
        assert [chunk.host for chunk in content.chunks] == ["a", "b", "c"]
    assert not containers.of("locate")


def rebuild_or_move(content: Content, move: bool, outcome: AbstractContextManager[Any]) -> None:
    call = content.move_chunk if move else content.rebuild_chunk
    with outcome:
        call(ID, service_id="a")


@pytest.mark.parametrize("error", ECHOES, ids=repr)
@pytest.mark.parametrize("move", [False, True])
def test_a_request_may_be_refused_because_it_was_served_before(
    make: Any, containers: Containers, blobs: Blobs, error: Exception, move: bool
) -> None:
    new, old = "http://new/" + ID, f"http://a/{ID}"
    containers.error = error
    for located, registered, deleted in (
        ([{"url": new}], True, [old] if move else []),
        ([{"url": old}], False, [new]),
        (exc.ClientException(410, CONTENT_DRAINED), False, [new]),
        (exc.OioTimeout("y"), False, []),
    ):
        blobs.deleted.clear()
        containers.located = located
        rebuild_or_move(make(*THREE), move, nullcontext() if registered else pytest.raises(type(error)))
        assert blobs.deleted == deleted


@pytest.mark.parametrize("error", DOUBTS, ids=repr)
@pytest.mark.parametrize("move", [False, True])
def test_without_answer_the_container_is_looked_at(
    make: Any, containers: Containers, blobs: Blobs, error: Exception, move: bool
) -> None:
    """(located, is it registered?, chunks deleted by a rebuild, by a move)"""
    new, old = "http://new/" + ID, f"http://a/{ID}"
    containers.error = error
    for located, registered, by_rebuild, by_move in (
        ([{"url": new}], True, [], [old]),
        ([{"url": old}], False, [new], []),
        (exc.OioTimeout("y"), False, [], []),
        (exc.NotFound(404), False, [new], []),
        (exc.ClientException(410, CONTENT_DRAINED), False, [new], []),
    ):
        blobs.deleted.clear()
        containers.located = located
        rebuild_or_move(make(*THREE), move, nullcontext() if registered else pytest.raises(type(error)))
        assert blobs.deleted == (by_move if move else by_rebuild)


def test_an_old_chunk_that_cannot_be_deleted_is_only_logged(
    make: Any, blobs: Blobs, caplog: pytest.LogCaptureFixture
) -> None:
    blobs.delete_error = exc.OioNetworkException("down")
    assert make(*THREE).move_chunk(ID, service_id="a")["url"] == "http://new/" + ID
    assert blobs.deleted == [f"http://a/{ID}"]


@pytest.mark.parametrize("place", [f"http://a/{ID}", f"http://address-of-a/{ID}"])
def test_a_chunk_that_came_to_its_old_place_is_not_deleted(
    make: Any, containers: Containers, blobs: Blobs, place: str
) -> None:
    """The proxy does not avoid a service that it knows by another name."""
    blobs.resolve_url = lambda url: url.replace("address-of-", "")  # type: ignore[method-assign]
    containers.spares = [[place]]
    content = make(*THREE)
    content.move_chunk(ID, service_id="a")
    assert blobs.deleted == []
    assert content.occupies(f"http://a/{ID}") and not content.occupies("http://a/" + "BB" * 32)


def test_a_dry_run_only_asks(make: Any, containers: Containers, blobs: Blobs) -> None:
    content = make(*THREE)
    planned = content.move_chunk(ID, service_id="a", dry_run=True)
    assert (planned["url"], planned["quality"]["final_dist"]) == ("http://new/" + ID, 2)
    assert [name for name, _ in containers.calls] == ["spare"]
    assert (blobs.copies, blobs.deleted) == ([], [])
    assert [chunk.host for chunk in content.chunks] == ["a", "b", "c"]


def test_a_fragment_moves_from_itself_only(make: Any, blobs: Blobs) -> None:
    blobs.failing = {"http://a/11": [exc.NotFound(404)]}
    with pytest.raises(exc.NotFound):
        make(*EC).move_chunk("11")
    assert [source for source, _ in blobs.copies] == ["http://a/11"]


# --- fragments ----------------------------------------------------------------------------------


def fake_rebuild(monkeypatch: Any, data: bytes, size: int | None) -> list[Any]:
    """Have fragments come from nowhere; gives what the handler is told."""
    told: list[Any] = []

    class Handler:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            told.append((args, kwargs))

        def rebuild(self) -> Any:
            return size, iter([data])

    monkeypatch.setattr("oio.content.ec.ECRebuildHandler", Handler)
    return told


def test_fragments_are_computed_from_the_other_chunks(make: Any, blobs: Blobs, monkeypatch: Any) -> None:
    told = fake_rebuild(monkeypatch, b"x" * 12, 12)
    content = make(*EC)
    assert content.rebuild_chunk("22", read_all_available_sources=True) == 12
    ((sources, missing, method), options) = told[0]
    assert [(chunk["url"], chunk["num"]) for chunk in sources] == [("http://a/11", 0), ("http://c/33", 2)]
    assert (missing, method, options["read_all_available_sources"]) == (1, content.storage_method, True)
    meta = blobs.options[0]
    assert (meta["chunk_pos"], meta["chunk_id"], meta["chunk_size"]) == ("0.1", ID, 12)
    assert (meta["metachunk_hash"], meta["metachunk_size"]) == ("AB" * 16, 10)


def test_fragments_of_another_size_are_deleted(
    make: Any, containers: Containers, blobs: Blobs, monkeypatch: Any
) -> None:
    fake_rebuild(monkeypatch, b"x" * 11, 12)
    with pytest.raises(exc.ChunkException, match="11 bytes instead of 12"):
        make(*EC).rebuild_chunk("22")
    assert blobs.deleted == ["http://new/" + ID]
    assert not containers.of("update")


def test_a_size_that_nobody_knows_is_not_checked(make: Any, containers: Containers, monkeypatch: Any) -> None:
    fake_rebuild(monkeypatch, b"x" * 11, None)
    assert make(*EC).rebuild_chunk("22") == 11
    assert containers.of("update")


@pytest.mark.parametrize("position", [None, "0", 0, "0.3", "0.99", "x.1", "0.", ".1", "0.-1", "1e3", "nan"])
def test_a_fragment_needs_an_id_or_a_whole_position(make: Any, containers: Containers, position: Any) -> None:
    with pytest.raises(exc.OrphanChunk):
        make(*EC).rebuild_chunk(None, chunk_pos=position)
    assert containers.calls == []


@pytest.mark.parametrize("position", [None, "0.1", "x", "-1", "1e3", "nan", ""])
def test_a_copy_needs_an_id_or_a_position(make: Any, containers: Containers, position: Any) -> None:
    with pytest.raises(exc.OrphanChunk):
        make(*THREE).rebuild_chunk(None, chunk_pos=position)
    assert containers.calls == []


def test_a_position_that_the_container_knows_is_not_given_a_second_chunk(
    make: Any, containers: Containers, monkeypatch: Any
) -> None:
    fake_rebuild(monkeypatch, b"x" * 12, 12)
    content = make(*EC)
    content.rebuild_chunk(None, chunk_pos="0.1")
    (update,) = containers.of("update")
    assert update["old"][0]["id"] == "http://b/22"
    assert containers.of("spare")[0]["data"]["broken"] == []
    assert [chunk.host for chunk in content.chunks] == ["a", "new", "c"]


def test_fewer_than_k_chunks_are_not_tried(make: Any, containers: Containers) -> None:
    content = make(EC[0], *EC[1:3])
    with pytest.raises(exc.UnrecoverableContent):
        content.rebuild_chunk("22")
    assert containers.calls == []


# --- links --------------------------------------------------------------------------------------


def test_a_linked_chunk_follows(make: Any, containers: Containers, blobs: Blobs) -> None:
    def chunk_link(target: str, link: str | None, fullpath: str, **_kwargs: Any) -> tuple[None, str]:
        assert (target, link, fullpath) == ("http://new/moved", None, "acct/cont/a%20b/7/" + "EF" * 16)
        return None, "http://new/linked"

    blobs.chunk_link = chunk_link  # type: ignore[attr-defined]
    content = make("plain/nb_copy=1", ("0", "a", ID))
    assert content.move_linked_chunk(ID, "http://new/moved")["url"] == "http://new/linked"
    (update,) = containers.of("update")
    assert update["new"][0]["id"] == "http://new/linked"
    assert blobs.deleted == [f"http://a/{ID}"]
