# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Each rule of the selection of services, alone; and what must hold for any of them at once."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oio.common.status import StatusError
from oio.conscience.messages import NamespaceInfo, Service
from oio.proxy.chunks import near_score
from oio.proxy.lb import NotEnoughServices, build_world
from oio.proxy.lb.location import distance, djb2, location_from_text
from oio.proxy.lb.pool import parse_pool

#: Random draws looked at: a rule that is broken shows within a few.
DRAWS = 60


def service(number, location="", *, score=50, slots="", kind="rawx"):
    tags = {"tag.service_id": f"s{number}"}
    if location:
        tags["tag.loc"] = location
    if slots:
        tags["tag.slots"] = slots
    return Service(type=kind, addr=f"127.0.0.1:{1000 + number}", score=score, tags=tags)


def world_of(services, *, namespace=None, **kwargs):
    groups = {}
    for one in services:
        groups.setdefault(one.type, []).append(one)
    return build_world(NamespaceInfo(ns="NS", **(namespace or {})), groups, sorted(groups), **kwargs)


def pool_of(services, text, **kwargs):
    return world_of(services, **kwargs).with_pool(parse_pool("p", text)).pool("p")


def draw(pool, **kwargs):
    """Several selections."""
    return [pool.poll(**kwargs) for _ in range(DRAWS)]


def ids(selection):
    return [choice.item.id for choice in selection.choices]


# --- locations and slots


def test_a_location_is_packed_from_the_right():
    location = location_from_text("room.rack.host.volume")
    assert location == djb2("room") << 48 | djb2("rack") << 32 | djb2("host") << 16 | djb2("volume")
    assert location_from_text("volume") == djb2("volume")
    assert location_from_text("0xFFFFFFFFFFFFFFFF") == (1 << 64) - 1


@pytest.mark.parametrize("text", ["", "0xnothing"])
def test_a_service_without_usable_location_is_where_its_address_is(text):
    (item,) = world_of([service(1, text)]).items
    if not text:
        assert item.location == 0x7F000001 << 16 | 1001
    assert isinstance(item.location, int)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("a.b.c.d", "a.b.c.d", 0), ("a.b.c.d", "a.b.c.e", 1), ("a.b.c.d", "a.b.x.d", 2), ("a.b.c.d", "a.x.c.d", 3),
        ("0x0001000000000000", "0x0002000000000000", 4), ("0x0100000000000000", "0x0200000000000000", 5),
        ("c.d", "a.b.c.d", 5),
    ],
)  # fmt: skip
def test_distances_of_names(one, other, expected):
    found = distance(location_from_text(one), location_from_text(other))
    assert found == expected or (expected == 5 and found >= 4)


def test_names_of_slots():
    services = [service(1, "h1.v", slots="fast, rawx-slow,,rawxy"), service(2, "h2.v", slots="fast", score=0)]
    slots = world_of(services).slots
    assert set(slots) == {"rawx", "rawx-fast", "rawx-slow", "rawxy"}
    assert all([item.id for item in slot.items] == ["s1"] for slot in slots.values())


# --- policies


NAMESPACE = {
    "storage_policy": {"AUTO": "NONE:DUP", "MISSING": "absent:EC", "OWN": "mine:DUP", "PLAIN": "mine:NONE"},
    "service_pools": {"mine": "1,rawx;min_dist=2"},
    "data_security": {
        "DUP": "plain/nb_copy=3,min_dist=2,warn_dist=1",
        "EC": "ec/k=4,m=2,algo=isa_l_rs_cauchy,distance=1",
    },
}


@pytest.mark.parametrize(
    ("policy", "pool", "targets", "min_dist", "warn_dist", "method"),
    [
        ("AUTO", "AUTO", 3, 2, 1, "plain/nb_copy=3"),
        ("MISSING", "absent", 6, 1, 0, "ec/algo=isa_l_rs_cauchy,k=4,m=2"),
        ("OWN", "mine", 1, 2, 0, "plain/nb_copy=3"),
        ("PLAIN", "mine", 1, 2, 0, "plain/nb_copy=1"),
        ("NONE", "rawx", 1, 1, 0, "plain/nb_copy=1"),
        ("plain", "rawx", 1, 1, 0, "plain/nb_copy=1"),
        ("", "rawx", 1, 1, 0, "plain/nb_copy=1"),
    ],
)
def test_pools_of_policies(policy, pool, targets, min_dist, warn_dist, method):
    world = world_of([service(1, "h1.v")], namespace=NAMESPACE)
    found = world.policy(policy)
    assert (found.pool, found.chunk_method) == (pool, method)
    definition = world.pools[pool]
    assert (len(definition.targets), definition.min_dist, definition.warn_dist) == (targets, min_dist, warn_dist)
    assert set(definition.targets) == {("rawx",)}


