# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Bases of several copies: who is asked, what is said to them, and what happens when they fail."""

import re
import threading
import time

import pytest
from proxy_replicas import Group

from oio.common.status import StatusError
from oio.meta.base_messages import BaseStatus
from oio.meta.messages import ContainerGetProperties, ContainerSetProperties, ReferenceUnlink
from oio.proxy.copies import CopiesCall

#: What a busy machine may add to any duration (seconds).
SLACK_S = 2.0

CID = "AB" * 32
READ = ContainerGetProperties(cid=CID)
WRITE = ContainerSetProperties(cid=CID, properties={"user.a": "b"})
PEERS = "meta2-1,meta2-2,meta2-3"


class Context:
    """A request of a client."""

    reqid, admin, origin = "REQ", False, "tests"

    def __init__(self, left_s=10.0, only=(), force_master=False, prefer_slave=False):
        self.end, self.only = time.monotonic() + left_s, list(only)
        self.force_master, self.prefer_slave = force_master, prefer_slave

    def timeout_s(self, at_most_s):
        return min(self.end - time.monotonic(), at_most_s)

    def measure(self, name, seconds):
        pass


@pytest.fixture
def group():
    made = Group()
    yield made
    made.stop()


def failing(group, request, context, write):
    """The error of a call, and how long it took."""
    begin = time.monotonic()
    with pytest.raises(StatusError) as caught:
        group.call(request, context, write)
    return caught.value, time.monotonic() - begin


def when_asked(group, what, log_length=1):
    """Do something, once so many operations were received (in another thread)."""

    def wait():
        deadline = time.monotonic() + 10
        while len(group.log) < log_length and time.monotonic() < deadline:
            time.sleep(0.005)
        what()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


# --- who is asked


@pytest.mark.parametrize(("request_", "write"), [(READ, False), (WRITE, True)])
def test_the_master_answers_and_is_remembered(group, request_, write):
    group.master = "meta2-3"
    for _ in range(2):
        group.call(request_, Context(), write)
    assert group.asked() == [1, 3, 3]
    group.master = "meta2-2"
    group.call(request_, Context(), write)
    group.call(request_, Context(), write)
    assert group.asked() == [3, 2, 2]


def test_what_was_read_tells_where_to_write(group):
    group.master = "meta2-2"
    group.call(READ, Context(), False)
    group.call(WRITE, Context(), True)
    assert group.asked() == [1, 2, 2]


def test_what_is_said_to_services(group):
    group.call(WRITE, Context(), True)
    group.call(WRITE, Context(), True)
    group.call(READ, Context(), False)
    assert group.headers("x-oio-peers") == [PEERS] * 3
    assert group.headers("x-oio-suspect") == group.headers("x-oio-local") == [None] * 3
    first, second, third = group.headers("x-oio-operation")
    assert len(first) == len(second) == 32 and int(first, 16) != int(second, 16) and third is None


def test_a_base_of_one_copy_is_asked_as_if_there_were_no_others(group):
    for request, write in ((READ, False), (WRITE, True)):
        group.resolver.call_services("meta2", ["meta2-1"], request, Context(prefer_slave=True), write)
    for name in ("x-oio-peers", "x-oio-suspect", "x-oio-local", "x-oio-operation"):
        assert group.headers(name) == [None, None]


def test_copies_are_read_on_demand(group):
    group.master = "meta2-2"
    group.call(READ, Context(prefer_slave=True), False)
    assert group.headers("x-oio-local") == ["1"] and group.asked() == [1]
    group.call(READ, Context(), False)
    assert group.asked() == [1, 2]
    group.master = "meta2-1"
    group.call(WRITE, Context(prefer_slave=True), True)
    assert "1" not in group.headers("x-oio-local") and group.asked() == [2, 1]
    group.call(READ, Context(prefer_slave=True), False)
    assert group.asked() == [2], "not the master"
    group.variables.set("proxy.prefer.slave_for_read", "on")
    group.call(READ, Context(), False)
    assert group.asked() == [2]
    for setting, context in (
        ("proxy.prefer.slave_for_read", Context(force_master=True)),
        ("proxy.prefer.master_for_read", Context()),
        ("proxy.force.master", Context(prefer_slave=True)),
    ):
        group.variables.set(setting, "on")
        group.call(READ, context, False)
        assert group.headers("x-oio-local") == [None] and group.asked() == [1]


