# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Clients that send garbage, stop half-way, trickle or stay for ever: services go on answering the others."""

import contextlib
import errno
import random
import re
import resource
import socket
import threading
import time

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from processes import CHUNK, UPLOAD_HEADERS, files_below
from support import ACCOUNT, eventually

GROWTH_MAX_BYTES = 30 << 20
HOSTILE = settings(
    max_examples=300, deadline=None, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
ANSWER_HEAD = re.compile(rb"HTTP/1\.1 ([0-9]{3})[^\r\n]*\r\n")


class Target:
    """A service of the cluster: where it listens, a question with its answer, its processes."""

    def __init__(self, broken, type_):
        service = broken.services(type_)[0]
        self.name = service.name
        self.address = (service.host, service.port)
        self.volume = service.volume
        self.question = "/info" if type_ == "rawx" else f"/v3.0/{broken.namespace}/conscience/info"
        self._broken = broken

    def processes(self):
        """Memory by process id: the service and its workers."""
        root = psutil.Process(self._broken.pids()[self.name])
        return {one.pid: one.memory_info().rss for one in [root, *root.children(recursive=True)]}

    def answers(self):
        host, port = self.address
        head = f"GET {self.question} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n"
        return talk(self.address, head.encode()).startswith(b"HTTP/1.1 200 ")


@pytest.fixture(params=["proxy", "rawx"])
def target(broken, request):
    """The service survives what the test does to it: same processes, about the same memory, answers."""
    target = Target(broken, request.param)
    assert target.answers()
    before = target.processes()
    yield target
    assert target.answers()
    after = target.processes()
    assert set(after) == set(before)
    for pid, size in after.items():
        assert size - before[pid] < GROWTH_MAX_BYTES, f"{target.name}, {pid}: {before[pid]} to {size}"


def talk(address, data, step=1 << 20, timeout_s=20):
    """Send bytes, end, and read until the server closes: it must do so, whatever it received."""
    answer = b""
    with socket.create_connection(address, timeout_s) as sock:
        try:
            for begin in range(0, len(data), step):
                sock.sendall(data[begin : begin + step])
            sock.shutdown(socket.SHUT_WR)
            while piece := sock.recv(65536):
                answer += piece
        except OSError as exc:
            # A server that saw enough closes, maybe before it read all.
            assert exc.errno in (errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN), exc
    return answer


# -- garbage ---------------------------------------------------------------------------------------

UPLOAD_LINES = "".join(f"{name}: {value}\r\n" for name, value in UPLOAD_HEADERS.items()).encode()
PATHS = st.sampled_from(
    [
        b"/", b"*", b"/info", b"/" + CHUNK.encode(), b"/%00", b"/%zz", b"/..%2f..%2fetc%2fpasswd", b"//",
        b"/\xff\xfe", b"http://127.0.0.1/info", b"http://[::1", b"127.0.0.1:80", b"/v3.0//",
        b"/v3.0/X/content/show?acct=%ff&ref=&path=", b"/v3.0/NS/container/list?max=-1",
        b"/?" + b"a=b&" * 2000, b"/" + b"A" * 70000,
    ]
)  # fmt: skip
METHODS = st.sampled_from(
    [
        b"GET", b"PUT", b"HEAD", b"DELETE", b"COPY", b"POST", b"CONNECT", b"PRI", b"get", b"", b"X" * 5000,
    ]
)  # fmt: skip
HEADERS = st.sampled_from(
    [
        b"Content-Length: 5\r\n", b"Content-Length: 5\r\nContent-Length: 6\r\n", b"Content-Length: -1\r\n",
        b"Content-Length: 99999999999999999999999\r\n", b"Content-Length: 0x10\r\n", b"Content-Length: 5, 5\r\n",
        b"Content-Length: +5\r\n", b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding : chunked\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n", b"Transfer-Encoding: xchunked\r\n",
        b"Transfer-Encoding: identity, chunked, chunked\r\n", b"X: a\n", b"X: a\r", b"X\x00: a\r\n",
        b"X: a\x00b\r\n", b" folded: x\r\n", b": empty\r\n", b"nocolon\r\n", b"X: " + b"y" * 70000 + b"\r\n",
        b"x: y\r\n" * 3000, b"Host: a\r\nHost: b\r\n", b"Host: \xff\r\n", b"Host:\r\n",
        b"Expect: 100-continue\r\n", b"Expect: 999-x\r\n", b"Upgrade: h2c\r\nConnection: Upgrade\r\n",
        b"Range: bytes=5-1,-\r\n", b"Range: bytes=0-" + b"9" * 400 + b"\r\n",
        b"Connection: close, keep-alive\r\n", b"Destination: http://[\r\n", b"x-oio-timeout: 1e999\r\n",
        b"x-oio-req-id: " + b"r" * 3000 + b"\r\n", b"x-oio-action: {}\r\n", UPLOAD_LINES,
    ]
)  # fmt: skip
BODIES = st.sampled_from(
    [
        b"", b"hello", b"5\r\nhello\r\n0\r\n\r\n", b"ffffffffffffffffff\r\nx", b"-5\r\nhello\r\n",
        b"5;a=b\r\nhello\r\n0\r\nt: v\r\n\r\n", b"5\nhello\n0\n\n", b"0\r\nX: " + b"y" * 70000,
        b"5\r\nhelloXX0\r\n\r\n", b"0\r\n\r\nGET /info HTTP/1.1\r\nHost: x\r\n\r\n", b'{"a":' * 3000,
        b"\x00" * 1000, b"GET /info HTTP/1.1\r\n\r\n" * 20, b"[" * 60000,
    ]
)  # fmt: skip
VERSIONS = st.sampled_from(
    [b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/0.9", b"HTTP/2.0", b"HTTP/1.99999", b"ICY", b""]
)
LINE_ENDS = st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r", b"\r\n\x00"])


@st.composite
def requests(draw):
    """One to three requests, each of them well or badly made."""
    data = b""
    for _ in range(draw(st.integers(1, 3))):
        data += draw(METHODS) + b" " + draw(PATHS) + b" " + draw(VERSIONS) + draw(LINE_ENDS)
        data += b"".join(draw(st.lists(HEADERS, max_size=3))) + draw(LINE_ENDS) + draw(BODIES)
    if draw(st.booleans()) and len(data) < 3000:
        for _ in range(draw(st.integers(1, 4))):
            position = draw(st.integers(0, len(data) - 1))
            data = data[:position] + draw(st.binary(max_size=3)) + data[position + draw(st.integers(0, 3)) :]
    return data


def test_garbage(target):
    @HOSTILE
    @given(data=requests() | st.binary(max_size=300), step=st.sampled_from([1 << 20, 1000, 7]))
    def attack(data, step):
        answer = talk(target.address, data, step if len(data) < 5000 else 1 << 20)
        assert not answer or ANSWER_HEAD.match(answer), answer[:200]
        statuses = {int(status) for status in ANSWER_HEAD.findall(answer)}
        assert not statuses & {500, 502, 504}, (data[:500], answer[:500])

    attack()


SMUGGLED = b"DELETE /" + CHUNK.encode() + b" HTTP/1.1\r\nHost: x\r\n\r\n"
AMBIGUOUS = {
    "both": b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "both, other order": b"Transfer-Encoding: chunked\r\nContent-Length: %d\r\n\r\n0\r\n\r\n",
    "two lengths": b"Content-Length: 0\r\nContent-Length: %d\r\n\r\n",
    "space before the colon": b"Content-Length : %d\r\n\r\n",
    "obscure coding": b"Transfer-Encoding: \x0bchunked\r\nContent-Length: %d\r\n\r\n0\r\n\r\n",
    "bare line feeds": b"Content-Length: %d\nX: y\n\n",
}


@pytest.mark.parametrize("framing", AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_a_request_whose_end_is_ambiguous_is_refused_and_nothing_after_it_is_executed(target, framing):
    head = b"PUT /0123 HTTP/1.1\r\nHost: %s:%d\r\n" % (target.address[0].encode(), target.address[1])
    answer = talk(target.address, head + framing.replace(b"%d", b"%d" % len(SMUGGLED)) + SMUGGLED)
    statuses = ANSWER_HEAD.findall(answer)
    assert statuses == [b"400"], answer


# -- truncation --------------------------------------------------------------------------------------


@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_a_truncated_upload_leaves_nothing(start_rawx, framing):
    """Cut anywhere, by an end of stream or by a reset."""
    service = start_rawx()
    body = bytes(range(256)) * 300
    if framing == "length":
        data = service.head("PUT", CHUNK, f"Content-Length: {len(body)}\r\n") + body
    else:
        chunks = b"".join(b"%x\r\n%s\r\n" % (5000, body[at : at + 5000]) for at in range(0, 75000, 5000))
        data = service.head("PUT", CHUNK, "Transfer-Encoding: chunked\r\n") + chunks + b"0\r\n\r\n"
    cuts = [*random.Random(7).sample(range(1, len(data) - 1), 25), len(data) - 1]
    for number, cut in enumerate(cuts):
        with service.connect() as sock:
            sock.sendall(data[:cut])
            if number % 2:
                # A reset instead of an end.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            else:
                sock.shutdown(socket.SHUT_WR)
                answer = sock.recv(65536)
                assert not ANSWER_HEAD.match(answer) or int(answer[9:12]) >= 400
    # The server may still be busy with the last ones when their clients are gone.
    eventually(lambda: service.call("PUT", CHUNK, b"whole")[0] == 201, what="truncated uploads forgotten")
    assert service.files() == [CHUNK]
    assert service.call("GET", CHUNK) == (200, b"whole")


# -- slowness ----------------------------------------------------------------------------------------


def test_clients_that_trickle_are_sent_away(start_rawx):
    service = start_rawx(options="timeout_read_header 1\ntimeout_read_request 2\ntimeout_idle 1\n")
    assert service.call("PUT", CHUNK, b"was here before")[0] == 201
    slow = []
    for number, kind in enumerate(["head", "body", "idle", "refused body"] * 20):
        sock = service.connect()
        chunk_id = CHUNK if kind == "refused body" else f"{number:064X}"
        head = service.head("PUT", chunk_id, "Content-Length: 100000\r\n")
        sock.sendall({"head": head[:-2], "idle": b""}.get(kind, head))
        slow.append((kind, sock))
    stop = threading.Event()

    def trickle():
        while not stop.wait(0.1):
            for kind, sock in slow:
                if kind != "idle":
                    with contextlib.suppress(OSError):
                        sock.send(b"x" if kind == "head" else b"y" * 10)

    thread = threading.Thread(target=trickle)
    thread.start()
    try:
        assert service.call("PUT", "A" * 64, b"others go on")[0] == 201
        assert service.call("GET", "A" * 64) == (200, b"others go on")
        deadline = time.monotonic() + 15
        for _kind, sock in slow:
            sock.settimeout(max(0.1, deadline - time.monotonic()))
            with contextlib.suppress(ConnectionResetError):
                while sock.recv(65536):
                    continue  # an answer, then the end
    finally:
        stop.set()
        thread.join()
        for _kind, sock in slow:
            sock.close()
    eventually(lambda: service.files() == [CHUNK, "A" * 64], what="nothing left of slow uploads")


def test_a_client_that_does_not_read_is_sent_away(start_rawx):
    service = start_rawx(options="timeout_write_reply 1\n")
    data = b"z" * (32 << 20)
    assert service.call("PUT", CHUNK, data)[0] == 201
    with service.connect() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.sendall(service.head("GET", CHUNK))
        process = psutil.Process(service.pid)
        eventually(
            lambda: not [one for one in process.net_connections("tcp") if one.status == "ESTABLISHED"],
            what="the connection is closed by the service",
        )
    assert service.call("GET", CHUNK) == (200, data)


# -- numbers -----------------------------------------------------------------------------------------


def test_two_thousand_idle_connections(broken, fault_api, box, target):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 4096:
        pytest.skip("not enough descriptors are allowed here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))
    idle = []
    try:
        for number in range(2000):
            sock = socket.create_connection(target.address, 20)
            if number % 4 == 0:
                # Half a head, which is not a request yet.
                sock.sendall(b"GET /info HTTP/1.1\r\nHo")
            idle.append(sock)
        begin = time.monotonic()
        for number in range(20):
            assert target.answers()
            fault_api.object_create(ACCOUNT, box, obj_name=f"{number}", data=b"x" * 5000, policy="SINGLE")
        assert time.monotonic() - begin < 20
    finally:
        for sock in idle:
            sock.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not [name for name in files_below(target.volume) if name.endswith(".pending")]