def test_a_policy_that_nobody_defined():
    with pytest.raises(StatusError) as caught:
        world_of([], namespace=NAMESPACE).policy("NOPE")
    assert caught.value.code == 480


def test_a_configured_pool_named_after_a_type_wins():
    namespace = {"service_pools": {"rawx": "2,rawx"}}
    world = world_of([service(1, "h1.v")], namespace=namespace, update_policy="rawx=KEEP|5|1")
    assert len(world.pools["rawx"].targets) == 2


# --- 1: from the widest distance to the smallest, or the reverse


@pytest.mark.parametrize(
    ("locations", "options", "start", "reached"),
    [
        (["a.r.h.v", "b.r.h.v"], "", 4, 4), (["a.r.h.v", "b.r.h.v"], "max_dist=2", 2, 4),
        (["r1.h.v", "r2.h.v"], "", 3, 3), (["h1.v", "h2.v"], "", 2, 2), (["h.v1", "h.v2"], "", 1, 1),
        (["h.v1", "h.v2"], "max_dist=3", 1, 1),
    ],
)  # fmt: skip
def test_the_start_distance(locations, options, start, reached):
    services = [service(number, location) for number, location in enumerate(locations)]
    selection = pool_of(services, f"2,rawx;{options}").poll()
    assert selection.expected_dist == start
    assert {choice.final_dist for choice in selection.choices} <= {reached, 4}


def test_the_widest_possible_spread_is_taken():
    services = [service(10 * rack + n, f"rack{rack}.h{n}.v") for rack in (1, 2) for n in (1, 2, 3)]
    for selection in draw(pool_of(services, "2,rawx")):
        assert {choice.item.id[1] for choice in selection.choices} == {"1", "2"}


def test_the_distance_is_lowered_when_it_must_be():
    services = [service(n, f"rack.h1.v{n}") for n in (1, 2)] + [service(3, "rack.h2.v3")]
    pool = pool_of(services, "3,rawx", bypass=False)
    for selection in draw(pool):
        assert sorted(ids(selection)) == ["s1", "s2", "s3"]
        assert {choice.item.id: choice.final_dist for choice in selection.choices} == {"s1": 1, "s2": 1, "s3": 2}


def test_nearby_mode_grows():
    services = [service(10 * host + n, f"rack.h{host}.v{n}") for host in (1, 2) for n in (1, 2)]
    pool = pool_of(services, "3,rawx;nearby_mode=1")
    for selection in draw(pool):
        assert selection.expected_dist == 1
        assert sorted(Counter(one[1] for one in ids(selection)).values()) == [1, 2], "a host is filled first"


# --- 2: what is known


def test_known_services_are_found_in_the_main_slot_then_in_fallbacks():
    services = [service(1, "h1.v", slots="a"), service(2, "h2.v", slots="b"), service(3, "h3.v", slots="a,b")]
    world = world_of(services)
    pool = world.with_pool(parse_pool("p", "1,rawx-a,rawx-b;1,rawx-b")).pool("p")
    for selection in draw(pool, known=[world.by_id["rawx", "s1"].location]):
        assert [choice.expected_slot for choice in selection.choices] == ["rawx-b"]
    for selection in draw(pool, known=[world.by_id["rawx", "s2"].location]):
        assert [choice.expected_slot for choice in selection.choices] == ["rawx-a"], "main slot before fallback"


@pytest.mark.parametrize("known", [3, 4])
def test_everything_is_known_already(known):
    services = [service(n, f"h{n}.v") for n in range(6)]
    world = world_of(services)
    pool = world.with_pool(parse_pool("p", "3,rawx")).pool("p")
    with pytest.raises(StatusError) as caught:
        pool.poll(known=[item.location for item in world.items[:known]])
    assert caught.value.code == 400


# --- 3: draws by weight, then everybody is looked at


# --- any slot

BESIDE = "1,__any_slot;1,rdir"


