# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""What the server promises: protocol, limits, answers, listeners."""

from __future__ import annotations

import logging
import os
import socket
import ssl
import time

import pytest

from oio.http.router import Router
from oio.http.server import (
    BodyTooLarge,
    FileBody,
    HttpError,
    RequestIdFilter,
    Response,
    Server,
    ServerConfig,
    current_reqid,
)

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


def test_keepalive_and_headers(serve, raw):
    seen = []

    def handler(request):
        seen.append(request)
        return Response(200, b"ok")

    connection = raw(serve(handler))
    for _ in range(3):
        connection.send(b"GET /a%20b?x=1&y=a+b%21&x=2&flag HTTP/1.1\r\nHost: h\r\nX-A: 1\r\nx-a:2 \r\n\r\n")
        status, headers, body = connection.read_answer()
        assert (status, body) == (200, b"ok")
        assert headers["connection"] == "keep-alive"
        assert "date" in headers
        assert "server" not in headers
        assert "x-oio-req-id" not in headers
    request = seen[0]
    assert request.path == "/a%20b"
    assert request.query_string == "x=1&y=a+b%21&x=2&flag"
    assert request.query == {"x": "1", "y": "a b!", "flag": ""}
    assert request.headers == {"host": "h", "x-a": "1, 2"}
    assert request.peer == "{}:{}".format(*connection.sock.getsockname())


def test_pipelining_in_order(serve, raw):
    server = serve(lambda request: Response(200, request.read_all() + request.path.encode()))
    requests = [b"PUT /%d HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc" % i for i in range(50)]
    connection = raw(server).send(b"".join(requests))
    for i in range(50):
        assert connection.read_answer()[2] == b"abc/%d" % i


@pytest.mark.parametrize("step", [1, 3, 1000])
def test_chunked_body_with_trailers_in_pieces(serve, raw, step):
    connection = raw(serve())
    data = (
        b"PUT /c HTTP/1.1\r\nTransfer-Encoding: Chunked\r\nTrailer: a\r\n\r\n"
        b"5\r\nhello\r\n6;ext=1;q=\"a b\"\r\n world\r\n0\r\nX-Hash: abc\r\nx-size: 11\r\n\r\n"
    )
    for i in range(0, len(data), step):
        connection.send(data[i : i + step])
    status, headers, body = connection.read_answer()
    assert (status, body) == (200, b"hello world")
    assert headers["x-trailers"] == "x-hash=abc,x-size=11"
    assert connection.send(GET).read_answer()[0] == 200


