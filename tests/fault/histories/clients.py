# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Clients that note what they ask and what they are told, and what an error says about what was done."""

import random
import threading
import time

from histories.history import REFUSED, Outcome, never_closed

from oio import ObjectStorageApi
from oio.common.exceptions import ClientException, ClientPreconditionFailed, DeadlineReached, OioException
from oio.http.client import ConnectError, ConnectTimeout

#: After an operation without a clear answer: others are not made in numbers while nothing can be done (seconds).
PAUSE_S = 0.15
#: Between two operations of a client.
PERIOD_S = 0.01
#: When all is quiet, an answer comes within this time.
LAST_READ_S = 30.0
#: Answers of 500 and above that are decisions: nothing was done.
_DECISIONS = frozenset({425, 436, 437, 480, 481})


def never_sent(exc):
    """Did the request not even leave?"""
    return isinstance(exc, DeadlineReached) or isinstance(exc.__cause__, (ConnectError, ConnectTimeout))


def surely_not_done(exc):
    """Is it sure that what ended with this error was not, and will not be, done?"""
    if exc.retried:
        return False
    if never_sent(exc):
        return True
    if isinstance(exc, ClientException):
        if isinstance(exc.http_status, int) and 400 <= exc.http_status < 500:
            return True
        return exc.status in _DECISIONS
    return False


def refused(exc):
    """Was the request evaluated, and its condition found not to hold?"""
    return isinstance(exc, ClientPreconditionFailed) and not exc.retried


class Client(threading.Thread):
    """A thread that works on all the workloads in turn.

    :param patience_s: before an operation is given up.
    """

    def __init__(self, number, namespace, proxy, history, workloads, seed, patience_s):
        super().__init__(name=f"client-{number}")
        self.rng = random.Random(f"{seed}/client/{number}")
        self.api = ObjectStorageApi(namespace, endpoint=proxy, read_timeout=patience_s, autocreate=False)
        self.history = history
        self._workloads = workloads
        self._patience_s = patience_s
        self._end = threading.Event()
        self._serial = 0
        self._sent = False
        self._note_commits()
        #: Answers that are wrong whatever the order of operations is.
        self.complaints = []

    def _note_commits(self):
        """An upload changes nothing before its last step: whatever fails earlier was not done."""
        create = self.api.container.content_create

        def noted(*args, **kwargs):
            self._sent = True
            return create(*args, **kwargs)

        self.api.container.content_create = noted

    def run(self):
        """Work until it is told to end."""
        try:
            while not self._end.wait(PERIOD_S * self.rng.random()):
                workload = self.rng.choice(self._workloads)
                workload.step(self)
        except BaseException as exc:
            self.complaints.append(f"{self.name} failed: {exc!r}")
            raise

    def stop(self):
        """End after the operation that is going on."""
        self._end.set()

    def wait(self):
        """Wait until it has ended."""
        self.join(self._patience_s * 4 + 30)
        if self.is_alive():
            self.complaints.append(f"{self.name} hangs")

    def token(self):
        """A value that nobody else writes."""
        self._serial += 1
        return f"{self.name}-{self._serial}"

    # --- operations -------------------------------------------------------------------------------

    def change(self, kind, key, argument, call, refusal=refused, sure=surely_not_done, upload=False):
        """Make a change, and note how it ended.

        :param refusal: does an error say that the state did not fit?
        :param sure: does an error say that nothing was done?
        :param upload: nothing is changed before the last step.
        :returns: what ``call`` returned, or None.
        """
        operation = self.history.begin(self.name, kind, key, argument)
        self._sent = not upload
        with never_closed(operation):
            try:
                result = call()
            except OioException as exc:
                if refusal(exc):
                    operation.ok(REFUSED)
                elif not self._sent or sure(exc):
                    operation.failed(repr(exc))
                    self.pause()
                else:
                    operation.unknown(repr(exc))
                    self.pause()
                return None
        operation.ok()
        return result

    def read(self, key, call, absence):
        """Read a value, None when there is none.

        :param absence: errors that say so.
        """
        return self._read(key, call, absence).result

    def _read(self, key, call, absence):
        operation = self.history.begin(self.name, "read", key)
        with never_closed(operation):
            try:
                value = call()
            except absence:
                value = None
            except OioException as exc:
                self.pause()
                return operation.unknown(repr(exc))
            return operation.ok(value)

    def pause(self):
        """After an error. It ends early when the client must end."""
        self._end.wait(PAUSE_S * (0.5 + self.rng.random()))

    def complain(self, text):
        """Note a wrong answer."""
        self.complaints.append(f"{time.monotonic():.4f} {self.name}: {text}")


class LastReader(Client):
    """Reads everything once all is quiet; it is not started, and insists on answers."""

    def read(self, key, call, absence):
        """Read until there is an answer."""
        deadline = time.monotonic() + LAST_READ_S
        while time.monotonic() < deadline:
            operation = self._read(key, call, absence)
            if operation.outcome is Outcome.OK:
                return operation.result
        self.complain(f"{key} cannot be read in the end: {operation.note}")
        return None
