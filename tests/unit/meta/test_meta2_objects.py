# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Rules of objects: versions, deletion, append, checks, properties."""

from __future__ import annotations

import os
from typing import Any

import pytest
from meta2_bench import ADMIN, CID, Meta2Bench

from oio.common.status import StatusError
from oio.meta import messages as m


def refused(code: int, function: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(StatusError) as caught:
        function(*args, **kwargs)
    assert caught.value.code == code, caught.value
    return caught.value.message


def test_put_then_show(bench: Meta2Bench) -> None:
    content_id = os.urandom(16).hex().upper()
    version = bench.put("a", content_id=content_id, properties={"k": "v", "empty": ""})
    shown = bench.show("a")
    assert (shown.version, shown.size, shown.hash) == (version, 10, "AB" * 16)
    assert (shown.content_id, shown.policy, shown.chunk_method) == (
        content_id, "THREE", "plain/nb_copy=3",
    )
    assert len(shown.chunks) == 3
    assert shown.properties == {"k": "v"}
    by_id = bench.call(m.ContentShow(cid=CID, content_id=content_id, chunks=False, properties=False))
    assert (by_id.name, by_id.chunks, by_id.properties) == ("a", [], {})
    assert bench.check_counters() == (10, 1)


def test_absent(bench: Meta2Bench) -> None:
    refused(420, bench.show, "nothing")
    refused(420, bench.delete, "nothing")
    refused(420, bench.show, "nothing", version=5)
    refused(420, bench.call, m.ContentShow(cid=CID, content_id="AA"))
    refused(400, bench.call, m.ContentShow(cid=CID))
    refused(431, bench.call, m.ContentShow(cid="D" * 64, path="a"))
    refused(431, bench.call, m.ContainerTouch(cid="D" * 64))


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"path": ""}, 400),
        ({"version": -1}, 400),
        ({"content_id": ""}, 400),
        ({"size": -1, "chunks": Meta2Bench.chunks("0", 10, 3)}, 400),
        ({"hash": "AB"}, 400),
        ({"chunks": []}, 400),
        ({"chunks": Meta2Bench.chunks("x", 10, 3)}, 425),
        ({"chunks": Meta2Bench.chunks("0.1", 10, 3)}, 425),
        ({"chunks": Meta2Bench.chunks("1", 10, 3)}, 425),
        ({"chunks": Meta2Bench.chunks("0", 9, 3)}, 425),
        ({"chunks": Meta2Bench.chunks("0", 10, 2) + Meta2Bench.chunks("0", 11, 1)}, 425),
        ({"chunks": Meta2Bench.chunks("0", 10, 1) * 2}, 400),
    ],
)
def test_bad_put_changes_nothing(bench: Meta2Bench, fields: dict[str, Any], code: int) -> None:
    fields = dict(fields)
    refused(code, bench.put, fields.pop("path", "a"), **fields)
    assert bench.objects() == []
    assert bench.check_counters() == (0, 0)


def test_content_id_is_unique(bench: Meta2Bench) -> None:
    bench.put("a", content_id="AA" * 16)
    assert "ID" in refused(421, bench.put, "b", content_id="AA" * 16)
    assert bench.check_counters() == (10, 1)


def test_suspended_versioning_replaces(bench: Meta2Bench) -> None:
    bench.put("a", 100, size=5)
    refused(421, bench.put, "a", 100)
    refused(424, bench.put, "a", 99)
    created = bench.show("a").ctime
    bench.put("a", 101, size=7)
    assert bench.versions("a") == [(101, False)]
    assert bench.show("a").ctime == created
    assert bench.check_counters() == (7, 1)
    bench.delete("a")
    refused(420, bench.show, "a")
    refused(420, bench.delete, "a")
    assert bench.check_counters() == (0, 0)
    assert "sys.m2.policy.version" not in bench.properties()


def test_disabled_versioning(bench: Meta2Bench) -> None:
    bench.set(sys__m2__policy__version="0")
    version = bench.put("a")
    bench.put("a")
    assert len(bench.versions("a")) == 1
    refused(400, bench.delete, "a", version=version)
    bench.delete("a")
    assert bench.versions("a") == []


