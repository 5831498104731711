# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Small tools that the whole package shares: identifiers, deadlines, ranges, streams, pagination."""

from __future__ import annotations

import fcntl
import grp
import hashlib
import io
import os
import pwd
import random
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from typing import Any
from urllib.parse import quote as _quote

from oio.common.exceptions import DeadlineReached, OioException, ServiceBusy

CPU_COUNT = os.cpu_count() or 1

# Random part of request ids: drawn from a generator seeded by the system, not for secrets.
_REQID_LENGTH = 32
_reqid_random = random.Random()
os.register_at_fork(after_in_child=_reqid_random.seed)


# --- identifiers --------------------------------------------------------------------------------


def cid_from_name(account: str, ref: str) -> str:
    """Container id: SHA-256 of account, NUL, reference, as 64 upper-case hex digits."""
    return hashlib.sha256(f"{account}\0{ref}".encode()).hexdigest().upper()


def compute_chunk_id(
    cid: str, path: str, version: int | str, position: int | str, policy: str,
    hash_algo: str = "sha256",
) -> str:
    """Predictable chunk id: hash of the plain concatenation of the five texts."""
    text = f"{cid}{path}{version}{position}{policy}"
    return hashlib.new(hash_algo, text.encode()).hexdigest().upper()


def request_id(prefix: str = "") -> str:
    """Make a request id: the prefix, the PID in hex, random hex in what is left of 32 characters."""
    pid = f"{os.getpid():04X}"
    digits = _REQID_LENGTH - len(prefix) - len(pid)
    if digits <= 0:
        return prefix + pid
    return f"{prefix}{pid}{_reqid_random.getrandbits(digits * 4):0{digits}X}"


# --- time ---------------------------------------------------------------------------------------


def monotonic_time() -> float:
    """Seconds on a clock that never goes back."""
    return time.monotonic()


def deadline_to_timeout(deadline: float, check: bool = False) -> float:
    """Seconds left before a deadline. :raises DeadlineReached: with ``check``, when none is left."""
    timeout_s = deadline - time.monotonic()
    if check and timeout_s <= 0.0:
        raise DeadlineReached()
    return timeout_s


def timeout_to_deadline(timeout: float, now: float | None = None) -> float:
    """Moment (monotonic seconds) at which a timeout that starts now is over."""
    return (time.monotonic() if now is None else now) + timeout


def set_deadline_from_read_timeout(kwargs: MutableMapping[str, Any], force: bool = False) -> None:
    """Set ``kwargs['deadline']`` from ``kwargs['read_timeout']``, unless there is one (and not ``force``)."""
    if not force and kwargs.get("deadline") is not None:
        return
    timeout = kwargs.get("read_timeout")
    if timeout is not None:
        kwargs["deadline"] = timeout_to_deadline(float(timeout))


# --- pagination and ranges ------------------------------------------------------------------------


def depaginate(
    func: Callable[..., Any],
    item_key: Callable[[Any], Any] | None = None,
    listing_key: Callable[[Any], Any] | None = None,
    marker_key: Callable[[Any], Any] | None = None,
    truncated_key: Callable[[Any], bool] | None = None,
    attempts: int = 1,
    *args: Any,
    **kwargs: Any,
) -> Iterator[Any]:
    """Yield the items of all pages of a listing.

    :param func: called with ``args``, ``kwargs`` and, from the second page on, ``marker``.
    :param attempts: tries for each page when the service is busy.
    """
    if attempts < 1:
        raise ValueError("attempts must be positive")
    listing_of = listing_key or (lambda page: page)
    marker_of = marker_key or (lambda page: listing_of(page)[-1])
    is_truncated = truncated_key or (lambda page: bool(listing_of(page)))

    def next_page() -> Any:
        for attempt in range(attempts):
            try:
                return func(*args, **kwargs)
            except ServiceBusy:
                if attempt >= attempts - 1:
                    raise
        raise AssertionError("unreachable")

    while True:
        page = next_page()
        for item in listing_of(page):
            yield item_key(item) if item_key else item
        if not is_truncated(page):
            return
        kwargs["marker"] = marker_of(page)