def test_services_that_are_named_answer_from_their_copy(group):
    group.call(READ, Context(only=PEERS.split(",")), False)
    assert group.headers("x-oio-local") == ["1"] and group.asked() == [1]
    context = Context(only=["meta2-3"])
    for _ in range(2):
        group.resolver.call_services("meta2", ["meta2-3"], READ, context, False, peers=group.names)
    assert group.headers("x-oio-peers") == [PEERS] * 2 and group.asked() == [3, 3]
    with pytest.raises(StatusError) as caught:
        group.resolver.call_services("meta2", ["meta2-3"], WRITE, context, True, peers=group.names)
    assert (caught.value.code, caught.value.message) == (303, "meta2-1")
    assert group.asked() == [3]
    assert group.resolver.masters.describe()["count"] == 0


def test_a_late_copy_does_not_hide_a_base(group):
    def late(replica, operation, headers):
        if "x-oio-local" in headers:
            raise StatusError(431, "not here yet")
        return group.answer(replica, operation, headers)

    group.replicas["meta2-1"].behaviour = late
    group.master = "meta2-1"
    assert group.call(READ, Context(prefer_slave=True), False) == group.reply
    assert group.asked() == [1, 2]
    group.replicas["meta2-2"].behaviour = group.replicas["meta2-3"].behaviour = late
    assert group.call(READ, Context(prefer_slave=True), False) == group.reply
    assert group.asked() == [1, 2, 3, 1], "the master is asked when no copy knows the base"


# --- definite answers


@pytest.mark.parametrize("code", [400, 420, 421, 424, 436, 438, 453, 500, 504, 509, 511])
def test_answers_about_the_operation_come_back_at_once(group, code):
    def refuse(*_):
        raise StatusError(code, "because")

    group.replicas["meta2-1"].behaviour = refuse
    error, _ = failing(group, WRITE, Context(), True)
    assert (error.code, error.message) == (code, "because") and group.asked() == [1]


def test_a_base_that_the_master_does_not_have_is_missing(group):
    def lacking(*_):
        raise StatusError(431, "not here")

    group.replicas["meta2-1"].behaviour = lacking
    error, took_s = failing(group, READ, Context(), False)
    assert error.code == 431 and took_s < SLACK_S and group.asked() == [1, 2, 1]
    for replica in group.replicas.values():
        replica.behaviour = lacking
    error, took_s = failing(group, READ, Context(), False)
    assert error.code == 431 and took_s < SLACK_S


def test_a_late_copy_that_becomes_master_knows_the_base(group):
    """What it said before it was master is no answer: its copy had not arrived yet."""
    late = group.replicas["meta2-1"]

    def lacking(*_):
        late.behaviour = "well"
        raise StatusError(431, "not here")

    late.behaviour = lacking
    group.call(WRITE, Context(), True)
    assert group.asked() == [1, 2, 1]


def test_one_copy_alone_does_not_tell_that_there_is_no_base(group):
    def lacking(*_):
        raise StatusError(431, "not here")

    group.replicas["meta2-1"].behaviour = lacking
    group.kill(2, 3)
    error, took_s = failing(group, READ, Context(left_s=3.0), False)
    assert error.code == 503 and 2.0 < took_s < 3 + SLACK_S
    # Unless these are perhaps the services of the past, which can be found out.
    begin = time.monotonic()
    with pytest.raises(StatusError) as caught:
        CopiesCall(group.resolver, "meta2", group.names, READ, Context(), write=False, hurried=True).run()
    assert caught.value.code == 431 and 1.9 < time.monotonic() - begin < 4 + SLACK_S


def test_one_that_does_not_hold_the_base_any_more(group):
    def moved(*_):
        raise StatusError(431, "Base not managed")

    group.replicas["meta2-1"].behaviour = moved
    group.master = "meta2-3"
    group.call(WRITE, Context(), True)
    assert group.asked() == [1, 2, 3]


# --- fail-over


def test_a_master_that_refuses_is_replaced(group):
    group.call(WRITE, Context(), True)
    group.kill(1)
    group.log.clear()
    elect = when_asked(group, lambda: setattr(group, "master", "meta2-3"), 4)
    begin = time.monotonic()
    group.call(WRITE, Context(), True)
    elect.join()
    assert time.monotonic() - begin < 2 + SLACK_S
    assert set(group.headers("x-oio-suspect")) == {"meta2-1"}
    assert len(set(group.headers("x-oio-operation"))) == 1
    # The next one knows both.
    group.log.clear()
    group.call(WRITE, Context(), True)
    assert group.headers("x-oio-suspect") == ["meta2-1"] and group.asked() == [3]


