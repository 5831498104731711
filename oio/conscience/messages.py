# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""What travels between the conscience and the proxies, as JSON over HTTP.

Both ends decode with these structures: a field of the wrong type, out of its bounds or missing is one
``400`` that names it, and nothing of the message is applied.

============================  ==================================  =====================================
route                         request                             answer
============================  ==================================  =====================================
``GET /v1/snapshot``          ``?generation=N`` (optional),       200 :class:`Snapshot`, or 304 when the
                              ``&full=0`` drops statistics        generation is still the given one
``GET /v1/services``          ``?type=T[&full=1]``                200 array of :class:`Service`
``GET /v1/types``                                                 200 array of names
``POST /v1/push``             array of :class:`ServiceDef`        204
``POST /v1/deregister``       array of :class:`ServiceDef`        204
``POST /v1/flush``            ``?type=T``                         204
============================  ==================================  =====================================
"""

from __future__ import annotations

import re
from typing import Annotated

import msgspec

# The score of a pushed service says what is wanted; 0..100 locks the service at that value.
SCORE_COMPUTE = -2
SCORE_UNLOCK = -1
SCORE_MAX = 100

# Bounds of what one service may carry; real services have about twenty tags.
TAGS_MAX = 256
SERVICES_PER_REQUEST_MAX = 10000

TagName = Annotated[str, msgspec.Meta(pattern=r"^(tag|stat)\.", max_length=128)]
TagText = Annotated[str, msgspec.Meta(max_length=4096)]
TagValue = bool | int | float | TagText
TypeName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.\-]*\Z", max_length=64)]

_ADDRESS = re.compile(r"^(\d{1,3})\.(\d{1,3})\.(\d{1,3})\.(\d{1,3}):(\d{1,5})\Z", re.ASCII)
_ADDRESS_6 = re.compile(r"^\[([0-9A-Fa-f:.]{2,45})\]:(\d{1,5})\Z", re.ASCII)


class Message(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=False, kw_only=True):
    """Base of everything on the wire."""


class Service(Message, kw_only=True):
    """A service as the conscience knows it; a score of -1 means that none could be computed yet."""

    type: str
    addr: str
    score: int
    tags: dict[str, TagValue] = {}

    @property
    def service_id(self) -> str:
        """Identity of the service in chunk URLs and links: its ``tag.service_id``, else its address."""
        return str(self.tags.get("tag.service_id") or self.addr)


class ServiceDef(Message, kw_only=True):
    """A service as it is pushed: the tags are merged with the known ones."""

    type: TypeName
    addr: str
    ns: str = ""
    score: Annotated[int, msgspec.Meta(ge=SCORE_COMPUTE, le=SCORE_MAX)] = SCORE_COMPUTE
    tags: Annotated[dict[TagName, TagValue], msgspec.Meta(max_length=TAGS_MAX)] = {}

    def __post_init__(self) -> None:
        if not valid_address(self.addr):
            raise ValueError(f"`addr` is not IP:PORT: {self.addr[:64]!r}")


class NamespaceInfo(Message, kw_only=True):
    """What all processes of the namespace share.

    ``chunksize`` and ``options`` are filled by the proxy from its own variables; the conscience leaves them
    empty.
    """

    ns: str
    chunksize: int = 0
    options: dict[str, str | int] = {}
    storage_policy: dict[str, str] = {}
    service_pools: dict[str, str] = {}
    data_security: dict[str, str] = {}


class Snapshot(Message, kw_only=True):
    """The whole state at one moment. Generations compare for equality only: they differ between instances."""

    generation: int
    namespace: NamespaceInfo
    types: list[str]
    services: dict[str, list[Service]]


Services = Annotated[list[ServiceDef], msgspec.Meta(max_length=SERVICES_PER_REQUEST_MAX)]


def valid_address(text: str) -> bool:
    """Whether ``text`` is ``IPv4:port`` or ``[IPv6]:port``."""
    match = _ADDRESS.match(text)
    if match:
        *parts, port = map(int, match.groups())
        return max(parts) <= 255 and 0 < port < 65536
    match = _ADDRESS_6.match(text)
    if not match or not 0 < int(match[2]) < 65536:
        return False
    import ipaddress  # rare: IPv6 only

    try:
        ipaddress.IPv6Address(match[1])
    except ValueError:
        return False
    return True