def fix_ranges(
    ranges: Iterable[tuple[int | None, int | None]] | None, length: int | None
) -> list[tuple[int, int]] | None:
    """Clamp byte ranges to a length and drop those that lie outside; None without ranges or length."""
    if not ranges or length is None:
        return None
    result = []
    for start, end in ranges:
        if start is None:
            if end is None or end <= 0:
                continue
            start, end = max(0, length - end), length - 1
        elif end is None or end >= length:
            end = length - 1
        if start <= end:
            result.append((start, end))
    return result


# --- streams ------------------------------------------------------------------------------------


class GeneratorIO(io.RawIOBase):
    """Readable stream over bytes or an iterable of bytes.

    ``read(n)`` gives at most n bytes, across items; ``read()`` gives the next item only. Building the
    object does not touch the iterable.
    """

    def __init__(
        self, gen: Iterable[Any] | bytes, sub_generator: bool = False, iter_size: int = 8192
    ) -> None:
        super().__init__()
        if isinstance(gen, (bytes, bytearray, memoryview)):
            gen = (gen,)
        self.generator: Any = gen
        self.iter_size = iter_size
        self._sub_generator = sub_generator
        self._items: Iterator[Any] | None = None
        self._left: memoryview = memoryview(b"")

    def _next_item(self) -> Any:
        if self._items is None:
            self._items = iter(self._flatten() if self._sub_generator else self.generator)
        return next(self._items)

    def _flatten(self) -> Iterator[Any]:
        for part in self.generator:
            yield from part

    def _fill(self) -> bool:
        while not self._left:
            try:
                item = self._next_item()
            except StopIteration:
                return False
            if item:
                self._left = memoryview(item.encode() if isinstance(item, str) else item).cast("B")
            elif not isinstance(item, (bytes, str, bytearray, memoryview)):
                raise TypeError(f"bytes are expected, not {type(item).__name__}")
        return True

    def readable(self) -> bool:
        """Always true."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer as far as the iterable goes; 0 at the end."""
        target = memoryview(buffer).cast("B")
        done = 0
        while done < len(target) and self._fill():
            part = self._left[: len(target) - done]
            target[done : done + len(part)] = part
            self._left = self._left[len(part) :]
            done += len(part)
        return done

    def read(self, size: int | None = -1) -> bytes:
        """Read at most ``size`` bytes, or the rest of the current item without size."""
        if size is None or size < 0:
            if not self._fill():
                return b""
            data, self._left = bytes(self._left), memoryview(b"")
            return data
        if (self._left and size <= len(self._left)) or (self._fill() and size <= len(self._left)):
            data = bytes(self._left[:size])
            self._left = self._left[size:]
            return data
        buffer = bytearray(size)
        return bytes(memoryview(buffer)[: self.readinto(buffer)])

    def __iter__(self) -> Iterator[bytes]:  # type: ignore[override]
        while data := self.read(self.iter_size):
            yield data


def list_of_names(names: Iterable[Any]) -> list[Any]:
    """List of names from any iterable. :raises TypeError: for a text, whose letters would be the names."""
    if isinstance(names, (str, bytes)):
        raise TypeError(f"a list of names is expected, not the text {names!r}")
    return list(names)


def group_chunk_errors(chunk_err_iter: Iterable[tuple[str, Any]]) -> dict[Any, list[str]]:
    """Turn pairs (chunk, error) into ``{error: [chunk, …]}``."""
    errors: dict[Any, list[str]] = {}
    for chunk, error in chunk_err_iter:
        errors.setdefault(error, []).append(chunk)
    return errors


# --- texts --------------------------------------------------------------------------------------


