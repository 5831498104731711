# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Reading replicated chunks from copies that work, are missing, corrupt, truncated or stuck."""

from __future__ import annotations

import io
import os
import time

import pytest

from oio.api import io as oio_io
from oio.api._transport import ChunkReadTimeout
from oio.api.io import ChunkReader
from oio.api.replication import ReplicatedWriteHandler
from oio.common import exceptions as exc
from oio.common.storage_functions import _sort_chunks, fetch_stream
from oio.common.storage_method import STORAGE_METHODS

THREE = STORAGE_METHODS.load("plain/nb_copy=3")
DATA = os.urandom((3 << 20) + 1234)
MIB = 1 << 20


@pytest.fixture
def chunks(cluster, sysmeta):
    """Three copies of DATA. Without scores the copies are read in this order."""
    written, _, _ = ReplicatedWriteHandler(io.BytesIO(DATA), sysmeta, cluster.preparer(3), THREE).stream()
    return written


def fetch(chunks, ranges=None, **kwargs):
    kwargs = {"connection_timeout": 1.0, "read_timeout": 0.4, **kwargs}
    return b"".join(fetch_stream(_sort_chunks(chunks, False), ranges, THREE, **kwargs))


def expected(ranges):
    return b"".join(DATA[-end:] if start is None else DATA[start : None if end is None else end + 1]
                    for start, end in ranges)  # fmt: skip


RANGES = [
    [(0, 0)],
    [(10, 20)],
    [(None, 5)],
    [(MIB - 1, MIB)],
    [(MIB, 2 * MIB - 1)],
    [(100, 3 * MIB + 5)],
    [(3 * MIB, None)],
    [(5, 9), (0, 3), (None, 2)],
    [(0, 10 * MIB)],
]


@pytest.mark.parametrize("ranges", RANGES)
@pytest.mark.parametrize("ignored", [False, True])
def test_ranges(cluster, chunks, ranges, ignored):
    for rawx in cluster.rawx:
        rawx.script = {"get_whole": ignored}
    assert fetch(chunks, ranges) == expected(ranges)


def test_range_out_of_the_object_gives_nothing(chunks):
    assert fetch(chunks, [(len(DATA), None)]) == b""


def test_one_request_for_one_object(cluster, chunks):
    perfdata = {}
    assert fetch(chunks, perfdata=perfdata) == DATA
    gets = [request for rawx in cluster.rawx for request in rawx.requests if request[0] == "GET"]
    assert len(gets) == 1
    assert "range" not in gets[0][2]
    assert perfdata["data_size"] == len(DATA)
    assert {"connect." + chunks[0]["url"], "download." + chunks[0]["url"], "overall"} <= set(perfdata["rawx"])
    assert 0 < perfdata["ttfb"] <= perfdata["ttlb"]


BROKEN = [
    {"get_status": 404},
    {"get_status": 500},
    {"get_silent": True},
    {"get_truncate": 0},
    {"get_truncate": 100},
    {"get_truncate": 2 * MIB + 100},
    {"get_stall": MIB + 100},
    {"get_short": 10},
    {"get_corrupt": 0},
    {"get_corrupt": MIB + 1000},
    {"get_corrupt": len(DATA) - 1},
]


@pytest.mark.parametrize("script", BROKEN)
@pytest.mark.parametrize("ranges", [None, [(5, 3 * MIB)], [(None, MIB + 500)]])
def test_falls_back_to_another_copy(cluster, chunks, script, ranges):
    cluster.rawx[0].script = script
    assert fetch(chunks, ranges) == (expected(ranges) if ranges else DATA)


def test_resumes_where_the_first_copy_failed(cluster, chunks):
    cluster.rawx[0].script = {"get_corrupt": 2 * MIB + 3}
    assert fetch(chunks) == DATA
    assert cluster.rawx[1].requests[-1][2]["range"] == f"bytes={2 * MIB}-{len(DATA) - 1}"


def test_each_copy_has_a_different_bad_block(cluster, chunks):
    for index, rawx in enumerate(cluster.rawx):
        rawx.script = {"get_corrupt": index * MIB + 5}
    assert fetch(chunks) == DATA


