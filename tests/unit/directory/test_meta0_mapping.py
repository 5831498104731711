# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Plans of the table of the directory: what they keep, and how balanced they are."""

import json
import logging
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oio.common.exceptions import (
    ClientException,
    ConfigurationException,
    OioException,
    OioTimeout,
    PreconditionFailed,
    ServiceBusy,
)
from oio.directory import meta0 as meta0_module
from oio.directory.meta0 import Meta0PrefixMapping

LOGGER = logging.getLogger("test")
TOLERANCE = 0.08


class Conscience:
    def __init__(self, locations, scores=None):
        self.locations, self.scores = locations, scores or {}

    def all_services(self, _type):
        return [
            {"addr": f"10.0.0.{rank}:6001", "score": self.scores.get(rank, 50), "tags": {"tag.loc": location}}
            for rank, location in enumerate(self.locations)
        ]


class Meta0:
    conf = {"namespace": "NS"}

    def __init__(self, *errors):
        self.errors = [*errors]
        self.forced = []

    def force(self, table, **_kwargs):
        if self.errors:
            raise self.errors.pop(0)
        self.forced.append(json.loads(table))


def flat(count):
    return [f"host{rank}.vol{rank}" for rank in range(count)]


def make(locations, scores=None, meta0=None, **kwargs):
    conscience = Conscience(flat(locations) if isinstance(locations, int) else locations, scores)
    kwargs = {"digits": 2, "logger": LOGGER, **kwargs}
    return Meta0PrefixMapping(meta0 or Meta0(), conscience_client=conscience, **kwargs)


def booted(locations, **kwargs):
    level = kwargs.pop("level", "volume")
    mapping = make(locations, **kwargs)
    mapping.bootstrap(level)
    return mapping


def holders(mapping):
    return {base: {one["addr"] for one in services} for base, services in mapping.services_by_base.items()}


def check(mapping, balanced=True):
    """Counts are right, copies are far enough, sets of bases agree with the mapping, services have their share."""
    by_service = {one["addr"]: set() for one in mapping.services.values()}
    for base, services in mapping.services_by_base.items():
        assert len(services) == mapping.replicas == len({one["addr"] for one in services}), base
        for rank, one in enumerate(services):
            by_service[one["addr"]].add(base)
            for other in services[:rank]:
                distance = mapping.dist_between(mapping.get_loc(one), mapping.get_loc(other))
                assert distance >= mapping.min_dist, base
    assert len(mapping.services_by_base) == mapping.num_bases()
    for one in mapping.services.values():
        assert mapping.get_managed_bases(one) == by_service[one["addr"]]
        if balanced and mapping.get_score(one) > 0:
            limit, count = one["upper_limit"], len(one["bases"])
            assert abs(count - limit) <= max(1, limit * TOLERANCE), (count, limit)
    assert mapping.check_replicas()


def check_moves(before, after, moved):
    """Only these bases changed, and each by one service."""
    for base in before:
        assert len(before[base] - after[base]) == len(after[base] - before[base]) == (base in moved), base


# --- arguments ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [{"replicas": 0}, {"replicas": -1}, {"digits": 5}, {"digits": -1}, {"min_dist": 0}, {"min_dist": 5}],
)
def test_impossible_numbers(wrong):
    with pytest.raises(ConfigurationException):
        make(3, **wrong)


def test_defaults():
    mapping = Meta0PrefixMapping(Meta0(), conscience_client=Conscience([]), logger=LOGGER)
    assert (mapping.replicas, mapping.digits, mapping.min_dist, mapping.num_bases()) == (3, 4, 1, 65536)
    assert not mapping and mapping.services == {}
    assert make(3, digits=0).num_bases() == 1


@pytest.mark.parametrize(
    ("one", "other", "distance"),
    [("a", "a", 0), ("a.b.c", "a.b.c", 0), ("a.b.c", "a.b.d", 1), ("a.b.c", "a.x.c", 2), ("a", "b", 1),
     ("a.b", "a", 1), ("x.b.c.d", "y.b.c.d", 4)],
)  # fmt: skip
def test_distance(one, other, distance):
    assert Meta0PrefixMapping.dist_between(one, other) == Meta0PrefixMapping.dist_between(other, one) == distance


