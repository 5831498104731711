# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""What each part of a namespace says, side by side in a scratch base on disk.

Contradictions are questions in SQL, whatever the size of the namespace: memory is bounded by the page cache.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import Any

import apsw

_SCHEMA = """
-- What meta2 says: containers with their counters, and what their objects add up to.
CREATE TABLE container (cid TEXT PRIMARY KEY, account TEXT, name TEXT, bucket TEXT, objects INT, bytes INT,
                        damaged INT, missing INT, listed_objects INT, listed_bytes INT) WITHOUT ROWID;
CREATE TABLE chunk (volume TEXT, id TEXT, cid TEXT, content TEXT, path TEXT, version INT,
                    PRIMARY KEY (volume, id)) WITHOUT ROWID;
-- Which meta2 holds a base: by the container's own peers, and by the index of the service.
CREATE TABLE peer (volume TEXT, cid TEXT, url TEXT, PRIMARY KEY (volume, cid)) WITHOUT ROWID;
CREATE TABLE indexed_base (volume TEXT, cid TEXT, url TEXT, PRIMARY KEY (volume, cid)) WITHOUT ROWID;
-- Which meta2 is to hold a base that none of them has, by the directory.
CREATE TABLE linked_base (volume TEXT, cid TEXT, url TEXT, PRIMARY KEY (volume, cid)) WITHOUT ROWID;
-- Which chunks a volume holds: by its index, and by its files.
CREATE TABLE indexed (volume TEXT, id TEXT, cid TEXT, content TEXT, PRIMARY KEY (volume, id)) WITHOUT ROWID;
CREATE TABLE stored (volume TEXT, id TEXT, path TEXT, PRIMARY KEY (volume, id)) WITHOUT ROWID;
-- What the account service says.
CREATE TABLE account (name TEXT PRIMARY KEY, objects INT, bytes INT, damaged INT, missing INT, containers INT)
  WITHOUT ROWID;
CREATE TABLE account_container (account TEXT, name TEXT, objects INT, bytes INT, damaged INT, missing INT,
                                PRIMARY KEY (account, name)) WITHOUT ROWID;
CREATE TABLE bucket (name TEXT PRIMARY KEY, account TEXT, objects INT, bytes INT, damaged INT, missing INT)
  WITHOUT ROWID;
CREATE VIEW account_sum AS SELECT account.name AS name, count(c.cid) AS containers,
  coalesce(sum(c.objects), 0) AS objects, coalesce(sum(c.bytes), 0) AS bytes,
  coalesce(sum(c.damaged), 0) AS damaged, coalesce(sum(c.missing), 0) AS missing
  FROM account LEFT JOIN container c ON c.account = account.name GROUP BY account.name;
-- The objects of a container with +segments in its name do not count in its bucket (contract: buckets).
CREATE VIEW bucket_sum AS SELECT bucket.name AS name,
  coalesce(sum(iif(instr(c.name, '+segments'), 0, c.objects)), 0) AS objects, coalesce(sum(c.bytes), 0) AS bytes,
  coalesce(sum(c.damaged), 0) AS damaged, coalesce(sum(c.missing), 0) AS missing
  FROM bucket LEFT JOIN container c ON c.bucket = bucket.name GROUP BY bucket.name;
-- Volumes whose index, or whose files, were read to the end: silence about the others proves nothing.
CREATE TABLE read_index (volume TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE read_files (volume TEXT PRIMARY KEY) WITHOUT ROWID;
"""


class Facts:
    """The scratch base; thread-safe. It goes away with the object."""

    def __init__(self) -> None:
        # An empty name is a temporary file that SQLite keeps in memory while it is small.
        self._base = apsw.Connection("")
        self._lock = threading.Lock()
        self._base.execute("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; BEGIN")
        self._base.execute(_SCHEMA)

    def add(self, table: str, rows: Iterable[Sequence[Any]]) -> None:
        """Add rows; one that is already there is replaced."""
        rows = list(rows)
        if rows:
            marks = ",".join("?" * len(rows[0]))
            with self._lock:
                self._base.executemany(f"INSERT OR REPLACE INTO {table} VALUES({marks})", rows)

    def ask(self, question: str) -> list[tuple[Any, ...]]:
        """Rows that answer a question in SQL."""
        with self._lock:
            return list(self._base.execute(question))

    def count(self, table: str) -> int:
        """Number of rows."""
        return int(self.ask(f"SELECT count(*) FROM {table}")[0][0])

    def close(self) -> None:
        """Forget everything; idempotent."""
        with self._lock:
            self._base.close()
