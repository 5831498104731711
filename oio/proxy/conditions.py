# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""``If-Match`` and ``If-None-Match`` (RFC 9110, section 13.1), as the condition that meta2 evaluates.

The tag of an object is its hash in hexadecimal. Clients may leave the quotes out, since the rest of the API shows
hashes without them. Tags are compared as strong ones: a weak tag, or one that is not the form of a hash, is valid
and matches no object.
"""

from __future__ import annotations

import re

from oio.meta.messages import Condition
from oio.proxy.call import Call, bad_request, is_hex

#: More tags than this in one header are a mistake.
TAGS_MAX = 64

ANY = "*"

# An entity tag (quoted, perhaps weak) or a bare hash; commas may stand in quotes.
_TAG = re.compile(r'[ \t]*(?:(?P<weak>W/)?"(?P<quoted>[\x21\x23-\x7e\x80-\xff]*)"|(?P<bare>[0-9A-Fa-f]+))[ \t]*')


def condition_of(call: Call) -> Condition | None:
    """What the request demands of the object in place, None when it demands nothing.

    :raises StatusError: 400 naming the header that is malformed.
    """
    headers = call.headers
    match, none_match = headers.get("if-match"), headers.get("if-none-match")
    if match is None and none_match is None:
        return None
    return Condition(
        if_match=None if match is None else parse_tags("If-Match", match),
        if_none_match=None if none_match is None else parse_tags("If-None-Match", none_match),
    )


def parse_tags(name: str, text: str) -> list[str]:
    """Hashes of a header in upper case, or ``["*"]``. :raises StatusError: 400 when it is malformed."""
    if text.strip() == ANY:
        return [ANY]
    tags: list[str] = []
    count = position = 0
    while True:
        found = _TAG.match(text, position)
        if found is None:
            raise bad_request(f"Invalid header '{name}': '*' or a list of entity tags is expected")
        count += 1
        if count > TAGS_MAX:
            raise bad_request(f"Invalid header '{name}': more than {TAGS_MAX} tags")
        tag = found["bare"] or found["quoted"]
        if not found["weak"] and is_hex(tag):
            tags.append(tag.upper())
        position = found.end()
        if position == len(text):
            return tags
        if text[position] != ",":
            raise bad_request(f"Invalid header '{name}': tags are separated by commas")
        position += 1