def rdirs(*locations, **kwargs):
    return [service(100 + number, where, kind="rdir", **kwargs) for number, where in enumerate(locations)]


@pytest.mark.parametrize("score", [0, 50])
def test_a_known_service_of_any_type_and_score_takes_the_joker(score):
    volumes = [service(number, f"host{number}.v", score=score) for number in (1, 2)]
    world = world_of([*volumes, *rdirs("host1.r", "host2.r")])
    pool = world.with_pool(parse_pool("p", BESIDE)).pool("p")
    near, far = world.find("rdir", "s100"), world.find("rdir", "s101")
    for volume in volumes:
        location = world.find("rawx", volume.service_id).location
        other = far if volume is volumes[0] else near
        for selection in draw(pool, known=[location]):
            assert ids(selection) == [other.id], "the other host first"
        same_host = near if other is far else far
        for selection in draw(pool, known=[location], avoid={other.location}):
            assert ids(selection) == [same_host.id], "balance before distance"
        with pytest.raises(NotEnoughServices):
            pool.poll(known=[location], avoid={near.location, far.location})


def test_the_least_distance_to_the_joker_holds():
    world = world_of([service(1, "host1.v"), *rdirs("host1.r")])
    where = [world.find("rawx", "s1").location]
    assert len(world.with_pool(parse_pool("p", BESIDE)).pool("p").poll(known=where).choices) == 1
    with pytest.raises(NotEnoughServices):
        world.with_pool(parse_pool("p", BESIDE + ";min_dist=2")).pool("p").poll(known=where)


def test_one_location_for_a_volume_and_its_rdir_is_the_last_resort():
    world = world_of([service(1, "rack.host.1"), *rdirs("rack.host.1", "rack.host.2")])
    pool = world.with_pool(parse_pool("p", BESIDE)).pool("p")
    same, other = world.find("rdir", "s100").location, world.find("rdir", "s101").location
    assert {tuple(ids(one)) for one in draw(pool, known=[same])} == {("s101",)}
    assert ids(pool.poll(known=[same], avoid={other})) == ["s100"]
    with pytest.raises(NotEnoughServices):
        pool.poll(known=[same], avoid={same, other})
    demanding = world.with_pool(parse_pool("p", BESIDE + ";min_dist=2")).pool("p")
    with pytest.raises(NotEnoughServices):
        demanding.poll(known=[same])


def test_a_known_rdir_takes_the_joker_too():
    world = world_of(rdirs("host1.r", "host2.r"))
    pool = world.with_pool(parse_pool("p", BESIDE)).pool("p")
    assert [ids(one) for one in draw(pool, known=[world.find("rdir", "s100").location])] == [["s101"]] * DRAWS
    for selection in (pool.poll(known_elsewhere=1) for _ in range(DRAWS)):
        assert ids(selection) in (["s100"], ["s101"])


def test_without_anything_known_the_joker_is_any_service():
    pool = pool_of([service(1, "host1.v"), *rdirs("host1.r")], BESIDE)
    for selection in draw(pool):
        assert ids(selection) == ["s1", "s100"]


def test_the_only_service_that_fits_is_found_whatever_its_weight():
    services = [service(n, f"h{n}.v", score=100) for n in range(40)] + [service(99, "h99.v", score=1)]
    world = world_of(services, attempts=1)
    pool = world.with_pool(parse_pool("p", "1,rawx")).pool("p")
    avoid = {item.location for item in world.items if item.score == 100}
    for selection in draw(pool, avoid=avoid):
        assert ids(selection) == ["s99"]


def test_fallbacks_are_tried_in_order():
    services = [service(1, "h1.v", slots="b"), service(2, "h2.v", slots="c"), service(3, "h3.v")]
    for selection in draw(pool_of(services, "1,rawx-a,rawx-b,rawx-c")):
        assert ids(selection) == ["s1"]
        assert selection.choices[0].expected_slot == "rawx-a" and selection.choices[0].final_slot == "rawx-b"
        assert selection.flawed


# --- 4: what is accepted


def test_avoided_locations_are_exact():
    services = [service(1, "h.v1"), service(2, "h.v2")]
    world = world_of(services)
    pool = world.with_pool(parse_pool("p", "1,rawx")).pool("p")
    for selection in draw(pool, avoid={world.by_id["rawx", "s1"].location}):
        assert ids(selection) == ["s2"], "the same host is not avoided"


