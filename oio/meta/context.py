# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Who asks for an operation: what rules and events need to know of the request."""

from __future__ import annotations


class Context:
    """Facts of one request that are not in its message."""

    __slots__ = ("admin", "deadline", "namespace", "origin", "reqid")

    def __init__(
        self,
        namespace: str = "",
        reqid: str = "",
        origin: str = "",
        admin: bool = False,
        deadline: float | None = None,
    ) -> None:
        self.namespace = namespace
        self.reqid = reqid
        self.origin = origin
        #: Administrators pass over the modes of the namespace (WORM, slave).
        self.admin = admin
        #: Moment (monotonic clock) after which nobody waits for the answer; None without limit.
        self.deadline = deadline


def nothing_to_refresh(request: object, context: Context) -> None:
    """Handler of ``Refresh`` for services that remember nothing of others."""
