# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""What becomes of an event: the one place where answers and failures of pipelines are judged.

=============================================  ==================================================
the pipeline…                                  the event…
=============================================  ==================================================
answers 200–299                                is done: deleted
answers 500–599                                comes again later
answers something else, or nothing             is left to the queue, which gives it again when its
                                               time to run is over
raises that a service did not answer, or       comes again later
answered that it cannot now
raises that a service refused (4xx)            is buried
raises ``ExplicitBury``                        is buried, as it asked
raises anything else (a defect)                is buried, with a traceback in the log
=============================================  ==================================================

An event that is not a JSON object with a type is buried; one of a type without handler is deleted.
"""

from __future__ import annotations

import logging
import random
import socket
from enum import StrEnum
from typing import Any, NamedTuple

import msgspec

from oio.common.exceptions import (
    DeadlineReached,
    ExplicitBury,
    OioNetworkException,
    RetryLater,
    ServiceUnavailable,
    StatusMessageException,
)
from oio.event.pipelines import Answer
from oio.event.queue import QueueError
from oio.event.source import SourceError
from oio.http.errors import HttpClientError

# Refusals that time can heal: a timeout, too many requests.
_HEALING_STATUSES = (408, 429)
_HEALING_ERRORS = (
    OioNetworkException, DeadlineReached, RetryLater, ServiceUnavailable, HttpClientError, QueueError, SourceError,
    ConnectionError, TimeoutError, socket.gaierror,
)  # fmt: skip
# Delays differ by this part, so that events that failed together do not come back together.
JITTER = 0.2
# 2 to this power is beyond any longest delay.
_DOUBLINGS_MAX = 30


class Outcome(StrEnum):
    """What becomes of a delivery; these are the values of the label ``outcome`` of the metrics."""

    HANDLED = "handled"
    IGNORED = "ignored"
    RETRY = "retry"
    BURIED = "buried"
    UNANSWERED = "unanswered"
    RETURNED = "returned"


class Verdict(NamedTuple):
    """An outcome, and what to write in the log (at which level, with a traceback or not)."""

    outcome: Outcome
    reason: str = ""
    level: int = logging.WARNING
    trace: BaseException | None = None
    #: After how long the event is to come again; None: as the agent decides.
    delay_s: float | None = None


class Malformed(Exception):
    """Raised when an event is not a JSON object with a type."""


_decode = msgspec.json.Decoder(dict).decode


def parse_event(body: bytes) -> dict[str, Any]:
    """Decode an event. :raises Malformed: when it is none."""
    try:
        event: dict[str, Any] = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise Malformed(f"malformed: {exc}") from exc
    if not isinstance(event.get("event"), str):
        raise Malformed("malformed: it has no type")
    return event


def judge_answer(answer: Answer) -> Verdict:
    """Verdict on a pipeline that returned."""
    if answer.is_done:
        return Verdict(Outcome.HANDLED)
    if 500 <= answer.status < 600:
        reason = f"{answer.failed_in or 'a filter'} answered {answer.status} {answer.message}"
        return Verdict(Outcome.RETRY, reason, delay_s=answer.delay_s)
    if answer.status:
        return Verdict(Outcome.UNANSWERED, f"nothing is done about the answer {answer.status} {answer.message}")
    return Verdict(Outcome.UNANSWERED, "no filter answered")


def judge_failure(exc: BaseException) -> Verdict:
    """Verdict on a pipeline that raised."""
    text = _text(exc)
    reason = f"{type(exc).__name__}: {text}"
    if isinstance(exc, ExplicitBury):
        return Verdict(Outcome.BURIED, text or "as a filter asked", logging.INFO)
    if isinstance(exc, StatusMessageException):
        # Filters of third parties raise NotFound("that") too, and that is no number.
        status = exc.http_status if isinstance(exc.http_status, int) else 0
        if status < 500 and status not in _HEALING_STATUSES:
            return Verdict(Outcome.BURIED, reason)
        return Verdict(Outcome.RETRY, reason)
    if isinstance(exc, _HEALING_ERRORS):
        return Verdict(Outcome.RETRY, reason)
    if not isinstance(exc, Exception):
        # The timeouts of green programs are no Exception.
        return Verdict(Outcome.RETRY, reason)
    return Verdict(Outcome.BURIED, reason, logging.ERROR, exc)


def _text(exc: BaseException) -> str:
    """What an exception says, if it can."""
    try:
        return str(exc)
    except Exception:
        return "(it cannot be written)"


def retry_delay_s(attempts: int, first_s: float, longest_s: float) -> float:
    """How long an event waits after its n-th delivery failed: twice as long each time, a part of it random."""
    delay_s = min(longest_s, first_s * 2.0 ** min(max(0, attempts - 1), _DOUBLINGS_MAX))
    return delay_s * random.uniform(1 - JITTER, 1 + JITTER)
