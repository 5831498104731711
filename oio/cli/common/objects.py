# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""What the commands on objects share: how their container is found."""

from __future__ import annotations

import argparse
import traceback
from typing import Any

from oio.cli.common.autocontainer import check_object_container
from oio.common.autocontainer import HashedContainerBuilder
from oio.common.exceptions import CommandError


class ObjectCommand:
    """Mixin of the commands on objects of a container that is named, told by its id, or computed."""

    app: Any
    _names_by_cid: dict[str, str]

    def check_names(self, parsed: argparse.Namespace, *others: str) -> None:
        """See that there is a container, and that the objects of the arguments (and others) have names.

        :raises CommandError: before anything is done.
        """
        check_object_container(parsed)
        for name in (*(parsed.objects if hasattr(parsed, "objects") else [parsed.object]), *others):
            check_name(name)

    def container_rule(self, parsed: argparse.Namespace) -> HashedContainerBuilder:
        """What gives the container of an object with ``--auto``.

        :raises CommandError: when the namespace is not configured for that.
        """
        rule: HashedContainerBuilder = self.app.client_manager.flat_builder(
            parsed.flat_bits, reqid=self.app.request_id()
        )
        return rule

    def resolve_container(self, parsed: argparse.Namespace, name: str) -> tuple[str | None, dict[str, Any]]:
        """(container name or None, keyword arguments) for an object name."""
        if parsed.auto:
            return self.container_rule(parsed)(name), {}
        if parsed.is_cid:
            return None, {"cid": parsed.container}
        return parsed.container, {}

    def resolve_name(self, parsed: argparse.Namespace, name: str) -> str:
        """Name of the container of an object; a container id is looked up once, in its properties."""
        container, kwargs = self.resolve_container(parsed, name)
        if container is not None:
            return container
        known: dict[str, str] = self.__dict__.setdefault("_names_by_cid", {})
        cid = kwargs["cid"]
        if cid not in known:
            manager = self.app.client_manager
            data = manager.storage.container_get_properties(
                manager.account, None, reqid=self.app.request_id(), **kwargs
            )
            known[cid] = str(data["system"]["sys.user.name"])
        return known[cid]


def check_name(name: str) -> None:
    """:raises CommandError: when no object can have this name."""
    if not name:
        raise CommandError("The name of an object cannot be empty")
    try:
        name.encode()
    except UnicodeEncodeError as exc:
        raise CommandError(f"The name {name!r} is not UTF-8") from exc


def in_detail(text: str, debug: bool) -> str:
    """Text of the error that is being handled, followed by its traceback when that is wanted (``--debug``)."""
    return f"{text}\n{traceback.format_exc().rstrip()}" if debug else text
