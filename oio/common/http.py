# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""HTTP vocabulary of the object store: ranges, content types, headers of chunks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

from oio.common.constants import CHUNK_HEADERS, OIO_VERSION

_CONTENT_RANGE = re.compile(r"^bytes (\d+)-(\d+)/(\d+)\Z")
_TOKEN = r"[^()<>@,;:\"/\[\]?={}\x00-\x20]+"
_PARAMETER = re.compile(rf'\s*;\s*({_TOKEN})\s*=\s*("(?:[^"\\]|\\.)*"|{_TOKEN})?')


def parse_content_type(raw_content_type: str) -> tuple[str, list[tuple[str, str]]]:
    """Give back the text, and its parameters.

    >>> parse_content_type('text/plain; charset="utf-8"')
    ('text/plain; charset="utf-8"', [('charset', 'utf-8')])
    """
    params = []
    for name, value in _PARAMETER.findall(raw_content_type):
        params.append((name, value[1:-1] if value.startswith('"') else value))
    return raw_content_type, params


def parse_content_range(raw_content_range: str) -> tuple[int, int, int]:
    """``bytes 0-9/100`` → ``(0, 9, 100)``. :raises ValueError: on any other form."""
    match = _CONTENT_RANGE.match(raw_content_range)
    if not match:
        raise ValueError(f"Invalid Content-Range: {raw_content_range!r}")
    return int(match[1]), int(match[2]), int(match[3])


def http_header_from_ranges(ranges: Iterable[tuple[int | None, int | None]]) -> str:
    """Value of a ``Range`` header.

    >>> http_header_from_ranges([(0, 4), (10, None), (None, 5)])
    'bytes=0-4,10-,-5'

    :raises ValueError: on an empty, negative or reversed range.
    """
    parts = []
    for start, end in ranges:
        if start is None and end is None:
            raise ValueError("a range needs a start or an end")
        if (start is not None and start < 0) or (end is not None and end < 0):
            raise ValueError("a range cannot be negative")
        if start is not None and end is not None and end < start:
            raise ValueError(f"range {start}-{end} ends before it starts")
        parts.append(f"{'' if start is None else start}-{'' if end is None else end}")
    return "bytes=" + ",".join(parts)


def ranges_from_http_header(val: str) -> list[tuple[int | None, int | None]]:
    """Inverse of :func:`http_header_from_ranges`. :raises ValueError: on invalid text."""
    if not val.startswith("bytes="):
        raise ValueError(f"Invalid Range value: {val!r}")
    ranges: list[tuple[int | None, int | None]] = []
    for part in val[len("bytes=") :].split(","):
        first, dash, last = part.strip().partition("-")
        if not dash or not (first or last):
            raise ValueError(f"Invalid Range value: {val!r}")
        if not all(not text or (text.isascii() and text.isdigit()) for text in (first, last)):
            raise ValueError(f"Invalid Range value: {val!r}")
        start = int(first) if first else None
        end = int(last) if last else None
        if start is not None and end is not None and end < start:
            raise ValueError(f"Invalid Range value: {val!r}")
        ranges.append((start, end))
    return ranges


def headers_from_object_metadata(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Headers of the upload of a chunk, without what is proper to each chunk (id, position).

    :param metadata: keys ``id``, ``version``, ``content_path``, ``chunk_method``, ``policy``,
        ``container_id``, ``full_path``, and optionally ``oio_version``, ``metachunk_hash``,
        ``metachunk_size``, ``chunk_hash``.
    :raises KeyError: when a mandatory key is missing.
    """
    headers = {
        "transfer-encoding": "chunked",
        CHUNK_HEADERS["content_id"]: str(metadata["id"]),
        CHUNK_HEADERS["content_version"]: str(metadata["version"]),
        CHUNK_HEADERS["content_path"]: quote(metadata["content_path"], ""),
        CHUNK_HEADERS["content_chunkmethod"]: metadata["chunk_method"],
        CHUNK_HEADERS["content_policy"]: metadata["policy"],
        CHUNK_HEADERS["container_id"]: metadata["container_id"],
        CHUNK_HEADERS["oio_version"]: metadata.get("oio_version") or OIO_VERSION,
        CHUNK_HEADERS["full_path"]: metadata["full_path"],
    }
    for key in ("metachunk_hash", "metachunk_size", "chunk_hash"):
        value = metadata.get(key)
        if value is not None:
            headers[CHUNK_HEADERS[key]] = str(value)
    return headers


def get_addr(host: str, port: int | str) -> str:
    """``host:port``, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"


class HeadersDict(dict[str, str]):
    """Dictionary whose keys are title-cased when set, read or removed."""

    def __init__(self, headers: Any = None, **kwargs: Any) -> None:
        super().__init__()
        self.update(headers or {})
        self.update(kwargs)

    def update(self, data: Any = (), **kwargs: Any) -> None:  # type: ignore[override]
        """Set several keys."""
        items = data.items() if hasattr(data, "items") else data
        for key, value in [*items, *kwargs.items()]:
            self[key.title()] = value

    def __setitem__(self, key: str, value: Any) -> None:
        if value is None:
            super().pop(key.title(), None)
        else:
            super().__setitem__(key.title(), value if isinstance(value, str) else str(value))

    def __getitem__(self, key: str) -> str:
        return super().__getitem__(key.title())

    def __delitem__(self, key: str) -> None:
        super().__delitem__(key.title())

    def get(self, key: str, default: Any = None) -> Any:
        """Value of a key, whatever its case."""
        return super().get(key.title(), default)

    def pop(self, key: str, *default: Any) -> Any:  # type: ignore[override]
        """Remove a key, whatever its case."""
        return super().pop(key.title(), *default)


def __getattr__(name: str) -> Any:
    if name == "CustomHttpConnection":
        # Former place of the class (deprecated); loaded when asked for.
        from oio.common.http_eventlet import CustomHttpConnection

        return CustomHttpConnection
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