def test_unlimited_versioning(bench: Meta2Bench) -> None:
    bench.set(sys__m2__policy__version="-1")
    bench.put("a", 100)
    bench.put("a", 200)
    bench.put("a", 150)
    refused(421, bench.put, "a", 150)
    refused(421, bench.put, "a", 200)
    assert [v for v, _ in bench.versions("a")] == [200, 150, 100]
    assert bench.check_counters() == (30, 3)
    bench.delete("a")
    assert bench.versions("a")[0] == (201, True)
    refused(426, bench.show, "a")
    assert bench.show("a", deleted=True).deleted
    assert bench.show("a", version=200).version == 200
    refused(426, bench.show, "a", version=201)
    assert bench.objects() == []
    assert [item["version"] for item in bench.objects(deleted=True)] == [201]
    assert bench.check_counters() == (30, 3)
    bench.delete("a")  # the latest is a marker: it goes away
    assert bench.show("a").version == 200
    bench.delete("a", version=150)
    assert [v for v, _ in bench.versions("a")] == [200, 100]
    assert bench.check_counters() == (20, 2)


def test_delete_marker_flag(bench: Meta2Bench) -> None:
    bench.put("a", 100)
    refused(400, bench.delete, "a", delete_marker=True)
    bench.set(sys__m2__policy__version="-1")
    bench.put("a", 200)
    bench.delete("a", delete_marker=True)
    refused(400, bench.delete, "a", delete_marker=True)
    bench.delete("a", version=100, delete_marker=True)
    refused(421, bench.delete, "a", version=100, delete_marker=True)
    assert bench.versions("a") == [(201, True), (200, False), (101, True), (100, False)]
    refused(421, bench.put, "a", 101)


def test_delete_exceeding(bench: Meta2Bench) -> None:
    bench.set(sys__m2__policy__version="2")
    for version in (1, 2, 3):
        bench.put("a", version)
    assert [v for v, _ in bench.versions("a")] == [3, 2, 1]
    bench.set(sys__m2__policy__version__delete_exceeding="1")
    bench.delete("a")
    bench.put("a", 5)
    assert bench.versions("a") == [(5, False), (4, True), (3, False)]
    assert bench.check_counters() == (20, 2)
    bench.set(sys__m2__policy__version__delete_exceeding="0")
    bench.put("a", 6)
    assert len(bench.versions("a")) == 4


def test_forced_and_simulated_versioning(bench: Meta2Bench) -> None:
    bench.put("a", 1)
    bench.put("a", 2, force_versioning=-1)
    assert bench.properties()["sys.m2.policy.version"] == "-1"
    assert len(bench.versions("a")) == 2
    bench.delete("a", force_versioning=1)
    assert bench.properties()["sys.m2.policy.version"] == "1"
    assert bench.versions("a") == [(1, False)]
    bench.delete("a", force_versioning=-1)
    assert bench.versions("a") == [(2, True), (1, False)]
    bench.set(sys__m2__policy__version="1")
    bench.put("b", 1)
    bench.put("b", 2, simulate_versioning=True)
    bench.delete("b", simulate_versioning=True)
    assert bench.versions("b") == [(3, True), (2, False), (1, False)]
    assert bench.properties()["sys.m2.policy.version"] == "1"
    refused(420, bench.delete, "nothing", force_versioning=-1)
    assert bench.properties()["sys.m2.policy.version"] == "1"  # a refused request stores nothing


def test_append(bench: Meta2Bench) -> None:
    bench.put("a", 5, size=10, append=True)
    bench.put("a", 99, size=4, append=True, chunks=Meta2Bench.chunks("0", 4, 3))
    shown = bench.show("a")
    assert (shown.version, shown.size, shown.hash) == (5, 14, "")
    assert sorted(chunk.pos for chunk in shown.chunks) == ["0"] * 3 + ["1"] * 3
    assert bench.check_counters() == (14, 1)
    assert bench.objects()[0]["hash"] == ""
    bench.set(sys__m2__policy__version="-1")
    bench.delete("a")
    bench.put("a", 200, size=3, append=True)  # after a marker it is a put
    assert bench.show("a").version == 200


def test_missing_chunks_are_counted(bench: Meta2Bench) -> None:
    bench.put("a", copies=2)
    admin = bench.properties()
    assert (admin["sys.m2.objects.damaged"], admin["sys.m2.chunks.missing"]) == ("1", "1")
    bench.put("a", size=4, append=True, copies=2)
    admin = bench.properties()
    assert (admin["sys.m2.objects.damaged"], admin["sys.m2.chunks.missing"]) == ("1", "2")
    bench.put("a", size=4, append=True)
    bench.put("b")
    admin = bench.properties()
    assert (admin["sys.m2.objects.damaged"], admin["sys.m2.chunks.missing"]) == ("1", "2")
    bench.delete("a")
    admin = bench.properties()
    assert (admin["sys.m2.objects.damaged"], admin["sys.m2.chunks.missing"]) == ("0", "0")


