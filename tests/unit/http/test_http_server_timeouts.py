# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""What the server does with peers that are slow, cut short or idle, and how it stops."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from oio.http.server import BodyError, Response

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


def test_timeout_of_the_head(serve, raw):
    server = serve(timeout_head_s=0.2)
    trickle = raw(server)
    begin = time.monotonic()
    trickle.send(b"GET / HT")
    assert trickle.read_until_closed().startswith(b"HTTP/1.1 408 ")
    silent = raw(server)
    assert silent.is_closed()
    assert time.monotonic() - begin < 5


def test_timeout_of_a_trickled_head(serve, raw):
    """One byte now and then does not prolong the delay."""
    connection = raw(serve(timeout_head_s=0.3))
    begin = time.monotonic()
    connection.send(b"GET / HTTP/1.1\r\nA: ")
    connection.sock.settimeout(0.05)
    data = b""
    while not data and time.monotonic() - begin < 10:
        try:
            data = connection.sock.recv(1000)
        except TimeoutError:
            connection.send(b"x")
    assert data.startswith(b"HTTP/1.1 408 ")
    assert time.monotonic() - begin < 5


def test_half_a_head_holds_no_thread(serve, raw):
    server = serve(max_threads=2, timeout_head_s=20, linger_s=0.01)
    halves = [raw(server).send(b"GET / HTTP/1.1\r\nA: ") for _ in range(8)]
    assert raw(server).send(GET).read_answer()[0] == 200
    for half in halves:
        assert half.send(b"b\r\n\r\n").read_answer()[0] == 200


def test_a_body_that_nobody_wants_is_not_waited_for_in_vain(serve, raw, until, monkeypatch):
    monkeypatch.setattr("oio.http.connection.SKIP_BODY_S", 0.1)
    server = serve(timeout_body_s=20)
    server.handler = lambda request: Response(200)
    connection = raw(server).send(b"PUT / HTTP/1.1\r\nContent-Length: 100000\r\n\r\nabc")
    assert connection.read_answer()[0] == 200
    assert connection.is_closed()


@pytest.mark.parametrize("head", [b"Content-Length: 10\r\n\r\nabc", b"Transfer-Encoding: chunked\r\n\r\n5\r\nabc"])
def test_timeout_of_the_body(serve, raw, head):
    connection = raw(serve(timeout_body_s=0.2)).send(b"PUT / HTTP/1.1\r\n" + head)
    assert connection.read_answer()[0] == 408
    connection.sock.shutdown(socket.SHUT_WR)
    assert connection.is_closed()


def test_a_slow_body_is_served_when_it_progresses(serve, raw):
    connection = raw(serve(timeout_body_s=5.0, linger_s=0.01))
    connection.send(b"PUT / HTTP/1.1\r\nContent-Length: 3\r\n\r\n")
    for byte in (b"a", b"b", b"c"):
        time.sleep(0.03)  # longer than the linger time: the point of the test
        connection.send(byte)
    assert connection.read_answer()[2] == b"abc"
    assert connection.send(GET).read_answer()[0] == 200


def test_timeout_of_an_idle_connection(serve, raw):
    connection = raw(serve(timeout_idle_s=0.2, linger_s=0.01)).send(GET)
    assert connection.read_answer()[0] == 200
    assert connection.is_closed()


def test_timeout_of_a_peer_that_does_not_read(serve, raw, until):
    entered = threading.Event()

    def handler(request):
        entered.set()
        return Response(200, b"x" * (64 << 20))

    server = serve(handler, timeout_write_s=0.2)
    raw(server).send(GET)
    assert entered.wait(10)
    until(lambda: server.connections_count == 0)


@pytest.mark.parametrize("head", [b"Content-Length: 10\r\n\r\nabc", b"Transfer-Encoding: chunked\r\n\r\n5\r\nabc"])
def test_truncated_body_reaches_the_handler_as_an_error(serve, raw, until, head):
    errors = []

    def handler(request):
        try:
            request.read_all()
        except BodyError as error:
            errors.append(type(error).__name__)
            raise
        return Response()

    connection = raw(serve(handler)).send(b"PUT / HTTP/1.1\r\n" + head)
    connection.sock.close()
    until(lambda: errors == ["BodyTruncated"])


def test_stop_finishes_what_runs(serve, raw):
    entered, go = threading.Event(), threading.Event()

    def handler(request):
        entered.set()
        go.wait(10)
        return Response(200, b"done")

    server = serve(handler)
    busy, idle = raw(server).send(GET), raw(server)
    assert entered.wait(10)
    results = []
    stopper = threading.Thread(target=lambda: results.append(server.stop(10)))
    stopper.start()
    assert idle.is_closed()
    address = server._listen[0]
    assert address
    go.set()
    status, headers, body = busy.read_answer()
    assert (status, body, headers["connection"]) == (200, b"done", "close")
    stopper.join(10)
    assert results == [True]
    assert server.wait(0)


def test_stop_is_bounded(serve, raw):
    entered, go = threading.Event(), threading.Event()

    def handler(request):
        entered.set()
        go.wait(20)
        return Response()

    server = serve(handler)
    busy = raw(server).send(GET)
    assert entered.wait(10)
    begin = time.monotonic()
    assert server.stop(0.1) is False
    assert time.monotonic() - begin < 5
    assert busy.is_closed()
    go.set()


def test_stopped_server_refuses_connections(serve):
    server = serve()
    address = server.addresses[0]
    assert server.stop(5) is True
    assert server.stop(5) is True
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, 5)
