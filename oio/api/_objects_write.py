# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Methods of ``ObjectStorageApi`` that change objects.

An upload asks where to write (``prepare``), writes chunks to rawx services, and declares the object
(``create``). The object appears by the last step only. When a step before it fails, or when it is refused,
the chunks that were written are deleted; when its outcome is unknown they are kept, since the object may
exist.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from io import BytesIO
from typing import Any

from oio.api._core import ApiCore
from oio.api.io import MetachunkPreparer
from oio.api.replication import ReplicatedWriteHandler
from oio.common.constants import OIO_VERSION
from oio.common.decorators import api_call, raise_no_such_container, raise_no_such_object
from oio.common.exceptions import (
    BadRequest,
    ClientException,
    ClientPreconditionFailed,
    Conflict,
    DeadlineReached,
    EtagMismatch,
    FileNotFound,
    MissingData,
    MissingName,
    NotFound,
)
from oio.common.fullpath import encode_fullpath
from oio.common.utils import GeneratorIO, cid_from_name, list_of_names, set_deadline_from_read_timeout
from oio.container.metadata import CHUNK_SYSMETA_PREFIX, condition_headers

SpareProvider = Callable[[list[dict[str, Any]], list[dict[str, Any]]], list[dict[str, Any]]]
# What the requests made aside, on behalf of an upload, share with it.
_REQUEST_KEYWORDS = ("cid", "headers", "reqid", "deadline", "connection_timeout", "read_timeout", "perfdata")

# Internal codes, beyond HTTP 4xx, that are decisions of the container: content check, frozen, full, policy.
_REFUSALS = frozenset({425, 436, 437, 445, 480, 481})

# What no header value can carry.
_NOT_IN_HEADERS = re.compile(r"[\0\r\n]")

ObjectCreated = tuple[list[dict[str, Any]], int, str, dict[str, Any]]


