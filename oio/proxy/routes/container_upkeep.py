# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""``container/*``: what keeps a container in order (contract: "container/* - container databases")."""

from __future__ import annotations

from oio.common import status
from oio.common.status import StatusError
from oio.http.messages import Response
from oio.meta.messages import ContainerFlush, ContainerPurge, ContainerTouch, FlushReply
from oio.proxy.app import RouteDefinition, mapped_error
from oio.proxy.call import Call
from oio.proxy.routes.container import CONTAINER_MISSING


def touch(call: Call) -> Response:
    """``container/touch``: tell the state again; 403 when there is no such container."""
    damaged, missing = _counts_again(call, "damaged_objects"), _counts_again(call, "missing_chunks")
    request = ContainerTouch(
        **call.container(),
        recompute=call.flag("recompute") or damaged or missing,
        damaged_objects=damaged,
        missing_chunks=missing,
    )
    try:
        call.proxy.resolver.call_meta2(request, call, write=True)
    except StatusError as exc:
        if exc.code in CONTAINER_MISSING:
            return mapped_error(403, exc)
        raise
    return Response(204)


def _counts_again(call: Call, flag: str) -> bool:
    """Is a counter to be counted again? Clients that count by themselves give their number: it is not believed."""
    return call.flag(flag) or call.args.get(flag, "").isdigit()


def flush(call: Call) -> Response:
    """``container/flush``: really delete some objects; the header tells whether to call again."""
    reply: FlushReply = call.proxy.resolver.call_meta2(
        ContainerFlush(**call.container()), call, write=True
    )
    return Response(204, headers=[("X-oio-truncated", "true" if reply.truncated else "false")])


def purge(call: Call) -> Response:
    """``container/purge``: apply the retention of versions to every object."""
    request = ContainerPurge(**call.container(), max_versions=call.optional_number("maxvers"))
    call.proxy.resolver.call_meta2(request, call, write=True)
    return Response(204)


def dedup(call: Call) -> Response:
    """``container/dedup``: of older versions; the services have nothing to answer it any more."""
    call.proxy.resolver.services(call.target.cid, "meta2", call)
    raise StatusError(status.NO_HANDLER, "No handler found")


ROUTES = [
    RouteDefinition("POST", "container/touch", touch, meta2=True),
    RouteDefinition("POST", "container/flush", flush, meta2=True),
    RouteDefinition("POST", "container/purge", purge, meta2=True),
    RouteDefinition("POST", "container/dedup", dedup, meta2=True),
]
