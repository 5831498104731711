# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""The end of every pipeline: the handler that says that an event is done.

It is the entry point ``default`` of the group ``oio.event.handler_factory``.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from oio.event.filters.base import Callback, Env

STATUS_DONE = 200
STATUS_FAILED = 500


class Handler:
    """Answers 200 to everything; a derived class may do more in :meth:`process`.

    :ivar app_env: what the filters of a process share.
    """

    def __init__(self, app: Any, conf: Mapping[str, Any]) -> None:
        self.app = app
        self.app_env: dict[str, Any] = app.app_env
        self.conf = dict(conf)
        self.logger = logging.getLogger("oio.event")

    def process(self, env: Env) -> tuple[int, str]:
        """Handle an event; returns the status and the message of the answer."""
        return STATUS_DONE, ""

    def __call__(self, env: Env, beanstalkd: Any, cb: Callback) -> Any:
        try:
            status, message = self.process(env)
        except Exception:
            self.logger.exception("the handler of %s failed", env.get("event"))
            status, message = STATUS_FAILED, "the handler failed"
        return cb(status, message)


def handler_factory(app: Any, global_conf: Mapping[str, Any], **local_conf: Any) -> Handler:
    """What the entry point names: builds a handler for the application."""
    return Handler(app, {**global_conf, **local_conf})
