# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""What every meta service answers about its bases, whatever they hold (contract: "Per-peer answers")."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from oio.common import status
from oio.common.status import StatusError
from oio.meta.context import Context
from oio.meta.messages import BaseFile, BaseFind, BaseGetProperties, Operation, Properties
from oio.meta.repository import Repository
from oio.meta.transaction import Reader

_STATISTICS = ("page_count", "freelist_count", "page_size")


def handlers(repository: Repository) -> dict[type[Operation], Callable[[Any, Context], Any]]:
    """What to call for each operation."""

    def find(request: BaseFind, context: Context) -> BaseFile:
        _check_there(repository, request.base)
        return BaseFile(path=repository.path(request.base))

    def get_properties(request: BaseGetProperties, context: Context) -> Properties:
        _check_there(repository, request.base)
        return repository.read(
            request.base,
            lambda reader: Properties(properties=admin_keys(reader, request.stats)),
            deadline=context.deadline,
        )

    return {BaseFind: find, BaseGetProperties: get_properties}


def admin_keys(reader: Reader, stats: bool) -> dict[str, str]:
    """The admin table of a base, and the sizes of its file when ``stats`` are wanted."""
    properties = reader.all_admin()
    if stats:
        for name in _STATISTICS:
            for (value,) in reader.execute(f"PRAGMA {name}"):
                properties[f"stats.{name}"] = str(value)
    return properties


def _check_there(repository: Repository, base: str) -> None:
    """A base whose file was taken away is absent, even when it is still open."""
    if not repository.exists(base):
        raise StatusError(status.CONTAINER_NOT_FOUND, f"Base {base} not found on this service")
