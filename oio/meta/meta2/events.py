# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Events of containers and objects (contract: "Events")."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from oio.common.status import StatusError
from oio.meta.context import Context
from oio.meta.messages import ContainerTarget
from oio.meta.transaction import Transaction

logger = logging.getLogger("oio.meta.meta2.events")

#: Beans of one event, when it names chunks.
BEANS_MAX = 16
MARKER_CONTENT_HEX = b"DELETED".hex().upper()

Bean = dict[str, Any]


def now_us() -> int:
    """Current time in microseconds."""
    return time.time_ns() // 1000


def alias_bean(
    name: str, version: int, content: bytes, deleted: bool, ctime: int, mtime: int
) -> Bean:
    """Bean of an object version."""
    return {
        "type": "aliases", "name": name, "version": version, "ctime": ctime, "mtime": mtime,
        "deleted": deleted, "header": content.hex().upper(),
    }


def header_bean(
    content: bytes, hash_: bytes | None, size: int, policy: str | None, method: str, mime: str
) -> Bean:
    """Bean of a content header."""
    return {
        "type": "contents_headers", "id": content.hex().upper(),
        "hash": None if hash_ is None else hash_.hex().upper(), "size": size, "policy": policy,
        "chunk-method": method, "mime-type": mime,
    }


def chunk_bean(url: str, position: str, hash_: bytes, size: int) -> Bean:
    """Bean of a chunk."""
    return {"type": "chunks", "id": url, "pos": position, "hash": hash_.hex().upper(), "size": size}


def property_bean(alias: str, version: int, key: str, value: str | None) -> Bean:
    """Bean of an object property; the value is None when the property was deleted."""
    return {"type": "properties", "alias": alias, "version": version, "key": key, "value": value}


def _envelope(
    event: str, url: dict[str, Any], context: Context | None, **fields: Any
) -> dict[str, Any]:
    envelope: dict[str, Any] = {"event": event, "when": now_us(), "url": url}
    if context is not None:
        if context.reqid:
            envelope["request_id"] = context.reqid
        if context.origin:
            envelope["origin"] = context.origin
    envelope.update(fields)
    return envelope


def _container_url(get: Any, cid: str) -> dict[str, Any]:
    url = {
        "ns": get("sys.ns"), "account": get("sys.account"), "user": get("sys.user.name"), "id": cid,
    }
    return {key: value for key, value in url.items() if value}


def emit_container(
    tx: Transaction, context: Context, target: ContainerTarget, kind: str, data: Mapping[str, Any]
) -> None:
    """Emit ``storage.container.<kind>`` (or ``storage.<kind>`` when it has a dot)."""
    if tx.events_enabled:
        name = f"storage.{kind}" if "." in kind else f"storage.container.{kind}"
        tx.emit(_envelope(name, _container_url(tx.get, target.cid), context, data=data))


def peers_from(service_id: str, peers: Sequence[str]) -> list[str]:
    """The copies of a container, that of the service which tells it first."""
    return sorted(peers, key=lambda peer: peer != service_id)


def state_event(admin: Mapping[str, str]) -> dict[str, Any]:
    """``storage.container.state``: the counters that the account service wants."""
    cid = admin.get("sys.name", "").partition(".")[0]
    data = {
        "bucket": admin.get("sys.m2.bucket.name"),
        "policy": admin.get("sys.m2.policy.storage", ""),
        "ctime": _number(admin, "sys.m2.ctime"),
        "bytes-count": _number(admin, "sys.m2.usage"),
        "object-count": _number(admin, "sys.m2.objects"),
        "damaged-objects": _number(admin, "sys.m2.objects.damaged"),
        "missing-chunks": _number(admin, "sys.m2.chunks.missing"),
    }
    return _envelope("storage.container.state", _container_url(admin.get, cid), None, data=data)


def _number(admin: Mapping[str, str], key: str) -> int:
    try:
        return int(admin.get(key, "0"))
    except ValueError:
        return 0


def emit_content(
    tx: Transaction,
    context: Context,
    target: ContainerTarget,
    kind: str,
    alias: Bean,
    others: Iterable[Bean] = (),
    chunks: list[Bean] | None = None,
) -> None:
    """Emit ``storage.content.<kind>`` with its beans, in several parts when there are many chunks."""
    if not tx.events_enabled:
        return
    name = "storage.content." + kind
    url = content_url(tx, target, alias)
    beans = [alias, *others]
    if not chunks or len(beans) + len(chunks) <= BEANS_MAX:
        if chunks:
            beans += chunks
        _emit_beans(tx, _envelope(name, url, context, part=0, parts=1, data=beans))
        return
    parts = 1 + (len(chunks) + BEANS_MAX - 1) // BEANS_MAX
    _emit_beans(tx, _envelope(name, url, context, part=0, parts=parts, data=beans))
    # Consumers need the chunk method: alias and header come with every part.
    repeated = [bean for bean in beans if bean["type"] != "properties"]
    for part in range(1, parts):
        some = chunks[(part - 1) * BEANS_MAX : part * BEANS_MAX]
        tx.emit(_envelope(name, url, context, part=part, parts=parts, data=[*repeated, *some]))


def _emit_beans(tx: Transaction, event: dict[str, Any]) -> None:
    """Emit an event of beans; properties too large for any queue stay out, so that the rest is told."""
    try:
        tx.emit(event)
    except StatusError as exc:
        event["data"] = [bean for bean in event["data"] if bean["type"] != "properties"]
        tx.emit(event)
        logger.warning(
            "%s of %s leaves without the properties of the object, request %s: %s",
            event["event"], event["url"], event.get("request_id"), exc.message,
        )


def emit_content_data(
    tx: Transaction, context: Context, target: ContainerTarget, kind: str, alias: Bean, data: Any
) -> None:
    """Emit ``storage.content.<kind>`` whose payload is not made of beans."""
    if tx.events_enabled:
        url = content_url(tx, target, alias)
        tx.emit(_envelope("storage.content." + kind, url, context, data=data))


def content_url(tx: Transaction, target: ContainerTarget, alias: Bean) -> dict[str, Any]:
    """URL of an object version; a delete marker names the version it hides."""
    url = _container_url(tx.get, target.cid)
    version = alias["version"] - 1 if alias["deleted"] else alias["version"]
    url["path"], url["version"], url["content"] = alias["name"], str(version), alias["header"]
    return url
