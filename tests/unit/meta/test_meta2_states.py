# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Status of containers: the transitions, and what each status allows."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytest
from meta2_bench import ADMIN, CID, Meta2Bench

from oio.common.status import StatusError
from oio.meta import messages as m

CONTENT = "AA" * 16
STATUSES = {"enabled": "0", "frozen": "4294967295", "disabled": "4294967294"}

Call = Callable[[Meta2Bench], object]


def set_status(bench: Meta2Bench, status: str, tolerant: bool = False) -> None:
    bench.call(m.ContainerSetStatus(cid=CID, status=status, tolerant=tolerant))  # type: ignore[arg-type]


def expect(code: int) -> AbstractContextManager[object]:
    if not code:
        return nullcontext()
    return pytest.raises(StatusError, match=rf"^\({code}\)")


@pytest.mark.parametrize(
    ("present", "wanted", "code"),
    [
        ("enabled", "enabled", 439), ("enabled", "frozen", 0), ("enabled", "disabled", 0),
        ("frozen", "enabled", 0), ("frozen", "frozen", 436), ("frozen", "disabled", 436),
        ("disabled", "enabled", 0), ("disabled", "frozen", 437), ("disabled", "disabled", 437),
    ],
)  # fmt: skip
def test_transitions(bench: Meta2Bench, present: str, wanted: str, code: int) -> None:
    bench.set(sys__status=STATUSES[present])
    with expect(code):
        set_status(bench, wanted)
    assert bench.properties()["sys.status"] == STATUSES[present if code else wanted]
    bench.set(sys__status=STATUSES[present])
    # A tolerant caller accepts the status that it wanted, nothing else.
    with expect(0 if present == wanted else code):
        set_status(bench, wanted, tolerant=True)


@pytest.mark.parametrize(("text", "word"), [("-1", "frozen"), ("-2", "disabled")])
def test_signed_values_are_understood(bench: Meta2Bench, text: str, word: str) -> None:
    bench.set(sys__status=text)
    with pytest.raises(StatusError, match=f"Invalid status: {word}"):
        set_status(bench, word)
    set_status(bench, "enabled")
    assert bench.properties()["sys.status"] == "0"


def test_status_changes_whatever_the_modes_of_the_namespace(bench: Meta2Bench) -> None:
    bench.variables.set("ns.worm", "on")
    bench.variables.set("ns.master", "off")
    set_status(bench, "frozen")
    set_status(bench, "enabled")
    set_status(bench, "disabled")


def test_absent_containers_have_no_status(bench: Meta2Bench) -> None:
    bench.repository.write(CID + ".1", lambda tx: tx.unset("sys.m2.init"))
    with expect(431):
        set_status(bench, "frozen")
    bench.call(m.ContainerDestroy(cid=CID, force=True))
    with expect(431):
        set_status(bench, "frozen")


def test_a_container_that_must_be_empty(bench: Meta2Bench) -> None:
    request = m.ContainerSetStatus(cid=CID, status="frozen", tolerant=True, only_empty=True)
    bench.put("a")
    for status in STATUSES.values():
        bench.set(sys__status=status)
        with expect(438):
            bench.call(request)
        assert bench.properties()["sys.status"] == status
    bench.set(sys__status="0")
    bench.delete("a")
    bench.call(request)
    assert bench.properties()["sys.status"] == STATUSES["frozen"]


def chunk_bean(bench: Meta2Bench) -> m.RawChunk:
    chunk = bench.show("a", content_id=CONTENT, deleted=True).chunks[0]
    return m.RawChunk(id=chunk.url, hash=chunk.hash, size=chunk.size, content=CONTENT, pos=chunk.pos)


def raw_update(frozen: bool) -> Call:
    def call(bench: Meta2Bench) -> None:
        # The bean is taken while the container could be read, by the test.
        old = bench.bean  # type: ignore[attr-defined]
        new = m.RawChunk(id="http://other/1", hash=old.hash, size=old.size, content=CONTENT, pos="0")
        bench.call(m.RawUpdate(cid=CID, old=[old], new=[new], frozen=frozen))

    return call


def raw_insert(frozen: bool) -> Call:
    chunk = m.RawChunk(id="http://new/1", hash="CD" * 16, size=10, content=CONTENT, pos="0")
    return lambda bench: bench.call(m.RawInsert(cid=CID, beans=[chunk], frozen=frozen))