def test_location():
    mapping = make(1)
    assert mapping.get_loc({"addr": "1.2.3.4:5", "tags": {"tag.loc": "a.b"}}) == "a.b"
    assert mapping.get_loc({"addr": "1.2.3.4:5"}) == "1.2.3.4:5"
    assert mapping.get_loc({"addr": "1.2.3.4:5", "tags": {}}, "x") == "x"


def test_prefixes():
    mapping = make(1, digits=3)
    assert mapping.prefix_to_base("ABCD") == "ABC0" and mapping.num_bases() == 4096
    assert list(mapping.prefix_siblings("ABC7")) == [f"ABC{digit:X}" for digit in range(16)]
    assert list(make(1, digits=4).prefix_siblings("ABCD")) == ["ABCD"]


@pytest.mark.parametrize(
    ("base", "expected"),
    [("AB", ("AB" + "0" * 62, None)), ("ab.12", ("AB" + "0" * 62, 12)), ("C" * 64 + ".1", ("C" * 64, 1))],
)
def test_names_of_bases(base, expected):
    assert Meta0PrefixMapping.get_cid_and_seq(base) == expected


@pytest.mark.parametrize("wrong", ["", "AB.", "AB.x", "AB.1.2", "AB.-1", "XY", "A" * 65, "AB.1 ", "AB\n"])
def test_other_names(wrong):
    with pytest.raises(ValueError):
        Meta0PrefixMapping.get_cid_and_seq(wrong)


# --- reading and writing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("digits", [0, 2])
def test_json(digits):
    mapping = booted(4, digits=digits)
    table = json.loads(mapping.to_json())
    assert len(table) == 65536 and all(len(prefix) == 4 for prefix in table)
    for given_table in (mapping.to_json(), table):
        other = make(4, digits=digits)
        other.load_json(given_table)
        assert holders(other) == holders(mapping) and other
        assert json.loads(other.to_json()) == table
        check(other, balanced=False)
    base = min(mapping.services_by_base)
    assert sorted(json.loads(mapping.to_json([base]))) == sorted(mapping.prefix_siblings(base))
    other.load_json(None)
    assert not other and all(not one["bases"] for one in other.services.values())


@pytest.mark.parametrize(
    "wrong", ["[]", "[1]", "{", '{"AB": ["a"]}', '{"XYZT": ["a"]}', '{"0000": "a"}', '{"0000": [1]}']
)
def test_tables_that_are_none(wrong):
    mapping = make(1)
    if wrong == "[]":
        with pytest.raises(ValueError):
            mapping.load_json([1])
        return
    with pytest.raises(ValueError):
        mapping.load_json(wrong)


def test_services_that_the_conscience_forgot_stay():
    mapping = make(3)
    table = {f"{number:04X}": ["10.0.0.0:6001", "10.9.9.9:1"] for number in range(65536)}
    mapping.load_json(table)
    lost = mapping.services["10.9.9.9:1"]
    assert mapping.get_score(lost) == 0 and len(lost["bases"]) == 256
    assert not mapping.check_replicas()
    assert mapping.decommission("10.9.9.9:1") == set(mapping.services_by_base)
    check(mapping)


def test_a_table_is_read_from_meta0():
    meta0 = Meta0()
    meta0.list = lambda **kwargs: {"0000": ["10.0.0.1:6001"], **kwargs}
    mapping = make(2, meta0=meta0)
    mapping.load_meta0()
    assert mapping.raw_services_by_base == {"0000": ["10.0.0.1:6001"]}
    assert not mapping.check_replicas()


def test_assigned_services():
    mapping = make(3)
    one, two, three = mapping.services.values()
    mapping.assign_services("AB00", [one, two])
    with pytest.raises(ValueError):
        mapping.assign_services("AB00", [three], fail_if_already_set=True)
    mapping.assign_services("AB00", [two, three])
    assert [mapping.get_managed_bases(svc) for svc in (one, two, three)] == [set(), {"AB00"}, {"AB00"}]
    assert mapping.count_pfx_by_svc() == {one["addr"]: 0, two["addr"]: 256, three["addr"]: 256}
    assert list(mapping.count_pfx_by_svc()) == [one["addr"], two["addr"], three["addr"]]


