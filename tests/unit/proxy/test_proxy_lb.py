# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Rules of placement, checked on random namespaces and on chosen ones."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oio.common.status import StatusError
from oio.conscience.messages import NamespaceInfo, Service
from oio.proxy.lb import NotEnoughServices, build_world
from oio.proxy.lb.location import distance, djb2, location_from_address, location_from_text
from oio.proxy.lb.pool import PoolDefinition, parse_policy, parse_pool, parse_targets, parse_update_policy


def service(number, location, *, score=50, slots="", kind="rawx"):
    tags = {"tag.service_id": f"s{number}", "tag.loc": location}
    if slots:
        tags["tag.slots"] = slots
    return Service(type=kind, addr=f"127.0.0.1:{1000 + number}", score=score, tags=tags)


def world_of(services, **kwargs):
    groups = {}
    for one in services:
        groups.setdefault(one.type, []).append(one)
    namespace = NamespaceInfo(ns="NS", **kwargs.pop("namespace", {}))
    return build_world(namespace, groups, sorted(groups), **kwargs)


def pool_of(world, text):
    return world.with_pool(parse_pool("p", text)).pool("p")


# --- locations


def test_locations():
    assert djb2("") == 5381
    assert djb2("a") == (5381 * 33 + 97) & 0xFFFF
    assert location_from_text("0x1234") == 0x1234
    assert location_from_text("a.b") == djb2("a") << 16 | djb2("b")
    assert location_from_text("a.b.c.d.e") & 0xFFFF == djb2("d.e")
    assert location_from_text("a.b.c.d.e") >> 48 == djb2("a")
    assert location_from_address("127.0.0.1:6000") == 0x7F000001 << 16 | 6000
    for text in ("::1", "1.2.3:4", "1.2.3.400:1", "host:1"):
        with pytest.raises(ValueError):
            location_from_address(text)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [(0, 0, 0), (1, 0, 1), (0xFFFF, 0, 1), (0x10000, 0, 2), (1 << 32, 0, 3), (1 << 48, 0, 4), (1 << 56, 0, 5)],
)
def test_distances(one, other, expected):
    assert distance(one, other) == distance(other, one) == expected


# --- definitions


def test_pools_are_read():
    pool = parse_pool("x", "2,a,b;1,c;min_dist=2;max_dist=3;warn_dist=1;nearby_mode=true;rawx")
    assert pool == PoolDefinition("x", (("a", "b"), ("a", "b"), ("c",)), 2, 3, 1, True)
    assert parse_pool("x", "1,a;min_dist=0;max_dist=9").min_dist == 1
    assert parse_pool("x", "1,a;min_dist=0;max_dist=9").max_dist == 4
    for text in ("", "a", "1", "x,a", "9999,a"):
        with pytest.raises(ValueError):
            parse_targets(text)


def test_policies_are_read():
    securities = {
        "DUP": "plain/min_dist=2,nb_copy=3,warn_dist=1",
        "EC": "ec/k=6,m=3,algo=isa_l_rs_vand,min_dist=1",
        "B2": "backblaze/account_id=a,bucket_name=b",
    }
    policy, pool = parse_policy("P", "NONE:DUP", securities)
    assert (policy.pool, policy.chunk_method, policy.span) == ("P", "plain/nb_copy=3", 1)
    assert (len(pool.targets), pool.min_dist, pool.warn_dist) == (3, 2, 1)
    policy, pool = parse_policy("P", "somewhere:EC", securities)
    assert (policy.pool, policy.chunk_method) == ("somewhere", "ec/algo=isa_l_rs_vand,k=6,m=3")
    assert (policy.span, policy.fragmented, len(pool.targets)) == (6, True, 9)
    policy, pool = parse_policy("P", "NONE:B2", securities)
    assert policy.chunk_method == "backblaze/account_id=a,bucket_name=b" and len(pool.targets) == 1
    policy, pool = parse_policy("P", ":", securities)
    assert policy.chunk_method == "plain/nb_copy=1"


