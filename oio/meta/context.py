# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Who asks for an operation: what rules and events need to know of the request."""

from __future__ import annotations

from oio.meta.client import Route

#: A request that knows nothing of copies.
NO_ROUTE = Route()


class Context:
    """Facts of one request that are not in its message."""

    __slots__ = ("admin", "deadline", "namespace", "origin", "reqid", "route")

    def __init__(
        self,
        namespace: str = "",
        reqid: str = "",
        origin: str = "",
        admin: bool = False,
        deadline: float | None = None,
        route: Route = NO_ROUTE,
    ) -> None:
        self.namespace = namespace
        self.reqid = reqid
        self.origin = origin
        #: Administrators pass over the modes of the namespace (WORM, slave).
        self.admin = admin
        #: Moment (monotonic clock) after which nobody waits for the answer; None without limit.
        self.deadline = deadline
        #: What the caller knows of the copies of the base.
        self.route = route

    @property
    def steps(self) -> Route:
        """Route for an operation of several writes: none of them is the operation."""
        return self.route._replace(operation="")


def nothing_to_refresh(request: object, context: Context) -> None:
    """Handler of ``Refresh`` for services that remember nothing of others."""
