# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Objects as maintenance handles them: read, write, rebuild a chunk, move a chunk.

A rebuilt or moved chunk is first written to the service that the proxy proposes, then registered in the container;
the object is readable at every moment in between. Guarantees, whatever fails:

- a chunk is deleted only once the container is known not to refer to it;
- a copy that could not be registered is deleted; when nobody can tell whether it was registered, it is kept;
- the lost chunk is neither read nor deleted by a rebuild.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from oio.api._transport import failures
from oio.api.ec import ECWriteHandler
from oio.api.replication import ReplicatedWriteHandler
from oio.blob.client import BlobClient
from oio.common import exceptions as exc
from oio.common.constants import OIO_VERSION
from oio.common.decorators import ensure_request_id2
from oio.common.fullpath import encode_fullpath
from oio.common.logger import get_logger
from oio.common.status import CONTENT_DRAINED
from oio.common.storage_functions import _get_weighted_random_score, _sort_chunks, open_stream
from oio.common.utils import group_chunk_errors
from oio.container.client import ContainerClient
from oio.container.metadata import extract_chunk_qualities
from oio.content.chunks import (
    Chunk,
    ChunksHelper,
    Quality,
    RawChunk,
    compare_chunk_quality,
    ensure_better_chunk_qualities,
)

__all__ = ["Chunk", "ChunksHelper", "Content", "compare_chunk_quality", "ensure_better_chunk_qualities"]

# How often a spare chunk is asked for.
SPARE_ATTEMPTS_MAX = 3
_CHUNK_KEYS = ("url", "pos", "size", "hash")
# A rawx notices that an upload broke off within milliseconds; until then its chunk id is taken.
_FORGET_PAUSES_S = (0.05, 0.1, 0.2, 0.4)


