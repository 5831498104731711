# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Requests sent again because the answer to the first was lost: what cannot be done twice is done once."""

from __future__ import annotations

import pytest
from meta2_bench import CID, Meta2Bench
from meta2_kit import refused

from oio.meta import messages as m


@pytest.mark.parametrize("condition", [None, m.Condition(if_match=["AB" * 16])])
def test_append(bench: Meta2Bench, condition: m.Condition | None) -> None:
    bench.put("a")
    chunks = bench.chunks("0", 10, 3)
    bench.put("a", chunks=chunks, append=True, condition=condition)
    assert bench.show("a").size == 20
    refused(421, bench.put, "a", chunks=chunks, append=True, retried=True, condition=condition)
    assert bench.show("a").size == 20
    bench.put("a", append=True, retried=True)
    assert bench.show("a").size == 30


def test_append_that_made_the_object(bench: Meta2Bench) -> None:
    chunks = bench.chunks("0", 10, 3)
    bench.put("a", chunks=chunks, append=True)
    refused(421, bench.put, "a", chunks=chunks, append=True, retried=True)
    assert bench.show("a").size == 10
    bench.put("b", append=True, retried=True)
    assert bench.show("b").size == 10


def test_deletion_does_not_bring_the_object_back(bench: Meta2Bench) -> None:
    bench.set(sys__m2__policy__version="-1")
    bench.put("a", 100)
    bench.delete("a")
    bench.delete("a", retried=True)
    reply = bench.call(m.ContentDeleteMany(cid=CID, paths=["a", "b"], retried=True))
    assert [item.status for item in reply.items] == [204, 420]
    assert bench.versions("a") == [(101, True), (100, False)]
    # One that names a version cannot be mistaken.
    bench.delete("a", version=101, retried=True)
    assert bench.versions("a") == [(100, False)]
    bench.delete("a", retried=True)
    assert bench.versions("a") == [(101, True), (100, False)]
