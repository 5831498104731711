# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Writing replicated chunks to rawx that work, refuse, hang, die or lie."""

from __future__ import annotations

import hashlib
import io
import os
import socket
import time
from unittest.mock import patch

import pytest
from blake3 import blake3

from oio.api import io as oio_io
from oio.api.replication import FakeChecksum, ReplicatedMetachunkWriter, ReplicatedWriteHandler
from oio.common import blocksums
from oio.common import exceptions as exc
from oio.common.storage_method import STORAGE_METHODS

THREE = STORAGE_METHODS.load("plain/nb_copy=3")
LARGE = os.urandom((9 << 20) + 5)


def write(cluster, sysmeta, data, size=None, chunks=None, **kwargs):
    chunks = chunks or cluster.metachunk(3)
    checksum = hashlib.md5()
    source = io.BytesIO(data) if isinstance(data, bytes) else data
    kwargs = {"connection_timeout": 1.0, "write_timeout": 0.5, "read_timeout": 1.0, "reqid": "req-1", **kwargs}
    writer = ReplicatedMetachunkWriter(sysmeta, chunks, checksum, THREE, **kwargs)
    return (*writer.stream(source, size), checksum)


@pytest.mark.parametrize("size", [0, 1, 4096, 32768, 262144, 262145, 1 << 20, len(LARGE)])
def test_every_copy_gets_the_data_and_its_checksums(cluster, sysmeta, size):
    data = LARGE[:size]
    length, digest, chunks, checksum = write(cluster, sysmeta, data)
    expected = hashlib.md5(data).hexdigest()
    assert (length, digest, checksum.hexdigest()) == (size, expected, expected)
    assert [(chunk["hash"], chunk["size"]) for chunk in chunks] == [(expected, size)] * 3
    for chunk in chunks:
        stored = cluster.stored(chunk)
        assert stored.body == data
        assert stored.headers["transfer-encoding"] == "chunked"
        assert stored.headers["x-oio-chunk-meta-chunk-pos"] == "0"
        assert stored.headers["x-oio-chunk-meta-chunk-id"] == chunk["url"][-64:]
        assert stored.headers["x-oio-req-id"] == "req-1"
        assert set(map(str.strip, stored.headers["trailer"].split(","))) == set(stored.trailers)
        assert stored.trailers["x-oio-chunk-meta-chunk-hash"] == expected
        blocksums.verify(stored.trailers["x-oio-chunk-meta-block-sums"], data)


def test_reads_no_more_than_the_size(cluster, sysmeta):
    source = io.BytesIO(b"x" * 100000)
    length, _, chunks, _ = write(cluster, sysmeta, source, size=70000)
    assert (length, source.tell()) == (70000, 70000)
    assert cluster.stored(chunks[0]).body == b"x" * 70000


def test_connections_are_used_again(cluster, sysmeta):
    for _ in range(5):
        write(cluster, sysmeta, b"data")
    assert [len(rawx._peers) for rawx in cluster.rawx] == [1, 1, 1]


def test_second_metachunk_is_hashed_apart(cluster, sysmeta):
    checksum = hashlib.md5(b"before")
    writer = ReplicatedMetachunkWriter(sysmeta, cluster.metachunk(3), checksum, THREE)
    _, digest, _ = writer.stream(io.BytesIO(b"after"), None)
    assert digest == hashlib.md5(b"after").hexdigest()
    assert checksum.hexdigest() == hashlib.md5(b"beforeafter").hexdigest()


@pytest.mark.parametrize("algorithm, calls", [("md5", 1), ("sha256", 1), (None, 0)])
def test_hashlib_new_is_called_once_or_never(cluster, sysmeta, algorithm, calls):
    with patch("hashlib.new", wraps=hashlib.new) as new:
        _, digest, chunks, _ = write(cluster, sysmeta, b"data", chunk_checksum_algo=algorithm)
    assert [call.args[0] for call in new.call_args_list] == [algorithm] * calls
    assert digest == getattr(hashlib, algorithm or "md5")(b"data").hexdigest()
    assert chunks[0]["hash"] == digest
    if algorithm is None:
        assert cluster.stored(chunks[0]).trailers == {}


