# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""One request as the routes see it: decoded parameters, flags, deadline, designated container and object.

Everything that comes from outside is checked here once; what is wrong is a :class:`StatusError` 400 that names the
field. Nothing is parsed before a route asks for it.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, unquote_to_bytes

import msgspec

from oio.common import status
from oio.common.status import StatusError
from oio.common.utils import cid_from_name
from oio.common.variables import FALSE_WORDS, TRUE_WORDS
from oio.http.messages import Request, Response

if TYPE_CHECKING:
    from oio.proxy.app import Proxy

ACCOUNT_MAX_BYTES = 63
REFERENCE_MAX_BYTES = 1023
PATH_MAX_BYTES = 1023

#: Numbers that identify versions and sizes are stored as signed 64-bit integers.
INT64_MAX = (1 << 63) - 1

JSON_HEADERS = [("Content-Type", "application/json")]

_CID = re.compile(r"^[0-9A-Fa-f]{64}(?:\.[0-9]+)?\Z")
_CID_PREFIX = re.compile(r"^[0-9A-Fa-f]{1,4}\Z")
_HEX = re.compile(r"^(?:[0-9A-Fa-f]{2})+\Z")
_NUMBER = re.compile(r"^[+-]?[0-9]{1,24}\Z", re.ASCII)
_UNRESERVED = re.compile(r"^[A-Za-z0-9_.~\-]*\Z")
# Characters of a header name (RFC 9110, token), but for '%' which announces an escape.
_HEADER_NAME_SAFE = "!#$&'*+-.^_`|~"
_METADATA_NAMES = frozenset(
    {
        "chunk-method", "ctime", "mtime", "deleted", "hash", "hash-method", "id", "length", "mime-type", "name",
        "policy", "size", "version",
    }
)  # fmt: skip

_decode_json = msgspec.json.Decoder().decode
encode_json = msgspec.json.Encoder().encode


class Target(NamedTuple):
    """The container that a request designates; names are empty when only the id was given."""

    cid: str
    account: str
    name: str


class Errand:
    """A call to a backend that is not quite the one that the client asked for.

    It keeps the request id and the origin; other rights, other services or another deadline may go with it.
    """

    __slots__ = ("_call", "_deadline", "admin", "force_master", "only", "origin", "prefer_slave", "reqid")

    def __init__(
        self, call: Call, *, admin: bool | None = None, only: list[str] | None = None, grace_s: float | None = None
    ) -> None:
        """
        :param admin: bypass the modes of the namespace; None as the client asked.
        :param only: services to contact, and no other; None to follow the directory.
        :param grace_s: time of its own, for what must be done even after the deadline of the client.
        """
        self._call = call
        self._deadline = None if grace_s is None else time.monotonic() + grace_s
        self.admin = call.admin if admin is None else admin
        self.only: list[str] = only or []
        self.force_master = call.force_master
        self.prefer_slave = call.prefer_slave
        self.origin = call.origin
        self.reqid = call.reqid

    def timeout_s(self, at_most_s: float) -> float:
        """Time left for one more exchange with a backend. :raises StatusError: 504 when the deadline is over."""
        if self._deadline is None:
            return self._call.timeout_s(at_most_s)
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise StatusError(status.GATEWAY_TIMEOUT, "deadline reached")
        return min(left, at_most_s)

    def measure(self, name: str, seconds: float) -> None:
        """Add to a measure of the request."""
        self._call.measure(name, seconds)


