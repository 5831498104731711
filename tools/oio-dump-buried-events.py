#!/usr/bin/env python3
# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Prints the buried events of a beanstalkd, one a line, and deletes each once it is written.

    oio-dump-buried-events.py 127.0.0.1:6014 > buried.json

To have them handled again instead: ``openio events exhume``.
"""

from __future__ import annotations

import argparse
import os
import stat
import sys
from collections.abc import Sequence
from contextlib import closing

from oio.event.beanstalk import Beanstalk, BeanstalkError

SCHEME = "beanstalk://"
TIMEOUT_S = 10.0


def main(argv: Sequence[str] | None = None) -> int:
    """Dump and delete; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="oio-dump-buried-events.py", description="Dump, then delete, the buried events of a beanstalkd."
    )
    parser.add_argument("address", metavar="IP:PORT", help="address of the beanstalkd")
    parser.add_argument("--tube", default="oio", help="tube of the events (oio)")
    args = parser.parse_args(argv)
    url = SCHEME + args.address.removeprefix(SCHEME)
    try:
        with closing(Beanstalk.from_url(url, socket_timeout=TIMEOUT_S)) as beanstalk:
            count = dump(beanstalk, args.tube)
    except (BeanstalkError, OSError) as exc:
        print(f"{args.address}: {exc}", file=sys.stderr)
        return 1
    print(f"{count} events dumped and deleted", file=sys.stderr)
    return 0


def dump(beanstalk: Beanstalk, tube: str) -> int:
    """Write the buried events to standard output; returns how many."""
    beanstalk.use(tube)
    is_file = stat.S_ISREG(os.fstat(sys.stdout.fileno()).st_mode)
    count = 0
    while True:
        job_id, body = beanstalk.peek_buried()
        if job_id is None or body is None:
            return count
        sys.stdout.buffer.write(body.encode("utf-8", "surrogateescape") + b"\n")
        sys.stdout.buffer.flush()
        if is_file:
            os.fsync(sys.stdout.fileno())
        beanstalk.delete(job_id)
        count += 1


if __name__ == "__main__":
    sys.exit(main())