# --- completing sets of services ----------------------------------------------------------------------------


def test_services_with_less_bases_or_better_scores():
    mapping = make(5, scores={0: 10, 1: 90, 2: 50, 3: 0, 4: 50})
    one, two, three, zero, five = mapping.services.values()
    mapping.assign_services("0000", [two, five])
    mapping.assign_services("0100", [two])
    assert mapping.find_services_less_bases() == [three, one, five]
    assert mapping.find_services_less_bases([two]) == [two, three, one]
    assert mapping.find_services_more_availability() == [two, three, five]
    assert mapping.find_services_more_availability([zero], min_score=60) == [zero, two]


def test_a_set_is_not_completed_with_neighbours():
    mapping = make(["r1.h1.a", "r1.h1.b", "r1.h2.c", "r2.h3.d"], min_dist=2)
    first, second, third, fourth = mapping.services.values()
    assert mapping.find_services_less_bases([first]) == [first, third, fourth]
    mapping.min_dist = 3
    assert mapping.find_services_less_bases([second]) == [second, fourth]


# --- bootstrap ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("digits", range(4))
@pytest.mark.parametrize(("count", "replicas"), [(1, 1), (3, 3), (4, 3), (7, 3), (10, 5)])
def test_bootstrap(count, replicas, digits):
    mapping = booted(count, replicas=replicas, digits=digits)
    check(mapping, balanced=False)
    loads = [len(one["bases"]) for one in mapping.services.values()]
    assert max(loads) - min(loads) <= replicas


def test_bootstrap_again_moves_to_other_places():
    mapping = booted(6)
    mapping.services["10.0.0.0:6001"]["tags"]["tag.loc"] = "zzz.zzz"
    mapping.bootstrap()
    check(mapping, balanced=False)


def test_bootstraps_that_are_refused():
    mapping = make(["r1.h1.a", "r1.h2.b", "r1.h3.c"])
    with pytest.raises(PreconditionFailed):
        mapping.bootstrap("rack", degradation=1)
    mapping.bootstrap("rack", degradation=0)
    with pytest.raises(ConfigurationException):
        mapping.bootstrap("room")
    with pytest.raises(PreconditionFailed):
        make(2).bootstrap()


# --- decommission -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("digits", [1, 2, 3])
@pytest.mark.parametrize("count", [4, 5, 11])
def test_a_service_is_emptied(count, digits):
    mapping = booted(count, digits=digits)
    before = holders(mapping)
    gone = mapping.services["10.0.0.2:6001"]
    bases = mapping.get_managed_bases(gone)
    moved = mapping.decommission(gone)
    assert moved == bases and not gone["bases"] and gone["score"] == 50
    check_moves(before, holders(mapping), moved)
    gone["score"] = 0
    check(mapping)


def test_some_bases_are_taken_from_a_service():
    mapping = booted(5)
    before = holders(mapping)
    some = sorted(mapping.get_managed_bases("10.0.0.1:6001"))[:7]
    others = {base for base in before if base not in mapping.get_managed_bases("10.0.0.1:6001")}
    assert mapping.decommission("10.0.0.1:6001", bases_to_remove=some) == set(some)
    check_moves(before, holders(mapping), some)
    assert mapping.decommission("10.0.0.1:6001", bases_to_remove=[]) == set()
    with pytest.raises(ValueError):
        mapping.decommission("10.0.0.1:6001", bases_to_remove=[min(others)])
    with pytest.raises(ValueError):
        mapping.decommission("10.0.0.99:6001")


def test_too_few_services_are_left():
    mapping = booted(3)
    before = holders(mapping)
    with pytest.raises(ValueError, match="3 copies"):
        mapping.decommission("10.0.0.1:6001")
    assert holders(mapping) == before and mapping.services["10.0.0.1:6001"]["score"] == 50
    assert mapping.decommission("10.0.0.1:6001", try_=True, compute_upper_limit=False) == set()
    assert holders(mapping) == before
    moved = mapping.decommission("10.0.0.1:6001", compute_upper_limit=False)
    assert moved == set(before) and not mapping.check_replicas()
    assert all("10.0.0.1:6001" not in services and len(services) == 2 for services in holders(mapping).values())


