# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Calls to the meta services, one function call per operation.

>>> client = MetaClient(HttpPool())
>>> client.call("127.0.0.1:6020", messages.ReferenceShow(cid=cid), reqid=reqid)

A call either returns the decoded reply of the operation (``None`` for operations without one) or raises
:class:`~oio.common.status.StatusError`: with the code chosen by the service when it answered, else with
one of the network codes (2 refused, 3 reset, 4 closed, 5 connection timeout, 7 read timeout, 9 other).

An operation that changes something is sent once. After the codes 3, 4 and 7 it may have been executed all the
same: the caller knows whether it is safe to send it again. One that only reads, or that has an id by which it is
made once, is sent a second time when the pooled connection it took turns out to be closed.

This stands on the path of every object operation, so what depends only on the type of the request (path,
decoder) is prepared once, and an unused header is not sent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec

from oio.common import status
from oio.common.status import StatusError
from oio.http.client import (
    ConnectError,
    ConnectionClosed,
    ConnectTimeout,
    HttpClientError,
    HttpPool,
    ReadTimeout,
    WriteTimeout,
)
from oio.meta.base_messages import BaseDebug, BaseFind, BaseGetProperties, BasePing, BaseStatus
from oio.meta.messages import (
    ContainerGetProperties,
    ContentList,
    ContentShow,
    ErrorReply,
    Meta0Get,
    Operation,
    ReferenceShow,
)

#: Time allowed to one call when the caller has no deadline of its own (seconds). Longer than any sane
#: operation on a base, shorter than the patience of HTTP clients (60 s).
TIMEOUT_DEFAULT_S = 30.0

#: A meta service is one hop away on the local network: a longer wait means that it is down (seconds).
CONNECT_TIMEOUT_S = 2.0

#: A silence of that long is worth a look at the service, when the caller wants one (seconds).
PATIENCE_S = 1.0

#: A service that is well answers a ping within that time (seconds).
PING_S = 0.5

_encode = msgspec.msgpack.Encoder().encode
_decode_error = msgspec.msgpack.Decoder(ErrorReply).decode


PEERS_HEADER = "x-oio-peers"
SUSPECTS_HEADER = "x-oio-suspect"
OPERATION_HEADER = "x-oio-operation"
LOCAL_HEADER = "x-oio-local"

_READ_ONLY = (
    BaseDebug, BaseFind, BaseGetProperties, BasePing, BaseStatus, ContainerGetProperties, ContentList, ContentShow,
    Meta0Get, ReferenceShow,
)


class Route(NamedTuple):
    """What a caller says to a service about a base that has several copies."""

    #: Services that hold the base, as the directory names them.
    peers: Sequence[str] = ()
    #: Those of them that just failed to answer.
    suspects: Sequence[str] = ()
    #: Id of a change, the same each time that it is sent: it is made once.
    operation: str = ""
    #: The service shall answer from its own copy, whoever is the master.
    local: bool = False

    def add_to(self, headers: dict[str, str]) -> None:
        """Say it in the headers of a request."""
        if self.peers:
            headers[PEERS_HEADER] = ",".join(self.peers)
        if self.suspects:
            headers[SUSPECTS_HEADER] = ",".join(self.suspects)
        if self.operation:
            headers[OPERATION_HEADER] = self.operation
        if self.local:
            headers[LOCAL_HEADER] = "1"


class _Prepared(NamedTuple):
    """What a call needs to know about the type of its request."""

    path: str
    decode: Any
    idempotent: bool


_prepared: dict[type[Operation], _Prepared] = {}


