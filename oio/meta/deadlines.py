# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""How long one may wait. Deadlines are moments of the monotonic clock, None without limit."""

from __future__ import annotations

import time

from oio.common import status
from oio.common.status import StatusError


def wait_within(wait_s: float, deadline: float | None) -> float:
    """Longest wait allowed to a request. :raises StatusError: 504 when its deadline is over."""
    if deadline is None:
        return wait_s
    left = deadline - time.monotonic()
    if left <= 0:
        raise StatusError(status.GATEWAY_TIMEOUT, "deadline reached, nothing was done")
    return min(wait_s, left)


def remaining(deadline: float) -> float:
    """Seconds left before a monotonic deadline, never negative."""
    return max(0.0, deadline - time.monotonic())