def test_bases_go_where_the_strategy_says():
    mapping = booted(5, scores={4: 100})
    moved = mapping.decommission("10.0.0.0:6001", strategy=mapping.find_services_more_availability)
    check(mapping, balanced=False)
    gained = {base for base in moved if "10.0.0.4:6001" in holders(mapping)[base]}
    assert gained == moved


def test_emptied_services_keep_the_distance():
    locations = [f"r{rank % 4}.h{rank}.v" for rank in range(12)]
    mapping = booted(locations, min_dist=3, level="rack")
    check(mapping, balanced=False)
    before = holders(mapping)
    moved = mapping.decommission("10.0.0.7:6001")
    check_moves(before, holders(mapping), moved)
    check(mapping, balanced=False)


# --- rebalance ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("digits", [0, 1, 2, 3])
@pytest.mark.parametrize("count", [3, 4, 7, 10])
def test_what_is_balanced_hardly_moves(count, digits):
    mapping = booted(count, digits=digits)
    assert len(mapping.rebalance()) <= count
    check(mapping)
    assert mapping.rebalance() == set()


@pytest.mark.parametrize("digits", [1, 2, 3])
@pytest.mark.parametrize(("count", "more"), [(3, 1), (5, 2), (8, 3), (3, 3), (10, 1)])
def test_new_services_get_their_share(count, more, digits):
    small = booted(count, digits=digits)
    mapping = make(count + more, digits=digits)
    mapping.load_json(small.to_json())
    before = holders(mapping)
    moved = mapping.rebalance()
    check_moves(before, holders(mapping), moved)
    new = more * mapping.num_bases() * 3 // (count + more)
    check(mapping, balanced=new <= mapping.num_bases())
    if new > mapping.num_bases():
        # Each base had its move; nobody is worse off than others.
        assert len(moved) == mapping.num_bases()
        old = [len(mapping.services[f"10.0.0.{rank}:6001"]["bases"]) for rank in range(count)]
        assert max(old) - min(old) <= max(2, max(old) * TOLERANCE)
    gained = sum(len(mapping.services[f"10.0.0.{rank}:6001"]["bases"]) for rank in range(count, count + more))
    assert len(moved) <= gained + count


def test_copies_that_are_too_near_are_moved_apart():
    locations = [f"r{rank % 4}.h{rank}.v" for rank in range(12)]
    mapping = booted(locations)
    # Copies 1 and 2 of each base are in the same rack.
    services = list(mapping.services.values())
    by_rack = [services[rack::4] for rack in range(4)]
    for number, base in enumerate(sorted(mapping.services_by_base)):
        near, far = by_rack[number % 4], by_rack[(number + 1) % 4]
        mapping.assign_services(base, [near[0], near[1], far[number % 3]])
    mapping.min_dist = 3
    before = holders(mapping)
    moved = mapping.rebalance()
    assert moved == set(before)
    check_moves(before, holders(mapping), moved)
    check(mapping)


def test_racks_of_different_sizes():
    locations = [*(f"r0.h{rank}.v" for rank in range(2)), *(f"r1.h{rank}.v" for rank in range(4)),
                 *(f"r2.h{rank}.v" for rank in range(8))]  # fmt: skip
    mapping = booted(locations, min_dist=3, level="rack")
    mapping.rebalance()
    check(mapping)
    assert [mapping.services[f"10.0.0.{rank}:6001"]["upper_limit"] for rank in (0, 2, 6)] == [128, 64, 32]
    assert mapping.services["10.0.0.0:6001"]["location"] == "r0"


def test_services_that_are_down_are_left_alone():
    mapping = booted(6)
    mapping.services["10.0.0.3:6001"]["score"] = 0
    bases = mapping.get_managed_bases("10.0.0.3:6001")
    assert mapping.rebalance() == set()
    assert mapping.get_managed_bases("10.0.0.3:6001") == bases
    assert mapping.services["10.0.0.3:6001"]["upper_limit"] == 0


def test_too_few_locations():
    mapping = booted(4)
    mapping.services["10.0.0.3:6001"]["score"] = mapping.services["10.0.0.2:6001"]["score"] = 0
    with pytest.raises(ValueError, match="2 found"):
        mapping.rebalance()
    mapping = booted([f"r{rank % 2}.h{rank}.v" for rank in range(6)])
    mapping.min_dist = 3
    with pytest.raises(ValueError, match="2 found"):
        mapping.rebalance()


