# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""The judges of the fault tests: they accept what some order explains, and catch what none does."""

import itertools
import json
import random
import time

import pytest
from histories.checkers import (
    apply,
    check_counters,
    check_final,
    check_register,
    check_registers,
    check_same,
    without_witnesses_of,
)
from histories.history import REFUSED, History, Operation, Outcome, never_closed


def op(start, end, kind, argument=None, result=True, client="c"):
    return Operation(client, kind, "k", argument, start).ok(result, end)


def read(start, end, value):
    return op(start, end, "read", result=value)


def lost(start, kind, argument=None):
    """An operation that nobody knows the outcome of."""
    return Operation("c", kind, "k", argument, start).unknown("timeout")


GOOD = {
    "nothing": [],
    "one after the other": [op(0, 1, "write", "a"), read(2, 3, "a"), op(4, 5, "delete"), read(6, 7, None)],
    "a read during a write, before it": [op(0, 9, "write", "a"), read(2, 3, None)],
    "a read during a write, after it": [op(0, 9, "write", "a"), read(2, 3, "a"), read(4, 5, "a")],
    "two writes at once, one wins": [op(0, 9, "write", "a"), op(1, 8, "write", "b"), read(10, 11, "a")],
    "two writes at once, the other wins": [op(0, 9, "write", "a"), op(1, 8, "write", "b"), read(10, 11, "b")],
    "only one creation": [op(0, 5, "create", "a"), op(1, 6, "create", "b", REFUSED), read(7, 8, "a")],
    "a refused creation before a deletion": [
        op(0, 1, "write", "a"), op(2, 9, "delete"), op(3, 4, "create", "b", REFUSED), read(10, 11, None),
    ],
    "compare and set": [
        op(0, 1, "write", "a"), op(2, 5, "cas", ("a", "b")), op(3, 6, "cas", ("a", "c"), REFUSED), read(7, 8, "b"),
    ],
    "an unknown write that happened": [lost(0, "write", "a"), read(5, 6, "a")],
    "an unknown write that did not happen": [lost(0, "write", "a"), read(5, 6, None)],
    "an unknown write that happened late": [
        lost(0, "write", "a"), op(1, 2, "write", "b"), read(3, 4, "b"), read(5, 6, "a"),
    ],
    "an unknown deletion explains a creation": [
        op(0, 1, "create", "a"), lost(2, "delete"), op(3, 4, "create", "b"), read(5, 6, "b"),
    ],
    "an unknown read": [op(0, 1, "write", "a"), Operation("c", "read", "k", None, 2).unknown()],
    "a failed write": [op(0, 1, "write", "a"), Operation("c", "write", "k", "b", 2).failed(end=3)],
    "a deletion of what was read": [
        op(0, 1, "write", "a"), op(2, 3, "cas", ("a", None)), op(4, 5, "cas", ("a", None), REFUSED),
    ],
    "an offer that is taken": [op(0, 1, "offer", "a"), read(2, 3, "a"), op(4, 5, "offer", "b"), read(6, 7, "a")],
    "a property that is removed whether it is there or not": [op(0, 1, "write", None), op(2, 3, "write", None)],
    "three unknown deletions": [
        op(0, 1, "write", "a"), lost(1.1, "delete"), lost(1.2, "delete"), lost(1.3, "delete"),
        read(2, 3, None), op(4, 5, "create", "b"), read(6, 7, None), op(8, 9, "create", "c"), read(10, 11, "c"),
    ],
}  # fmt: skip

