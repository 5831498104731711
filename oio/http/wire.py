# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Parsing of message heads: start line, headers, trailers, and the framing they announce (RFC 9112).

Why not llhttp: measured on a head of nine headers, ``httptools`` with its callbacks and this parser cost
the same (2.5 µs), but this one shares one buffer with the body readers, learns each header name once (a
dictionary look-up then validates, lower-cases and interns it) and checks all bytes of the head in one C
call. Tests compare every verdict with llhttp's: whatever is accepted here is accepted there, with the same
result.

Strict on purpose: no bare CR or LF, no folded header, no blank before a colon, no control character, no
repeated ``Host``, ``Content-Length`` or ``Transfer-Encoding``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from oio.http.errors import HeadError

HEADERS_COUNT_MAX = 1024
"""More headers than this in one message is an attack or a bug."""

_NAMES_LEARNT_MAX = 4096
"""Bound of the header name cache, so that random names cannot make it grow."""

_LEGAL = bytes(c for c in range(256) if (c >= 32 and c != 127) or c == 9)
_HEX = b"0123456789abcdefABCDEF"
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_BAD_TARGET = re.compile(r"[^\x21-\x7e]")
_CHUNK_EXTENSION = re.compile(
    rb"(?:;[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
    rb"(?:=(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+|\"[\t \x21\x23-\x5b\x5d-\x7e]*\"))?)*"
)
_SINGLETONS = frozenset({"host", "content-length", "transfer-encoding"})
_FORBIDDEN_TRAILERS = frozenset({"content-length", "transfer-encoding", "host", "trailer"})
#: Longest name of a method, in bytes. Services have shorter limits of their own, and their own answers.
METHOD_MAX_BYTES = 256
_METHODS = {
    name: name
    for name in ("GET", "HEAD", "PUT", "POST", "DELETE", "OPTIONS", "COPY", "LINK", "PATCH", "TRACE")
}

_USUAL_NAMES = (
    "host", "user-agent", "accept", "accept-encoding", "connection", "content-length", "content-type",
    "transfer-encoding", "trailer", "expect", "range", "date", "x-oio-req-id",
)  # fmt: skip

_names: dict[str, str] = {
    spelling: name for name in _USUAL_NAMES for spelling in (name, name.title())
}


class HeaderDict(dict[str, str]):
    """Headers of an answer: names are stored in lower case, and looked up whatever their case."""

    raw: bytes | bytearray = b""
    """The head they come from, for the rare names whose case means something."""

    def spelled(self) -> list[tuple[str, str]]:
        """Give the headers as they came: names in their own case, repeated ones apart."""
        if not self.raw:
            return list(self.items())
        lines = self.raw.decode("latin-1").split("\r\n")[1:]
        return [(name, value.strip(" \t")) for name, _, value in [line.partition(":") for line in lines]]

    def __getitem__(self, name: str) -> str:
        return dict.__getitem__(self, name.lower())

    def __setitem__(self, name: str, value: str) -> None:
        dict.__setitem__(self, name.lower(), value)

    def __delitem__(self, name: str) -> None:
        dict.__delitem__(self, name.lower())

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and dict.__contains__(self, name.lower())

    def get(self, name: str, default: Any = None) -> Any:
        """Give the value of a header, or `default`."""
        return dict.get(self, name.lower(), default)

    def pop(self, name: str, *default: Any) -> Any:
        """Remove a header and give its value."""
        return dict.pop(self, name.lower(), *default)

    def setdefault(self, name: str, default: str = "") -> str:
        """Give the value of a header after having set it if it was missing."""
        return dict.setdefault(self, name.lower(), default)


def parse_head(head: bytes | bytearray) -> tuple[str, dict[str, str]]:
    """Split a head (without its final empty line) into start line and headers.

    Names come in lower case, values in latin-1 without the blanks around; values of a repeated name are
    joined by ", ". Raises `HeadError`.
    """
    lines = head.decode("latin-1").split("\r\n")
    start = lines[0]
    del lines[0]
    # The illegal bytes of a legal head are exactly the line ends: one comparison finds control characters,
    # bare CR and bare LF at once (a bare one makes the sequence differ from CRLF × number of splits).
    if head.translate(None, _LEGAL) != b"\r\n" * len(lines):
        raise HeadError("illegal character in head")
    if len(lines) > HEADERS_COUNT_MAX:
        raise HeadError("too many headers", 431)
    headers: dict[str, str] = {}
    names = _names
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon:
            raise HeadError("header without a colon")
        try:
            name = names[name]
        except KeyError:
            name = _learn(name)
        if name in headers:
            if name in _SINGLETONS:
                raise HeadError(f"repeated header {name}")
            headers[name] = headers[name] + ", " + value.strip(" \t")
        else:
            headers[name] = value.strip(" \t")
    if "transfer-encoding" in headers and b"\t" in head:
        for line in lines:
            # Parsers disagree on a tab around this value, and requests are smuggled through such disagreements.
            if "\t" in line and line[:17].lower() == "transfer-encoding":
                raise HeadError("unsupported Transfer-Encoding")
    return start, headers


