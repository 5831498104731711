# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""The databases of an rdir: one LMDB environment per volume, opened on first use and kept open.

The format is described in docs/format/rdir.md. Errors are `StatusError`: 404 for a database that does not exist,
403 for a lock that somebody holds, 503 when the disk is full or the service too busy.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import logging
import os
import shutil
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

import lmdb
import msgspec

from oio.common import status
from oio.common.durable import fsync_directory
from oio.common.status import StatusError
from oio.rdir import keys, records, tables
from oio.rdir.engine import Engine

LIMIT_DEFAULT, LIMIT_MAX = 1000, 10000
SCAN_RECORDS = 20000
"""Records seen by one read transaction, so that a long search does not keep old pages alive."""

CLEAR_RECORDS = 5000
"""Records that clear and the removal of tombstones change in one commit."""

CLEAR_OWNER = "admin_clear"
VOLUME_BYTES_MAX = 200
"""Longest name of a directory of ours; file systems take 255."""

_DATA_FILE = "data.mdb"
_META2 = "meta2-"
_LOCK, _INCIDENT = b"lock", b"incident_date"


logger = logging.getLogger("oio.rdir")


class Change(NamedTuple):
    """One push (or delete) of a chunk record. ``packed`` is the 80-byte key, else ``text`` is the key."""

    packed: bytes | None
    text: bytes
    mtime: int
    when: int


class Page(NamedTuple):
    """What a listing gives: items, and the key to go on after, None at the end."""

    items: list[tuple[str, int]]
    marker: str | None


def change(container: str, content: str, chunk: str, mtime: int = 0, when: int = 0) -> Change:
    """Describe a change of the record of a chunk."""
    packed = keys.pack(container, content, chunk)
    text = b"" if packed else keys.text(container, content, chunk).encode()
    return Change(packed, text, mtime, when)