def test_a_write_whose_answer_is_lost_is_sent_again_under_the_same_id(group):
    def do_and_die(replica, operation, headers):
        group.answer(replica, operation, headers)
        group.master = "meta2-2"
        replica.die()

    group.replicas["meta2-1"].behaviour = do_and_die
    group.call(WRITE, Context(), True)
    first, *others = group.headers("x-oio-operation")
    assert others and set(others) == {first}
    assert group.made == {first: 2} and group.asked() == [1, 2]


def test_a_write_to_a_base_of_one_copy_is_not_sent_again(group):
    group.replicas["meta2-1"].behaviour = lambda replica, *_: replica.die()
    with pytest.raises(StatusError) as caught:
        group.resolver.call_services("meta2", ["meta2-1"], WRITE, Context(), True)
    assert caught.value.code == 503 and group.asked() == [1]


def test_services_without_a_master_are_asked_again(group):
    group.master = None
    elect = when_asked(group, lambda: setattr(group, "master", "meta2-2"), 6)
    group.call(WRITE, Context(), True)
    elect.join()
    assert len(set(group.headers("x-oio-operation"))) == 1
    assert group.headers("x-oio-suspect")[0] is None
    assert group.asked()[-1] == 2


def test_one_that_is_cut_off_from_the_others_is_asked_after_them(group):
    group.replicas["meta2-1"].behaviour = "unsure"
    group.master = "meta2-3"
    group.call(BaseStatus(base="CD" * 32 + ".1"), Context(), False)
    assert group.asked() == [1, 2, 3]
    group.call(READ, Context(), False)
    assert group.asked() == [2, 3], "another base"
    assert group.headers("x-oio-suspect") == [] and not group.resolver.down
    group.replicas["meta2-1"].behaviour = "well"
    group.master = "meta2-1"
    group.call(READ, Context(), False)
    assert group.asked() == [3, 1] and not group.resolver.doubted


def test_two_of_three_are_dead(group):
    group.call(READ, Context(), False)
    group.kill(1, 2)
    group.replicas["meta2-3"].behaviour = "unsure"
    for request, write in ((READ, False), (WRITE, True)):
        group.log.clear()
        error, took_s = failing(group, request, Context(left_s=1.5), write)
        assert error.code == 503 and 1.0 < took_s < 1.5 + SLACK_S
        assert error.message.startswith("No service replied (last error: (")
        for name in group.names:
            assert f"{name}: (" in error.message
        assert "meta2-3: (503) no master yet" in error.message and "rounds" in error.message
        assert "refused" in error.message or "does not answer a ping" in error.message
        # Pauses grow up to half a second.
        assert set(group.asked()) == {3} and group.headers("x-oio-suspect") == []


def test_the_number_of_attempts_is_bounded(group):
    group.master = None
    error, took_s = failing(group, READ, Context(left_s=2.0), False)
    rounds = len(group.asked()) / 3
    assert error.code == 503 and took_s < 2 + SLACK_S and 2 <= rounds <= 16


def test_redirections_in_a_loop_do_not_spin(group):
    def to(other):
        def redirect(*_):
            raise StatusError(303, other)

        return redirect

    for number, other in ((1, 2), (2, 3), (3, 1)):
        group.replicas[f"meta2-{number}"].behaviour = to(f"meta2-{other}")
    error, took_s = failing(group, WRITE, Context(left_s=1.0), True)
    assert error.code == 503 and 0.6 < took_s < 1.0 + SLACK_S
    assert len(group.asked()) <= 3 * 12
    assert "meta2-1: (303) meta2-2" in error.message
    # To oneself, to nobody, to somebody unknown: the same.
    for other in ("meta2-1", "", "nowhere"):
        group.replicas["meta2-1"].behaviour = to(other)
        group.replicas["meta2-2"].behaviour = group.replicas["meta2-3"].behaviour = to(other)
        error, took_s = failing(group, WRITE, Context(left_s=0.3), True)
        assert error.code == 503 and took_s < 0.3 + SLACK_S
        assert len(group.asked()) <= 3 * 9


