# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Who asks for an operation: what rules and events need to know of the request."""

from __future__ import annotations


class Context:
    """Facts of one request that are not in its message."""

    __slots__ = ("admin", "namespace", "origin", "reqid")

    def __init__(
        self, namespace: str = "", reqid: str = "", origin: str = "", admin: bool = False
    ) -> None:
        self.namespace = namespace
        self.reqid = reqid
        self.origin = origin
        #: Administrators pass over the modes of the namespace (WORM, slave).
        self.admin = admin