class ChunkVolume:
    """Records of the chunks of one volume."""

    NAMES = ("admin", "chunk", "other", "grave", "other-grave")

    def __init__(self, path: str, **options: Any) -> None:
        self.engine = Engine(path, self.NAMES, **options)

    # --- records ---

    def push(self, changes: Iterable[Change]) -> None:
        """Add records, or overwrite them."""
        ordered = sorted(changes, key=_place)

        def work(txn: Any) -> None:
            for item in ordered:
                self._push(txn, item)

        self.engine.write(work, len(ordered))

    def delete(self, changes: Iterable[Change]) -> None:
        """Remove records; those that do not exist are fine."""
        ordered = sorted(changes, key=_place)
        now_s = int(time.time())

        def work(txn: Any) -> None:
            for item in ordered:
                self._delete(txn, item, now_s)

        self.engine.write(work, len(ordered))

    def _push(self, txn: Any, item: Change) -> None:
        key, db, graves = self._place(item)
        stored = tables.get(txn, db, key)
        old = None if stored is None else _decoded(stored)
        grave = tables.get(txn, graves, key) if stored is None else None
        grave_when = None if grave is None else records.decode_grave(grave)[0]
        new = records.after_push(old, grave_when, item.mtime, item.when)
        if new is None:
            return
        value = records.encode(*new)
        if value != stored:
            tables.put(txn, db, key, value)
        if grave is not None:
            tables.delete(txn, graves, key)

    def _delete(self, txn: Any, item: Change, now_s: int) -> None:
        key, db, graves = self._place(item)
        stored = tables.get(txn, db, key)
        if stored is not None:
            if not records.deletes(_decoded(stored), item.when):
                return
            tables.delete(txn, db, key)
        if item.when:
            _bury(txn, graves, key, item.when, now_s)

    def _place(self, item: Change) -> tuple[bytes, Any, Any]:
        """Key of a record, the database that holds it, and the one of its tombstone."""
        dbs = self.engine.dbs
        if item.packed is not None:
            return item.packed, dbs["chunk"], dbs["grave"]
        return item.text, dbs["other"], dbs["other-grave"]

    # --- listings ---

    def fetch(self, marker: str | None, prefix: str, limit: int, rebuild: bool = False) -> Page:
        """One page of records, as texts of keys and mtimes, in the order of the keys.

        :param rebuild: only those that are not younger than the incident; none when there was no incident.
        """
        incident = self.incident() if rebuild else 0
        if rebuild and incident <= 0:
            return Page([], None)
        items: list[tuple[str, int]] = []
        position = max(prefix, marker or "")
        skip, last = marker, ""

        def walk(txn: Any) -> bool | str:
            """True when one more record matches, False at the end, else where to go on."""
            nonlocal skip, last
            for seen, (text, value) in enumerate(self._stream(txn, position, prefix)):
                if seen == SCAN_RECORDS:
                    return text
                if skip is not None:
                    begins, skip = text.startswith(skip), None
                    if begins:
                        continue
                try:
                    mtime = records.decode(value)[0]
                except records.Undecodable:
                    continue
                if not incident or mtime <= incident:
                    if len(items) == limit:
                        return True
                    items.append((text, mtime))
                last = text
            return False

        while isinstance(more := self.engine.read(walk), str):
            position = more
        return Page(items, last if more else None)

    def status(self, marker: str | None, prefix: str, limit: int) -> tuple[dict[str, Any], str | None]:
        """Count the records of one page, by container; the answer of the route, and where to go on."""
        incident = self.incident()
        page = self.fetch(marker, prefix, limit)
        totals: dict[str, int] = {}
        late: dict[str, int] = {}
        for text, mtime in page.items:
            container = text.partition("|")[0]
            totals[container] = totals.get(container, 0) + 1
            if mtime <= incident:
                late[container] = late.get(container, 0) + 1
        containers = {container: {"total": total} for container, total in totals.items()}
        answer: dict[str, Any] = {"chunk": {"total": len(page.items)}, "container": containers}
        if incident > 0:
            for container, count in late.items():
                containers[container]["to_rebuild"] = count
            answer["chunk"]["to_rebuild"] = sum(late.values())
            answer["rebuild"] = {"incident_date": incident}
        return answer, page.marker

    def _stream(self, txn: Any, position: str, prefix: str) -> Iterator[tuple[str, bytes]]:
        """Records that begin with `prefix`, from `position` on: texts of keys, and values."""
        dbs = self.engine.dbs
        packed = self._packed(txn, position, prefix)
        if not txn.stat(dbs["other"])["entries"]:
            return packed
        others = (
            (key.decode(), value) for key, value in tables.scan(txn, dbs["other"], position.encode())
        )
        matching = itertools.takewhile(lambda item: item[0].startswith(prefix), others)
        return heapq.merge(packed, matching)

    def _packed(self, txn: Any, position: str, prefix: str) -> Iterator[tuple[str, bytes]]:
        first = keys.lower_bound(position.encode())
        cursor = txn.cursor(db=self.engine.dbs["chunk"])
        if first is None or not cursor.set_range(first):
            return
        end = keys.end_of_prefix(prefix.encode())
        bound = None if end is None else keys.lower_bound(end)
        for key, value in cursor.iternext():
            if bound is not None and key >= bound:
                return
            yield keys.unpack(key), value

    # --- administration ---

    def show(self) -> dict[str, str]:
        """All administrative entries, as texts."""

        def work(txn: Any) -> dict[str, str]:
            cursor = txn.cursor(db=self.engine.dbs["admin"])
            return {key.decode(): value.decode() for key, value in cursor.iternext()}

        shown: dict[str, str] = self.engine.read(work)
        return shown

    def lock(self, who: str) -> None:
        """Take the lock. :raises StatusError: 403 when somebody else has it."""
        owner = who.encode()

        def work(txn: Any) -> None:
            admin = self.engine.dbs["admin"]
            present = txn.get(_LOCK, db=admin)
            if present is not None and present != owner:
                raise StatusError(status.FORBIDDEN, f"Already locked by {present.decode()}")
            txn.put(_LOCK, owner, db=admin)

        self.engine.write(work)

    def unlock(self) -> None:
        """Release the lock, whoever has it."""
        self.engine.write(lambda txn: txn.delete(_LOCK, db=self.engine.dbs["admin"]))

    def incident(self) -> int:
        """Date of the incident in seconds, 0 when there is none."""
        value = self.engine.read(lambda txn: txn.get(_INCIDENT, db=self.engine.dbs["admin"]))
        return int(value or 0)

    def set_incident(self, date_s: int) -> None:
        """Declare an incident: records that are not younger are to rebuild."""
        value = str(date_s).encode()
        self.engine.write(lambda txn: txn.put(_INCIDENT, value, db=self.engine.dbs["admin"]))

    def clear(self, everything: bool, before_incident: bool, repair: bool) -> dict[str, int]:
        """Remove or rewrite records, under the lock; the incident ends in any case."""
        self.lock(CLEAR_OWNER)
        counts = [0, 0, 0]
        try:
            incident = self.incident() if before_incident else 0
            if everything:
                counts[0] = self.engine.write(self._clear_all)
            elif incident > 0 or repair:
                for name in ("chunk", "other"):
                    position: bytes | None = b""
                    while position is not None:
                        position, *done = self.engine.write(
                            functools.partial(self._clear_some, name, position, incident, repair)
                        )
                        counts = [total + count for total, count in zip(counts, done, strict=True)]
        finally:
            self.engine.write(self._end_clear)
        return dict(zip(("removed", "repaired", "errors"), counts, strict=True))

    def _clear_all(self, txn: Any) -> int:
        dbs = self.engine.dbs
        count: int = txn.stat(dbs["chunk"])["entries"] + sum(1 for _ in tables.scan(txn, dbs["other"], b""))
        for name in ("chunk", "other"):
            txn.drop(dbs[name], delete=False)
        return count

    def _clear_some(
        self, name: str, position: bytes, incident: int, repair: bool, txn: Any
    ) -> tuple[bytes | None, int, int, int]:
        """Deal with some records; gives where to go on (None at the end), then removed, repaired, errors."""
        db = self.engine.dbs[name]
        found = list(itertools.islice(tables.scan(txn, db, position), CLEAR_RECORDS))
        removed = repaired = errors = 0
        for key, value in found:
            old = _decoded(value)
            if old is None:
                errors += 1
            elif incident and old[0] <= incident:
                tables.delete(txn, db, key)
                removed += 1
            elif repair:
                canonical = records.encode(*old)
                if canonical != value:
                    tables.put(txn, db, key, canonical)
                repaired += 1
        more = found[-1][0] + b"\0" if len(found) == CLEAR_RECORDS else None
        return more, removed, repaired, errors

    def _end_clear(self, txn: Any) -> None:
        admin = self.engine.dbs["admin"]
        txn.delete(_LOCK, db=admin)
        txn.delete(_INCIDENT, db=admin)

    def sweep(self, now_s: int) -> int:
        """Remove the tombstones that are too old; gives how many."""
        return sum(_sweep(self.engine, name, now_s) for name in ("grave", "other-grave"))


