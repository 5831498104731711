# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Operations of meta1: finds the base of a reference, then runs the function of the operation on it.

A base is created by the first request that creates a reference in it. A base that does not exist holds no
reference: everything else answers 406.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from oio.common import status
from oio.common.status import StatusError
from oio.directory.mapping import base_of
from oio.meta.base_type import BaseType
from oio.meta.context import Context
from oio.meta.messages import ContainerTarget, Operation, ReferenceLink, Refresh, ServiceLinks
from oio.meta.meta1 import references
from oio.meta.meta1.prefixes import Prefixes
from oio.meta.repository import Repository

META1 = BaseType(
    name="meta1",
    schema=references.SCHEMA,
    schema_version=references.SCHEMA_VERSION,
    directory_width=2,
)

Handler = Callable[[Any, Context], Any]


class Meta1Service:
    """References of the prefixes that this service is in charge of."""

    def __init__(self, repository: Repository, prefixes: Prefixes, digits: int) -> None:
        self._repository = repository
        self._prefixes = prefixes
        self._digits = digits

    def handlers(self) -> dict[type[Operation], Handler]:
        """What to call for each operation."""
        handlers: dict[type[Operation], Handler] = {}
        for kind, function in references.READS.items():
            handlers[kind] = self._reader(function)
        for kind, function in references.WRITES.items():
            handlers[kind] = self._writer(function)
        handlers[ReferenceLink] = self._link
        handlers[Refresh] = self._refresh
        return handlers

    def _refresh(self, request: Refresh, context: Context) -> None:
        self._prefixes.refresh()

    def _reader(self, function: references.Function) -> Handler:
        def handle(request: ContainerTarget, context: Context) -> Any:
            return self._read(function, request, context)

        return handle

    def _writer(self, function: references.Function) -> Handler:
        def handle(request: ContainerTarget, context: Context) -> Any:
            return self._write(function, request, context)

        return handle

    def _link(self, request: ReferenceLink, context: Context) -> ServiceLinks:
        """Link; what is linked already is answered without the cost of a write."""
        if not request.renew:
            try:
                found: ServiceLinks | None = self._read(references.linked, request, context)
            except StatusError as err:
                if err.code != status.REFERENCE_NOT_FOUND:
                    raise
                found = None
            if found is not None:
                return found
        links: ServiceLinks = self._write(references.link, request, context)
        return links

    def _read(
        self, function: references.Function, request: ContainerTarget, context: Context
    ) -> Any:
        base = self._base(request)
        if not self._repository.present(base, context.deadline, context.route):
            raise references.not_found(request)
        return self._repository.read(
            base, lambda tx: function(tx, request, context), deadline=context.deadline, route=context.route
        )

    def _write(
        self, function: references.Function, request: ContainerTarget, context: Context
    ) -> Any:
        base = self._base(request)
        if not self._repository.present(base, context.deadline, context.route):
            if not references.may_create(request):
                raise references.not_found(request)
            self._repository.create(
                base, lambda tx: tx.set("sys.ns", context.namespace), context.deadline, context.steps
            )
        return self._repository.write(
            base, lambda tx: function(tx, request, context), deadline=context.deadline, route=context.route
        )

    def _base(self, request: ContainerTarget) -> str:
        base = base_of(request.cid, self._digits)
        if base not in self._prefixes and not self._holds_copy(base):
            try:
                self._prefixes.check(base)
            except StatusError:
                # It may have arrived while the table was read.
                if not self._holds_copy(base):
                    raise
        return base

    def _holds_copy(self, base: str) -> bool:
        """Is there a copy here whose peers decide? While a base moves, they may be ahead of the table.

        Without copies nobody but the table decides.
        """
        return self._repository.replication is not None and self._repository.exists(base)