@pytest.mark.parametrize("options", ["", "nearby_mode=1", "max_dist=1"])
def test_services_at_one_location_are_never_together(options):
    services = [service(n, "same.place") for n in range(5)] + [service(9, "other.place")]
    pool = pool_of(services, f"2,rawx;{options}")
    for selection in draw(pool):
        assert "s9" in ids(selection)
    with pytest.raises(NotEnoughServices):
        pool_of(services, f"3,rawx;{options}").poll()


def test_nothing_is_put_where_a_known_service_is():
    services = [service(1, "same.place"), service(2, "same.place"), service(3, "other.place")]
    world = world_of(services)
    pool = world.with_pool(parse_pool("p", "2,rawx")).pool("p")
    for selection in draw(pool, known=[world.by_id["rawx", "s1"].location]):
        assert ids(selection) == ["s3"]


def test_areas_get_their_share_and_no_more():
    """Three racks of four: nine chunks are three in each rack, whatever the scores say."""
    services = [
        service(10 * rack + n, f"rack{rack}.h{n}.v", score=100 if rack == 1 else 5)
        for rack in (1, 2, 3)
        for n in range(4)
    ]
    for selection in draw(pool_of(services, "9,rawx")):
        assert set(Counter(choice.item.areas[2] for choice in selection.choices).values()) == {3}


# --- 5: crowds


def test_a_crowded_slot_starts_one_distance_lower():
    """Two racks for three targets: rack distance is impossible, hosts are looked at from the beginning."""
    services = [service(10 * rack + n, f"rack{rack}.h{n}.v") for rack in (1, 2) for n in range(3)]
    crowded, patient = (pool_of(services, "3,rawx", bypass=bypass) for bypass in (True, False))
    assert crowded.targets[0].distances == (2, 1)
    assert patient.targets[0].distances == (3, 2, 1)
    assert pool_of(services, "2,rawx").targets[0].distances == (3, 2, 1), "no crowd"
    assert pool_of(services, "3,rawx;min_dist=3").targets[0].distances == (3,), "never under min_dist"
    for selection in draw(crowded):
        assert sorted(Counter(choice.item.areas[2] for choice in selection.choices).values()) == [1, 2]


# --- 6: failures


def test_what_a_failure_says():
    services = [service(n, f"h{n}.v") for n in range(3)]
    world = world_of(services)
    pool = world.with_pool(parse_pool("p", "5,rawx")).pool("p")
    known, avoid = [world.items[0].location], {world.items[1].location}
    with pytest.raises(NotEnoughServices) as caught:
        pool.poll(known=known, avoid=avoid)
    assert caught.value.code == 481
    assert caught.value.message == (
        "did not find enough services matching the criteria for pool [p]: no service polled from [rawx], "
        "1/4 services polled, 1 known services, 1 services in avoids"
    )


def test_an_empty_slot_fails():
    with pytest.raises(NotEnoughServices, match=r"no service polled from \[rawx-none\], 0/1 services polled"):
        pool_of([service(1, "h1.v")], "1,rawx-none").poll()


# --- 7, 8: flaws and qualities


@pytest.mark.parametrize(("warn", "flawed"), [(0, False), (1, False), (2, True), (3, True)])
def test_a_distance_that_deserves_a_warning(warn, flawed):
    services = [service(n, f"rack.h{n}.v") for n in range(3)]
    selection = pool_of(services, f"2,rawx;warn_dist={warn}").poll()
    assert selection.warn_dist == warn
    assert selection.flawed is flawed
    assert [choice.final_dist for choice in selection.choices] == [2, 2]


@pytest.mark.parametrize(("warn", "flawed"), [(0, False), (1, True), (2, True), (3, False)])
def test_a_distance_that_deserves_a_warning_nearby(warn, flawed):
    services = [service(n, f"rack.h{n}.v") for n in range(3)]
    assert pool_of(services, f"2,rawx;nearby_mode=1;warn_dist={warn}").poll().flawed is flawed


def test_the_final_distance_counts_what_is_known():
    services = [service(1, "rack.h1.v1"), service(2, "rack.h1.v2"), service(3, "rack.h2.v")]
    world = world_of(services)
    pool = world.with_pool(parse_pool("p", "2,rawx;max_dist=1")).pool("p")
    found = {
        ids(selection)[0]: selection.choices[0].final_dist
        for selection in draw(pool, known=[world.by_id["rawx", "s1"].location])
    }
    assert found == {"s2": 1, "s3": 2}