def test_copy_of_a_fragment_keeps_the_kind_of_its_hash(cluster, sysmeta):
    """Chunks are also copied one by one, fragments among them: their BLAKE3 hash must not become an MD5."""
    stg = STORAGE_METHODS.load("ec/algo=isa_l_rs_cauchy,k=2,m=1")
    for known, expected in ((blake3(b"data").hexdigest().upper(), blake3(b"data").hexdigest()),
                            (None, blake3(b"data").hexdigest()),
                            (hashlib.md5(b"data").hexdigest(), hashlib.md5(b"data").hexdigest())):  # fmt: skip
        chunks = cluster.metachunk(1)
        meta = {**sysmeta, "chunk_hash": known, "metachunk_hash": "AB" * 16, "metachunk_size": "8"}
        writer = ReplicatedMetachunkWriter(meta, chunks, FakeChecksum("AB" * 16), stg, quorum=1)
        _, digest, written = writer.stream(io.BytesIO(b"data"), None)
        assert digest == written[0]["hash"] == expected
        stored = cluster.stored(written[0])
        assert stored.trailers["x-oio-chunk-meta-chunk-hash"] == expected
        assert stored.headers["x-oio-chunk-meta-metachunk-hash"] == "AB" * 16


def test_fake_checksum():
    fake = FakeChecksum("abcd")
    fake.update(b"data")
    assert fake.hexdigest() == "abcd"


# --- failures ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"x" * 5000, LARGE])
@pytest.mark.parametrize(
    "script, error",
    [
        ({"put_status": 500}, "HTTP 500"),
        ({"put_status": 409}, "HTTP 409"),
        ({"put_early": 503}, "HTTP 503"),
        ({"put_die": 1000}, "connection"),
        ({"put_silent": True}, "Chunk write timeout 0.5 seconds"),
        ({"put_headers": {"x-oio-chunk-meta-chunk-hash": "00"}}, "checksum mismatch: "),
        ({"put_headers": {"x-oio-chunk-meta-chunk-size": "3"}}, "chunk size mismatch: "),
    ],
)
def test_one_bad_copy_is_left_out(cluster, sysmeta, data, script, error):
    chunks = cluster.metachunk(3)
    cluster.rawx[1].script = script
    length, _, written, _ = write(cluster, sysmeta, data, chunks=chunks)
    assert length == len(data)
    assert written == [chunks[0], chunks[2]]
    assert error in chunks[1]["error"]
    assert all(cluster.stored(chunk).body == data for chunk in written)


def test_stuck_copy_is_dropped_after_the_write_timeout(cluster, sysmeta):
    cluster.grow(3)
    cluster.rawx[0].script = {"put_stuck": True, "receive_buffer": 4096}
    chunks = cluster.metachunk(3)
    data = LARGE * 3
    start = time.monotonic()
    length, _, written, _ = write(cluster, sysmeta, data, chunks=chunks)
    assert time.monotonic() - start < 5
    assert length == len(data)
    assert written == chunks[1:]
    assert chunks[0]["error"] == "Chunk write timeout 0.5 seconds"
    assert all(cluster.stored(chunk).body == data for chunk in written)


def unreachable():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}/{0:064d}"


def test_unreachable_copy_is_left_out(cluster, sysmeta):
    chunks = cluster.metachunk(3)
    chunks[0]["url"] = unreachable()
    _, _, written, _ = write(cluster, sysmeta, b"data", chunks=chunks)
    assert written == chunks[1:]
    assert "connect" in chunks[0]["error"]


