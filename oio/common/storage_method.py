# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Chunk methods: how the bytes of an object are spread over chunks.

A chunk method is a text such as ``plain/nb_copy=3`` or ``ec/algo=isa_l_rs_cauchy,k=6,m=3``; it is stored
with each object. ``STORAGE_METHODS.load(text)`` gives the object that describes it; the same text always
gives the same object. The erasure coding library is imported when the first EC method is loaded.

:raises InvalidStorageMethod: on an unknown method, a malformed parameter, or an unsafe combination.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, ClassVar

from oio.common.exceptions import InvalidStorageMethod

if TYPE_CHECKING:

    class ECDriverError(RuntimeError):
        """Raised when the erasure coding library fails."""


# Bytes of plain data that are encoded at once. The layout of every EC chunk depends on it: never change it.
EC_SEGMENT_SIZE = 1048576

# `isa_l_rs_vand` builds its matrix from powers of 2; from 5 parities on, some sets of k fragments cannot be
# inverted, so data that should be safe cannot be rebuilt.
_VAND_PARITIES_MAX = 4


def __getattr__(name: str) -> Any:
    if name == "ECDriverError":
        return _load_ec_library()[1]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _load_ec_library() -> tuple[Any, type[Exception]]:
    """The module ``pyeclib.ec_iface`` (None when missing) and its error class; cached in the module."""
    try:
        from pyeclib import ec_iface
    except ImportError:
        stub = type("ECDriverError", (RuntimeError,), {"__doc__": "No erasure coding library."})
        loaded: tuple[Any, type[Exception]] = (None, stub)
    else:
        loaded = (ec_iface, ec_iface.ECDriverError)
    return globals().setdefault("_ec_library", loaded)


def parse_chunk_method(chunk_method: str) -> tuple[str, dict[str, str]]:
    """Split a chunk method in its name and parameters.

    >>> parse_chunk_method("ec/algo=liberasurecode_rs_vand,k=6,m=3")
    ('ec', {'algo': 'liberasurecode_rs_vand', 'k': '6', 'm': '3'})

    A parameter without value gets ``"1"``.
    """
    name, _, text = chunk_method.partition("/")
    params: dict[str, str] = {}
    for param in text.split(",") if text else ():
        key, equal, value = param.lstrip().partition("=")
        params[key] = value if equal else "1"
    return name, params


def guess_storage_method(url: str) -> str:
    """Name of the method that the scheme of a chunk URL tells."""
    if url.startswith(("b2", "backblaze")):
        return "backblaze"
    if url.startswith("kine"):
        return "kplain"
    return "plain"


