# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Filter ``dump``: writes every event to a file ``event_<job id>`` of the temporary directory, for debugging.

A second delivery overwrites the file. A file that cannot be written is logged, and the event goes on.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from typing import Any

from oio.event.filters.base import Callback, Env, Filter, make_filter_factory

# What cannot stand in the name of a file.
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]")


class DumpFilter(Filter):
    """Dumps the event, and goes on."""

    def process(self, env: Env, beanstalkd: Any, cb: Callback) -> Any:
        """Handle one event."""
        name = _UNSAFE.sub("_", f"event_{env.get('job_id')}")
        path = os.path.join(tempfile.gettempdir(), name)
        try:
            # Never through a link that somebody else put there: the directory is everybody's.
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
            with os.fdopen(os.open(path, flags, 0o600), "w", encoding="ascii") as stream:
                json.dump(env, stream, indent=4)
        except OSError as exc:
            self.logger.warning("cannot dump an event to %s: %s", path, exc)
        return self.app(env, beanstalkd, cb)


filter_factory = make_filter_factory(DumpFilter)