class Call:
    """A request being served."""

    __slots__ = (
        "_args",
        "_deadline",
        "_perf",
        "_target",
        "headers",
        "proxy",
        "reqid",
        "request",
    )

    def __init__(self, proxy: Proxy, request: Request) -> None:
        self.proxy = proxy
        self.request = request
        self.headers = request.headers
        self.reqid = request.reqid
        self._args: dict[str, str] | None = None
        self._deadline: float | None = None
        self._target: Target | None = None
        self._perf: dict[str, int] | None = {} if "x-oio-perfdata" in request.headers else None

    # --- query string ---------------------------------------------------------------------------

    @property
    def args(self) -> dict[str, str]:
        """Decoded parameters. :raises StatusError: 400 when one is not UTF-8."""
        args = self._args
        if args is None:
            args = self._args = parse_args(self.request.query_string)
        return args

    def object_name(self) -> str:
        """Name of an object to write. :raises StatusError: 400 when it is missing or too long."""
        path = self.required("path")
        if len(path) > PATH_MAX_BYTES // 4 and len(path.encode()) > PATH_MAX_BYTES:
            raise bad_request(f"Invalid parameter 'path', more than {PATH_MAX_BYTES} bytes")
        return path

    def required(self, name: str) -> str:
        """A parameter that must be there. :raises StatusError: 400 when it is missing or empty."""
        value = self.args.get(name)
        if not value:
            raise bad_request(f"Missing parameter '{name}'")
        return value

    def number(self, name: str, default: int) -> int:
        """An integer parameter. :raises StatusError: 400 when it is not one."""
        text = self.args.get(name)
        if text is None or text == "":
            return default
        if not _NUMBER.match(text):
            raise bad_request(f"Invalid parameter '{name}', not a number")
        return int(text)

    def optional_number(self, name: str) -> int | None:
        """An integer parameter of 64 bits, None when absent. :raises StatusError: 400 when it is not one."""
        text = self.args.get(name)
        if text is None or text == "":
            return None
        if not _NUMBER.match(text) or abs(int(text)) > INT64_MAX:
            raise bad_request(f"Invalid parameter '{name}', not a number")
        return int(text)

    def boolean(self, name: str, default: bool = False) -> bool:
        """A boolean parameter; any other text gives the default."""
        return _boolean(self.args.get(name, ""), default)

    def flag(self, name: str) -> bool:
        """An option given in the query string, else in ``X-oio-action-mode``."""
        text = (self._args or self.args).get(name)
        if text is not None:
            return _boolean(text)
        mode = self.headers.get("x-oio-action-mode")
        return mode is not None and name in [word.strip() for word in mode.lower().split(",")]

    # --- what is designated -----------------------------------------------------------------------

    @property
    def target(self) -> Target:
        """The container. :raises StatusError: 400 when it is not designated, or badly."""
        target = self._target
        if target is None:
            target = self._target = self._find_target()
        return target

    def _find_target(self) -> Target:
        args = self.args
        account, name, cid = args.get("acct", ""), args.get("ref", ""), args.get("cid", "")
        if cid:
            _check_names(account, name)
            if _CID.match(cid):
                return Target(cid[:64].upper(), account, name)
            if _CID_PREFIX.match(cid):
                return Target(cid.upper().ljust(64, "0"), account, name)
            raise bad_request("Invalid oio url: parameter 'cid' is not a container id")
        if not account or not name:
            missing = "acct" if not account else "ref"
            raise bad_request(f"Invalid oio url: missing parameter '{missing}' (or 'cid')")
        return self.named_target(account, name)

    @staticmethod
    def named_target(account: str, name: str) -> Target:
        """A container by its names. :raises StatusError: 400 when one is too long."""
        _check_names(account, name)
        return Target(cid_from_name(account, name), account, name)

    def version(self) -> int:
        """Version of the object in the query string, 0 when there is none."""
        return (self.optional_number("version") or 0) if "version" in (self._args or self.args) else 0

    def content_id(self) -> str:
        """Content id of the query string in upper case, '' when there is none."""
        text = self.args.get("content", "")
        if text and not _HEX.match(text):
            raise bad_request("Invalid parameter 'content', not an even number of hexadecimal digits")
        return text.upper()

    def container(self) -> dict[str, Any]:
        """The container, as fields of the messages for the metadata services."""
        target = self.target
        return {"cid": target.cid, "account": target.account, "name": target.name}

    def designation(self) -> dict[str, Any]:
        """The object, as fields of the messages for meta2. :raises StatusError: 400 without path nor content."""
        target = self.target
        path, content_id = self.args.get("path", ""), self.content_id()
        version = self.version()
        if not path and not content_id:
            raise bad_request("Missing parameter 'path' (or 'content')")
        return {
            "cid": target.cid,
            "account": target.account,
            "name": target.name,
            "path": path,
            "version": version if path else 0,
            "content_id": content_id,
        }

    # --- headers ------------------------------------------------------------------------------------

    @property
    def admin(self) -> bool:
        """Does the request bypass the modes of the namespace?"""
        text = self.headers.get("x-oio-admin")
        return text is not None and _boolean(text)

    @property
    def force_master(self) -> bool:
        """Shall the master answer, whatever else is preferred?"""
        return self.header_boolean("x-oio-force-master")

    @property
    def prefer_slave(self) -> bool:
        """Is a copy of a base good enough to read, though it may be late?"""
        return self.header_boolean("x-oio-prefer-slave")

    @property
    def only(self) -> list[str]:
        """Services that the request wants and no other, [] when the directory decides."""
        text = self.args.get("service_id")
        return [service for service in text.split(",") if service] if text else []

    @property
    def origin(self) -> str:
        """Who is at the source of the request, for events."""
        return self.headers.get("user-agent", "")

    def header_boolean(self, name: str) -> bool:
        """A boolean header, false when absent."""
        text = self.headers.get(name)
        return text is not None and _boolean(text)

    def header_number(self, name: str) -> int | None:
        """An integer header, None when absent. :raises StatusError: 400 when it is not one."""
        text = self.headers.get(name)
        if text is None:
            return None
        if not _NUMBER.match(text.strip()) or abs(int(text)) > INT64_MAX:
            raise bad_request(f"Invalid header '{name}', not a number")
        return int(text)

    def timeout_s(self, at_most_s: float) -> float:
        """Time left for one more exchange with a backend. :raises StatusError: 504 when the deadline is over."""
        now = time.monotonic()
        deadline = self._deadline
        if deadline is None:
            text = self.headers.get("x-oio-timeout")
            if text is None:
                allowed = self.proxy.variables["proxy.request.max_delay"]
            else:
                try:
                    allowed = float(text) / 1e6
                except ValueError:
                    raise bad_request("Invalid header 'x-oio-timeout', not a number") from None
                if not 0 <= allowed < 1e9:
                    raise bad_request("Invalid header 'x-oio-timeout', out of bounds")
            deadline = self._deadline = now + allowed
        left = deadline - now
        if left <= 0:
            raise StatusError(status.GATEWAY_TIMEOUT, "deadline reached")
        return left if left < at_most_s else at_most_s

    # --- body ------------------------------------------------------------------------------------------

    def raw_body(self) -> bytes:
        """The whole body."""
        return self.request.read_all(self.proxy.body_max)

    def json(self) -> Any:
        """The body as JSON, None when it is empty. :raises StatusError: 400 when it cannot be parsed."""
        return self.json_of(self.raw_body())

    @staticmethod
    def json_of(body: bytes) -> Any:
        """A body as JSON, None when it is empty. :raises StatusError: 400 when it cannot be parsed."""
        if not body:
            return None
        try:
            return _decode_json(body)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as exc:
            raise bad_request(f"Invalid JSON: {exc}") from None

    def json_object_or_nothing(self) -> dict[str, Any]:
        """The body as an object, an empty one when there is no body. :raises StatusError: 400."""
        body = self.json()
        if body is None:
            return {}
        if not isinstance(body, dict):
            raise bad_request("Invalid body: an object is expected")
        return body

    def json_object(self) -> dict[str, Any]:
        """The body as an object. :raises StatusError: 400 when it is anything else."""
        body = self.json()
        if not isinstance(body, dict):
            raise bad_request("Invalid body: an object is expected")
        return body

    def named_items(self, field: str, maximum: int) -> list[dict[str, Any]]:
        """The array of a bulk request: objects with a ``name``.

        :raises StatusError: 400 when it is anything else, 413 when there are more than ``maximum``.
        """
        items = self.json_object().get(field)
        if not isinstance(items, list) or not items:
            raise bad_request(f"Invalid '{field}': a non-empty array is expected")
        if len(items) > maximum:
            raise StatusError(status.PAYLOAD_TOO_LARGE, f"More than {maximum} {field}")
        for item in items:
            name = item.get("name") if isinstance(item, dict) else None
            if not isinstance(name, str) or not name:
                raise bad_request(f"Invalid '{field}': each item needs a 'name'")
        return items

    # --- measures -----------------------------------------------------------------------------------

    def measure(self, name: str, seconds: float) -> None:
        """Add to a measure of the request, when the client asked for them."""
        if self._perf is not None:
            self._perf[name] = self._perf.get(name, 0) + round(seconds * 1e6)

    def perfdata(self) -> str:
        """The measures as the text of their header, '' when none was asked for."""
        return ",".join(f"{name}={value}" for name, value in self._perf.items()) if self._perf else ""


