# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Internal codes of the system, and how each is said in HTTP.

A service raises :class:`StatusError`; its border turns it into an HTTP status by :func:`http_status` and a
body ``{"status": code, "message": text}`` (contract of the proxy, "Error body and HTTP mapping").
"""

from __future__ import annotations

BAD_PARAMETER = 1
CONNECTION_REFUSED = 2
CONNECTION_RESET = 3
CONNECTION_CLOSED = 4
CONNECTION_TIMEOUT = 5
NO_ROUTE = 6
READ_TIMEOUT = 7
PEER_AVOIDED = 8
NETWORK_ERROR = 9
SQLITE_CONSTRAINT = 19
BAD_OPERATION = 301
REDIRECT = 303
REDIRECT_LOOP = 304
TOO_MANY_REDIRECTS = 305
BAD_REQUEST = 400
FORBIDDEN = 403
NO_HANDLER = 404
NOT_ALLOWED = 405
REFERENCE_NOT_FOUND = 406
REFERENCE_IN_USE = 407
REFERENCE_EXISTS = 408
ACCOUNT_NOT_FOUND = 409
PRECONDITION_FAILED = 412
PAYLOAD_TOO_LARGE = 413
NAMESPACE_NOT_MANAGED = 418
CONTENT_NOT_FOUND = 420
CONTENT_EXISTS = 421
CONTENT_INCOMPLETE = 423
CONTENT_PRECONDITION_FAILED = 424
CONTENT_CORRUPTED = 425
CONTENT_DELETED = 426
CONTENT_DRAINED = 427
CONTAINER_NOT_FOUND = 431
CONTAINER_EXISTS = 433
CONTAINER_FROZEN = 436
CONTAINER_DISABLED = 437
CONTAINER_NOT_EMPTY = 438
CONTAINER_ENABLED = 439
CONTAINER_FULL = 445
PREFIX_NOT_MANAGED = 450
TYPE_NOT_MANAGED = 453
NO_SERVICE_LINKED = 454
SERVICE_ALREADY_LINKED = 455
PEER_LATE = 470
PEER_AHEAD = 471
CONCURRENT_UPDATES = 472
POLICY_NOT_SUPPORTED = 480
POLICY_NOT_SATISFIABLE = 481
INTERNAL_ERROR = 500
NOT_IMPLEMENTED = 501
PROXY_ERROR = 502
UNAVAILABLE = 503
GATEWAY_TIMEOUT = 504
EXCESSIVE_LOAD = 509
CORRUPT_DATABASE = 511

_HTTP_STATUS: dict[int, int] = {
    BAD_REQUEST: 400,
    FORBIDDEN: 403,
    NOT_ALLOWED: 405,
    PRECONDITION_FAILED: 412,
    PAYLOAD_TOO_LARGE: 413,
    **dict.fromkeys((406, 409, 420, 426, 431, 454, 418, 453), 404),
    **dict.fromkeys((421, 424, 433), 409),
    **dict.fromkeys((*range(2, 10), 305, 436, 503, 504, 509, 511), 503),
}
_META2_HTTP_STATUS: dict[int, int] = {
    **_HTTP_STATUS,
    CONTAINER_NOT_EMPTY: 409,
    CONTENT_DRAINED: 410,
    SQLITE_CONSTRAINT: 400,
}


def http_status(code: int, meta2: bool = False) -> int:
    """HTTP status of an internal code; ``meta2`` on the routes of containers and contents."""
    return (_META2_HTTP_STATUS if meta2 else _HTTP_STATUS).get(code, 500)


class StatusError(Exception):
    """Raised by services and their clients when an operation fails with an internal code.

    :ivar code: internal code (see the constants of this module).
    :ivar message: one sentence for a person.
    :ivar resent: the operation was sent several times, and a former attempt may have done it.
    """

    resent = False

    def __init__(self, code: int, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"({self.code}) {self.message}"
