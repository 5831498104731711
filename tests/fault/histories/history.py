# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""What concurrent clients asked, when, and what they were told.

An operation that ended without a clear answer may take effect at any time after it began, or never: its end is
infinite. One that was refused for a reason that has nothing to do with the state (busy, not sent) had no effect.
"""

import contextlib
import enum
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
#:   write(v)          always fits
#:   create(v)         fits when there is nothing
#:   cas((old, v))     fits when the value is ``old``
#:   delete            fits when there is something
#:   ensure(v)         link: sets ``v`` when there is nothing; result: the value afterwards
KINDS = ("read", "write", "create", "cas", "delete", "ensure")


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
        self._close(Outcome.OK, end)
        self.result = result
        return self

    def failed(self, note="", end=None):
        """It was certainly not done."""
        self._close(Outcome.FAILED, end)
        self.note = str(note)
        return self

    def unknown(self, note=""):
        """Nobody knows whether it is, or will be, done."""
        self.outcome = Outcome.UNKNOWN
        self.note = str(note)
        return self

    def _close(self, outcome, end):
        self.outcome = outcome
        self.end = time.monotonic() if end is None else end

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


class History:
    """All the operations of a run, from all clients."""

    def __init__(self):
        self._lock = threading.Lock()
        self._operations = []
        self.origin_s = time.monotonic()

    def begin(self, client, kind, key, argument=None):
        """Note an operation that starts now; it is unknown until its caller closes it."""
        operation = Operation(client, kind, key, argument, time.monotonic())
        with self._lock:
            self._operations.append(operation)
        return operation

    def add(self, operation):
        """Note an operation that was made elsewhere: the part of a listing that is about one name."""
        with self._lock:
            self._operations.append(operation)

    def operations(self):
        """All of them until now, by time of their start."""
        with self._lock:
            found = list(self._operations)
        return sorted(found, key=lambda operation: operation.start)

    def by_key(self):
        """Operations of each key, by time of their start."""
        groups: dict[Any, list[Operation]] = {}
        for operation in self.operations():
            groups.setdefault(operation.key, []).append(operation)
        return groups

    def counts(self):
        """How many are ok, failed, unknown."""
        counts = dict.fromkeys((outcome.value for outcome in Outcome), 0)
        for operation in self.operations():
            counts[operation.outcome.value] += 1
        return counts

    def last_change_s(self, after_s):
        """End of the first change that was acknowledged, and begun after this time; None: there is none yet."""
        with self._lock:
            ends = [
                operation.end
                for operation in self._operations
                if operation.start >= after_s and operation.outcome is Outcome.OK and operation.changes()
            ]
        return min(ends, default=None)

    def dump(self, path):
        """Write everything, one JSON object a line."""
        with open(path, "w", encoding="utf-8") as file:
            for operation in self.operations():
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