def parse_args(query: str) -> dict[str, str]:
    """Decode a query string; the first value of a name wins. :raises StatusError: 400 when it is not UTF-8."""
    args: dict[str, str] = {}
    if not query:
        return args
    for part in query.split("&"):
        name, _, value = part.partition("=")
        if "%" in name or "+" in name:
            name = _unescape(name, "name of a parameter")
        if name in args:
            continue
        if "%" in value or "+" in value or not value.isascii():
            value = _unescape(value, name)
            if "\0" in value:
                raise bad_request(f"Invalid parameter '{name}', it contains a NUL")
        args[name] = value
    return args


def _check_names(account: str, name: str) -> None:
    """Bounds of the names, in bytes of UTF-8 (at most 4 for each character)."""
    if len(account) > ACCOUNT_MAX_BYTES // 4 and len(account.encode()) > ACCOUNT_MAX_BYTES:
        raise bad_request(f"Invalid parameter 'acct', more than {ACCOUNT_MAX_BYTES} bytes")
    if len(name) > REFERENCE_MAX_BYTES // 4 and len(name.encode()) > REFERENCE_MAX_BYTES:
        raise bad_request(f"Invalid parameter 'ref', more than {REFERENCE_MAX_BYTES} bytes")
    if "\0" in account or "\0" in name:
        raise bad_request("Invalid name, it contains a NUL")


