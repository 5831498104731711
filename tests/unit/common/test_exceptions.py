# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Exceptions: what a caller reads from them."""

import pickle

import pytest

from oio.common import exceptions
from oio.common.exceptions import (
    BadRequest,
    ClientException,
    Conflict,
    DeadlineReached,
    MissingAttribute,
    NotFound,
    ServiceBusy,
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


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, BadRequest), (404, NotFound), (409, Conflict), (503, ServiceBusy), (410, ClientException),
     (401, ClientException), (500, ClientException), (502, ClientException)],
)
def test_each_http_status_has_its_class(status, kind):
    assert type(from_status(status)) is kind


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
