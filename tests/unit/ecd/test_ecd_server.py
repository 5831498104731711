# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Settings of the ecd daemon, its answers without rawx, and its processes."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support import ROOT, eventually

from oio.ecd.app import ECD, create_app
from oio.ecd.gateway import Gateway
from oio.ecd.server import Settings, make_server, read_settings
from oio.http.client import HttpClientError, HttpPool
from oio.http.server import Request, Response, Server
from oio.http.workers import reserve_port


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "ecd.conf"
    path.write_text(text)
    return str(path)


def test_settings_have_defaults(tmp_path: Path) -> None:
    settings = read_settings(write(tmp_path, "[ecd]\nendpoint = 127.0.0.1:6017\n"))
    assert settings == Settings(("127.0.0.1", 6017), "", 1, "", "INFO", None, False)


def test_every_setting(tmp_path: Path) -> None:
    text = (
        "[ecd]\nendpoint = [::1]:1\nnamespace = NS\nworkers = 3\nkey_file = /k\nlog_level = debug\n"
        "syslog_prefix = OIO,NS,ecd,1\naccess_log = on\n"
    )
    settings = read_settings(write(tmp_path, text))
    assert settings == Settings(("::1", 1), "NS", 3, "/k", "DEBUG", "OIO,NS,ecd,1", True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "section"),
        ("[ecd]\n", "endpoint"),
        ("[ecd]\nendpoint = nowhere\n", "nowhere"),
        ("[ecd]\nendpoint = 127.0.0.1:1\nworkers = 0\n", "workers"),
        ("[ecd]\nendpoint = 127.0.0.1:1\nworkers = many\n", "many"),
        ("[ecd]\nendpoint = 127.0.0.1:1\naccess_log = perhaps\n", "perhaps"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_settings(write(tmp_path, text))


def test_key_file_is_ignored_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    Gateway({"key_file": "/some/file"})
    assert "Backblaze" in caplog.text


# --- answers ------------------------------------------------------------------------------------


def test_the_server_answers_like_the_gateway() -> None:
    server = make_server(Settings(("127.0.0.1", 0)))
    server.start()
    pool = HttpPool()
    try:
        host, port = server.addresses[0][:2]

        def ask(method: str, path: str, **kwargs: Any) -> Any:
            return pool.request(method, f"http://{host}:{port}{path}", **kwargs)

        for method in ("POST", "DELETE", "HEAD", "OPTIONS"):
            assert ask(method, "/").status == 403
        assert ask("GET", "/nowhere").status == 404
        assert ask("DELETE", "/status").status == 403
        answer = ask("GET", "/")
        assert answer.status == 400
        assert answer.data == b"Missing header 'x-oio-chunk-meta-content-chunk-method'\n"
        assert answer.headers["x-oio-req-id"].startswith("ECD-")
        assert ask("GET", "/", headers={"x-oio-req-id": "mine"}).headers["x-oio-req-id"] == "mine"
        assert ask("PUT", "/", body=b"data").status == 400
        status = json.loads(ask("GET", "/status").data)
        assert status["refused"] == 9 and status["failed"] == 0
        assert b'oio_ecd_errors_total{kind="refused"}' in ask("GET", "/metrics").data
    finally:
        pool.close()
        server.stop(1.0)


def wsgi(app: ECD, **environ: Any) -> tuple[str, bytes]:
    answer: list[str] = []
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/", "wsgi.input": io.BytesIO(), **environ}
    pieces = app(environ, lambda status, _headers: answer.append(status))
    return answer[0], b"".join(pieces)


def test_the_application_answers_like_the_gateway() -> None:
    app = create_app({})
    assert isinstance(app, ECD)
    assert wsgi(app, REQUEST_METHOD="POST")[0] == "403 Forbidden"
    assert wsgi(app, PATH_INFO="/nowhere")[0] == "404 Not Found"
    status, body = wsgi(app)
    assert (status, body) == ("400 Bad Request", b"Missing header 'x-oio-chunk-meta-content-chunk-method'\n")
    assert wsgi(app, PATH_INFO="/status")[0] == "200 OK"


def test_services_cannot_be_resolved_without_namespace() -> None:
    headers = {
        "HTTP_X_OIO_CHUNK_META_CONTENT_CHUNK_METHOD": "ec/algo=liberasurecode_rs_vand,k=2,m=1",
        "HTTP_X_OIO_CHUNK_META_CHUNK_SIZE": "10",
        "HTTP_X_OIO_CHUNK_META_CHUNK_0": "http://NS-rawx-1/" + "AB" * 32,
    }
    status, body = wsgi(create_app({}), **headers)
    assert status.startswith("500 ")
    assert b"resolved" in body


METHOD = "ec/algo=liberasurecode_rs_vand,k=2,m=1"


def object_headers(urls: list[str]) -> dict[str, str]:
    """WSGI names of the headers of a PUT, and of a GET."""
    headers = {
        "content-id": "AB" * 16, "content-version": "1", "content-path": "o", "content-chunk-method": METHOD,
        "content-mime-type": "x/y", "content-storage-policy": "EC21", "container-id": "C0" * 32,
        "full-path": "a/c/o/1/" + "AB" * 16, "oio-version": "4.2", "chunk-pos": "0", "chunk-size": "10",
    }  # fmt: skip
    headers.update({f"chunk-{index}": url for index, url in enumerate(urls)})
    return {"HTTP_X_OIO_CHUNK_META_" + name.upper().replace("-", "_"): value for name, value in headers.items()}


def test_request_ids_go_to_the_rawx() -> None:
    seen: list[tuple[str, str]] = []

    def refuse(request: Request) -> Response:
        seen.append((request.method, request.headers["x-oio-req-id"]))
        request.drain()
        return Response(404)

    rawx = Server(refuse, [("127.0.0.1", 0)])
    rawx.start()
    try:
        host, port = rawx.addresses[0][:2]
        headers = object_headers([f"http://{host}:{port}/{index}{'AB' * 31}" for index in range(3)])
        app = create_app()
        assert wsgi(app, HTTP_X_OIO_REQ_ID="given", **headers)[0].startswith("500 ")
        assert {method for method, _ in seen} == {"HEAD", "GET"}
        assert {reqid for _, reqid in seen} == {"given"}
        seen.clear()
        body = {"wsgi.input": io.BytesIO(b"data"), "CONTENT_LENGTH": "4"}
        assert wsgi(app, REQUEST_METHOD="PUT", **body, **headers)[0].startswith("503 ")
        assert {method for method, _ in seen} == {"PUT"}
        assert len({reqid for _, reqid in seen}) == 1
        assert seen[0][1].startswith("ECD-")
    finally:
        rawx.stop(1.0)


@pytest.mark.parametrize(("lost", "status"), [(0, "200 OK"), (1, "200 OK"), (2, "500 ")])
def test_empty_metachunks(lost: int, status: str) -> None:
    def answer(request: Request) -> Response:
        if int(request.path[1]) < lost:
            return Response(404)
        headers = {"x-oio-chunk-meta-metachunk-size": "0", "x-oio-chunk-meta-chunk-size": "0"}
        return Response(200, b"", headers)

    rawx = Server(answer, [("127.0.0.1", 0)])
    rawx.start()
    try:
        host, port = rawx.addresses[0][:2]
        headers = object_headers([f"http://{host}:{port}/{index}{'AB' * 31}" for index in range(3)])
        for size in ("0", "10"):
            headers["HTTP_X_OIO_CHUNK_META_CHUNK_SIZE"] = size
            answered, body = wsgi(create_app(), **headers)
            assert answered.startswith(status)
            assert body == b"" or lost == 2
    finally:
        rawx.stop(1.0)


def test_a_timeout_of_the_rawx_is_not_a_lack_of_services(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oio.ecd.gateway.READ_TIMEOUT_S", 0.2)
    mutes = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    try:
        headers = object_headers([f"http://127.0.0.1:{one.getsockname()[1]}/{'AB' * 32}" for one in mutes])
        body = {"wsgi.input": io.BytesIO(b"data"), "CONTENT_LENGTH": "4"}
        status, text = wsgi(create_app(), REQUEST_METHOD="PUT", **body, **headers)
        assert status.startswith("500 ")
        assert b"timeout" in text.lower()
    finally:
        for one in mutes:
            one.close()


def test_a_body_shorter_than_announced_is_not_stored() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        urls = [f"http://127.0.0.1:{mute.getsockname()[1]}/{index}{'AB' * 31}" for index in range(3)]
        body = {"wsgi.input": io.BytesIO(b"data"), "CONTENT_LENGTH": "5"}
        status, text = wsgi(create_app(), REQUEST_METHOD="PUT", **body, **object_headers(urls))
        assert status.startswith("500 ")
        assert b"too early" in text


# --- processes ----------------------------------------------------------------------------------


def test_workers_share_a_port_and_count_together(tmp_path: Path) -> None:
    sock, port = reserve_port()
    path = write(tmp_path, f"[ecd]\nendpoint = 127.0.0.1:{port}\nworkers = 2\n")
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "bin" / "oio-ecd"), path], stdout=log, stderr=log, env=environ
        )
    pool = HttpPool(max_idle_per_address=0)
    url = f"http://127.0.0.1:{port}"
    try:

        def answers() -> bool:
            try:
                return pool.request("GET", f"{url}/status").status == 200
            except HttpClientError:
                return False

        eventually(answers, what="an answer")
        sock.close()
        for _ in range(20):
            assert pool.request("GET", url).status == 400

        def counted() -> bool:
            text = pool.request("GET", f"{url}/metrics").data.decode()
            return 'oio_ecd_errors_total{kind="refused"} 20.0' in text

        eventually(counted, what="the sum over the workers")
    finally:
        pool.close()
        process.send_signal(signal.SIGTERM)
        begin = time.monotonic()
        assert process.wait(20) == 0, (tmp_path / "log").read_text()
        assert time.monotonic() - begin < 15
