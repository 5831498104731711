# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Requests that no client of ours sends: a status of 4xx, and nothing has changed."""

import json

import pytest

from oio.account.server import NAME_BYTES_MAX
from oio.account.updates import COUNTER_MAX, COUNTERS

ACCOUNT = "/v1.0/account/"
DEEP = b'{"name":"c","mtime":1,"account":"acme","metadata":{},"x":' + b"[" * 50000 + b"]" * 50000 + b"}"


@pytest.mark.parametrize("name", ["%FF", "a%C3", "%ED%A0%80", "%C3%28"])
def test_names_that_are_no_utf8_are_refused(ask, raw, name):
    # Replaced by a question mark they would all be the same account.
    for method, route in (
        ("PUT", f"{ACCOUNT}create?id={name}"),
        ("PUT", f"{ACCOUNT}update?id={name}"),
        ("POST", f"{ACCOUNT}container/update?id={name}"),
        ("GET", f"{ACCOUNT}show-container?id=acme&container={name}"),
        ("GET", f"{ACCOUNT}containers?id=acme&marker={name}"),
        ("PUT", f"/v1.0/bucket/update?id={name}"),
    ):
        answer = ask(method, route, {"name": "c", "mtime": 1, "metadata": {"a": "b"}} if method != "GET" else None)
        assert answer.status == 400, route
        assert b"not UTF-8" in answer.data
    assert raw.keys("*") == []


@pytest.mark.parametrize(
    "route", ["update", "container/update", "container/reset", "container/update-many", "update-bucket"]
)
def test_bodies_nested_too_deep_are_refused(ask, raw, route):
    for body in (DEEP, b"[" + DEEP + b"]", b"[" * 100000):
        method = "POST" if route.endswith("many") else "PUT"
        answer = ask(method, f"{ACCOUNT}{route}?id=acme", body)
        assert answer.status == 400, answer.data
    assert raw.keys("*") == []


def test_names_are_not_so_long_that_a_listing_could_not_go_on_after_them(ask, raw):
    fits, too_long = "é" * (NAME_BYTES_MAX // 2), "é" * (NAME_BYTES_MAX // 2) + "x"
    for update in ({"name": too_long}, {"name": "c", "bucket": too_long}):
        answer = ask("PUT", f"{ACCOUNT}container/update?id=acme", {**update, "mtime": 1})
        assert (answer.status, b"longer than" in answer.data) == (400, True)
    answer = ask("PUT", f"{ACCOUNT}create?id={'x' * (NAME_BYTES_MAX + 1)}")
    assert answer.status == 400
    batch = [{"account": too_long, "name": "c", "mtime": 1}, {"account": "acme", "name": too_long, "mtime": 1}]
    answer = ask("POST", f"{ACCOUNT}container/update-many", batch)
    assert [outcome["status"] for outcome in json.loads(answer.data)] == [400, 400]
    assert raw.keys("*") == []
    assert ask("PUT", f"{ACCOUNT}container/update?id=acme", {"name": fits, "mtime": 1}).status == 200


def test_sums_that_do_not_fit_change_nothing(ask, raw):
    def tell(name, **fields):
        return ask("PUT", f"{ACCOUNT}container/update?id=acme", {"name": name, "bucket": "b", **fields}).status

    assert tell("b", mtime=1, objects=1, bytes=COUNTER_MAX, missing_chunks=-COUNTER_MAX) == 200
    for key in ("account:acme", "bucket:b"):
        raw.hset(key, "bytes", 2**63 - 100)
    before = {key: raw.hgetall(key) for key in ("account:acme", "bucket:b")}
    for _ in range(3):
        # Sent again and again, as events are.
        assert tell("c", mtime=2, objects=7, bytes=COUNTER_MAX, damaged_objects=3) == 400
    batch = [
        {"account": "acme", "name": name, "mtime": 3, "objects": 1, "bytes": size, "bucket": "b"}
        for name, size in (("d", 0), ("e", COUNTER_MAX), ("f", 0))
    ]
    answer = ask("POST", f"{ACCOUNT}container/update-many", batch)
    assert [outcome["status"] for outcome in json.loads(answer.data)] == [200, 400, 200]
    assert raw.keys("container:*:[ce]") == []
    for key, fields in before.items():
        after = raw.hgetall(key)
        changed = {counter: int(after.get(counter, 0)) - int(fields.get(counter, 0)) for counter in COUNTERS}
        assert changed == {**dict.fromkeys(COUNTERS, 0), "objects": 2}, key
    # The largest of all leaves again.
    assert tell("b", dtime=4) == 200
    assert int(raw.hget("account:acme", "bytes")) == int(before["account:acme"]["bytes"]) - COUNTER_MAX