def _positive(params: dict[str, Any], key: str, default: int | None, lowest: int = 1) -> int:
    value = params.get(key, default)
    try:
        number = int(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise InvalidStorageMethod(f"Invalid {key}: {value!r}") from None
    if number < lowest:
        raise InvalidStorageMethod(f"Invalid {key}: {value!r}")
    return number


class StorageMethod:
    """What readers and writers need to know about a chunk method."""

    def __init__(self, name: str, ec: bool = False, backblaze: bool = False) -> None:
        self.name = name
        self.ec = ec
        self.backblaze = backblaze
        self.type = name
        self.params: dict[str, str] = {}

    @classmethod
    def build(cls, params: dict[str, str]) -> StorageMethod:
        """Make the object of a parsed chunk method."""
        raise NotImplementedError

    @property
    def quorum(self) -> int:
        """How many chunks of a metachunk must be written for the upload to succeed."""
        raise NotImplementedError

    @property
    def expected_chunks(self) -> int:
        """How many chunks a complete metachunk has."""
        raise NotImplementedError

    @property
    def min_chunks_to_read(self) -> int:
        """How many chunks are enough to read a metachunk."""
        raise NotImplementedError


class ReplicatedStorageMethod(StorageMethod):
    """Each chunk of a metachunk is a whole copy."""

    def __init__(self, name: str = "repli", nb_copy: int = 1) -> None:
        super().__init__(name)
        self.nb_copy = nb_copy

    @classmethod
    def build(cls, params: dict[str, str]) -> ReplicatedStorageMethod:
        """Make the object of ``plain/nb_copy=N``."""
        return cls("repli", nb_copy=_positive(params, "nb_copy", 1))

    @property
    def quorum(self) -> int:
        """Half of the copies, rounded up."""
        return (self.nb_copy + 1) // 2

    @property
    def expected_chunks(self) -> int:
        """Number of copies."""
        return self.nb_copy

    @property
    def min_chunks_to_read(self) -> int:
        """One copy is enough."""
        return 1


class ECStorageMethod(StorageMethod):
    """k fragments of data, m of parity; any k of them give the data back."""

    def __init__(
        self, name: str, ec_segment_size: int, ec_type: str, ec_nb_data: int, ec_nb_parity: int
    ) -> None:
        super().__init__(name, ec=True)
        self._ec_nb_data = _positive({"k": ec_nb_data}, "k", None)
        self._ec_nb_parity = _positive({"m": ec_nb_parity}, "m", None)
        self._ec_type = ec_type
        self._ec_segment_size = ec_segment_size
        if ec_type == "isa_l_rs_vand" and self._ec_nb_parity > _VAND_PARITIES_MAX:
            raise InvalidStorageMethod(
                f"{ec_type} cannot rebuild every set of fragments with more than "
                f"{_VAND_PARITIES_MAX} parities (m={self._ec_nb_parity}): use isa_l_rs_cauchy"
            )
        library, driver_error = _load_ec_library()
        if library is None:
            raise InvalidStorageMethod("erasure coding library (pyeclib) is not installed")
        if ec_type not in library.VALID_EC_TYPES:
            raise InvalidStorageMethod(
                f"Erasure coding algorithm {ec_type!r} is unknown or not installed; "
                f"available: {', '.join(library.VALID_EC_TYPES)}"
            )
        try:
            self.driver: Any = library.ECDriver(
                k=self._ec_nb_data, m=self._ec_nb_parity, ec_type=ec_type
            )
            self._quorum = self._ec_nb_data + self.driver.min_parity_fragments_needed()
            self._fragment_size: int = self.driver.get_segment_info(
                ec_segment_size, ec_segment_size
            )["fragment_size"]
        except driver_error as err:
            raise InvalidStorageMethod(
                f"{ec_type} with k={ec_nb_data}, m={ec_nb_parity}: {err}"
            ) from err

    @classmethod
    def build(cls, params: dict[str, str]) -> ECStorageMethod:
        """Make the object of ``ec/algo=A,k=K,m=M``."""
        return cls(
            "ec",
            ec_segment_size=EC_SEGMENT_SIZE,
            ec_type=params.get("algo", ""),
            ec_nb_data=_positive(params, "k", None),
            ec_nb_parity=_positive(params, "m", None),
        )

    @property
    def quorum(self) -> int:
        """Data fragments, plus the parities without which the loss of one chunk loses the data."""
        return self._quorum

    @property
    def expected_chunks(self) -> int:
        """k + m."""
        return self._ec_nb_data + self._ec_nb_parity

    @property
    def min_chunks_to_read(self) -> int:
        """k."""
        return self._ec_nb_data

    @property
    def ec_type(self) -> str:
        """Name of the algorithm."""
        return self._ec_type

    @property
    def ec_nb_data(self) -> int:
        """k."""
        return self._ec_nb_data

    @property
    def ec_nb_parity(self) -> int:
        """m."""
        return self._ec_nb_parity

    @property
    def ec_segment_size(self) -> int:
        """Bytes of plain data encoded at once."""
        return self._ec_segment_size

    @property
    def ec_fragment_size(self) -> int:
        """Bytes of a fragment of a full segment, header included."""
        return self._fragment_size


class BackblazeStorageMethod(StorageMethod):
    """Chunks kept by Backblaze B2: known by name, so that the refusal is clear, but not supported."""

    @classmethod
    def build(cls, params: dict[str, str]) -> BackblazeStorageMethod:
        """:raises InvalidStorageMethod: always."""
        raise InvalidStorageMethod("chunks on Backblaze are not supported")


class StorageMethods:
    """Registry of the methods, and cache of the objects made so far. Thread-safe."""

    KINDS: ClassVar[dict[str, type[StorageMethod]]] = {
        "plain": ReplicatedStorageMethod,
        "ec": ECStorageMethod,
        "backblaze": BackblazeStorageMethod,
    }

    def __init__(self, kinds: dict[str, type[StorageMethod]] | None = None) -> None:
        self.index = dict(self.KINDS if kinds is None else kinds)
        self.cache: dict[str, StorageMethod] = {}
        self._lock = threading.Lock()

    def __getitem__(self, name: str) -> type[StorageMethod]:
        return self.index[name]

    def __contains__(self, name: object) -> bool:
        return name in self.index

    def load(self, chunk_method: str, **_kwargs: Any) -> StorageMethod:
        """Object of a chunk method; the same text gives the same object.

        :raises InvalidStorageMethod: when it is unknown or malformed.
        """
        found = self.cache.get(chunk_method)
        if found is not None:
            return found
        try:
            name, params = parse_chunk_method(chunk_method)
        except AttributeError:
            raise InvalidStorageMethod(f"Invalid chunk method {chunk_method!r}") from None
        kind = self.index.get(name)
        if kind is None:
            raise InvalidStorageMethod(f"Invalid chunk method {chunk_method!r}: unknown {name!r}")
        try:
            method = kind.build(params)
        except InvalidStorageMethod as err:
            raise InvalidStorageMethod(f"Invalid chunk method {chunk_method!r}: {err}") from err
        method.type = name
        method.params = params
        with self._lock:
            return self.cache.setdefault(chunk_method, method)


def load_methods() -> StorageMethods:
    """Make a fresh registry."""
    return StorageMethods()


STORAGE_METHODS = load_methods()
