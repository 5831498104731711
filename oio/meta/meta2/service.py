# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""The operations of meta2: which function answers each message, and on which base it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from oio.meta import messages as m
from oio.meta.context import Context, nothing_to_refresh
from oio.meta.meta2 import (
    containers,
    contents,
    copies,
    deletes,
    flush,
    listing,
    puts,
    raw,
    retention,
    rules,
    states,
    updates,
)
from oio.meta.meta2.schema import base_name
from oio.meta.repository import Repository
from oio.meta.transaction import Reader, Transaction

Handler = Callable[[Any, Context], Any]


class Meta2Service:
    """Containers of one volume."""

    def __init__(
        self, repository: Repository, settings: rules.Settings, service_id: str = ""
    ) -> None:
        self._repository = repository
        self._settings = settings
        self._service_id = service_id

    def handlers(self) -> dict[type[m.Operation], Handler]:
        """What to call for each operation."""
        return {
            m.ContainerCreate: self._container_create,
            m.ContainerDestroy: self._container_destroy,
            m.ContainerGetProperties: self._reading(containers.get_properties),
            m.ContainerSetProperties: self._writing(containers.set_properties),
            m.ContainerDelProperties: self._writing(containers.del_properties),
            m.ContainerTouch: self._container_touch,
            m.ContainerCopy: self._container_copy,
            m.ContainerFlush: self._container_flush,
            m.ContainerSetStatus: self._touching(states.set_status),
            m.RawInsert: self._writing(raw.insert),
            m.RawUpdate: self._writing(raw.update),
            m.RawDelete: self._writing(raw.delete),
            m.ContentList: self._content_list,
            m.ContentPut: self._content_put,
            m.ContentShow: self._reading(contents.show),
            m.ContentSetProperties: self._writing(contents.set_properties),
            m.ContentDelProperties: self._writing(contents.del_properties),
            m.ContentDelete: self._deleting(deletes.delete, "delete"),
            m.ContentDeleteMany: self._deleting(deletes.delete_many, "delete"),
            m.ContentUpdate: self._deleting(updates.update, "update", updates.check_update),
            m.ContentTruncate: self._deleting(updates.truncate, "truncate"),
            m.ContentDrain: self._deleting(updates.drain, "drain"),
            m.ContentPurge: self._writing(retention.purge_content),
            m.ContainerPurge: self._container_purge,
            m.ContentTouch: self._touching(contents.touch),
            m.Refresh: nothing_to_refresh,
        }

    def _container_create(self, request: m.ContainerCreate, context: Context) -> m.Created:
        return containers.create(
            self._repository, self._settings, context, request, self._service_id
        )

    def _container_destroy(self, request: m.ContainerDestroy, context: Context) -> None:
        containers.destroy(
            self._repository, self._settings, context, request, self._service_id
        )

    def _container_touch(self, request: m.ContainerTouch, context: Context) -> None:
        containers.touch(self._repository, context, request)

    def _content_list(self, request: m.ContentList, context: Context) -> m.ListReply:
        return self._repository.read(
            base_name(request.cid),
            lambda reader: listing.list_contents(reader, request, context.deadline),
            deadline=context.deadline, route=context.route,
        )

    def _container_copy(self, request: m.ContainerCopy, context: Context) -> None:
        copies.copy(self._repository, self._settings, context, request, self._service_id)

    def _container_flush(self, request: m.ContainerFlush, context: Context) -> m.FlushReply:
        return flush.flush(self._repository, self._settings, context, request)

    def _container_purge(self, request: m.ContainerPurge, context: Context) -> None:
        retention.purge_container(self._repository, self._settings, context, request)

    def _content_put(self, request: m.ContentPut, context: Context) -> None:
        settings = self._settings
        rules.check_writable_namespace(settings, context)
        missing = puts.check(request)

        def run(tx: Transaction) -> None:
            puts.put(tx, settings, context, request, missing)

        self._repository.write(base_name(request.cid), run, deadline=context.deadline, route=context.route)

    def _reading(self, function: Callable[[Reader, Any], Any], short: bool = True) -> Handler:
        read = self._repository.read

        def handle(request: m.ContainerTarget, context: Context) -> Any:
            return read(
                base_name(request.cid),
                lambda reader: function(reader, request),
                short,
                context.deadline,
                context.route,
            )

        return handle

    def _writing(
        self, function: Callable[[Transaction, rules.Settings, Context, Any], Any]
    ) -> Handler:
        write, settings = self._repository.write, self._settings

        def handle(request: m.ContainerTarget, context: Context) -> Any:
            rules.check_writable_namespace(settings, context)
            return write(
                base_name(request.cid),
                lambda tx: function(tx, settings, context, request),
                deadline=context.deadline, route=context.route,
            )

        return handle

    def _deleting(
        self,
        function: Callable[[Transaction, rules.Settings, Context, Any], Any],
        what: str,
        check: Callable[[Any], None] | None = None,
    ) -> Handler:
        """A write that a WORM namespace forbids; ``check`` looks at the request before its turn comes."""
        handle_write, settings = self._writing(function), self._settings

        def handle(request: m.ContainerTarget, context: Context) -> Any:
            rules.check_not_worm(settings, context, what)
            if check is not None:
                check(request)
            return handle_write(request, context)

        return handle

    def _touching(self, function: Callable[[Transaction, Context, Any], Any]) -> Handler:
        write = self._repository.write

        def handle(request: m.ContainerTarget, context: Context) -> Any:
            return write(
                base_name(request.cid),
                lambda tx: function(tx, context, request),
                deadline=context.deadline, route=context.route,
            )

        return handle
