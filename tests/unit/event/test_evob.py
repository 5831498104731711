# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Answers of filters, as filters of other packages give them."""

import pytest

from oio.event.evob import Event, EventError, EventOk, Response, is_error, is_success

ENV = {"event": "storage.chunk.new", "when": 1}


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (EventOk(), (200, "")),
        (EventError(body="full"), (500, "full")),
        (EventError(event=Event(ENV), body="full"), (500, "full")),
        (Response(status="204"), (204, "")),
        (Response("busy", 503), (503, "busy")),
    ],
)
def test_an_answer_goes_to_the_callback(response, answer):
    told = []
    response(ENV, None, lambda *given: told.append(given))
    assert told == [answer]
    assert response.event.event_type == "storage.chunk.new"
    assert (is_success(answer[0]), is_error(answer[0])) == (answer[0] < 300, answer[0] >= 500)
