# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""HTTP as the proxy speaks it: connections, routing, errors, headers that every route understands."""

import socket
import threading

import msgspec
import pytest
from proxy_cluster import NS

from oio.common.status import StatusError
from oio.meta.messages import Properties

REF = "acct=acct&ref=ref"
HEAD = f"GET /v3.0/{NS}/lb/choose?type=rawx HTTP/1.1\r\nHost: x\r\n"


class Raw:
    """One connection, with bytes as they are."""

    def __init__(self, cluster):
        host, port = cluster.server.addresses[0]
        self.sock = socket.create_connection((host, port), 5)
        self.buffer = b""

    def send(self, text):
        """Send text."""
        self.sock.sendall(text if isinstance(text, bytes) else text.encode("latin-1"))

    def answer(self):
        """Status, headers and body of the next answer."""
        while b"\r\n\r\n" not in self.buffer:
            data = self.sock.recv(65536)
            assert data, f"connection closed after {self.buffer!r}"
            self.buffer += data
        head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        length = int(headers["content-length"]) if "content-length" in headers else 0
        while len(self.buffer) < length:
            data = self.sock.recv(65536)
            assert data
            self.buffer += data
        body, self.buffer = self.buffer[:length], self.buffer[length:]
        return int(first.split(" ")[1]), headers, body

    def is_closed(self):
        """Did the proxy close the connection?"""
        return self.sock.recv(1) == b""


@pytest.fixture
def raw(cluster):
    connection = Raw(cluster)
    yield connection
    connection.sock.close()


# --- connections


@pytest.mark.parametrize("option", ["keep-alive", "Keep-Alive", "KEEP-ALIVE"])
def test_connections_are_kept_for_those_who_ask(raw, option):
    for _ in range(3):
        raw.send(f"{HEAD}Connection: {option}\r\n\r\n")
        status, headers, _ = raw.answer()
        assert status == 200
        assert headers["connection"].lower() == "keep-alive"


@pytest.mark.parametrize("option", ["", "Connection: close\r\n", "Connection: upgrade\r\n"])
def test_other_connections_are_closed(raw, option):
    raw.send(f"{HEAD}{option}\r\n")
    status, headers, _ = raw.answer()
    assert status == 200
    assert headers["connection"].lower() == "close"
    assert raw.is_closed()


def test_errors_keep_the_connection_too(raw):
    for _ in range(2):
        raw.send("GET /nowhere HTTP/1.1\r\nHost: x\r\nConnection: keep-alive\r\n\r\n")
        assert raw.answer()[0] == 404


