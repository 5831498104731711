# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Is there an order of the operations, each within its own time, that explains every answer?

The search follows Wing and Gong with Lowe's just-in-time linearization: a set of configurations (value, operations
in progress that already took effect) goes through the history, and an operation takes effect only when some answer
needs it. Configurations that were met, or that are implied by others, are not looked at again. An operation of
unknown outcome stays in progress for ever, and may never take effect.
"""

import math
from typing import Any, NamedTuple

from histories.history import REFUSED, Outcome

#: Beyond, a key is told to be undecided: keys must then be changed more often.
CONFIGURATIONS_MAX = 300_000

_IMPOSSIBLE = object()


class Violation(NamedTuple):
    """Something that no order explains, and what it takes to see it."""

    what: str
    key: Any
    #: The operations that matter, by time.
    operations: list[Any]

    def told(self, origin_s=0.0):
        """Some lines about it, with times from ``origin_s``."""
        lines = [f"{self.what}: {self.key}"]
        lines += [f"    {operation.told(origin_s)}" for operation in self.operations]
        return "\n".join(lines)


class Undecided(Exception):
    """Raised when the search has seen too many configurations."""


# --- the register -------------------------------------------------------------------------------------


def fits(value, operation):
    """Does a register of this value allow the operation?"""
    if operation.kind in ("write", "offer"):
        return True
    if operation.kind == "create":
        return value is None
    if operation.kind == "delete":
        return value is not None
    if operation.kind == "cas":
        return value is not None and value == operation.argument[0]
    raise ValueError(f"no such kind: {operation.kind}")


def apply(value, operation):
    """The value after an operation that was told what it was told, or _IMPOSSIBLE."""
    if operation.kind == "read":
        return value if value == operation.result else _IMPOSSIBLE
    fit = fits(value, operation)
    if operation.result is REFUSED:
        return _IMPOSSIBLE if fit else value
    if not fit:
        return _IMPOSSIBLE
    if operation.kind == "delete":
        return None
    if operation.kind == "cas":
        return operation.argument[1]
    if operation.kind == "offer" and value is not None:
        return value
    return operation.argument


# --- the search ---------------------------------------------------------------------------------------


class _Search:
    """One key's way through its history."""

    def __init__(self, operations, values):
        self._operations = [operation for operation in operations if _matters(operation)]
        self._bits = {id(operation): 1 << index for index, operation in enumerate(self._operations)}
        self._unknown = sum(self._bit(one) for one in self._operations if one.outcome is Outcome.UNKNOWN)
        self._pending = []
        self._configurations = {(value, 0) for value in values}
        self._seen = 0

    def _bit(self, operation):
        return self._bits[id(operation)]

    def run(self):
        """The first operation whose answer nothing explains, and the values that were possible; or None.

        :raises Undecided: after too many configurations.
        """
        events = [(operation.start, 0, index) for index, operation in enumerate(self._operations)]
        events += [
            (operation.end, 1, index)
            for index, operation in enumerate(self._operations)
            if operation.outcome is Outcome.OK
        ]
        for _when, ended, index in sorted(events):
            operation = self._operations[index]
            if not ended:
                self._pending.append(operation)
                continue
            before = self._configurations
            self._configurations = self._smallest(self._after(operation))
            self._pending.remove(operation)
            if not self._configurations:
                return operation, {value for value, _used in before}
        return None

    def _after(self, operation):
        """Configurations in which the operation took effect, without mention of it: its end is passed."""
        bit = self._bit(operation)
        found, met = set(), set()
        stack = [self._settled(*configuration) for configuration in self._configurations]
        while stack:
            configuration = stack.pop()
            if configuration in met:
                continue
            met.add(configuration)
            self._seen += 1
            if self._seen > CONFIGURATIONS_MAX:
                raise Undecided
            value, used = configuration
            if used & bit:
                found.add((value, used & ~bit))
                continue
            stack += [self._settled(*following) for following in self._following(value, used)]
        return found

    def _settled(self, value, used):
        """With all operations that fit and can change nothing: to let them take effect now is never wrong."""
        for operation in self._pending:
            bit = self._bit(operation)
            if not used & bit and not operation.changes() and apply(value, operation) is not _IMPOSSIBLE:
                used |= bit
        return value, used

    def _following(self, value, used):
        tried = set()
        for operation in self._pending:
            bit = self._bit(operation)
            if used & bit:
                continue
            after = apply(value, operation)
            if after is _IMPOSSIBLE:
                continue
            if bit & self._unknown:
                # It changes something, and another one that does the same was not taken already.
                same = (operation.kind, operation.argument)
                if after == value or same in tried:
                    continue
                tried.add(same)
            yield after, used | bit

    def _smallest(self, configurations):
        """Without those that differ from another one only by further unknown operations that were used up."""
        groups = {}
        for value, used in configurations:
            groups.setdefault((value, used & ~self._unknown), set()).add(used & self._unknown)
        kept = set()
        for (value, known), masks in groups.items():
            least = []
            for mask in sorted(masks, key=int.bit_count):
                if not any(mask & other == other for other in least):
                    least.append(mask)
                    kept.add((value, known | mask))
        return kept