READS: dict[str, Call] = {
    "show": lambda bench: bench.show("a"),
    "list": lambda bench: bench.listing(),
    "look up by hash": lambda bench: bench.listing(content_hash="AB" * 16),
    "touch object": lambda bench: bench.call(m.ContentTouch(cid=CID, path="a")),
}
WRITES: dict[str, Call] = {
    "put": lambda bench: bench.put("b"),
    "append": lambda bench: bench.put("a", append=True),
    "delete": lambda bench: bench.delete("a"),
    "delete many": lambda bench: bench.call(m.ContentDeleteMany(cid=CID, paths=["a"])),
    "set properties": lambda bench: bench.call(
        m.ContentSetProperties(cid=CID, path="a", properties={"k": "v"})
    ),
    "delete properties": lambda bench: bench.call(m.ContentDelProperties(cid=CID, path="a")),
    "raw delete": lambda bench: bench.call(
        m.RawDelete(cid=CID, beans=[m.RawAlias(name="x", version=1, header=CONTENT)])
    ),
    "raw insert": raw_insert(False),
    "raw update": raw_update(False),
}
ALLOWED_WHEN_FROZEN: dict[str, Call] = {
    "flush": lambda bench: bench.call(m.ContainerFlush(cid=CID)),
    "raw insert, frozen": raw_insert(True),
    "raw update, frozen": raw_update(True),
}
ALWAYS: dict[str, Call] = {
    "get properties": lambda bench: bench.properties(),
    "set container properties": lambda bench: bench.set(user__k="v"),
    "delete container properties": lambda bench: bench.call(m.ContainerDelProperties(cid=CID)),
    "touch": lambda bench: bench.call(m.ContainerTouch(cid=CID)),
    "recompute": lambda bench: bench.call(m.ContainerTouch(cid=CID, recompute=True)),
    "destroy": lambda bench: bench.call(m.ContainerDestroy(cid=CID, force=True)),
    "enable": lambda bench: set_status(bench, "enabled", tolerant=True),
}
CASES = [
    *[(name, call, 0, 0, 436) for name, call in READS.items()],
    *[(name, call, 0, 436, 436) for name, call in WRITES.items()],
    *[(name, call, 0, 0, 436) for name, call in ALLOWED_WHEN_FROZEN.items()],
    *[(name, call, 0, 0, 0) for name, call in ALWAYS.items()],
]


@pytest.mark.parametrize("status", list(STATUSES))
@pytest.mark.parametrize(("call", "codes"), [pytest.param(c[1], c[2:], id=c[0]) for c in CASES])
def test_what_a_status_allows(
    bench: Meta2Bench, call: Call, codes: tuple[int, ...], status: str
) -> None:
    bench.put("a", content_id=CONTENT)
    bench.bean = chunk_bean(bench)  # type: ignore[attr-defined]
    bench.set(sys__status=STATUSES[status])
    code = codes[list(STATUSES).index(status)]
    with expect(code) as refused:
        call(bench)
    if code:
        assert refused.value.message == f"Invalid status: {status}"  # type: ignore[attr-defined]


@pytest.mark.parametrize("call", [pytest.param(c[1], id=c[0]) for c in CASES])
def test_a_base_without_container_is_absent(bench: Meta2Bench, call: Call) -> None:
    bench.put("a", content_id=CONTENT)
    bench.bean = chunk_bean(bench)  # type: ignore[attr-defined]
    if call is ALWAYS["destroy"]:
        return
    bench.repository.write(CID + ".1", lambda tx: tx.unset("sys.m2.init"))
    with expect(431):
        call(bench)


REMOVALS: dict[str, Call] = {
    **{name: WRITES[name] for name in ("delete", "delete many", "raw delete", "raw insert", "raw update")},
    "flush": ALLOWED_WHEN_FROZEN["flush"],
    "destroy": ALWAYS["destroy"],
}


@pytest.mark.parametrize("name", list(REMOVALS))
def test_worm_forbids_removals_except_to_administrators(
    bench: Meta2Bench, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.put("a", content_id=CONTENT)
    bench.bean = chunk_bean(bench)  # type: ignore[attr-defined]
    bench.variables.set("ns.worm", "on")
    with expect(405) as refused:
        REMOVALS[name](bench)
    assert "worm" in refused.value.message  # type: ignore[attr-defined]
    plain = bench.call
    monkeypatch.setattr(bench, "call", lambda request, context=ADMIN: plain(request, ADMIN))
    REMOVALS[name](bench)


@pytest.mark.parametrize(
    "name", ["put", "delete", "set properties", "raw delete", "raw insert", "raw update", "flush", "destroy"]
)
def test_a_slave_namespace_refuses_writes(bench: Meta2Bench, name: str) -> None:
    bench.put("a", content_id=CONTENT)
    bench.bean = chunk_bean(bench)  # type: ignore[attr-defined]
    bench.variables.set("ns.master", "off")
    call = {**WRITES, **REMOVALS}[name]
    with pytest.raises(StatusError, match="NS slave!") as refused:
        call(bench)
    assert refused.value.code == 500
    assert bench.show("a").size == 10