def test_the_same_block_is_bad_everywhere(cluster, chunks):
    for index, rawx in enumerate(cluster.rawx):
        rawx.script = {"get_corrupt": MIB + index}
    stream = fetch_stream(_sort_chunks(chunks, False), None, THREE)
    assert next(stream) == DATA[:MIB]
    with pytest.raises(exc.CorruptedChunk):
        next(stream)


def test_timeout_everywhere(cluster, chunks):
    for rawx in cluster.rawx:
        rawx.script = {"get_stall": 100}
    start = time.monotonic()
    with pytest.raises(ChunkReadTimeout) as caught:
        fetch(chunks, read_timeout=0.2)
    assert time.monotonic() - start < 2
    assert str(caught.value) == "Chunk read timeout 0.2 seconds"
    assert isinstance(caught.value, exc.OioTimeout)


def test_all_missing(cluster, chunks):
    for rawx in cluster.rawx:
        rawx.chunks.clear()
    stream = fetch_stream(_sort_chunks(chunks, False), None, THREE)
    with pytest.raises(exc.UnrecoverableContent, match="Cannot download position 0: "):
        next(stream)


def test_mixed_failures(cluster, chunks):
    cluster.rawx[0].script = {"get_status": 404}
    cluster.rawx[1].script = {"get_status": 500}
    cluster.rawx[2].stop()
    with pytest.raises(exc.ServiceUnavailable, match="Error while downloading position 0: "):
        fetch(chunks)


def test_missing_position(chunks):
    with pytest.raises(exc.OioException, match="position 1"):
        list(fetch_stream({0: chunks, 2: chunks}, None, THREE))


def test_empty_object_asks_nothing(cluster, sysmeta):
    written, _, _ = ReplicatedWriteHandler(io.BytesIO(b""), sysmeta, cluster.preparer(3), THREE).stream()
    assert fetch(written) == b""
    assert not [request for rawx in cluster.rawx for request in rawx.requests if request[0] == "GET"]


def test_several_metachunks(cluster, sysmeta):
    sysmeta["chunk_size"] = 100000
    written, _, _ = ReplicatedWriteHandler(io.BytesIO(DATA), sysmeta, cluster.preparer(3), THREE).stream()
    assert fetch(written) == DATA
    assert fetch(written, [(99990, 300010)]) == DATA[99990:300011]


def test_abandoned_stream(cluster, chunks):
    stream = fetch_stream(_sort_chunks(chunks, False), None, THREE)
    next(stream)
    stream.close()
    assert fetch(chunks) == DATA


# --- ChunkReader ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 8192, 100000, MIB, 5 * MIB])
def test_exact_blocks(chunks, size):
    if size == 1:
        reader = ChunkReader(iter(chunks), 1, {"Range": "bytes=0-99"})
        assert list(reader.stream()) == [DATA[i : i + 1] for i in range(100)]
        return
    blocks = list(ChunkReader(iter(chunks), size, {}).stream())
    assert b"".join(blocks) == DATA
    assert {len(block) for block in blocks[:-1]} <= {size}


def test_reader_tells_headers_before_reading(chunks):
    reader = ChunkReader(iter(chunks), None, {"x-oio-req-id": "abc"})
    assert reader.headers is None
    stream = reader.stream()
    assert reader.status == 200
    assert reader.reqid == "abc"
    assert reader.headers["x-oio-chunk-meta-chunk-size"] == str(len(DATA))
    assert b"".join(stream) == DATA


def test_parts(chunks):
    (part,) = ChunkReader(iter(chunks), None, {"Range": "bytes=10-29"}).get_iter()
    assert (part["start"], part["end"], part["length"]) == (10, 29, len(DATA))
    assert b"".join(part["iter"]) == DATA[10:30]


@pytest.mark.parametrize(
    "status, error", [(404, exc.NotFound), (416, exc.UnsatisfiableRange), (503, exc.ServiceBusy)]
)
def test_same_error_everywhere(cluster, chunks, status, error):
    for rawx in cluster.rawx:
        rawx.script = {"get_status": status}
    with pytest.raises(error, match="Scripted .*" + chunks[2]["url"]):
        ChunkReader(iter(chunks), None, {}).get_iter()


