# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""The consuming side of a tube in Redis (see :mod:`oio.event.transport.redis_tube`).

All threads share one read-ahead and one stream of settlements. A thread that finds the read-ahead empty fetches
for everybody; the others wait. A settlement that comes while another one travels leaves with all those that came
meanwhile: the number of round trips falls when the load grows, and no thread waits for more than two of them.

The read-ahead grows while it is emptied fast and shrinks, down to nothing, while consumers are slow: jobs are
not kept from other processes by one that is busy. A job that nobody took for half of its time to run is checked
before it is given out.

Jobs come back before their time to run is over when it is known that nobody handles them: those of consumers whose
process is dead, as the processes of the same host see it; and those that Redis counts as this consumer's, but that
it does not have, because an answer was lost with the connection or with the server. Both are looked for at the
first fetch, after each failure, and every few seconds.
"""

from __future__ import annotations

import contextlib
import functools
import re
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

from oio.common import processes
from oio.event.queue import DEFAULT_TUBE
from oio.event.source import DEFAULT_TTR_S, EventSource, Job, SourceClosed, SourceError, TubeStats
from oio.event.transport.redis_tube import FETCH, GROUP, KICK, LEAVE, RECLAIM, SETTLE, RedisTube

Result = TypeVar("Result")

# Jobs fetched at once: at first, and at most.
READ_AHEAD_FIRST = 8
READ_AHEAD_MAX = 128
# A read-ahead that lasts less is doubled, one that lasts more is halved.
READ_AHEAD_SHORT_S = 0.1
READ_AHEAD_LONG_S = 1.0
# Longest wait in one command; a job that was put with a delay meanwhile is late by that much at most.
BLOCK_MAX_S = 1.0
# Jobs that nobody handles are looked for at this fraction of the time to run, at least once in so many seconds.
RECLAIM_FRACTION = 8
RECLAIM_PERIOD_MAX_S = 5.0
RECLAIM_JOBS = 32
_STREAM_ID = re.compile(rb"\d{1,20}-\d{1,20}")
_COUNT = re.compile(rb"\d{1,9}")


class _Token(NamedTuple):
    """Where a delivery stands."""

    place: str  # id of the entry in the stream
    deliveries: int  # from this place, this one included
    former: int  # before it came to this place
    fetched_s: float


class _Settlements:
    """Operations that will travel together."""

    __slots__ = ("args", "done", "error", "results", "settled")

    def __init__(self, lock: threading.Lock) -> None:
        self.settled = threading.Condition(lock)
        self.args: list[str | int] = []
        self.results: list[int] = []
        self.error: Exception | None = None
        self.done = False


class RedisSource(EventSource):
    """Thread-safe; open it after forking."""

    def __init__(self, url: str, tube: str = DEFAULT_TUBE, *, ttr_s: float = DEFAULT_TTR_S) -> None:
        """See :class:`oio.event.transport.redis_tube.RedisTube`. :raises ValueError: when the URL is malformed."""
        self.url = url
        self.tube = tube
        self._redis = RedisTube(url, tube)
        self._block_max_s = min(BLOCK_MAX_S, self._redis.timeout_s / 2)
        self._ttr_s = ttr_s
        # Names its process, so that others see when it is dead.
        self._consumer = "/".join(filter(None, (processes.mark(), uuid.uuid4().hex)))
        self._lock = threading.Lock()
        self._arrived = threading.Condition(self._lock)
        self._buffer: deque[Job] = deque()
        self._reserved: dict[str, Job] = {}
        # Places of reserved jobs whose settlement failed: nobody handles them, unless it is tried again.
        self._unsettled: set[str] = set()
        self._fetching = False
        self._closed = False
        self._read_ahead = READ_AHEAD_FIRST
        self._filled_s = 0.0
        # When to fetch again: sooner, few jobs would be there.
        self._fetch_s = 0.0
        self._grouped = False
        self._reclaim_s = 0.0
        self._settling = False
        self._batch = _Settlements(self._lock)

    def reserve(self, timeout_s: float) -> Job | None:
        """Take a job from the read-ahead, else fetch for everybody, else wait for the thread that does."""
        deadline = time.monotonic() + timeout_s
        while True:
            job = self._take_or_lead(deadline)
            if isinstance(job, Job):
                if time.monotonic() - job.token.fetched_s < self._ttr_s / 2 or self.touch(job):
                    return job
                continue  # too old: somebody else has it
            if job is None:
                return None
            jobs: list[Job] = []
            try:
                jobs = self._fetch(deadline)
            finally:
                # Also when a green thread is killed here: somebody else must lead.
                self._end_fetch(jobs)
            if not jobs and time.monotonic() >= deadline:
                return None

    def delete(self, job: Job) -> bool:
        """Forget the event, with all the events that are deleted meanwhile."""
        return self._settle("delete", job)

    def release(self, job: Job, delay_s: float = 0) -> bool:
        """Put the event at the end of the ready ones, or among the delayed ones."""
        return self._settle("release", job, max(0, int(delay_s * 1000)))

    def bury(self, job: Job) -> bool:
        """Put the event aside."""
        return self._settle("bury", job)

    def touch(self, job: Job) -> bool:
        """Start the time to run anew."""
        return self._settle("touch", job)

    def attempts(self, job: Job) -> int:
        """Deliveries so far; known without asking."""
        token: _Token = job.token
        return token.former + token.deliveries

    def stats(self) -> TubeStats:
        """Jobs by state."""
        return TubeStats(*self._call(self._redis.counts))

    def kick(self, limit: int) -> int:
        """Make buried, else delayed jobs ready."""
        redis = self._redis
        keys = (redis.stream, redis.delayed, redis.buried)
        return int(self._call(lambda: redis.run(KICK, keys, max(1, limit)))) if limit > 0 else 0

    def close(self) -> None:
        """Give back what is reserved, uncounted, and leave the group."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._arrived.notify_all()
            # The thread that fetches, or settles, must not be left with jobs that nobody knows.
            limit = time.monotonic() + 2 * self._redis.timeout_s
            while (self._fetching or self._settling) and time.monotonic() < limit:
                self._arrived.wait(limit - time.monotonic())
            jobs = [*self._reserved.values(), *self._buffer]
            self._reserved.clear()
            self._buffer.clear()
        try:
            # What cannot be given back now is reclaimed by others when its time is over.
            with contextlib.suppress(SourceError):
                self._give_back(jobs)
                if self._grouped:
                    self._call(lambda: self._redis.run(LEAVE, (self._redis.stream,), GROUP, self._consumer))
        finally:
            self._redis.close()

    # --- fetching -----------------------------------------------------------------------------------

    def _take_or_lead(self, deadline: float) -> Job | bool | None:
        """A job; True when this thread must fetch; None when it is too late."""
        with self._lock:
            try:
                while True:
                    if self._closed:
                        raise SourceClosed(f"{self._redis.shown} is closed")
                    if self._buffer:
                        job = self._buffer.popleft()
                        self._reserved[job.token.place] = job
                        self._unsettled.discard(job.token.place)
                        return job
                    if not self._fetching:
                        self._fetching = True
                        return True
                    left_s = deadline - time.monotonic()
                    if left_s <= 0:
                        return None
                    self._arrived.wait(left_s)
            finally:
                # Whoever was woken and leaves, killed or satisfied, lets another one look, who leads if need be.
                if self._buffer or not self._fetching:
                    self._arrived.notify()

    def _end_fetch(self, jobs: list[Job]) -> None:
        with self._lock:
            if jobs:
                self._filled_s = time.monotonic()
                self._buffer.extend(jobs)
            self._fetching = False
            if self._closed:
                self._arrived.notify_all()
            else:
                # One more than the jobs that this thread leaves: the next to fetch.
                self._arrived.notify(max(1, len(jobs)))

    def _fetch(self, deadline: float) -> list[Job]:
        """Wait for jobs until the deadline; called by one thread at a time."""
        redis = self._redis
        self._adapt()
        wanted = max(1, self._read_ahead)
        while not self._closed:
            if not self._grouped:
                self._call(redis.make_group)
                self._grouped = True
            if time.monotonic() >= self._reclaim_s:
                self._reclaim_s = time.monotonic() + min(RECLAIM_PERIOD_MAX_S, self._ttr_s / RECLAIM_FRACTION)
                if jobs := self._reclaim():
                    self._reclaim_s = 0.0  # perhaps there are more
                    return jobs
            self._pause(deadline)
            found = self._fetch_now(wanted)
            if jobs := _jobs(found):
                return jobs
            wait_s = min(deadline - time.monotonic(), self._block_max_s)
            if found[0] > 0:
                wait_s = min(wait_s, found[0] / 1000)
            if wait_s <= 0:
                break
            if jobs := self._block(wait_s):
                if self.gather_s and len(jobs) < wanted:
                    self._fetch_s = time.monotonic() + self.gather_s
                    self._pause(deadline)
                    with contextlib.suppress(SourceError):  # told by the next fetch
                        jobs += _jobs(self._fetch_now(wanted - len(jobs)))
                return jobs
        return []

    def _pause(self, deadline: float) -> None:
        """Let jobs gather, unless there were more than could be fetched."""
        pause_s = min(self._fetch_s, deadline) - time.monotonic()
        if pause_s > 0:
            time.sleep(min(pause_s, self.gather_s))

    def _fetch_now(self, wanted: int) -> list[Any]:
        redis = self._redis
        found: list[Any] = self._call(
            lambda: redis.run(FETCH, (redis.stream, redis.delayed), GROUP, self._consumer, wanted)
        )
        jobs = len(found) // 5
        self._fetch_s = time.monotonic() + self.gather_s if 0 < jobs < wanted else 0.0
        return found

    def _reclaim(self) -> list[Job]:
        """Take over jobs that nobody handles. Only the thread that fetches may: no other adds to what is held."""
        redis = self._redis
        dead = [name for name in self._call(redis.consumers) if processes.is_dead(name)]
        with self._lock:
            unsettled = set(self._unsettled)
            held = self._reserved.keys() - unsettled | {job.token.place for job in self._buffer}
        # What is settled meanwhile is not pending any more: the script passes over it.
        found, gone = self._call(
            lambda: redis.run(
                RECLAIM, (redis.stream,), GROUP, self._consumer, int(self._ttr_s * 1000), RECLAIM_JOBS,
                len(dead), *dead, *held,
            )
        )  # fmt: skip
        with self._lock:
            for place in {*unsettled & self._unsettled, *(place.decode() for place in gone)}:
                # Others have it, or it was deleted: whoever settles it now is told that it is not his.
                self._reserved.pop(place, None)
                self._unsettled.discard(place)
        return _jobs(found)

    def _block(self, wait_s: float) -> list[Job]:
        """Wait for a new entry in the stream. One only: the rest is fetched by script, which costs less."""
        redis = self._redis
        streams = self._call(
            lambda: redis.client.xreadgroup(
                GROUP, self._consumer, {redis.stream: ">"}, count=1, block=max(1, int(wait_s * 1000))
            )
        )
        if not streams:
            return []
        flat: list[Any] = [-1]
        for place, fields in streams[0][1]:
            body, first_id, number = [*fields.values(), b"", b"", b""][:3]
            first_id = first_id if _STREAM_ID.fullmatch(first_id) else place
            flat += [place, first_id, int(number) if _COUNT.fullmatch(number) else 0, 1, body]
        return _jobs(flat)

    def _adapt(self) -> None:
        lasted_s = time.monotonic() - self._filled_s
        if lasted_s < READ_AHEAD_SHORT_S:
            self._read_ahead = min(READ_AHEAD_MAX, self._read_ahead * 2)
        elif lasted_s > READ_AHEAD_LONG_S:
            self._read_ahead = max(1, self._read_ahead // 2)

    # --- settling -----------------------------------------------------------------------------------

    def _settle(self, operation: str, job: Job, delay_ms: int = 0) -> bool:
        token: _Token = job.token
        with self._lock:
            if self._reserved.get(token.place) is not job:
                return False  # settled before, given back by close, or somebody else's
            self._unsettled.discard(token.place)
            batch = self._batch
            rank = len(batch.args) // 4
            batch.args += (operation, token.place, token.deliveries, delay_ms)
            try:
                while self._settling and not batch.done:
                    batch.settled.wait()
            except BaseException:
                batch.settled.notify()  # perhaps this thread was woken to send the batch
                raise
            lead = not batch.done
            self._settling = self._settling or lead
        if lead:
            self._send(batch)
        if batch.error is not None:
            raise batch.error
        if operation != "touch" or not batch.results[rank]:
            with self._lock:
                if self._reserved.get(token.place) is job:
                    del self._reserved[token.place]
        return bool(batch.results[rank])

    def _send(self, batch: _Settlements) -> None:
        redis = self._redis
        error: BaseException | None = SourceError(f"{self._redis.shown}: interrupted")
        try:
            # Let those who are ready join. A green thread whose server answers before it asks for the answer would
            # never let the others run, else.
            time.sleep(0)
            with self._lock:
                self._batch = _Settlements(self._lock)
            keys = (redis.stream, redis.delayed, redis.buried)
            batch.results = self._call(lambda: redis.run(SETTLE, keys, GROUP, self._consumer, *batch.args))
            error = None
        except SourceError as exc:
            error = exc
        finally:
            with self._lock:
                batch.error = error if isinstance(error, Exception) else None
                if error is not None:
                    self._unsettled.update(self._failed(batch.args))
                batch.done = True
                self._settling = False
                if self._batch is batch:  # interrupted before it left
                    self._batch = _Settlements(self._lock)
                batch.settled.notify_all()
                # One thread of the next batch sends it.
                self._batch.settled.notify()
                if self._closed:
                    self._arrived.notify_all()

    def _failed(self, args: list[Any]) -> Iterator[str]:
        """Places of the jobs that are not settled as they should be; with the lock."""
        for operation, place, deliveries in zip(args[::4], args[1::4], args[2::4], strict=True):
            job = self._reserved.get(place)
            if operation != "touch" and job is not None and job.token.deliveries == deliveries:
                yield place

    def _give_back(self, jobs: list[Job]) -> None:
        redis = self._redis
        keys = (redis.stream, redis.delayed, redis.buried)
        for start in range(0, len(jobs), READ_AHEAD_MAX):
            args: list[str | int] = []
            for job in jobs[start : start + READ_AHEAD_MAX]:
                args += ("giveback", job.token.place, job.token.deliveries, 0)
            self._call(functools.partial(redis.run, SETTLE, keys, GROUP, self._consumer, *args))

    def _call(self, function: Callable[[], Result]) -> Result:
        """Talk to the server. :raises SourceError: for any failure."""
        from redis.exceptions import RedisError

        try:
            return function()
        except (RedisError, OSError) as exc:
            if "NOGROUP" in str(exc):
                self._grouped = False  # the server lost its data, or was never asked
            # Perhaps the server did what was asked, and only the answer is lost.
            self._reclaim_s = 0.0
            raise SourceError(f"{self._redis.shown}: {exc}") from exc


def _jobs(flat: list[Any]) -> list[Job]:
    """Decode what FETCH and RECLAIM give."""
    now_s = time.monotonic()
    return [
        Job(
            _number(flat[at + 1]),
            flat[at + 4],
            _Token(flat[at].decode(), flat[at + 3], int(flat[at + 2]), now_s),
        )
        for at in range(1, len(flat), 5)
    ]


def _number(stream_id: bytes) -> str:
    """One number, as growing as the id of a stream (ms and rank in it), for those who compare ids of jobs."""
    time_ms, _, rank = stream_id.partition(b"-")
    return str((int(time_ms) << 20) + int(rank))