BAD = {
    "a lost write": [op(0, 1, "write", "a"), read(2, 3, None)],
    "a stale read": [op(0, 1, "write", "a"), op(2, 3, "write", "b"), read(4, 5, "a")],
    "two reads that go back": [op(0, 9, "write", "a"), read(1, 2, "a"), read(3, 4, None)],
    "two creations": [op(0, 5, "create", "a"), op(1, 6, "create", "b")],
    "a creation over an object": [op(0, 1, "write", "a"), op(2, 3, "create", "b")],
    "a creation refused by nothing": [op(0, 1, "create", "a", REFUSED)],
    "two compare-and-sets of one value": [
        op(0, 1, "write", "a"), op(2, 5, "cas", ("a", "b")), op(3, 6, "cas", ("a", "c")),
    ],
    "a compare-and-set refused for no reason": [op(0, 1, "write", "a"), op(2, 3, "cas", ("a", "b"), REFUSED)],
    "a deletion that comes back": [op(0, 1, "write", "a"), op(2, 3, "delete"), read(4, 5, "a")],
    "a deletion of nothing": [op(0, 1, "delete")],
    "a value of nobody": [read(0, 1, "a")],
    "a failed write that happened": [Operation("c", "write", "k", "a", 0).failed(end=1), read(2, 3, "a")],
    "an unknown write that happened twice": [
        lost(0, "write", "a"), read(1, 2, "a"), op(3, 4, "write", "b"), read(5, 6, "a"),
    ],
    "an unknown write before its time": [read(0, 1, "a"), lost(2, "write", "a")],
    "one unknown deletion for two": [
        op(0, 1, "write", "a"), lost(2, "delete"), op(3, 4, "create", "b"), op(5, 6, "create", "c"),
    ],
    "an offer that replaces something": [op(0, 1, "write", "a"), op(2, 3, "offer", "b"), read(4, 5, "b")],
    "an offer that is not taken": [op(0, 1, "offer", "a"), read(2, 3, None)],
    "a deletion of something else": [op(0, 1, "write", "a"), op(2, 3, "write", "b"), op(4, 5, "cas", ("a", None))],
    "seen after a later write was seen": [
        op(0, 9, "write", "a"), op(0, 9, "write", "b"), read(1, 2, "a"), read(3, 4, "b"), read(5, 6, "a"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_what_some_order_explains_is_accepted(name):
    assert check_register("k", GOOD[name]) is None


@pytest.mark.parametrize("name", BAD)
def test_what_no_order_explains_is_caught(name):
    violation = check_register("k", BAD[name])
    assert violation is not None
    assert violation.told().count("\n") >= 1


def explained(operations):
    """The same question, asked in the most stupid way."""
    sure = [one for one in operations if one.outcome is Outcome.OK]
    unsure = [one for one in operations if one.outcome is Outcome.UNKNOWN and one.kind != "read"]
    for count in range(len(unsure) + 1):
        for chosen in itertools.combinations(unsure, count):
            if any(_explains(order) for order in itertools.permutations([*sure, *chosen])):
                return True
    return False


def _explains(order):
    value = None
    for index, operation in enumerate(order):
        if any(later.end < operation.start for later in order[index + 1 :]):
            return False
        after = apply(value, operation)
        if after is apply("x", op(0, 1, "create", "y")):  # what an impossible one gives
            return False
        value = after
    return True


def some_history(rng):
    operations = []
    for index in range(rng.randrange(2, 6)):
        kind = rng.choice(("read", "read", "write", "create", "cas", "delete"))
        values = ("a", "b")
        argument = {"write": rng.choice(values), "create": rng.choice(values), "cas": ("a", "b")}.get(kind)
        start = rng.randrange(10)
        operation = Operation(f"c{index}", kind, "k", argument, start)
        outcome = rng.randrange(8)
        if outcome == 0:
            operation.unknown()
        elif outcome == 1 and kind in ("create", "cas", "delete"):
            operation.ok(REFUSED, start + rng.randrange(1, 6))
        else:
            operation.ok(rng.choice((None, *values)) if kind == "read" else True, start + rng.randrange(1, 6))
        operations.append(operation)
    return sorted(operations, key=lambda one: one.start)


def test_the_search_agrees_with_trying_all_orders():
    rng = random.Random(7)
    verdicts = set()
    for _ in range(1500):
        operations = some_history(rng)
        expected = explained(operations)
        assert (check_register("k", operations) is None) == expected, operations
        verdicts.add(expected)
    assert verdicts == {True, False}


def simulated(rng, count, unknown=0.0):
    """A history of a register that works, made by five clients that overlap."""
    value, operations, free = None, [], dict.fromkeys(range(5), 0.0)
    for index in range(count):
        client = min(free, key=free.get)
        start = free[client]
        kind = rng.choice(("read", "read", "write", "create", "cas", "delete"))
        argument = {"write": index, "create": index, "cas": (value, index)}.get(kind)
        operations.append(Operation(f"c{client}", kind, "k", argument, start))
        free[client] = start + rng.random() * 3
        operations[-1].end = free[client]
    # Each takes effect at some time of its own.
    moments = sorted((rng.uniform(one.start, one.end), number) for number, one in enumerate(operations))
    for _moment, number in moments:
        one = operations[number]
        if one.kind == "cas" and rng.random() < 0.7:
            one.argument = (value, one.argument[1])
        after = apply(value, one) if one.kind != "read" else value
        fit = not (one.kind == "cas" and value is None) and after is not apply("x", op(0, 1, "create", "y"))
        result = value if one.kind == "read" else True if fit else REFUSED
        if fit:
            value = after
        if one.kind != "read" and rng.random() < unknown:
            one.end = float("inf")
            one.unknown()
        else:
            one.ok(result, one.end)
    return sorted(operations, key=lambda one: one.start)


@pytest.mark.parametrize("unknown", [0.0, 0.05])
def test_long_histories_are_judged_quickly(unknown):
    for seed in range(10):
        operations = simulated(random.Random(seed), 150, unknown)
        assert check_register("k", operations) is None


def test_one_wrong_answer_in_a_long_history_is_found_and_shown_alone():
    operations = simulated(random.Random(3), 400)
    reads = [one for one in operations if one.kind == "read" and one.start > 100 and one.result is not None]
    reads[0].result = 0  # of the first operations, long overwritten
    violation = check_register("k", operations)
    assert reads[0] in violation.operations
    assert len(violation.operations) < 30


def test_keys_are_judged_one_by_one():
    history = History()
    history.begin("c", "write", "good", "a").ok()
    history.begin("c", "read", "good").ok("a")
    history.begin("c", "write", "bad", "a").ok()
    history.begin("c", "read", "bad").ok(None)
    assert [violation.key for violation in check_registers(history)] == ["bad"]


def test_steps_of_a_change_may_be_seen_and_nothing_else():
    seen = [op(0, 1, "write", "a"), op(2, 9, "delete"), op(3, 4, "delete", None, REFUSED), read(5, 6, "a")]
    assert check_register("k", seen) is not None
    assert check_register("k", without_witnesses_of("delete", seen, 5)) is None
    assert check_register("k", without_witnesses_of("delete", [*seen, read(10, 11, "a")], 5)) is not None
    given_up = [op(0, 1, "write", "a"), lost(2, "delete"), read(3, 4, None), read(5, 6, "a")]
    assert check_register("k", without_witnesses_of("delete", given_up, 5)) is None
    later = [*given_up, read(8, 9, None), read(10, 11, "a")]
    assert check_register("k", without_witnesses_of("delete", later, 5)) is not None


@pytest.mark.parametrize(
    ("operations", "final", "word"),
    [
        ([op(0, 1, "write", "a")], "a", None),
        ([op(0, 1, "write", "a")], None, "lost"),
        ([op(0, 1, "write", "a"), op(2, 3, "delete")], None, None),
        ([op(0, 1, "write", "a"), op(2, 3, "delete")], "a", "deleted value is back"),
        ([op(0, 1, "write", "a"), op(2, 3, "cas", ("a", None))], None, None),
        ([op(0, 1, "write", "a"), op(2, 3, "write", None)], "a", "deleted value is back"),
        ([op(0, 1, "write", "a"), op(2, 3, "write", "b")], "a", "overwritten value is back"),
        ([op(0, 1, "write", "a"), op(0.5, 3, "write", "b")], "a", None),
        ([op(0, 1, "write", "a"), lost(0, "delete")], None, None),
        ([op(0, 1, "delete"), op(2, 3, "write", "a")], None, "lost"),
        ([lost(0, "write", "a"), op(2, 3, "delete")], "a", None),
        ([op(0, 1, "write", "a")], "b", "nobody wrote"),
        ([op(0, 1, "create", "a", REFUSED)], "a", "nobody wrote"),
        ([op(0, 1, "write", "a"), op(2, 3, "delete"), op(4, 5, "create", "a")], "a", None),
    ],
)
def test_what_is_there_at_the_end(operations, final, word):
    violation = check_final("k", operations, final)
    assert (violation is None) if word is None else (word in violation.what)


def test_copies_are_compared_row_by_row():
    rows = {("t", 1): ("a",), ("t", 2): ("b",)}
    assert check_same("base", {"s1": rows, "s2": dict(rows), "s3": dict(rows)}) == []
    (told,) = check_same("base", {"s1": rows, "s2": {**rows, ("t", 2): ("c",)}, "s3": rows})
    assert "('t', 2)" in told
    assert len(check_same("base", {"s1": rows, "s2": {}})) == 2


def test_counters_are_compared_with_objects():
    assert check_counters("box", (2, 30), [10, 20]) == []
    assert check_counters("box", (3, 30), [10, 20]) != []
    assert check_counters("box", (2, 31), [10, 20]) != []


def test_an_interrupted_operation_is_unknown():
    history = History()
    with pytest.raises(KeyError), never_closed(history.begin("c", "write", "k", "a")):
        raise KeyError("x")
    assert history.counts() == {"ok": 0, "failed": 0, "unknown": 1}


def test_a_history_is_written_for_later(tmp_path):
    history = History()
    history.begin("c", "write", "k", "a").ok()
    history.begin("c", "cas", "k", ("a", "b")).ok(REFUSED)
    history.begin("c", "delete", "k")
    history.dump(tmp_path / "history.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["write", "cas", "delete"]
    assert lines[2]["end"] is None


def test_recovery_is_the_first_change_that_begins_afterwards():
    history = History()
    history.begin("c", "write", ("x", 1), "a").ok()
    early = history.begin("c", "write", ("x", 1), "b")
    struck_s = time.monotonic()
    early.ok()
    history.begin("c", "read", ("x", 1)).ok("b")
    history.begin("c", "create", ("x", 1), "c").ok(REFUSED)
    history.begin("c", "create", ("y", 1), "c").failed()
    first = history.begin("c", "delete", ("x", 2)).ok()
    history.begin("c", "write", ("x", 1), "d").ok()
    assert history.first_changes_s(struck_s, lambda key: key[0]) == {"x": first.end}


def test_what_a_listing_says_is_judged_name_by_name():
    history = History()
    history.begin("c", "create", "a", 1).ok()
    history.begin("c", "create", "b", 2).ok()
    assert history.touched() == {"a", "b"}
    now = time.monotonic()
    history.add_reads("c", now, now + 1, {"a": 1, "b": None})
    assert history.touched() == {"a", "b"}
    assert [violation.key for violation in check_registers(history)] == ["b"]
    assert check_registers(history, ["a"]) == []