@pytest.mark.parametrize("data", [b"x" * 5000, LARGE])
@pytest.mark.parametrize(
    "script, error",
    [
        ({"put_status": 500}, exc.ServiceBusy),
        ({"put_status": 409}, exc.Conflict),
        ({"put_early": 503}, exc.ServiceBusy),
        ({"put_die": 1000}, exc.ServiceBusy),
        ({"put_silent": True}, exc.OioTimeout),
        ({"put_headers": {"x-oio-chunk-meta-chunk-hash": "00"}}, exc.ServiceBusy),
    ],
)
def test_below_the_quorum(cluster, sysmeta, data, script, error):
    chunks = cluster.metachunk(3)
    cluster.rawx[0].script = cluster.rawx[2].script = script
    start = time.monotonic()
    with pytest.raises(error) as caught:
        write(cluster, sysmeta, data, chunks=chunks)
    assert "RAWX write failure, quorum not reached (1/2): " in str(caught.value)
    assert time.monotonic() - start < 3, "timeouts must not add up"
    for chunk in chunks:
        assert chunk["url"] in str(caught.value)
    if error is exc.Conflict:
        assert caught.value.http_status == 409


def test_all_unreachable(cluster, sysmeta):
    chunks = [{"url": unreachable(), "pos": "0"} for _ in range(3)]
    with pytest.raises(exc.ServiceBusy, match=r"quorum not reached \(0/2\)"):
        write(cluster, sysmeta, b"data", chunks=chunks)


def test_quorum_argument(cluster, sysmeta):
    chunks = cluster.metachunk(3)
    cluster.rawx[0].script = {"put_status": 500}
    with pytest.raises(exc.ServiceBusy, match=r"\(2/3\)"):
        write(cluster, sysmeta, b"data", chunks=chunks, quorum=3)
    with pytest.raises(ValueError):
        oio_io.MetachunkWriter()


@pytest.mark.parametrize(
    "failure, expected",
    [
        (OSError("disk"), exc.SourceReadError),
        (ValueError("closed file"), exc.SourceReadError),
        (exc.SourceReadTimeout("late"), exc.SourceReadTimeout),
        (KeyError("bug"), KeyError),
    ],
)
@pytest.mark.parametrize("good", [0, 1 << 20])
def test_source_failure_leaves_nothing_behind(cluster, sysmeta, failure, expected, good):
    class Source:
        left = good

        def read(self, size):
            if not self.left:
                raise failure
            size = min(size, self.left)
            self.left -= size
            return b"x" * size

    with pytest.raises(expected):
        write(cluster, sysmeta, Source())
    assert not any(rawx.chunks for rawx in cluster.rawx)


def test_stale_pooled_connection_is_replaced(cluster, sysmeta):
    chunks = write(cluster, sysmeta, b"data")[2]
    peer = cluster.of(chunks[0])._peers[-1]
    peer.shutdown(socket.SHUT_RDWR)
    assert len(write(cluster, sysmeta, b"data")[2]) == 3


# --- spare chunks -----------------------------------------------------------------------------------


def spare_provider(cluster, asked, count=1):
    def provide(good, broken):
        asked.append((list(good), list(broken)))
        start = len(cluster.rawx)
        cluster.grow(start + count)
        return [{"url": rawx.url("F" * 64), "pos": "0"} for rawx in cluster.rawx[start:]]

    return provide


def test_spare_for_a_rawx_that_cannot_be_reached(cluster, sysmeta):
    chunks = cluster.metachunk(3)
    chunks[1]["url"] = unreachable()
    asked = []
    data = LARGE
    _, _, written, _ = write(
        cluster, sysmeta, data, chunks=chunks, spare_provider=spare_provider(cluster, asked)
    )
    assert asked == [([chunks[0], chunks[2]], [chunks[1]])]
    assert len(written) == 3
    assert all(cluster.stored(chunk).body == data for chunk in written)


def test_spare_for_a_rawx_that_refuses_a_small_object(cluster, sysmeta):
    chunks = cluster.metachunk(3)
    for rawx in cluster.rawx[:2]:
        rawx.script = {"put_status": 503}
    asked = []
    _, _, written, _ = write(
        cluster, sysmeta, b"small", chunks=chunks, spare_provider=spare_provider(cluster, asked, 2)
    )
    assert len(asked) == 1
    assert len(written) == 3
    assert all(cluster.stored(chunk).body == b"small" for chunk in written)


