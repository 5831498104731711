# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Conditional writes: ``If-Match`` and ``If-None-Match`` (RFC 9110, section 13.1).

They are decided in the transaction of the write that they guard, which is the only writer of its container:
nothing can change between the decision and the write.
"""

from __future__ import annotations

from oio.common import status
from oio.common.status import StatusError
from oio.meta.messages import Condition
from oio.meta.meta2 import rows
from oio.meta.meta2.rows import Alias, Execute

ANY = "*"


def check(execute: Execute, condition: Condition, alias: Alias | None) -> None:
    """Does the condition hold of this version, or of its absence? A delete marker is an absence.

    Of an object whose hash is not known (it was appended to, or cut) no tag is the right one.

    :raises StatusError: 412 when it does not.
    """
    there = alias is not None and not alias.deleted
    tag = ""
    if there and alias is not None:
        header = rows.header(execute, alias.content)
        if header is not None and header.hash:
            tag = header.hash.hex().upper()
    state = f"the hash of the object is {tag or 'unknown'}" if there else "there is no object"
    if condition.if_match is not None and not _matches(condition.if_match, there, tag):
        raise StatusError(status.PRECONDITION_FAILED, f"If-Match does not hold: {state}")
    if condition.if_none_match is not None and _matches(condition.if_none_match, there, tag):
        raise StatusError(status.PRECONDITION_FAILED, f"If-None-Match does not hold: {state}")


def _matches(tags: list[str], there: bool, tag: str) -> bool:
    return there and (ANY in tags or (tag != "" and tag in tags))