def test_loops_are_limited():
    small = booted(3)
    mapping = make(6)
    mapping.load_json(small.to_json())
    assert mapping.rebalance(max_loops=0) == set()
    assert 0 < len(mapping.rebalance(max_loops=1)) < 256


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_rebalance_from_anywhere(data):
    """Whatever the start, counts and distances hold, and one service of a base changes at most."""
    racks = data.draw(st.integers(3, 6))
    sizes = data.draw(st.lists(st.integers(1, 4), min_size=racks, max_size=racks))
    locations = [f"r{rack}.h{host}.v" for rack, size in enumerate(sizes) for host in range(size)]
    min_dist = data.draw(st.sampled_from([1, 2, 3]))
    mapping = make(locations, min_dist=min_dist, digits=1)
    services = list(mapping.services.values())
    rack_of = {svc["addr"]: svc["tags"]["tag.loc"].split(".")[0] for svc in services}
    for base in (f"{number:X}000" for number in range(16)):
        chosen = []
        while len(chosen) < 3:
            far = [svc for svc in services if rack_of[svc["addr"]] not in {rack_of[one["addr"]] for one in chosen}]
            chosen.append(data.draw(st.sampled_from(far)))
        mapping.assign_services(base, chosen)
    before = holders(mapping)
    moved = mapping.rebalance()
    check_moves(before, holders(mapping), moved)
    check(mapping, balanced=False)
    over = [svc for svc in services if len(svc["bases"]) > svc["upper_limit"]]
    # Too many may only stay when their bases had their move, or may not go where there is place.
    for svc in over:
        for base in svc["bases"] - moved:
            free = [one for one in services if len(one["bases"]) < one["upper_limit"]]
            others = [one for one in mapping.services_by_base[base] if one is not svc]
            for one in free:
                near = [mapping._near(one, other) for other in others]
                assert any(near), f"{base} of {svc['addr']} could go to {one['addr']}"


# --- applying -----------------------------------------------------------------------------------------------


@pytest.fixture
def pauses(monkeypatch):
    found = []
    monkeypatch.setattr(meta0_module.time, "sleep", found.append)
    return found


def test_the_whole_table_is_uploaded(pauses):
    meta0 = Meta0(ServiceBusy(), OioTimeout(), ClientException(500, 504))
    mapping = booted(3, meta0=meta0)
    assert mapping.apply() == []
    assert meta0.forced == [json.loads(mapping.to_json())]
    assert pauses == sorted(pauses) and len(pauses) == 3


@pytest.mark.parametrize(("error", "tries"), [(ClientException(400, 400), 1), (ServiceBusy(503, 503), 7)])
def test_the_table_is_refused(pauses, error, tries):
    meta0 = Meta0(*[error] * 9)
    mapping = booted(3, meta0=meta0)
    with pytest.raises(OioException):
        mapping.apply()
    assert len(meta0.errors) == 9 - tries


class Admin:
    """Services that hold bases, by the prefix of 4 digits."""

    def __init__(self, bases):
        self.bases = {base: {*services} for base, services in bases.items()}
        self.peers = {}
        self.said = []
        self.flushed = []
        self.failing = {}

    @staticmethod
    def _answers(services, code=200):
        return {one: {"status": {"status": code, "message": "m"}, "body": ""} for one in services}

    def _note(self, action, service_type, cid, **kwargs):
        assert service_type == "meta1" and len(cid) == 64 and cid.endswith("0" * 60)
        self.said.append((action, cid[:4], kwargs))
        if action in self.failing:
            raise self.failing[action]
        return cid[:4]

    def has_base(self, service_type, cid, service_id):
        base = self._note("has", service_type, cid)
        held = self.bases.get(base, set())
        return {**self._answers(service_id, 431), **self._answers(held & {*service_id})}

    def set_peers(self, service_type, cid, peers):
        self.peers[self._note("peers", service_type, cid)] = sorted(peers)

    def copy_base_from(self, service_type, cid, svc_from, svc_to):
        base = self._note("copy", service_type, cid)
        assert svc_from in self.bases[base]
        self.bases[base].add(svc_to)

    def election_leave(self, service_type, cid, service_id):
        self._note("leave", service_type, cid)
        return self._answers(service_id)

    def remove_base(self, service_type, cid, service_id):
        self.bases[self._note("remove", service_type, cid)] -= {*service_id}
        return self._answers(service_id)

    def service_flush_cache(self, address):
        self.flushed.append(address)

    def election_status(self, service_type, cid, service_id=None):
        self._note("status", service_type, cid)
        return {"peers": {}, "master": min(self.bases[cid[:4]])}