# --- what is not HTTP


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("nonsense\r\n\r\n", 400), ("GET /v3.0/status HTTP/3.0\r\n\r\n", None),
        ("GET /v3.0/status HTTP/1.1\r\nHost x\r\n\r\n", 400),
        ("GET /v3.0/status HTTP/1.1\r\nHost: x\r\nbad header: x\r\n\r\n", 400),
        ("POST /v3.0/config HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n", 400),
        ("POST /v3.0/config HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        ("POST /v3.0/config HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", None),
        ("GET /" + "a" * 70000 + " HTTP/1.1\r\n\r\n", 414),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_in_json(raw, text, status):
    raw.send(text)
    got, headers, body = raw.answer()
    assert got == status if status else got >= 400
    assert headers["content-type"] == "application/json"
    assert headers["x-oio-req-id"].startswith("proxy-")
    error = msgspec.json.decode(body)
    assert set(error) == {"status", "message"} and error["message"]
    assert raw.is_closed()


def test_a_body_that_breaks_off_changes_nothing(cluster, raw):
    raw.send("POST /v3.0/config HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    raw.sock.shutdown(socket.SHUT_WR)
    raw.sock.recv(65536)
    assert cluster.get("lb/choose?type=rawx").status == 200


def test_a_body_in_bad_chunks_is_refused_in_json(raw):
    raw.send("POST /v3.0/config HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")
    status, headers, body = raw.answer()
    assert (status, headers["content-type"]) == (400, "application/json")
    assert msgspec.json.decode(body)["status"] == 400


def test_a_body_that_is_too_large_is_refused(cluster):
    cluster.process.variables.set("server.request.max_size", "1024")
    cluster.app.apply_variables()
    answer = cluster.post("lb/poll?pool=rawx", b" " * 2000)
    cluster.process.variables.set("server.request.max_size", "1Gi")
    cluster.app.apply_variables()
    assert answer.code == (413, 413)


# --- bodies


@pytest.mark.parametrize("kind", ["text/plain", "application/json", "application/x-www-form-urlencoded"])
def test_bodies_are_json_whatever_they_pretend(cluster, kind):
    assert cluster.post("lb/poll?pool=rawx3", b"{}", headers={"Content-Type": kind}).status == 200
    answer = cluster.post("lb/poll?pool=rawx3", b"{'a': 1}", headers={"Content-Type": kind})
    assert answer.code == (400, 400)
    assert answer.json["message"].startswith("Invalid JSON")


@pytest.mark.parametrize("body", [b"[" * 100000, b"\xff", b'"\\ud800"', b"{} {}", b"NaN", b"\x00"])
def test_hostile_json(cluster, body):
    assert cluster.post("lb/poll?pool=rawx3", body).code == (400, 400)


def test_an_empty_body_is_null(cluster):
    for body in (b"", b"null"):
        assert cluster.post("lb/poll?pool=rawx3", body).status == 200


def test_headers_of_answers(raw):
    raw.send(f"{HEAD}Connection: keep-alive\r\n\r\n")
    _, headers, body = raw.answer()
    assert headers["content-type"] == "application/json" and int(headers["content-length"]) == len(body)
    raw.send(f"POST /v3.0/{NS}/lb/reload HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
    status, headers, body = raw.answer()
    assert (status, body) == (204, b"")
    assert "content-type" not in headers


# --- routing


def test_every_route_answers_404_to_other_methods(cluster):
    known = {tuple(key.split(" ", 1)) for key in cluster.app.routes}
    for path in sorted({path for _, path in known}):
        for method in ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
            if (method, path) not in known:
                answer = cluster.request(method, path, raw=True)
                assert answer.code == (404, 404), (method, path)


def test_every_route_checks_the_namespace(cluster):
    for key in cluster.app.routes:
        method, path = key.split(" ", 1)
        if f"/{NS}/" in path:
            answer = cluster.request(method, path.replace(f"/{NS}/", "/ELSEWHERE/"), raw=True)
            assert answer.code == (400, 400)
            assert answer.json["message"] == "Invalid parameter 'namespace'"


@pytest.mark.parametrize(
    "path", ["/v3.0/status/", "///v3.0/status", "/v3.0/%73tatus", "/v3.0/status?x=1", "/v3.0/status/?"]
)
def test_ways_to_write_a_path(cluster, path):
    assert cluster.request("GET", path, raw=True).status == 200


@pytest.mark.parametrize(
    "path", ["/v3.0/status//", "/v3.0//status", "/v3.0/Status", "/v3.0/status/x", "/v3.0%2Fstatus"]
)
def test_other_paths(cluster, path):
    assert cluster.request("GET", path, raw=True).code == (404, 404)


def test_long_paths_match_nothing(cluster):
    path = "/" * 2040 + "v3.0/status"
    assert len(path) > 2048
    assert cluster.request("GET", path, raw=True).code == (404, 404)
    assert cluster.request("GET", path[20:], raw=True).status == 200
    cluster.process.variables.set("proxy.url.path.maxlen", "4096")
    assert cluster.request("GET", path, raw=True).status == 200


@pytest.mark.parametrize("length", [33, 64, 65, 256])
def test_long_names_of_methods(raw, length):
    raw.send("X" * length + " /v3.0/status HTTP/1.1\r\nHost: x\r\n\r\n")
    status, _, body = raw.answer()
    assert status == 404
    assert msgspec.json.decode(body) == {"status": 404, "message": "No handler found"}


def test_names_of_methods_without_end(raw):
    raw.send("X" * 257 + " /v3.0/status HTTP/1.1\r\nHost: x\r\n\r\n")
    status, _, body = raw.answer()
    assert (status, msgspec.json.decode(body)["status"]) == (400, 400)


# --- parameters and headers


def test_parameters(cluster):
    def size(query):
        return len(cluster.get(f"lb/choose?type=rawx&{query}").json)

    assert size("size=2&size=5") == 2, "the first value wins"
    assert size("size=%32&unknown=%20x") == 2
    assert cluster.get("lb/choose?type=ra+wx").code == cluster.get("lb/choose?type=ra%20wx").code == (404, 453)
    assert cluster.get("lb/choose?type=%FF").code == (400, 400)


def test_flags_in_the_query_win(cluster):
    body = {"properties": {"a": "b"}}
    action = {"X-oio-action-mode": "dryrun, autocreate"}
    cluster.post(f"reference/link?{REF}&type=meta2", body, headers=action)
    sent = cluster.meta.last("reference_link")
    assert sent.dryrun and sent.autocreate
    cluster.post(f"reference/link?{REF}&type=meta2", body, headers={"X-oio-action-mode": "AutoCreate,DRYRUN"})
    sent = cluster.meta.last("reference_link")
    assert sent.dryrun and sent.autocreate
    cluster.post(f"reference/link?{REF}&type=meta2&dryrun=no&autocreate=YEAH", headers=action)
    sent = cluster.meta.last("reference_link")
    assert not sent.dryrun and sent.autocreate


@pytest.mark.parametrize("word", ["1", "yes", "TRUE", "on", "Enable", "enabled", "yeah"])
def test_words_for_true(cluster, word):
    cluster.post(f"reference/destroy?{REF}&force={word}")
    assert cluster.meta.last("reference_destroy").force


@pytest.mark.parametrize("word", ["0", "no", "false", "off", "disable", "disabled", "nope", "", "perhaps"])
def test_words_for_false(cluster, word):
    cluster.post(f"reference/destroy?{REF}&force={word}")
    assert not cluster.meta.last("reference_destroy").force


def test_request_ids_travel(cluster):
    answer = cluster.post(f"reference/destroy?{REF}", headers={"X-OIO-REQ-ID": "mine"})
    assert answer.headers["x-oio-req-id"] == "mine"
    assert cluster.meta.headers[-1]["x-oio-req-id"] == "mine"
    answer = cluster.post(f"reference/destroy?{REF}")
    made = answer.headers["x-oio-req-id"]
    assert made.startswith("proxy-")
    assert cluster.meta.headers[-1]["x-oio-req-id"] == made
    answer = cluster.post(f"reference/destroy?{REF}", headers={"x-oio-req-id": "x" * 99})
    assert answer.headers["x-oio-req-id"] == "x" * 63


def test_the_user_agent_travels(cluster):
    cluster.post(f"reference/destroy?{REF}", headers={"User-Agent": "somebody"})
    assert cluster.meta.headers[-1]["user-agent"] == "somebody"


def test_the_deadline_travels(cluster):
    cluster.post(f"reference/destroy?{REF}", headers={"X-oio-timeout": "2500000"})
    assert 2000000 < int(cluster.meta.headers[-1]["x-oio-timeout"]) <= 2500000
    cluster.post(f"reference/destroy?{REF}")
    assert int(cluster.meta.headers[-1]["x-oio-timeout"]) <= 30000000, "one exchange at most"
    cluster.process.variables.set("proxy.request.max_delay", "3s")
    cluster.post(f"reference/destroy?{REF}")
    assert int(cluster.meta.headers[-1]["x-oio-timeout"]) <= 3000000


def test_a_deadline_that_is_over(cluster):
    answer = cluster.post(f"reference/destroy?{REF}", headers={"X-oio-timeout": "0"})
    assert answer.code == (503, 504)
    assert answer.headers["retry-after"] == "1"
    assert cluster.meta.calls == []


@pytest.mark.parametrize("text", ["soon", "-1", "nan", "inf", ""])
def test_bad_deadlines(cluster, text):
    answer = cluster.post(f"reference/destroy?{REF}", headers={"X-oio-timeout": text})
    assert answer.code == (400, 400)
    assert "x-oio-timeout" in answer.json["message"]


def test_a_service_that_is_slower_than_the_deadline(cluster):
    release = threading.Event()
    cluster.meta.answers["reference_destroy"] = lambda call: release.wait(5) and None
    try:
        answer = cluster.post(f"reference/destroy?{REF}", headers={"X-oio-timeout": "100000"})
    finally:
        release.set()
    assert answer.code == (503, 503)
    assert "(7)" in answer.json["message"]


def test_measures_are_given_to_those_who_ask(cluster):
    cluster.meta.answers["container_get_properties"] = Properties()
    path = f"container/get_properties?{REF}"
    assert "x-oio-perfdata" not in cluster.post(path).headers
    text = cluster.post(path, headers={"X-oio-perfdata": "enabled"}).headers["x-oio-perfdata"]
    measures = dict(part.split("=") for part in text.split(","))
    assert {"resolve", "meta2"} <= set(measures)
    assert all(value.isdigit() for value in measures.values())


# --- errors


@pytest.mark.parametrize(
    ("code", "http"),
    [
        (400, 400), (403, 403), (405, 405), (406, 404), (409, 404), (420, 404), (431, 404), (454, 404),
        (418, 404), (453, 404), (421, 409), (424, 409), (433, 409), (305, 503), (436, 503), (503, 503),
        (504, 503), (509, 503), (511, 503), (404, 500), (407, 403), (437, 500), (450, 500), (455, 500),
        (480, 500), (481, 500), (500, 500), (438, 500), (427, 500), (999, 500),
    ],
)  # fmt: skip
def test_codes_of_the_backend(cluster, code, http):
    """On ``reference/destroy``, which makes a 403 of its 407."""
    cluster.meta.answers["reference_destroy"] = StatusError(code, "scripted")
    answer = cluster.post(f"reference/destroy?{REF}")
    assert answer.code == (http, code)
    assert "scripted" in answer.json["message"]
    assert ("retry-after" in answer.headers) == (http == 503)
    assert ("allow" in answer.headers) == (http == 405)


@pytest.mark.parametrize(("code", "http"), [(438, 409), (427, 410), (19, 400), (406, 404)])
def test_codes_of_the_containers(cluster, code, http):
    cluster.meta.answers["container_get_properties"] = StatusError(code, "scripted")
    assert cluster.post(f"container/get_properties?{REF}").code == (http, code)
