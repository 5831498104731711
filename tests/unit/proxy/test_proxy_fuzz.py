# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Requests with anything in any place, on the real metadata services: nothing breaks, nothing is miscounted."""

import json
import random
from urllib.parse import urlencode

import pytest
from proxy_backend import full_cluster

from oio.proxy.routes import all_routes

REQUESTS = 3000
#: Internal codes of refusals whose HTTP status is 5xx.
REFUSALS = {404, 425, 436, 437, 439, 445, 480, 481}
URL = "http://NSTEST-rawx-1/" + "AB" * 32
ODD = [None, True, 0, -1, 5, 1 << 63, 1 << 70, 1.5, "", "a", "0.1", "ab" * 16, "é", "a\0b", "x" * 2000, [], {},
       [None], {"": "x"}]  # fmt: skip
BEANS = [
    {"type": "alias", "name": "p1", "version": 12, "header": "abcd"},
    {"type": "header", "id": "abcd", "chunk-method": "plain/nb_copy=1", "mime-type": "t", "size": 4},
    {"type": "chunk", "id": URL, "hash": "ab" * 16, "size": 4, "content": "abcd", "pos": "0"},
]
CHUNK = {"url": URL, "pos": "0", "size": 4, "hash": "ab" * 16}
#: Values of a parameter or header, and how often it is there.
QUERY = {
    "path": (["p1", "p1", "p2", "é"], 0.95), "type": (["meta2"], 0.9), "size": (["0", "4", "8", "x", "-1"], 0.5),
    "version": (["5", "6", "12", "0", "x", str(1 << 64)], 0.1), "content": (["abcd", "AB", "x"], 0.05),
    "maxvers": (["0", "1", "-1", "x"], 0.2), "max": (["1", "x", "-5"], 0.2), "delimiter": (["/"], 0.1),
    "stgpol": (["THREE", "X"], 0.8), "position": (["0", "1.1", "x"], 0.3), "force": (["1"], 0.2),
    "append": (["1"], 0.1), "change_policy": (["1"], 0.1), "autocreate": (["1"], 0.2), "frozen": (["1"], 0.2),
    "delete_marker": (["1"], 0.1), "all": (["1"], 0.2), "flush": (["1", ""], 0.1),
}  # fmt: skip
HEADERS = {
    "x-oio-content-meta-id": ([f"{number:08X}" for number in range(40)] + ["x"], 0.95),
    "x-oio-content-meta-version": (["5", "6", "12", "12", "13"], 0.98),
    "x-oio-content-meta-length": (["4", "4", "4", "4", "-1"], 0.98),
    "x-oio-content-meta-policy": (["SINGLE", "SINGLE", "THREE", "X"], 0.95),
    "x-oio-content-meta-hash": (["ab" * 16, "ab" * 16, "ab" * 16, "x"], 0.5),
    "x-oio-content-meta-chunk-method": (["plain/nb_copy=1", "plain/nb_copy=3", "?"], 0.9),
    "x-oio-force-versioning": (["1", "-1", "3", "x"], 0.1),
    "x-oio-simulate-versioning": (["1"], 0.1),
    "if-match": (["*", "ab" * 16, "?"], 0.05),
    "if-none-match": (["*", "ab" * 16, 'W/"ab"'], 0.05),
}
#: What would end the container, or close it for long.
RARE = {"admin/disable", "admin/freeze", "container/destroy", "container/flush"}


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    with full_cluster(tmp_path_factory.mktemp("meta")) as cluster:
        yield cluster


def spoiled(rng, item):
    """A copy with, perhaps, something odd in it."""
    item = dict(item)
    if rng.random() < 0.3:
        item[rng.choice(list(item))] = rng.choice(ODD)
    if rng.random() < 0.1:
        del item[rng.choice(list(item))]
    return item


def random_body(rng, path):
    if rng.random() < 0.1:
        return rng.choice(ODD)
    if path == "container/raw_update":
        beans = [spoiled(rng, rng.choice(BEANS))]
        return {"old": beans, "new": [spoiled(rng, beans[0])]}
    if "raw" in path:
        return [spoiled(rng, bean) for bean in rng.sample(BEANS, rng.randint(1, 3))]
    if path in ("content/create", "content/update"):
        chunks = [spoiled(rng, {**CHUNK, "pos": str(number)}) for number in range(rng.randint(1, 2))]
        return rng.choice([chunks, {"chunks": chunks, "properties": {"k": rng.choice(["v", "", *ODD])}}])
    if path == "container/snapshot":
        return spoiled(rng, {"account": "acct", "container": rng.choice(["copy", "ref"])})
    if path.endswith("_many"):
        return {rng.choice(["contents", "containers"]): [spoiled(rng, {"name": "p2"})]}
    if path.endswith("del_properties"):
        return rng.choice([[], ["k"], [3]])
    if path == "content/spare":
        return {"notin": rng.choice([None, [CHUNK], "x"]), "broken": rng.choice([None, [CHUNK], [3]])}
    return spoiled(rng, {"size": 4, "policy": "SINGLE", "properties": {"k": "v"}, "system": {"sys.m2.quota": "0"}})


def pick(rng, choices):
    return {name: rng.choice(values) for name, (values, often) in choices.items() if rng.random() < often}


@pytest.mark.parametrize("seed", range(2))
def test_anything_is_answered_and_the_counters_stay_true(full, seed):
    rng = random.Random(seed)
    routes = [
        (route.method, route.path)
        for route in all_routes()
        if route.namespaced and route.path.startswith(("container/", "content/", "admin/"))
    ]
    often = ("content/create", "content/update", "content/truncate", "content/delete")
    routes += [route for route in routes if route[1] in often] * 8
    where = {"acct": "acct", "ref": f"ref{seed}"}
    full.post(f"container/create?{urlencode(where)}")
    outcomes = set()
    for _ in range(REQUESTS):
        method, path = rng.choice(routes)
        if path == "admin/meta0_force" or (path in RARE and rng.random() < 0.9):
            continue
        query, headers, body = {**where, **pick(rng, QUERY)}, pick(rng, HEADERS), random_body(rng, path)
        sent = None if body is None else json.dumps(body)
        answer = full.request(method, f"{path}?{urlencode(query)}", sent, headers=headers)
        told = (path, query, headers, sent, answer.status, answer.data)
        if answer.status >= 400:
            assert set(answer.json) == {"status", "message"} and answer.json["message"], told
            assert answer.status < 500 or answer.json["status"] in REFUSALS, told
        outcomes.add((path, answer.status < 400))
        if rng.random() < 0.2:
            full.post(f"admin/enable?type=meta2&{urlencode(where)}")
            full.post(f"container/create?{urlencode(where)}")
    full.post(f"admin/enable?type=meta2&{urlencode(where)}")
    before = counters(full, where)
    query = {**where, "recompute": 1, "damaged_objects": 1, "missing_chunks": 1}
    assert full.post(f"container/touch?{urlencode(query)}").status == 204
    assert counters(full, where) == before
    # The requests were not all refused.
    for path in (*often, "container/raw_insert"):
        assert (path, True) in outcomes, path


def counters(full, where):
    """Counters of a container; one that is absent is zero."""
    answer = full.post(f"container/get_properties?{urlencode(where)}")
    assert answer.status == 200, answer.data
    names = ("sys.m2.objects", "sys.m2.usage", "sys.m2.objects.damaged", "sys.m2.chunks.missing")
    return {name: int(answer.json["system"].get(name, "0")) for name in names}
