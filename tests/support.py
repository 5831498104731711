# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Tools that the tests share: waiting for conditions, starting clusters."""

import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ACCOUNT = "test_account"
CHUNK_SIZE = 2**20


def eventually(condition, timeout_s=20.0, what="condition"):
    """Wait until ``condition()`` gives something true, and return it."""
    deadline = time.monotonic() + timeout_s
    while True:
        result = condition()
        if result:
            return result
        assert time.monotonic() < deadline, f"{what}: not reached within {timeout_s} s"
        time.sleep(0.05)


def start_cluster(home, namespace, **fields):
    """Start a cluster of its own, whatever else runs on the machine."""
    from oio.sandbox import Sandbox

    fields.setdefault("prepare_directories", False)
    sandbox = Sandbox(str(home), namespace=namespace, base_port=20000, **fields)
    try:
        sandbox.start()
    except BaseException:
        sandbox.stop()
        raise
    return sandbox