def _matters(operation):
    if operation.outcome is Outcome.FAILED:
        return False
    return operation.outcome is Outcome.OK or operation.kind != "read"


def check_register(key, operations, initial=None):
    """Look for an order that explains the operations on one key.

    :param initial: value of the register before the first of them.
    :returns: None, or the violation with as few operations as it takes.
    """
    try:
        failure = _Search(operations, {initial}).run()
    except Undecided:
        return Violation("undecided: too many operations at once", key, list(operations)[-20:])
    if failure is None:
        return None
    culprit, values = failure
    shown = _shrunk([one for one in operations if one.start <= culprit.end], initial, operations)
    what = f"not linearizable: {culprit.kind} of {culprit.client} at {culprit.end:.4f}, values before it {values}"
    return Violation(what, key, shown)


def _shrunk(operations, initial, everything):
    """A small part of the operations that nothing explains either.

    A part without its beginning starts from any value; operations that change nothing may be left out.
    """
    anything = {initial, None}
    for operation in everything:
        argument = operation.argument
        anything |= set(argument) if isinstance(argument, tuple) else {argument}
        anything |= {operation.result} if operation.kind == "read" else set()
    shown = [one for one in operations if _matters(one)]
    starts = sorted({one.start for one in shown})
    low, high = 0, len(starts) - 1
    while low < high:  # the latest beginning that still fails
        middle = (low + high + 1) // 2
        if _fails([one for one in shown if one.end >= starts[middle]], anything):
            low = middle
        else:
            high = middle - 1
    values = {initial}
    if low and _fails([one for one in shown if one.end >= starts[low]], anything):
        shown = [one for one in shown if one.end >= starts[low]]
        values = anything
    for operation in list(shown):
        others = [one for one in shown if one is not operation]
        if not (operation.outcome is Outcome.OK and operation.changes()) and _fails(others, values):
            shown = others
    return shown


def _fails(operations, values):
    try:
        return _Search(operations, values).run() is not None
    except Undecided:
        return False


def check_registers(history, keys=None, view=lambda _key, operations: operations):
    """All the violations of a history, key by key. A history that still goes on can be judged too.

    :param view: what is judged of the operations on a key.
    """
    found = (check_register(key, view(key, operations)) for key, operations in history.by_key(keys).items())
    return [violation for violation in found if violation]


def without_witnesses_of(kind, operations, unknown_s):
    """Without what was only looked at, or refused, while a change of this kind was going on.

    For changes that are done in several steps, each of which may be seen.

    :param unknown_s: how long one that was given up by its client may go on.
    """
    times = [
        (one.start, one.start + unknown_s if math.isinf(one.end) else one.end)
        for one in operations
        if one.kind == kind and one.changes()
    ]
    return [
        one for one in operations
        if one.changes() or not any(start <= one.end and one.start <= end for start, end in times)
    ]  # fmt: skip


# --- what is there at the end ----------------------------------------------------------------------------


def check_final(key, operations, final, initial=None):
    """Lost writes, resurrected deletes, and values that nobody wrote.

    This asks less than an order of everything, and needs no search.

    :param final: the value that was read when all was quiet.
    """
    changes = [one for one in operations if one.kind != "read" and one.changes()]
    surely = [one for one in changes if one.outcome is Outcome.OK and one.kind != "offer"]
    if final is None:
        deletes = [one for one in changes if written(one) is None]
        writes = [one for one in surely if written(one) is not None]
        for write in writes:
            if not any(delete.end > write.start for delete in deletes):
                return Violation("acknowledged write is lost", key, [write])
        if initial is not None and not deletes:
            return Violation("initial value is lost", key, list(operations)[-5:])
        return None
    writers = [one for one in changes if written(one) == final]
    if not writers and final != initial:
        return Violation(f"nobody wrote {final!r}", key, changes[-5:])
    ends = max((one.end for one in writers), default=-math.inf)
    later = [one for one in surely if one.start > ends and written(one) != final]
    if later:
        what = "deleted value is back" if written(later[-1]) is None else "overwritten value is back"
        return Violation(f"{what}: {final!r}", key, [*writers, *later[-3:]])
    return None


def written(operation):
    """The value that an operation leaves when it is done."""
    if operation.kind == "delete":
        return None
    if operation.kind == "cas":
        return operation.argument[1]
    return operation.argument


# --- several rows --------------------------------------------------------------------------------------


def check_same(what, copies):
    """Are all the copies equal?

    :param copies: name of a copy -> {row key: row}
    """
    names = sorted(copies)
    if len(names) < 2:
        return []
    found = []
    for key in sorted(set().union(*(copies[name] for name in names)), key=repr):
        values = {name: copies[name].get(key) for name in names}
        if len({repr(value) for value in values.values()}) > 1:
            told = [f"{name}: {value!r}"[:300] for name, value in values.items()]
            found.append(f"copies differ: {what}, {key}: " + "; ".join(told))
    return found


def check_counters(what, counters, sizes):
    """Do counters (objects, bytes) agree with the sizes of the objects that are there?"""
    expected = (len(sizes), sum(sizes))
    if tuple(counters) == expected:
        return []
    return [f"counters of {what} are {tuple(counters)}, its objects make {expected}"]