def test_no_spare_to_be_had(cluster, sysmeta):
    def none_left(_good, _broken):
        raise exc.SpareChunkException("none")

    chunks = cluster.metachunk(3)
    cluster.rawx[0].script = {"put_status": 503}
    _, _, written, _ = write(cluster, sysmeta, b"small", chunks=chunks, spare_provider=none_left)
    assert written == chunks[1:]


# --- objects ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size, positions", [(0, 1), (1, 1), (1000, 1), (1001, 2), (3000, 3), (3500, 4)])
@pytest.mark.parametrize("as_generator", [False, True])
def test_object_is_cut_in_metachunks(cluster, sysmeta, size, positions, as_generator):
    from oio.common.utils import GeneratorIO

    sysmeta["chunk_size"] = 1000
    data = LARGE[:size]
    source = GeneratorIO(data[i : i + 7] for i in range(0, size, 7)) if as_generator else io.BytesIO(data)
    prepared = []

    def prepare():
        for metachunk in cluster.preparer(3)():
            prepared.append(metachunk)
            yield metachunk

    perfdata = {}
    handler = ReplicatedWriteHandler(source, sysmeta, prepare, THREE, perfdata=perfdata)
    chunks, length, digest = handler.stream()
    assert len(prepared) == positions
    assert (length, digest) == (size, hashlib.md5(data).hexdigest())
    first_copies = chunks[::3]
    assert [chunk["pos"] for chunk in first_copies] == [str(pos) for pos in range(positions)]
    assert b"".join(cluster.stored(chunk).body for chunk in first_copies) == data
    for chunk in chunks:
        assert chunk["hash"] == hashlib.md5(cluster.stored(chunk).body).hexdigest()
    assert perfdata["data_size"] == size
    assert {"connect.AVG", "upload.SD", "upload." + chunks[0]["url"], "overall"} <= set(perfdata["rawx"])


def test_metachunks_given_as_a_dictionary(cluster, sysmeta):
    sysmeta["chunk_size"] = 10
    prepared = {0: cluster.metachunk(3), 1: cluster.metachunk(3, 1)}
    chunks, length, _ = ReplicatedWriteHandler(io.BytesIO(b"x" * 20), sysmeta, prepared, THREE).stream()
    assert (len(chunks), length) == (6, 20)


def test_memory_is_bounded(cluster, sysmeta):
    """A large object streams without being held: the most memory in use stays near the window."""
    import tracemalloc

    class Source:
        left = 48 << 20

        def read(self, size):
            size = min(size, self.left)
            self.left -= size
            return bytes(size)

    class Null:
        def send(self, data):
            return None

        def getresponse(self):
            return self

        def close(self):
            return None

        status = 201

        def getheader(self, name):
            return None

    tracemalloc.start()
    try:
        with patch("oio.api.io.http_connect", lambda *args, **kwargs: Null()):
            length, _, written, _ = write(cluster, sysmeta, Source())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (length, len(written)) == (48 << 20, 3)
    assert peak < 16 << 20


def test_foreign_connection_gets_the_plain_protocol(cluster, sysmeta):
    """A program may replace `http_connect`: then neither trailers nor block sums are sent."""
    sent = []

    class Connection:
        def __init__(self, *args, **kwargs):
            self.args, self.kwargs, self.body = args, kwargs, b""
            sent.append(self)

        def send(self, data):
            self.body += data

        def getresponse(self):
            return self

        def close(self):
            return None

        status = 201
        reason = "Created"

        def getheader(self, name):
            return None

    chunks = cluster.metachunk(3)
    with patch("oio.api.io.http_connect", Connection):
        _, digest, written, _ = write(cluster, sysmeta, b"hello", chunks=chunks)
    assert written == chunks
    assert digest == hashlib.md5(b"hello").hexdigest()
    for chunk, connection in zip(chunks, sent, strict=True):
        netloc, method, path, headers = connection.args
        assert (f"http://{netloc}{path}", method, connection.kwargs) == (chunk["url"], "PUT", {"scheme": "http"})
        assert connection.body == b"5\r\nhello\r\n0\r\n\r\n"
        assert "Trailer" not in headers
