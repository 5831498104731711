# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Iterators, streams and sources: small tools of chunk reading and writing."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping
from logging import Logger
from typing import Any

from oio.api._transport import LOGGER, failures, green_module
from oio.common import exceptions as exc

# Enough to know whether a source is at its end, and not lost when it is not.
_AHEAD_BYTES = 32768


def consume(it: Iterable[Any]) -> None:
    """Iterate to the end."""
    for _ in it:
        continue


class Closeable:
    """Iterator over several iterables that closes them all."""

    def __init__(self, *iterables: Any) -> None:
        self.iterables = iterables
        self._items = (item for iterable in iterables for item in iterable)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return next(self._items)

    def close(self) -> None:
        """Close those that can be closed."""
        self._items.close()
        for iterable in self.iterables:
            if hasattr(iterable, "close"):
                iterable.close()


def chain(iterable: Any) -> Any:
    """An equivalent iterator that has begun: errors of the first step are raised now."""
    iterator = iter(iterable)
    try:
        first = next(iterator)
    except StopIteration:
        return iter(())
    return Closeable([first], iterator)


def iters_to_raw_body(parts_iter: Iterable[Mapping[str, Any]]) -> Iterator[bytes]:
    """Bytes of the only part of a list of parts; nothing without part."""
    for part in parts_iter:
        yield from part["iter"]
        return


def close_source(source: Any, logger: Logger | None = None) -> None:
    """Close a response or a connection, whatever state it is in."""
    try:
        source.close()
    except failures() as err:
        (logger or LOGGER).debug("cannot close %r: %s", source, err)


class IOBaseWrapper(io.RawIOBase):
    """Raw IO over anything that has ``read``. :raises AttributeError: when it has not."""

    def __init__(self, wrapped: Any) -> None:
        super().__init__()
        self._read = wrapped.read
        self._wrapped = wrapped

    def readable(self) -> bool:
        """Always true."""
        return True

    def read(self, size: int | None = -1) -> bytes:
        """Read as the wrapped object does."""
        data: bytes = self._read(-1 if size is None else size)
        return data

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer from one read."""
        view = memoryview(buffer).cast("B")
        data = self._read(len(view))
        view[: len(data)] = data
        return len(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wrapped, name)


def read_source(source: Any, size: int, timeout: float) -> bytes:
    """Read a block of the source of an upload; ``b""`` at its end.

    :raises SourceReadError: on ``IOError`` or ``ValueError``, and when the source does not give bytes (text,
        nothing yet) or gives more of them than asked: both would be stored as something else than the data.
    :raises SourceReadTimeout: on the green timeout of that name, :class:`OioTimeout` on another one.
    """
    green = green_module()
    try:
        if green is None:
            data = source.read(size)
        else:
            try:
                with green.SourceReadTimeout(timeout):
                    data = source.read(size)
            except green.SourceReadTimeout as err:
                raise exc.SourceReadTimeout(str(err)) from err
            except green.Timeout as err:
                raise exc.OioTimeout(str(err)) from err
    except (OSError, ValueError) as err:
        raise exc.SourceReadError(str(err)) from err
    if type(data) is not bytes:
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise exc.SourceReadError(f"the source gives {type(data).__name__} instead of bytes")
        data = bytes(data)
    if len(data) > size:
        raise exc.SourceReadError(f"the source gives {len(data)} bytes when {size} are asked for")
    return data


class PeekSource:
    """Source of an upload whose end can be known without losing a byte."""

    __slots__ = ("_ahead", "_read", "_timeout")

    def __init__(self, source: Any, timeout: float) -> None:
        self._read = source
        self._ahead = b""
        self._timeout = timeout

    def read(self, size: int) -> bytes:
        """At most ``size`` bytes."""
        if self._ahead:
            data, self._ahead = self._ahead[:size], self._ahead[size:]
            return data
        return self._read.read(size)  # type: ignore[no-any-return]

    def at_end(self) -> bool:
        """Whether nothing is left; may read a block ahead."""
        if not self._ahead:
            self._ahead = read_source(self._read, _AHEAD_BYTES, self._timeout)
        return not self._ahead