def test_update_policies_are_read():
    assert parse_update_policy("meta2=KEEP|3|1;sqlx=append|2|;rdir=REPLACE") == {
        "meta2": ("KEEP", 3, 1, "", ""), "sqlx": ("APPEND", 2, 1, "", ""), "rdir": ("REPLACE", 1, 1, "", ""),
    }  # fmt: skip
    text = "meta2=KEEP|3|1| ssd = true ;a=KEEP|1|1|x;b=KEEP|||k=v=w;rdir=KEEP|1|1|user_is_a_service=1"
    found = parse_update_policy(text)
    assert {kind: one[3:] for kind, one in found.items()} == {
        "meta2": ("ssd", "true"), "a": ("", ""), "b": ("k", "v=w"), "rdir": ("", ""),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "taken"),
    [
        ("", True), ("ssd=true", True), ("tag.ssd=on", True), ("ssd=false", False), ("hdd=false", True),
        ("hdd=true", False), ("kind=fast", True), ("kind=Fast", False), ("tag.kind=fast", True),
        ("rank=2", True), ("rank=3", False), ("none=", False), ("none=x", False), ("stat.cpu=50", True),
    ],
)  # fmt: skip
def test_tags_of_update_policies(rule, taken):
    tags = {"tag.ssd": True, "tag.hdd": False, "tag.kind": "fast", "tag.rank": 2, "stat.cpu": 50}
    assert parse_update_policy(f"meta2=KEEP|1|1|{rule}")["meta2"].takes(tags) is taken


def test_only_services_with_the_tag_are_linked():
    services = [service(n, f"h{n}.v", kind="meta2") for n in range(6)]
    for one in services[:4]:
        one.tags["tag.ssd"] = True
    others = [service(n, f"h{n}.v", kind="rdir") for n in range(3)]
    rule = "meta2=KEEP|3|1|ssd=true"
    for namespace in ({}, {"service_pools": {"meta2": "3,meta2"}}):
        world = world_of([*services, *others], update_policy=rule, namespace=namespace)
        for _ in range(20):
            chosen = {choice.item.id for choice in world.pool("meta2").poll().choices}
            assert len(chosen) == 3 and chosen <= {"s0", "s1", "s2", "s3"}
        assert {world.pool("rdir").poll().choices[0].item.id for _ in range(100)} == {"s0", "s1", "s2"}
        anybody = world.with_pool(parse_pool("p", "6,meta2")).pool("p")
        assert len(anybody.poll().choices) == 6, "other pools give all services"
    for few in ("meta2=KEEP|5|1|ssd=true", "meta2=KEEP|1|1|ssd=false"):
        with pytest.raises(NotEnoughServices):
            world_of(services, update_policy=few).pool("meta2").poll()


def test_unreadable_parts_leave_the_rest():
    namespace = {
        "storage_policy": {"GOOD": "NONE:NONE", "BAD": "NONE:NOWHERE"},
        "service_pools": {"good": "1,rawx", "bad": "nothing"},
    }
    bad = Service(type="rawx", addr="127.0.0.1:9", score=9, tags={"tag.service_id": 'a"b/c'})
    world = world_of([service(1, "a.1"), bad], namespace=namespace)
    assert set(world.policies) == {"NONE", "plain", "", "GOOD"}
    assert world.pool("good") is not None and world.pool("bad") is None
    assert len(world.items) == 1


def test_every_type_has_a_pool():
    services = [service(n, f"h{n}.v", kind="meta2") for n in range(4)]
    world = world_of(services, update_policy="meta2=KEEP|3|1;")
    assert len(world.pool("meta2").poll().choices) == 3


# --- the draw, on any namespace


@st.composite
def namespaces(draw):
    services = []
    for number in range(draw(st.integers(1, 14))):
        rack, host = draw(st.integers(0, 2)), draw(st.integers(0, 3))
        slots = draw(st.sampled_from(["", "", "fast", "slow", "fast,slow"]))
        score = draw(st.sampled_from([0, 1, 10, 50, 100]))
        services.append(service(number, f"room.r{rack}.h{host}.v{number}", slots=slots, score=score))
    return services


