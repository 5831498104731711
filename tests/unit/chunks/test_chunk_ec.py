# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Erasure coding: every tolerated loss, ranges, corruption, rebuilding."""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import random
import socket
import time
from unittest.mock import patch

import pytest
from blake3 import blake3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oio.api.ec import (
    ECChunkDownloadHandler,
    EcMetachunkWriter,
    ECRebuildHandler,
    ECWriteHandler,
    ec_encode,
    meta_chunk_range_to_segment_range,
    segment_range_to_fragment_range,
)
from oio.common import blocksums
from oio.common import exceptions as exc
from oio.common.storage_functions import _sort_chunks, fetch_stream_ec
from oio.common.storage_method import STORAGE_METHODS, ECDriverError

MIB = 1 << 20
DATA = os.urandom(3 * MIB + 1234)


def method(k=4, m=2, algorithm="isa_l_rs_cauchy"):
    return STORAGE_METHODS.load(f"ec/algo={algorithm},k={k},m={m}")


def write(cluster, sysmeta, data, stg=None, **kwargs):
    stg = stg or method()
    kwargs = {"connection_timeout": 1.0, "write_timeout": 0.5, **kwargs}
    handler = ECWriteHandler(
        io.BytesIO(data), sysmeta, cluster.preparer(stg.expected_chunks, True), stg, **kwargs
    )
    return handler.stream()


def write_metachunk(cluster, sysmeta, data, chunks, stg=None, **kwargs):
    kwargs = {"connection_timeout": 1.0, "write_timeout": 0.5, "reqid": "req-1", **kwargs}
    writer = EcMetachunkWriter(sysmeta, chunks, hashlib.md5(), stg or method(), **kwargs)
    return writer.stream(data if hasattr(data, "read") else io.BytesIO(data), None)


def fetch(chunks, ranges=None, stg=None, **kwargs):
    kwargs = {"connection_timeout": 1.0, "read_timeout": 0.4, **kwargs}
    return b"".join(fetch_stream_ec(_sort_chunks(chunks, True), ranges, stg or method(), **kwargs))


def gets(cluster):
    return [request for rawx in cluster.rawx for request in rawx.requests if request[0] == "GET"]


# --- writing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 4096, MIB, MIB + 1, len(DATA)])
def test_fragments_and_trailers(cluster, sysmeta, size):
    data = DATA[:size]
    stg = method()
    chunks, length, digest = write(cluster, sysmeta, data)
    assert (length, digest) == (size, hashlib.md5(data).hexdigest())
    assert [(chunk["hash"], chunk["size"]) for chunk in chunks] == [(digest, size)] * 6
    segments = [data[i : i + MIB] for i in range(0, size, MIB)]
    encoded = [stg.driver.encode(segment) for segment in segments]
    for chunk in chunks:
        stored = cluster.stored(chunk)
        body = b"".join(fragments[chunk["num"]] for fragments in encoded)
        assert stored.body == body
        assert stored.trailers == {
            "x-oio-chunk-meta-metachunk-size": str(size),
            "x-oio-chunk-meta-metachunk-hash": digest,
            "x-oio-chunk-meta-chunk-hash": blake3(body).hexdigest(),
            "x-oio-chunk-meta-block-sums": stored.trailers["x-oio-chunk-meta-block-sums"],
        }
        blocksums.verify(stored.trailers["x-oio-chunk-meta-block-sums"], body)
        assert set(map(str.strip, stored.headers["trailer"].split(","))) == set(stored.trailers)


@pytest.mark.parametrize("algorithm, calls", [("sha256", 7), (None, 1)])
def test_explicit_algorithm(cluster, sysmeta, algorithm, calls):
    chunks = cluster.metachunk(6, ec=True)
    with patch("hashlib.new", wraps=hashlib.new) as new:
        _, digest, written = write_metachunk(
            cluster, sysmeta, b"data", chunks, chunk_checksum_algo=algorithm
        )
    assert [call.args[0] for call in new.call_args_list] == [algorithm or "md5"] * calls
    assert digest == hashlib.new(algorithm or "md5", b"data").hexdigest()
    trailers = cluster.stored(written[0]).trailers
    assert ("x-oio-chunk-meta-chunk-hash" in trailers) is (algorithm is not None)


def test_metachunks_are_whole_segments(cluster, sysmeta):
    sysmeta["chunk_size"] = 400000
    chunks, length, _ = write(cluster, sysmeta, DATA)
    assert length == len(DATA)
    sizes = [chunk["size"] for chunk in chunks if chunk["num"] == 0]
    assert sizes == [MIB, MIB, MIB, 1234]
    assert fetch(chunks) == DATA


