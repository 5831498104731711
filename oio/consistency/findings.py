# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Contradictions between the parts of a namespace, each a question to the facts."""

from __future__ import annotations

from typing import NamedTuple

from oio.consistency.facts import Facts


class Finding(NamedTuple):
    """One contradiction: what kind, about what, and what was expected and found."""

    kind: str
    subject: str
    detail: str


def _differ(one: str, other: str) -> str:
    sides = (f"({table}.objects, {table}.bytes, {table}.damaged, {table}.missing)" for table in (one, other))
    return " IS NOT ".join(sides)


def _told(table: str) -> str:
    return " || ', ".join(
        f"{word} ' || {table}.{column}"
        for word, column in (
            ("'objects", "objects"), ("bytes", "bytes"), ("damaged", "damaged"), ("missing chunks", "missing"),
        )
    )  # fmt: skip


#: Kinds of findings, their question (subject, detail), and what they mean.
QUESTIONS: dict[str, tuple[str, str]] = {
    "container-counters": (
        "the counters of a container are not the sum over its objects",
        "SELECT account || '/' || name, 'says ' || objects || ' objects, ' || bytes || ' bytes; lists '"
        " || listed_objects || ' objects, ' || listed_bytes || ' bytes' FROM container"
        " WHERE (objects, bytes) IS NOT (listed_objects, listed_bytes)",
    ),
    "container-unlisted": (
        "a container is not in the list of its account",
        "SELECT c.account || '/' || c.name, c.cid FROM container c LEFT JOIN account_container a"
        " ON (a.account, a.name) = (c.account, c.name) WHERE a.name IS NULL",
    ),
    "container-unknown": (
        "an account lists a container that does not exist",
        "SELECT a.account || '/' || a.name, 'no such container' FROM account_container a LEFT JOIN container c"
        " ON (a.account, a.name) = (c.account, c.name) WHERE c.cid IS NULL",
    ),
    "account-container-counters": (
        "the account service has other counters for a container than the container itself",
        f"SELECT c.account || '/' || c.name, 'container: ' || {_told('c')} || '; account service: '"
        f" || {_told('a')} FROM container c JOIN account_container a"
        f" ON (a.account, a.name) = (c.account, c.name) WHERE {_differ('a', 'c')}",
    ),
    "account-counters": (
        "the counters of an account are not the sum over its containers",
        f"SELECT a.name, 'containers: ' || s.containers || ': ' || {_told('s')}"
        f" || '; account: ' || a.containers || ': ' || {_told('a')}"
        f" FROM account a JOIN account_sum s USING (name)"
        f" WHERE {_differ('a', 's')} OR a.containers IS NOT s.containers",
    ),
    "bucket-counters": (
        "the counters of a bucket are not the sum over its containers",
        f"SELECT b.name, 'containers: ' || {_told('s')} || '; bucket: ' || {_told('b')}"
        f" FROM bucket b JOIN bucket_sum s USING (name) WHERE {_differ('b', 's')}",
    ),
    "base-not-indexed": (
        "the index of a meta2 service lacks a container that it holds",
        "SELECT p.volume || ' ' || p.url, p.cid FROM peer p JOIN read_index USING (volume)"
        " LEFT JOIN indexed_base i ON (i.volume, i.cid) = (p.volume, p.cid) WHERE i.cid IS NULL",
    ),
    "base-unknown": (
        "the index of a meta2 service has a container that it does not hold",
        "SELECT i.volume || ' ' || i.url, i.cid FROM indexed_base i LEFT JOIN peer p"
        " ON (i.volume, i.cid) = (p.volume, p.cid)"
        " LEFT JOIN linked_base l ON (i.volume, i.cid) = (l.volume, l.cid) WHERE p.cid IS NULL AND l.cid IS NULL",
    ),
    "base-missing": (
        "the directory says that a meta2 service has a container, and no service has it",
        "SELECT l.volume || ' ' || l.url, l.cid FROM linked_base l",
    ),
    "chunk-not-indexed": (
        "the index of a volume lacks a chunk that an object has there",
        "SELECT c.volume || '/' || c.id, c.cid || ' ' || c.path || ' version ' || c.version FROM chunk c"
        " JOIN read_index USING (volume) LEFT JOIN indexed i"
        " ON (i.volume, i.id, i.cid, i.content) = (c.volume, c.id, c.cid, c.content) WHERE i.id IS NULL",
    ),
    "index-unknown": (
        "the index of a volume has a chunk that no object has there",
        "SELECT i.volume || '/' || i.id, i.cid || ' content ' || i.content FROM indexed i LEFT JOIN chunk c"
        " ON (i.volume, i.id, i.cid, i.content) = (c.volume, c.id, c.cid, c.content) WHERE c.id IS NULL",
    ),
    "chunk-missing": (
        "a volume lacks a chunk that an object has there",
        "SELECT c.volume || '/' || c.id, c.cid || ' ' || c.path || ' version ' || c.version FROM chunk c"
        " JOIN read_files USING (volume) LEFT JOIN stored s ON (s.volume, s.id) = (c.volume, c.id)"
        " WHERE s.id IS NULL",
    ),
    "chunk-orphan": (
        "a volume has a chunk that no object has there",
        "SELECT s.volume || '/' || s.id, s.path FROM stored s LEFT JOIN chunk c"
        " ON (s.volume, s.id) = (c.volume, c.id) WHERE c.id IS NULL",
    ),
}


def findings(facts: Facts) -> list[Finding]:
    """Every contradiction, by kind, then subject."""
    found = []
    for kind, (_meaning, question) in QUESTIONS.items():
        found += [Finding(kind, *row) for row in sorted(facts.ask(question))]
    return found
