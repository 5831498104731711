# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Entry point of a worker: makes the standard library green, then becomes the worker."""

import logging
import sys
import threading
from typing import Any

from oio.common import green

green.patch()

from oio.event.worker.process import main  # noqa: E402


def make_record(*args: Any, **kwargs: Any) -> logging.LogRecord:
    """A line of the log, without the name of its green thread, to find which takes longer than all the rest."""
    record = logging.LogRecord(*args, **kwargs)
    record.thread = threading.get_ident()
    record.threadName = ""
    return record


if __name__ == "__main__":
    logging.logThreads = False
    logging.setLogRecordFactory(make_record)
    sys.exit(main())
