# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""What travels between the proxy (and tools) and the meta services.

Each request structure names its operation; it is sent as msgpack in ``POST /v1/<operation>``. Both ends
decode with these structures, so a malformed message is one clear 400 at the border and nothing else has to
check types. Absent fields take the default written here, which lets both ends be upgraded apart.

Names: ``cid`` is the container id, 64 upper-case hex digits. Property keys of containers are complete
(``user.color``, ``sys.m2.quota``). Hashes and content ids are upper-case hex text. What is said to bases of any
type, by their names, is in :mod:`oio.meta.base_messages`.
"""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal

import msgspec

CID_PATTERN = r"^[0-9A-F]{64}\Z"
Cid = Annotated[str, msgspec.Meta(pattern=CID_PATTERN)]
HexText = Annotated[str, msgspec.Meta(pattern=r"^([0-9A-F]{2})*\Z")]

# Named here because several messages have a field called ``type``, which hides the builtin in their bodies.
ReplyType = type | None

_CAMEL = re.compile(r"(?<!^)(?=[A-Z])")


class Message(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=False, kw_only=True):
    """Base of everything on the wire."""


class Operation(Message, kw_only=True):
    """Base of requests; ``reply`` is the type of the answer, ``None`` when there is no body."""

    reply: ClassVar[ReplyType] = None

    @classmethod
    def operation(cls) -> str:
        """Last token of the URL: ``ContentPut`` is sent to ``/v1/content_put``."""
        return _CAMEL.sub("_", cls.__name__).lower()


class ErrorReply(Message, kw_only=True):
    """Body of every failure: internal code and one sentence."""

    status: int
    message: str


# --- common parts -----------------------------------------------------------------------------


class ServiceLink(Message, kw_only=True):
    """One set of services linked to a reference (``host`` is a comma-separated list of ids)."""

    seq: int = 1
    type: str
    host: str
    args: str = ""


class Chunk(Message, kw_only=True):
    """A chunk as the container knows it."""

    url: str
    pos: str
    size: int
    hash: HexText


class Properties(Message, kw_only=True):
    """Answer holding complete property keys."""

    properties: dict[str, str] = {}


class ContainerTarget(Operation, kw_only=True):
    """Base of requests on one container; names are stored when the base is created, and travel to events."""

    cid: Cid
    account: str = ""
    name: str = ""


# --- every meta service -------------------------------------------------------------------------


class Refresh(Operation, kw_only=True):
    """Forget what is remembered of other services (contract: ``forward/reload`` and ``forward/flush``)."""


# --- meta0: prefix -> meta1 services ------------------------------------------------------------


class PrefixMapping(Message, kw_only=True):
    """``services[i]`` serve prefixes ``prefixes[i]`` … : one entry per 4-digit hex prefix."""

    mapping: dict[str, list[str]] = {}


class Meta0Get(Operation, kw_only=True):
    """Which meta1 services hold this prefix (1 to 4 hex digits; empty: the whole mapping)."""

    reply: ClassVar[ReplyType] = PrefixMapping
    prefix: str = ""


class Meta0Set(Operation, kw_only=True):
    """Replace the mapping of the given prefixes (the whole 65536 of them at bootstrap)."""

    mapping: dict[str, list[str]]


# --- meta1: references ----------------------------------------------------------------------------


class Created(Message, kw_only=True):
    """Did the request create the thing, or was it there?"""

    created: bool


class ReferenceReply(Message, kw_only=True):
    """A reference: names, links, properties."""

    cid: str
    account: str
    name: str
    services: list[ServiceLink] = []
    properties: dict[str, str] = {}


class ServiceLinks(Message, kw_only=True):
    """Links of one type, by increasing ``seq``."""

    services: list[ServiceLink] = []


class ReferenceCreate(ContainerTarget, kw_only=True):
    """Create a reference (idempotent)."""

    reply: ClassVar[ReplyType] = Created
    properties: dict[str, str] = {}


class ReferenceDestroy(ContainerTarget, kw_only=True):
    """Delete a reference; 407 when services are linked, unless ``force``."""

    force: bool = False


class ReferenceShow(ContainerTarget, kw_only=True):
    """Names, links (of one type when given) and properties, unless these are not wanted; 406 when absent."""

    reply: ClassVar[ReplyType] = ReferenceReply
    type: str = ""
    with_properties: bool = True


class ReferenceLink(ContainerTarget, kw_only=True):
    """Link services of a type. What is linked already wins over ``proposed`` (idempotent, decided under
    the base's writer); with an empty ``proposed`` and nothing linked: 454. ``autocreate`` creates the
    reference, else 406. ``renew`` adds ``proposed`` under the next seq instead, in the place of the former
    sets with ``replace``."""

    reply: ClassVar[ReplyType] = ServiceLinks
    type: str
    proposed: list[str] = []
    autocreate: bool = False
    dryrun: bool = False
    renew: bool = False
    replace: bool = False


class ReferenceRelink(ContainerTarget, kw_only=True):
    """Replace some services of one set. It must be exactly ``kept`` and ``replaced``, else 407; it becomes
    ``kept`` and ``chosen``, under the same seq and with the same args."""

    reply: ClassVar[ReplyType] = ServiceLinks
    type: str
    seq: int
    kept: list[str] = []
    replaced: list[str] = []
    chosen: list[str] = []
    dryrun: bool = False


class ReferenceUnlink(ContainerTarget, kw_only=True):
    """Remove the links of a type (of one seq when > 0); 454 when none."""

    type: str
    seq: int = 0


class ReferenceForce(ContainerTarget, kw_only=True):
    """Store this link as it is; 455 when the seq is taken, unless ``replace``."""

    service: ServiceLink
    replace: bool = False
    autocreate: bool = False


class ReferenceSetProperties(ContainerTarget, kw_only=True):
    """Set properties (an empty value deletes); ``clear`` removes the former ones first."""

    properties: dict[str, str]
    clear: bool = False


class ReferenceDelProperties(ContainerTarget, kw_only=True):
    """Delete properties by name; an empty list deletes all."""

    names: list[str] = []


# --- meta2: containers ----------------------------------------------------------------------------


class ContainerCreate(ContainerTarget, kw_only=True):
    """Create the base of a container (idempotent: then properties are ignored)."""

    reply: ClassVar[ReplyType] = Created
    namespace: str
    peers: list[str] = []
    properties: dict[str, str] = {}


class ContainerDestroy(ContainerTarget, kw_only=True):
    """Delete the base; 438 when it holds chunks, unless ``force``; 439 when it is ``sealed`` no more."""

    force: bool = False
    #: Frozen (or disabled) for its destruction: a base that is not was made since, by somebody else.
    sealed: bool = False


class ContainerGetProperties(ContainerTarget, kw_only=True):
    """All admin keys; with ``stats`` also ``stats.page_count`` and friends."""

    reply: ClassVar[ReplyType] = Properties
    stats: bool = False


class ContainerSetProperties(ContainerTarget, kw_only=True):
    """Set complete keys (``user.*``, ``sys.*``); empty value deletes; ``clear`` drops user keys first."""

    properties: dict[str, str]
    clear: bool = False


class ContainerDelProperties(ContainerTarget, kw_only=True):
    """Delete complete keys; an empty list deletes all user keys."""

    names: list[str] = []


class ContainerTouch(ContainerTarget, kw_only=True):
    """Re-emit the container's state, recomputing its counters first when asked.

    ``recompute`` is about bytes and objects; the two others add the counters of the same names.
    """

    recompute: bool = False
    damaged_objects: bool = False
    missing_chunks: bool = False


class ListReply(Message, kw_only=True):
    """One page. ``objects`` is the JSON text of the array that HTTP clients receive, encoded once by the
    service that has the rows; the proxy copies it through."""

    objects: bytes
    prefixes: list[str] = []
    truncated: bool = False
    next_marker: str = ""
    #: The page ends amid the versions of ``next_marker``, with this one.
    next_version_marker: int | None = None
    properties: dict[str, str] = {}


class ContentList(ContainerTarget, kw_only=True):
    """List objects; see the contract of ``container/list`` for each parameter."""

    reply: ClassVar[ReplyType] = ListReply
    prefix: str = ""
    marker: str = ""
    #: Lower versions of the name ``marker`` are in the page too, when all versions are asked for.
    version_marker: int | None = None
    end_marker: str = ""
    delimiter: str = ""
    max: int = 1000
    deleted: bool = False
    all_versions: bool = False
    properties: bool = False
    chunk_id: str = ""
    content_hash: str = ""


# --- meta2: contents ------------------------------------------------------------------------------


class Security(Message, kw_only=True):
    """What the policy promises, resolved by the proxy: ``plain`` with nb_copy, or ``ec`` with k and m."""

    type: str = "plain"
    nb_copy: int = 1
    k: int = 0
    m: int = 0


class Condition(Message, kw_only=True):
    """What must hold of the object in place, decided under the base's writer (RFC 9110, section 13.1).

    Tags are hashes of objects in upper-case hex, or ``*`` for "there is one". The object in place is the
    version that the request names, else the latest; a delete marker counts as none. 412 when it fails.
    """

    if_match: list[str] | None = None
    if_none_match: list[str] | None = None


class ContentPut(ContainerTarget, kw_only=True):
    """Commit an object whose chunks are written. 421/424 on version conflicts, 425 when the chunks
    cannot make the object, 436 when the container is frozen or disabled, 445 above the quota.

    At most one of ``append`` (new metachunks after the last), ``force`` (more chunks and properties for the
    version in place, created when absent) and ``change_policy`` (same data, other chunks) is set.
    """

    path: str
    version: int
    content_id: HexText
    size: int
    hash: HexText = ""
    mime_type: str = "application/octet-stream"
    chunk_method: str = "plain"
    policy: str = "NONE"
    security: Security = msgspec.field(default_factory=Security)
    chunks: list[Chunk]
    properties: dict[str, str] = {}
    append: bool = False
    force: bool = False
    change_policy: bool = False
    condition: Condition | None = None
    force_versioning: int | None = None
    simulate_versioning: bool = False
    # The client asked before, and was not told the outcome.
    retried: bool = False


class ContentReply(Message, kw_only=True):
    """An object version."""

    name: str
    version: int
    deleted: bool
    ctime: int
    mtime: int
    content_id: str
    hash: str = ""
    size: int = 0
    mime_type: str = ""
    chunk_method: str = ""
    policy: str = ""
    chunks: list[Chunk] = []
    properties: dict[str, str] = {}


class ContentTarget(ContainerTarget, kw_only=True):
    """Base of requests on one object: by path (and version, 0 = latest), or by content id."""

    path: str = ""
    version: int = 0
    content_id: HexText = ""


class ContentShow(ContentTarget, kw_only=True):
    """Read an object. 420 absent, 426 when the version found is a delete marker (unless ``deleted``),
    427 drained (unless ``drained``)."""

    reply: ClassVar[ReplyType] = ContentReply
    deleted: bool = False
    drained: bool = False
    chunks: bool = True
    properties: bool = True


class ContentSetProperties(ContentTarget, kw_only=True):
    """Set object properties (an empty value deletes); ``clear`` removes the others."""

    properties: dict[str, str]
    clear: bool = False


class ContentDelProperties(ContentTarget, kw_only=True):
    """Delete object properties by name; an empty list deletes all."""

    names: list[str] = []


class ContentDelete(ContentTarget, kw_only=True):
    """Delete an object, or add a delete marker, after the container's versioning mode."""

    delete_marker: bool = False
    condition: Condition | None = None
    force_versioning: int | None = None
    simulate_versioning: bool = False
    # As in ContentPut.
    retried: bool = False


class ItemStatus(Message, kw_only=True):
    """Outcome of one item of a bulk request (204 or an internal code)."""

    status: int
    message: str = "ok"


class BulkReply(Message, kw_only=True):
    """Outcomes in the order of the request."""

    items: list[ItemStatus]


class ContentDeleteMany(ContainerTarget, kw_only=True):
    """Delete several objects by name, each on its own."""

    reply: ClassVar[ReplyType] = BulkReply
    paths: list[str]
    force_versioning: int | None = None
    simulate_versioning: bool = False
    # As in ContentPut.
    retried: bool = False


class ContentTouch(ContentTarget, kw_only=True):
    """Re-emit ``storage.content.new`` for an object."""


class ContentUpdate(ContentTarget, kw_only=True):
    """Replace all chunks of each metachunk position that ``chunks`` names; 420, 425, 427, 445."""

    chunks: list[Chunk]
    policy: str = ""
    security: Security = msgspec.field(default_factory=Security)
    properties: dict[str, str] = {}


class ContentTruncate(ContentTarget, kw_only=True):
    """Drop the metachunks beyond ``size``, which must be the end of one (or 0); else 400."""

    size: int


class ContentDrain(ContentTarget, kw_only=True):
    """Remove the chunks of an object and keep all the rest."""


class ContentPurge(ContainerTarget, kw_only=True):
    """Apply the retention of versions to one name; nothing happens when it is absent."""

    path: str
    max_versions: int | None = None


# --- meta2: whole containers --------------------------------------------------------------------------


class ContainerPurge(ContainerTarget, kw_only=True):
    """Apply the retention of versions to every name."""

    max_versions: int | None = None


class FlushReply(Message, kw_only=True):
    """Do rows remain?"""

    truncated: bool


class ContainerFlush(ContainerTarget, kw_only=True):
    """Really delete a bounded number of object versions and markers; the last call resets the counters."""

    reply: ClassVar[ReplyType] = FlushReply


class ContainerSetStatus(ContainerTarget, kw_only=True):
    """Freeze, enable or disable: 436 (frozen), 437 (disabled) or 439 (enabled) when that cannot be.

    ``tolerant`` accepts a container that is in the wanted status already. With ``only_empty`` a container
    that holds chunks is refused first of all, whatever its status (438).
    """

    status: Literal["enabled", "frozen", "disabled"]
    tolerant: bool = False
    only_empty: bool = False


class ContainerCopy(ContainerTarget, kw_only=True):
    """Create this container as a copy of another one's base, read from the service at ``source_address``.

    The copy gets the names and peers given here and is frozen; it refers to the chunks of the source. 433
    when the container exists.
    """

    namespace: str
    source_cid: Cid
    source_address: str
    peers: list[str] = []


class RawAlias(Message, kw_only=True, tag_field="type", tag="alias"):
    """A row of ``aliases``; times in seconds, now when absent."""

    name: str
    version: int
    header: HexText
    ctime: int | None = None
    mtime: int | None = None
    deleted: bool = False


class RawHeader(Message, kw_only=True, tag_field="type", tag="header"):
    """A row of ``contents``."""

    id: HexText
    chunk_method: str
    mime_type: str
    hash: HexText = ""
    size: int = 0
    ctime: int | None = None
    mtime: int | None = None
    policy: str = ""


class RawChunk(Message, kw_only=True, tag_field="type", tag="chunk"):
    """A row of ``chunks``; ``id`` is the URL."""

    id: str
    hash: HexText
    size: int
    content: HexText
    pos: str
    ctime: int | None = None


RawBean = RawAlias | RawHeader | RawChunk


class RawInsert(ContainerTarget, kw_only=True):
    """Insert rows (421 when one exists, unless ``force``: then it is replaced).

    ``strict``: the chunks come from somebody whose view of the object may be old. 420 when the base has no chunk
    of the same metachunk, size and hash; 421 when the service of a chunk has another one of its metachunk.
    """

    beans: list[RawBean]
    force: bool = False
    frozen: bool = False
    strict: bool = False


class RawUpdate(ContainerTarget, kw_only=True):
    """Replace each row of ``old`` by the row of ``new`` at the same index.

    ``strict``: 420 when an old chunk has another size or hash by now; 421 as for insertions.
    """

    old: list[RawBean]
    new: list[RawBean]
    frozen: bool = False
    strict: bool = False


class RawDelete(ContainerTarget, kw_only=True):
    """Delete rows; those that are absent are not an error."""

    beans: list[RawBean]
