# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Snapshot of a container: a frozen copy, under another name, with chunks of its own.

The base is duplicated by the services, then each chunk of the copy is replaced by a hard link. The source is
frozen meanwhile, and enabled again whatever happens. Until the last chunk is replaced the copy refers to
chunks of the source: a copy that cannot be completed is removed, so that nobody deletes the chunks of the
source through it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

from oio.api._containers import ContainerMethods
from oio.api._links import LinkMethods
from oio.common.decorators import api_call, raise_no_such_container
from oio.common.exceptions import (
    BadRequest,
    ClientException,
    NoSuchContainer,
    NotFound,
    OioException,
    ServiceBusy,
    StatusMessageException,
    UnfinishedUploadException,
)
from oio.common.fullpath import encode_fullpath
from oio.common.utils import cid_from_name, compute_chunk_id

if TYPE_CHECKING:
    from concurrent.futures import Future

Chunk = dict[str, Any]
Bean = dict[str, Any]

_CODE_FROZEN = 436
_CODE_ENABLED = 439
# Seconds between the tries to put things right. A service that was killed is back before the last one;
# leaving the source frozen, or half a copy, is worse than insisting.
_PAUSES_S = (0.5, 1.0, 2.0, 4.0, 8.0)
# Versions whose chunks are linked at once: the source is frozen meanwhile.
_LINKERS = 8
_DRAINED = "drained"