class ContainerVolume:
    """Records of the containers of one meta2 service, by URL."""

    NAMES = ("container", "grave")

    def __init__(self, path: str, **options: Any) -> None:
        self.engine = Engine(path, self.NAMES, **options)

    def push(
        self, url: str, container: str, mtime: int = 0, extra: str | None = None, when: int = 0
    ) -> None:
        """Add a record, or overwrite it."""
        key = url.encode()

        def work(txn: Any) -> None:
            dbs = self.engine.dbs
            stored = tables.get(txn, dbs["container"], key)
            old = None if stored is None else _decode_container(stored)
            grave = tables.get(txn, dbs["grave"], key) if stored is None else None
            grave_when = None if grave is None else records.decode_grave(grave)[0]
            new = records.after_push(None if old is None else (old[2], old[3]), grave_when, mtime, when)
            if new is None:
                return
            tables.put(txn, dbs["container"], key, _encode_container((container, extra, *new)))
            if grave is not None:
                tables.delete(txn, dbs["grave"], key)

        self.engine.write(work)

    def delete(self, url: str, when: int = 0) -> None:
        """Remove a record; one that does not exist is fine."""
        key, now_s = url.encode(), int(time.time())

        def work(txn: Any) -> None:
            dbs = self.engine.dbs
            stored = tables.get(txn, dbs["container"], key)
            if stored is not None:
                old = _decode_container(stored)
                if not records.deletes((old[2], old[3]), when):
                    return
                tables.delete(txn, dbs["container"], key)
            if when:
                _bury(txn, dbs["grave"], key, when, now_s)

        self.engine.write(work)

    def fetch(self, prefix: str, marker: str, limit: int) -> tuple[list[dict[str, Any]], bool]:
        """One page of records strictly after the marker, and whether there are more.

        Given a marker, the listing ends at once when the key after it does not begin with the prefix.
        """
        position = marker or prefix

        def work(txn: Any) -> tuple[list[dict[str, Any]], bool]:
            found: list[dict[str, Any]] = []
            for key, value in tables.scan(txn, self.engine.dbs["container"], position.encode()):
                url = key.decode()
                if marker and url == marker:
                    continue
                if not url.startswith(prefix):
                    break
                if len(found) == limit:
                    return found, True
                container, extra, mtime, _when = _decode_container(value)
                found.append(
                    {"container_id": container, "container_url": url, "extra_data": extra, "mtime": mtime}
                )
            return found, False

        page: tuple[list[dict[str, Any]], bool] = self.engine.read(work)
        return page

    def sweep(self, now_s: int) -> int:
        """Remove the tombstones that are too old; gives how many."""
        return _sweep(self.engine, "grave", now_s)