@pytest.mark.parametrize(
    "script, error",
    [
        ({"put_status": 500}, "resp: HTTP 500"),
        ({"put_status": 409}, "resp: HTTP 409"),
        ({"put_early": 503}, "resp: HTTP 503"),
        ({"put_silent": True}, "resp: Chunk write timeout 0.5 seconds"),
        ({"put_stuck": True}, "timeout 0.5 seconds"),
        ({"put_die": 100}, "resp: "),
    ],
)
@pytest.mark.parametrize("size", [5000, len(DATA)])
def test_failed_chunks_come_last(cluster, sysmeta, script, error, size):
    chunks = cluster.metachunk(6, ec=True)
    cluster.rawx[1].script = script
    length, _, result = write_metachunk(cluster, sysmeta, DATA[:size], chunks)
    assert length == size
    assert [chunk["num"] for chunk in result] == [0, 2, 3, 4, 5, 1]
    assert [bool(chunk.get("error")) for chunk in result] == [False] * 5 + [True]
    assert error in result[-1]["error"]
    assert fetch(result[:5]) == DATA[:size]


def test_unreachable_chunk(cluster, sysmeta):
    chunks = cluster.metachunk(6, ec=True)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        chunks[3]["url"] = f"http://127.0.0.1:{listener.getsockname()[1]}/{0:064d}"
    result = write_metachunk(cluster, sysmeta, b"data", chunks)[2]
    assert result[-1]["error"].startswith("connect: ")
    assert len(result) == 6


@pytest.mark.parametrize(
    "script, error",
    [
        ({"put_status": 500}, exc.ServiceBusy),
        ({"put_status": 409}, exc.Conflict),
        ({"put_silent": True}, exc.ServiceBusy),
    ],
)
def test_below_the_quorum(cluster, sysmeta, script, error):
    cluster.grow(6)
    cluster.rawx[0].script = cluster.rawx[4].script = script
    start = time.monotonic()
    with pytest.raises(error, match=r"quorum not reached \(4/5\)"):
        write(cluster, sysmeta, DATA)
    assert time.monotonic() - start < 3


def test_what_was_written_below_the_quorum_is_told(cluster, sysmeta):
    chunks = cluster.metachunk(6, ec=True)
    cluster.rawx[0].script = cluster.rawx[4].script = {"put_status": 409}
    with pytest.raises(exc.Conflict):
        write_metachunk(cluster, sysmeta, b"data", chunks)
    digest = hashlib.md5(b"data").hexdigest()
    assert [(chunk["hash"], "error" in chunk) for chunk in chunks] == [(digest, n in (0, 4)) for n in range(6)]


def test_source_error(cluster, sysmeta):
    class Source:
        left = 2

        def read(self, size):
            if not self.left:
                raise OSError("disk")
            self.left -= 1
            return b"x" * size

    with pytest.raises(exc.SourceReadError):
        write_metachunk(cluster, sysmeta, Source(), cluster.metachunk(6, ec=True))
    assert not any(rawx.chunks for rawx in cluster.rawx)


@pytest.mark.parametrize("data", [b"", b"small"])
def test_spare_for_a_small_object(cluster, sysmeta, data):
    chunks = cluster.metachunk(6, ec=True)
    cluster.rawx[2].script = {"put_status": 503}

    def provide(good, broken):
        assert [chunk["num"] for chunk in good] == [0, 1, 3, 4, 5]
        cluster.grow(7)
        return [{"url": cluster.rawx[6].url("F" * 64), "pos": broken[0]["pos"]}]

    result = write_metachunk(cluster, sysmeta, data, chunks, spare_provider=provide)[2]
    good = [chunk for chunk in result if not chunk.get("error")]
    assert sorted(chunk["num"] for chunk in good) == list(range(6))
    assert fetch([chunk for chunk in good if chunk["num"] in (1, 2, 4, 5)]) == data


