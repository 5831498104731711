# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""What the client promises: pooling, the one safe retry, timeouts, strictness, few system calls."""

from __future__ import annotations

import _socket
import os
import pickle
import selectors
import socket
import threading
import time

import pytest
from http_script import OK

from oio.http.client import (
    SWEEP_CONNECTS,
    ConnectError,
    ConnectionClosed,
    ConnectTimeout,
    HeaderDict,
    HttpClientError,
    HttpPool,
    ProtocolError,
    ReadTimeout,
    WriteTimeout,
)
from oio.http.client_connection import ClientConnection
from oio.http.server import Response
from oio.http.tcp import tune


def test_request_and_reuse(serve, pool, url):
    peers = []

    def handler(request):
        peers.append(request.peer)
        return Response(200, request.read_all(), [("X-Method", request.method), ("X-A", "1"), ("x-a", "2")])

    server = serve(handler)
    response = pool.request("POST", url(server, "/a?b"), {"X-N": 5, "X-None": None}, "h\u00e9")
    assert (response.status, response.reason, response.data) == (200, "OK", "h\u00e9".encode())
    assert response.headers["X-METHOD"] == "POST"
    assert response.headers.get("x-a") == "1, 2"
    assert "X-Method" in response.headers and response.headers.get("nope") is None
    assert "x-method" in list(response.headers)
    for method in ("GET", "PUT", "DELETE", "HEAD"):
        assert pool.request(method, url(server)).status == 200
    assert len(set(peers)) == 1
    assert pool.idle_count() == 1


def test_headers_survive_pickle():
    headers = HeaderDict({"a": "1"})
    headers["B"] = "2"
    copy = pickle.loads(pickle.dumps(headers))
    assert copy["b"] == "2" and copy.pop("A") == "1" and dict(copy) == {"b": "2"}
    error = pickle.loads(pickle.dumps(ReadTimeout("late", "h:1")))
    assert (str(error), error.address, error.sent) == ("late (h:1)", "h:1", True)


def test_idle_connections_are_bounded(serve, url):
    server = serve()
    with HttpPool(max_idle_per_address=2) as pool:
        host, port = server.addresses[0]
        connections = [pool.acquire(host, port) for _ in range(4)]
        for connection in connections:
            assert not connection.reused
            connection.release()
        assert pool.idle_count() == 2
        assert pool.acquire(host, port).reused
    with HttpPool(idle_timeout_s=0.0) as pool:
        pool.request("GET", url(server))
        assert not pool.acquire(host, port).reused


def test_connections_to_servers_that_are_gone_do_not_stay(serve, pool):
    gone, here = serve(), serve()
    for connection in [pool.acquire(*gone.addresses[0]) for _ in range(12)]:
        connection.release()
    assert pool.idle_count() == 12
    gone.stop(0.2)
    for _ in range(SWEEP_CONNECTS):
        pool.acquire(*here.addresses[0]).close()
    assert pool.idle_count() == 0


def test_the_search_for_dead_connections_leaves_those_that_live_to_others(serve, pool, monkeypatch):
    """Whoever finds none meanwhile opens one more than there are users."""
    server = serve()
    pool.acquire(*server.addresses[0]).release()
    left = []
    is_stale = ClientConnection.is_stale
    monkeypatch.setattr(ClientConnection, "is_stale", lambda one: left.append(pool.idle_count()) or is_stale(one))
    pool._sweep()
    assert left == [1]
    assert pool.idle_count() == 1


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_known_stale_connection_is_replaced_for_any_method(script, pool, until, method):
    server = script([None, OK, "close"], [None, OK])
    pool.request("GET", server.url)
    idle = next(iter(pool._idle.values()))[0]
    until(idle.is_stale)
    assert pool.request(method, server.url).data == b"ok"
    assert len(server.received) == 2


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "HEAD"])
def test_idempotent_request_is_repeated_once_on_a_new_connection(script, pool, method):
    server = script([None, OK, None, "close"], [None, OK])
    pool.request("GET", server.url)
    assert pool.request(method, server.url).status == 200
    assert len(server.received) == 3


def test_post_is_not_repeated_once_sent_unless_declared_idempotent(script, pool):
    server = script([None, OK, None, "close"], [None, OK, None, "close"], [None, OK])
    pool.request("GET", server.url)
    with pytest.raises(ConnectionClosed) as caught:
        pool.request("POST", server.url, body=b"x")
    assert caught.value.sent
    pool.request("GET", server.url)
    assert pool.request("POST", server.url, body=b"x", idempotent=True).data == b"ok"


