# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Entry point of a worker: makes the standard library green, then becomes the worker."""

import sys

from oio.common import green

green.patch()

from oio.event.worker.process import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
