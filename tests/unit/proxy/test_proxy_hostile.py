# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Whatever a client sends to the routes of the directory, it gets an answer that says what is wrong."""

import itertools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from proxy_backend import full_cluster
from proxy_cluster import NS

#: Words that mean something somewhere, to get past the first checks.
WORDS = st.sampled_from(
    ["", "rawx", "meta2", "x", "127.0.0.1:9", f"{NS}|rawx|{NS}-rawx-1", "1,rawx", "0", "-1", "é", "a\0b", "1" * 40]
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    WORDS,
    st.text(max_size=8),
)
KEYS = st.sampled_from(
    ["properties", "kept", "replaced", "seq", "type", "host", "args", "addr", "ns", "score", "tags", "tag.loc",
     "tag.service_id", "tag.slots", "targets", "options", "min_dist", "avoid", "known", "avoid_locations",
     "known_locations", "ns.chunk_size", "other"]
)  # fmt: skip
BODIES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=5)),
    max_leaves=12,
)
ROUTES = [
    *(f"reference/{verb}" for verb in (
        "create", "destroy", "get_properties", "set_properties", "del_properties", "link", "unlink", "renew",
        "relink", "force",
    )),
    *(f"conscience/{verb}" for verb in ("register", "lock", "unlock", "deregister", "flush")),
    "lb/poll", "lb/create_pool",
]  # fmt: skip
READS = ["reference/show", "reference/has", "conscience/list", "conscience/score", "conscience/resolve",
         "conscience/info", "local/list", "lb/choose"]  # fmt: skip
PARAMETERS = st.dictionaries(
    st.sampled_from(
        ["acct", "ref", "cid", "type", "seq", "service_id", "size", "slot", "pool", "policy", "name", "force",
         "flush", "dryrun", "autocreate", "replace", "version", "path", "full", "what"]
    ),
    st.one_of(WORDS, st.text(max_size=6), st.sampled_from(["1", "yes", "AB" * 32, "ab", "rawx3"])),
    max_size=5,
)  # fmt: skip
LIMITS = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
names = itertools.count()


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    with full_cluster(tmp_path_factory.mktemp("meta")) as cluster:
        yield cluster


def query(parameters, **defaults):
    """Text of a query string, escaped byte by byte."""
    pairs = {**defaults, **parameters}.items()
    return "&".join(f"{key}=" + "".join(f"%{byte:02X}" for byte in value.encode()) for key, value in pairs)


def check(answer):
    """Neither a crash nor a mute refusal."""
    if answer.status >= 400:
        assert set(answer.json) == {"status", "message"} and answer.json["message"]
        assert answer.json["status"] != 500, answer.json
    else:
        assert answer.status in (200, 201, 202, 204)
    if answer.status == 204:
        assert answer.data == b""


@pytest.mark.parametrize("route", ROUTES)
@LIMITS
@given(parameters=PARAMETERS, body=BODIES, data=st.data())
def test_changes(full, route, parameters, body, data):
    defaults = {"acct": "acct", "ref": f"ref{next(names)}", "type": "rawx"} if data.draw(st.booleans()) else {}
    check(full.post(f"{route}?{query(parameters, **defaults)}", body))


@pytest.mark.parametrize("route", READS)
@LIMITS
@given(parameters=PARAMETERS)
def test_reads(full, route, parameters):
    check(full.get(f"{route}?{query(parameters)}"))


@LIMITS
@given(body=st.binary(max_size=40))
def test_bodies_that_are_not_json(full, body):
    for route in ROUTES:
        check(full.post(f"{route}?acct=a&ref=b&type=rawx&name=x", body))