class Content:
    """One version of an object, and its chunks. See :mod:`oio.content.factory` for how to get one.

    :ivar chunks: the chunks, as a :class:`ChunksHelper`; kept up to date by rebuilds and moves.
    """

    #: What uploads an object of this kind.
    _write_handler: type[ReplicatedWriteHandler | ECWriteHandler]

    def __init__(
        self,
        conf: Mapping[str, Any],
        container_id: str,
        metadata: dict[str, Any],
        chunks: Iterable[RawChunk],
        storage_method: Any,
        account: str,
        container_name: str,
        blob_client: BlobClient | None = None,
        container_client: ContainerClient | None = None,
        logger: Any = None,
    ) -> None:
        self.conf = conf
        self.container_id = container_id
        self.metadata = metadata
        self.chunks = ChunksHelper(chunks)
        self.storage_method = storage_method
        self.account = account
        self.container_name = container_name
        self.logger = logger or get_logger(dict(conf), "oio.content")
        self.container_client = container_client or ContainerClient(conf, logger=self.logger)
        self.blob_client = blob_client or BlobClient(conf, logger=self.logger)
        self.content_id: str = metadata["id"]
        self.path: str = metadata["name"]
        self.length = int(metadata["length"])
        self.version = metadata["version"]
        self.checksum = metadata.get("hash")
        self.chunk_method: str = metadata["chunk_method"]
        self.full_path: str = metadata.get("full_path") or encode_fullpath(
            account, container_name, self.path, self.version, self.content_id
        )
        self._attach_qualities()

    def _attach_qualities(self) -> None:
        qualities = extract_chunk_qualities(self.metadata.get("properties") or {})
        for chunk in self.chunks if qualities else ():
            if "quality" not in chunk.data and chunk.url in qualities:
                chunk.quality = qualities[chunk.url]

    @property
    def mime_type(self) -> Any:
        """Type of the data."""
        return self.metadata["mime_type"]

    @mime_type.setter
    def mime_type(self, value: str) -> None:
        """Set the type."""
        self.metadata["mime_type"] = value

    @property
    def policy(self) -> Any:
        """Storage policy."""
        return self.metadata["policy"]

    @policy.setter
    def policy(self, value: str) -> None:
        """Set the policy."""
        self.metadata["policy"] = value

    @property
    def properties(self) -> dict[str, Any]:
        """User properties. :raises ValueError: when set to anything but a dictionary."""
        return self.metadata.setdefault("properties", {})  # type: ignore[no-any-return]

    @properties.setter
    def properties(self, value: dict[str, Any]) -> None:
        """Replace the properties."""
        if not isinstance(value, dict):
            raise ValueError(f"properties must be a dictionary, not {type(value).__name__}")
        self.metadata["properties"] = value

    # --- the object -----------------------------------------------------------------------------

    def create(self, stream: Any, **kwargs: Any) -> tuple[list[RawChunk], int, str]:
        """Upload a stream, then declare the object under the id and the version that it has here.

        When the upload fails or the object is refused, what was written is deleted.

        :param stream: anything with ``read``.
        :returns: the chunks, the number of bytes, the MD5.
        """
        asked: list[RawChunk] = []
        try:
            chunks, size, checksum = self._upload(
                stream, functools.partial(self._metachunks, asked, kwargs), kwargs
            )
        except failures() as err:
            self.logger.warning("upload of %s failed, deleting %d chunks: %s", self.full_path, len(asked), err)
            self._delete_all(asked, kwargs)
            raise
        self.chunks = ChunksHelper(chunks)
        self.length = size
        self.metadata["length"] = str(size)
        self.checksum = self._stored_checksum(checksum)
        self.metadata["hash"] = self.checksum
        try:
            self._create_object(**kwargs)
        except exc.OioException as err:
            if _was_refused(err):
                self.logger.warning("%s was refused, deleting its chunks: %s", self.full_path, err)
                self._delete_all(chunks, kwargs)
            raise
        return chunks, size, checksum

    def _upload(
        self, stream: Any, preparer: Callable[[], Iterator[list[RawChunk]]], kwargs: dict[str, Any]
    ) -> tuple[list[RawChunk], int, str]:
        """Write a stream to the chunks that a preparer gives."""
        handler = self._write_handler(stream, self._sysmeta(), preparer, self.storage_method, **kwargs)
        written: tuple[list[RawChunk], int, str] = handler.stream()
        return written

    def _stored_checksum(self, checksum: str) -> str:
        """The checksum of the object, from that of its data."""
        return checksum

    def _sysmeta(self) -> dict[str, Any]:
        """What the writers of chunks want to know of the object."""
        return {
            **{key: value for key, value in self.metadata.items() if key != "properties"},
            "id": self.content_id,
            "version": self.version,
            "content_path": self.path,
            "chunk_method": self.chunk_method,
            "policy": self.policy,
            "container_id": self.container_id,
            "full_path": self.full_path,
            "chunk_size": self.metadata.get("chunk_size") or self.chunks[0].size,
            "oio_version": OIO_VERSION,
        }

    def _metachunks(self, asked: list[RawChunk], kwargs: dict[str, Any]) -> Iterator[list[RawChunk]]:
        """The metachunks to write to: those that were prepared, then others if the stream is longer than said.

        :param asked: receives every chunk given.
        """
        position = 0
        while found := self.chunks.filter(metapos=position).all():
            metachunk = [self._numbered(chunk.raw(), position) for chunk in found]
            asked += metachunk
            yield metachunk
            position += 1
        request = {key: value for key, value in kwargs.items() if key != "version"}
        while True:
            meta, raw = self.container_client.content_prepare(
                cid=self.container_id, path=self.path, position=position, size=1, stgpol=self.policy,
                content_id=self.content_id, version=self.version, **request,
            )  # fmt: skip
            self.properties.update(meta.get("properties") or {})
            metachunk = [self._numbered(chunk, position) for chunk in raw]
            asked += metachunk
            yield metachunk
            position += 1

    def _numbered(self, chunk: RawChunk, position: int) -> RawChunk:
        _, dot, num = str(chunk["pos"]).partition(".")
        numbered = {**chunk, "pos": f"{position}{dot}{num}"}
        if dot:
            numbered["num"] = int(num)
        return numbered

    def _create_object(self, **kwargs: Any) -> None:
        self.container_client.content_create(
            cid=self.container_id,
            path=self.path,
            content_id=self.content_id,
            stgpol=self.policy,
            size=self.length,
            checksum=self.checksum,
            version=self.version,
            chunk_method=self.chunk_method,
            mime_type=self.mime_type,
            data={"chunks": self.chunks.raw(), "properties": self.properties},
            **{key: value for key, value in kwargs.items() if key != "version"},
        )

    def fetch(self, **kwargs: Any) -> Iterator[bytes]:
        """Read the data.

        :raises UnrecoverableContent: while reading, when too few chunks are left.
        """
        raw = [dict(chunk) for chunk in self.chunks.raw()]
        chunks = _sort_chunks(raw, self.storage_method.ec, logger=self.logger)
        return open_stream(chunks, None, self.storage_method, **kwargs)

    def delete(self, **kwargs: Any) -> Any:
        """Delete the object: its latest version unless ``version`` tells another one."""
        return self.container_client.content_delete(cid=self.container_id, path=self.path, **kwargs)

    # --- one chunk ------------------------------------------------------------------------------

    def rebuild_chunk(
        self,
        chunk_id: str | None,
        service_id: str | None = None,
        allow_same_rawx: bool = False,
        chunk_pos: Any = None,
        allow_frozen_container: bool = False,
        read_all_available_sources: bool = False,
        **kwargs: Any,
    ) -> int:
        """Make a lost chunk again, from the others.

        :param chunk_id: id of a chunk of the object; None with ``chunk_pos``.
        :param service_id: tells the copy that is lost, among those that share their id.
        :param allow_same_rawx: the new chunk may go where the lost one was.
        :param chunk_pos: position of a chunk that the container does not know any more.
        :param allow_frozen_container: register it even in a frozen container.
        :param read_all_available_sources: erasure coding: read all chunks, and leave the corrupt ones out.
        :returns: number of bytes of the new chunk.
        :raises OrphanChunk: the chunk does not belong to the object.
        :raises SpareChunkException: no service can take it.
        :raises UnrecoverableContent: too few chunks are left.
        """
        raise NotImplementedError

    @ensure_request_id2("content-")
    def move_chunk(
        self,
        chunk_id: str | Chunk,
        service_id: str | None = None,
        check_quality: bool = False,
        dry_run: bool = False,
        max_attempts: int = SPARE_ATTEMPTS_MAX,
        fake_excluded_chunks: Sequence[RawChunk] | None = None,
        **kwargs: Any,
    ) -> RawChunk:
        """Move a chunk to another service.

        :param chunk_id: a chunk, or its id.
        :param service_id: where it is now, needed when several chunks share the id.
        :param check_quality: refuse services that are not better placed.
        :param dry_run: change nothing, tell where the chunk would go.
        :param fake_excluded_chunks: chunks whose services are avoided too.
        :returns: the dictionary of the chunk, ``url``, ``real_url`` and ``quality`` updated.
        :raises OrphanChunk: the chunk does not belong to the object.
        :raises SpareChunkException: no (better) service.
        """
        current = self._chunk_to_move(chunk_id, service_id)
        others = self._others(current)
        spare_urls, qualities = self._get_spare_chunk(
            others, [current], current.pos, max_attempts=max_attempts, check_quality=check_quality,
            fake_excluded_chunks=fake_excluded_chunks, **kwargs,
        )  # fmt: skip
        spare_url = spare_urls[0]
        if dry_run:
            self.logger.info("dry run: %s would be moved to %s", current.url, spare_url)
            return self._relocated(Chunk(dict(current.raw())), spare_url, qualities)
        self._copy_from_any(best_first(self._move_sources(current)), spare_url, **kwargs)
        self._register(current, spare_url, keep_if_unsure=True, **kwargs)
        old_url = current.url
        self._relocated(current, spare_url, qualities)
        if not self.occupies(old_url):
            self._delete_quietly(old_url, **kwargs)
        return current.raw()

    def _move_sources(self, current: Chunk) -> list[Chunk]:
        """The chunks whose bytes are those of a chunk, itself included."""
        return self.chunks.filter(pos=current.pos).all()

    @ensure_request_id2("content-")
    def move_linked_chunk(
        self, chunk_id: str | Chunk, from_url: str, service_id: str | None = None, **kwargs: Any
    ) -> RawChunk:
        """Replace a chunk by a hard link to a chunk that was moved, as the chunk itself was a link to it.

        :param from_url: where the linked chunk is now.
        :param service_id: where the chunk is, needed when several chunks share the id.
        :returns: the dictionary of the chunk, ``url`` and ``real_url`` updated.
        """
        current = self._chunk_to_move(chunk_id, service_id)
        _resp, link_url = self.blob_client.chunk_link(from_url, None, self.full_path, **kwargs)
        self._register(current, link_url, keep_if_unsure=True, **kwargs)
        old_url = current.url
        self._place(current, link_url)
        if not self.occupies(old_url):
            self._delete_quietly(old_url, **kwargs)
        return current.raw()

    def _chunk_to_move(self, chunk_id: str | Chunk, service_id: str | None) -> Chunk:
        if isinstance(chunk_id, Chunk):
            found = self.chunks.filter(url=chunk_id.url, pos=chunk_id.pos)
        else:
            found = self.chunks.filter(id=chunk_id, host=service_id)
            if len(found) > 1:
                raise exc.ChunkException(
                    f"{len(found)} chunks of {self.full_path} have the id {chunk_id}: tell the service"
                )
        current = found.one()
        if current is None:
            raise self._orphan(chunk_id, service_id)
        return current

    def _orphan(self, chunk: Any, service_id: str | None = None) -> exc.OrphanChunk:
        where = f" on {service_id}" if service_id else ""
        return exc.OrphanChunk(f"Chunk not found in content: {chunk}{where} ({self.full_path})")

    def _others(self, current: Chunk) -> list[Chunk]:
        """The other chunks of a metachunk."""
        return [chunk for chunk in self.chunks.filter(metapos=current.metapos) if chunk is not current]

    def _relocated(self, chunk: Chunk, url: str, qualities: Mapping[str, Quality]) -> RawChunk:
        self._place(chunk, url)
        if url in qualities:
            chunk.quality = dict(qualities[url])
        return chunk.raw()

    # --- spare chunks ---------------------------------------------------------------------------

    def _get_spare_chunk(
        self,
        chunks_notin: Sequence[Chunk],
        chunks_broken: Sequence[Chunk],
        position: Any,
        max_attempts: int = SPARE_ATTEMPTS_MAX,
        check_quality: bool = False,
        fake_excluded_chunks: Sequence[RawChunk] | None = None,
        **kwargs: Any,
    ) -> tuple[list[str], dict[str, Quality]]:
        """Ask for services in place of chunks.

        :returns: URLs of the chunks to write, and the quality of their placement.
        :raises SpareChunkException: when nothing is found in that many attempts. Network errors are not
            retried.
        """
        notin = [_described(chunk.raw()) for chunk in chunks_notin]
        broken = [_described(chunk.raw()) for chunk in chunks_broken]
        if fake_excluded_chunks:
            like = broken[0] if broken else {}
            broken += [
                {**fake, **{key: like[key] for key in ("hash", "pos", "size") if key in like}}
                for fake in fake_excluded_chunks
            ]
        last_error: exc.OioException | None = None
        for attempt in range(1, max_attempts + 1):
            try:
                answer = self.container_client.content_spare(
                    cid=self.container_id,
                    path=self.path,
                    version=self.version,
                    data={"notin": notin, "broken": broken},
                    stgpol=self.policy,
                    position=position,
                    **kwargs,
                )
                urls = [chunk["id"] for chunk in answer["chunks"]]
                if not urls:
                    raise exc.SpareChunkException("the proxy proposes none")
                qualities: dict[str, Quality] = dict(
                    extract_chunk_qualities(answer.get("properties") or (), raw=True)
                )
                if check_quality:
                    ensure_better_chunk_qualities(chunks_broken, qualities)
                return urls, qualities
            except (exc.ClientException, exc.SpareChunkException) as err:
                self.logger.info(
                    "no spare chunk for %s at position %s (attempt %d/%d): %s",
                    self.full_path, position, attempt, max_attempts, err,
                )  # fmt: skip
                last_error = err
        raise exc.SpareChunkException(f"No spare chunk: {last_error}") from last_error

    def occupies(self, url: str) -> bool:
        """Whether a chunk of the object is at that place, by whatever name its service goes.

        As chunk ids may follow from the name of the object, a chunk can take the very place of the one that it
        replaces.
        """
        chunk_id = url.rpartition("/")[2]
        place = self._address(url)
        return any(
            chunk.url == url or self._address(chunk.url) == place for chunk in self.chunks.filter(id=chunk_id)
        )

    def _address(self, url: str) -> str:
        """URL of a chunk with the address of its service; as it is when nobody knows."""
        try:
            return self.blob_client.resolve_url(url)
        except failures() as err:
            self.logger.warning("cannot resolve %s: %s", url, err)
            return url

    def _place(self, chunk: Chunk, url: str) -> None:
        """Tell where a chunk is now: its name, and the address to connect to."""
        chunk.url = url
        chunk.data["real_url"] = self._address(url)

    def _take_in(self, chunk: Chunk, url: str, is_new: bool) -> None:
        """Have the list of chunks tell what the container knows by now."""
        self._place(chunk, url)
        chunk.data.pop("quality", None)
        if is_new:
            self.chunks = ChunksHelper([*self.chunks.all(), chunk], False)

    # --- data -----------------------------------------------------------------------------------

    def _copy_from_any(self, sources: Sequence[Chunk], to_url: str, **kwargs: Any) -> None:
        """Write a chunk from the first of its copies that can be read.

        :raises Conflict: the destination has a chunk of that name already.
        :raises UnrecoverableContent: several copies failed; a single one fails with its own error.
        """
        errors: list[tuple[str, str]] = []
        for source in sources:
            try:
                self._copy(source, to_url, bool(errors), **kwargs)
            except exc.Conflict:
                raise
            except failures() as err:
                self.logger.warning("cannot copy %s to %s: %s", source.url, to_url, err)
                if len(sources) == 1:
                    raise
                errors.append((source.url, str(err)))
            else:
                return
        raise exc.UnrecoverableContent(
            f"No copy of position {sources[0].pos if sources else '?'} of {self.full_path} can be read: "
            f"{group_chunk_errors(errors)}"
        )

    def _copy(self, source: Chunk, to_url: str, retry_conflict: bool, **kwargs: Any) -> None:
        """One attempt. After a former one that broke off, the rawx may need a moment to forget it."""
        copy = functools.partial(
            self.blob_client.chunk_copy,
            source.url,
            to_url,
            fullpath=self.full_path,
            cid=self.container_id,
            path=self.path,
            version=self.version,
            content_id=self.content_id,
            **kwargs,
        )
        if retry_conflict:
            _retry_on_conflict(copy)
        else:
            copy()

    # --- metadata -------------------------------------------------------------------------------

    def _bean(self, chunk: Chunk, url: str) -> dict[str, Any]:
        return {
            "type": "chunk",
            "id": url,
            "hash": chunk.checksum,
            "size": chunk.size,
            "pos": chunk.pos,
            "content": self.content_id,
        }

    def _register(
        self,
        chunk: Chunk,
        new_url: str,
        insert: bool = False,
        frozen: bool = False,
        keep_if_unsure: bool = False,
        **kwargs: Any,
    ) -> None:
        """Have the container refer to a new chunk: in place of one, or one more.

        When that fails, the new chunk is deleted, provided that the container does not refer to it. It fails
        when the metachunk changed (``NotFound``), or when another of its chunks came to the same service
        (``Conflict``).

        :param keep_if_unsure: the only good copy may be at stake: delete the new one only after a refusal, since
            a request without answer may still be served later.
        """
        request = {key: value for key, value in kwargs.items() if key != "version"}
        try:
            if insert:
                self.container_client.container_raw_insert(
                    self._bean(chunk, new_url), cid=self.container_id, frozen=frozen, strict=True, **request
                )
            else:
                self.container_client.container_raw_update(
                    [self._bean(chunk, chunk.url)], [self._bean(chunk, new_url)],
                    cid=self.container_id, frozen=frozen, strict=True, **request,
                )  # fmt: skip
        except failures() as err:
            self.logger.warning("cannot register %s in %s: %s", new_url, self.full_path, err)
            refused = _was_refused(err)
            # A request that was sent twice may be refused because of what the first one did.
            doubtful = not refused or isinstance(err, (exc.NotFound, exc.Conflict))
            known = self._refers_to(new_url, **request) if doubtful else False
            if known:
                self.logger.info("%s is registered all the same", new_url)
                return
            if known is False and (refused or not keep_if_unsure) and chunk.url != new_url:
                self._delete_quietly(new_url, **request)
            raise

    def _refers_to(self, url: str, **kwargs: Any) -> bool | None:
        """Whether the object has a chunk of that URL; None when nobody can tell."""
        try:
            _meta, chunks = self.container_client.content_locate(
                cid=self.container_id, path=self.path, content=self.content_id, version=self.version, **kwargs
            )
        except exc.NotFound:
            return False
        except failures() as err:
            if isinstance(err, exc.ClientException) and err.status == CONTENT_DRAINED:
                return False
            self.logger.warning("%s may be registered: %s", url, err)
            return None
        return any(chunk["url"] == url for chunk in chunks)

    # --- deletion -------------------------------------------------------------------------------

    def _delete_quietly(self, url: str, **kwargs: Any) -> None:
        """Delete a chunk that nobody refers to; a failure is only logged."""
        try:
            self.blob_client.chunk_delete(url, **kwargs)
        except failures() as err:
            self.logger.warning("cannot delete chunk %s of %s: %s", url, self.full_path, err)

    def _delete_all(self, chunks: Iterable[RawChunk], kwargs: dict[str, Any]) -> None:
        for result in self.blob_client.chunk_delete_many(chunks, self.container_id, **kwargs):
            status = getattr(result, "status", None)
            if status not in (200, 204, 404):
                self.logger.warning("cannot delete chunk %s: %s", result.chunk["url"], status or result)


def best_first(chunks: Iterable[Chunk]) -> list[Chunk]:
    """Chunks by score, at random among those of about the same score."""
    return sorted(chunks, key=lambda chunk: _get_weighted_random_score(chunk.raw()), reverse=True)


def _described(chunk: RawChunk) -> RawChunk:
    """What the proxy wants to know of a chunk."""
    return {"url": chunk.get("url") or chunk.get("id"), **{key: chunk[key] for key in _CHUNK_KEYS if key in chunk}}


def _retry_on_conflict(copy: Callable[[], object]) -> None:
    for pause_s in _FORGET_PAUSES_S:
        try:
            copy()
            return
        except exc.Conflict:
            time.sleep(pause_s)
    copy()


def _was_refused(err: BaseException) -> bool:
    """Whether it is sure that a request changed nothing: answers of 500 and above do not tell, unless the
    container itself said no (frozen, for instance).
    """
    if not isinstance(err, exc.ClientException):
        return False
    codes = (err.status, err.http_status)
    return any(isinstance(code, int) and 400 <= code < 500 for code in codes)
