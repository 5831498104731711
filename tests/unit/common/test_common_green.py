# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Green names, each test in a process of its own: this one stays as it is."""

import subprocess
import sys
import textwrap

from support import ROOT


def run(code):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_timeouts_tell_what_took_too_long():
    run(
        """
        from oio.common import exceptions, green
        texts = {
            green.OioTimeout: "timeout",
            green.ConnectionTimeout: "Connection timeout",
            green.SourceReadTimeout: "Source read timeout",
            green.ChunkWriteTimeout: "Chunk write timeout",
            green.ChunkReadTimeout: "Chunk read timeout",
        }
        for kind, text in texts.items():
            assert str(kind(1.0)) == text + " 1.0 second", str(kind(1.0))
            assert str(kind(2.0)) == text + " 2.0 seconds"
            assert issubclass(kind, green.OioTimeout) and issubclass(kind, green.eventlet.Timeout)
            assert not issubclass(kind, Exception)
            assert kind not in (exceptions.OioTimeout, exceptions.SourceReadTimeout)
        """
    )


def test_a_timeout_interrupts():
    run(
        """
        from oio.common import green
        try:
            with green.ChunkReadTimeout(0.01):
                green.sleep(10)
        except green.OioTimeout as exc:
            assert str(exc) == "Chunk read timeout 0.01 seconds"
        else:
            raise AssertionError
        """
    )


def test_a_context_pool_kills_what_still_runs():
    run(
        """
        from oio.common import green
        ended = []
        def task(pause_s):
            try:
                green.sleep(pause_s)
                ended.append("done")
            finally:
                ended.append("out")
        try:
            with green.ContextPool(3) as pool:
                quick = pool.spawn(task, 0)
                pool.spawn(task, 60)
                quick.wait()
                green.eventlet_yield()
                raise KeyError
        except KeyError:
            pass
        green.eventlet_yield()
        assert ended == ["done", "out", "out"], ended
        assert not pool.coroutines_running and isinstance(pool, green.GreenPool)
        """
    )


def test_importing_patches_nothing_and_patching_leaves_files_alone():
    run(
        """
        import os, socket, threading, time
        before = (socket.socket, time.sleep, os.read)
        from oio.common import green
        assert before == (socket.socket, time.sleep, os.read)
        green.patch()
        assert socket.socket is not before[0] and time.sleep is not before[1]
        assert os.read is before[2] and green.get_hub() == "poll"
        assert green.patcher.is_monkey_patched("socket") and not green.patcher.is_monkey_patched("os")
        """
    )


def test_tools_are_green_in_a_green_program():
    run(
        """
        from oio.common import green
        green.patch()
        import time
        from oio.common.tool import Tool, ToolWorker
        class Sleeps(Tool):
            def _fetch_items(self):
                return range(200)
            def create_worker(self, *queues):
                return Sleeper(self, *queues)
        class Sleeper(ToolWorker):
            def _process_item(self, item):
                time.sleep(0.05)
        ticks = []
        def tick():
            while True:
                ticks.append(1)
                green.sleep(0.01)
        green.eventlet.spawn(tick)
        tool = Sleeps({"namespace": "NS", "concurrency": 100, "items_per_second": 0})
        tool.prepare_local_dispatcher()
        assert len(list(tool.run())) == 200 and tool.is_success() and len(ticks) > 3
        """
    )
