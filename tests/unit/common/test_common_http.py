# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""HTTP vocabulary and connection pools, under the names that programs import."""

import socket
import subprocess
import sys
import threading

import pytest
import urllib3 as real_urllib3

from oio.common import http_urllib3
from oio.common.exceptions import OioException, OioNetworkException, OioTimeout
from oio.common.http import (
    HeadersDict,
    get_addr,
    headers_from_object_metadata,
    http_header_from_ranges,
    parse_content_range,
    parse_content_type,
    ranges_from_http_header,
)
from oio.common.http_urllib3 import get_pool_manager, oio_exception_from_httperror
from oio.http.client import ConnectError, ConnectTimeout, HttpPool, ProtocolError, ReadTimeout, WriteTimeout

CLOSE_S = 30.0
META = {
    "id": "0011", "version": 5, "content_path": "a/b é", "chunk_method": "plain/nb_copy=1", "policy": "SINGLE",
    "container_id": "C" * 64, "full_path": "a/c/b/5/0011",
}  # fmt: skip


# --- headers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "params"),
    [
        ("text/plain", []),
        ('text/html; charset="utf-8"; level=1', [("charset", "utf-8"), ("level", "1")]),
        ("multipart/byteranges; boundary=abc", [("boundary", "abc")]),
    ],
)
def test_a_content_type_comes_back_with_its_parameters(raw, params):
    assert parse_content_type(raw) == (raw, params)


@pytest.mark.parametrize("raw", ["bytes 0-9", "0-9/100", "bytes */100", "bytes a-b/c", "", "bytes 0-9/*"])
def test_a_malformed_content_range_is_refused(raw):
    assert parse_content_range("bytes 0-9/100") == (0, 9, 100)
    with pytest.raises(ValueError):
        parse_content_range(raw)


@pytest.mark.parametrize(
    ("ranges", "text"),
    [
        ([(0, 4)], "bytes=0-4"),
        ([(0, 4), (10, None), (None, 5)], "bytes=0-4,10-,-5"),
        ([(7, 7)], "bytes=7-7"),
    ],
)
def test_ranges_and_headers_are_inverse(ranges, text):
    assert http_header_from_ranges(ranges) == text and ranges_from_http_header(text) == ranges


@pytest.mark.parametrize("wrong", [(None, None), (0, -1), (None, -5), (-1, 3), (5, 4)])
def test_wrong_ranges_are_refused(wrong):
    with pytest.raises(ValueError):
        http_header_from_ranges([(0, 1), wrong])


@pytest.mark.parametrize("text", ["", "bytes", "bytes=", "bytes=-", "bytes=a-b", "bytes=4-1", "0-4", "bytes=1,2"])
def test_wrong_range_headers_are_refused(text):
    with pytest.raises(ValueError):
        ranges_from_http_header(text)


def test_headers_of_the_upload_of_a_chunk():
    prefix = "x-oio-chunk-meta-"
    assert headers_from_object_metadata(META) == {
        "transfer-encoding": "chunked",
        prefix + "content-id": "0011",
        prefix + "content-version": "5",
        prefix + "content-path": "a%2Fb%20%C3%A9",
        prefix + "content-chunk-method": "plain/nb_copy=1",
        prefix + "content-storage-policy": "SINGLE",
        prefix + "container-id": "C" * 64,
        prefix + "oio-version": "4.2",
        prefix + "full-path": "a/c/b/5/0011",
    }
    more = {"metachunk_hash": "AA", "metachunk_size": 0, "chunk_hash": "BB", "oio_version": "4.0"}
    headers = headers_from_object_metadata({**META, **more})
    names = ("metachunk-hash", "metachunk-size", "chunk-hash", "oio-version")
    assert [headers[prefix + name] for name in names] == ["AA", "0", "BB", "4.0"]


@pytest.mark.parametrize("key", META)
def test_a_chunk_cannot_be_uploaded_without_its_facts(key):
    with pytest.raises(KeyError, match=key):
        headers_from_object_metadata({name: value for name, value in META.items() if name != key})


def test_addresses():
    assert get_addr("127.0.0.1", 80) == "127.0.0.1:80" and get_addr("::1", "80") == "[::1]:80"


def test_headers_are_title_cased():
    headers = HeadersDict({"x-oio-req-id": "a"}, timeout=5)
    assert dict(headers) == {"X-Oio-Req-Id": "a", "Timeout": "5"}
    headers.update({"CONTENT-type": "t"}, etag="e")
    headers.update([("x-a", "b")])
    assert headers["content-TYPE"] == headers.get("Content-Type") == "t"
    assert "Content-Type" in headers and "content-type" not in headers
    assert headers.get("absent") is None and headers.get("absent", 1) == 1
    assert headers.pop("eTAG") == "e" and headers.pop("etag", None) is None
    del headers["x-A"]
    headers["timeout"] = None
    assert set(headers) == {"X-Oio-Req-Id", "Content-Type"}


# --- pools ----------------------------------------------------------------------------------------


