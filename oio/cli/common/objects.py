# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""What the commands on objects share: how their container is found."""

from __future__ import annotations

import argparse
from typing import Any


class ObjectCommand:
    """Mixin of the commands on objects of a container that is named, told by its id, or computed."""

    app: Any
    _names_by_cid: dict[str, str]

    def resolve_container(self, parsed: argparse.Namespace, name: str) -> tuple[str | None, dict[str, Any]]:
        """(container name or None, keyword arguments) for an object name."""
        if parsed.auto:
            return self.app.client_manager.flat_builder(parsed.flat_bits)(name), {}
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
