# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""The bases that ``admin/*`` requests are about, and calls to each of their peers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import msgspec

from oio.common.status import StatusError
from oio.http.messages import Response
from oio.meta.messages import Operation
from oio.proxy.call import Call, Errand, bad_request, json_reply

TYPES = ("meta0", "meta1", "meta2")

#: Time given to the directory to tell the peers of a base whose services the request names anyway (seconds).
_PEERS_WAIT_S = 3.0

_OK = 200

T = TypeVar("T")
R = TypeVar("R")


class Base(NamedTuple):
    """The base that a request is about, and who holds it."""

    service_type: str
    name: str
    #: What the directory says; empty when it does not know the base and the request names services.
    peers: list[str]
    #: Those of the request, else the peers.
    asked: list[str]

    @property
    def single(self) -> bool:
        """Has it one copy, as far as the directory knows?"""
        return len(self.peers) == 1


class _PeerStatus(msgspec.Struct):
    status: int
    message: str


class _PeerReply(msgspec.Struct):
    status: _PeerStatus
    body: Any = ""


#: Asks one peer and gives the body of its answer, as JSON will hold it.
Ask = Callable[[str, Errand], Any]


def base_of(call: Call) -> Base:
    """The base of the query. :raises StatusError: 400; 404 when the directory knows no peer and none is named."""
    service_type = call.args.get("type")
    if not service_type:
        raise bad_request("No service type: missing parameter 'type'")
    if service_type not in TYPES:
        raise bad_request(
            f"Invalid parameter 'type': no bases of type {service_type!r}, one of {', '.join(TYPES)} is expected"
        )
    resolver, only = call.proxy.resolver, call.only
    if service_type == "meta0":
        name = call.proxy.namespace
    elif service_type == "meta1":
        name = resolver.prefix_of(call.target.cid)
    else:
        name = f"{call.target.cid}.1"
    try:
        peers = _peers_of(call, service_type)
    except StatusError:
        if not only:
            raise
        peers = []
    return Base(service_type, name, peers, only or peers)


def _peers_of(call: Call, service_type: str) -> list[str]:
    resolver, context = call.proxy.resolver, Errand(call, grace_s=_PEERS_WAIT_S) if call.only else call
    if service_type == "meta0":
        return resolver.meta0()
    cid = call.target.cid
    if service_type == "meta1":
        return resolver.meta1(cid, context)
    # What is remembered serves those who work on containers; here the directory itself is asked.
    resolver.forget(cid, "meta2")
    peers, _ = resolver.services(cid, "meta2", context)
    return peers


def container_base(call: Call) -> Base:
    """The base of the query when it must be a container. :raises StatusError: 400 for another type."""
    base = base_of(call)
    if base.service_type != "meta2":
        raise bad_request("Invalid parameter 'type': this can be done to the bases of meta2 only")
    return base


def ask_peer(
    call: Call,
    base: Base,
    peer: str,
    request: Operation,
    errand: Errand,
    *,
    write: bool = False,
    ceiling_s: float | None = None,
) -> Any:
    """Send an operation to one service, whatever its role."""
    return call.proxy.resolver.call_services(
        base.service_type, [peer], request, errand, write, peers=base.peers, ceiling_s=ceiling_s
    )


def per_peer(
    call: Call, peers: Sequence[str], ask: Ask, *, admin: bool | None = None, in_turn: bool = False
) -> Response:
    """Ask all peers at once, or ``in_turn``; one that fails neither hides nor (at once) delays the others."""
    call.timeout_s(1.0)

    def one(peer: str) -> _PeerReply:
        try:
            return _PeerReply(_PeerStatus(_OK, "OK"), ask(peer, Errand(call, admin=admin, only=[peer])))
        except StatusError as exc:
            return _PeerReply(_PeerStatus(exc.code, exc.message))

    replies = [one(peer) for peer in peers] if in_turn else in_parallel(one, peers)
    return json_reply(dict(zip(peers, replies, strict=True)))


def in_parallel(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Results of a function for each of a few items, found at the same time; the first failure is raised."""
    items = list(items)
    results: dict[int, R] = {}
    failures: list[BaseException] = []

    def run(index: int) -> None:
        try:
            results[index] = function(items[index])
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=run, args=(index,), daemon=True) for index in range(1, len(items))]
    for thread in threads:
        thread.start()
    if items:
        run(0)
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return [results[index] for index in range(len(items))]
