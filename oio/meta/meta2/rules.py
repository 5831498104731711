# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""What is allowed, and in which versioning mode: decisions only, nothing is changed here.

Except :func:`versioning_mode`, which stores the mode that a request forces on its container.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from oio.common import status
from oio.common.status import StatusError
from oio.meta.context import Context
from oio.meta.messages import ContainerTarget
from oio.meta.meta2 import events, schema
from oio.meta.transaction import Transaction

UNLIMITED = -1
#: Modes in which a name has one version only.
UNVERSIONED = (0, 1)


class Settings(Protocol):
    """The variables of the service."""

    def __getitem__(self, name: str) -> Any:
        """Value of a variable."""


def check_writable_namespace(settings: Settings, context: Context) -> None:
    """Writes are refused by a slave namespace. :raises StatusError: 500."""
    if not context.admin and not settings["ns.master"]:
        raise StatusError(status.INTERNAL_ERROR, "NS slave!")


def check_not_worm(settings: Settings, context: Context, what: str) -> None:
    """A WORM namespace forbids what removes data. :raises StatusError: 405."""
    if not context.admin and settings["ns.worm"]:
        raise StatusError(status.NOT_ALLOWED, f"NS wormed! Cannot {what} (worm).")


def check_overwrite(settings: Settings, context: Context) -> None:
    """A WORM namespace forbids what replaces data. :raises StatusError: 421."""
    if settings["ns.worm"] and not context.admin:
        raise StatusError(status.CONTENT_EXISTS, "NS wormed! Cannot overwrite.")


def check_initialised(get: Any) -> None:
    """A base that was never initialised is as good as absent. :raises StatusError: 431."""
    if get(schema.INIT) != "1":
        raise StatusError(status.CONTAINER_NOT_FOUND, "Container not initialised")


def check_readable(get: Any) -> None:
    """Objects of a disabled container are not served. :raises StatusError: 431, 436."""
    check_initialised(get)
    if get(schema.STATUS) in schema.DISABLED:
        raise StatusError(status.CONTAINER_FROZEN, "Invalid status: disabled")


def check_writable(get: Any) -> None:
    """Objects of a frozen or disabled container do not change. :raises StatusError: 431, 436."""
    check_initialised(get)
    state = get(schema.STATUS)
    if state in schema.FROZEN or state in schema.DISABLED:
        word = "frozen" if state in schema.FROZEN else "disabled"
        raise StatusError(status.CONTAINER_FROZEN, f"Invalid status: {word}")


def versioning_mode(
    tx: Transaction,
    settings: Settings,
    context: Context,
    target: ContainerTarget,
    forced: int | None,
    simulate: bool,
) -> int:
    """Max versions of this request; a forced value is stored in the container first."""
    if forced is not None and tx.get(schema.MAX_VERSIONS) != str(forced):
        check_system_keys({schema.MAX_VERSIONS: str(forced)}, tx.get)
        tx.set(schema.MAX_VERSIONS, str(forced))
        data = {
            "system": {schema.MAX_VERSIONS: str(forced)},
            "properties": {},
            "bucket": tx.get(schema.BUCKET),
        }
        events.emit_container(tx, context, target, "update", data)
    if simulate:
        return UNLIMITED
    return max_versions(tx.get, settings)


def max_versions(get: Any, settings: Settings) -> int:
    """Max versions of a container, else of the namespace."""
    return _integer(get(schema.MAX_VERSIONS), settings["meta2.max_versions"])


def keep_deleted_delay(get: Any, settings: Settings) -> int:
    """Seconds after which a name hidden by a delete marker may go; negative: never."""
    default: float = settings["meta2.retention_period"]
    return _integer(get(schema.KEEP_DELETED), int(default))


def delete_exceeding(tx: Transaction, settings: Settings) -> bool:
    """Are the versions beyond the maximum removed at each put?"""
    value = tx.get(schema.DELETE_EXCEEDING)
    if value is None:
        return bool(settings["meta2.delete_exceeding_versions"])
    return value.strip().lower() in ("1", "true", "yes", "on")


def quota(tx: Transaction, settings: Settings, context: Context) -> int:
    """Bytes that the container may hold, 0 without limit; administrators have none."""
    value = tx.get(schema.QUOTA)
    limit: int = settings["meta2.container.max_size"] if value is None else _integer(value, 0)
    return 0 if limit <= 0 or context.admin else limit


def check_quota(limit: int, before: int, after: int) -> None:
    """Refuse to make a container bigger beyond its quota. :raises StatusError: 445."""
    if limit < after > before:
        raise StatusError(
            status.CONTAINER_FULL,
            f"Container full: it would hold {after} bytes, its quota is {limit} bytes",
        )


def container_properties(properties: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """(system, user) parts of complete keys. :raises StatusError: 400 for any other prefix."""
    system: dict[str, str] = {}
    user: dict[str, str] = {}
    for key, value in properties.items():
        if key.startswith("user.") and len(key) > 5:
            user[key] = value
        elif key.startswith("sys.") and len(key) > 4:
            system[key] = value
        else:
            raise StatusError(status.BAD_REQUEST, f"Invalid property name {key!r}")
    return system, user


def check_system_keys(changes: Mapping[str, str], current: Callable[[str], str | None]) -> None:
    """Refuse what would break a base: another identity, or a word where everybody reads a number.

    An empty value deletes the key. What names the base may be repeated, not changed.

    :raises StatusError: 400.
    """
    for key, value in changes.items():
        if key in schema.FIXED_KEYS and value != (current(key) or ""):
            raise StatusError(status.BAD_REQUEST, f"{key} of a container cannot be changed")
        if value and key in schema.NUMBERS:
            try:
                number = int(value)
            except ValueError:
                number = None
            if number is None or not -(2**63) <= number < 2**63:
                raise StatusError(status.BAD_REQUEST, f"{key} must be an integer, not {value[:32]!r}")


def _integer(text: str | None, default: int) -> int:
    try:
        return default if text is None else int(text)
    except ValueError:
        return default