def test_big_chunks_are_read_into_the_callers_buffer(serve, raw):
    data = os.urandom(3 << 20)
    got = bytearray(len(data) + 10)
    counts = []

    def handler(request):
        view = memoryview(got)
        total = 0
        while count := request.readinto(view[total:]):
            counts.append(count)
            total += count
        return Response(200, str(total).encode(), [("t", str(request.trailers))])

    connection = raw(serve(handler))
    connection.send(b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
    for size in (1 << 20, 1 << 16, 100, (2 << 20) - (1 << 16) - 100):
        part, data = data[:size], data[size:]
        connection.send(b"%x\r\n" % size + part + b"\r\n")
        got_part = part
    connection.send(b"0\r\nt: 1\r\n\r\n")
    status, headers, body = connection.read_answer()
    assert (status, body) == (200, b"%d" % (3 << 20))
    assert headers["t"] == "{'t': '1'}"
    assert bytes(got[(3 << 20) - len(got_part) : 3 << 20]) == got_part


BAD_REQUESTS = {
    "bare LF": b"GET / HTTP/1.1\nHost: x\n\n",
    "bare LF in header": b"GET / HTTP/1.1\r\nA: b\nC: d\r\n\r\n",
    "bare CR": b"GET / HTTP/1.1\r\nA: b\rC: d\r\n\r\n",
    "NUL": b"GET / HTTP/1.1\r\nA: b\0c\r\n\r\n",
    "control character": b"GET / HTTP/1.1\r\nA: b\x01c\r\n\r\n",
    "no colon": b"GET / HTTP/1.1\r\nnonsense\r\n\r\n",
    "blank before colon": b"GET / HTTP/1.1\r\nContent-Length : 3\r\n\r\nabc",
    "empty name": b"GET / HTTP/1.1\r\n: x\r\n\r\n",
    "folded header": b"GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n",
    "two lengths": b"PUT / HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
    "list of lengths": b"PUT / HTTP/1.1\r\nContent-Length: 3, 3\r\n\r\nabc",
    "signed length": b"PUT / HTTP/1.1\r\nContent-Length: +3\r\n\r\nabc",
    "negative length": b"PUT / HTTP/1.1\r\nContent-Length: -3\r\n\r\nabc",
    "empty length": b"PUT / HTTP/1.1\r\nContent-Length: \r\n\r\nabc",
    "hexadecimal length": b"PUT / HTTP/1.1\r\nContent-Length: 0x3\r\n\r\nabc",
    "huge length": b"PUT / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
    "length and chunked": (
        b"PUT / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    ),
    "two codings": b"PUT / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "coding twice": (
        b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    ),
    "disguised coding": b"PUT / HTTP/1.1\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "tab after coding": b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\t\r\n\r\n0\r\n\r\n",
    "chunked in 1.0": b"PUT / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "two blanks": b"GET  / HTTP/1.1\r\n\r\n",
    "no version": b"GET /\r\n\r\n",
    "version": b"GET / HTTP/11\r\n\r\n",
    "lower-case version": b"GET / http/1.1\r\n\r\n",
    "relative target": b"GET foo HTTP/1.1\r\n\r\n",
    "tab in target": b"GET /a\tb HTTP/1.1\r\n\r\n",
    "raw bytes in target": b"GET /\xc3\xa9 HTTP/1.1\r\n\r\n",
    "method": b"G(T / HTTP/1.1\r\n\r\n",
    "TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "chunk size": b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
    "chunk size 0x": b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n",
    "chunk size sign": b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n+3\r\nabc\r\n0\r\n\r\n",
    "chunk size blank": b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n 3\r\nabc\r\n0\r\n\r\n",
    "chunk size empty": b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n\r\nabc",
    "chunk size underscore": b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1_0\r\nabc",
    "chunk size huge": b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
    "chunk size bare LF": b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n",
    "chunk too long": b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n",
    "chunk extension": b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3;\x01\r\nabc\r\n0\r\n\r\n",
    "chunk line": b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3;" + b"a" * 2000,
    "trailer": b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nbad\r\n\r\n",
    "trailer bare LF": b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\na: b\n\n",
    "framing trailer": b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 1\r\n\r\n",
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_bad_request_gets_400_and_a_closed_connection(serve, raw, name):
    answered = []

    def handler(request):
        request.drain()
        answered.append(request)
        return Response()

    server = serve(handler)
    connection = raw(server).send(BAD_REQUESTS[name])
    # What follows must never be read as a request.
    try:
        connection.send(GET)
        connection.sock.shutdown(socket.SHUT_WR)
    except OSError:
        pass
    answer = connection.read_until_closed()
    assert answer.startswith(b"HTTP/1.1 400 "), answer
    assert b"\r\nConnection: close\r\n" in answer
    assert answer.count(b"HTTP/1.1 ") == 1
    assert not answered


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET /" + b"a" * 20000 + b" HTTP/1.1\r\n\r\n", 414),
        (b"GET /" + b"a" * 20000, 414),
        (b"GET / HTTP/1.1\r\nA: " + b"a" * 70000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nA: " + b"a" * 70000, 431),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 2000 + b"\r\n", 431),
        (b"GET / HTTP/2.0\r\n\r\n", 505),
        (b"GET / HTTP/1.1\r\nExpect: 200-maybe\r\n\r\n", 417),
    ],
)
def test_limits_of_the_head(serve, raw, data, status):
    connection = raw(serve()).send(data)
    connection.sock.shutdown(socket.SHUT_WR)
    assert connection.read_until_closed().startswith(b"HTTP/1.1 %d " % status)


@pytest.mark.parametrize(
    "head", [b"Content-Length: 11\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\nb\r\n"]
)
def test_body_beyond_the_limit_gets_413(serve, raw, head):
    connection = raw(serve(max_body_bytes=10)).send(b"PUT / HTTP/1.1\r\n" + head + b"hello world")
    assert connection.read_answer()[0] == 413
    connection.sock.shutdown(socket.SHUT_WR)
    assert connection.is_closed()


def test_read_all_limit_is_exact(serve, pool, url):
    server = serve(lambda request: Response(200, request.read_all(10)))
    assert pool.request("PUT", url(server), body=b"x" * 10).status == 200
    assert pool.request("PUT", url(server), body=b"x" * 11).status == 413


def test_expect_100_continue(serve, raw):
    connection = raw(serve())
    connection.send(b"PUT / HTTP/1.1\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
    interim = connection.sock.recv(25, socket.MSG_WAITALL)
    assert interim == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert connection.send(b"hello").read_answer()[2] == b"hello"


def test_expect_100_continue_refused_without_reading(serve, raw):
    connection = raw(serve(lambda request: Response(507)))
    connection.send(b"PUT / HTTP/1.1\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
    status, headers, _ = connection.read_answer()
    assert (status, headers["connection"]) == (507, "close")


def test_unread_small_body_is_skipped_and_large_one_closes(serve, raw):
    connection = raw(serve(lambda request: Response(403)))
    connection.send(b"PUT / HTTP/1.1\r\nContent-Length: 1000\r\n\r\n" + b"x" * 1000)
    assert connection.read_answer()[1]["connection"] == "keep-alive"
    connection.send(b"PUT / HTTP/1.1\r\nContent-Length: 100000000\r\n\r\n" + b"x" * 1000)
    status, headers, _ = connection.read_answer()
    assert (status, headers["connection"]) == (403, "close")
    connection.sock.shutdown(socket.SHUT_WR)
    assert connection.is_closed()


def test_unread_chunked_body_is_skipped_only_when_it_was_received_whole(serve, raw):
    server = serve(lambda request: Response(403))
    connection = raw(server)
    head = b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    connection.send(head + b"3\r\nabc\r\n4\r\ndefg\r\n0\r\nt: 1\r\n\r\n")
    assert connection.read_answer()[1]["connection"] == "keep-alive"
    for part in (b"3\r\nab", b"3\r\nabc\r\n", b"zz\r\n", b""):
        other = raw(server).send(head + part)
        status, headers, _ = other.read_answer()
        assert (status, headers["connection"]) == (403, "close")


def test_head_request(serve, raw, tmp_path):
    def handler(request):
        if request.path == "/announced":
            return Response(200, b"", content_length=12345)
        return Response(200, b"body", [("X-A", "1")])

    connection = raw(serve(handler))
    connection.send(b"HEAD / HTTP/1.1\r\n\r\nHEAD /announced HTTP/1.1\r\n\r\n")
    connection.send(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
    data = connection.read_until_closed()
    heads = data.split(b"\r\n\r\n")
    assert b"Content-Length: 4" in heads[0] and heads[0].startswith(b"HTTP/1.1 200")
    assert b"Content-Length: 12345" in heads[1] and heads[1].startswith(b"HTTP/1.1 200")
    assert heads[3] == b"body"


@pytest.mark.parametrize("status", [204, 304])
def test_no_body_statuses(serve, raw, status):
    connection = raw(serve(lambda request: Response(status, b"ignored"))).send(GET + GET)
    assert connection.read_answer()[0] == status
    assert connection.read_answer()[0] == status


@pytest.mark.parametrize("size", [0, 1, 1000, 40000, 3_000_000])
def test_file_body(serve, pool, url, tmp_path, size):
    path = tmp_path / "data"
    data = os.urandom(size + 20)
    path.write_bytes(data)
    opened = []

    def handler(request):
        opened.append(os.open(path, os.O_RDONLY))
        return Response(200, FileBody(opened[-1], 10, size))

    server = serve(handler)
    assert pool.request("GET", url(server)).data == data[10 : 10 + size]
    response = pool.request("HEAD", url(server))
    assert (response.headers["Content-Length"], response.data) == (str(size), b"")
    server.stop(5)
    for fd in opened:
        with pytest.raises(OSError):
            os.fstat(fd)


def test_file_shorter_than_announced_is_cut(serve, raw, tmp_path):
    path = tmp_path / "data"
    path.write_bytes(b"x" * 1000)
    server = serve(lambda request: Response(200, FileBody(os.open(path, os.O_RDONLY), 0, 2000)))
    data = raw(server).send(GET).read_until_closed()
    assert b"Content-Length: 2000" in data
    assert len(data.split(b"\r\n\r\n", 1)[1]) < 2000


def test_iterator_bodies(serve, pool, url, raw):
    def handler(request):
        pieces = (b"a" * n for n in (1, 0, 100, 200000))
        length = 200101 if request.path == "/length" else None
        return Response(200, pieces, content_length=length)

    server = serve(handler)
    chunked = pool.request("GET", url(server))
    assert chunked.headers["transfer-encoding"] == "chunked"
    assert chunked.data == b"a" * 200101
    known = pool.request("GET", url(server, "/length"))
    assert known.headers["content-length"] == "200101"
    assert known.data == b"a" * 200101
    old = raw(server).send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").read_until_closed()
    assert b"Connection: close" in old and b"chunked" not in old
    assert old.endswith(b"\r\n\r\n" + b"a" * 200101)


@pytest.mark.parametrize("length", [None, 5, 500])
def test_iterator_that_breaks_is_never_a_complete_answer(serve, raw, length):
    closed = []

    def pieces():
        try:
            yield b"x" * 10
            raise RuntimeError("disk on fire")
        finally:
            closed.append(True)

    server = serve(lambda request: Response(200, pieces(), content_length=length))
    data = raw(server).send(GET).read_until_closed()
    assert b"0\r\n\r\n" not in data[-7:]
    assert b"Content-Length: 10\r\n" not in data
    assert closed


def test_handler_exceptions(serve, pool, url, caplog):
    def handler(request):
        if request.path == "/http":
            raise HttpError(409, "conflict", {"X-A": "b"})
        if request.path == "/body":
            raise HttpError(400, "x", body=b'{"a":1}')
        if request.path == "/large":
            raise BodyTooLarge()
        if request.path == "/nothing":
            return
        raise RuntimeError("surprise")

    server = serve(handler)
    with caplog.at_level(logging.ERROR, "oio.http"):
        response = pool.request("GET", url(server), {"x-oio-req-id": "REQ1"})
    assert response.status == 500
    assert b"surprise" not in response.data
    assert "REQ1" in caplog.text and "surprise" in caplog.text
    response = pool.request("GET", url(server, "/http"))
    assert (response.status, response.data, response.headers["x-a"]) == (409, b"conflict", "b")
    assert pool.request("GET", url(server, "/body")).data == b'{"a":1}'
    assert pool.request("GET", url(server, "/large")).status == 413
    assert pool.request("GET", url(server, "/nothing")).status == 500


@pytest.mark.parametrize("value", ["a\r\nSet-Cookie: x", "a\nb", "a\rb", "a\0b", "a\r\n\r\nbody", "\u20ac"])
def test_header_injection_by_a_handler_becomes_500(serve, pool, url, value):
    server = serve(lambda request: Response(200, b"x", [("X-A", value)]))
    response = pool.request("GET", url(server))
    assert response.status == 500
    assert "x-a" not in response.headers and "set-cookie" not in response.headers


def test_connection_options(serve, raw):
    server = serve(lambda request: Response(200, b"", close=request.path == "/close"))
    for request in (
        b"GET / HTTP/1.1\r\nConnection: Close\r\n\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
        b"GET /close HTTP/1.1\r\n\r\n",
    ):
        connection = raw(server).send(request)
        assert connection.read_answer()[1]["connection"] == "close"
        assert connection.is_closed()
    connection = raw(server).send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    assert connection.read_answer()[1]["connection"] == "keep-alive"
    assert connection.send(GET).read_answer()[0] == 200


def test_request_id(serve, pool, url):
    server = serve(lambda request: Response(200, f"{request.reqid} {current_reqid()}".encode()))
    response = pool.request("GET", url(server), {"X-Oio-Req-Id": "ABC", "x-trans-id": "no"})
    assert (response.data, response.headers["x-oio-req-id"]) == (b"ABC ABC", "ABC")
    assert pool.request("GET", url(server), {"x-trans-id": "tx1"}).headers["x-oio-req-id"] == "tx1"
    assert len(pool.request("GET", url(server), {"x-oio-req-id": "A" * 99}).headers["x-oio-req-id"]) == 63
    assert pool.request("GET", url(server)).data == b" "
    assert current_reqid() == ""
    server = serve(lambda request: Response(), generate_reqid_prefix="tst-")
    ids = {pool.request("GET", url(server)).headers["x-oio-req-id"] for _ in range(10)}
    assert len(ids) == 10 and all(i.startswith("tst-") and len(i) <= 63 for i in ids)
    server = serve(lambda request: Response(), echo_reqid=False, date_header=False)
    headers = pool.request("GET", url(server), {"x-oio-req-id": "ABC"}).headers
    assert set(headers) == {"content-length", "connection"}


def test_access_log(serve, raw, pool, url, caplog, until):
    server = serve()
    with caplog.at_level(logging.INFO, "oio.access"):
        pool.request("PUT", url(server, "/x?secret"), {"x-oio-req-id": "R1"}, b"hello")
        raw(server).send(b"junk\n").sock.shutdown(socket.SHUT_WR)
        lines = lambda: [r.getMessage() for r in caplog.records if r.name == "oio.access"]  # noqa: E731
        until(lambda: len(lines()) == 2)
    first = lines()[0].split(" ")
    assert first[:5] == ["PUT", "/x", "200", "5", "5"]
    assert int(first[5]) >= 0
    assert first[6] == "R1" and first[7].startswith("127.0.0.1:")
    assert lines()[1].startswith("- - 400 0 ")


def test_request_id_on_every_log_line(serve, pool, url, caplog):
    logger = logging.getLogger("test.reqid")

    def handler(request):
        logger.warning("inside")
        return Response()

    server = serve(handler)
    caplog.handler.addFilter(RequestIdFilter())
    pool.request("GET", url(server), {"x-oio-req-id": "R7"})
    logger.warning("outside")
    assert [(r.getMessage(), r.reqid) for r in caplog.records if r.name == "test.reqid"] == [
        ("inside", "R7"),
        ("outside", "-"),
    ]


def test_after_sent_knows_the_size(serve, pool, url, until):
    sizes = []

    def handler(request):
        response = Response(200, b"hello")
        response.after_sent = lambda: sizes.append(response.bytes_sent)
        return response

    server = serve(handler)
    pool.request("GET", url(server))
    pool.request("HEAD", url(server))
    until(lambda: sizes == [5, 0])


def test_unix_listener(serve, pool, tmp_path):
    path = str(tmp_path / "s.sock")
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(path)
    stale.close()
    server = serve(listen=[f"unix:{path}"])
    assert server.addresses == [f"unix:{path}"]
    url = "http+unix://" + path.replace("/", "%2F") + "/a"
    response = pool.request("PUT", url, body=b"x")
    assert (response.data, response.headers["x-path"]) == (b"x", "/a")
    with pytest.raises(OSError):
        Server(lambda request: Response(), [f"unix:{path}"]).start()
    server.stop(5)
    assert not os.path.exists(path)


def test_tls_listener(serve, pool, url, tls_files, tmp_path, raw):
    path = tmp_path / "f"
    path.write_bytes(os.urandom(500000))

    def handler(request):
        if request.method == "PUT":
            return Response(201, request.read_all())
        return Response(200, FileBody(os.open(path, os.O_RDONLY), 0, 500000))

    server = serve(handler, listen=[("127.0.0.1", 0)] * 2, tls=[tls_files, None], linger_s=0.01)
    secure, plain = server.addresses
    base = f"https://{secure[0]}:{secure[1]}/"
    body = os.urandom(1 << 20)
    for _ in range(3):
        assert pool.request("PUT", base, body=body).data == body
        time.sleep(0.02)  # let the connection be parked in between
    assert pool.request("GET", base).data == path.read_bytes()
    assert pool.idle_count() == 1
    assert pool.request("PUT", f"http://{plain[0]}:{plain[1]}/", body=b"x").data == b"x"
    garbage = raw(server).send(b"GET / HTTP/1.1\r\n\r\n")
    garbage.read_until_closed()
    strict = type(pool)(tls_verify=True)
    with pytest.raises(Exception, match="certificate verify failed"):
        strict.request("GET", base)
    assert ssl.HAS_TLSv1_2


def test_streaming_never_holds_the_object(serve, pool):
    """A body much larger than the peak of memory crosses the server both ways."""
    import tracemalloc

    def handler(request):
        buffer = bytearray(1 << 16)
        total = 0
        while count := request.readinto(buffer):
            total += count
        return Response(200, (b"y" * 65536 for _ in range(total // 65536)), content_length=total)

    server = serve(handler)
    tracemalloc.start()
    try:
        host, port = server.addresses[0]
        connection = pool.acquire(host, port)
        connection.put_request("PUT", "/", {"Transfer-Encoding": "chunked"})
        piece = b"x" * 65536
        for _ in range(1024):
            connection.send_chunk(piece)
        connection.finish_chunks()
        response = connection.getresponse()
        buffer, total = bytearray(1 << 16), 0
        while count := response.readinto(buffer):
            total += count
        response.release()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total == 64 << 20
    assert peak < 8 << 20


def test_router(serve, pool, url):
    router = Router()
    router.add("GET", "/a", lambda request: Response(200, b"a"))
    router.add("PUT", "/a", lambda request: Response(200, b"put"))
    router.add_prefix("*", "/files/", lambda request: Response(200, request.path.encode()))
    with pytest.raises(ValueError):
        router.add("GET", "/a", lambda request: Response())
    server = serve(router)
    assert pool.request("GET", url(server, "/a?x=1")).data == b"a"
    assert pool.request("PUT", url(server, "/a")).data == b"put"
    assert pool.request("DELETE", url(server, "/files/x")).data == b"/files/x"
    assert pool.request("DELETE", url(server, "/a")).status == 404
    assert pool.request("GET", url(server, "/b")).status == 404
    router.method_not_allowed = lambda request: Response(405)
    router.not_found = lambda request: Response(418)
    assert pool.request("DELETE", url(server, "/a")).status == 405
    assert pool.request("GET", url(server, "/b")).status == 418
    assert router.methods("/a") == ["GET", "PUT"]


def test_too_many_connections_are_refused(serve, raw, until):
    server = serve(max_connections=2)
    first, second = raw(server), raw(server)
    assert first.send(GET).read_answer()[0] == 200
    assert second.send(GET).read_answer()[0] == 200
    assert raw(server).is_closed()
    assert first.send(GET).read_answer()[0] == 200
    first.sock.close()
    until(lambda: server.connections_count < 2)
    assert raw(server).send(GET).read_answer()[0] == 200


def test_config_defaults_are_bounded():
    config = ServerConfig()
    assert config.max_head_bytes and config.max_target_bytes and config.max_connections
    assert min(config.timeout_head_s, config.timeout_body_s, config.timeout_write_s) > 0