# --- local preference


def test_near_services_first_or_as_many_as_possible():
    services = [service(10 * host + n, f"rack.h{host}.v{n}") for host in (1, 2) for n in range(3)]
    world = world_of(services, proxy_location="rack.h1.proxy")
    pool = world.with_pool(parse_pool("p", "3,rawx;max_dist=1")).pool("p")
    for selection in draw(pool, near_first=1):
        assert ids(selection)[0].startswith("s1")
    for selection in draw(pool, near_first=2):
        # A host has a share of two of the three targets.
        assert sorted(one[1] for one in ids(selection)) == ["1", "1", "2"]
    assert {ids(selection)[0][1] for selection in draw(pool)} == {"1", "2"}, "no preference when not asked"


@pytest.mark.parametrize(
    ("location", "low", "high"),
    [
        ("room.rack.host.other", 91, 100), ("room.rack.host.here", 91, 100), ("room.rack.x.x", 51, 80),
        ("room.x.x.x", 11, 50),
    ],
)  # fmt: skip
def test_scores_shown_to_neighbours(location, low, high):
    here = location_from_text("room.rack.host.here")

    def shown(score):
        (item,) = world_of([service(1, location, score=score)]).items
        return near_score(item, here)

    assert shown(100) == high and low <= shown(1) <= low + 1
    scores = [shown(score) for score in range(1, 101)]
    assert scores == sorted(scores)
    assert shown(0) == 0


@pytest.mark.parametrize(("bit", "low", "high"), [(48, 5, 10), (63, 1, 4)])
def test_scores_shown_far_away(bit, low, high):
    for score, expected in ((100, high), (1, low), (0, 0)):
        (item,) = world_of([service(1, f"{1 << bit:#x}", score=score)]).items
        assert near_score(item, 0) == expected


# --- what holds for any of them


@st.composite
def crowds(draw):
    """Services that often share volumes, hosts and racks."""
    return [
        service(
            number,
            f"{draw(st.sampled_from('ab'))}.{draw(st.sampled_from('ab'))}."
            f"{draw(st.sampled_from('abc'))}.{draw(st.sampled_from('abc'))}",
            slots=draw(st.sampled_from(["", "fast", "slow"])),
            score=draw(st.sampled_from([0, 1, 100])),
        )
        for number in range(draw(st.integers(0, 12)))
    ]


@settings(max_examples=300, deadline=None)
@given(
    services=crowds(),
    targets=st.sampled_from(
        ["1,rawx", "3,rawx", "6,rawx", "2,rawx-fast,rawx;2,rawx", "2,rawx-fast;2,rawx-slow,rawx"]
    ),
    options=st.sampled_from(["", "nearby_mode=1", "min_dist=2", "max_dist=1", "min_dist=2;nearby_mode=1"]),
    known=st.integers(0, 3),
    avoided=st.integers(0, 3),
    near_first=st.integers(0, 2),
    bypass=st.booleans(),
    attempts=st.sampled_from([1, 8]),
)
def test_no_poll_puts_two_chunks_on_one_location(
    services, targets, options, known, avoided, near_first, bypass, attempts
):
    world = world_of(services, bypass=bypass, attempts=attempts, proxy_location="a.a.a.proxy")
    pool = world.with_pool(parse_pool("p", f"{targets};{options}")).pool("p")
    known_places = list({item.location for item in world.items[:known]})
    avoid = {item.location for item in world.items[-avoided:]} if avoided else set()
    try:
        selection = pool.poll(avoid=avoid, known=known_places, near_first=near_first)
    except StatusError as exc:
        assert exc.code == (400 if known_places and len(known_places) >= len(pool.targets) else 481)
        return
    places = [choice.item.location for choice in selection.choices] + known_places
    assert len(set(places)) == len(places) == len(pool.targets)
    assert not avoid & {choice.item.location for choice in selection.choices}
    assert all(choice.item.score > 0 for choice in selection.choices)
    if "min_dist=2" in options and "nearby" not in options:
        for choice in selection.choices:
            others = list(places)
            others.remove(choice.item.location)
            assert all(distance(choice.item.location, other) >= 2 for other in others)
