# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Attributes of volumes and of chunk files; names of chunks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from oio.blob.operator import ChunkOperator, looks_like_chunk_position
from oio.blob.utils import check_volume, check_volume_for_service_type, read_chunk_metadata
from oio.common import exceptions as exc
from oio.common.fullpath import encode_fullpath
from oio.common.utils import cid_from_name
from oio.content.content import ChunksHelper

ID = "0123456789ABCDEF" * 4
LINK_ID = "FEDCBA9876543210" * 4
CONTENT_ID = "AB" * 16
FULL_PATH = encode_fullpath("acme", "media", "a b", 12, CONTENT_ID)

MODERN = {
    "oio.content.fullpath:" + ID: FULL_PATH,
    "grid.chunk.hash": "AB" * 16,
    "grid.chunk.size": "3",
    "grid.chunk.position": "0.1",
    "grid.content.chunk_method": "ec/algo=x,k=2,m=1",
    "grid.content.storage_policy": "EC",
    "grid.metachunk.hash": "CD" * 16,
    "grid.metachunk.size": "6",
    "grid.compression": "off",
    "grid.oio.version": "4.2",
}
LEGACY = {
    **{key: value for key, value in MODERN.items() if "fullpath" not in key},
    "grid.oio.version": "4.0",
    "grid.chunk.id": ID,
    "grid.content.container": "C0" * 32,
    "grid.content.path": "old path",
    "grid.content.version": "5",
    "grid.content.id": "99" * 16,
}


def write(path: Path, attributes: dict[str, str]) -> Path:
    path.touch()
    for name, value in attributes.items():
        os.setxattr(path, "user." + name, value.encode())
    return path


def without(attributes: dict[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in attributes.items() if name not in names}


# --- volumes ------------------------------------------------------------------------------------


def test_a_volume_tells_namespace_and_service(tmp_path: Path) -> None:
    for name, value in (("ns", "NS"), ("id", "NS-rawx-1"), ("type", "rawx")):
        os.setxattr(tmp_path, f"user.server.{name}", value.encode())
    assert check_volume(str(tmp_path)) == ("NS", "NS-rawx-1")
    with pytest.raises(exc.OioException, match=r"server\.type.*'rawx' instead of 'meta2'"):
        check_volume_for_service_type(str(tmp_path), "meta2")


@pytest.mark.parametrize("missing", ["ns", "id", "type"])
def test_what_a_volume_does_not_tell_is_named(tmp_path: Path, missing: str) -> None:
    for name, value in (("ns", "NS"), ("id", "NS-rawx-1"), ("type", "rawx")):
        if name != missing:
            os.setxattr(tmp_path, f"user.server.{name}", value.encode())
    with pytest.raises(exc.OioException, match=rf"user\.server\.{missing}"):
        check_volume(str(tmp_path))


def test_a_volume_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(exc.OioException, match="No such file"):
        check_volume(str(tmp_path / "absent"))


# --- chunks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_id", [ID, ID.lower()])
def test_the_full_path_tells_the_object(tmp_path: Path, chunk_id: str) -> None:
    link = encode_fullpath("acme", "other", "link", 13, CONTENT_ID)
    path = write(tmp_path / ID, {**MODERN, "oio.content.fullpath:" + LINK_ID: link})
    with open(path, "rb") as file:
        meta, attributes = read_chunk_metadata(file, chunk_id)
    assert meta == {
        "chunk_id": ID, "chunk_pos": "0.1", "chunk_size": "3", "chunk_hash": "AB" * 16,
        "container_id": cid_from_name("acme", "media"), "content_path": "a b", "content_version": "12",
        "content_id": CONTENT_ID, "content_policy": "EC", "content_chunkmethod": "ec/algo=x,k=2,m=1",
        "metachunk_size": "6", "metachunk_hash": "CD" * 16, "compression": "off", "oio_version": "4.2",
        "full_path": FULL_PATH, "links": {LINK_ID: link},
    }  # fmt: skip
    assert attributes["oio.content.fullpath:" + ID] == FULL_PATH
    meta, _attributes = read_chunk_metadata(str(path), LINK_ID)
    assert (meta["content_path"], meta["chunk_id"], meta["links"]) == ("link", LINK_ID, {ID: FULL_PATH})


def test_the_full_path_wins_over_older_attributes(tmp_path: Path) -> None:
    meta, _attributes = read_chunk_metadata(write(tmp_path / ID, {**LEGACY, **MODERN}), ID)
    assert (meta["content_path"], meta["content_version"]) == ("a b", "12")


def test_older_chunks_are_described_by_their_attributes(tmp_path: Path) -> None:
    meta, _attributes = read_chunk_metadata(write(tmp_path / ID, LEGACY), ID)
    assert (meta["content_path"], meta["content_version"], meta["container_id"]) == ("old path", "5", "C0" * 32)
    assert "full_path" not in meta and meta["links"] == {}


@pytest.mark.parametrize("version", ["4.2", "4.10", "5"])
def test_a_recent_chunk_needs_a_full_path(tmp_path: Path, version: str) -> None:
    path = write(tmp_path / ID, {**LEGACY, "grid.oio.version": version})
    with pytest.raises(exc.FaultyChunk) as caught:
        read_chunk_metadata(path, ID)
    assert [error.attribute for error in caught.value.args] == ["oio.content.fullpath:" + ID]


def test_a_malformed_full_path_is_a_missing_one(tmp_path: Path) -> None:
    path = write(tmp_path / ID, {**MODERN, "oio.content.fullpath:" + ID: "a/b/c"})
    with pytest.raises(exc.FaultyChunk) as caught:
        read_chunk_metadata(path, ID)
    assert "oio.content.fullpath:" + ID in [error.attribute for error in caught.value.args]


def test_everything_that_is_missing_is_named(tmp_path: Path) -> None:
    names = ("grid.chunk.position", "grid.content.storage_policy")
    with pytest.raises(exc.FaultyChunk) as caught:
        read_chunk_metadata(write(tmp_path / ID, without(MODERN, *names)), ID)
    assert all(isinstance(error, exc.MissingAttribute) for error in caught.value.args)
    assert sorted(error.attribute for error in caught.value.args) == sorted(names)
    optional = ("grid.chunk.hash", "grid.chunk.size", "grid.metachunk.hash", "grid.compression")
    read_chunk_metadata(write(tmp_path / LINK_ID, {
        **without(MODERN, *optional), "oio.content.fullpath:" + LINK_ID: FULL_PATH,
    }), LINK_ID)  # fmt: skip


def test_attributes_of_another_chunk(tmp_path: Path) -> None:
    path = write(tmp_path / LINK_ID, LEGACY)
    with pytest.raises(exc.MissingAttribute) as caught:
        read_chunk_metadata(path, LINK_ID)
    assert caught.value.attribute == "grid.chunk.id"
    meta, _attributes = read_chunk_metadata(path, LINK_ID, for_conversion=True)
    assert meta["chunk_id"] == ID


# --- operator -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", True), ("12.3", True), ("1234567890", True), ("12345678901", False), ("0.", True), (ID, False),
        ("123456789012345678901234", False), ("AB", False), ("", False), ("http://a/b", False), (4, True),
    ],
)  # fmt: skip
def test_positions_are_short_numbers(text: Any, expected: bool) -> None:
    assert looks_like_chunk_position(text) is expected


