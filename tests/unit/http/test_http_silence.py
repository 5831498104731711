# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Silences of a server into which the client looks."""

from __future__ import annotations

import select
import time

import pytest
from http_script import OK

from oio.http.client import HttpPool, ReadTimeout


def test_a_silence_is_looked_into(script):
    server = script((None, "wait", OK, None, OK))
    looks = []

    def look():
        looks.append(time.monotonic())
        if len(looks) == 3:
            server.step.release()
        return True

    with HttpPool() as pool:
        response = pool.request("POST", server.url, timeout=(1, 0.05), on_silence=look)
        assert response.data == b"ok" and len(looks) >= 3
        assert 0.04 < looks[1] - looks[0] < 1
        # The connection does not remember whom the former request asked.
        looks.clear()
        assert pool.request("POST", server.url, timeout=(1, 5)).data == b"ok"
        assert not looks and pool.idle_count() == 1


def test_a_silence_ends_when_nothing_is_alive(script):
    server = script((None, "wait"))
    looks = []
    with HttpPool() as pool, pytest.raises(ReadTimeout, match="no sign of life"):
        pool.request("POST", server.url, timeout=(1, 0.02), on_silence=lambda: looks.append(1) or len(looks) < 3)
    assert len(looks) == 3
    assert pool.idle_count() == 0


def test_an_answer_that_comes_while_one_looks_is_heard(script):
    server = script((None, "wait", OK))

    def look():
        server.step.release()
        deadline = time.monotonic() + 5
        while not arrived() and time.monotonic() < deadline:
            time.sleep(0.001)
        return False

    def arrived():
        return bool(select.select([connection], [], [], 0)[0])

    with HttpPool() as pool:
        connection = pool.acquire(server.host, server.port)
        connection.read_timeout_s, connection.on_silence = 0.02, look
        connection.put_request("POST", "/p")
        response = connection.getresponse()
        assert response.status == 200 and response.read() == b"ok"


def test_a_silence_is_bounded_by_the_deadline(script):
    server = script((None, "wait"))
    looks = []
    begin = time.monotonic()
    with HttpPool() as pool, pytest.raises(ReadTimeout, match="deadline"):
        pool.request(
            "POST", server.url, timeout=(1, 0.3), deadline=begin + 1, on_silence=lambda: looks.append(1) or True
        )
    assert 0.99 < time.monotonic() - begin < 2 and 1 <= len(looks) <= 4
