# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""A mixed workload on a cluster whose services are killed at random, and the proof that nothing was lost.

Each actor owns its names, and knows for each of them the states in which it may be: exactly one after an
acknowledged operation, one more after each operation that ended with an error (it may have been done). What the
actors draw, and which service is killed when, follow from one seed.
"""

import contextlib
import itertools
import random
import threading
import time
from functools import partial
from typing import NamedTuple

from faults import Hurry, kill_one
from support import ACCOUNT, eventually

from oio import ObjectStorageApi
from oio.common.exceptions import ClientPreconditionFailed, NoSuchObject, OioException
from oio.consistency.findings import QUESTIONS as KINDS
from oio.consistency.main import check_namespace

SIZES = (0, 10, 4096, 200_000, 1_200_000)
POLICIES = ("SINGLE", "TWOCOPIES", "THREECOPIES", "EC21")
NAMES_PER_ACTOR = 6
#: A request whose answer was lost may still be on its way for a moment: the next one must not overtake it.
SETTLE_S = 0.1
#: Before an operation is given up by its actor.
PATIENCE_S = 15.0
VICTIMS = (
    "proxy", "meta0", "meta1", "meta2", "rawx", "conscience", "conscience-agent", "event-agent", "account", "rdir",
    "redis", "beanstalkd",
)  # fmt: skip


class State(NamedTuple):
    """An object as its readers see it."""

    data: bytes
    properties: tuple[tuple[str, str], ...] = ()

    def with_property(self, key, value):
        return self._replace(properties=tuple(sorted({**dict(self.properties), key: value}.items())))

    def __repr__(self):
        return f"State({len(self.data)} bytes {self.data[:8].hex()}…, {dict(self.properties)})"


class Actor:
    """One client; it alone writes to its names."""

    def __init__(self, broken, container, seed, number):
        self._thread = threading.Thread(target=self._run, name=f"actor-{number}")
        self._rng = random.Random(f"{seed}/{number}")
        self._container = container
        self._api = ObjectStorageApi(broken.namespace, endpoint=broken.proxy, read_timeout=PATIENCE_S)
        self._names = [f"a{number}/{index}" for index in range(NAMES_PER_ACTOR)]
        #: For each name the states in which it may be; None is "absent".
        self.possible = {name: {None} for name in self._names}
        self.acknowledged = 0
        #: Chunks that objects had, as ``service id/chunk id``.
        self.owned = set()
        self.violations = []
        self._ended = threading.Event()

    def start(self):
        self._thread.start()

    def end(self):
        self._ended.set()
        self._thread.join(PATIENCE_S * 4)
        assert not self._thread.is_alive(), f"{self._thread.name} hangs"

    def _run(self):
        try:
            self._work()
        except BaseException as exc:
            self.violations.append(f"{self._thread.name} failed: {exc!r}")
            raise

    def _work(self):
        operations = (
            (self._put, 6), (self._append, 3), (self._delete, 2), (self._set_property, 2),
            (self._truncate, 2), (self._create_absent, 2), (self._link, 2), (self._read, 6),
        )  # fmt: skip
        choices = [operation for operation, weight in operations for _ in range(weight)]
        while not self._ended.is_set() and not self.violations:
            self._rng.choice(choices)(self._rng.choice(self._names))

    # --- one operation each ---------------------------------------------------------------------

    def _data(self):
        return self._rng.randbytes(self._rng.choice(SIZES))

    def _attempt(self, name, change, call, *args, halfway=frozenset(), **kwargs):
        """Do it, and follow the states: ``change`` tells what becomes of each of them.

        An operation that takes several steps may end in those ``halfway``.
        """
        self._note_chunks(name)
        before = self.possible[name]
        after = {change(state) for state in before}
        try:
            call(ACCOUNT, self._container, *args, **kwargs)
        except NoSuchObject as exc:
            self._claim(name, None in before, f"{call.__name__}: {exc}")
            self.possible[name] = before & {None} or before
        except ClientPreconditionFailed as exc:
            self._claim(name, before != {None}, f"{call.__name__}: {exc}")
            self.possible[name] = before - {None} or before
        except OioException:
            self.possible[name] = before | after | halfway
            time.sleep(SETTLE_S)
        else:
            self.possible[name] = after
            self.acknowledged += 1

    def _note_chunks(self, name):
        with contextlib.suppress(OioException):
            _meta, chunks = self._api.object_locate(ACCOUNT, self._container, name)
            self.owned.update(chunk["url"].partition("://")[2] for chunk in chunks)

    def _claim(self, name, holds, what):
        if not holds:
            self.violations.append(f"{name} was {self.possible[name]}, but {what}")

    def _put(self, name):
        data, properties = self._data(), {"by": "put"}
        self._attempt(
            name, lambda _state: State(data, (("by", "put"),)), self._api.object_create,
            obj_name=name, data=data, properties=properties, policy=self._rng.choice(POLICIES),
        )  # fmt: skip

    def _append(self, name):
        data = self._data()
        self._attempt(
            name,
            lambda state: State(data) if state is None else state._replace(data=state.data + data),
            self._api.object_create, obj_name=name, data=data, append=True, policy="THREECOPIES",
        )  # fmt: skip

    def _create_absent(self, name):
        data = self._data()
        self._attempt(
            name, lambda state: State(data) if state is None else state, self._api.object_create,
            obj_name=name, data=data, policy="THREECOPIES", if_none_match="*",
        )  # fmt: skip

    def _delete(self, name):
        self._attempt(name, lambda _state: None, self._api.object_delete, name)

    def _set_property(self, name):
        value = str(self._rng.randrange(1000))
        self._attempt(
            name, lambda state: state and state.with_property("k", value),
            self._api.object_set_properties, name, {"k": value},
        )  # fmt: skip

    def _truncate(self, name):
        if len(self.possible[name]) > 1 or None in self.possible[name]:
            return  # Its length must be known.
        (state,) = self.possible[name]
        size = self._rng.choice((0, len(state.data) // 2, len(state.data)))
        try:
            _meta, chunks = self._api.object_locate(ACCOUNT, self._container, name)
        except OioException:
            return  # The steps of the truncation must be known too.
        # What follows the metachunk to cut goes first.
        sizes = {int(chunk["pos"].partition(".")[0]): chunk["size"] for chunk in chunks}
        ends = itertools.accumulate(sizes[position] for position in sorted(sizes))
        halfway = {state._replace(data=state.data[: next(end for end in ends if end >= size)])}
        self._attempt(
            name, lambda state: state._replace(data=state.data[:size]),
            self._api.object_truncate, name, size=size, halfway=halfway,
        )  # fmt: skip

    def _link(self, name):
        target = self._rng.choice(self._names)
        if len(self.possible[target]) > 1 or None in self.possible[target]:
            return  # What is copied must be known.
        (state,) = self.possible[target]
        self._attempt(
            name, lambda _state: state, self._link_from, target, ACCOUNT, self._container, name
        )

    def _link_from(self, *args):
        # A source that is missing is no word about the target.
        try:
            self._api.object_link(*args)
        except NoSuchObject as exc:
            self._claim(args[2], False, f"link: {exc}")
            raise OioException(str(exc)) from exc

    def _read(self, name):
        try:
            metadata, stream = self._api.object_fetch(ACCOUNT, self._container, name)
            found = State(b"".join(stream), tuple(sorted(metadata["properties"].items())))
        except NoSuchObject:
            found = None
        except OioException:
            return
        self._claim(name, found in self.possible[name], f"a reader found {found}")


class Chaos:
    """Actors at work while services die.

    :param victims: types of services of the cluster that die.
    :param strikes: other misfortunes: each is given a source of randomness, does its damage, waits until what it
        hit is back, and returns a word about it.
    """

    def __init__(self, broken, container, seed, actors=3, victims=VICTIMS, strikes=()):
        self._broken = broken
        self._container = container
        self._rng = random.Random(f"{seed}/kills")
        self._actors = [Actor(broken, container, seed, number) for number in range(actors)]
        self._strikes = [partial(self._kill, type_) for type_ in victims if broken.services(type_)]
        self._strikes += strikes
        self._hurry = Hurry(broken)
        self.kills = []

    def run(self, kills):
        """Kill so many services, one after the other, each time after some work was acknowledged."""
        for actor in self._actors:
            actor.start()
        try:
            for _ in range(kills):
                self._progress(self._rng.randrange(1, 15))
                self.kills.append(self._rng.choice(self._strikes)(self._rng))
            self._broken.wait_ready()
            self._progress(5)
        finally:
            for actor in self._actors:
                actor.end()

    def _kill(self, type_, rng):
        victim = rng.choice(self._broken.services(type_))
        kill_one(self._broken, victim.name)
        return victim.name

    def _progress(self, more):
        target = self._done() + more
        eventually(
            lambda: self._done() >= target or self._violations(), 90, f"work does not go on after {self.kills}"
        )

    def _done(self):
        return sum(actor.acknowledged for actor in self._actors)

    def _violations(self):
        return [violation for actor in self._actors for violation in actor.violations]

    def verify(self, api):
        """Every name is in a state that it may have, the listing agrees, and the counters are exact."""
        assert not self._violations()
        possible = {name: states for actor in self._actors for name, states in actor.possible.items()}
        listed = {
            entry["name"]: (entry["size"], tuple(sorted(entry.get("properties", {}).items())))
            for entry in api.object_list(ACCOUNT, self._container, properties=True)["objects"]
        }
        for name, states in possible.items():
            state = self._state_of(api, name)
            assert state in states, f"{name} is {state}, not one of {states}"
            shown = None if state is None else (len(state.data), state.properties)
            assert listed.pop(name, None) == shown, name
        assert listed == {}
        self._verify_counters(api)

    def verify_agreement(self):
        """Containers, accounts, reverse directory and chunk files agree, but for chunks of writes that failed."""
        owned = {chunk for actor in self._actors for chunk in actor.owned}
        killed = {service.service_id for service in self._broken.services("rawx") if service.name in self.kills}

        def contradictions():
            report = check_namespace(self._broken.namespace, self._broken.proxy, passes=1)
            if report.unchecked:
                return report.unchecked  # what was killed last may be told to be away for a moment
            found = {kind: {f.subject for f in report.findings if f.kind == kind} for kind in KINDS}
            # Nobody cleans after a client whose upload, or whose removal of what it had uploaded, was interrupted:
            # there is a file that the index knows too, or the file is gone and its rawx died before it told.
            unknown = found["index-unknown"] - owned
            abandoned = unknown & found["chunk-orphan"]
            abandoned |= {chunk for chunk in unknown if chunk.partition("/")[0] in killed}
            return [f for f in report.findings if f.subject not in abandoned]

        left = []

        def agreed():
            try:
                self._hurry()
                left[:] = contradictions()
            except OioException as exc:
                left[:] = [exc]
            return not left

        eventually(agreed, 60, left)

    def _state_of(self, api, name):
        try:
            metadata, stream = api.object_fetch(ACCOUNT, self._container, name)
            return State(b"".join(stream), tuple(sorted(metadata["properties"].items())))
        except NoSuchObject:
            return None

    def _verify_counters(self, api):
        versions = api.object_list(ACCOUNT, self._container, versions=True)["objects"]
        counters = (str(len(versions)), str(sum(entry["size"] for entry in versions)))
        assert self._counters(api) == counters
        api.container_touch(ACCOUNT, self._container, recompute=True)
        assert self._counters(api) == counters
        expected = [int(counters[0]), int(counters[1])]

        def counted():
            with contextlib.suppress(OioException):  # as above
                self._hurry()
                listing = api.container_list(ACCOUNT)
                return [entry[1:3] for entry in listing if entry[0] == self._container] == [expected]

        eventually(counted, 60, f"the account says {counters}")

    def _counters(self, api):
        system = api.container_get_properties(ACCOUNT, self._container)["system"]
        return system["sys.m2.objects"], system["sys.m2.usage"]
