# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Operations on bases of any type, and on single copies of them (see :mod:`oio.meta.messages`)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import msgspec

from oio.meta.messages import Message, Operation, Properties, ReplyType


class BaseTarget(Operation, kw_only=True):
    """Base of requests on one base of any type, named as its file is."""

    base: Annotated[str, msgspec.Meta(pattern=r"^[0-9A-Za-z][0-9A-Za-z._-]{0,254}\Z")]


class BaseFile(Message, kw_only=True):
    """Where the file of a base is, on the host of the service."""

    path: str


class BaseFind(BaseTarget, kw_only=True):
    """Has the service this base? 431 when it has no file for it."""

    reply: ClassVar[ReplyType] = BaseFile


class BaseGetProperties(BaseTarget, kw_only=True):
    """All the admin keys of a base; with ``stats`` also ``stats.page_count`` and friends."""

    reply: ClassVar[ReplyType] = Properties
    stats: bool = False


class BaseSetProperties(BaseTarget, kw_only=True):
    """Set admin keys of a base of any type (complete keys); an empty value deletes; ``clear`` drops user keys."""

    properties: dict[str, str] = {}
    clear: bool = False


class BaseDelProperties(BaseTarget, kw_only=True):
    """Delete admin keys of a base of any type (complete keys); an empty list deletes all user keys."""

    names: list[str] = []


class BaseVacuum(BaseTarget, kw_only=True):
    """Defragment a base and its copies, and set ``sys.last_vacuum``."""


# --- copies of a base: these are answered by the service that is asked, master or not ---------------


class BasePing(BaseTarget, kw_only=True):
    """Start the election of a base, or keep it from being left for idleness."""


class BaseStatus(BaseTarget, kw_only=True):
    """Who is the master? No error: this service; 303: the service that the message names; 503: nobody."""


class BaseLeave(BaseTarget, kw_only=True):
    """Leave the election of a base: another copy becomes its master."""


class BaseSync(BaseTarget, kw_only=True):
    """Take the state of the master; a whole, checked image when ``check_type`` is 1 or 2. 301 on the master."""

    check_type: int = -1


class BaseDescription(Message, kw_only=True):
    """What a service knows of the election of a base; None when it takes no part in one."""

    election: dict[str, Any] | None = None


class BaseDebug(BaseTarget, kw_only=True):
    """The election of a base as this service sees it (contract: "debug body")."""

    reply: ClassVar[ReplyType] = BaseDescription


class BaseCopyFrom(BaseTarget, kw_only=True):
    """Make a copy of a base here, from the service ``source`` (id or address)."""

    source: str


class BaseRemove(BaseTarget, kw_only=True):
    """Delete this copy of a base, and no other."""