class Store:
    """The databases below one directory.

    >>> store = Store("/srv/rdir-1")  # doctest: +SKIP
    >>> store.chunks("OPENIO-rawx-1", create=True).push([change(cid, content, chunk, 17)])  # doctest: +SKIP

    :param databases_max: how many may be open, 0 for no limit.
    :param options: those of :class:`~oio.rdir.engine.Engine`.
    """

    def __init__(self, path: str, *, databases_max: int = 0, **options: Any) -> None:
        self.path = path
        self.databases_max = databases_max
        self._options = options
        self._mutex = threading.Lock()
        self._chunks: dict[str, ChunkVolume] = {}
        self._containers: dict[str, ContainerVolume] = {}

    def chunks(self, volume: str, create: bool = False) -> ChunkVolume:
        """The chunk database of a volume. :raises StatusError: 404 when it does not exist."""
        return self._chunks.get(volume) or self._opened(self._chunks, ChunkVolume, "", volume, create)

    def containers(self, volume: str, create: bool = False) -> ContainerVolume:
        """The container database of a meta2. :raises StatusError: 404 when it does not exist."""
        return self._containers.get(volume) or self._opened(
            self._containers, ContainerVolume, _META2, volume, create
        )

    def open_all(self) -> int:
        """Open the chunk databases that exist, which `opened_count` then tells; gives how many failed."""
        failed = 0
        for name in sorted(os.listdir(self.path)):
            volume = unquote(name)
            if name.startswith(_META2) or directory_name("", volume) != name:
                continue
            try:
                self.chunks(volume)
            except StatusError as exc:
                failed += exc.code != status.NO_HANDLER
                logger.error("not opened: %s", exc)
        return failed

    @property
    def opened_count(self) -> int:
        """How many chunk databases are open."""
        return len(self._chunks)

    def engines(self) -> list[tuple[str, str, Engine]]:
        """The open databases: (kind, volume, engine)."""
        with self._mutex:
            return [
                *(("chunk", volume, base.engine) for volume, base in self._chunks.items()),
                *(("container", volume, base.engine) for volume, base in self._containers.items()),
            ]

    def sweep(self, now_s: int | None = None) -> int:
        """Remove old tombstones from the open databases; gives how many."""
        with self._mutex:
            bases: list[ChunkVolume | ContainerVolume] = [*self._chunks.values(), *self._containers.values()]
        moment_s = int(time.time()) if now_s is None else now_s
        return sum(base.sweep(moment_s) for base in bases)

    def close(self) -> None:
        """Close all the databases."""
        for _kind, _volume, engine in self.engines():
            engine.close()

    def _opened(self, bases: dict[str, Any], kind: type, prefix: str, volume: str, create: bool) -> Any:
        path = os.path.join(self.path, directory_name(prefix, volume))
        with self._mutex:
            base = bases.get(volume)
            if base is None:
                if not create and not os.path.exists(os.path.join(path, _DATA_FILE)):
                    raise StatusError(status.NO_HANDLER, "DB not found")
                self._check_room()
                base = bases[volume] = self._open(kind, path)
            return base

    def _open(self, kind: type, path: str) -> Any:
        is_new = not os.path.exists(os.path.join(path, _DATA_FILE))
        base = None
        try:
            if is_new:
                os.makedirs(path, exist_ok=True)
            base = kind(path, **self._options)
            if is_new:
                fsync_directory(path)
                fsync_directory(self.path)
            return base
        except (OSError, lmdb.Error) as exc:
            if base is not None:
                base.engine.close()
            if is_new:
                shutil.rmtree(path, ignore_errors=True)
            raise StatusError(status.UNAVAILABLE, f"cannot open {path}: {exc}") from exc

    def _check_room(self) -> None:
        """:raises StatusError: when there are files for no more databases."""
        if 0 < self.databases_max <= len(self._chunks) + len(self._containers):
            raise StatusError(
                status.EXCESSIVE_LOAD, f"{self.databases_max} databases are open, there are files for no more"
            )