def parse_request_line(line: str) -> tuple[str, str, bool]:
    """Give (method, target, is HTTP/1.1) of a request line. Raises `HeadError`."""
    try:
        method, target, version = line.split(" ")
    except ValueError:
        raise HeadError("malformed request line") from None
    if method not in _METHODS and (len(method) > METHOD_MAX_BYTES or not _TOKEN.fullmatch(method)):
        raise HeadError("malformed method")
    if version == "HTTP/1.1":
        is_11 = True
    elif version == "HTTP/1.0":
        is_11 = False
    elif re.fullmatch(r"HTTP/[0-9]\.[0-9]", version):
        raise HeadError("unsupported HTTP version", 505)
    else:
        raise HeadError("malformed HTTP version")
    if _BAD_TARGET.search(target):
        raise HeadError("illegal character in target")
    if not target.startswith("/"):
        target = _other_target(method, target)
    return method, target, is_11


def parse_status_line(line: str) -> tuple[bool, int, str]:
    """Give (is HTTP/1.1, status, reason) of a status line. Raises `HeadError`."""
    version = line[:9]
    code = line[9:12]
    if version == "HTTP/1.1 ":
        is_11 = True
    elif version == "HTTP/1.0 ":
        is_11 = False
    else:
        raise HeadError("malformed status line")
    if len(code) != 3 or not (code.isascii() and code.isdigit()) or line[12:13] not in ("", " "):
        raise HeadError("malformed status line")
    status = int(code)
    if status < 100:
        raise HeadError("malformed status line")
    return is_11, status, line[13:]


def parse_trailers(block: bytes | bytearray) -> dict[str, str]:
    """Parse trailer lines (without the final empty line). Raises `HeadError`."""
    _, trailers = parse_head(b"\r\n" + block)
    for name in trailers:
        if name in _FORBIDDEN_TRAILERS:
            raise HeadError(f"forbidden trailer {name}")
    return trailers


def parse_length(text: str) -> int:
    """Parse the value of Content-Length: digits and nothing else. Raises `HeadError`."""
    if not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise HeadError("malformed Content-Length")
    return int(text)


def parse_chunk_size(line: bytes | bytearray) -> int:
    """Parse the line before a chunk's data (without its CRLF); extensions are checked and dropped.

    Raises `HeadError`.
    """
    if line.translate(None, _HEX):
        semicolon = line.find(b";")
        if semicolon < 1 or not _CHUNK_EXTENSION.fullmatch(line, semicolon):
            raise HeadError("malformed chunk size")
        line = line[:semicolon]
        if line.translate(None, _HEX):
            raise HeadError("malformed chunk size")
    if not 0 < len(line) <= 15:
        raise HeadError("malformed chunk size")
    return int(line, 16)


def request_framing(headers: dict[str, str], is_11: bool) -> tuple[int | None, bool]:
    """Give (Content-Length or None, is chunked) of a request. Raises `HeadError`."""
    coding = headers.get("transfer-encoding")
    text = headers.get("content-length")
    if coding is None:
        return (None if text is None else parse_length(text)), False
    if text is not None:
        raise HeadError("both Content-Length and Transfer-Encoding")
    if not is_11:
        raise HeadError("Transfer-Encoding in HTTP/1.0")
    if coding.lower() != "chunked":
        raise HeadError("unsupported Transfer-Encoding")
    return None, True


def looks_broken(data: bytes | bytearray) -> bool:
    """Tell whether an incomplete head can already be refused, so that its sender need not wait for a
    timeout.
    """
    pairs = data.count(b"\r\n")
    if data.count(b"\n") != pairs:
        return True
    if data.count(b"\r") - data.endswith(b"\r") != pairs:
        return True
    return bool(data.translate(None, _LEGAL + b"\r\n"))


def format_fields(fields: Iterable[tuple[str, object]]) -> str:
    """Format headers or trailers, one line each; the caller checks with `check_head` that nothing was
    injected.
    """
    return "".join([f"{name}: {value}\r\n" for name, value in fields])


def check_head(text: str, lines_count: int) -> None:
    """Raise ValueError when a header value smuggles a line: `text` must have exactly `lines_count` line
    ends.
    """
    if text.count("\n") != lines_count or text.count("\r") != lines_count or "\0" in text:
        raise ValueError("line break or NUL in a header")


def _learn(name: str) -> str:
    if not _TOKEN.fullmatch(name):
        raise HeadError("malformed header name")
    lower = name.lower()
    if len(_names) < _NAMES_LEARNT_MAX:
        _names[name] = lower
    return lower


def _other_target(method: str, target: str) -> str:
    """Reduce the absolute form to the origin form; accept the asterisk form for OPTIONS only."""
    if target == "*" and method == "OPTIONS":
        return target
    scheme, separator, rest = target.partition("://")
    if separator and scheme.lower() in ("http", "https") and rest and rest[0] not in "/?#":
        slash = min((i for i in (rest.find("/"), rest.find("?")) if i >= 0), default=len(rest))
        path = rest[slash:]
        return path if path.startswith("/") else "/" + path
    raise HeadError("malformed target")
