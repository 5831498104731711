# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""First placement of the bases: slices of locations, counts, copies that are apart."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oio.common.exceptions import ConfigurationException, PreconditionFailed
from oio.directory.meta0 import _bootstrap, _slice_services, generate_short_prefixes


def service(location, address=None):
    return {"addr": address or location, "tags": {"tag.loc": location}}


LOCATIONS = [f"s{site}.r{rack}.h{host}.v{volume}"
             for site in range(2) for rack in range(2) for host in range(2) for volume in range(3)]  # fmt: skip


@pytest.mark.parametrize(("level", "size"), [(0, 12), (1, 6), (2, 3), (3, 1)])
def test_slices_share_the_location_up_to_a_level(level, size):
    services = [service(location) for location in LOCATIONS]
    bounds = [(start, start + size) for start in range(0, len(services), size)]
    assert list(_slice_services(services, level)) == bounds


def test_short_locations_are_those_of_the_end():
    services = [service(location) for location in ("a", "b", "h.a", "h.b", "r.h.a")]
    assert list(_slice_services(services, 0)) == [(0, 5)]
    assert list(_slice_services(services, 1)) == [(0, 4), (4, 5)]
    assert list(_slice_services(services, 2)) == [(0, 2), (2, 4), (4, 5)]
    assert list(_slice_services([], 3)) == []


@pytest.mark.parametrize(
    "wrong",
    [{"addr": "x"}, {"addr": "x", "tags": {}}, {"addr": "x", "tags": {"tag.loc": ""}}, service("a.b.c.d.e")],
)
def test_locations_are_needed(wrong):
    with pytest.raises(ConfigurationException, match="poorly configured"):
        list(_slice_services([wrong], 3))
    with pytest.raises(ConfigurationException, match="poorly configured"):
        _bootstrap([service("a"), wrong], ["0"], 1, 3)


@pytest.mark.parametrize(
    ("count", "replicas", "degradation", "possible"),
    [(3, 3, 1, True), (2, 3, 1, False), (2, 3, 0, False), (5, 5, 2, True), (3, 5, 1, False), (1, 1, 0, True),
     (1, 1, 1, False), (4, 3, 2, False)],
)  # fmt: skip
def test_a_majority_must_survive_the_degradation(count, replicas, degradation, possible):
    services = [service(f"s{number}") for number in range(count)]
    if possible:
        assert sum(len(one["bases"]) for one in _bootstrap(services, ["A"], replicas, 3, degradation)) == replicas
    else:
        with pytest.raises(PreconditionFailed, match="not satisfiable"):
            _bootstrap(services, ["A"], replicas, 3, degradation)


@pytest.mark.parametrize(("level", "degradation"), [(0, 0), (1, 1), (2, 1), (3, 1)])
@pytest.mark.parametrize("digits", [0, 1, 2, 3])
def test_copies_are_in_consecutive_slices(level, degradation, digits):
    services = [service(location) for location in reversed(LOCATIONS)]
    names = list(generate_short_prefixes(digits))
    placed = _bootstrap(services, names, 3, level, degradation)
    assert [one["tags"]["tag.loc"] for one in placed] == LOCATIONS
    assert not any("bases" in one for one in services), "what is given is not changed"
    slices = list(_slice_services(placed, level))
    for number, base in enumerate(names):
        holders = [rank for rank, one in enumerate(placed) if base in one["bases"]]
        assert len(holders) == 3
        expected = Counter((number + copy) % len(slices) for copy in range(3))
        found = Counter(next(i for i, (s, e) in enumerate(slices) if s <= rank < e) for rank in holders)
        assert found == expected
    loads = [len(one["bases"]) for one in placed]
    assert max(loads) - min(loads) <= 3


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_base_has_its_copies_wherever_the_services_are(data):
    location = st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map(".".join)
    places = data.draw(st.lists(location, min_size=1, max_size=12))
    services = [service(place, f"10.0.0.{rank}:6000") for rank, place in enumerate(places)]
    replicas = data.draw(st.integers(1, len(services)))
    names = list(generate_short_prefixes(1))
    placed = _bootstrap(services, names, replicas, data.draw(st.integers(0, 3)))
    counts = Counter(base for one in placed for base in one["bases"])
    assert counts == dict.fromkeys(names, replicas)