def test_a_master_that_is_not_among_the_peers_is_followed(group):
    """The base moved, and the directory was read before that."""
    services = ["meta2-1", "meta2-2"]
    group.resolver.links.put((CID, "meta2"), services)
    group.master = "meta2-3"
    group.resolver.call_meta2(WRITE, Context(), True)
    assert group.asked() == [1, 3]
    assert group.resolver.links.get((CID, "meta2")) is None, "the directory will be asked"


# --- suspects


def test_a_service_that_answers_again_is_no_suspect(group):
    group.kill(1)
    group.master = "meta2-2"
    group.call(WRITE, Context(), True)
    assert len(group.resolver.down) == 1
    group.restart(1)
    group.master = "meta2-1"
    group.log.clear()
    group.call(WRITE, Context(), True)
    assert group.asked() == [2, 3, 1] and group.pings == ["meta2-1"]
    assert not group.resolver.down
    group.call(WRITE, Context(), True)
    assert group.headers("x-oio-suspect") == [None] and group.asked() == [1]


def test_services_are_not_suspect_for_ever(group):
    group.variables.set("proxy.ttl.services.down", "0.2s")
    group.kill(1)
    group.master = "meta2-2"
    group.call(WRITE, Context(), True)
    group.restart(1)
    deadline = time.monotonic() + 10
    while group.resolver.is_down(group.replicas["meta2-1"].address):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    group.log.clear()
    group.resolver.masters.clear()
    group.call(WRITE, Context(), True)
    assert group.asked() == [1, 2] and group.pings == []


@pytest.mark.parametrize("kind", ["meta1", "meta2"])
def test_copies_are_asked_in_any_order(kind):
    group = Group(kind, **{"proxy.srv_shuffle": "on", "proxy.dir_shuffle": "on"})
    try:
        for _ in range(40):
            request = READ if kind == "meta2" else ReferenceUnlink(cid=CID, type="x")
            group.call(request, Context(prefer_slave=True), False)
        assert set(group.asked()) == {1, 2, 3}
    finally:
        group.stop()


def test_a_service_that_came_back_is_waited_for(group):
    group.kill(1, 2, 3)
    back = threading.Timer(0.3, lambda: [group.restart(number) for number in (1, 2, 3)])
    back.start()
    group.call(WRITE, Context(), True)
    back.join()
    assert group.asked()[-1] == 1


# --- silence


@pytest.mark.parametrize(("request_", "write"), [(READ, False), (WRITE, True)])
def test_a_silent_master_is_left_after_a_ping(group, request_, write):
    group.call(request_, Context(), write)
    group.log.clear()
    group.replicas["meta2-1"].behaviour = "silent"
    group.replicas["meta2-2"].behaviour = take_over(group)
    begin = time.monotonic()
    group.call(request_, Context(left_s=30), write)
    took_s = time.monotonic() - begin
    assert 1.4 < took_s < 4 + SLACK_S
    assert group.asked() == [1, 2]
    assert list(group.resolver.down) == [group.replicas["meta2-1"].address]


def take_over(group):
    """A slave that replaces the master, once it is told that it failed."""

    def answer(replica, operation, headers):
        if headers.get("x-oio-suspect") == group.master:
            group.master = replica.name
        return group.answer(replica, operation, headers)

    return answer


def test_a_slow_operation_of_a_service_that_lives_is_waited_for(group):
    def slow(replica, operation, headers):
        assert not replica.awake.wait(2.3)
        return group.answer(replica, operation, headers)

    group.replicas["meta2-1"].behaviour = slow
    group.call(WRITE, Context(), True)
    assert group.asked() == [1] and len(group.pings) >= 1 and not group.resolver.down


def test_an_operation_that_is_too_long_tells_nothing_about_the_service(group):
    def slow(replica, operation, headers):
        replica.awake.wait(10)
        return group.answer(replica, operation, headers)

    group.replicas["meta2-1"].behaviour = slow
    for left_s in (0.3, 1.8):
        error, took_s = failing(group, WRITE, Context(left_s=left_s), True)
        assert error.code == 503 and took_s < left_s + SLACK_S
        assert "it may have been done" in error.message
        assert not group.resolver.down
    group.replicas["meta2-1"].awake.set()