def directory_name(prefix: str, volume: str) -> str:
    """Name of the directory of a database: what could leave the parent directory is escaped.

    >>> directory_name("", "127.0.0.1:6010"), directory_name("", "../x"), directory_name("meta2-", "NS-meta2-1")
    ('127.0.0.1:6010', '%2E.%2Fx', 'meta2-NS-meta2-1')

    :raises StatusError: when the name is too long.
    """
    name = quote(volume, safe=":~")
    if name.startswith("."):
        name = "%2E" + name[1:]
    if not prefix and name.startswith(_META2):
        name = "%6D" + name[1:]
    name = prefix + name
    if len(name) > VOLUME_BYTES_MAX:
        raise StatusError(status.BAD_PARAMETER, f"volume id too long: {volume[:64]}…")
    return name


def _place(item: Change) -> tuple[bool, bytes]:
    """Order of keys: neighbours are written together."""
    return item.packed is None, item.packed or item.text


def _decoded(value: bytes) -> tuple[int, int] | None:
    try:
        return records.decode(value)
    except records.Undecodable:
        return None


def _bury(txn: Any, graves: Any, key: bytes, when: int, now_s: int) -> None:
    """Leave a tombstone, unless there is a younger one."""
    present = tables.get(txn, graves, key)
    if present is None or records.decode_grave(present)[0] < when:
        tables.put(txn, graves, key, records.encode_grave(when, now_s))


def _sweep(engine: Engine, name: str, now_s: int) -> int:
    """Remove old tombstones, some at a time."""
    removed, position = 0, b""

    def look(txn: Any) -> tuple[list[bytes], bytes | None]:
        found = list(itertools.islice(tables.scan(txn, engine.dbs[name], position), SCAN_RECORDS))
        old = [key for key, value in found if _is_old(value, now_s)]
        return old, found[-1][0] + b"\0" if len(found) == SCAN_RECORDS else None

    def remove(old: list[bytes], txn: Any) -> int:
        count = 0
        for key in old:
            value = tables.get(txn, engine.dbs[name], key)
            if value is not None and _is_old(value, now_s):
                count += tables.delete(txn, engine.dbs[name], key)
        return count

    while True:
        old, following = engine.read(look)
        for first in range(0, len(old), CLEAR_RECORDS):
            removed += engine.write(functools.partial(remove, old[first : first + CLEAR_RECORDS]))
        if following is None:
            return removed
        position = following


def _is_old(grave: bytes, now_s: int) -> bool:
    return records.decode_grave(grave)[1] + records.TOMBSTONE_S <= now_s


_Container = tuple[str, str | None, int, int]
_decode_container = msgspec.msgpack.Decoder(_Container).decode
_encode_container = msgspec.msgpack.Encoder().encode
