# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Exceptions: what a caller reads from them."""

import pickle

import pytest

from oio.common import exceptions
from oio.common.exceptions import (
    ClientException,
    Conflict,
    DeadlineReached,
    MissingAttribute,
    NotFound,
    UnfinishedUploadException,
    from_response,
    from_status,
    reraise,
)
from oio.common.status import StatusError, http_status


class Answer:
    def __init__(self, status, reason="Because"):
        self.status = status
        self.reason = reason


# Each class and its base.
TREE = """
Exception: CommandError ECError EmptyByteRange OioException
OioException: ConfigurationException MissingAttribute ChunkException ServerException Meta2Exception
OioException: ContentException ServiceUnavailable ExplicitBury RetryLater InvalidStorageMethod
OioException: PreconditionFailed EtagMismatch MissingContentLength MissingData MissingName FileNotFound
OioException: LifecycleNotFound ContainerNotEmpty NoSuchAccount NoSuchContainer NoSuchObject
OioException: NoSuchReference SourceReadError OioNetworkException DeadlineReached VolumeException
OioException: StatusMessageException UnfinishedUploadException
ChunkException: CorruptedChunk FaultyChunk OrphanChunk
Meta2Exception: SpareChunkException
ContentException: ContentNotFound UnrecoverableContent
OioNetworkException: OioTimeout
OioTimeout: SourceReadTimeout
StatusMessageException: ClientException
ClientException: BadRequest Forbidden NotFound MethodNotAllowed Conflict ClientPreconditionFailed TooLarge
ClientException: UnsatisfiableRange ServiceBusy
"""
STATUS_OF = {
    "BadRequest": 400, "Forbidden": 403, "NotFound": 404, "MethodNotAllowed": 405, "Conflict": 409,
    "ClientPreconditionFailed": 412, "TooLarge": 413, "UnsatisfiableRange": 416, "ServiceBusy": 503,
}  # fmt: skip


@pytest.mark.parametrize(
    ("base", "name"),
    [(line.split(":")[0], name) for line in TREE.strip().splitlines() for name in line.split(":")[1].split()],
)
def test_the_tree_of_exceptions(base, name):
    parent = getattr(exceptions, base, Exception)
    assert getattr(exceptions, name).__bases__ == (parent,)


@pytest.mark.parametrize("name", STATUS_OF)
def test_each_class_of_answers_has_its_status(name):
    kind, status = getattr(exceptions, name), STATUS_OF[name]
    error = kind()
    assert (error.http_status, error.status, error.message) == (status, None, "n/a")
    error = kind(499, 421, "text")
    assert (error.http_status, error.status, error.args) == (499, 421, ("text",))
    assert str(error) == "text (HTTP 499) (STATUS 421)"
    assert kind(message="only").message == "only"
    assert type(from_status(status, "why")) is kind
    assert str(from_status(status, "why")) == f"why (HTTP {status})"
    assert type(from_response(Answer(status))) is kind


@pytest.mark.parametrize("status", [401, 402, 406, 410, 418, 429, 500, 502, 504])
def test_other_statuses_have_no_class_of_their_own(status):
    error = from_status(status)
    assert type(error) is ClientException and (error.http_status, error.status) == (status, None)
    assert type(from_response(Answer(status), {"status": 427, "message": "m"})) is ClientException


def test_the_status_may_be_called_status_code():
    class Other:
        """As the answers of some libraries."""

        status_code = 409
        reason = "Conflict"

    error = from_response(Other())
    assert type(error) is Conflict and (error.http_status, error.status) == (409, "Conflict")
    assert from_response(Answer(400), "plain text").message == "plain text"
    assert from_response(Answer(400), b"\xff").message == "\ufffd"


def test_a_faulty_chunk_tells_all_that_is_missing():
    error = exceptions.FaultyChunk(MissingAttribute("chunk_id"), "other")
    assert [str(one) for one in error.args] == ["chunk_id", "other"]


def test_reraising_keeps_arguments_and_traceback():
    try:
        raise KeyError("a", 1)
    except KeyError as exc:
        source = exc
    with pytest.raises(exceptions.ServerException) as raised:
        reraise(exceptions.ServerException, source)
    assert raised.value.args == ("a", 1)
    assert [entry.name for entry in raised.traceback][-1] == "test_reraising_keeps_arguments_and_traceback"


def test_a_json_body_gives_message_and_status():
    error = from_response(Answer(404), {"status": 431, "message": "No such container"})
    assert (error.http_status, error.status, error.message) == (404, 431, "No such container")
    assert str(error) == "No such container (HTTP 404) (STATUS 431)"
    assert error.args == ("No such container",)


def test_a_text_body_is_the_message():
    assert from_response(Answer(500), b"broken").message == "broken"


def test_without_body_the_reason_is_the_status():
    assert str(from_response(Answer(404, "Not Found"))) == "n/a (HTTP 404) (STATUS Not Found)"


def test_the_first_argument_is_the_http_status():
    assert Conflict("").http_status == ""


def test_exceptions_can_be_pickled():
    error = pickle.loads(pickle.dumps(NotFound(404, 420, "gone")))
    assert (type(error), error.http_status, error.status, error.message) == (NotFound, 404, 420, "gone")


def test_texts_that_programs_compare():
    assert str(DeadlineReached()) == "Deadline reached"
    assert str(DeadlineReached("later")) == "later"
    assert str(MissingAttribute("chunk_id")) == "chunk_id"


def test_an_unfinished_upload_raises_its_cause():
    cause = ValueError("cause")
    with pytest.raises(ValueError) as raised:
        UnfinishedUploadException(cause, []).reraise()
    assert raised.value is cause


def test_reraising_puts_the_message_first():
    with pytest.raises(exceptions.NoSuchObject) as raised:
        reraise(exceptions.NoSuchObject, NotFound(404, 420, "m"), "extra")
    assert raised.value.args == ("extra", "m", "m")


@pytest.mark.parametrize(
    ("code", "plain", "meta2"),
    [(400, 400, 400), (406, 404, 404), (420, 404, 404), (426, 404, 404), (421, 409, 409), (438, 500, 409),
     (427, 500, 410), (436, 503, 503), (480, 500, 500), (7, 503, 503), (19, 500, 400), (404, 500, 500)],
)
def test_internal_codes_are_said_in_http(code, plain, meta2):
    assert (http_status(code), http_status(code, meta2=True)) == (plain, meta2)


def test_a_status_error_tells_code_and_message():
    assert str(StatusError(431, "No base")) == "(431) No base"
