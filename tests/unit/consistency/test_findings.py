# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Each contradiction is found, and named; what agrees is not."""

import pytest

from oio.consistency.facts import Facts
from oio.consistency.findings import QUESTIONS, findings

AGREED = {
    "container": [
        ("C1", "acme", "photos", "photos", 2, 30, 1, 2, 2, 30),
        ("C2", "acme", "photos+segments", "photos", 5, 500, 0, 0, 5, 500),
        ("C3", "other", "empty", None, 0, 0, 0, 0, 0, 0),
    ],
    "account": [("acme", 7, 530, 1, 2, 2), ("other", 0, 0, 0, 0, 1), ("unused", 0, 0, 0, 0, 0)],
    "account_container": [
        ("acme", "photos", 2, 30, 1, 2),
        ("acme", "photos+segments", 5, 500, 0, 0),
        ("other", "empty", 0, 0, 0, 0),
    ],
    # Segments do not count as objects of their bucket.
    "bucket": [("photos", "acme", 2, 530, 1, 2)],
    "chunk": [("rawx-1", "AA", "C1", "11", "a", 1), ("rawx-2", "BB", "C1", "11", "a", 1)],
    "indexed": [("rawx-1", "AA", "C1", "11"), ("rawx-2", "BB", "C1", "11")],
    "stored": [("rawx-1", "AA", "acme/photos/a/1/11"), ("rawx-2", "BB", "acme/photos/a/1/11")],
    "peer": [("meta2-1", "C1", "NS/acme/photos"), ("meta2-2", "C1", "NS/acme/photos")],
    "indexed_base": [("meta2-1", "C1", "NS/acme/photos"), ("meta2-2", "C1", "NS/acme/photos")],
    "read_index": [("rawx-1",), ("rawx-2",), ("meta2-1",), ("meta2-2",)],
    "read_files": [("rawx-1",), ("rawx-2",)],
}


def found(**changed):
    facts = Facts()
    for table, rows in {**AGREED, **changed}.items():
        facts.add(table, rows)
    try:
        return [(finding.kind, finding.subject) for finding in findings(facts)]
    finally:
        facts.close()


def without(table, index):
    return {table: [row for number, row in enumerate(AGREED[table]) if number != index]}


def changed(table, index, **fields):
    rows = [list(row) for row in AGREED[table]]
    for column, value in fields.items():
        rows[index][int(column.removeprefix("c"))] = value
    return {table: rows}


def test_nothing_is_found_when_all_agree():
    assert found() == []


CASES = [
    ("container-counters", "acme/photos", changed("container", 0, c9=31)),
    ("container-counters", "acme/photos", changed("container", 0, c8=3)),
    ("container-unlisted", "other/empty", without("account_container", 2)),
    ("container-unknown", "acme/gone", {
        "account_container": [*AGREED["account_container"], ("acme", "gone", 0, 0, 0, 0)],
    }),
    ("account-container-counters", "acme/photos", changed("account_container", 0, c4=0)),
    ("account-counters", "acme", changed("account", 0, c2=529)),
    ("account-counters", "acme", changed("account", 0, c5=3)),
    ("account-counters", "unused", changed("account", 2, c1=1)),
    ("bucket-counters", "photos", changed("bucket", 0, c2=7)),
    ("base-not-indexed", "meta2-2 NS/acme/photos", without("indexed_base", 1)),
    ("base-unknown", "meta2-2 NS/acme/photos", without("peer", 1)),
    ("base-missing", "meta2-1 NS/acme/lost", {
        "linked_base": [("meta2-1", "C4", "NS/acme/lost")],
        "indexed_base": [*AGREED["indexed_base"], ("meta2-1", "C4", "NS/acme/lost")],
    }),
    ("chunk-not-indexed", "rawx-1/AA", without("indexed", 0)),
    ("index-unknown", "rawx-1/CC", {"indexed": [*AGREED["indexed"], ("rawx-1", "CC", "C1", "11")]}),
    ("chunk-missing", "rawx-2/BB", without("stored", 1)),
    ("chunk-orphan", "rawx-1/CC", {"stored": [*AGREED["stored"], ("rawx-1", "CC", "x")]}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "subject", "change"), CASES, ids=[f"{c[0]}-{n}" for n, c in enumerate(CASES)])
def test_each_contradiction_is_found_alone(kind, subject, change):
    assert found(**change) == [(kind, subject)]


def test_every_kind_is_tested():
    assert {case[0] for case in CASES} == set(QUESTIONS)


def test_an_index_entry_of_another_content_is_wrong_on_both_sides():
    kinds = {kind for kind, _ in found(**changed("indexed", 0, c3="22"))}
    assert kinds == {"chunk-not-indexed", "index-unknown"}


@pytest.mark.parametrize(
    ("read", "lacking", "kind"),
    [
        ("read_index", "indexed", "chunk-not-indexed"),
        ("read_files", "stored", "chunk-missing"),
    ],
)
def test_what_could_not_be_read_is_no_contradiction(read, lacking, kind):
    assert kind in {kind for kind, _ in found(**{lacking: []})}
    assert kind not in {kind for kind, _ in found(**{lacking: [], read: []})}
