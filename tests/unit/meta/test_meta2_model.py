# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Random lives of a container, compared after each step with a model that fits in dictionaries."""

from __future__ import annotations

import copy
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from meta2_bench import CID, FakeQueue, Meta2Bench
from meta2_kit import beans, damage
from meta2_object_model import HASH, KEEP_DELETED_S, OTHER_HASH, Model, Refused, Request, Stored

from oio.common.status import StatusError
from oio.meta import messages as m
from oio.meta.transaction import Transaction

# Few names, so that operations meet.
NAMES = st.sampled_from(["a", "a", "a", "a/1", "b/c/d", "\U0001f600"])
VERSIONS = st.integers(min_value=1, max_value=12)
#: 0: none given; up to 8: one of those in place; beyond: whatever it is.
PICKED = st.integers(min_value=0, max_value=10)
METACHUNK = st.tuples(st.integers(0, 9), st.integers(1, 4))
METACHUNKS = st.lists(METACHUNK, min_size=1, max_size=3)
PROPERTIES = st.dictionaries(st.sampled_from("xyz"), st.sampled_from("12"), max_size=2)
TAGS = st.sampled_from(["", "", "", "", "", "", "", "", "=*", "!*", "=" + HASH, "!" + HASH, "=" + OTHER_HASH])
HASHES = st.sampled_from([HASH, HASH, OTHER_HASH])
#: Content ids are drawn again at times: those that are taken are refused.
REUSED = st.integers(0, 9).map(lambda n: n == 0)


def condition(tag: str) -> m.Condition | None:
    if not tag:
        return None
    return m.Condition(**{"if_match" if tag[0] == "=" else "if_none_match": [tag[1:]]})