def test_erasure_coding_check(bench: Meta2Bench) -> None:
    security = m.Security(type="ec", k=2, m=1)

    def put(positions: list[str], size: int = 10) -> None:
        chunks = [c for pos in positions for c in Meta2Bench.chunks(pos, 10, 1)]
        bench.put("e", size=size, chunks=chunks, security=security, chunk_method="ec/k=2,m=1")

    put(["0.0", "0.1", "0.2"])
    assert "sys.m2.chunks.missing" not in bench.properties()
    put(["0.0", "0.2"])
    assert bench.properties()["sys.m2.chunks.missing"] == "1"
    put(["0.0", "0.1", "0.2", "1.0", "1.1", "1.2"], 20)
    assert bench.properties()["sys.m2.chunks.missing"] == "0"
    refused(425, put, ["0.0"])
    refused(425, put, ["0.0", "0.1", "0.3"])
    refused(425, put, ["0.0", "0.1", "0.1"])
    refused(425, put, ["0", "0.1", "0.2"])
    refused(425, put, ["1.0", "1.1", "1.2"])
    refused(425, put, ["0.0", "0.1", "0.2"], 21)


def test_properties(bench: Meta2Bench) -> None:
    bench.put("a", properties={"x": "1"})
    bench.call(m.ContentSetProperties(cid=CID, path="a", properties={"y": "2", "x": "é"}))
    assert bench.show("a").properties == {"x": "é", "y": "2"}
    bench.call(m.ContentSetProperties(cid=CID, path="a", properties={"y": ""}))
    assert bench.show("a").properties == {"x": "é"}
    bench.call(m.ContentSetProperties(cid=CID, path="a", properties={"z": "3"}, clear=True))
    assert bench.show("a").properties == {"z": "3"}
    bench.call(m.ContentDelProperties(cid=CID, path="a", names=["unknown"]))
    bench.call(m.ContentDelProperties(cid=CID, path="a"))
    assert bench.show("a").properties == {}
    refused(420, bench.call, m.ContentSetProperties(cid=CID, path="n", properties={"y": "2"}))


def test_delete_many(bench: Meta2Bench) -> None:
    names = ["plain", "a b%", "new\nline", "quote'\"", "d/é"]
    for name in names:
        bench.put(name)
    reply = bench.call(m.ContentDeleteMany(cid=CID, paths=[*names[:2], "absent", *names[2:]]))
    assert [item.status for item in reply.items] == [204, 204, 420, 204, 204, 204]
    assert bench.check_counters() == (0, 0)


def test_frozen_and_disabled(bench: Meta2Bench) -> None:
    bench.put("a")
    bench.set(sys__status="4294967295")
    for attempt in (
        lambda: bench.put("b"),
        lambda: bench.delete("a"),
        lambda: bench.call(m.ContentSetProperties(cid=CID, path="a", properties={"y": "2"})),
        lambda: bench.call(m.ContentDelProperties(cid=CID, path="a")),
    ):
        assert "frozen" in refused(436, attempt)
    assert bench.show("a").name == "a"
    assert len(bench.objects()) == 1
    bench.call(m.ContentTouch(cid=CID, path="a"))
    bench.set(sys__status="4294967294")
    for attempt in (
        lambda: bench.put("b"),
        lambda: bench.show("a"),
        bench.objects,
        lambda: bench.call(m.ContentTouch(cid=CID, path="a")),
    ):
        assert "disabled" in refused(436, attempt)
    bench.call(m.ContainerTouch(cid=CID))
    bench.set(sys__status="0")
    bench.put("b")


def test_worm(bench: Meta2Bench) -> None:
    bench.put("a", 1)
    bench.variables.set("ns.worm", "on")
    bench.put("b")
    assert "worm" in refused(421, bench.put, "a")
    assert "worm" in refused(405, bench.delete, "a")
    refused(405, bench.call, m.ContentDeleteMany(cid=CID, paths=["a"]))
    refused(405, bench.call, m.ContainerDestroy(cid=CID))
    bench.put("a", size=4, append=True)
    bench.call(m.ContentSetProperties(cid=CID, path="a", properties={"y": "2"}))
    bench.put("a", context=ADMIN)
    bench.delete("a", ADMIN)


def test_slave_namespace(bench: Meta2Bench) -> None:
    bench.put("a")
    bench.variables.set("ns.master", "off")
    assert "NS slave!" in refused(500, bench.put, "b")
    refused(500, bench.delete, "a")
    refused(500, bench.set, user__a="b")
    refused(500, bench.call, m.ContainerDestroy(cid=CID))
    assert bench.show("a").name == "a"
    bench.put("b", context=ADMIN)