targets_texts = st.lists(
    st.tuples(
        st.integers(1, 4),
        st.sampled_from(["rawx", "rawx-fast", "rawx-slow", "rawx-fast,rawx", "rawx-slow,rawx-fast"]),
    ),
    min_size=1,
    max_size=3,
).map(lambda parts: ";".join(f"{count},{slots}" for count, slots in parts))


@settings(max_examples=250, deadline=None)
@given(
    services=namespaces(),
    targets=targets_texts,
    min_dist=st.integers(1, 3),
    max_dist=st.integers(1, 4),
    avoid_numbers=st.sets(st.integers(0, 13), max_size=4),
    known_numbers=st.lists(st.integers(0, 13), max_size=3, unique=True),
    bypass=st.booleans(),
)
def test_what_holds_for_any_poll(
    services, targets, min_dist, max_dist, avoid_numbers, known_numbers, bypass
):
    world = world_of(services, bypass=bypass)
    pool = pool_of(world, f"{targets};min_dist={min_dist};max_dist={max_dist}")
    by_number = {int(item.id[1:]): item for item in world.items}
    avoid = {by_number[n].location for n in avoid_numbers if n in by_number}
    known = [by_number[n].location for n in known_numbers if n in by_number]
    wanted = len(pool.targets)
    try:
        selection = pool.poll(avoid=avoid, known=known)
    except StatusError as exc:
        assert exc.code == (400 if known and len(known) >= wanted else 481)
        return
    chosen = [choice.item for choice in selection.choices]
    assert len(chosen) == wanted - len(known)
    assert len({item.id for item in chosen}) == len(chosen)
    locations = [item.location for item in chosen]
    assert not set(locations) & avoid
    for index, item in enumerate(chosen):
        assert item.score > 0
        others = locations[:index] + locations[index + 1 :] + known
        for other in others:
            assert distance(item.location, other) >= min_dist
        if others:
            nearest = min(distance(item.location, other) for other in others)
            assert selection.choices[index].final_dist == min(nearest, 4)
    targets_left = [names[0] for names in parse_targets(targets)]
    for choice in selection.choices:
        assert choice.expected_slot in targets_left
        slot = world.slots[choice.final_slot]
        assert choice.item in slot.items
    if not selection.flawed:
        assert all(choice.expected_slot == choice.final_slot for choice in selection.choices)
    if len({names[0] for names in parse_targets(targets)}) == 1 and not known:
        check_shares(world.slots.get(targets_left[0]), selection, wanted)


def check_shares(slot, selection, wanted):
    """Rule of balance, where it can be told apart: all the choices come from one slot."""
    if slot is None or any(choice.final_slot != slot.name for choice in selection.choices):
        return
    for level in (1, 2, 3):
        counts = Counter(choice.item.areas[level] for choice in selection.choices)
        for area, count in counts.items():
            share = 1 + (wanted - 1) // (len(slot.items) // slot.areas[level][area])
            assert count <= share


@settings(max_examples=60, deadline=None)
@given(
    hosts=st.integers(1, 6), per_host=st.integers(1, 4), copies=st.integers(1, 9), bypass=st.booleans()
)
def test_what_is_possible_is_found(hosts, per_host, copies, bypass):
    """With one slot and a hard distance of 1, the poll fails only without enough services."""
    services = [service(h * 10 + v, f"rack.h{h}.v{v}") for h in range(hosts) for v in range(per_host)]
    pool = pool_of(world_of(services, bypass=bypass), f"{copies},rawx")
    if copies > hosts * per_host:
        with pytest.raises(NotEnoughServices) as caught:
            pool.poll()
        assert caught.value.code == 481
        assert caught.value.found < copies
        assert caught.value.reason.startswith("no service polled from [rawx], ")
        assert caught.value.message.endswith(caught.value.reason)
        return
    choices = pool.poll().choices
    spread = Counter(choice.item.areas[1] for choice in choices)
    if copies <= hosts or not bypass:
        assert len(spread) == min(hosts, copies), "as many hosts as possible"
    assert max(spread.values()) <= 1 + (copies - 1) // hosts


