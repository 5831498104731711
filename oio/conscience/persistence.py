# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Keeps the registry across restarts, in one JSON file.

The file is replaced as a whole (temporary file, fsync, rename, fsync of the directory): a crash leaves either
the old one or the new one. :meth:`Persistence.save` returns once the state as it was at the call, or a later
one, is on disk; locks and deregistrations are answered after it. Registrations wait for the periodic save:
agents repeat them anyway.

A file that cannot be read back is kept aside under another name, said loudly, and the registry starts empty:
the services come back at their next registration, only the locks have to be set again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import zlib

import msgspec

from oio.common.durable import fsync_directory
from oio.conscience.messages import Message
from oio.conscience.registry import Registry
from oio.conscience.replica import Removal, SavedService

FORMAT = 1


class SavedState(Message, kw_only=True):
    """The file. ``crc32`` covers the canonical JSON of ``services``."""

    format: int
    namespace: str
    crc32: int
    services: list[SavedService]
    removals: list[Removal] = []


class Persistence:
    """Binds a registry to a file; ``period_s`` is for whoever drives :meth:`save_if_changed`."""

    def __init__(
        self, registry: Registry, path: str, namespace: str, logger: logging.Logger
    ) -> None:
        self._registry = registry
        self._path = os.path.abspath(path)
        self._namespace = namespace
        self._logger = logger
        self._lock = threading.Lock()
        self._saved_generation = -1
        self.saves = 0
        self.failures = 0

    def load(self) -> int:
        """Restore the registry; returns how many services came back (0 when the file is unusable)."""
        try:
            with open(self._path, "rb") as stream:
                raw = stream.read()
        except FileNotFoundError:
            return 0
        try:
            state = msgspec.json.decode(raw, type=SavedState)
            self._verify(state)
        except (msgspec.DecodeError, ValueError) as exc:
            aside = f"{self._path}.corrupt-{time.time_ns()}"
            os.rename(self._path, aside)
            self._logger.error(
                "state file %s is unusable (%s): kept as %s, starting without services; locks must"
                " be set again", self._path, exc, aside,
            )
            return 0
        return self._registry.restore(state.services, state.removals)

    def _verify(self, state: SavedState) -> None:
        if state.format != FORMAT:
            raise ValueError(f"format {state.format}, {FORMAT} expected")
        if state.namespace != self._namespace:
            raise ValueError(f"namespace {state.namespace}, {self._namespace} expected")
        if zlib.crc32(msgspec.json.encode(state.services)) != state.crc32:
            raise ValueError("checksum mismatch")

    def save_if_changed(self) -> bool:
        """Save unless the file is up to date; returns False when the save failed."""
        return self._registry.generation == self._saved_generation or self.save()

    def save(self) -> bool:
        """Make the present state durable; a failure is logged, counted, and tried again later."""
        wanted = self._registry.generation
        with self._lock:
            # Somebody else may have saved a later state while this thread waited.
            if self._saved_generation >= wanted:
                return True
            generation, services, removals = self._registry.save()
            body = msgspec.json.encode(
                SavedState(
                    format=FORMAT,
                    namespace=self._namespace,
                    crc32=zlib.crc32(msgspec.json.encode(services)),
                    services=services,
                    removals=removals,
                )
            )
            try:
                _replace_file(self._path, body)
            except OSError as exc:
                self.failures += 1
                self._logger.error("cannot save the state to %s: %s", self._path, exc)
                return False
            self._saved_generation = generation
            self.saves += 1
            return True


def _replace_file(path: str, body: bytes) -> None:
    temporary = path + ".tmp"
    try:
        with open(temporary, "wb") as out:
            out.write(body)
            out.flush()
            os.fsync(out.fileno())
        os.rename(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    fsync_directory(os.path.dirname(path))