# --- reading ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "k, m, algorithm",
    [
        (2, 1, "isa_l_rs_cauchy"),
        (4, 2, "isa_l_rs_cauchy"),
        (3, 3, "liberasurecode_rs_vand"),
        (6, 3, "isa_l_rs_vand"),
        (2, 5, "isa_l_rs_cauchy"),
    ],
)
def test_every_loss_that_is_tolerated(cluster, sysmeta, k, m, algorithm):
    stg = method(k, m, algorithm)
    data = DATA[: MIB + 77]
    chunks, _, _ = write(cluster, sysmeta, data, stg)
    patterns = [lost for count in range(m + 1) for lost in itertools.combinations(range(k + m), count)]
    if len(patterns) > 60:
        patterns = random.sample(patterns, 60)
    for lost in patterns:
        left = [chunk for chunk in chunks if chunk["num"] not in lost]
        assert fetch(left, stg=stg) == data, lost
    left = chunks[m + 1 :]
    with pytest.raises(exc.ServiceUnavailable, match="Not enough valid sources"):
        fetch(left, stg=stg)


def test_data_chunks_are_preferred(cluster, sysmeta):
    chunks, _, _ = write(cluster, sysmeta, DATA)
    random.shuffle(chunks)
    perfdata = {}
    assert fetch(chunks, perfdata=perfdata) == DATA
    assert len(gets(cluster)) == 4
    assert [len(rawx.requests) for rawx in cluster.rawx] == [2, 2, 2, 2, 1, 1]
    assert "range" not in gets(cluster)[0][2]
    assert perfdata["rawx"]["ec"] >= 0
    assert len([key for key in perfdata["rawx"] if key.startswith("connect.http")]) == 4


def test_down_services_are_avoided(cluster, sysmeta):
    chunks, _, _ = write(cluster, sysmeta, DATA)
    for chunk in chunks:
        chunk["score"] = 0 if chunk["num"] == 1 else 50
    assert fetch(chunks) == DATA
    assert len(cluster.rawx[1].requests) == 1


def test_ranges_are_aligned_on_fragments(cluster, sysmeta):
    chunks, _, _ = write(cluster, sysmeta, DATA)
    assert fetch(chunks, [(MIB + 5, 2 * MIB + 5)]) == DATA[MIB + 5 : 2 * MIB + 6]
    size = method().ec_fragment_size
    assert {request[2]["range"] for request in gets(cluster)} == {f"bytes={size}-{3 * size - 1}"}


BROKEN = [
    {"get_status": 404},
    {"get_status": 503},
    {"get_silent": True},
    {"get_truncate": 0},
    {"get_truncate": 300000},
    {"get_stall": 300000},
    {"get_short": 5},
    {"get_corrupt": 10},
    {"get_corrupt": 62},
    {"get_corrupt": 500000},
    {"get_whole": True},
]


@pytest.mark.parametrize("script", BROKEN)
@pytest.mark.parametrize("ranges", [None, [(MIB + 10, 3 * MIB + 10)]])
def test_bad_chunks_are_replaced(cluster, sysmeta, script, ranges):
    chunks, _, _ = write(cluster, sysmeta, DATA)
    cluster.rawx[0].script = cluster.rawx[3].script = script
    want = DATA if ranges is None else DATA[MIB + 10 : 3 * MIB + 11]
    assert fetch(chunks, ranges) == want


def test_corruption_without_block_sums_is_caught_by_headers(cluster, sysmeta):
    chunks, _, _ = write(cluster, sysmeta, DATA)
    for rawx in cluster.rawx:
        rawx.script = {"get_no_sums": True}
    cluster.rawx[2].script = {"get_no_sums": True, "get_corrupt": 59}
    assert fetch(chunks) == DATA


def test_too_many_corrupt_chunks_never_give_wrong_bytes(cluster, sysmeta):
    chunks, _, _ = write(cluster, sysmeta, DATA)
    for rawx in cluster.rawx[:3]:
        rawx.script = {"get_corrupt": 500000}
    with pytest.raises(exc.OioException):
        fetch(chunks)


def test_too_many_timeouts_raise(cluster, sysmeta):
    """A stream that cannot go on raises: it does not end early as if the object were shorter."""
    chunks, _, _ = write(cluster, sysmeta, DATA)
    for rawx in cluster.rawx[:3]:
        rawx.script = {"get_stall": 300000}
    with pytest.raises(exc.OioException):
        fetch(chunks, read_timeout=0.2)


@pytest.mark.parametrize("rebuild", [False, True])
def test_silent_services_are_waited_for_together(cluster, sysmeta, rebuild):
    chunks, _, _ = write(cluster, sysmeta, DATA)
    for rawx in cluster.rawx[:2]:
        rawx.script = {"get_silent": True}
    start = time.monotonic()
    if rebuild:
        b"".join(ECRebuildHandler(chunks, 1, method(), read_timeout=1.0).rebuild()[1])
    else:
        assert fetch(chunks, read_timeout=1.0) == DATA
    assert 1.0 <= time.monotonic() - start < 1.9