class SnapshotMethods(ContainerMethods, LinkMethods):
    """Snapshot of containers."""

    @api_call(raise_no_such_container)
    def container_snapshot(
        self,
        account: str,
        container: str,
        dst_account: str,
        dst_container: str,
        batch_size: int = 100,
        **kwargs: Any,
    ) -> None:
        """Copy a container as it is now, without moving data. The copy stays frozen.

        Names, ids and versions of objects are the same in the copy.

        :param batch_size: chunks to replace in one request.
        :raises NoSuchContainer: when the source is missing.
        :raises ClientException: when the copy cannot have this name; ``ServiceBusy`` when the source is
            frozen already.
        """
        for name, value in (("dst_account", dst_account), ("dst_container", dst_container)):
            if not value or not isinstance(value, str):
                raise BadRequest(message=f"Invalid {name} {value!r}: a name is expected")
        if (account, container) == (dst_account, dst_container):
            raise BadRequest(message="Invalid dst_container: a container cannot be a snapshot of itself")
        kwargs = {**kwargs, "cache": None}
        kwargs.pop("cid", None)
        with self._frozen(account, container, kwargs):
            try:
                self.container.container_snapshot(account, container, dst_account, dst_container, **kwargs)
            except OioException as exc:
                if exc.retried or not _is_refused(exc):
                    self._remove_unknown((account, container), (dst_account, dst_container), kwargs)
                raise
            linked: list[str] = []
            try:
                copy = (dst_account, dst_container)
                self._give_own_chunks((account, container), copy, batch_size, linked, kwargs)
                self.container.container_touch(dst_account, dst_container, **kwargs)
            except BaseException as exc:
                self.logger.error(
                    "Snapshot of %s/%s to %s/%s failed, removing the copy: %s (reqid=%s)",
                    account, container, dst_account, dst_container, exc, kwargs.get("reqid"),
                )  # fmt: skip
                self._remove_copy(dst_account, dst_container, linked, kwargs)
                raise

    @contextmanager
    def _frozen(self, account: str, container: str, kwargs: Mapping[str, Any]) -> Iterator[None]:
        """Keep a container frozen for a while. It is enabled again unless somebody else froze it before."""
        try:
            # One attempt: the second could not tell our own freeze from somebody else's.
            self.container.container_freeze(account, container, **{**kwargs, "request_attempts": 1})
        except BaseException as exc:
            if not _was_not_frozen_by_us(exc):
                self._thaw(account, container, kwargs, failed=True)
            raise
        try:
            yield
        except BaseException:
            self._thaw(account, container, kwargs, failed=True)
            raise
        self._thaw(account, container, kwargs, failed=False)

    def _thaw(self, account: str, container: str, kwargs: Mapping[str, Any], failed: bool) -> None:
        """Enable a container, out of time or not. :param failed: something else is to be raised."""
        kwargs = {key: value for key, value in kwargs.items() if key != "deadline"}

        def enable() -> None:
            try:
                self.container.container_enable(account, container, **kwargs)
            except ClientException as exc:
                if exc.status != _CODE_ENABLED:
                    raise

        error = self._insist(enable, f"{account}/{container} stays frozen", kwargs.get("reqid"))
        if error is not None and not failed:
            raise error

    def _insist(self, call: Callable[[], None], otherwise: str, reqid: str | None) -> OioException | None:
        """Make a call, again while services are down. :returns: the last error when it never succeeds."""
        for pause_s in (*_PAUSES_S, None):
            try:
                call()
                return None
            except OioException as exc:
                if pause_s is None or _is_refused(exc):
                    self.logger.error("%s: %s (reqid=%s)", otherwise, exc, reqid)
                    return exc
                self.logger.warning("Trying again in %.1f s: %s (reqid=%s)", pause_s, exc, reqid)
            time.sleep(pause_s)
        raise AssertionError("unreachable")

    # --- chunks of the copy ---

    def _give_own_chunks(
        self,
        source: tuple[str, str],
        copy: tuple[str, str],
        batch_size: int,
        linked: list[str],
        kwargs: dict[str, Any],
    ) -> None:
        """Replace all the chunks of the copy by links. :param linked: receives the URLs of the links made."""
        old: list[Bean] = []
        new: list[Bean] = []
        # Closed before anything else is done: links must not be made while others are deleted.
        with closing(self._replacements(source, copy, linked, kwargs)) as replacements:
            for some_old, some_new in replacements:
                old, new = old + some_old, new + some_new
                if len(old) > batch_size:
                    self.container.container_raw_update(old, new, *copy, frozen=True, **kwargs)
                    old, new = [], []
        if old:
            self.container.container_raw_update(old, new, *copy, frozen=True, **kwargs)

    def _replacements(
        self, source: tuple[str, str], copy: tuple[str, str], linked: list[str], kwargs: dict[str, Any]
    ) -> Generator[tuple[list[Bean], list[Bean]], None, None]:
        """Link the chunks of every version, several versions at once.

        Yields the rows of the chunks of each, and the rows to put instead. When it ends, by an error too,
        no link is being made any more.
        """

        def replace(item: dict[str, Any]) -> tuple[list[Bean], list[Bean]]:
            meta, chunks = self.container.content_locate(
                *source, item["name"], version=item["version"], properties=False, **kwargs
            )
            copies = self._link_version(meta, chunks, copy, item["content"], linked, kwargs)
            return self._prepare_meta2_raw_update(chunks, copies, item["content"])

        from concurrent.futures import ThreadPoolExecutor

        pool = ThreadPoolExecutor(_LINKERS)
        pending: deque[Future[tuple[list[Bean], list[Bean]]]] = deque()
        try:
            for item in self._with_chunks(source, kwargs):
                pending.append(pool.submit(replace, item))
                if len(pending) > 2 * _LINKERS:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _with_chunks(self, source: tuple[str, str], kwargs: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Every version that has chunks, once for each content."""
        done: set[str] = set()
        for item in self._all_versions(*source, kwargs):
            if item["deleted"] or item.get("chunk_method") in (None, _DRAINED) or item["content"] in done:
                continue
            done.add(item["content"])
            yield item

    def _link_version(
        self,
        meta: Mapping[str, Any],
        chunks: list[Chunk],
        copy: tuple[str, str],
        content: str,
        linked: list[str],
        kwargs: dict[str, Any],
    ) -> list[Chunk]:
        """Link the chunks of one version. :returns: the chunk of the copy for each chunk, in order.

        A chunk whose link failed, as far as the quorum allows, is given the name that the link would have:
        the copy is damaged there, to be repaired like any object.
        """
        full_path = encode_fullpath(*copy, meta["name"], meta["version"], content)
        try:
            links = self._link_chunks(chunks, full_path, meta["chunk_method"], meta["policy"], **kwargs)
        except UnfinishedUploadException as exc:
            linked += [link["url"] for link in exc.chunks_already_uploaded]
            exc.reraise()
        linked += [link["url"] for link in links]
        cid = cid_from_name(*copy)
        copies = []
        for chunk in chunks:
            chunk_id = compute_chunk_id(cid, meta["name"], meta["version"], chunk["pos"], meta["policy"])
            copies.append({**chunk, "url": f"{chunk['url'].rpartition('/')[0]}/{chunk_id}"})
        return copies

    def _prepare_meta2_raw_update(
        self, targets: Iterable[Mapping[str, Any]], copies: Iterable[Mapping[str, Any]], content: str
    ) -> tuple[list[Bean], list[Bean]]:
        """Rows to replace, and rows to put in their place."""
        old = [_chunk_bean(chunk, content) for chunk in targets]
        return old, [_chunk_bean(chunk, content) for chunk in copies]

    def _remove_unknown(
        self, source: tuple[str, str], copy: tuple[str, str], kwargs: Mapping[str, Any]
    ) -> None:
        """Remove the copy that was made, perhaps, by a request whose answer was lost.

        A container that was there before is left alone: only a copy that has no chunks of its own has those
        of its source.
        """
        kwargs = {key: value for key, value in kwargs.items() if key != "deadline"}
        unfinished: list[bool] = []

        def look() -> None:
            try:
                unfinished.append(self._shares_chunks(source, copy, kwargs))
            except (NotFound, NoSuchContainer):
                self.logger.debug("No copy %s/%s was made", *copy)

        self._insist(look, f"{copy[0]}/{copy[1]} may be an unfinished copy", kwargs.get("reqid"))
        if any(unfinished):
            self._remove_copy(*copy, [], kwargs)

    def _shares_chunks(
        self, source: tuple[str, str], copy: tuple[str, str], kwargs: dict[str, Any]
    ) -> bool:
        item = next(self._with_chunks(copy, kwargs), None)
        if item is None:
            return False
        urls = []
        for container in (source, copy):
            _meta, chunks = self.container.content_locate(
                *container, item["name"], version=item["version"], properties=False, **kwargs
            )
            urls.append({chunk["url"] for chunk in chunks})
        return not urls[0].isdisjoint(urls[1])

    def _remove_copy(
        self, account: str, container: str, linked: list[str], kwargs: Mapping[str, Any]
    ) -> None:
        kwargs = {key: value for key, value in kwargs.items() if key != "deadline"}

        def remove() -> None:
            try:
                self.container.container_delete(account, container, force=True, **kwargs)
                self.directory.delete(account, container, **kwargs)
            except NotFound:
                self.logger.debug("The copy %s/%s is gone already", account, container)

        otherwise = f"Unfinished copy {account}/{container} refers to chunks of its source: destroy it by force"
        if self._insist(remove, otherwise, kwargs.get("reqid")) is not None:
            return
        chunks = [{"url": url} for url in linked]
        self._delete_orphan_chunks(chunks, cid_from_name(account, container), **kwargs)


def _was_not_frozen_by_us(exc: BaseException) -> bool:
    """Whether it is sure that a request to freeze changed nothing."""
    if isinstance(exc, ServiceBusy):
        return bool(exc.status == _CODE_FROZEN)
    return _is_refused(exc)


def _is_refused(exc: BaseException) -> bool:
    return isinstance(exc, StatusMessageException) and isinstance(exc.http_status, int) and exc.http_status < 500


def _chunk_bean(chunk: Mapping[str, Any], content: str) -> Bean:
    return {
        "type": "chunk",
        "id": chunk["url"],
        "hash": chunk["hash"],
        "size": int(chunk["size"]),
        "pos": chunk["pos"],
        "content": content,
    }