class Peer:
    """Closes its first connections without an answer, then answers each request."""

    def __init__(self, failures=0):
        self.failures = failures
        self.sockets = []
        self.requests = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}/"
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self):
        while True:
            try:
                connection, address = self.listener.accept()
            except OSError:
                return
            with connection:
                self.sockets.append(address)
                connection.recv(65536)
                self.requests += 1
                if self.requests > self.failures:
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    def close(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join(CLOSE_S)


@pytest.fixture
def peer():
    peer = Peer()
    yield peer
    peer.close()


def test_the_defaults():
    assert http_urllib3.DEFAULT_POOLSIZE == 32
    assert http_urllib3.DEFAULT_RETRIES == http_urllib3.DEFAULT_BACKOFF == 0
    assert "pool_timeout" in http_urllib3.URLLIB3_REQUESTS_KWARGS
    assert set(http_urllib3.URLLIB3_POOLMANAGER_KWARGS) == {
        "pool_connections", "pool_maxsize", "max_retries", "backoff_factor", "socket_options", "source_address",
        "cert_reqs", "ca_certs",
    }  # fmt: skip
    assert http_urllib3.urllib3 is real_urllib3
    assert type(get_pool_manager(unknown=1)) is HttpPool


def test_numbers_may_be_texts():
    assert get_pool_manager(pool_connections="5", pool_maxsize="7").max_idle_per_address == 7
    get_pool_manager(backoff_factor="never looked at")
    for wrong in (
        {"pool_connections": "a"}, {"pool_maxsize": "a"}, {"max_retries": "a"},
        {"max_retries": 1, "backoff_factor": "a"},
    ):  # fmt: skip
        with pytest.raises(ValueError):
            get_pool_manager(**wrong)


@pytest.mark.parametrize("source", ["127.0.0.9", ("127.0.0.9", 0)])
def test_connections_leave_from_the_source_address(peer, source):
    assert get_pool_manager(source_address=source).request("GET", peer.url).status == 200
    assert peer.sockets[0][0] == "127.0.0.9"


def test_the_options_of_sockets_are_set(monkeypatch, peer):
    pool = get_pool_manager(socket_options=[(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)])
    host, port = peer.url[7:-1].split(":")
    connection = pool.acquire(host, int(port))
    assert connection.sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    connection.close()


def test_certificates_are_checked_when_asked(tmp_path):
    assert not get_pool_manager().tls_verify
    pool = get_pool_manager(cert_reqs="CERT_REQUIRED", ca_certs="/ca.pem")
    assert pool.tls_verify and pool.tls_ca_file == "/ca.pem"


@pytest.mark.parametrize(("failures", "retries", "works"), [(2, "2", True), (2, 1, False), (1, 0, False)])
def test_safe_requests_are_retried_as_often_as_allowed(failures, retries, works):
    peer = Peer(failures)
    pool = get_pool_manager(max_retries=retries, backoff_factor="0.001")
    try:
        if works:
            assert pool.request("GET", peer.url).status == 200
        else:
            with pytest.raises(Exception) as caught:
                pool.request("GET", peer.url)
            with pytest.raises(OioNetworkException):
                oio_exception_from_httperror(caught.value)
        assert peer.requests == int(retries) + 1
    finally:
        peer.close()


def test_an_unsafe_request_is_sent_once():
    peer = Peer(1)
    try:
        with pytest.raises(Exception, match=r"127\.0\.0\.1"):
            get_pool_manager(max_retries=5).request("POST", peer.url)
        assert peer.requests == 1
    finally:
        peer.close()


def test_what_never_left_is_sent_again_whatever_it_is(monkeypatch):
    pool = get_pool_manager(max_retries=3)
    tries = []

    def refuse(*_args):
        tries.append(1)
        raise ConnectError("refused", "h:1", False)

    monkeypatch.setattr(HttpPool, "_connect", refuse)
    with pytest.raises(ConnectError):
        pool.request("POST", "http://h:1/")
    assert len(tries) == 4
    tries.clear()
    with pytest.raises(ConnectError):
        pool.request("POST", "http://h:1/", deadline=0.0)
    assert len(tries) == 1


def test_a_safe_pool_drops_unknown_keywords(peer):
    pool = http_urllib3.SafePoolManager()
    assert isinstance(pool, real_urllib3.PoolManager)
    assert pool.request("GET", peer.url, unknown=1, retries=False, perfdata={}).status == 200


# --- errors ---------------------------------------------------------------------------------------

errors = real_urllib3.exceptions


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ConnectError("x"), OioNetworkException),
        (ConnectTimeout("x"), OioTimeout),
        (ReadTimeout("x"), OioTimeout),
        (WriteTimeout("x"), OioTimeout),
        (ProtocolError("x"), OioNetworkException),
        (errors.MaxRetryError(None, "/", errors.NewConnectionError(None, "x")), OioNetworkException),
        (errors.MaxRetryError(None, "/", errors.ConnectTimeoutError("x")), OioTimeout),
        (errors.MaxRetryError(None, "/", errors.ReadTimeoutError(None, "/", "x")), OioTimeout),
        (errors.MaxRetryError(None, "/", errors.ResponseError("x")), OioNetworkException),
        (errors.ProtocolError("x"), OioNetworkException),
        (errors.ProxyError("x", ValueError()), OioNetworkException),
        (errors.ClosedPoolError(None, "x"), OioNetworkException),
        (errors.ReadTimeoutError(None, "/", "x"), OioTimeout),
        (errors.ConnectTimeoutError("x"), OioTimeout),
        (errors.LocationParseError("x"), OioException),
        (ValueError("x"), OioException),
    ],
)
def test_each_transport_error_has_its_class(error, kind):
    with pytest.raises(OioException) as caught:
        oio_exception_from_httperror(error, reqid="R1", url="http://h:80/path")
    assert type(caught.value) is kind and caught.value.args[0] == "reqid=R1, host=h:80"
    assert caught.value.__cause__ is error


def test_what_is_unknown_is_left_out():
    with pytest.raises(OioException) as caught:
        oio_exception_from_httperror(ValueError("x"), url="h:80")
    assert caught.value.args[0] == "host=h:80"


def test_neither_eventlet_nor_urllib3_is_loaded():
    code = "import sys, oio.common.http_urllib3; assert not {'eventlet', 'urllib3'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
