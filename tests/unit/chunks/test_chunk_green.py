# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""The green module, and chunks read and written by a program that is green."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


def run(code):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_green_names():
    run(
        """
        import datetime as dt
        from oio.common import green
        assert green.get_hub() == "poll"
        assert str(green.ConnectionTimeout(1.0)) == "Connection timeout 1.0 second"
        assert str(green.ChunkReadTimeout(2.0)) == "Chunk read timeout 2.0 seconds"
        assert str(green.OioTimeout(2)) == "timeout 2 seconds"
        assert issubclass(green.SourceReadTimeout, green.Timeout)
        assert not issubclass(green.OioTimeout, Exception)
        for name in ("Queue", "GreenPile", "Event", "HTTPConnection", "Semaphore", "eventlet_hubs", "socket",
                     "threading", "LightQueue", "LifoQueue", "Empty", "_UNKNOWN", "datetime", "timedelta", "time"):
            assert hasattr(green, name), name
        with green.ContextPool(2) as pool:
            pool.spawn(green.sleep, 60)
            green.eventlet_yield()
        assert not pool.coroutines_running

        # rates
        h = dt.timedelta(hours=1)
        assert green.ratelimit_policy_from_string("10") == [(dt.timedelta(0), 10)]
        policy = green.ratelimit_policy_from_string("6h45:2;0h30:10")
        assert policy == [(dt.timedelta(minutes=30), 10), (dt.timedelta(minutes=405), 2)]
        for bad in ("", "a", "6h45", "6:3", "6h45:x", "25h0:3", "1h0:-1"):
            try:
                green.ratelimit_policy_from_string(bad)
            except ValueError:
                continue
            raise AssertionError(bad)
        day = dt.datetime(2020, 1, 1)
        assert green.ratelimit_function_curr_rate(day, policy) == 2
        assert green.ratelimit_function_curr_rate(day + h, policy) == 10
        assert green.ratelimit_function_next_rate(day + h, policy) == (2, day + 6.75 * h)
        assert green.ratelimit_function_next_rate(day + 7 * h, policy) == (10, day + 24.5 * h)
        assert green.ratelimit(0, 0) == 0
        assert green.ratelimit(0, 10, time_time=100.0) == 100100.0
        limited = green.ratelimit_function_build("5")
        assert limited.policy == [(dt.timedelta(0), 5)]
        assert limited(0) > 0
        """
    )


def test_nothing_imports_eventlet():
    run(
        """
        import sys
        import oio.api.io, oio.api.ec, oio.api.replication, oio.common.storage_functions
        assert not [name for name in sys.modules if name.startswith("eventlet")]
        """
    )


@pytest.mark.parametrize("early", [True, False])
def test_write_and_read_in_a_green_program(cluster, early):
    """Patched before or after the imports; stuck peers are dropped, others go on meanwhile."""
    cluster.grow(6)
    cluster.rawx[5].script = {"put_stuck": True, "receive_buffer": 4096, "get_stall": 1000}
    addresses = [rawx.address for rawx in cluster.rawx]
    run(
        f"""
        EARLY = {early}
        import eventlet
        if EARLY:
            eventlet.monkey_patch(os=False)
        import io, os, time
        from oio.api.replication import ReplicatedWriteHandler
        from oio.api.ec import ECWriteHandler
        from oio.common.storage_functions import _sort_chunks, fetch_stream, fetch_stream_ec
        from oio.common.storage_method import STORAGE_METHODS
        from oio.common import green
        if not EARLY:
            eventlet.monkey_patch(os=False)
        addresses = {addresses!r}
        meta = dict(id="AB" * 16, version="1", content_path="o", policy="P", container_id="C0" * 32,
                    full_path="a/c/o/1/" + "AB" * 16, chunk_size=10 << 20)
        data = os.urandom((8 << 20) + 5)

        def chunks(name, count, ec):
            return {{0: [dict(url=f"http://{{addresses[i - count]}}/{{name}}{{i}}", num=i, size=0,
                             pos=f"0.{{i}}" if ec else "0") for i in range(count)]}}

        ticks = []

        def tick():
            while True:
                ticks.append(time.monotonic())
                green.sleep(0.01)

        eventlet.spawn(tick)
        for payload in (b"small", data):
            for method, handler, fetch, ec, count in (
                ("plain/nb_copy=3", ReplicatedWriteHandler, fetch_stream, False, 3),
                ("ec/algo=isa_l_rs_cauchy,k=4,m=2", ECWriteHandler, fetch_stream_ec, True, 6),
            ):
                stg = STORAGE_METHODS.load(method)
                written, size, _ = handler(
                    io.BytesIO(payload), dict(meta, chunk_method=method),
                    chunks(f"{{len(payload):058X}}{{'E' if ec else 'A'}}", count, ec), stg, write_timeout=0.5,
                ).stream()
                assert size == len(payload)
                assert len(written) == count - 1, written
                assert b"".join(fetch(_sort_chunks(written, ec), None, stg, read_timeout=2.0)) == payload
        assert len(ticks) > 20, len(ticks)
        """
    )


def test_green_timeouts_are_raised_when_green_is_loaded(cluster):
    cluster.grow(1)
    rawx = cluster.rawx[0]
    rawx.script = {"get_silent": True}
    run(
        f"""
        from oio.common import green
        green.patch()
        from oio.api.io import ChunkReader
        from oio.common import exceptions as exc
        reader = ChunkReader(iter([dict(url={rawx.url("A" * 64)!r})]), None, {{}}, read_timeout=0.2)
        try:
            reader.get_iter()
        except exc.OioException as err:
            assert "Chunk read timeout 0.2 seconds" in str(err), err
        else:
            raise AssertionError
        """
    )


def test_connection_timeouts_say_the_same_when_nothing_is_patched():
    run(
        """
        import socket
        from oio.common import green
        from oio.api.io import ChunkReader
        from oio.common import exceptions as exc
        listener, waiting = socket.create_server(("127.0.0.1", 0), backlog=0), []
        for _ in range(4):
            one = socket.socket()
            one.setblocking(False)
            one.connect_ex(listener.getsockname())
            waiting.append(one)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/{0:064d}"
        reader = ChunkReader(iter([dict(url=url)]), None, {}, connection_timeout=0.2)
        try:
            reader.get_iter()
        except exc.OioException as err:
            assert "Connection timeout 0.2 seconds" in str(err), err
        else:
            raise AssertionError
        """
    )
