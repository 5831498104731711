# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Every exception that the package raises, in one tree, and the one table from HTTP status to class.

Programs catch these by name, so names, bases, constructor arguments and ``str()`` are part of the contract.
Facts are kept as attributes; instances can be pickled.
"""

from __future__ import annotations

from typing import Any, NoReturn


class CommandError(Exception):
    """Raised when a command line cannot be carried out as given."""


class ECError(Exception):
    """Raised when erasure coding of a segment fails."""


class EmptyByteRange(Exception):
    """Raised when everything that was asked for has already been read."""


class OioException(Exception):
    """Base of the errors of the object store.

    :ivar reqid: id of the request that failed, when it got an answer; else None. (The text of an error
        without answer tells it.)
    :ivar retried: the request was sent several times, and only the last answer is clear: a former attempt may
        have done what was asked.
    """

    reqid: str | None = None
    retried: bool = False


class ConfigurationException(OioException):
    """Raised when a configuration file or key is missing or wrong."""


class MissingAttribute(OioException):
    """Raised when a mandatory attribute of a chunk is missing."""

    def __init__(self, attribute: str) -> None:
        super().__init__(attribute)
        self.attribute = attribute

    def __str__(self) -> str:
        return self.attribute


class ChunkException(OioException):
    """Base of the errors about one chunk."""


class CorruptedChunk(ChunkException):
    """Raised when the bytes of a chunk do not match its checksum."""


class FaultyChunk(ChunkException):
    """Raised when the attributes of a chunk are incomplete; ``args`` tells which."""


class OrphanChunk(ChunkException):
    """Raised when no object refers to a chunk."""


class ServerException(OioException):
    """Raised when a service fails to do its work."""


class Meta2Exception(OioException):
    """Raised when the container service refuses an operation."""


class SpareChunkException(Meta2Exception):
    """Raised when no spare chunk can be had."""


class ContentException(OioException):
    """Base of the errors about one object."""


class ContentNotFound(ContentException):
    """Raised when the object does not exist."""


class UnrecoverableContent(ContentException):
    """Raised when too few chunks are left to read the object."""


class ServiceUnavailable(OioException):
    """Raised when the services that hold the data do not answer as they should."""


class ExplicitBury(OioException):
    """Raised by a handler to have its event buried."""


class RetryLater(OioException):
    """Raised by a handler to have its event tried again later."""


class InvalidStorageMethod(OioException):
    """Raised when a chunk method is unknown or malformed."""


class PreconditionFailed(OioException):
    """Raised when a condition of the request does not hold."""


class EtagMismatch(OioException):
    """Raised when the data do not have the checksum that the caller announced."""


class MissingContentLength(OioException):
    """Raised when the length of the data is needed and unknown."""


class MissingData(OioException):
    """Raised when there is nothing to upload."""


class MissingName(OioException):
    """Raised when an object has no name and none can be derived."""


class FileNotFound(OioException):
    """Raised when the local file to upload does not exist."""


class LifecycleNotFound(OioException):
    """Raised when a container has no lifecycle configuration."""


class ContainerNotEmpty(OioException):
    """Raised when a container to delete still holds objects."""


class NoSuchAccount(OioException):
    """Raised when the account does not exist."""


class NoSuchContainer(OioException):
    """Raised when the container does not exist."""


class NoSuchObject(OioException):
    """Raised when the object does not exist."""


class NoSuchReference(OioException):
    """Raised when the reference does not exist."""


class SourceReadError(OioException):
    """Raised when the source of an upload cannot be read."""


class OioNetworkException(OioException):
    """Raised when a service cannot be reached, or the connection breaks."""


class OioTimeout(OioNetworkException):
    """Raised when a service does not answer in time."""


class SourceReadTimeout(OioTimeout):
    """Raised when the source of an upload gives nothing in time."""


class DeadlineReached(OioException):
    """Raised when the time allowed for the whole call is over."""

    def __str__(self) -> str:
        return super().__str__() if self.args else "Deadline reached"


class VolumeException(OioException):
    """Raised when a volume cannot be used."""


class StatusMessageException(OioException):
    """Base of the errors that came as an HTTP answer.

    :ivar http_status: status of the answer.
    :ivar status: internal code of the JSON body, or None.
    :ivar message: sentence of the JSON body, ``n/a`` when there was none.
    """

    def __init__(
        self, http_status: Any, status: Any = None, message: str | None = None
    ) -> None:
        self.http_status = http_status
        self.status = status
        self.message = message or "n/a"
        super().__init__(self.message)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.http_status, self.status, self.message)

    def __str__(self) -> str:
        text = f"{self.message} (HTTP {self.http_status})"
        return f"{text} (STATUS {self.status})" if self.status else text


class ClientException(StatusMessageException):
    """Raised when a service answers with an error that has no class of its own."""


class BadRequest(ClientException):
    """Raised when the request is malformed (HTTP 400)."""

    def __init__(self, http_status: Any = 400, status: Any = None, message: str | None = None):
        super().__init__(http_status, status, message)


class Forbidden(ClientException):
    """Raised when the operation is not allowed (HTTP 403)."""

    def __init__(self, http_status: Any = 403, status: Any = None, message: str | None = None):
        super().__init__(http_status, status, message)


class NotFound(ClientException):
    """Raised when the thing does not exist (HTTP 404)."""

    def __init__(self, http_status: Any = 404, status: Any = None, message: str | None = None):
        super().__init__(http_status, status, message)


class MethodNotAllowed(ClientException):
    """Raised when the namespace or the resource forbids the operation (HTTP 405)."""

    def __init__(self, http_status: Any = 405, status: Any = None, message: str | None = None):
        super().__init__(http_status, status, message)


class Conflict(ClientException):
    """Raised when the request conflicts with the present state (HTTP 409)."""

    def __init__(self, http_status: Any = 409, status: Any = None, message: str | None = None):
        super().__init__(http_status, status, message)


class ClientPreconditionFailed(ClientException):
    """Raised when a check of the service failed (HTTP 412)."""

    def __init__(self, http_status: Any = 412, status: Any = None, message: str | None = None):
        super().__init__(http_status, status, message)


class TooLarge(ClientException):
    """Raised when the request holds too much (HTTP 413)."""

    def __init__(self, http_status: Any = 413, status: Any = None, message: str | None = None):
        super().__init__(http_status, status, message)


class UnsatisfiableRange(ClientException):
    """Raised when the range lies beyond the data (HTTP 416)."""

    def __init__(self, http_status: Any = 416, status: Any = None, message: str | None = None):
        super().__init__(http_status, status, message)


class ServiceBusy(ClientException):
    """Raised when the service cannot do it now (HTTP 503)."""

    def __init__(self, http_status: Any = 503, status: Any = None, message: str | None = None):
        super().__init__(http_status, status, message)


class UnfinishedUploadException(OioException):
    """Raised when an upload stops midway, with what was already written.

    :ivar exception: the cause.
    :ivar chunks_already_uploaded: chunks to clean up.
    """

    def __init__(self, exception: BaseException, chunks_already_uploaded: list[Any]) -> None:
        super().__init__(exception, chunks_already_uploaded)
        self.exception = exception
        self.chunks_already_uploaded = chunks_already_uploaded

    def reraise(self) -> NoReturn:
        """Raise the cause itself."""
        raise self.exception


_CLASS_BY_STATUS: dict[int, type[ClientException]] = {
    400: BadRequest,
    403: Forbidden,
    404: NotFound,
    405: MethodNotAllowed,
    409: Conflict,
    412: ClientPreconditionFailed,
    413: TooLarge,
    416: UnsatisfiableRange,
    503: ServiceBusy,
}


def from_status(status: int, reason: str = "n/a") -> ClientException:
    """Make the exception of an HTTP status."""
    return _CLASS_BY_STATUS.get(status, ClientException)(status, None, reason)


def from_response(resp: Any, body: Any = None) -> ClientException:
    """Make the exception of an HTTP answer.

    :param resp: object with ``status`` (or ``status_code``) and ``reason``.
    :param body: decoded JSON, or the raw text of the answer.
    """
    http_status = getattr(resp, "status", None)
    if http_status is None:
        http_status = resp.status_code
    cls = _CLASS_BY_STATUS.get(http_status, ClientException)
    if not body:
        return cls(http_status, getattr(resp, "reason", None))
    if isinstance(body, dict):
        return cls(http_status, body.get("status"), body.get("message"))
    if isinstance(body, bytes):
        body = body.decode("utf-8", "replace")
    return cls(http_status, None, str(body))


def reraise(
    exc_type: type[BaseException], exc_value: BaseException, extra_message: str | None = None
) -> NoReturn:
    """Raise ``exc_type`` in place of ``exc_value``, with its arguments and traceback."""
    args: tuple[Any, ...] = exc_value.args
    if isinstance(exc_value, StatusMessageException):
        args = (exc_value.message, *args)
    if extra_message:
        args = (extra_message, *args)
    raise exc_type(*args).with_traceback(exc_value.__traceback__) from exc_value
