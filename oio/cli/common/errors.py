# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""What a user reads of an error: one line with the cause, the id of the request, and what to do about it."""

from __future__ import annotations

from oio.cli.common.formatters import printable
from oio.common.exceptions import (
    ContainerNotEmpty,
    NoSuchAccount,
    NoSuchContainer,
    NoSuchObject,
    OioException,
    OioNetworkException,
    ServiceBusy,
    UnrecoverableContent,
)

_FLUSH = "'openio container flush' deletes its objects, with --quickly their former versions too"

_BY_TYPE: tuple[tuple[type[OioException], str], ...] = (
    (NoSuchAccount, "'openio account list' tells those that exist"),
    (NoSuchContainer, "'openio container list' tells those of the account"),
    (NoSuchObject, "'openio object list' tells those of a container"),
    (ContainerNotEmpty, _FLUSH),
    (UnrecoverableContent, "'openio object locate --chunk-info' tells which chunks are left"),
)
# By the internal code of the answer.
_BY_STATUS = {
    420: "'openio object list' tells those of a container",
    438: _FLUSH,
    436: "'openio container show' tells its status",
    453: "'openio cluster list' tells the types of services",
    480: "'openio cluster show' tells the storage policies",
    481: "'openio cluster list' tells the scores of the services",
}
_NETWORK = "is it up? The address of the proxy comes from --oio-proxy, OIO_PROXYD_URL or the configuration"
_BUSY = "try again in a moment"


def hint(exc: BaseException) -> str | None:
    """What the user may do about an error."""
    found = _BY_STATUS.get(getattr(exc, "status", None) or 0)
    if found:
        return found
    for kind, text in _BY_TYPE:
        if isinstance(exc, kind):
            return text
    if isinstance(exc, OioNetworkException):
        return _NETWORK
    return _BUSY if isinstance(exc, ServiceBusy) else None


def describe_error(exc: object, reqid: str | None = None) -> str:
    """Text of an error, on one line.

    :param reqid: id of the last request, for errors that do not know theirs.
    """
    if not isinstance(exc, OioException):
        return _os_error(exc) if isinstance(exc, OSError) else str(exc)
    text = short_error(exc)
    reqid = exc.reqid or reqid
    if reqid and reqid not in text:
        text = f"{text} (reqid={reqid})"
    advice = hint(exc)
    return f"{text.removesuffix('.')}. Hint: {advice}" if advice else text


def short_error(exc: OioException) -> str:
    """What happened, on one line: for cells, where the same advice would come again and again."""
    return " ".join(printable(_cause(exc), keep="\n").split("\n"))


def _cause(exc: OioException) -> str:
    """The arguments of an error as a sentence: most specific first, what the service said after."""
    texts = [str(arg) for arg in exc.args]
    if type(exc).__str__ is not OioException.__str__ or len(texts) < 2:
        return str(exc)
    if texts[0].startswith("reqid="):
        # A network error tells first where it happened.
        return f"{' '.join(texts[1:])} ({texts[0]})"
    return " ".join(texts)


def _os_error(exc: OSError) -> str:
    if exc.strerror and exc.filename is not None:
        return f"{exc.strerror}: {printable(repr(exc.filename))}"
    return str(exc)