def quote(value: Any, safe: str = "/") -> str:
    """Percent-encode; invalid UTF-8 is replaced first."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    return _quote(str(value).encode("utf-8", "replace"), safe)


def encode(value: Any, codec: str = "utf-8") -> Any:
    """Encode every text within dictionary values and lists (keys are left as they are)."""
    if isinstance(value, dict):
        return {key: encode(item, codec) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(item, codec) for item in value]
    return value.encode(codec) if isinstance(value, str) else value


def lower_dict_keys(mydict: dict[str, Any]) -> None:
    """Make the keys of a dictionary lower-case, in place."""
    for key in list(mydict):
        lowered = key.lower()
        if lowered != key:
            mydict[lowered] = mydict.pop(key)


# --- files and processes ------------------------------------------------------------------------


def paths_gen(volume_path: str) -> Iterator[str]:
    """Yield the path of every file below a directory."""
    for root, _dirs, names in os.walk(volume_path):
        for name in names:
            yield os.path.join(root, name)


def statfs(volume: str) -> float:
    """Free ratio of a file system: the smaller of free inodes and free blocks."""
    info = os.statvfs(volume)
    free_inodes = info.f_ffree / info.f_files if info.f_files else 1.0
    free_blocks = info.f_bavail / info.f_blocks if info.f_blocks else 1.0
    return min(free_inodes, free_blocks)


def drop_privileges(user: str) -> None:
    """Become another user. :raises OioException: when it is unknown or the switch fails."""
    try:
        entry = pwd.getpwnam(user)
    except KeyError as exc:
        raise OioException(f"User {user} does not exist") from exc
    try:
        if os.geteuid() == 0:
            os.setgroups([g.gr_gid for g in grp.getgrall() if user in g.gr_mem])
        os.setgid(entry.pw_gid)
        os.setuid(entry.pw_uid)
    except OSError as exc:
        raise OioException(f"Cannot switch to user {user}: {exc}") from exc
    os.environ["HOME"] = entry.pw_dir
    os.chdir("/")
    os.umask(0o022)


def set_fd_non_blocking(fd: int) -> None:
    """Make a descriptor non-blocking."""
    os.set_blocking(fd, False)


def set_fd_close_on_exec(fd: int) -> None:
    """Have a descriptor closed by exec."""
    fcntl.fcntl(fd, fcntl.F_SETFD, fcntl.fcntl(fd, fcntl.F_GETFD) | fcntl.FD_CLOEXEC)


# --- collections --------------------------------------------------------------------------------


class CacheDict(OrderedDict[Any, Any]):
    """Dictionary of bounded size that drops its oldest entries."""

    def __init__(self, size: int = 262144) -> None:
        super().__init__()
        self.size = size

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(key, value)
        while len(self) > self.size:
            self.popitem(last=False)


class RingBuffer(list[Any]):
    """List of bounded size: ``append`` overwrites the oldest item, nothing can be deleted."""

    def __init__(self, size: int = 1) -> None:
        super().__init__()
        self._size = size
        self._next = 0

    @property
    def size(self) -> int:
        """Largest number of items."""
        return self._size

    def append(self, value: Any) -> None:
        """Add an item in place of the oldest one when full."""
        if len(self) < self._size:
            super().append(value)
        else:
            self[self._next] = value
        self._next = (self._next + 1) % self._size

    def __delitem__(self, _index: Any) -> None:
        raise TypeError("Delete impossible in RingBuffer")


def compute_perfdata_stats(perfdata: dict[str, Any], prefix: str) -> None:
    """Add average, standard deviation and relative deviation of ``perfdata['rawx'][prefix*]``."""
    rawx = perfdata.get("rawx", {})
    values = [
        value for key, value in rawx.items()
        if key.startswith(prefix) and key[len(prefix) :] not in ("AVG", "SD", "RSD")
    ]
    if not values:
        return
    # Costs more to load than the rest of this module, and few callers measure.
    import statistics

    average = statistics.fmean(values)
    deviation = statistics.pstdev(values)
    rawx[prefix + "AVG"] = average
    rawx[prefix + "SD"] = deviation
    rawx[prefix + "RSD"] = deviation / average if average else 0.0