def test_no_repetition_on_a_new_connection_nor_after_a_first_byte(script, pool):
    server = script([None, "close"], [None, OK, None, b"HTTP/1.1 2", "close"])
    with pytest.raises(ConnectionClosed):
        pool.request("GET", server.url)
    pool.request("GET", server.url)
    with pytest.raises(ConnectionClosed):
        pool.request("GET", server.url)
    assert len(server.received) == 3


def test_repetition_is_bounded(script, pool):
    server = script([None, OK, None, "close"], [None, "close"])
    pool.request("GET", server.url)
    with pytest.raises(ConnectionClosed):
        pool.request("GET", server.url)
    server = script([None, OK, None, "close"])
    pool.request("GET", server.url)
    with pytest.raises(ConnectionClosed):
        pool.request("GET", server.url, retries=0)


def test_request_whose_first_byte_could_not_leave_is_repeated(script, pool):
    """The connection dies between the check and the send: any method may be sent again."""
    server = script([None, OK], [None, OK])
    pool.request("GET", server.url)
    connection = next(iter(pool._idle.values()))[0]
    real = connection.sock

    class Dead(_socket.socket):
        def recv(self, *args):
            raise BlockingIOError  # the check sees a living connection

        def send(self, *args):
            raise BrokenPipeError

        sendmsg = send

    connection.sock = Dead(fileno=os.dup(real.fileno()))
    assert pool.request("POST", server.url, body=b"x").data == b"ok"
    assert len(server.received) == 2
    real.close()


def test_connect_errors(pool):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ConnectError) as caught:
        pool.request("GET", f"http://127.0.0.1:{port}/")
    assert caught.value.address == f"127.0.0.1:{port}"
    assert not caught.value.sent
    with pytest.raises(ConnectError):
        pool.request("GET", "http+unix://%2Fnot%2Fhere/")
    for bad in ("nonsense", "ftp://h/", "http://h:x/", "http:///p", "http://u@h/"):
        with pytest.raises(ValueError):
            pool.request("GET", bad)


def test_connect_timeout(pool):
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    fillers = []
    for _ in range(4):  # fill the queue of the listener, which nobody empties
        filler = socket.socket()
        filler.setblocking(False)
        filler.connect_ex(listener.getsockname())
        fillers.append(filler)
    with pytest.raises(ConnectTimeout):
        pool.request("GET", f"http://127.0.0.1:{listener.getsockname()[1]}/", timeout=(0.2, 5))
    for item in (listener, *fillers):
        item.close()


def test_read_timeout_and_deadline(script, pool):
    for arguments in (
        {"timeout": 0.1},
        {"timeout": (5, 0.1)},
        {"deadline": 1.0},
    ):
        server = script([None, "wait"])
        if "deadline" in arguments:
            arguments = {"deadline": time.monotonic() + arguments["deadline"]}
        begin = time.monotonic()
        with pytest.raises(ReadTimeout):
            pool.request("GET", server.url, **arguments)
        assert (0.99 if "deadline" in arguments else 0.09) <= time.monotonic() - begin < 5
    with pytest.raises(ConnectTimeout):
        pool.request("GET", script([None]).url, deadline=time.monotonic() - 1)
    assert pool.idle_count() == 0


def test_deadline_holds_against_a_trickling_server(serve, url, pool):
    stop = threading.Event()

    def pieces():
        while not stop.wait(0.02):
            yield b"x"

    server = serve(lambda request: Response(200, pieces(), content_length=10**6))
    begin = time.monotonic()
    with pytest.raises(ReadTimeout):
        pool.request("GET", url(server), deadline=begin + 1)
    stop.set()
    assert 0.99 <= time.monotonic() - begin < 5


def test_timeout_after_a_shorter_one_is_restored(serve, url, pool):
    def handler(request):
        if request.path == "/slow":
            time.sleep(1.2)
        return Response(200, b"ok")

    server = serve(handler)
    assert pool.request("GET", url(server), timeout=1).status == 200
    assert pool.request("GET", url(server, "/slow"), timeout=5).status == 200
    assert pool.idle_count() == 1


def test_write_timeout(script):
    server = script(["wait"])
    with HttpPool(write_timeout_s=0.1) as pool, pytest.raises(WriteTimeout):
        pool.request("PUT", server.url, body=b"x" * (64 << 20))