def _unescape(text: str, name: str) -> str:
    try:
        return unquote_to_bytes(text.replace("+", " ").encode("latin-1")).decode()
    except UnicodeError:
        raise bad_request(f"Invalid parameter '{name}', not UTF-8") from None


def _boolean(text: str, default: bool = False) -> bool:
    word = text.lower()
    if word in TRUE_WORDS:
        return True
    return default and word not in FALSE_WORDS


def bad_request(message: str) -> StatusError:
    """The error of a request that is wrong."""
    return StatusError(status.BAD_REQUEST, message)


def escape(text: str) -> str:
    """URI-escape the value of a header."""
    return text if _UNRESERVED.match(text) else quote(text, safe="")


def escape_header_name(key: str) -> str:
    """Make a free text fit in the name of a header: what may not stand there is URI-escaped.

    The names of object metadata are escaped too: a property called ``size`` must not pass for the size.
    """
    if key.lower() in _METADATA_NAMES:
        return f"%{ord(key[0]):02X}{key[1:]}"
    return key if _UNRESERVED.match(key) else quote(key, safe=_HEADER_NAME_SAFE)


def header_safe(text: str) -> str:
    """Escape only what would break a header (and the escape sign itself)."""
    return text if text.isascii() and text.isprintable() and "%" not in text else quote(text, safe="/;=,+ \"'()")


def json_reply(value: Any, http_status: int = 200) -> Response:
    """An answer with a JSON body."""
    return Response(http_status, encode_json(value), JSON_HEADERS)


def is_hex(text: str) -> bool:
    """Is this a non-empty text of an even number of hexadecimal digits?"""
    return _HEX.match(text) is not None


def string_map(value: Any, field: str, null: str | None = None) -> dict[str, str]:
    """Check an object of strings from a body; ``null`` values become ``null`` when that is given.

    :raises StatusError: 400 naming the field.
    """
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise bad_request(f"Invalid '{field}': an object is expected")
    result: dict[str, str] = {}
    for key, text in value.items():
        if text is None and null is not None:
            text = null
        if not isinstance(text, str):
            raise bad_request(f"Invalid '{field}': the value of {key!r} is not a string")
        if not key:
            raise bad_request(f"Invalid '{field}': empty name")
        result[key] = text
    return result


def string_list(value: Any, field: str) -> list[str]:
    """Check an array of strings from a body. :raises StatusError: 400 naming the field."""
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise bad_request(f"Invalid {field}: an array of strings is expected")
    return value
