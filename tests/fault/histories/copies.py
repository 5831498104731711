# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""The files of bases, and whether all copies of one hold the same rows."""

import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path

from histories.checkers import check_same

TYPES = ("meta0", "meta1", "meta2")
#: What each service keeps for itself: events on their way, and as much of the log as it likes.
OWN_TABLES = frozenset({"events", "changes"})


def files_of(service):
    """Name of each base of a service -> its file."""
    suffix = f".{service.type}"
    return {
        path.name: path
        for path in Path(service.volume).rglob(f"*{suffix}")
        if not any(part.startswith(".") for part in path.relative_to(service.volume).parts)
    }


def rows_of(path):
    """All the rows of a base that copies share: (table, key) -> row."""
    rows = {}
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)) as base:
        base.text_factory = bytes
        tables = base.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        for (name,) in tables:
            table = name.decode()
            if table in OWN_TABLES or table.startswith("sqlite_"):
                continue
            keys = [column for column in base.execute(f'PRAGMA table_info("{table}")').fetchall() if column[5]]
            places = [column[0] for column in keys]
            for row in base.execute(f'SELECT * FROM "{table}"'):
                rows[table, tuple(row[place] for place in places) or row] = row
    return rows


def differences(services):
    """Where copies of the same base differ.

    :param services: those of the cluster, all of them at rest.
    """
    found = []
    for type_ in TYPES:
        places = {service.name: files_of(service) for service in services if service.type == type_}
        for base in sorted(set().union(*places.values())):
            try:
                copies = {name: rows_of(files[base]) for name, files in places.items() if base in files}
            except sqlite3.Error as exc:
                found.append(f"{base} cannot be read: {exc}")
            else:
                found += check_same(base, copies)
    return found


def misplaced(services, container_copies, expected):
    """Containers that have more or fewer files than copies.

    :param container_copies: how many copies a container has.
    :param expected: container id -> does it exist?
    """
    counts = Counter(
        name.partition(".")[0] for service in services if service.type == "meta2" for name in files_of(service)
    )
    wanted = {cid: container_copies if exists else 0 for cid, exists in expected.items()}
    return [
        f"{cid} has {counts[cid]} files, not {number}" for cid, number in wanted.items() if counts[cid] != number
    ]
