# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""The prefix table: balance, distance between copies, and bootstraps that change nothing twice."""

from collections import Counter

import pytest

from oio.common.exceptions import ConfigurationException
from oio.common.status import StatusError
from oio.conscience.messages import Service
from oio.directory import mapping
from oio.meta.messages import Meta0Get, Meta0Set, PrefixMapping


def services(count, racks=1):
    return {f"10.0.0.{n}:6000": f"rack{n % racks}.host{n}.{n}" for n in range(count)}


@pytest.mark.parametrize("digits", range(5))
def test_prefixes_are_all_there_and_padded(digits):
    prefixes = list(mapping.generate_prefixes(digits))
    assert len(prefixes) == len(set(prefixes)) == mapping.count_prefixes(digits) == 16**digits
    assert all(len(prefix) == 4 for prefix in prefixes)
    assert prefixes == sorted(prefixes)


@pytest.mark.parametrize("digits", [-1, 5])
def test_prefixes_have_at_most_four_digits(digits):
    with pytest.raises(ValueError):
        mapping.count_prefixes(digits)


def test_base_of_keeps_the_significant_digits():
    assert mapping.base_of("ABCDEF", 2) == "AB00"
    assert mapping.base_of("ABCDEF", 0) == "0000"
    assert mapping.base_of("ABCDEF", 4) == "ABCD"


@pytest.mark.parametrize("digits", range(5))
def test_expanded_bases_cover_the_table(digits):
    table = mapping.expand(mapping.compute(services(3), digits, 2), digits)
    assert len(table) == mapping.PREFIXES
    for prefix in ("0000", "AB12", "FFFF"):
        assert table[prefix] == table[mapping.base_of(prefix, digits)]


@pytest.mark.parametrize(("count", "replicas"), [(1, 1), (3, 1), (3, 3), (7, 3), (10, 2)])
def test_bases_are_balanced(count, replicas):
    bases = mapping.compute(services(count), 2, replicas)
    load = Counter(address for addresses in bases.values() for address in addresses)
    assert len(load) == count
    assert max(load.values()) - min(load.values()) <= replicas
    assert all(len(set(addresses)) == replicas for addresses in bases.values())


@pytest.mark.parametrize("racks", [3, 4])
def test_copies_are_in_different_racks_when_possible(racks):
    locations = services(12, racks)
    for addresses in mapping.compute(locations, 2, 3).values():
        assert len({locations[address].split(".")[0] for address in addresses}) == 3


def test_more_copies_than_services_is_refused():
    with pytest.raises(ConfigurationException, match="3 copies"):
        mapping.compute(services(2), 2, 3)
    with pytest.raises(ConfigurationException):
        mapping.compute(services(2), 2, 0)


class FakeMeta0:
    """Prefix tables of several meta0, behind the interface of MetaClient."""

    def __init__(self, *addresses):
        self.tables = {address: {} for address in addresses}
        self.writes = 0

    def call(self, address, request, **_kwargs):
        table = self.tables[address]
        if isinstance(request, Meta0Get):
            return PrefixMapping(mapping=dict(table))
        assert isinstance(request, Meta0Set)
        self.writes += 1
        table.update(request.mapping)
        return None


def known(addresses):
    return [
        Service(type="meta1", addr=address, score=0, tags={"tag.loc": location})
        for address, location in addresses.items()
    ]


def test_bootstrap_fills_every_meta0_once():
    meta0 = FakeMeta0("a:1", "b:1")
    assert mapping.bootstrap(meta0, ["a:1", "b:1"], known(services(3)), 2, 1) == 2 * mapping.PREFIXES
    assert meta0.tables["a:1"] == meta0.tables["b:1"]
    assert mapping.bootstrap(meta0, ["a:1", "b:1"], known(services(3)), 2, 1) == 0
    assert meta0.writes == 2


def test_bootstrap_keeps_what_exists_and_copies_it():
    meta0 = FakeMeta0("a:1", "b:1")
    meta0.tables["b:1"]["AB00"] = ["10.9.9.9:1"]
    mapping.bootstrap(meta0, ["a:1", "b:1"], known(services(3)), 2, 1)
    assert meta0.tables["a:1"]["AB00"] == meta0.tables["b:1"]["AB00"] == ["10.9.9.9:1"]
    assert len(meta0.tables["a:1"]) == mapping.PREFIXES


def test_bootstrap_without_meta0_is_an_error():
    with pytest.raises(StatusError, match="No meta0"):
        mapping.bootstrap(FakeMeta0(), [], known(services(1)), 2, 1)
