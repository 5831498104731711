# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""``HttpApi``: one request to a JSON service, from keywords to decoded body.

Every client of the package (proxy, account, rdir…) stands on it. A call either returns the response and its
body, or raises: ``StatusMessageException`` for an answer of 400 and above, ``OioNetworkException`` or
``OioTimeout`` when there was no answer, ``DeadlineReached`` when there was no time left to ask.
"""

from __future__ import annotations

import json as std_json
import time
from collections.abc import Mapping, MutableMapping
from typing import Any
from urllib.parse import quote_plus

import msgspec

from oio.common.constants import (
    ADMIN_HEADER,
    CONNECTION_TIMEOUT,
    FORCEMASTER_HEADER,
    PERFDATA_HEADER,
    READ_TIMEOUT,
    REQID_HEADER,
    STRLEN_REQID,
    TIMEOUT_HEADER,
)
from oio.common.easy_value import true_value
from oio.common.exceptions import DeadlineReached, OioException, from_response
from oio.common.http_urllib3 import (
    URLLIB3_REQUESTS_KWARGS,
    answers_as_they_come,
    get_pool_manager,
    oio_exception_from_httperror,
    pool_errors,
    pool_timeout,
    timeout_bounds,
)
from oio.common.logger import get_logger
from oio.http.client import HttpClientError, HttpPool

# Part of the remaining time that the service is told: it must give up before we do.
_TOLD_PART_OF_TIMEOUT = 0.99
_MICROSECONDS = 1000000
_FORWARDED_KWARGS = frozenset(URLLIB3_REQUESTS_KWARGS) - {"headers", "body", "timeout"}

# Last token of the POST routes that change nothing: the pool may send them again when a kept connection
# proves dead.
_READING_POSTS = frozenset({"get_properties", "poll", "prepare", "prepare2", "spare"})

_decode_json = msgspec.json.Decoder().decode
_encode_json = msgspec.json.Encoder().encode

# Keywords of the methods of clients that are for the HTTP layer, not for the body of the request.
_REQUEST_KEYWORDS = frozenset(
    {
        "admin_mode",
        "autocreate",
        "cache",
        "connection_timeout",
        "deadline",
        "force_master",
        "headers",
        "perfdata",
        "pool_manager",
        "read_timeout",
        "reqid",
        "request_attempts",
        "timeout",
        "tls",
        "write_timeout",
    }
)


class HttpApi:
    """Base of the clients of JSON services.

    >>> api = HttpApi(endpoint="http://127.0.0.1:6000", service_type="proxy")
    >>> resp, body = api._request("GET", "/v3.0/OPENIO/conscience/info")  # doctest: +SKIP

    :param endpoint: base of the URLs of ``_request``.
    :param pool_manager: connections to share; our ``HttpPool`` or a urllib3 ``PoolManager``.
    :param connection: value of the ``Connection`` header.
    :param service_type: key of the figures in ``perfdata``.
    :keyword admin_mode: send every request as an administrator.
    :keyword force_master: have every request served by the master of the base.
    """

    def __init__(
        self,
        endpoint: str | None = None,
        pool_manager: Any = None,
        connection: str = "keep-alive",
        service_type: str = "unknown",
        **kwargs: Any,
    ) -> None:
        self.endpoint = endpoint
        self.pool_manager = pool_manager or get_pool_manager(**kwargs)
        self.admin_mode = true_value(kwargs.get("admin_mode", False))
        self.force_master = true_value(kwargs.get("force_master", False))
        self.connection = connection
        self.service_type = service_type
        if not hasattr(self, "logger"):
            self.logger = kwargs.get("logger") or get_logger({}, "oio.api")

    def _request(self, method: str, url: str, endpoint: str | None = None, **kwargs: Any) -> tuple[Any, Any]:
        """Send a request to a path below the endpoint."""
        endpoint = endpoint or self.endpoint
        if not endpoint:
            raise ValueError("endpoint is not set")
        return self._direct_request(method, f"{endpoint.rstrip('/')}/{url.lstrip('/')}", **kwargs)

    def _direct_request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, Any] | None = None,
        data: bytes | str | None = None,
        json: Any = None,
        params: Mapping[str, Any] | None = None,
        admin_mode: Any = False,
        pool_manager: Any = None,
        force_master: Any = False,
        **kwargs: Any,
    ) -> tuple[Any, Any]:
        """Send a request to a complete URL.

        :returns: the response (``status``, ``headers``, ``data``), and its body: the decoded JSON, or the
            raw bytes when it is empty or not JSON.
        """
        sent = {}
        if headers:
            for name, value in headers.items():
                sent[name] = value if type(value) is str else _header_text(value)
        if json:
            data = _encode_json(json)
            sent["Content-Type"] = "application/json"
        if self.admin_mode or (admin_mode and true_value(admin_mode)):
            sent[ADMIN_HEADER] = "1"
        if self.force_master or (force_master and true_value(force_master)):
            sent[FORCEMASTER_HEADER] = "1"
        if "Connection" not in sent:
            sent["Connection"] = self.connection
        timeout = self._set_timeout(sent, kwargs)
        reqid = kwargs.get("reqid")
        if reqid:
            if len(reqid) > STRLEN_REQID:
                self.logger.warning("Request id truncated to %d characters: %s", STRLEN_REQID, reqid)
                reqid = reqid[:STRLEN_REQID]
            sent[REQID_HEADER] = reqid
        idempotent = True if method == "POST" and only_reads(url) else None
        if params:
            query = encode_query(params)
            if query:
                url = f"{url}{'&' if '?' in url else '?'}{query}"
        perfdata = kwargs.get("perfdata")
        if perfdata is not None:
            sent[PERFDATA_HEADER] = "enabled"
            start_s = time.monotonic()
        pool = pool_manager or self.pool_manager
        resp = self._send(pool, method, url, sent, data, timeout, idempotent, kwargs)
        if perfdata is not None:
            self._add_perfdata(perfdata, resp, time.monotonic() - start_s)
        body = resp.data
        if body:
            body = _decode_body(body)
        if resp.status >= 400:
            error = from_response(resp, body)
            error.reqid = reqid
            raise error
        return resp, body

    def _send(
        self,
        pool: Any,
        method: str,
        url: str,
        headers: dict[str, str],
        data: bytes | str | None,
        timeout: Any,
        idempotent: bool | None,
        kwargs: dict[str, Any],
    ) -> Any:
        if isinstance(pool, HttpPool):
            if type(timeout) is not tuple:
                timeout = timeout_bounds(timeout)
            try:
                return pool.request(
                    method,
                    url,
                    headers,
                    data,
                    timeout=timeout,
                    deadline=kwargs.get("deadline"),
                    idempotent=idempotent,
                )
            except (HttpClientError, ValueError) as exc:
                # ValueError: something in the address, the target or a header cannot be sent as it is.
                oio_exception_from_httperror(exc, headers.get(REQID_HEADER), url)
        if type(timeout) is tuple:
            timeout = pool_timeout(pool, *timeout)
        kept = {name: kwargs[name] for name in _FORWARDED_KWARGS & kwargs.keys()}
        if "retries" not in kept:
            kept.update(answers_as_they_come(pool))
        # Left as text it would be sent as Latin-1, or refused; our services read UTF-8.
        given = {name: value if value.isascii() else value.encode() for name, value in headers.items()}
        try:
            return pool.request(method, url, headers=given, body=data, timeout=timeout, **kept)
        except pool_errors() as exc:
            oio_exception_from_httperror(exc, headers.get(REQID_HEADER), url)

    def _set_timeout(self, headers: dict[str, str], kwargs: dict[str, Any]) -> Any:
        """Compute the timeout of the request, and tell it to the service in a header."""
        connect_s = kwargs.get("connection_timeout")
        connect_s = CONNECTION_TIMEOUT if connect_s is None else float(connect_s)
        read_s = kwargs.get("read_timeout")
        deadline = kwargs.get("deadline")
        if deadline is not None:
            left_s = deadline - time.monotonic()
            if left_s <= 0.0:
                raise DeadlineReached()
            if read_s is not None:
                left_s = min(left_s, float(read_s))
            headers[TIMEOUT_HEADER] = str(int(left_s * _TOLD_PART_OF_TIMEOUT * _MICROSECONDS))
            return min(connect_s, left_s), left_s
        timeout = kwargs.get("timeout")
        if timeout is not None:
            if isinstance(timeout, (int, float, str)):
                timeout = float(timeout)
                headers[TIMEOUT_HEADER] = str(int(timeout * _MICROSECONDS))
                return timeout, timeout
            _connect_s, read_s = timeout_bounds(timeout)
            if read_s is not None:
                headers[TIMEOUT_HEADER] = str(int(read_s * _MICROSECONDS))
            return timeout
        read_s = READ_TIMEOUT if read_s is None else float(read_s)
        headers[TIMEOUT_HEADER] = str(int(read_s * _MICROSECONDS))
        return connect_s, read_s

    def _add_perfdata(self, perfdata: MutableMapping[str, Any], resp: Any, elapsed_s: float) -> None:
        figures = perfdata.setdefault(self.service_type, {})
        figures["overall"] = figures.get("overall", 0.0) + elapsed_s
        told = resp.headers.get(PERFDATA_HEADER)
        if not told:
            return
        for item in told.split(","):
            name, _, value = item.strip().partition("=")
            try:
                figures[name] = figures.get(name, 0.0) + float(value) / _MICROSECONDS
            except ValueError:
                self.logger.debug("Ignoring malformed perfdata item %r", item)


def split_keywords(keywords: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Separate what belongs to the body of a request from the keywords of the HTTP layer.

    >>> split_keywords({"mtime": 5, "reqid": "x"})
    ({'mtime': 5}, {'reqid': 'x'})
    """
    body = {name: value for name, value in keywords.items() if name not in _REQUEST_KEYWORDS}
    return body, {name: value for name, value in keywords.items() if name in _REQUEST_KEYWORDS}