class Container(RuleBasedStateMachine):
    """All the operations on objects, on a few names and versions so that they meet."""

    def __init__(self) -> None:
        super().__init__()
        self.volume = tempfile.mkdtemp(prefix="meta2-model-")
        self.queue = FakeQueue()
        self.bench = Meta2Bench(self.volume, self.queue)
        self.model = Model()
        self.last_id = ""
        self.uploaded: set[str] = set()
        self.pending: list[m.Chunk] = []
        self.emitted: list[dict[str, Any]] = []
        self.told: list[dict[str, Any]] = []
        # As they are written in the outbox: to wait for the queue would take most of the time.
        self.real_emit = Transaction.emit
        Transaction.emit = self.recording_emit()  # type: ignore[method-assign]

    def recording_emit(self) -> Callable[[Transaction, Any], None]:
        def emit(tx: Transaction, event: Any) -> None:
            self.emitted.append(event)
            self.real_emit(tx, event)

        return emit

    @initialize(
        objects=st.lists(st.tuples(NAMES, METACHUNKS, PROPERTIES), min_size=1, max_size=4),
        mode=st.sampled_from([-1, 1, 2]),
    )
    def create(self, objects: list[Any], mode: int) -> None:
        assert self.bench.create()
        self.bench.set(sys__m2__keep_deleted_delay=str(KEEP_DELETED_S))
        self.set_mode(mode, False)
        for number, (name, metachunks, properties) in enumerate(objects):
            self.put(name, number + 2, metachunks, properties, "", False, False, HASH)

    # --- doing the same thing to both -----------------------------------------------------------------------

    def both(self, mutate: Callable[[Model], None], call: Callable[[], Any]) -> None:
        """The model changes as the container does, or both refuse for the same reason."""
        after = copy.deepcopy(self.model)
        expected = 0
        try:
            mutate(after)
            usage, before = after.counters()[0], self.model.counters()[0]
            if self.model.quota and usage > self.model.quota and usage > before:
                raise Refused(445)
        except Refused as refusal:
            expected = refusal.code
        self.emitted.clear()
        try:
            call()
            code = 0
        except StatusError as exc:
            code = exc.code
        assert code == expected
        if not code:
            self.model = after
            self.uploaded |= {chunk.url for chunk in self.pending}
            self.told += self.emitted
        self.pending = []

    def chunks(self, metachunks: dict[int, tuple[int, int]]) -> list[m.Chunk]:
        made = [
            chunk
            for number, (size, copies) in metachunks.items()
            for chunk in Meta2Bench.chunks(str(number), size, copies)
        ]
        self.pending += made
        return made

    def request(
        self, name: str, version: int, metachunks: list[tuple[int, int]], reused: bool, **fields: Any
    ) -> Request:
        if not (reused and self.last_id):
            self.last_id = os.urandom(16).hex().upper()
        return Request(name, version, self.last_id, metachunks, fields.pop("properties", {}), **fields)

    def send(self, request: Request, chunks: list[m.Chunk] | None = None, **fields: Any) -> None:
        if chunks is None:
            chunks = self.chunks(dict(enumerate(request.metachunks)))
        self.bench.put(
            request.name, request.version, request.size, content_id=request.content_id, chunks=chunks,
            properties=request.properties, condition=condition(request.tag), hash=request.hash,
            simulate_versioning=request.simulated, **fields,
        )

    def pick(self, name: str, picked: int) -> int:
        versions = sorted(self.model.versions(name))
        return versions[picked % len(versions)] if versions and 0 < picked <= 8 else picked

    def at(self, name: str, version: int) -> dict[str, Any]:
        return {"cid": CID, "path": name, "version": version}

    # --- settings -------------------------------------------------------------------------------------------

    @rule(mode=st.sampled_from([-1, 0, 1, 2]), exceeding=st.booleans())
    def set_mode(self, mode: int, exceeding: bool) -> None:
        self.model.mode, self.model.exceeding = mode, exceeding
        self.bench.set(
            sys__m2__policy__version=str(mode),
            sys__m2__policy__version__delete_exceeding=str(int(exceeding)),
        )

    @rule(quota=st.sampled_from([0, 0, 30, 80]))
    def set_quota(self, quota: int) -> None:
        self.model.quota = quota
        self.bench.set(sys__m2__quota=str(quota))

    @rule()
    def grow_old(self) -> None:
        self.model.grow_old()
        self.bench.repository.write(
            CID + ".1",
            lambda tx: list(tx.execute("UPDATE aliases SET mtime = mtime - ?", (KEEP_DELETED_S + 5,))),
        )

    @rule()
    def reopen(self) -> None:
        self.bench.repository.close()
        self.bench = Meta2Bench(self.volume, self.queue)

    @rule()
    def touch(self) -> None:
        self.bench.call(
            m.ContainerTouch(cid=CID, recompute=True, damaged_objects=True, missing_chunks=True)
        )

    # --- puts -----------------------------------------------------------------------------------------------

    @rule(
        name=NAMES, version=VERSIONS, metachunks=METACHUNKS, properties=PROPERTIES, tag=TAGS,
        reused=REUSED, simulated=REUSED, hash_=HASHES,
    )
    def put(
        self, name: str, version: int, metachunks: list[tuple[int, int]], properties: dict[str, str],
        tag: str, reused: bool, simulated: bool, hash_: str,
    ) -> None:
        request = self.request(
            name, version, metachunks, reused, properties=properties, tag=tag, simulated=simulated,
            hash=hash_,
        )
        self.both(lambda model: model.put(request), lambda: self.send(request))

    @rule(name=NAMES, version=VERSIONS, metachunks=METACHUNKS, properties=PROPERTIES, tag=TAGS)
    def append(
        self, name: str, version: int, metachunks: list[tuple[int, int]], properties: dict[str, str],
        tag: str,
    ) -> None:
        request = self.request(name, version, metachunks, False, properties=properties, tag=tag)
        self.both(lambda model: model.append(request), lambda: self.send(request, append=True))

    @rule(
        name=NAMES, version=VERSIONS, position=st.integers(0, 2), copies=st.integers(1, 2),
        fits=st.booleans(), properties=PROPERTIES, tag=TAGS,
    )
    def force(
        self, name: str, version: int, position: int, copies: int, fits: bool,
        properties: dict[str, str], tag: str,
    ) -> None:
        _, stored = self.model.target(name, version)
        stored = stored or self.model.target(name)[1]
        size = 3
        if stored is not None and not stored.is_marker:
            position = min(position, len(stored.metachunks) - 1)
            size = stored.metachunks[position][0] + (not fits)
        else:
            position = 0
        request = self.request(name, version, [(size, copies)], False, properties=properties, tag=tag)
        chunks = self.chunks({position: (size, copies)})
        self.both(
            lambda model: model.force(request, position, size, copies),
            lambda: self.send(request, chunks, force=True),
        )

    @rule(
        name=NAMES, picked=PICKED, copies=st.integers(1, 2), reused=REUSED, wrong=REUSED,
        hash_=HASHES, tag=TAGS,
    )
    def change_policy(
        self, name: str, picked: int, copies: int, reused: bool, wrong: bool, hash_: str, tag: str
    ) -> None:
        version = self.pick(name, picked) or 1
        _, stored = self.model.target(name, version)
        size = (stored.size if stored is not None else 5) + wrong
        request = self.request(name, version, [(size, copies)], reused, tag=tag, hash=hash_)
        self.both(
            lambda model: model.change_policy(request),
            lambda: self.send(
                request, change_policy=True, chunk_method="plain/nb_copy=1", security=m.Security()
            ),
        )

    # --- changes in place -----------------------------------------------------------------------------------

    @rule(
        name=NAMES, picked=PICKED,
        changes=st.dictionaries(st.integers(0, 4), METACHUNK, min_size=1, max_size=2),
    )
    def update(self, name: str, picked: int, changes: dict[int, tuple[int, int]]) -> None:
        version = self.pick(name, picked)
        chunks = self.chunks(changes)
        self.both(
            lambda model: model.update(name, version, changes),
            lambda: self.bench.call(m.ContentUpdate(**self.at(name, version), chunks=chunks)),
        )

    @rule(name=NAMES, picked=PICKED, count=st.integers(0, 3), off=st.sampled_from([0, 0, 0, 1]))
    def truncate(self, name: str, picked: int, count: int, off: int) -> None:
        version = self.pick(name, picked)
        _, stored = self.model.target(name, version)
        size = off + (sum(size for size, _ in stored.metachunks[:count]) if stored is not None else 0)
        self.both(
            lambda model: model.truncate(name, version, size),
            lambda: self.bench.call(m.ContentTruncate(**self.at(name, version), size=size)),
        )

    @rule(name=NAMES, picked=PICKED)
    def drain(self, name: str, picked: int) -> None:
        version = self.pick(name, picked)
        self.both(
            lambda model: model.drain(name, version),
            lambda: self.bench.call(m.ContentDrain(**self.at(name, version))),
        )

    @rule(
        name=NAMES, picked=PICKED, clear=st.booleans(),
        changes=st.dictionaries(st.sampled_from("xyz"), st.sampled_from(["", "1", "2"])),
    )
    def set_properties(self, name: str, picked: int, changes: dict[str, str], clear: bool) -> None:
        version = self.pick(name, picked)
        self.both(
            lambda model: model.set_properties(name, version, changes, clear),
            lambda: self.bench.call(
                m.ContentSetProperties(**self.at(name, version), properties=changes, clear=clear)
            ),
        )

    @rule(name=NAMES, picked=PICKED, keys=st.lists(st.sampled_from("xyz"), max_size=2))
    def del_properties(self, name: str, picked: int, keys: list[str]) -> None:
        version = self.pick(name, picked)
        self.both(
            lambda model: model.del_properties(name, version, keys),
            lambda: self.bench.call(m.ContentDelProperties(**self.at(name, version), names=keys)),
        )

    # --- removals -------------------------------------------------------------------------------------------

    @rule(
        name=NAMES, picked=PICKED, marker=st.booleans(), tag=TAGS,
        forced=st.sampled_from([None, None, None, -1, 1]),
    )
    def delete(self, name: str, picked: int, marker: bool, tag: str, forced: int | None) -> None:
        version = self.pick(name, picked)
        self.both(
            lambda model: model.delete(name, version, marker, tag, forced),
            lambda: self.bench.delete(
                name, version=version, delete_marker=marker, condition=condition(tag),
                force_versioning=forced,
            ),
        )

    @rule(names=st.lists(NAMES, min_size=1, max_size=4))
    def delete_many(self, names: list[str]) -> None:
        codes = []
        for name in names:
            try:
                self.model.delete(name, 0, False)
                codes.append(204)
            except Refused as refusal:
                codes.append(refusal.code)
        self.emitted.clear()
        reply = self.bench.call(m.ContentDeleteMany(cid=CID, paths=names))
        self.told += self.emitted
        assert [item.status for item in reply.items] == codes

    @rule(name=NAMES, count=st.sampled_from([None, -1, 1, 2]))
    def purge(self, name: str, count: int | None) -> None:
        self.both(
            lambda model: model.purge([name], count),
            lambda: self.bench.call(m.ContentPurge(cid=CID, path=name, max_versions=count)),
        )

    @rule(count=st.sampled_from([None, -1, 1, 2]))
    def purge_container(self, count: int | None) -> None:
        self.both(
            lambda model: model.purge(list(model.names), count),
            lambda: self.bench.call(m.ContainerPurge(cid=CID, max_versions=count)),
        )

    # --- what is seen ---------------------------------------------------------------------------------------

    @rule(prefix=st.sampled_from(["", "a", "a/", "b/"]), size=st.integers(1, 4))
    def list_folded(self, prefix: str, size: int) -> None:
        wanted = set()
        for name, versions in self.model.names.items():
            if name.startswith(prefix) and not versions[max(versions)].is_marker:
                cut = name.find("/", len(prefix))
                wanted.add(name[: cut + 1] if cut >= 0 else name)
        seen: list[str] = []
        marker = ""
        while True:
            page = self.bench.listing(prefix=prefix, delimiter="/", max=size, marker=marker)
            seen += sorted([i["name"] for i in json.loads(page.objects)] + page.prefixes)
            if not page.truncated:
                break
            marker = page.next_marker
        assert seen == sorted(wanted)

    @invariant()
    def agrees(self) -> None:
        if not os.path.exists(f"{self.volume}/C0C"):
            return
        assert self.bench.check_counters() == self.model.counters()
        assert damage(self.bench) == self.model.damage()
        everything = [
            (name, version, *self.described(stored))
            for name, versions in sorted(self.model.names.items())
            for version, stored in sorted(versions.items(), reverse=True)
        ]
        found = self.bench.objects(all_versions=True, properties=True)
        assert [
            (
                i["name"], i["version"], i["deleted"], i["size"], i["hash"],
                i["chunk-method"] == "drained", i.get("properties", {}),
            )
            for i in found
        ] == everything
        visible = [
            (name, max(versions))
            for name, versions in sorted(self.model.names.items())
            if not versions[max(versions)].is_marker
        ]
        assert [(i["name"], i["version"]) for i in self.bench.objects()] == visible
        counts = self.counts()
        objects = self.model.objects()
        assert counts["contents"] == len(objects)
        assert counts["chunks"] == sum(stored.chunks for stored in objects)
        assert counts["properties"] == sum(len(stored.properties) for stored in objects)

    @staticmethod
    def described(stored: Stored) -> tuple[Any, ...]:
        if stored.is_marker:
            return True, None, None, False, {}
        return False, stored.size, stored.hash, stored.drained, stored.properties

    def counts(self) -> dict[str, int]:
        """Rows of each table: nothing must be left behind."""
        return self.bench.repository.read(
            CID + ".1",
            lambda reader: {
                table: reader.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
                for table in ("contents", "chunks", "properties")
            },
        )

    @invariant()
    def told_what_is_lost(self) -> None:
        """The chunks told to be deleted are those that were in an object and are in none any more."""
        if not os.path.exists(f"{self.volume}/C0C"):
            return
        lost = [
            bean["id"]
            for event in self.told
            if event["event"].endswith((".deleted", ".drained"))
            for bean in beans(event, "chunks")
        ]
        present = self.bench.repository.read(
            CID + ".1", lambda reader: {url for (url,) in reader.execute("SELECT id FROM chunks")}
        )
        assert sorted(lost) == sorted(self.uploaded - present)

    def teardown(self) -> None:
        Transaction.emit = self.real_emit  # type: ignore[method-assign]
        self.bench.repository.close()
        shutil.rmtree(self.volume)


TestContainer = Container.TestCase
TestContainer.settings = settings(
    max_examples=80, stateful_step_count=50, deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