def test_a_deadline_that_is_over(group):
    class Late(Context):
        def timeout_s(self, at_most_s):
            raise StatusError(504, "deadline reached")

    error, _ = failing(group, READ, Late(), False)
    assert error.code == 504 and group.asked() == []


# --- which base


def test_the_master_of_a_base_can_be_located(group):
    group.master = "meta2-3"
    assert group.resolver.master_of("meta2", group.names, f"{CID}.1", Context(prefer_slave=True)) == "meta2-3"
    assert {path for _, path, _ in group.log} == {"base_status"}
    assert group.asked() == [1, 3]
    group.call(WRITE, Context(), True)
    assert group.asked() == [3], "the master of the container is that of its base"
    assert group.resolver.master_of("meta2", ["meta2-2"], f"{CID}.1", Context()) == "meta2-2"
    assert group.asked() == []


def test_bases_have_masters_of_their_own(group):
    group.master = "meta2-3"
    group.call(WRITE, Context(), True)
    group.call(BaseStatus(base="CD" * 32 + ".1"), Context(), False)
    assert group.asked() == [1, 3, 1, 3]


def test_bases_of_meta1_are_those_of_prefixes():
    group = Group("meta1")
    try:
        group.master = "meta1-2"
        group.resolver.csm0.put("ABAB", group.names)
        for cid in (CID, "ABAB" + "0" * 60):
            group.resolver.call_meta1(ReferenceUnlink(cid=cid, type="meta2"), Context(), True)
        group.call(BaseStatus(base="ABAB"), Context(), False)
        assert group.headers("x-oio-peers") == ["meta1-1,meta1-2,meta1-3"] * 4
        assert group.asked() == [1, 2, 2, 2]
    finally:
        group.stop()


def test_meta0_has_one_base():
    group = Group("meta0")
    try:
        group.master = "meta0-2"
        assert group.resolver.meta1("00" * 32, Context()) == group.names
        assert group.headers("x-oio-peers") == ["meta0-1,meta0-2,meta0-3"] * 2
        assert group.asked() == [1, 2]
        assert group.resolver.meta1("FF" * 32, Context()) == group.names
        assert group.asked() == [2]
    finally:
        group.stop()


# --- failures made on purpose

LOST = "enbug.proxy.request_failure."


def test_exchanges_are_lost_by_the_place_of_the_copy(group):
    group.variables.set(f"{LOST}alone", "100")
    group.call(READ, Context(prefer_slave=True), False)
    assert group.asked() == [1], "one of three is not alone"
    group.resolver.masters.clear()
    for lost, asked in ((["first"], [2]), (["first", "middle"], [3]), (["middle", "last"], [1])):
        for place in ("first", "middle", "last"):
            group.variables.set(LOST + place, "100" if place in lost else "0")
        group.resolver.down.clear()
        group.call(READ, Context(prefer_slave=True), False)
        assert group.asked() == asked


def test_the_master_is_found_by_those_that_are_not_lost(group):
    group.variables.set(f"{LOST}first", "100")
    for request, write in ((READ, False), (WRITE, True)):
        group.call(request, Context(), write)
    assert list(group.made.values()) == [1, 1]
    assert group.headers("x-oio-suspect")[0] == "meta2-1", "as if it had not answered"


def test_nobody_answers_when_all_is_lost(group):
    for place in ("first", "middle", "last"):
        group.variables.set(LOST + place, "100")
    error, _ = failing(group, WRITE, Context(left_s=0.4), True)
    assert error.code == 503 and f"Failure made on purpose ({LOST}first)" in str(error)
    assert "it may have been done" not in str(error) and group.asked() == []
    for place in ("first", "middle", "last"):
        group.variables.set(LOST + place, "0")
    group.call(WRITE, Context(), True)


def test_a_lone_copy_is_lost(group):
    group.variables.set(f"{LOST}alone", "100")
    alone = ["meta2-1"]
    for request, write in ((READ, False), (WRITE, True)):
        with pytest.raises(StatusError, match=rf"made on purpose \({re.escape(LOST)}alone\)") as caught:
            group.resolver.call_services("meta2", alone, request, Context(), write)
        assert caught.value.code == 503
    assert group.asked() == []
    group.variables.set(f"{LOST}alone", "50")
    done = 0
    for _ in range(100):
        try:
            group.resolver.call_services("meta2", alone, READ, Context(), False)
            done += 1
        except StatusError:
            continue
    assert 10 < done < 90 and len(group.asked()) == done
