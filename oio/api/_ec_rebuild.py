# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Rebuilding one erasure-coded chunk from others of its metachunk."""

from __future__ import annotations

from collections.abc import Iterator
from logging import Logger
from typing import Any

from oio.api._ec_sources import BadFragment, Chunk, Fragment, FragmentSource, SourceOpener, fragment_index
from oio.api._reader import read_failures, timed_out
from oio.common import exceptions as exc
from oio.common import storage_method as methods
from oio.common.constants import CHUNK_HEADERS


class ECRebuildHandler:
    """Rebuilds the fragments of one missing chunk from k others.

    :param missing: sub-position of the chunk to rebuild.
    :param read_all_available_sources: read more than k chunks, and discard invalid fragments.
    """

    def __init__(
        self,
        meta_chunk: list[Chunk],
        missing: int,
        storage_method: Any,
        connection_timeout: float | None = None,
        read_timeout: float | None = None,
        read_all_available_sources: bool = False,
        logger: Logger | None = None,
        reqid: str | None = None,
        **_kwargs: Any,
    ) -> None:
        self.meta_chunk = meta_chunk
        self.missing = missing
        self.storage_method = storage_method
        self.read_all = read_all_available_sources
        self.reqid = reqid
        self.opener = SourceOpener(connection_timeout, read_timeout, None, reqid, logger)

    def rebuild(self) -> tuple[int | None, Iterator[bytes]]:
        """Size of the chunk (None when no source tells it), and a generator of its fragments.

        :raises UnrecoverableContent: fewer than k sources are usable.
        """
        headers = {"x-oio-req-id": self.reqid} if self.reqid else {}
        k = self.storage_method.ec_nb_data
        by_size: dict[int | None, list[FragmentSource]] = {}
        for source in self.opener.open(self.meta_chunk, headers, 0, (200,)):
            text = source.header(CHUNK_HEADERS["chunk_size"])
            by_size.setdefault(int(text) if text else None, []).append(source)
        unsized = by_size.pop(None, [])
        size: int | None = None
        usable: list[FragmentSource] = []
        if by_size:
            size, usable = max(by_size.items(), key=lambda item: len(item[1]))
        rejected = [source for other, group in by_size.items() if other != size for source in group]
        if len(usable) < k:
            usable = usable + unsized
        else:
            rejected += unsized
        for source in rejected:
            source.close()
        if len(usable) < k:
            for source in usable:
                source.close()
            raise exc.UnrecoverableContent(
                f"Not enough sources to rebuild fragment {self.missing} ({len(usable)}/{k}): "
                f"{self.opener.errors} (reqid={self.reqid})"
            )
        return size, self._fragments(usable)

    def _fragments(self, usable: list[FragmentSource]) -> Iterator[bytes]:
        k = self.storage_method.ec_nb_data
        active, spares = (list(usable), []) if self.read_all else (usable[:k], usable[k:])
        offset = 0
        try:
            while True:
                read = self._read_all(active, spares, offset)
                lengths = {len(fragment) for _, fragment in read}
                if lengths == {0}:
                    return
                if len(lengths) != 1:
                    raise exc.ServiceUnavailable(f"sources end at different places ({lengths})")
                fragments = [bytes(fragment) for _, fragment in read]
                if self.read_all:
                    fragments = self._valid(read)
                yield self.storage_method.driver.reconstruct(fragments, [self.missing])[0]
                offset += lengths.pop()
        finally:
            for source in [*active, *spares]:
                source.close()

    def _read_all(
        self, active: list[FragmentSource], spares: list[FragmentSource], offset: int
    ) -> list[tuple[FragmentSource, Fragment]]:
        """One fragment of each active source; sources that fail are replaced by spare ones, or left out."""
        k = self.storage_method.ec_nb_data
        size = self.storage_method.ec_fragment_size
        result: list[tuple[FragmentSource, Fragment]] = []
        waiting = [(source, 0) for source in active]
        while waiting:
            source, skipped = waiting.pop(0)
            try:
                source.skip(skipped)
                fragment = source.read(size)
                if source.native and fragment and not self.read_all:
                    self._check(source, fragment, offset)
            except read_failures() as err:
                failure = timed_out(err, self.opener.read_timeout)
                self.opener.failed(source.chunk, 0, f"byte {offset}: {failure}")
                active.remove(source)
                source.close()
                if spares:
                    spare = spares.pop(0)
                    active.append(spare)
                    waiting.append((spare, offset))
                elif len(active) < k:
                    raise failure from err
            else:
                result.append((source, fragment))
        return result

    def _check(self, source: FragmentSource, fragment: Fragment, offset: int) -> None:
        """Refuse a fragment that was written wrong: the bytes are those that the rawx was given, hence nobody
        can tell which of the k sources are right.

        :raises ECDriverError: as the library does when a header is not valid.
        """
        try:
            number = fragment_index(fragment, None)
            if number != source.chunk.get("num", number):
                raise BadFragment(f"fragment {number} where {source.chunk['num']} is expected")
        except BadFragment as err:
            raise methods.ECDriverError(
                f"chunk {source.chunk.get('url')}, byte {offset}: {err}; reading all available sources may help "
                f"(reqid={self.reqid})"
            ) from err

    def _valid(self, read: list[tuple[FragmentSource, Fragment]]) -> list[bytes]:
        """Fragments with a valid header, k at least, one per index."""
        valid: dict[int, bytes] = {}
        for source, fragment in read:
            try:
                number = fragment_index(fragment, None)
                if source.native and number != source.chunk.get("num", number):
                    raise BadFragment(f"fragment {number} where {source.chunk['num']} is expected")
            except BadFragment as err:
                self.opener.failed(source.chunk, 0, str(err))
                continue
            valid.setdefault(number, bytes(fragment))
        valid.pop(self.missing, None)
        if len(valid) < self.storage_method.ec_nb_data:
            raise exc.UnrecoverableContent(
                f"Not enough valid fragments to rebuild fragment {self.missing} "
                f"({len(valid)}/{self.storage_method.ec_nb_data}): {self.opener.errors}"
            )
        return list(valid.values())
