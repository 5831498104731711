# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""What concurrent clients asked, when, and what they were told.

An operation that ended without a clear answer may take effect at any time after it began, or never: its end is
infinite. One that was refused for a reason that has nothing to do with the state (busy, not sent) had no effect.
"""

import bisect
import contextlib
import enum
import itertools
import json
import math
import threading
import time
from typing import Any


class Outcome(enum.Enum):
    """What a client knows of its operation."""

    #: It was done, or the state did not allow it (``result`` is REFUSED).
    OK = "ok"
    #: It was not done, and will never be.
    FAILED = "failed"
    #: Nobody knows.
    UNKNOWN = "unknown"


class _Refused:
    """Answer of an operation that was evaluated, and did not fit the state."""

    def __repr__(self):
        return "REFUSED"


REFUSED = _Refused()

#: What an operation does to a register whose value is None when there is nothing.
#:   read              result: the value
#:   write(v)          always fits; v may be None
#:   create(v)         fits when there is nothing
#:   cas((old, v))     fits when the value is ``old``; v may be None
#:   delete            fits when there is something
#:   offer(v)          sets v when there is nothing; nobody is told whether it did
KINDS = ("read", "write", "create", "cas", "delete", "offer")


class Operation:
    """One request of one client; times are monotonic seconds."""

    __slots__ = ("argument", "client", "end", "key", "kind", "note", "outcome", "result", "start")

    def __init__(self, client, kind, key, argument=None, start=0.0):
        self.client = client
        self.kind = kind
        self.key = key
        self.argument = argument
        self.start = start
        self.end = math.inf
        self.outcome = Outcome.UNKNOWN
        self.result = None
        self.note = ""

    def ok(self, result=True, end=None):
        """It is over: done, or evaluated and refused."""
        self.result = result
        self.end = time.monotonic() if end is None else end
        self.outcome = Outcome.OK  # last: who sees it sees the others
        return self

    def failed(self, note="", end=None):
        """It was certainly not done."""
        self.note = str(note)
        self.end = time.monotonic() if end is None else end
        self.outcome = Outcome.FAILED
        return self

    def unknown(self, note=""):
        """Nobody knows whether it is, or will be, done."""
        self.note = str(note)
        return self

    def as_seen_now(self):
        """A copy that does not change when its client closes the operation."""
        outcome = self.outcome
        seen = Operation(self.client, self.kind, self.key, self.argument, self.start)
        seen.result, seen.note, seen.outcome = self.result, self.note, outcome
        seen.end = math.inf if outcome is Outcome.UNKNOWN else self.end
        return seen

    def changes(self):
        """May it have changed anything?"""
        return self.kind != "read" and self.result is not REFUSED and self.outcome is not Outcome.FAILED

    def told(self, origin_s=0.0):
        """One line, with times from ``origin_s``."""
        end = "?" if math.isinf(self.end) else f"{self.end - origin_s:.4f}"
        asked = self.kind if self.argument is None else f"{self.kind}({self.argument})"
        answer = repr(self.result) if self.outcome is Outcome.OK else f"{self.outcome.value} {self.note[:300]}"
        return f"[{self.start - origin_s:.4f} … {end}] {self.client} {asked} -> {answer}"

    def __repr__(self):
        return f"{self.key}: {self.told()}"


def _start_s(operation):
    return operation.start


class History:
    """All the operations of a run, from all clients."""

    def __init__(self):
        self._lock = threading.Lock()
        self._operations = []
        self._keys: dict[Any, list[Operation]] = {}
        self._touched = set()
        self.origin_s = time.monotonic()

    def begin(self, client, kind, key, argument=None):
        """Note an operation that starts now; it is unknown until its caller closes it."""
        with self._lock:
            operation = Operation(client, kind, key, argument, time.monotonic())
            self._operations.append(operation)
            self._keys.setdefault(key, []).append(operation)
            self._touched.add(key)
        return operation

    def add_reads(self, client, start, end, values):
        """Note what one answer said of many keys: ``values`` maps keys to what was read."""
        with self._lock:
            for key, value in values.items():
                operation = Operation(client, "read", key, None, start).ok(value, end)
                self._keys.setdefault(key, []).append(operation)
                self._touched.add(key)

    def operations(self):
        """All of them until now, without the parts of answers about many keys, by time of their start."""
        with self._lock:
            return list(self._operations)

    def by_key(self, keys=None):
        """Operations of each key (of all) as they are now, by time of their start."""
        with self._lock:
            chosen = self._keys if keys is None else keys
            found = {key: [operation.as_seen_now() for operation in self._keys[key]] for key in chosen}
        return {key: sorted(operations, key=_start_s) for key, operations in found.items()}

    def lost(self, key):
        """How many changes of a key ended without a clear answer, or have not ended."""
        with self._lock:
            found = self._keys.get(key, ())
            return sum(one.outcome is Outcome.UNKNOWN and one.kind != "read" for one in found)

    def touched(self):
        """Keys with operations since the last call."""
        with self._lock:
            keys, self._touched = self._touched, set()
        return keys

    def counts(self):
        """How many are ok, failed, unknown."""
        counts = dict.fromkeys((outcome.value for outcome in Outcome), 0)
        for operation in self.operations():
            counts[operation.outcome.value] += 1
        return counts

    def first_changes_s(self, after_s, group):
        """For each group of keys: end of its first change that was acknowledged, and begun after this time.

        :param group: gives the group of a key.
        """
        with self._lock:
            recent = self._operations[bisect.bisect_left(self._operations, after_s, key=_start_s) :]
        found = {}
        for operation in recent:
            if operation.outcome is Outcome.OK and operation.changes():
                name = group(operation.key)
                found[name] = min(operation.end, found.get(name, math.inf))
        return found

    def dump(self, path):
        """Write everything, one JSON object a line."""
        with open(path, "w", encoding="utf-8") as file:
            for operation in sorted(itertools.chain(*self.by_key().values()), key=_start_s):
                line = {name: getattr(operation, name) for name in Operation.__slots__}
                line["outcome"] = operation.outcome.value
                line["end"] = None if math.isinf(operation.end) else operation.end
                file.write(json.dumps(line, default=str) + "\n")


@contextlib.contextmanager
def never_closed(operation):
    """An operation whose caller is interrupted stays unknown, and tells why."""
    try:
        yield operation
    except BaseException as exc:
        operation.unknown(f"interrupted: {exc!r}")
        raise