@pytest.mark.parametrize(
    "value, read, result",
    [
        (None, 10, "bytes=10-"),
        ("bytes=21-40", 10, "bytes=31-40"),
        ("bytes=11-", 10, "bytes=21-"),
        ("bytes=-50", 10, "bytes=-40"),
        ("bytes=0-9", 10, exc.EmptyByteRange),
        ("bytes=-10", 10, exc.EmptyByteRange),
        ("bytes=0-8", 10, exc.UnsatisfiableRange),
        ("bytes=-8", 10, exc.UnsatisfiableRange),
        ("octets", 10, ValueError),
    ],
)
def test_recover(value, read, result):
    headers = {"Range": value} if value else {}
    reader = ChunkReader(None, None, headers)
    if isinstance(result, str):
        reader.recover(read)
        assert headers["Range"] == result
    else:
        with pytest.raises(result):
            reader.recover(read)


class FakeSource:
    """An answer of another HTTP library."""

    status = 200
    reason = "OK"

    def __init__(self, *parts):
        self.parts = list(parts)

    def read(self, _size):
        part = self.parts.pop(0) if self.parts else b""
        if isinstance(part, BaseException):
            raise part
        return part

    def getheader(self, name):
        if name.lower() == "content-length":
            return str(sum(len(part) for part in self.parts if isinstance(part, bytes)))
        return None

    def getheaders(self):
        return [("content-length", self.getheader("content-length"))]

    def close(self):
        return None


def read_fake(reader, source):
    return [data for part in reader._create_iter({}, source) for data in part["iter"]]


def test_foreign_source():
    reader = ChunkReader(None, 8, {})
    assert read_fake(reader, FakeSource(b"abcd", b"1234", b"abc")) == [b"abcd1234", b"abc"]


def test_foreign_source_that_fails_midway():
    reader = ChunkReader(None, 8, {})
    reader._get_source = lambda: (FakeSource(b"efgh5678"), {})
    source = FakeSource(b"abcd", b"1234", b"abc", OSError("broken"))
    assert read_fake(reader, source) == [b"abcd1234", b"efgh5678"]
    assert reader.request_headers["Range"] == "bytes=8-"


def test_foreign_source_that_ignores_the_range_of_the_rest():
    class Whole(FakeSource):
        def getheader(self, name):
            return "12" if name.lower() == "content-length" else None

    reader = ChunkReader(None, 4, {})
    reader._get_source = lambda: (Whole(b"abc", b"d12", b"34ef", b"gh"), {})
    assert read_fake(reader, Whole(b"abcd", b"12", OSError("broken"))) == [b"abcd", b"1234", b"efgh"]


def test_foreign_source_without_alternative():
    reader = ChunkReader(None, None, {})
    reader._get_source = lambda: (None, None)
    with pytest.raises(OSError, match="broken"):
        read_fake(reader, FakeSource(b"abcd", OSError("broken")))


# --- small tools ------------------------------------------------------------------------------------


@pytest.mark.parametrize("start, skipped", [(0, 0), (10, 502), (1792, 256), (1800, 248), (512, 0)])
def test_discard_bytes(start, skipped):
    assert oio_io.discard_bytes(512, start) == skipped


def test_exp_ramp():
    ramp = oio_io.exp_ramp_gen(10, 50)
    assert [next(ramp) for _ in range(6)] == [10, 10, 20, 40, 50, 50]


def test_io_wrapper_and_close_source():
    class Source:
        def read(self, size=-1):
            return b"data"[: size if size >= 0 else None]

        def close(self):
            raise OSError("never mind")

    wrapper = oio_io.IOBaseWrapper(Source())
    assert io.BufferedReader(wrapper).read(4) == b"data"
    oio_io.close_source(Source())
    with pytest.raises(AttributeError):
        oio_io.IOBaseWrapper(object())


def test_iterator_tools():
    closed = []

    class Items(list):
        def close(self):
            closed.append(self)

    both = oio_io.Closeable(Items([1]), [2])
    assert list(both) == [1, 2]
    both.close()
    assert closed == [[1]]
    assert list(oio_io.chain(iter([1, 2, 3]))) == [1, 2, 3]
    assert list(oio_io.chain([])) == []
    assert oio_io.consume([1]) is None
    assert b"".join(oio_io.iters_to_raw_body([{"iter": [b"a", b"b"]}])) == b"ab"
    assert list(oio_io.iters_to_raw_body([])) == []
