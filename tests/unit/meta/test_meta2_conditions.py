# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Conditional writes, and the quota: what must hold for a write to happen."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from meta2_bench import ADMIN, CID, FakeQueue, Meta2Bench
from meta2_kit import refused, same_chunk, state, told

from oio.common.status import StatusError
from oio.meta import messages as m

RIGHT, WRONG = "AB" * 16, "CD" * 16


def match(*tags: str) -> m.Condition:
    return m.Condition(if_match=list(tags))


def none_match(*tags: str) -> m.Condition:
    return m.Condition(if_none_match=list(tags))


#: condition, does it hold of an object, of its absence?
CASES = [
    (match(RIGHT), True, False),
    (match(WRONG), False, False),
    (match(WRONG, RIGHT), True, False),
    (match("*"), True, False),
    (match(), False, False),
    (match(""), False, False),
    (none_match(RIGHT), False, True),
    (none_match(WRONG), True, True),
    (none_match(WRONG, RIGHT), False, True),
    (none_match("*"), False, True),
    (none_match(), True, True),
    (m.Condition(), True, True),
    (m.Condition(if_match=[RIGHT], if_none_match=[WRONG]), True, False),
    (m.Condition(if_match=[RIGHT], if_none_match=[RIGHT]), False, False),
    (m.Condition(if_match=[WRONG], if_none_match=[WRONG]), False, False),
]


def attempt(bench: Meta2Bench, holds: bool, function: Any, *args: Any, **kwargs: Any) -> None:
    if holds:
        function(*args, **kwargs)
        return
    before = state(bench)
    refused(412, function, *args, **kwargs)
    assert state(bench) == before


@pytest.mark.parametrize(("condition", "holds", "_absent"), CASES)
@pytest.mark.parametrize("flags", [{}, {"append": True}, {"force": True}])
@pytest.mark.parametrize("mode", ["1", "-1"])
def test_put_over_an_object(
    bench: Meta2Bench, condition: m.Condition, holds: bool, _absent: bool, flags: Any, mode: str
) -> None:
    bench.set(sys__m2__policy__version=mode)
    bench.put("a", 5)
    attempt(bench, holds, bench.put, "a", 6, condition=condition, **flags)


@pytest.mark.parametrize(("condition", "_there", "holds"), CASES)
@pytest.mark.parametrize("flags", [{}, {"append": True}, {"force": True}])
@pytest.mark.parametrize("marker", [False, True])
def test_put_of_an_absent_or_hidden_object(
    bench: Meta2Bench, condition: m.Condition, _there: bool, holds: bool, flags: Any, marker: bool
) -> None:
    bench.set(sys__m2__policy__version="-1")
    if marker:
        bench.put("a", 2)
        bench.delete("a")
    attempt(bench, holds, bench.put, "a", 6, condition=condition, **flags)


@pytest.mark.parametrize(("condition", "holds", "absent"), CASES)
@pytest.mark.parametrize("mode", ["1", "-1"])
def test_delete(bench: Meta2Bench, condition: m.Condition, holds: bool, absent: bool, mode: str) -> None:
    bench.set(sys__m2__policy__version=mode)
    refused(420 if absent else 412, bench.delete, "a", condition=condition)
    bench.put("a", 5)
    attempt(bench, holds, bench.delete, "a", condition=condition)


def test_delete_of_a_marker_is_the_delete_of_no_object(bench: Meta2Bench) -> None:
    bench.set(sys__m2__policy__version="-1")
    bench.put("a", 5)
    bench.delete("a")
    refused(412, bench.delete, "a", condition=match("*"))
    bench.delete("a", condition=none_match("*"))
    assert bench.versions("a") == [(5, False)]


def test_condition_is_about_the_version_that_is_named(bench: Meta2Bench) -> None:
    bench.set(sys__m2__policy__version="-1")
    bench.put("a", 5)
    bench.put("a", 6, hash=WRONG)
    refused(412, bench.delete, "a", version=6, condition=match(RIGHT))
    refused(412, bench.delete, "a", condition=match(RIGHT))
    bench.delete("a", version=5, condition=match(RIGHT))
    refused(412, bench.put, "a", 6, hash=WRONG, change_policy=True, condition=match(RIGHT))
    bench.put("a", 6, hash=WRONG, change_policy=True, condition=match(WRONG))


def test_no_tag_matches_an_unknown_hash(bench: Meta2Bench) -> None:
    bench.put("a", 5)
    bench.put("a", append=True)
    for tag in (RIGHT, ""):
        refused(412, bench.put, "a", 6, condition=match(tag))
    refused(412, bench.put, "a", 6, condition=none_match("*"))
    bench.put("a", 6, condition=match("*"))


