# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""The HTTP side of meta services, and the lock of volumes."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from meta2_bench import CID, Meta2Bench

from oio.common.status import StatusError
from oio.common.volume_lock import VolumeLockError, lock_volume
from oio.http.client import HttpPool
from oio.http.server import Server
from oio.meta import messages as m
from oio.meta.client import MetaClient
from oio.meta.server import MetaApplication, open_process


@pytest.fixture
def served(bench: Meta2Bench) -> Iterator[tuple[str, HttpPool, MetaApplication]]:
    application = MetaApplication("meta2", "NS", bench.handlers, bench.variables, bench.repository)
    server = Server(application, [("127.0.0.1", 0)])
    application.server = server
    server.start()
    host, port = server.addresses[0]
    pool = HttpPool()
    yield f"{host}:{port}", pool, application
    pool.close()
    server.stop(1)


def test_operations(served: tuple[str, HttpPool, MetaApplication]) -> None:
    address, pool, _ = served
    client = MetaClient(pool)
    chunks = Meta2Bench.chunks("0", 5, 1)
    put = m.ContentPut(cid=CID, path="é", version=1, content_id="AA", size=5, chunks=chunks)
    assert client.call(address, put) is None
    shown = client.call(address, m.ContentShow(cid=CID, path="é"))
    assert shown.size == 5
    assert shown.chunks == chunks
    with pytest.raises(StatusError) as caught:
        client.call(address, m.ContentShow(cid=CID, path="n"))
    assert caught.value.code == 420


def test_administrators_and_worm(served: tuple[str, HttpPool, MetaApplication], bench: Meta2Bench) -> None:
    address, pool, _ = served
    bench.put("a")
    bench.variables.set("ns.worm", "on")
    client = MetaClient(pool)
    with pytest.raises(StatusError) as caught:
        client.call(address, m.ContentDelete(cid=CID, path="a"))
    assert caught.value.code == 405
    client.call(address, m.ContentDelete(cid=CID, path="a"), admin=True)


def test_bad_requests(served: tuple[str, HttpPool, MetaApplication]) -> None:
    address, pool, _ = served
    encode = msgspec.msgpack.encode
    for body in (
        b"",
        b"\xc1",
        encode([]),
        encode({"cid": "x"}),
        encode({"cid": CID.lower(), "path": "a"}),
        encode({"cid": CID + "\n", "path": "a"}),
        encode({"cid": CID, "path": 5}),
        encode({"cid": CID, "path": "a", "version": "1"}),
        b"\x82\xa3cid\xd9\x40" + CID.encode() + b"\xa4path\xa2\xff\xfe",
    ):
        answer = pool.request("POST", f"http://{address}/v1/content_show", body=body)
        assert answer.status == 400, body
        assert msgspec.msgpack.decode(answer.data)["status"] == 400
    for method, path in (("GET", "/v1/content_show"), ("POST", "/v1/unknown"), ("GET", "/")):
        answer = pool.request(method, f"http://{address}{path}")
        assert msgspec.msgpack.decode(answer.data)["status"] == 404


def test_plain_routes(served: tuple[str, HttpPool, MetaApplication], bench: Meta2Bench) -> None:
    address, pool, _ = served
    url = f"http://{address}"
    assert pool.request("POST", url + "/v1/ping").status == 204
    information = json.loads(pool.request("GET", url + "/status").data)
    assert information["replication"] == "NONE"
    assert information["server"]["connections"]["clients"] >= 1
    pool.request("POST", url + "/v1/content_show", body=b"")
    assert "counter req.hits.content_show 1" in pool.request("GET", url + "/stats").data.decode()
    metrics = pool.request("GET", url + "/metrics").data.decode()
    assert 'oio_meta_requests_total{operation="content_show"} 1.0' in metrics
    assert 'oio_meta_errors_total{code="400"} 1.0' in metrics
    assert json.loads(pool.request("GET", url + "/config").data)["ns.worm"] == "off"
    answer = pool.request("POST", url + "/config", body=b'{"ns.worm":"on","no.such":"1"}')
    assert json.loads(answer.data) == {"ns.worm": True, "no.such": False}
    assert bench.variables["ns.worm"] is True
    for body in (b"", b"{}", b"[]", b'{"a":{}}'):
        assert pool.request("POST", url + "/config", body=body).status == 400


@pytest.mark.parametrize(("text", "code"), [("0", 504), ("-5", 504), ("x", 400), ("5000000", 0)])
def test_time_allowed(
    bench: Meta2Bench, served: tuple[str, HttpPool, MetaApplication], text: str, code: int
) -> None:
    bench.create()
    address, pool, _ = served
    answer = pool.request(
        "POST", f"http://{address}/v1/container_touch", {"x-oio-timeout": text},
        msgspec.msgpack.encode(m.ContainerTouch(cid=CID)),
    )  # fmt: skip
    assert (msgspec.msgpack.decode(answer.data)["status"] if answer.data else 0) == code


@pytest.mark.parametrize(
    "words", [["NS", "v"], ["-O", "Endpoint=x", "NS", "v"], ["-O", "Endpoint=1.2.3.4:5", "-O", "A=b", "NS", "v"]]
)
def test_bad_command_lines(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        open_process("meta2", [*words[:-1], str(tmp_path / "v")])
    assert caught.value.code == 1
    assert "oio-meta2-server:" in capsys.readouterr().err


def test_volume_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = str(tmp_path)
    lock = lock_volume(volume, "NS", "meta2", "id-1")
    assert os.getxattr(volume, "user.server.id") == b"id-1"
    with pytest.raises(VolumeLockError, match="another process"):
        lock_volume(volume, "NS", "meta2", "id-1")
    lock.release()
    for wrong in (("NS2", "meta2", "id-1"), ("NS", "rawx", "id-1"), ("NS", "meta2", "id-2")):
        with pytest.raises(VolumeLockError, match=r"user\.server"):
            lock_volume(volume, *wrong)
    lock_volume(volume, "NS", "meta2", "id-1").release()
    with pytest.raises(VolumeLockError, match="No such file"):
        lock_volume(volume + "/absent", "NS", "meta2", "id-1")

    def unsupported(*args: object) -> bytes:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(os, "getxattr", unsupported)
    with pytest.raises(VolumeLockError, match="no extended attributes"):
        lock_volume(volume, "NS", "meta2", "id-1")
