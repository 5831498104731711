# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Containers chosen from the name of the object, so that one flat name space spreads over many containers.

Purely a rule of clients: the same object name always gives the same container name.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from typing import Any

from oio.common.easy_value import is_hexa


class NoMatchFound(ValueError):
    """Raised when no pattern matches the name of an object."""


class ContainerBuilder:
    """The container has the name of the object."""

    def __call__(self, path: Any) -> str:
        return str(path)

    def alternatives(self, path: Any) -> Iterator[str]:
        """Every container in which the object may be."""
        yield self(path)

    def verify(self, name: Any) -> bool:
        """Can this be the name of a container that this builder makes?"""
        return isinstance(name, str)


class HashedContainerBuilder(ContainerBuilder):
    """The first bits of the SHA-256 of the object's name, in upper-case hex.

    >>> HashedContainerBuilder(bits=17)("fstab")
    '06EE0'
    """

    def __init__(self, offset: int = 0, size: int | None = None, bits: int = 15) -> None:
        self.bits = int(bits)
        self.offset = int(offset)
        self.size = None if size is None else int(size)
        if not 0 < self.bits <= 256:
            raise ValueError(f"bits must lie in 1..256, not {bits}")
        self._digits = (self.bits + 3) // 4
        self._unused_bits = self._digits * 4 - self.bits

    def __repr__(self) -> str:
        return f"HashedContainerBuilder(bits={self.bits},offset={self.offset},size={self.size})"

    def __call__(self, path: Any) -> str:
        data = str(path)[self.offset :].encode("utf-8")
        if self.size is not None:
            data = data[: self.size]
        head = int(hashlib.sha256(data).hexdigest()[: self._digits], 16)
        head = head >> self._unused_bits << self._unused_bits
        return f"{head:0{self._digits}X}"

    def verify(self, name: Any) -> bool:
        """True iff the name is hexadecimal without a bit outside the valid ones."""
        if not is_hexa(name):
            return False
        value = int(name, 16)
        return value >> self._digits * 4 == 0 and value & ((1 << self._unused_bits) - 1) == 0


class AutocontainerBuilder(ContainerBuilder):
    """The leading decimal digits of the name (slashes removed), masked and formatted."""

    def __init__(
        self,
        offset: int = 0,
        size: int | None = None,
        mask: int = 0xFFFFFFFFFF0000FF,
        base: int = 16,
        con_format: str = "%016X",
    ) -> None:
        self.offset = offset
        self.size = size
        self.mask = mask
        self.base = base
        self.format = con_format

    def __call__(self, path: Any) -> str:
        end = None if self.size is None else self.offset + self.size
        digits = re.match(r"\d+", str(path)[self.offset : end].replace("/", ""), re.ASCII)
        if not digits:
            raise ValueError(f"No digit at the start of {path!r}")
        return self.format % (int(digits[0]) & self.mask)

    def verify(self, name: Any) -> bool:
        """True iff formatting the hex value again gives the same name."""
        try:
            return bool(self.format % (int(name, 16) & self.mask) == name)
        except (TypeError, ValueError):
            return False


class RegexContainerBuilder(ContainerBuilder):
    """The captured groups of the first pattern found in the name, given to another builder."""

    def __init__(
        self,
        patterns: str | Iterable[Any],
        builder: type[ContainerBuilder] = ContainerBuilder,
        **kwargs: Any,
    ) -> None:
        sources = [patterns] if isinstance(patterns, (str, re.Pattern)) else list(patterns)
        if not sources:
            raise ValueError("At least one pattern is needed")
        self.patterns = [re.compile(source) for source in sources]
        for pattern in self.patterns:
            if not pattern.groups:
                raise ValueError(f"Pattern {pattern.pattern!r} captures no group")
        self.builder = builder(**kwargs)

    def __call__(self, path: Any) -> str:
        for name in self.alternatives(path):
            return name
        raise NoMatchFound(f"{path!r} matches none of the patterns")

    def alternatives(self, path: Any) -> Iterator[str]:
        """One name per pattern found in the object's name."""
        for pattern in self.patterns:
            match = pattern.search(str(path))
            if match:
                yield self.builder("".join(group for group in match.groups() if group is not None))

    def verify(self, name: Any) -> bool:
        """Ask the inner builder."""
        return self.builder.verify(name)
