# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""``openio cluster top`` on a cluster: once for programs, live on a terminal."""

import os
import pty
import select
import time

import pytest
from cli_program import OpenioProgram


@pytest.fixture
def openio(cluster, tmp_path):
    return OpenioProgram(cluster, tmp_path)


def test_once(openio):
    picture = openio.json("cluster", "top", "--interval", "30")
    assert {service["type"] for service in picture["services"]} > {"rawx", "meta2", "oioproxy", "rdir"}
    for service in picture["services"]:
        assert service["up"] and service["problem"] is None, service
        assert (service["rate"] is None) == (service["type"] == "redis")
    (queue,) = picture["events"]
    assert queue["pending"] >= 0 and queue["buried"] == 0
    assert picture["problems"] == []
    text = openio("cluster", "top", "rawx", "--once", "--interval", "30").stdout
    assert "\x1b" not in text and text.count("\nrawx ") == text.count("rack.")


def test_without_a_proxy(openio):
    done = openio("--oio-proxy", "127.0.0.1:1", "cluster", "top", "--once", status=1)
    assert "Services cannot be listed" in done.stdout


def test_live_until_ctrl_c(openio):
    user, program = pty.openpty()
    try:
        openio.environment |= {"TERM": "xterm", "NO_COLOR": ""}
        running = openio.start("cluster", "top", stdin=program, stdout=program, stderr=program)
        os.close(program)
        seen, deadline = b"", time.monotonic() + 30
        while b"rawx-1 " not in seen:
            assert select.select([user], [], [], max(0, deadline - time.monotonic()))[0], seen
            seen += os.read(user, 65536)
        os.write(user, b"\x03")
        assert running.wait(20) == 0
        # All that was written until the end: the screen was given back, nothing was complained about.
        while select.select([user], [], [], 1)[0]:
            try:
                seen += os.read(user, 65536)
            except OSError:
                break
        assert seen.endswith(b"\x1b[?1049l")
    finally:
        os.close(user)
