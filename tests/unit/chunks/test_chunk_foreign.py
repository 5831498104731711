# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Programs that replace `http_connect`: the contract's protocol, and green exceptions from the replacement.

Run in a subprocess, because loading the green module changes the family of the timeouts.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]

PRELUDE = '''
import hashlib, io, random
from collections import deque
from unittest.mock import patch
from oio.common import green, exceptions as exc
from oio.api.ec import ECChunkDownloadHandler, EcMetachunkWriter, ECWriteHandler
from oio.api.replication import ReplicatedMetachunkWriter
from oio.common.storage_method import STORAGE_METHODS

EC = STORAGE_METHODS.load("ec/algo=liberasurecode_rs_vand,k=4,m=2")
REPLI = STORAGE_METHODS.load("plain/nb_copy=3")
META = dict(id="AB" * 16, version="1", content_path="o", chunk_method="x", policy="P", container_id="C0" * 32,
            full_path="a/c/o/1/" + "AB" * 16, chunk_size=1 << 20)

class Fake:
    """One request: `outcome` is a status, or what connecting (`at_connect`) or answering raises."""
    reason = "Fake"
    def __init__(self, outcome, body=b"", headers=(), slow=0):
        self.outcome, self.readable, self.slow = outcome, io.BytesIO(body), slow
        self.headers = {"content-length": str(len(body)), **dict(headers)}
        self.sent = b""
    def send(self, data):
        self.sent += data
    def getresponse(self):
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        self.status = self.outcome
        return self
    def getheader(self, name, default=None):
        return self.headers.get(name.lower(), default)
    def getheaders(self):
        return list(self.headers.items())
    def read(self, size):
        if self.slow:
            green.sleep(self.slow)
        return self.readable.read(size)
    def close(self):
        pass

def connecting(outcomes):
    waiting, made = deque(outcomes), []
    def http_connect(host, method, path, headers=None, scheme=None):
        outcome = waiting.popleft()
        if isinstance(outcome, BaseException):
            raise outcome
        made.append((method, path, dict(headers), outcome))
        return outcome
    return patch("oio.api.io.http_connect", http_connect), made

def chunks(count, ec):
    return [dict(url=f"http://10.0.0.1:{i}/{i:064X}", num=i, pos=f"0.{i}" if ec else "0", size=0)
            for i in range(count)]

def decode(raw):
    body, trailers = b"", {}
    while True:
        size, _, raw = raw.partition(b"\\r\\n")
        size = int(size, 16)
        if not size:
            break
        body += raw[:size]
        assert raw[size:size + 2] == b"\\r\\n"
        raw = raw[size + 2:]
    for line in raw.strip().split(b"\\r\\n"):
        name, _, value = line.partition(b": ")
        trailers[name.decode()] = value.decode()
    return body, trailers
'''


def run(code):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PRELUDE + textwrap.dedent(code)],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_ec_write():
    run(
        """
        data = random.randbytes((2 << 20) + 77)
        how, made = connecting([Fake(201) for _ in range(6)])
        total = hashlib.md5()
        with how:
            writer = EcMetachunkWriter(META, chunks(6, True), total, EC, reqid="r")
            with patch("hashlib.new", wraps=hashlib.new) as new:
                size, digest, written = writer.stream(io.BytesIO(data), len(data))
        assert new.call_count == 7, new.call_count
        assert (size, digest) == (len(data), hashlib.md5(data).hexdigest())
        bodies = []
        for method, path, headers, fake in made:
            body, trailers = decode(fake.sent)
            bodies.append(body)
            assert trailers == {
                "x-oio-chunk-meta-metachunk-size": str(len(data)), "x-oio-chunk-meta-metachunk-hash": digest,
                "x-oio-chunk-meta-chunk-hash": hashlib.md5(body).hexdigest()}, trailers
            assert headers["Trailer"].split(", ") == list(trailers)
        size = EC.ec_fragment_size
        parts = [[body[i:i + size] for body in bodies] for i in range(0, len(bodies[0]), size)]
        assert b"".join(EC.driver.decode(part[2:]) for part in parts) == data
        """
    )


def test_ec_write_errors():
    run(
        """
        for outcome, error in (
            (green.ConnectionTimeout(1.0), "connect: Connection timeout 1.0 second"),
            (Exception("failure"), "connect: failure"),
            (Fake(green.ChunkWriteTimeout(1.0)), "resp: Chunk write timeout 1.0 second"),
            (Fake(Exception("failure")), "resp: failure"),
            (Fake(500), "resp: HTTP 500"),
        ):
            if isinstance(outcome, green.Timeout):
                outcome.cancel()
            how, made = connecting([Fake(201) for _ in range(5)] + [outcome])
            with how:
                result = EcMetachunkWriter(META, chunks(6, True), hashlib.md5(), EC).stream(io.BytesIO(b"x"), 1)[2]
            assert len(result) == 6
            assert result[5]["error"] == error, result[5]
        how, made = connecting([Fake(201) for _ in range(4)] + [Fake(500), Fake(500)])
        with how:
            try:
                EcMetachunkWriter(META, chunks(6, True), hashlib.md5(), EC).stream(io.BytesIO(b"x"), 1)
            except exc.ServiceBusy as err:
                assert "RAWX write failure, quorum not reached (4/5)" in str(err)
            else:
                raise AssertionError
        """
    )