# --- the draw, chosen cases


def test_scores_are_weights_and_zero_is_never_chosen():
    world = world_of([service(1, "h1.v", score=90), service(2, "h2.v", score=10), service(3, "h3.v", score=0)])
    pool = pool_of(world, "1,rawx")
    counts = Counter(pool.poll().choices[0].item.id for _ in range(2000))
    assert set(counts) == {"s1", "s2"}
    assert 1650 < counts["s1"] < 1950


def test_single_choice_is_not_flawed():
    selection = pool_of(world_of([service(1, "h1.v")]), "1,rawx").poll()
    assert not selection.flawed
    assert selection.choices[0].final_dist == selection.expected_dist == 1


def test_fallback_slot_comes_before_a_shorter_distance():
    services = [service(n, f"h1.v{n}", slots="fast") for n in range(3)]
    services += [service(10 + n, f"h{10 + n}.v") for n in range(3)]
    pool = pool_of(world_of(services, bypass=False), "2,rawx-fast,rawx")
    for _ in range(50):
        selection = pool.poll()
        final = [choice.final_slot for choice in selection.choices]
        assert final == ["rawx-fast", "rawx"]
        assert all(choice.final_dist == 2 for choice in selection.choices)
        assert selection.flawed


def test_overlapping_slots_do_not_starve_each_other():
    """The only service of the second slot may have been taken by the first: another try finds the answer."""
    services = [service(1, "h1.v", slots="a,b"), service(2, "h2.v", slots="a")]
    pool = pool_of(world_of(services), "1,rawx-a;1,rawx-b")
    for _ in range(100):
        assert [choice.item.id for choice in pool.poll().choices] == ["s2", "s1"]


def test_warn_distance_flaws():
    services = [service(n, f"h1.v{n}") for n in range(3)]
    assert pool_of(world_of(services), "2,rawx;warn_dist=1").poll().flawed
    assert not pool_of(world_of(services), "2,rawx;warn_dist=0").poll().flawed


def test_hard_distance_is_hard():
    services = [service(n, f"h{n % 2}.v{n}") for n in range(6)]
    pool = pool_of(world_of(services), "3,rawx;min_dist=2")
    with pytest.raises(StatusError, match="2/3 services polled"):
        pool.poll()


def test_nearby_mode_keeps_services_together():
    services = [service(h * 10 + v, f"rack.h{h}.v{v}") for h in range(4) for v in range(3)]
    pool = pool_of(world_of(services), "3,rawx;nearby_mode=yes")
    for _ in range(50):
        choices = pool.poll().choices
        assert len({choice.item.areas[1] for choice in choices}) == 1
        assert len({choice.item.id for choice in choices}) == 3
    assert len(pool_of(world_of(services), "5,rawx;nearby_mode=yes").poll().choices) == 5


def test_services_near_the_proxy_come_first():
    services = [service(h * 10 + v, f"room.rack.h{h}.v{v}") for h in range(4) for v in range(3)]
    world = world_of(services, proxy_location="room.rack.h2.proxy")
    here = location_from_text("room.rack.h2.proxy")
    pool = pool_of(world, "2,rawx")
    for _ in range(30):
        choices = pool.poll(near_first=1).choices
        assert distance(choices[0].item.location, here) == 1
        assert choices[1].final_dist == 2


def test_known_services_consume_their_target():
    services = [service(n, f"h{n}.v", slots="even" if n % 2 == 0 else "odd") for n in range(6)]
    world = world_of(services)
    pool = pool_of(world, "1,rawx-even;1,rawx-odd;1,rawx")
    even = world.find("rawx", "s2").location
    for _ in range(30):
        choices = pool.poll(known=[even]).choices
        assert [choice.expected_slot for choice in choices] == ["rawx-odd", "rawx"]
    assert len(pool.poll(known=[12345]).choices) == 2
    assert len(pool.poll(known_elsewhere=2).choices) == 1
    with pytest.raises(StatusError, match="too many locations already known"):
        pool.poll(known=[even], known_elsewhere=2)