def silent_host():
    """A listener whose kernel answers no more connections: to connect there takes all the time that is given."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=0)
    waiting = []
    for _ in range(4):
        one = socket.socket()
        one.setblocking(False)
        one.connect_ex(listener.getsockname())
        waiting.append(one)
    return listener, waiting


def test_dead_hosts_are_waited_for_together(cluster, sysmeta):
    chunks, _, _ = write(cluster, sysmeta, DATA)
    fresh = cluster.metachunk(6, ec=True)
    listener, waiting = silent_host()
    try:
        for group in (chunks, fresh):
            for number in (0, 1, 2):
                group[number]["url"] = f"http://127.0.0.1:{listener.getsockname()[1]}/{number:064d}"
        timeouts = {"connection_timeout": 1.0, "read_timeout": 1.0}
        start = time.monotonic()
        with pytest.raises(exc.ServiceUnavailable):
            fetch(chunks, **timeouts)
        assert 1.0 <= time.monotonic() - start < 2.7
        start = time.monotonic()
        with pytest.raises(exc.ServiceBusy, match=r"quorum not reached \(3/5\)"):
            write_metachunk(cluster, sysmeta, b"data", fresh, **timeouts)
        assert 1.0 <= time.monotonic() - start < 2.7
        assert [chunk["error"] for chunk in fresh[:3]] == ["connect: Connection timeout 1.0 second"] * 3
    finally:
        for one in (listener, *waiting):
            one.close()


def test_all_missing(cluster, sysmeta):
    chunks, _, _ = write(cluster, sysmeta, DATA)
    for rawx in cluster.rawx:
        rawx.chunks.clear()
    with pytest.raises(exc.UnrecoverableContent, match="Cannot download position 0"):
        fetch(chunks)
    with pytest.raises(exc.NotFound):
        ECChunkDownloadHandler(method(), chunks, None, None, {}).get_stream()


def test_mixed_failures(cluster, sysmeta):
    chunks, _, _ = write(cluster, sysmeta, DATA)
    for index, rawx in enumerate(cluster.rawx[:4]):
        rawx.script = {"get_status": 404 if index % 2 else 500}
    with pytest.raises(exc.ServiceUnavailable, match=r"Not enough valid sources to read \(\d/4\)"):
        ECChunkDownloadHandler(method(), chunks, None, None, {}).get_stream()
    with pytest.raises(exc.ServiceUnavailable, match="Error while downloading position 0"):
        fetch(chunks)


def test_empty_metachunk(cluster, sysmeta):
    chunks, _, _ = write(cluster, sysmeta, b"")
    stream = ECChunkDownloadHandler(method(), chunks, None, None, {}).get_stream()
    assert list(stream) == []
    stream.close()
    assert fetch(chunks) == b""
    assert gets(cluster) == []


def test_parts(cluster, sysmeta):
    chunks, _, _ = write(cluster, sysmeta, DATA)
    stream = ECChunkDownloadHandler(method(), chunks, 10, 29, {}).get_stream()
    (part,) = stream
    assert (part["start"], part["end"], b"".join(part["iter"])) == (10, 29, DATA[10:30])
    stream.close()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_size_range_and_loss(cluster, sysmeta, data):
    size = data.draw(st.one_of(st.integers(1, 5000), st.integers(MIB - 3, MIB + 3), st.integers(1, len(DATA))))
    sysmeta["chunk_size"] = data.draw(st.sampled_from([300, 600000, 10 << 20]))
    if sysmeta["chunk_size"] == 300:
        size = min(size, 5000)
    chunks, _, _ = write(cluster, sysmeta, DATA[:size], write_timeout=5.0)
    lost = data.draw(st.sets(st.integers(0, 5), max_size=2))
    start = data.draw(st.integers(0, size - 1))
    end = data.draw(st.integers(start, size + 10))
    left = [chunk for chunk in chunks if chunk["num"] not in lost]
    assert fetch(left, [(start, end)], read_timeout=5.0) == DATA[start : min(end + 1, size)]


# --- rebuilding -------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [0, 3, 5])
@pytest.mark.parametrize("read_all", [False, True])
@pytest.mark.parametrize("size", [0, 100, len(DATA)])
def test_rebuild(cluster, sysmeta, missing, read_all, size):
    chunks, _, _ = write(cluster, sysmeta, DATA[:size])
    others = [chunk for chunk in chunks if chunk["num"] != missing]
    handler = ECRebuildHandler(others, missing, method(), read_all_available_sources=read_all)
    chunk_size, fragments = handler.rebuild()
    lost = cluster.stored(chunks[missing]).body
    assert chunk_size == len(lost)
    assert b"".join(fragments) == lost
    assert len(gets(cluster)) == 5


@pytest.mark.parametrize("script", [{"get_corrupt": 300000}, {"get_truncate": 300000}, {"get_short": 7}])
@pytest.mark.parametrize("read_all", [False, True])
def test_rebuild_around_a_bad_chunk(cluster, sysmeta, script, read_all):
    chunks, _, _ = write(cluster, sysmeta, DATA)
    cluster.rawx[2].script = script
    others = [chunk for chunk in chunks if chunk["num"] != 0]
    _, fragments = ECRebuildHandler(others, 0, method(), read_all_available_sources=read_all).rebuild()
    assert b"".join(fragments) == cluster.stored(chunks[0]).body


def test_rebuild_with_too_few_chunks(cluster, sysmeta):
    chunks, _, _ = write(cluster, sysmeta, DATA)
    cluster.rawx[1].script = {"get_status": 500}
    with pytest.raises(exc.UnrecoverableContent):
        ECRebuildHandler(chunks[:4], 5, method()).rebuild()


class FakeAnswer:
    """An answer of another HTTP library."""

    status = 200
    reason = "OK"

    def __init__(self, body, size=None):
        self._body = io.BytesIO(body)
        self._headers = {} if size is None else {"x-oio-chunk-meta-chunk-size": str(size)}

    def getresponse(self):
        return self

    def getheader(self, name, default=None):
        return self._headers.get(name.lower(), default)

    def getheaders(self):
        return list(self._headers.items())

    def read(self, size=-1):
        return self._body.read(size)

    def close(self):
        return None


def fake_chunks(count):
    return [{"url": f"http://127.0.0.1:1/{i:064X}", "pos": f"0.{i}", "num": i, "size": 1000} for i in range(count)]


def test_rebuild_from_foreign_answers():
    stg = method()
    fragments = stg.driver.encode(b"x" * 1000)
    answers = iter([FakeAnswer(fragments[i]) for i in (1, 2, 3, 4)])
    with patch("oio.api.io.http_connect", lambda *args, **kwargs: next(answers)):
        size, rebuilt = ECRebuildHandler(fake_chunks(6)[1:5], 0, stg).rebuild()
        assert size is None
        assert b"".join(rebuilt) == fragments[0]


def test_rebuild_with_a_corrupt_foreign_fragment():
    stg = method()
    fragments = stg.driver.encode(b"x" * 1000)
    bad = b"\0" * len(fragments[1])
    for read_all, expected in ((False, None), (True, fragments[0])):
        answers = iter([FakeAnswer(body, len(body)) for body in (bad, *fragments[2:])])
        with patch("oio.api.io.http_connect", lambda *args, it=answers, **kwargs: next(it)):
            handler = ECRebuildHandler(fake_chunks(6)[1:], 0, stg, read_all_available_sources=read_all)
            _, rebuilt = handler.rebuild()
            if expected is None:
                with pytest.raises(ECDriverError):
                    list(rebuilt)
            else:
                assert b"".join(rebuilt) == expected


# --- tools ------------------------------------------------------------------------------------------


def test_encoder():
    stg = method()
    encoder = ec_encode(stg, 6)
    encoder.send(None)
    assert encoder.send(DATA[:1000]) is None
    fragments = encoder.send(DATA[1000 : 2 * MIB + 10])
    assert [len(fragment) for fragment in fragments] == [2 * stg.ec_fragment_size] * 6
    first = [fragment[: stg.ec_fragment_size] for fragment in fragments]
    assert stg.driver.decode(first[2:]) == DATA[:MIB]
    assert stg.driver.decode(encoder.send(b"")) == DATA[2 * MIB : 2 * MIB + 10]
    empty = ec_encode(stg, 6)
    empty.send(None)
    assert empty.send(b"") == [b""] * 6


@pytest.mark.parametrize(
    "given_range, segment_size, result",
    [((100, 600), 256, (0, 767)), ((100, 600), 512, (0, 1023)), ((300, None), 256, (256, None))],
)
def test_segment_ranges(given_range, segment_size, result):
    assert meta_chunk_range_to_segment_range(*given_range, segment_size) == result


def test_fragment_ranges():
    assert segment_range_to_fragment_range(0, 1023, 512, 300) == (0, 599)
    assert segment_range_to_fragment_range(512, None, 512, 300) == (300, None)
