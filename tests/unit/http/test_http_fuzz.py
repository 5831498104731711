# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Hostile input: no bytes crash or hang the server, and its parser is never laxer than llhttp.

llhttp (through httptools) is the oracle: whatever our parsers accept, it accepts with the same result.
"""

from __future__ import annotations

import re
import socket
import threading

import httptools
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oio.http import wire
from oio.http.body import ChunkedBody, Source
from oio.http.errors import HeadError
from oio.http.server import Response, Server, ServerConfig

SLOW = settings(deadline=None, max_examples=300, suppress_health_check=list(HealthCheck))
LIVE = settings(deadline=None, max_examples=120, suppress_health_check=list(HealthCheck))

SEEDS = [
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"PUT /a?b=c HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello",
    b"PUT /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTrailer: x\r\n\r\n"
    b"5\r\nhello\r\n6;a=b\r\n world\r\n0\r\nx: y\r\n\r\n",
    b"HEAD http://h/a HTTP/1.1\r\nConnection: close\r\n\r\n",
    b"POST /a HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n",
    b"PUT / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc",
]
SPICE = [
    b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b";", b"0", b"-1", b"+1", b"0x1", b"Content-Length: 1\r\n",
    b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: identity\r\n", b"\xff", b"\x0b", b"\x7f", b"chunked",
    b"\r\n\r\n", b"GET ", b"HTTP/1.1", b"HTTP/1.0", b", ", b"fffffffffffffffff", b"a" * 5000, b"Host: y\r\n",
]  # fmt: skip


@st.composite
def mutated(draw) -> bytes:
    """Valid requests with pieces deleted, doubled, replaced or spiced."""
    data = b"".join(draw(st.lists(st.sampled_from(SEEDS), min_size=1, max_size=3)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        kind = draw(st.integers(0, 3))
        if kind == 0:
            data = data[:at] + draw(st.sampled_from(SPICE)) + data[at:]
        elif kind == 1:
            data = data[:at] + data[at + draw(st.integers(1, 10)) :]
        elif kind == 2:
            data = data[:at] + draw(st.binary(min_size=1, max_size=3)) + data[at + 1 :]
        else:
            end = draw(st.integers(at, min(len(data), at + 40)))
            data = data[:end] + data[at:end] + data[end:]
    return data


class Oracle:
    """Collects what llhttp understands."""

    def __init__(self):
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = b""
        self.url = b""
        self.complete = False
        self.head_done = False
        self.trailers: list[tuple[bytes, bytes]] = []

    def on_url(self, url):
        self.url += url

    def on_header(self, name, value):
        (self.trailers if self.head_done else self.headers).append((name, value))

    def on_headers_complete(self):
        self.head_done = True

    def on_body(self, body):
        self.body += body

    def on_message_complete(self):
        self.complete = True


def _joined(pairs) -> dict[str, str]:
    headers: dict[str, str] = {}
    for name, value in pairs:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1").strip(" \t")
        headers[key] = f"{headers[key]}, {text}" if key in headers else text
    return headers


@SLOW
@given(mutated())
def test_accepted_heads_are_accepted_by_llhttp_with_the_same_result(data):
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return
    try:
        line, headers = wire.parse_head(data[:end])
        method, target, is_11 = wire.parse_request_line(line)
        length, chunked = wire.request_framing(headers, is_11)
    except HeadError:
        return
    if method not in wire._METHODS:
        return
    oracle = Oracle()
    parser = httptools.HttpRequestParser(oracle)
    parser.feed_data(data[: end + 4])
    assert oracle.head_done
    assert parser.get_method().decode() == method
    assert parser.get_http_version() == ("1.1" if is_11 else "1.0")
    assert oracle.url.decode().endswith(target) or oracle.url.startswith(b"http")
    assert _joined(oracle.headers) == headers
    assert oracle.complete == (not chunked and not length)


@SLOW
@given(mutated(), st.integers(1, 9))
def test_accepted_answers_are_accepted_by_llhttp(data, step):
    data = data.replace(b"GET / HTTP/1.1", b"HTTP/1.1 200 OK").replace(b"PUT /a HTTP/1.1", b"HTTP/1.1 404 ")
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return
    try:
        line, headers = wire.parse_head(data[:end])
        _, status, _ = wire.parse_status_line(line)
    except HeadError:
        return
    coding = headers.get("transfer-encoding")
    length = headers.get("content-length")
    if (coding is not None and (coding.lower() != "chunked" or length is not None)) or status < 200:
        return
    if length is not None and not re.fullmatch("[0-9]{1,18}", length):
        return
    oracle = Oracle()
    parser = httptools.HttpResponseParser(oracle)
    parser.feed_data(data[: end + 4])
    assert oracle.head_done
    assert parser.get_status_code() == status
    assert _joined(oracle.headers) == headers


class Malformed(Exception):
    pass


class Pieces(Source):
    """A source that gives its data in pieces of a given size."""

    def __init__(self, data: bytes, step: int) -> None:
        class Feed:
            def recv(self, count, flags=0):
                nonlocal data
                piece, data = data[:step], data[step:]
                return piece

            def recvmsg_into(self, buffers, *_):
                piece = self.recv(0)
                first, side = memoryview(buffers[0]), memoryview(buffers[1])
                head, tail = piece[: len(first)], piece[len(first) :]
                first[: len(head)] = head
                side[: len(tail)] = tail
                return len(piece), [], 0, None

        super().__init__(Feed())

    def truncated(self):
        return EOFError()

    def malformed(self, message):
        return Malformed(message)


def _decode(data: bytes, step: int, buffer_size: int) -> tuple[bytes, dict[str, str], bytes]:
    source = Pieces(data, step)
    body = ChunkedBody(source)
    buffer = bytearray(buffer_size)
    got = b""
    while count := body.readinto(buffer):
        got += buffer[:count]
    rest = bytes(source.buf[source.pos : source.end])
    while piece := source.sock.recv(0):
        rest += piece
    return got, body.trailers, rest


CHUNK_LINES = [
    b"5\r\nhello\r\n", b"0\r\n\r\n", b"0\r\nx: y\r\n\r\n", b"5;a=b\r\nhello\r\n", b'1;q="x y";z\r\na\r\n',
    b"00005\r\nhello\r\n", b"a\r\n0123456789\r\n", b"A\r\n0123456789\r\n",
]  # fmt: skip


@st.composite
def chunked(draw) -> bytes:
    """Chunked bodies, mostly valid."""
    data = b"".join(draw(st.lists(st.sampled_from(CHUNK_LINES), max_size=5))) + b"0\r\n\r\n"
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(data)))
        spice = draw(st.sampled_from(SPICE) | st.binary(max_size=2))
        data = data[:at] + spice + data[at + draw(st.integers(0, 2)) :]
    return data


@SLOW
@given(chunked(), st.integers(1, 50), st.sampled_from([1, 3, 70000]))
def test_accepted_chunks_are_accepted_by_llhttp_with_the_same_result(data, step, size):
    oracle = Oracle()
    parser = httptools.HttpRequestParser(oracle)
    parser.feed_data(b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
    try:
        got, trailers, rest = _decode(data, step, size)
    except (Malformed, EOFError):
        return
    parser.feed_data(data[: len(data) - len(rest)])
    assert oracle.complete
    assert oracle.body == got
    assert _joined(oracle.trailers) == trailers


@SLOW
@given(
    st.lists(st.binary(min_size=1, max_size=200)),
    st.integers(1, 100),
    st.sampled_from([1, 7, 20000]),
    st.binary(max_size=20),
)
def test_chunked_round_trip(pieces, step, size, after):
    data = b"".join([b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces])
    got, trailers, rest = _decode(data + b"0\r\nA: b\r\n\r\n" + after, step, size)
    assert (got, trailers, rest) == (b"".join(pieces), {"a": "b"}, after)


@pytest.fixture(scope="module")
def live():
    crashes = []
    hook = threading.excepthook
    threading.excepthook = lambda info: crashes.append(info)

    def handler(request):
        return Response(200, b"%d" % len(request.read_all(1 << 20)))

    config = ServerConfig(timeout_head_s=5, timeout_body_s=5, max_threads=16)
    server = Server(handler, [("127.0.0.1", 0)], config)
    server.start()
    yield server
    server.stop(1)
    threading.excepthook = hook
    assert not crashes


ANSWER = re.compile(rb"HTTP/1\.1 ([0-9]{3}) [^\r\n]*\r\n(?:[^\r\n]+\r\n)*\r\n")


def _talk(server: Server, data: bytes, step: int) -> bytes:
    with socket.create_connection(server.addresses[0], 10) as sock:
        answer = b""
        try:
            for i in range(0, len(data), step):
                sock.sendall(data[i : i + step])
            sock.shutdown(socket.SHUT_WR)
            while piece := sock.recv(65536):
                answer += piece
        except OSError as error:
            assert not isinstance(error, TimeoutError), "the server hangs"
        return answer


@LIVE
@given(data=mutated() | st.binary(max_size=200), step=st.sampled_from([1, 2, 17, 100000]))
def test_no_bytes_hang_or_crash_the_server(live, data, step):
    if len(data) > 400 and step < 17:
        step = 17
    answer = _talk(live, data, step)
    allowed = {b"100", b"200", b"400", b"408", b"413", b"414", b"417", b"431", b"505"}
    position = 0
    while position < len(answer):
        match = ANSWER.match(answer, position)
        assert match, answer[position:]
        assert match[1] in allowed
        position = match.end()
        length = re.search(rb"Content-Length: ([0-9]+)", match[0])
        is_head = length is not None and not ANSWER.match(answer, position) and b"HEAD" not in data
        if length is not None and (is_head or b"HEAD" not in data):
            position += int(length[1])
        elif length is not None:
            following = answer.find(b"HTTP/1.1 ", position)
            position = following if following >= 0 else len(answer)
        if b"Connection: close" in match[0]:
            assert answer.find(b"HTTP/1.1 ", position) < 0
    # The server still works.
    assert _talk(live, SEEDS[0], 1000).startswith(b"HTTP/1.1 200")


def test_no_connection_is_left_behind(live, until):
    _talk(live, b"PUT / HTTP/1.1\r\nContent-Length: 5\r\n\r\nab", 5)
    until(lambda: live.connections_count == 0)


@pytest.mark.parametrize("cut", range(1, len(SEEDS[2]), 7))
def test_truncated_requests(live, cut):
    answer = _talk(live, SEEDS[2][:cut], 1000)
    assert b"HTTP/1.1 200" not in answer