class ObjectWriteMethods(ApiCore):
    """Methods that change objects."""

    # --- creation ---

    def object_create(
        self,
        account: str,
        container: str,
        file_or_path: Any = None,
        data: Any = None,
        etag: str | None = None,
        obj_name: str | None = None,
        mime_type: str | None = None,
        metadata: Mapping[str, str] | None = None,
        policy: str | None = None,
        key_file: str | None = None,
        append: bool = False,
        properties: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> tuple[list[dict[str, Any]], int, str]:
        """Upload an object; see ``object_create_ext``. :returns: chunks, size, checksum."""
        chunks, size, checksum, _meta = self.object_create_ext(
            account, container, file_or_path, data, etag, obj_name, mime_type, metadata, policy, key_file,
            append, properties, **kwargs,
        )  # fmt: skip
        return chunks, size, checksum

    @api_call(raise_no_such_container, prefix="create-")
    def object_create_ext(
        self,
        account: str,
        container: str,
        file_or_path: Any = None,
        data: Any = None,
        etag: str | None = None,
        obj_name: str | None = None,
        mime_type: str | None = None,
        metadata: Mapping[str, str] | None = None,
        policy: str | None = None,
        key_file: str | None = None,
        append: bool = False,
        properties: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> ObjectCreated:
        """Upload an object.

        >>> api.object_create_ext("acme", "notes", data=b"hello", obj_name="a.txt")  # doctest: +SKIP

        :param file_or_path: path of a file, or an object with ``read``.
        :param data: ``bytes``, ``str`` (sent as UTF-8) or an iterable of ``bytes``, instead of a file.
        :param etag: expected MD5 of the data. :raises EtagMismatch: when it differs.
        :param obj_name: name of the object; default: base name of the file.
        :param policy: storage policy; default: the container's, or the namespace's.
        :param append: add the data at the end of the object, which keeps its policy, mime type and properties;
            those given here are for an object that does not exist yet.
        :param properties: user properties (``metadata`` is a deprecated synonym).
        :keyword content_id: id to give to the object. :keyword version: version to give to it.
        :keyword container_properties: given to the container when it gets created on the way.
        :keyword if_match: write only over an object that has this hash (one of these, ``*``: any).
        :keyword if_none_match: write only when there is no object (``*``), or none that has this hash.
            :raises ClientPreconditionFailed: when the condition does not hold; nothing is written.
        :keyword change_policy: replace the chunks of the version given by ``version``, by the same data.
        :returns: chunks, number of bytes and MD5 of this upload, metadata of the object.
        """
        if metadata:
            properties = {**metadata, **(properties or {})}
        _check_properties(properties)
        if "if_match" in kwargs or "if_none_match" in kwargs:
            # Refused before the upload rather than after it.
            condition_headers(kwargs.get("if_match"), kwargs.get("if_none_match"))
        if mime_type and _NOT_IN_HEADERS.search(mime_type):
            raise BadRequest(message=f"Invalid mime type {mime_type!r}: control character")
        sysmeta = {"mime_type": mime_type, "etag": etag}
        source = _source_of(file_or_path, data)
        if not obj_name:
            obj_name = _name_of(file_or_path)
        given: dict[str, Any] = {
            "properties": properties,
            "policy": policy,
            "key_file": key_file,
            "append": append,
        }
        if not isinstance(source, str):
            return self._object_create(account, container, obj_name, source, sysmeta, **given, **kwargs)
        if not os.path.exists(source):
            raise FileNotFound(f"File '{source}' not found.")
        with open(source, "rb") as file:
            return self._object_create(account, container, obj_name, file, sysmeta, **given, **kwargs)

    def _object_create(
        self,
        account: str,
        container: str,
        obj_name: str,
        source: Any,
        sysmeta: dict[str, Any],
        properties: Mapping[str, str] | None = None,
        policy: str | None = None,
        key_file: str | None = None,
        append: bool = False,
        change_policy: bool = False,
        container_properties: Mapping[str, Any] | None = None,
        hash_in_place: str | None = None,
        **kwargs: Any,
    ) -> ObjectCreated:
        in_place = self._object_in_place(account, container, obj_name, kwargs) if append else None
        if in_place:
            # All the chunks of an object must follow one chunk method; the rest of it stays as it is, too.
            policy = in_place.get("policy") or policy
            properties = None
        meta, handler, preparer = self._object_prepare(
            account, container, obj_name, source, sysmeta, policy=policy, in_place=in_place, **kwargs
        )
        if properties:
            meta["properties"].update(properties)
        cid = meta["container_id"]
        upload_kwargs = {name: value for name, value in kwargs.items() if name != "cid"}
        chunks, size, checksum = self._object_upload(handler, preparer, cid, **upload_kwargs)
        etag = sysmeta.get("etag")
        if etag and etag.lower() != checksum.lower():
            self._delete_orphan_chunks(chunks, cid, **upload_kwargs)
            raise EtagMismatch(f"given etag {etag} != computed {checksum}")
        meta["etag"] = checksum

        data: dict[str, Any] = {"chunks": chunks, "properties": meta["properties"]}
        if container_properties:
            data["container_properties"] = container_properties
        # The upload took what time it needed: the commit gets its own.
        set_deadline_from_read_timeout(kwargs, force=True)
        kwargs["version"] = meta["version"]
        kwargs["content_id"] = meta["id"]
        if change_policy:
            # There is nothing to change in a container that would be made on the way.
            kwargs["autocreate"] = False
        try:
            self.container.content_create(
                account,
                container,
                obj_name,
                size=size,
                checksum=checksum if hash_in_place is None else hash_in_place or None,
                data=data,
                stgpol=meta["policy"],
                mime_type=meta["mime_type"],
                chunk_method=meta["chunk_method"],
                append=append,
                change_policy=change_policy,
                **kwargs,
            )
        except (ClientException, DeadlineReached) as exc:
            if isinstance(exc, ClientPreconditionFailed) and exc.retried and not append:
                if self._is_in_place(account, container, obj_name, kwargs):
                    return chunks, size, checksum, meta
                exc.retried = False
            if was_refused(exc):
                self.logger.warning(
                    "Failed to commit %s/%s/%s to the directory, deleting its chunks: %s (reqid=%s)",
                    account, container, obj_name, exc, kwargs.get("reqid"),
                )  # fmt: skip
                self._delete_orphan_chunks(chunks, cid, **upload_kwargs)
            raise
        return chunks, size, checksum, meta

    def _is_in_place(self, account: str, container: str, obj_name: str, kwargs: Mapping[str, Any]) -> bool:
        """Whether the object whose commit was sent several times is there.

        A former attempt, whose answer was lost, makes the condition of the next one fail.
        """
        asked = {**kwargs, "cache": None}
        content_id = asked.pop("content_id")
        try:
            meta = self.container.content_get_properties(account, container, obj_name, **asked)
        except NotFound:
            return False
        return bool(meta.get("id", "").upper() == content_id.upper())

    def _object_in_place(
        self, account: str, container: str, obj_name: str, kwargs: Mapping[str, Any]
    ) -> dict[str, Any] | None:
        """Metadata of the object to append to, ``None`` when there is none."""
        kwargs = {**kwargs, "cache": None}
        kwargs.pop("version", None)
        kwargs.pop("content_id", None)
        try:
            meta = self.container.content_get_properties(account, container, obj_name, **kwargs)
        except NotFound:
            return None
        return None if meta.get("deleted") == "True" else meta

    def _object_prepare(
        self,
        account: str,
        container: str,
        obj_name: str,
        source: Any,
        sysmeta: Mapping[str, Any],
        policy: str | None = None,
        in_place: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> tuple[dict[str, Any], Any, Any]:
        """Ask where to write. :returns: metadata of the object, its write handler, the preparer.

        With ``in_place``, the chunks are for that object: they tell its id and its version. They are prepared as
        another version all the same: chunk ids follow from it, and those of the object are taken.
        """
        preparer = MetachunkPreparer(self.container, account, container, obj_name, policy=policy, **kwargs)
        meta: dict[str, Any] = preparer.obj_meta
        meta.update(sysmeta)
        meta["content_path"] = obj_name
        # ``sys.name`` of a container, which has a suffix, is accepted wherever its id is.
        cid = (kwargs.get("cid") or "").partition(".")[0].upper() or cid_from_name(account, container)
        meta["container_id"] = cid
        meta["ns"] = self.namespace
        if not account or not container:
            # The object is designated by the id of its container, but its chunks must tell the names.
            account, container = self._names_of(cid, kwargs)
        meta["full_path"] = encode_fullpath(account, container, obj_name, meta["version"], meta["id"])
        meta["oio_version"] = meta.get("oio_version") or OIO_VERSION
        told = meta
        if in_place:
            told = {**meta, "id": in_place["id"], "version": in_place["version"]}
            told["full_path"] = encode_fullpath(account, container, obj_name, told["version"], told["id"])
        method = preparer.stg_method
        handler_class: Any
        if method.ec:
            from oio.api.ec import ECWriteHandler

            handler_class = ECWriteHandler
        else:
            handler_class = ReplicatedWriteHandler
        kwargs.setdefault(
            "spare_provider", self._make_spare_provider(account, container, obj_name, meta, preparer, kwargs)
        )
        return meta, handler_class(source, told, preparer, method, **kwargs), preparer

    def _make_spare_provider(
        self,
        account: str,
        container: str,
        obj_name: str,
        meta: dict[str, Any],
        preparer: Any,
        kwargs: Mapping[str, Any],
    ) -> SpareProvider:
        """Make what finds other services for the chunks that a rawx refuses before any data is lost.

        The chunks it gives are cleaned up like the others when the upload fails.
        """

        def provide(good: list[dict[str, Any]], broken: list[dict[str, Any]]) -> list[dict[str, Any]]:
            position = str(broken[0]["pos"]).partition(".")[0]
            answer = self.container.content_spare(
                account,
                container,
                obj_name,
                version=meta["version"],
                data={"notin": _plain_chunks(good), "broken": _plain_chunks(broken)},
                stgpol=meta["policy"],
                position=position,
                **{name: kwargs[name] for name in _REQUEST_KEYWORDS if name in kwargs},
            )
            spares = []
            for found, old in zip(answer["chunks"], broken, strict=False):
                url = found["id"]
                real_url = self.blob_client.resolve_url(url, kwargs.get("reqid"))
                spares.append({**_plain_chunk(old), "url": url, "real_url": real_url, "score": 0})
            for item in answer.get("properties", ()):
                meta["properties"][item["key"]] = item["value"]
            for chunk in broken:
                meta["properties"].pop(CHUNK_SYSMETA_PREFIX + chunk["url"], None)
            preparer.all_chunks_so_far().extend(spares)
            return spares

        return provide

    def _names_of(self, cid: str, kwargs: Mapping[str, Any]) -> tuple[str, str]:
        passed = {name: kwargs[name] for name in _REQUEST_KEYWORDS if name in kwargs and name != "cid"}
        reference = self.directory.list(cid=cid, **passed)
        return reference["account"], reference["name"]

    def _object_upload(
        self, handler: Any, preparer: Any, cid: str, **kwargs: Any
    ) -> tuple[list[dict[str, Any]], int, str]:
        try:
            return handler.stream()
        except BaseException as exc:
            # Timeouts of green programs are not Exceptions; interruptions of the program must not wait.
            if isinstance(exc, Exception) or hasattr(exc, "seconds"):
                chosen = bool(kwargs.get("version"))
                chunks = [chunk for chunk in preparer.all_chunks_so_far() if _may_delete(chunk, chosen)]
                self.logger.warning("Upload failed, deleting %d chunks: %s", len(chunks), exc)
                self._delete_orphan_chunks(chunks, cid, **kwargs)
            raise

    def _delete_orphan_chunks(self, chunks: list[dict[str, Any]], cid: str, **kwargs: Any) -> None:
        """Delete chunks that belong to no object. Failures are only logged."""
        for result in self.blob_client.chunk_delete_many(chunks, cid, **kwargs):
            status = getattr(result, "status", None)
            # A chunk that was never written is just as good.
            if status in (200, 204, 404):
                continue
            self.logger.warning(
                "Failed to delete chunk %s: %s",
                result.chunk.get("real_url", result.chunk["url"]),
                result if status is None else f"HTTP {status}",
            )

    # --- deletion ---

    @api_call(raise_no_such_object)
    def object_delete(self, account: str, container: str, obj: str, version: Any = None, **kwargs: Any) -> bool:
        """Delete an object, or one version of it.

        In a versioned container, deleting without version adds a delete marker.

        :keyword if_match: delete only an object that has this hash (one of these, ``*``: any);
            ``if_none_match`` likewise. :raises ClientPreconditionFailed: when it does not hold.
        """
        return self.container.content_delete(account, container, obj, version=version, **kwargs)

    @api_call()
    def object_delete_many(
        self, account: str, container: str, objs: Sequence[str], **kwargs: Any
    ) -> list[tuple[str, bool]]:
        """Delete objects. :returns: pairs (name, was it deleted?), in order."""
        return self.container.content_delete_many(account, container, list_of_names(objs), **kwargs)

    # --- properties ---

    @api_call(raise_no_such_object)
    def object_set_properties(
        self,
        account: str,
        container: str,
        obj: str,
        properties: Mapping[str, str],
        version: Any = None,
        clear: bool = False,
        **kwargs: Any,
    ) -> None:
        """Set properties of an object; an empty value deletes. :param clear: remove the others."""
        self.container.content_set_properties(
            account, container, obj, properties=properties, version=version, clear=clear, **kwargs
        )

    @api_call(raise_no_such_object)
    def object_del_properties(
        self,
        account: str,
        container: str,
        obj: str,
        properties: Iterable[str],
        version: Any = None,
        **kwargs: Any,
    ) -> bool:
        """Delete properties of an object; all of them when the list is empty."""
        return self.container.content_del_properties(
            account, container, obj, properties=list_of_names(properties), version=version, **kwargs
        )

    def object_update(
        self,
        account: str,
        container: str,
        obj: str,
        metadata: Mapping[str, str],
        version: Any = None,
        clear: bool = False,
        **kwargs: Any,
    ) -> None:
        """Set properties, or delete them all when there is none (deprecated)."""
        warnings.warn("object_update: use object_set_properties", DeprecationWarning, stacklevel=2)
        if metadata:
            self.object_set_properties(account, container, obj, metadata, version=version, clear=clear, **kwargs)
        else:
            self.object_del_properties(account, container, obj, [], version=version, **kwargs)

    @api_call()
    def object_drain(self, account: str, container: str, obj: str, version: Any = None, **kwargs: Any) -> None:
        """Delete the data of an object, and keep the rest. :raises NotFound: when it is missing."""
        self.container.content_drain(account, container, obj, version=version, **kwargs)

    @api_call()
    def object_touch(self, account: str, container: str, obj: str, version: Any = None, **kwargs: Any) -> None:
        """Have the event of the object's creation sent again. :raises NotFound: when it is missing."""
        self.container.content_touch(account, container, obj, version=version, **kwargs)


def was_refused(exc: ClientException | DeadlineReached) -> bool:
    """Whether it is sure that the object was not made.

    Other answers of 500 and above do not tell, nor does the last of several attempts.
    """
    if exc.retried:
        return False
    if isinstance(exc, (Conflict, DeadlineReached)):
        return True
    if isinstance(exc.http_status, int) and 400 <= exc.http_status < 500:
        return True
    return exc.status in _REFUSALS


def _may_delete(chunk: Mapping[str, Any], chosen: bool) -> bool:
    """Whether a chunk of a failed upload may be deleted: nobody else has one of this name.

    Chunk ids follow from the version. One that was in place before is that of another object: two clients
    were given the same version, in the same microsecond. When the caller chose the version this is likely,
    and a rawx must have confirmed that it wrote the chunk for us.
    """
    if chosen:
        return "error" not in chunk and (chunk.get("hash") or "").strip("0") != ""
    return chunk.get("error") not in ("HTTP 409", "resp: HTTP 409")


def _check_properties(properties: Any) -> None:
    """Refuse before the upload what would be refused after it.

    :raises BadRequest: when a property is not made of texts.
    """
    if properties is None:
        return
    if not isinstance(properties, Mapping):
        raise BadRequest(message=f"Invalid properties: a dictionary is expected, not {type(properties).__name__}")
    for key, value in properties.items():
        if not key or not isinstance(key, (str, bytes)):
            raise BadRequest(message=f"Invalid properties: {key!r} is not a name")
        if not isinstance(value, (str, bytes)):
            raise BadRequest(message=f"Invalid properties: the value of {key!r} is not a string")


def _plain_chunk(chunk: Mapping[str, Any]) -> dict[str, Any]:
    return {key: chunk[key] for key in ("url", "pos", "size", "hash")}


def _plain_chunks(chunks: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [_plain_chunk(chunk) for chunk in chunks]


def _source_of(file_or_path: Any, data: Any) -> Any:
    """What to upload: an object with ``read``, or the path of a file."""
    if data is not None:
        if isinstance(data, str):
            return BytesIO(data.encode("utf-8"))
        if isinstance(data, (bytes, bytearray, memoryview)):
            return BytesIO(data)
        return GeneratorIO(data)
    if file_or_path is None:
        raise MissingData("No data: neither 'data' nor 'file_or_path' is given")
    source = os.fspath(file_or_path) if isinstance(file_or_path, os.PathLike) else file_or_path
    if not isinstance(source, str) and not hasattr(source, "read"):
        kind = type(source).__name__
        raise TypeError(f"file_or_path: a path or an object with read() is expected, not {kind}")
    return source


def _name_of(file_or_path: Any) -> str:
    """Name of an object from the file it comes from."""
    name = getattr(file_or_path, "name", file_or_path)
    if isinstance(name, os.PathLike):
        name = os.fspath(name)
    name = os.path.basename(name) if isinstance(name, str) else None
    if not name:
        raise MissingName("No name for the object to be created")
    return name
