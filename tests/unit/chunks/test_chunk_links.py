# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Asking for metachunks, and linking chunks."""

from __future__ import annotations

import time

import pytest

from oio.api.io import LinkHandler, MetachunkPreparer
from oio.common import exceptions as exc
from oio.common.storage_method import STORAGE_METHODS
from oio.common.utils import cid_from_name, compute_chunk_id

THREE = STORAGE_METHODS.load("plain/nb_copy=3")
FULLPATH = "acme/media/a%20b/1600000000000000/0123456789ABCDEF"


class Containers:
    """A container client that prepares chunks."""

    def __init__(self, method, positions):
        self.method = method
        self.positions = positions
        self.calls = []

    def content_prepare(self, *args, **kwargs):
        self.calls.append((args, kwargs))
        meta = {"chunk_method": self.method, "version": "17", "id": "AB"}
        return meta, [{"url": f"http://r/{len(self.calls)}{pos}", "pos": pos} for pos in self.positions]


def test_prepare_replicated():
    containers = Containers("plain/nb_copy=2", ["0", "0"])
    preparer = MetachunkPreparer(containers, "acct", "cont", "obj", policy="TWO", reqid="r", meta_pos=3)
    assert len(containers.calls) == 1
    assert preparer.obj_meta["version"] == "17"
    assert preparer.stg_method.nb_copy == 2
    metachunks = preparer()
    assert [chunk["pos"] for chunk in next(metachunks)] == ["3", "3"]
    assert len(containers.calls) == 1, "the next metachunk is asked for on demand only"
    assert [chunk["pos"] for chunk in next(metachunks)] == ["4", "4"]
    assert len(preparer.all_chunks_so_far()) == 4
    first, second = containers.calls
    assert first[0] == second[0] == ("acct", "cont", "obj")
    assert (first[1]["size"], first[1]["stgpol"], first[1]["reqid"]) == (1, "TWO", "r")
    assert second[1]["position"] == 4
    assert second[1]["version"] == "17"
    assert "position" not in first[1]


def test_prepare_ec():
    containers = Containers("ec/algo=isa_l_rs_cauchy,k=2,m=1", ["0.0", "0.1", "0.2"])
    metachunks = MetachunkPreparer(containers, "acct", "cont", "obj")()
    next(metachunks)
    assert [(chunk["pos"], chunk["num"]) for chunk in next(metachunks)] == [("1.0", 0), ("1.1", 1), ("1.2", 2)]


def test_deadline_is_set_again_for_each_metachunk():
    containers = Containers("plain/nb_copy=1", ["0"])
    metachunks = MetachunkPreparer(containers, "a", "c", "o", read_timeout=5.0, deadline=1.0)()
    next(metachunks)
    next(metachunks)
    assert containers.calls[0][1]["deadline"] == 1.0
    assert 3.0 < containers.calls[1][1]["deadline"] - time.monotonic() <= 5.0


class Blobs:
    """A blob client whose links fail on some hosts."""

    def __init__(self, *broken):
        self.broken = broken
        self.calls = []

    def chunk_link(self, target, link, fullpath, **kwargs):
        self.calls.append((target, link, fullpath, kwargs))
        if any(host in target for host in self.broken):
            raise exc.ServiceBusy(message="full")
        return None, target.rsplit("/", 1)[0] + "/" + link


def targets(position):
    return [{"url": f"http://host{i}/OLD{position}", "pos": str(position), "size": 1} for i in range(3)]


def link(blobs, count=2):
    chunks = {position: targets(position) for position in range(count)}
    return LinkHandler(FULLPATH, chunks, THREE, blobs, "POLICY", headers={"x-oio-req-id": "r"}).link()


def test_link():
    blobs = Blobs()
    linked = link(blobs)
    cid = cid_from_name("acme", "media")
    ids = [compute_chunk_id(cid, "a b", "1600000000000000", str(pos), "POLICY") for pos in range(2)]
    wanted = [f"http://host{i}/{ids[pos]}" for pos in range(2) for i in range(3)]
    assert [chunk["url"] for chunk in linked] == wanted
    assert blobs.calls[0][:3] == ("http://host0/OLD0", ids[0], FULLPATH)
    assert blobs.calls[0][3]["reqid"] == "r"


def test_link_with_one_failure():
    assert len(link(Blobs("host1"))) == 4


def test_link_below_the_quorum():
    with pytest.raises(exc.UnfinishedUploadException) as caught:
        link(Blobs("host0", "host2"))
    assert [chunk["url"][:12] for chunk in caught.value.chunks_already_uploaded] == ["http://host1"]
    with pytest.raises(exc.ServiceBusy, match="quorum not reached"):
        caught.value.reraise()


def test_link_when_there_is_nothing_to_link_to():
    def prepare():
        yield targets(0)
        raise exc.ServiceBusy(message="no more chunks")

    handler = LinkHandler(FULLPATH, prepare, THREE, Blobs(), "POLICY")
    with pytest.raises(exc.UnfinishedUploadException) as caught:
        handler.link()
    assert isinstance(caught.value.exception, exc.ServiceBusy)
    assert len(caught.value.chunks_already_uploaded) == 3