@pytest.mark.parametrize("ec", [True, False])
def test_source_errors(ec):
    run(
        f"""
        class Source:
            def __init__(self, error):
                self.error = error
            def read(self, size):
                raise self.error
        for error, expected in (
            (OSError("failure"), exc.SourceReadError),
            (ValueError("failure"), exc.SourceReadError),
            (green.SourceReadTimeout(None), exc.SourceReadTimeout),
            (green.Timeout(None), exc.OioTimeout),
            (RuntimeError("failure"), RuntimeError),
        ):
            how, made = connecting([Fake(201) for _ in range(6)])
            with how:
                if {ec}:
                    writer = EcMetachunkWriter(META, chunks(6, True), hashlib.md5(), EC)
                else:
                    writer = ReplicatedMetachunkWriter(META, chunks(3, False), hashlib.md5(), REPLI)
                try:
                    writer.stream(Source(error), 10)
                except BaseException as err:
                    assert type(err) is expected, err
                else:
                    raise AssertionError
        """
    )


def test_replicated_write_errors():
    run(
        """
        def outcomes(bad):
            return [Fake(201), Fake(201), bad()], [Fake(201), bad(), bad()]
        for bad, expected in (
            (lambda: Fake(500), exc.ServiceBusy),
            (lambda: Fake(409), exc.Conflict),
            (lambda: Fake(Exception("failure")), exc.ServiceBusy),
            (lambda: Exception("failure"), exc.ServiceBusy),
            (lambda: Fake(green.ChunkWriteTimeout(None)), exc.OioTimeout),
            (lambda: green.ConnectionTimeout(None), exc.OioTimeout),
            (lambda: Fake(201, headers={"x-oio-chunk-meta-chunk-hash": "ABCD"}), exc.ServiceBusy),
        ):
            good_enough, too_bad = outcomes(bad)
            how, made = connecting(good_enough)
            with how:
                writer = ReplicatedMetachunkWriter(META, chunks(3, False), hashlib.md5(), REPLI)
                size, digest, written = writer.stream(io.BytesIO(b"data"), 10)
            assert (size, digest, len(written)) == (4, hashlib.md5(b"data").hexdigest(), 2)
            assert decode(made[0][3].sent) == (b"data", {"": ""})
            how, made = connecting(too_bad)
            with how:
                writer = ReplicatedMetachunkWriter(META, chunks(3, False), hashlib.md5(), REPLI)
                try:
                    writer.stream(io.BytesIO(b"data"), 10)
                except exc.OioException as err:
                    assert type(err) is expected, repr(err)
                else:
                    raise AssertionError
        """
    )


def test_ec_read():
    run(
        """
        data = random.randbytes((2 << 20) + 77)
        encoded = [EC.driver.encode(data[i:i + (1 << 20)]) for i in range(0, len(data), 1 << 20)]
        bodies = [b"".join(parts) for parts in zip(*encoded)]
        def fetch(outcomes, start=None, end=None, **kwargs):
            how, made = connecting(outcomes)
            listed = chunks(6, True)
            listed[0]["size"] = len(data)
            with how:
                stream = ECChunkDownloadHandler(EC, listed, start, end, {}, **kwargs).get_stream()
                try:
                    return b"".join(block for part in stream for block in part["iter"]), made
                finally:
                    stream.close()
        answers = [Fake(200, body) for body in bodies]
        random.shuffle(answers)
        got, made = fetch(answers)
        assert got == data and len(made) == 4 and made[0][0] == "GET"
        # failures are replaced
        for bad in (Fake(404), Fake(500), Exception("failure"), green.ConnectionTimeout(None),
                    Fake(green.ChunkReadTimeout(None))):
            got, made = fetch([bad, *[Fake(200, body) for body in bodies[1:]]])
            assert got == data
        # slow ones too
        slow = Fake(200, bodies[0], slow=1)
        got, made = fetch([slow, *[Fake(200, body) for body in bodies[1:]]], read_timeout=0.1)
        assert got == data
        # too many
        for bad, expected in ((lambda: Fake(404), exc.NotFound), (lambda: Fake(500), exc.ClientException)):
            try:
                fetch([bad() for _ in range(3)] + [Fake(200, body) for body in bodies[3:]])
            except expected:
                continue
            raise AssertionError
        try:
            fetch([Fake(200, body, slow=1) for body in bodies], read_timeout=0.02)
        except exc.OioException:
            pass
        else:
            raise AssertionError("a stream must not end early")
        # a range
        size = EC.ec_fragment_size
        part = [Fake(206, body[size:2 * size], {"content-range": f"bytes {size}-{2 * size - 1}/{len(body)}"})
                for body in bodies]
        got, made = fetch(part, (1 << 20) + 5, (1 << 20) + 50)
        assert got == data[(1 << 20) + 5:(1 << 20) + 51]
        assert made[0][2]["Range"] == f"bytes={size}-{2 * size - 1}"
        """
    )