class FakeContent:
    """An object of one chunk per host; a rebuild puts the new chunk where ``target`` tells."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.deleted: list[str] = []
        self.blob_client = self
        self.told: list[Any] = []
        self.chunks = ChunksHelper([{"pos": "0", "url": f"http://{host}/{ID}"} for host in "ab"])

    def rebuild_chunk(self, chunk_id: str | None, **kwargs: Any) -> int:
        self.told.append((chunk_id, kwargs))
        if chunk_id is not None:
            self.chunks.filter(id=chunk_id, host=kwargs["service_id"])[0].url = self.target
        return 3

    def occupies(self, url: str) -> bool:
        return len(self.chunks.filter(url=url)) > 0

    def chunk_delete(self, url: str, **_kwargs: Any) -> None:
        self.deleted.append(url)


class Factory:
    def __init__(self, content: FakeContent) -> None:
        self.content = content

    def get(self, *_args: Any, **_kwargs: Any) -> FakeContent:
        return self.content


class Rdir:
    def __init__(self) -> None:
        self.deleted: list[Any] = []

    def chunk_delete(self, *names: str, **_kwargs: Any) -> None:
        self.deleted.append(names)


@pytest.mark.parametrize("named", [f"http://a/{ID}", ID])
@pytest.mark.parametrize(("target", "moved"), [(f"http://c/{ID}", True), (f"http://a/{ID}", False)])
def test_a_chunk_that_came_back_at_its_place_is_not_deleted(named: str, target: str, moved: bool) -> None:
    content, rdir = FakeContent(target), Rdir()
    operator = ChunkOperator({"namespace": "NS"}, content_factory=Factory(content), rdir_client=rdir)
    assert operator.rebuild("C", "O", named, rawx_id="a", try_chunk_delete=True) == 3
    assert content.deleted == ([f"http://a/{ID}"] if moved else [])
    assert rdir.deleted == ([("a", "C", "O", ID)] if moved else [])


def test_the_options_of_a_rebuild_have_the_defaults_of_repair_tools() -> None:
    content = FakeContent(f"http://c/{ID}")
    operator = ChunkOperator({"namespace": "NS"}, content_factory=Factory(content))
    operator.rebuild("C", "O", f"http://b/{ID}")
    (chunk_id, options) = content.told[0]
    assert (chunk_id, options["service_id"]) == (ID, "b")
    assert options["allow_frozen_container"] and options["allow_same_rawx"]
    assert not options["read_all_available_sources"]
    assert content.deleted == []
    operator.rebuild("C", "O", "12.3", allow_frozen_container=False, allow_same_rawx=False,
                     read_all_available_sources=True, try_chunk_delete=True)  # fmt: skip
    (chunk_id, options) = content.told[1]
    assert (chunk_id, options["chunk_pos"]) == (None, "12.3")
    assert not options["allow_frozen_container"] and not options["allow_same_rawx"]
    assert options["read_all_available_sources"]
    assert content.deleted == []