@pytest.mark.parametrize(
    "answer",
    [
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 099 OK\r\n\r\n",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\n\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"x" * 200000,
    ],
)
def test_bad_answers(script, pool, answer):
    with pytest.raises(ProtocolError) as caught:
        pool.request("GET", script([None, answer]).url)
    assert caught.value.address
    assert pool.idle_count() == 0


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n",
    ],
)
def test_truncated_answers(script, pool, answer):
    with pytest.raises(ConnectionClosed):
        pool.request("GET", script([None, answer, "close"]).url)


def test_forms_of_bodies(script, pool):
    server = script(
        [
            None,
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: x\r\n\r\n" + OK,
            None,
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nT: 1\r\n\r\n",
            None,
            b"HTTP/1.1 204 No Content\r\n\r\n",
            None,
            b"HTTP/1.1 304 Not Modified\r\nContent-Length: 55\r\n\r\n",
            None,
            b"HTTP/1.1 200 OK\r\nContent-Length: 55\r\n\r\n",
            None,
            b"HTTP/1.1 200\r\n\r\nuntil the end",
            "close",
        ],
        [None, b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok"],
        [None, b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"],
        [None, OK + b"more than announced"],
    )
    assert pool.request("GET", server.url).data == b"ok"
    assert pool.request("GET", server.url).data == b"ok"
    assert pool.request("GET", server.url).status == 204
    assert pool.request("GET", server.url).data == b""
    assert pool.request("HEAD", server.url).headers["content-length"] == "55"
    assert pool.idle_count() == 1
    assert pool.request("GET", server.url).data == b"until the end"
    for _ in range(3):
        assert pool.idle_count() == 0
        assert pool.request("GET", server.url).data == b"ok"
    assert pool.idle_count() == 0


def test_answer_larger_than_allowed(serve, url):
    server = serve(lambda request: Response(200, b"x" * 1001))
    with HttpPool(max_answer_bytes=1000) as pool, pytest.raises(ProtocolError):
        pool.request("GET", url(server))


def test_injection_is_refused(serve, url, pool):
    server = serve()
    for headers in ({"A": "b\r\nC: d"}, {"A": "b\nc"}, {"A\r\nB": "c"}, {"A": "b\0"}):
        with pytest.raises(ValueError):
            pool.request("GET", url(server), headers)
    for path in ("/a b", "/a\r\nX: y", "/\u00e9"):
        with pytest.raises(ValueError):
            pool.request("GET", url(server, path))
    with pytest.raises(ValueError):
        pool.request("GET /x HTTP/1.1\r\n", url(server))
    with pytest.raises(ValueError):
        pool.request("PUT", url(server), {"Content-Length": "5"})


def test_early_answer_to_a_big_upload(serve, pool, url):
    """A server that refuses before it has read everything is heard, and its connection not used again."""
    server = serve(lambda request: Response(507, b"full"))
    response = pool.request("PUT", url(server), body=b"x" * (8 << 20))
    assert (response.status, response.data) == (507, b"full")
    assert pool.idle_count() == 0


class Counting(_socket.socket):
    """A socket that counts its system calls."""

    calls: list[str]

    def send(self, *args):
        self.calls.append("send")
        return _socket.socket.send(self, *args)

    def sendmsg(self, *args):
        self.calls.append("sendmsg")
        return _socket.socket.sendmsg(self, *args)

    def recv(self, size, flags=0):
        self.calls.append("peek" if flags else "recv")
        return _socket.socket.recv(self, size, flags)

    def setsockopt(self, *args):
        self.calls.append("setsockopt")
        return _socket.socket.setsockopt(self, *args)


def _counting(pool, server):
    connection = pool.acquire(*server.addresses[0])
    old = connection.sock
    connection.sock = Counting(fileno=old.detach())
    connection.sock.calls = calls = []
    return connection, calls


def test_a_small_exchange_is_one_send_and_one_receive(serve, pool, url):
    server = serve()
    connection, calls = _counting(pool, server)
    connection.release()
    pool.request("PUT", url(server), {"a": "b"}, b"x" * 4096)
    del calls[:]
    pool.request("PUT", url(server), {"a": "b"}, b"x" * 4096)
    assert calls == ["peek", "sendmsg", "recv"]


def test_a_small_chunked_upload_is_one_send(serve, pool):
    server = serve()
    connection, calls = _counting(pool, server)
    connection._arm_send()
    connection._arm_receive()
    del calls[:]
    connection.put_request("PUT", "/", [("Transfer-Encoding", "chunked")])
    connection.send_chunk(b"x" * 4096)
    assert connection.pending and not calls
    connection.finish_chunks({"t": "1"})
    response = connection.getresponse()
    assert response.read() == b"x" * 4096
    assert response.headers["x-trailers"] == "t=1"
    assert calls == ["sendmsg", "recv"]


def test_chunk_buffers_may_be_reused_after_send_chunk(serve, pool):
    server = serve()
    connection = pool.acquire(*server.addresses[0])
    connection.put_request("PUT", "/", {"Transfer-Encoding": "chunked"})
    buffer = bytearray(b"a" * 10)
    connection.send_chunk(buffer)
    buffer[:] = b"b" * 10
    connection.send_chunk(memoryview(buffer))
    connection.finish_chunks()
    assert connection.getresponse().read() == b"a" * 10 + b"b" * 10


def test_content_length_upload_and_reads(serve, pool):
    data = os.urandom(300000)
    server = serve()
    connection = pool.acquire(*server.addresses[0])
    connection.put_request("PUT", "/", {"Content-Length": len(data), "Host": "other"})
    connection.send(data[:100000])
    connection.send(memoryview(data)[100000:])
    response = connection.getresponse()
    assert response.length == 300000
    assert response.getheader("X-Path") == "/"
    assert response.read(10) == data[:10]
    buffer = bytearray(1000)
    count = response.readinto(buffer)
    assert 0 < count <= 1000
    rest = response.read()
    assert bytes(buffer[:count]) + rest == data[10:]
    assert response.read() == b"" and response.readinto(buffer) == 0 and response.finished
    response.release()
    assert pool.idle_count() == 1
    with _get(pool, server) as again:
        assert again.status == 200
    assert pool.idle_count() == 0  # not read to its end: closed


def _get(pool, server):
    connection = pool.acquire(*server.addresses[0])
    assert connection.reused
    connection.put_request("PUT", "/", {"Content-Length": 5})
    connection.send(b"12345")
    return connection.getresponse()


def _wait_for_any(readers, writers):
    with selectors.DefaultSelector() as selector:
        for connection in readers:
            selector.register(connection, selectors.EVENT_READ)
        for connection in writers:
            selector.register(connection, selectors.EVENT_WRITE)
        selector.select(1)


def test_one_thread_drives_many_connections(serve, pool):
    data = os.urandom(1 << 20)
    server = serve()
    connections = [pool.acquire(*server.addresses[0]) for _ in range(4)]
    for connection in connections:
        connection.put_request("PUT", "/", {"Transfer-Encoding": "chunked"})
        connection.queue_chunk(data)
        connection.queue_finish({"t": "1"})
    sending, waiting, receiving = set(connections), set(), {}
    results = {id(connection): bytearray() for connection in connections}
    buffer = bytearray(100000)
    deadline = time.monotonic() + 20
    while sending or waiting or receiving:
        assert time.monotonic() < deadline
        _wait_for_any([*waiting, *receiving], sending)
        for connection in list(sending):
            if connection.send_nowait():
                assert connection.pending == 0
                sending.remove(connection)
                waiting.add(connection)
        for connection in list(waiting):
            response = connection.try_read_response()
            if response is not None:
                waiting.remove(connection)
                receiving[connection] = response
        for connection, response in list(receiving.items()):
            while count := response.readinto_nowait(buffer):
                results[id(connection)] += buffer[:count]
            if count == 0:
                response.release()
                del receiving[connection]
    assert all(result == data for result in results.values())
    assert pool.idle_count() == 4


def test_many_threads_share_a_pool(serve, pool, url):
    server = serve()
    failures = []

    def run(number):
        try:
            for i in range(50):
                body = b"%d-%d" % (number, i)
                if pool.request("PUT", url(server), body=body).data != body:
                    failures.append(body)
        except HttpClientError as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not failures
    assert pool.idle_count() <= 8


def test_a_fork_does_not_share_connections(serve, pool, url):
    server = serve()
    pool.request("GET", url(server))
    pid = os.fork()
    if not pid:
        os._exit(pool.idle_count())
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert pool.idle_count() == 1


def test_ipv6_address(serve, pool):
    try:
        server = serve(listen=[("::1", 0)])
    except OSError:
        pytest.skip("no IPv6 loopback")
    assert pool.request("GET", f"http://[::1]:{server.addresses[0][1]}/").status == 200
    assert pool.acquire("::1", server.addresses[0][1]).reused


@pytest.mark.parametrize(
    ("host", "expected"), [("127.0.0.1", b"reno"), ("localhost", b"reno"), ("192.0.2.1", None)]
)
def test_only_the_loopback_chooses_its_congestion_control(host, expected):
    with socket.socket() as sock:
        before = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
        tune(sock, host)
        after = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert after.rstrip(b"\0") == (expected or before.rstrip(b"\0"))