def only_reads(url: str) -> bool:
    """Is this the URL of a POST route that changes nothing?"""
    return url.rpartition("/")[2] in _READING_POSTS


def encode_query(params: Mapping[str, Any]) -> str:
    """Make a query string, in the order of the dictionary; None values are dropped.

    >>> encode_query({"acct": "a b", "version": None, "properties": False})
    'acct=a+b&properties=False'
    """
    pairs = []
    for name, value in params.items():
        if value is None:
            continue
        if type(value) is str:
            # Most values are plain: avoid the general encoder (5 times slower).
            if not (value.isascii() and value.isalnum()):
                value = _quote_text(value)
        elif isinstance(value, bytes):
            value = quote_plus(value)
        else:
            value = _quote_text(str(value))
        if not (name.isascii() and name.isidentifier()):
            name = _quote_text(name)
        pairs.append(f"{name}={value}")
    return "&".join(pairs)


def text_of_json(value: Any) -> str:
    """Encode a request body as JSON text; ``bytes`` within it are taken as UTF-8."""
    return std_json.dumps(value, default=_json_default)


def _json_default(value: Any) -> Any:
    if isinstance(value, (bytes, bytearray)):
        return value.decode("utf-8")
    try:
        return list(value)
    except TypeError:
        raise TypeError(f"{type(value).__name__} cannot be sent as JSON") from None


def _quote_text(text: str) -> str:
    try:
        return quote_plus(text)
    except UnicodeEncodeError:
        # Not text: sent as the bytes it stands for, which the service refuses.
        return quote_plus(text.encode("utf-8", "surrogatepass"))


def _header_text(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def _decode_body(body: bytes) -> Any:
    try:
        return _decode_json(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        # msgspec is stricter than other writers of JSON (lone surrogates, NaN).
        try:
            return std_json.loads(body)
        except ValueError:
            return body


__all__ = ["HttpApi", "OioException", "encode_query", "text_of_json"]