@pytest.fixture
def change():
    """A mapping from which one service goes, and the services that answer for it."""
    mapping = booted(4, meta0=Meta0())
    mapping.load_json(mapping.to_json())
    before = holders(mapping)
    admin = Admin({base: services for base, services in before.items() if base != "0000"})
    mapping.admin = admin
    moved = mapping.decommission("10.0.0.0:6001")
    return SimpleNamespace(mapping=mapping, admin=admin, before=before, moved=moved, meta0=mapping.m0)


def test_bases_follow_the_plan(change):
    assert change.mapping.apply(moved=change.moved) == sorted(change.moved)
    assert not change.admin.flushed
    after = holders(change.mapping)
    assert change.admin.bases == {base: services for base, services in after.items() if base != "0000"}
    assert change.admin.peers == {base: sorted(after[base]) for base in change.moved if base != "0000"}
    assert {prefix for table in change.meta0.forced for prefix in table} == {
        base[:2] + end for base in change.moved for end in (f"{number:02X}" for number in range(256))
    }
    used = min(change.moved - {"0000"})
    actions = [action for action, base, _ in change.admin.said if base == used]
    assert actions == ["has", "status", "peers", "copy", "leave", "remove", "status"]
    assert [action for action, base, _ in change.admin.said if base == "0000"] == ["has"], "it was never used"
    assert {base: {*services} for base, services in change.mapping.raw_services_by_base.items()} == after


def test_the_service_of_a_single_copy_is_told():
    mapping = booted(2, replicas=1)
    mapping.load_json(mapping.to_json())
    mapping.admin = Admin(holders(mapping))
    moved = mapping.decommission("10.0.0.0:6001")
    assert mapping.apply(moved=moved) == sorted(moved)
    assert mapping.admin.flushed == ["10.0.0.0:6001"] * 128


def test_a_base_that_cannot_be_copied_stays(change):
    change.admin.failing["copy"] = ServiceBusy()
    assert change.mapping.apply(moved=change.moved) == ["0000"]
    assert len(change.meta0.forced) == 1
    assert change.admin.peers == {base: sorted(change.before[base]) for base in change.moved if base != "0000"}
    held = holders(change.mapping)
    assert {base for base, services in held.items() if services != change.before[base]} == {"0000"}
    assert change.mapping.count_pfx_by_svc()["10.0.0.0:6001"] == 256 * (len(change.moved) - 1)


@pytest.mark.parametrize(("dead", "moves"), [(1, True), (2, False)])
def test_a_base_that_was_never_used_moves_while_a_majority_answers(change, dead, moves):
    silent = sorted(change.before["0000"])[:dead]
    has_base = change.admin.has_base

    def answer(service_type, cid, service_id):
        return has_base(service_type, cid, service_id) | Admin._answers({*silent} & {*service_id}, 503)

    change.admin.has_base = answer
    assert change.mapping.apply(moved=["0000"]) == (["0000"] if moves else [])


def test_bases_stay_when_meta0_refuses(change, pauses):
    change.meta0.errors = [ClientException(400, 400)]
    moved = sorted(change.moved)
    together = change.mapping.batch
    assert change.mapping.apply(moved=moved) == moved[together:]
    for base in moved[1:together]:
        assert change.admin.peers[base] == sorted(change.before[base])
    assert len(change.meta0.forced) == -(-len(moved) // together) - 1


def test_what_fails_after_the_change_is_told_only(change, caplog):
    change.admin.failing = {"leave": ServiceBusy(), "remove": ServiceBusy()}
    assert change.mapping.apply(moved=change.moved) == sorted(change.moved)
    assert "not left" in caplog.text and "not removed" in caplog.text