class MetaClient:
    """Sends operations to meta services through a pool of HTTP connections (thread safe)."""

    __slots__ = ("_request",)

    def __init__(self, pool: HttpPool) -> None:
        self._request = pool.request

    def call(
        self,
        address: str,
        request: Operation,
        *,
        reqid: str = "",
        timeout_s: float = TIMEOUT_DEFAULT_S,
        admin: bool = False,
        origin: str = "",
        route: Route | None = None,
        on_silence: Callable[[], bool] | None = None,
    ) -> Any:
        """Execute ``request`` on the service at ``address`` ("host:port") and return its reply.

        ``origin`` is the user agent of the client at the source of the operation; it travels to the events.
        ``route`` tells how to treat a base that has copies; 303 then names the master.
        ``on_silence`` is asked after each :data:`PATIENCE_S` without an answer whether to wait on; False is a
        read timeout.
        """
        kind = type(request)
        prepared = _prepared.get(kind) or _prepare(kind)
        headers = {"x-oio-timeout": str(int(timeout_s * 1000000))}
        if reqid:
            headers["x-oio-req-id"] = reqid
        if admin:
            headers["x-oio-admin"] = "1"
        if origin:
            headers["user-agent"] = origin
        idempotent, deadline, silence_s = prepared.idempotent, None, timeout_s
        if route is not None:
            route.add_to(headers)
            idempotent = idempotent or bool(route.operation)
        if on_silence is not None:
            deadline = time.monotonic() + timeout_s
            if silence_s > PATIENCE_S:
                silence_s = PATIENCE_S
        try:
            response = self._request(
                "POST",
                f"http://{address}{prepared.path}",
                headers,
                _encode(request),
                timeout=(
                    CONNECT_TIMEOUT_S if timeout_s > CONNECT_TIMEOUT_S else timeout_s,
                    silence_s,
                ),
                deadline=deadline,
                idempotent=idempotent,
                on_silence=on_silence,
            )
        except HttpClientError as err:
            raise StatusError(network_code(err), f"{address}: {err}") from err
        if response.status == 200:
            try:
                return prepared.decode(response.data)
            except msgspec.MsgspecError as err:
                raise StatusError(
                    status.INTERNAL_ERROR, f"{address}{prepared.path}: malformed reply: {err}"
                ) from err
        if response.status == 204:
            return None
        raise _failure(address, prepared.path, response.status, response.data)

    def is_alive(self, address: str, timeout_s: float = PING_S) -> bool:
        """Does anything answer at this address, whatever it says?"""
        try:
            self._request(
                "POST",
                f"http://{address}/v1/ping",
                timeout=timeout_s,
                deadline=time.monotonic() + timeout_s,
                idempotent=True,
            )
        except HttpClientError:
            return False
        return True


def network_code(err: HttpClientError) -> int:
    """Internal code of a failure to reach a service or to hear its answer."""
    if isinstance(err, ConnectTimeout):
        return status.CONNECTION_TIMEOUT
    if isinstance(err, ConnectError):
        return status.CONNECTION_REFUSED
    if isinstance(err, ConnectionClosed):
        if isinstance(err.__cause__, ConnectionResetError):
            return status.CONNECTION_RESET
        return status.CONNECTION_CLOSED
    if isinstance(err, (ReadTimeout, WriteTimeout)):
        return status.READ_TIMEOUT
    return status.NETWORK_ERROR


def _prepare(kind: type[Operation]) -> _Prepared:
    """Build the entry of a type of request (racing threads build equal entries)."""
    reply = kind.reply
    decode = msgspec.msgpack.Decoder(reply).decode if reply is not None else _no_reply
    prepared = _prepared[kind] = _Prepared(
        f"/v1/{kind.operation()}", decode, kind in _READ_ONLY
    )
    return prepared


def _no_reply(data: bytes) -> None:
    """Decoder of operations that answer nothing, whatever the service sent."""


def _failure(address: str, path: str, http_status: int, data: bytes) -> StatusError:
    """Error of a service, or of something that is not one (then its HTTP status stands as the code)."""
    try:
        reply = _decode_error(data)
    except msgspec.MsgspecError:
        return StatusError(
            http_status, f"{address}{path}: HTTP {http_status} without an error description"
        )
    return StatusError(reply.status, reply.message)