def test_tag_of_a_drained_object_is_still_its_hash(bench: Meta2Bench) -> None:
    bench.put("a", 5)
    bench.call(m.ContentDrain(cid=CID, path="a"))
    refused(412, bench.put, "a", 6, condition=match(WRONG))
    bench.put("a", 6, condition=match(RIGHT))


def test_failed_condition_stores_no_forced_mode_and_tells_nothing(
    bench: Meta2Bench, event_queue: FakeQueue
) -> None:
    bench.put("a", 5)
    told(bench, event_queue)
    message = refused(412, bench.put, "a", 6, condition=match(WRONG), force_versioning=-1)
    assert "If-Match" in message
    assert RIGHT in message
    assert "sys.m2.policy.version" not in bench.properties()
    assert told(bench, event_queue) == []


def test_one_of_many_creators_wins(bench: Meta2Bench) -> None:
    outcomes: list[int] = []
    start = threading.Barrier(8)

    def create(version: int) -> None:
        start.wait(10)
        try:
            bench.put("a", version, condition=none_match("*"))
            outcomes.append(0)
        except StatusError as exc:
            outcomes.append(exc.code)

    threads = [threading.Thread(target=create, args=(100 + i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(outcomes) == [0] + [412] * 7
    assert bench.check_counters() == (10, 1)


# --- quota ----------------------------------------------------------------------------------------------


def big(bench: Meta2Bench, name: str, size: int, **fields: Any) -> None:
    bench.put(
        name, size=size, chunks=Meta2Bench.chunks("0", size, 1), security=m.Security(),
        chunk_method="plain/nb_copy=1", **fields,
    )


def test_quota_refuses_what_ends_above_it(bench: Meta2Bench, event_queue: FakeQueue) -> None:
    bench.set(sys__m2__quota="100")
    big(bench, "a", 60)
    big(bench, "b", 40)
    told(bench, event_queue)
    before = state(bench)
    message = refused(445, big, bench, "c", 1)
    assert "101" in message
    assert "100" in message
    refused(445, big, bench, "b", 1, append=True)
    refused(445, big, bench, "c", 1, force=True)
    refused(445, big, bench, "b", 41)
    refused(445, bench.call, m.ContentUpdate(cid=CID, path="b", chunks=[same_chunk("u", "0", 41)]))
    refused(445, bench.call, m.ContentUpdate(cid=CID, path="b", chunks=[same_chunk("u", "1", 1)]))
    assert state(bench) == before
    assert told(bench, event_queue) == []


def test_quota_allows_what_does_not_grow(bench: Meta2Bench) -> None:
    big(bench, "a", 60)
    big(bench, "b", 60)
    bench.set(sys__m2__quota="100")
    big(bench, "empty", 0)
    big(bench, "b", 60)
    big(bench, "b", 50)
    bench.call(m.ContentUpdate(cid=CID, path="b", chunks=[same_chunk("u", "0", 45)]))
    bench.call(m.ContentTruncate(cid=CID, path="b", size=0))
    assert bench.check_counters() == (60, 3)
    bench.call(m.ContentSetProperties(cid=CID, path="a", properties={"k": "v"}))
    big(bench, "b", 40)
    bench.delete("a")
    big(bench, "c", 60)


def test_quota_counts_versions_until_they_are_trimmed(bench: Meta2Bench) -> None:
    bench.set(sys__m2__quota="100", sys__m2__policy__version="-1")
    big(bench, "a", 60)
    refused(445, big, bench, "a", 60)
    bench.set(sys__m2__policy__version="2", sys__m2__policy__version__delete_exceeding="1")
    big(bench, "a", 40)
    big(bench, "a", 60)
    assert bench.check_counters() == (100, 2)


def test_quota_of_the_namespace(bench: Meta2Bench) -> None:
    bench.variables.set("meta2.container.max_size", "50")
    refused(445, big, bench, "a", 51)
    bench.set(sys__m2__quota="100")
    big(bench, "a", 51)
    bench.set(sys__m2__quota="0")
    big(bench, "b", 1000)
    bench.set(sys__m2__quota="-5")
    big(bench, "b", 2000)
    bench.set(sys__m2__quota="")
    refused(445, big, bench, "b", 2001)


def test_administrators_have_no_quota(bench: Meta2Bench) -> None:
    bench.set(sys__m2__quota="10")
    big(bench, "a", 60, context=ADMIN)
    refused(445, big, bench, "a", 1, append=True)
    big(bench, "a", 1, append=True, context=ADMIN)
    bench.call(m.ContentUpdate(cid=CID, path="a", chunks=[same_chunk("u", "0", 99)]), ADMIN)
