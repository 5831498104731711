# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Freezing, disabling and enabling a container (contract: "Container status").

A frozen container serves its objects and keeps them as they are; a disabled one does not even serve them. A
disabled container must be enabled before it can be frozen, and a frozen one before it can be disabled.
"""

from __future__ import annotations

from collections.abc import Callable

from oio.common import status
from oio.common.status import StatusError
from oio.meta.context import Context
from oio.meta.messages import ContainerSetStatus
from oio.meta.meta2 import rules, schema
from oio.meta.transaction import Transaction

ENABLED_VALUE, FROZEN_VALUE, DISABLED_VALUE = "0", "4294967295", "4294967294"

_VALUES = {"enabled": ENABLED_VALUE, "frozen": FROZEN_VALUE, "disabled": DISABLED_VALUE}
#: Code that tells in which status the container is.
_CODES = {
    "enabled": status.CONTAINER_ENABLED,
    "frozen": status.CONTAINER_FROZEN,
    "disabled": status.CONTAINER_DISABLED,
}


def current(get: Callable[[str], str | None]) -> str:
    """Status of a container, in a word; what is not known as another status is enabled."""
    value = get(schema.STATUS)
    if value in schema.FROZEN:
        return "frozen"
    return "disabled" if value in schema.DISABLED else "enabled"


def set_status(tx: Transaction, context: Context, request: ContainerSetStatus) -> None:
    """Change the status, whatever the modes of the namespace.

    :raises StatusError: 436, 437 or 439 telling the status that forbids it; 438 when it must be empty and is not.
    """
    rules.check_initialised(tx.get)
    if request.only_empty and tx.execute("SELECT 1 FROM chunks LIMIT 1").fetchone():
        raise StatusError(status.CONTAINER_NOT_EMPTY, "Container not empty")
    present, wanted = current(tx.get), request.status
    if present == wanted:
        if request.tolerant:
            return
    elif present == "enabled" or wanted == "enabled":
        tx.set(schema.STATUS, _VALUES[wanted])
        return
    raise StatusError(_CODES[present], f"Invalid status: {present}")
