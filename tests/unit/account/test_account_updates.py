# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Updates of containers: what is stored, against a model in Python, and the cases that the rules name."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.exceptions import ResponseError

from oio.account.backend import (
    AccountBackend,
    AccountNotEmpty,
    BucketLocked,
    StaleUpdate,
    UnknownAccount,
    UnknownBucket,
    UnknownContainer,
)
from oio.account.updates import COUNTER_MAX, COUNTERS, ContainerUpdate, is_later, normalize_time

# --- a model of everything that is stored -----------------------------------------------------------


def zeros():
    return dict.fromkeys(COUNTERS, 0)


class Model:
    """The rules once more, over dictionaries; :meth:`dump` gives what Redis must hold."""

    def __init__(self):
        self.accounts, self.containers, self.buckets = {}, {}, {}
        self.listed, self.bucket_lists, self.markers = {}, {"": set()}, {}

    def create(self, account):
        if account in self.accounts:
            return False
        self.accounts[account] = zeros()
        return True

    def delete(self, account):
        if account not in self.accounts:
            raise UnknownAccount
        if self.listed.get(account):
            raise AccountNotEmpty
        del self.accounts[account]

    def update(self, account, told, reset=False):
        self.create(account)
        known = self.containers.get((account, told.name))
        mtime, dtime = (known["mtime"], known["dtime"]) if known else ("0", "0")
        if reset and (known is None or is_later(dtime, mtime)):
            raise UnknownContainer
        newer, dead = is_later(told.mtime, mtime), is_later(told.dtime, dtime)
        mtime, dtime = (told.mtime if newer else mtime), (told.dtime if dead else dtime)
        deleted = is_later(dtime, mtime)
        if not (newer or dead) or not (newer or deleted):
            raise StaleUpdate
        before = known or {**zeros(), "bucket": ""}
        after = zeros() if deleted else {counter: getattr(told, counter) for counter in COUNTERS}
        change = {counter: after[counter] - before[counter] for counter in COUNTERS}
        self.add(self.accounts[account], change)
        bucket = told.bucket or before["bucket"]
        entry = {"name": told.name, "mtime": mtime, "dtime": dtime, **after, "bucket": "" if deleted else bucket}
        self.containers[account, told.name] = entry
        names = self.listed.setdefault(account, set())
        own = self.bucket_lists.setdefault(account, set())
        if deleted:
            names.discard(told.name)
            if bucket == told.name:
                own.discard(bucket)
                if self.buckets.get(bucket, {}).get("account", account) == account:
                    self.bucket_lists[""].discard(bucket)
                    self.buckets.pop(bucket, None)
            return
        names.add(told.name)
        if not bucket:
            return
        self.buckets.setdefault(bucket, {}).update(account=account, mtime=mtime)
        if bucket == told.name:
            own.add(bucket)
            self.bucket_lists[""].add(bucket)
        marker = self.markers.get(bucket)
        if marker is None or told.name.encode() <= marker.encode():
            self.add(self.buckets[bucket], self.share(told.name, change if before["bucket"] else after))

    def refresh_bucket(self, bucket):
        if bucket not in self.buckets:
            self.markers.pop(bucket, None)
            raise UnknownBucket
        if bucket in self.markers:
            raise BucketLocked
        entry = self.buckets[bucket]
        entry.update(zeros())
        for (account, name), container in self.containers.items():
            listed = account == entry.get("account") and name in self.listed.get(account, ())
            if listed and container["bucket"] == bucket:
                self.add(entry, self.share(name, container))

    def flush(self, account):
        if account not in self.accounts:
            raise UnknownAccount
        for name in self.listed.pop(account, ()):
            del self.containers[account, name]
        self.accounts[account] = zeros()

    @staticmethod
    def share(name, counters):
        return {**counters, "objects": 0} if "+segments" in name else counters

    @staticmethod
    def add(entry, change):
        for counter in COUNTERS:
            if change[counter] or counter in entry:
                entry[counter] = entry.get(counter, 0) + change[counter]

    def dump(self):
        keys = {"accounts:": dict.fromkeys(self.accounts, "1")} if self.accounts else {}
        for account, counters in self.accounts.items():
            keys[f"account:{account}"] = {"id": account, **texts(counters)}
        for (account, name), entry in self.containers.items():
            fields = {key: value for key, value in texts(entry).items() if key != "bucket" or value}
            keys[f"container:{account}:{name}"] = fields
        for bucket, entry in self.buckets.items():
            keys[f"bucket:{bucket}"] = texts(entry)
        for prefix, lists in (("containers:", self.listed), ("buckets:", self.bucket_lists)):
            for account, names in lists.items():
                if names:
                    keys[prefix + account] = sorted(names, key=str.encode)
        for bucket, marker in self.markers.items():
            keys[f"bucketlock:{bucket}"] = {"ctime": "1", "mtime": normalize_time(9e9), "marker": marker}
        return keys


def texts(entry):
    return {key: str(value) for key, value in entry.items()}


def dump(raw):
    keys = {}
    for key in raw.keys("*"):
        if raw.type(key) == "zset":
            keys[key] = raw.zrange(key, 0, -1)
            assert {score for _, score in raw.zrange(key, 0, -1, withscores=True)} == {0}
        else:
            keys[key] = raw.hgetall(key)
            if key.startswith("account:"):
                assert float(keys[key].pop("ctime")) > 1.6e9
    return keys


def run(operation):
    """What an operation gives, or the class of what it raises."""
    try:
        return operation()
    except (AccountNotEmpty, BucketLocked, StaleUpdate, UnknownAccount, UnknownBucket, UnknownContainer) as exc:
        return type(exc)


NAMES = ["b1", "b1%2Fdeep", "b1+segments", "b1+segments%2Fx", "b2", "other", "é ü"]
ACCOUNTS = ["acme", "Blue: team"]


class Sequence:
    """Random steps, taken by the service and by the model."""

    def __init__(self, seed, backend, raw):
        self.random, self.backend, self.raw, self.model = random.Random(seed), backend, raw, Model()

    def step(self):
        kind = self.random.choices(
            ["update", "many", "reset", "delete", "create", "flush", "refresh", "bucket", "expire", "lock"],
            [60, 15, 8, 3, 2, 1, 2, 5, 5, 4],
        )[0]
        getattr(self, kind)(self.random.choice(ACCOUNTS))

    def both(self, real, modelled):
        assert run(real) == run(modelled)

    def any_update(self):
        choose = self.random.choice
        name = choose(NAMES)
        times = [None, None, *range(6), 9.99999, 10, 10.5, 10**9 - 1, 10**10, 10**10 + 1]
        return ContainerUpdate(
            name, normalize_time(choose(times)), normalize_time(choose([None, None, *times])),
            choose(["", "", "b1", "b2"]),
            *(choose([0, 1, 3, 1000, COUNTER_MAX, -2]) for _ in COUNTERS),
        )  # fmt: skip

    def update(self, account):
        told = self.any_update()
        self.both(lambda: self.backend.update_container(account, told), lambda: self.model.update(account, told))

    def many(self, account):
        batch = [(self.random.choice(ACCOUNTS), self.any_update()) for _ in range(self.random.randrange(8))]
        found = [outcome and type(outcome) for outcome in self.backend.update_containers(batch)]
        assert found == [run(lambda item=item: self.model.update(*item)) for item in batch]

    def reset(self, account):
        name, mtime = self.random.choice(NAMES), normalize_time(self.random.randrange(12))
        told = ContainerUpdate(name, mtime)
        self.both(
            lambda: self.backend.reset_container(account, name, mtime),
            lambda: self.model.update(account, told, reset=True),
        )

    def delete(self, account):
        self.both(lambda: self.backend.delete(account), lambda: self.model.delete(account))

    def create(self, account):
        self.both(lambda: self.backend.create(account), lambda: self.model.create(account))

    def flush(self, account):
        self.both(lambda: self.backend.flush(account), lambda: self.model.flush(account))

    def refresh(self, account):
        for counter in COUNTERS:
            if self.raw.exists(f"account:{account}"):
                self.raw.hset(f"account:{account}", counter, self.random.randrange(-5, 5))
        known = account in self.model.accounts
        self.both(lambda: self.backend.refresh(account), lambda: None if known else UnknownAccount)

    def bucket(self, _account):
        bucket = self.random.choice(["b1", "b2"])
        self.both(lambda: self.backend.refresh_bucket(bucket), lambda: self.model.refresh_bucket(bucket))

    def expire(self, account):
        for (owner, name), entry in list(self.model.containers.items()):
            key = f"container:{owner}:{name}"
            if is_later(entry["dtime"], entry["mtime"]):
                assert 1 <= self.raw.ttl(key) <= 60
                if owner == account:
                    self.raw.delete(key)
                    del self.model.containers[owner, name]
            else:
                assert self.raw.ttl(key) == -1

    def lock(self, _account):
        bucket, marker = self.random.choice(["b1", "b2"]), self.random.choice([None, "", *NAMES])
        key = f"bucketlock:{bucket}"
        if marker is None:
            self.raw.delete(key)
            self.model.markers.pop(bucket, None)
        elif bucket in self.model.buckets:
            self.raw.hset(key, mapping={"ctime": "1", "mtime": normalize_time(9e9), "marker": marker})
            self.model.markers[bucket] = marker


@pytest.mark.parametrize("batch", [3, 10000])
@pytest.mark.parametrize("seed", range(6))
def test_what_is_stored_follows_the_rules(backend, raw, seed, batch):
    backend.refresh_batch = batch
    sequence = Sequence(seed, backend, raw)
    for step in range(150):
        sequence.step()
        if step % 5 == 0:
            assert dump(raw) == sequence.model.dump()
    assert dump(raw) == sequence.model.dump()


# --- times -----------------------------------------------------------------------------------------

times = st.one_of(st.none(), st.floats(0, 31494784780800, allow_nan=False), st.integers(0, 10**11))


@given(times, times)
def test_times_are_compared_like_numbers(a, b):
    one, other = normalize_time(a), normalize_time(b)
    if one == other:
        assert not is_later(one, other)
    elif "0" in (one, other):
        assert is_later(one, other) == (other == "0")
    else:
        assert is_later(one, other) == (float(one) > float(other))


def test_times_are_normalised():
    assert normalize_time("12456.000354") == "0000012456.00035"
    assert normalize_time(0) == "0000000000.00000"
    assert normalize_time(1600000000123456) == "1600000000.12346"
    assert normalize_time(31494784780800) == "31494784780800.00000"
    assert normalize_time(None) == normalize_time("") == "0"
    for bad in ("noon", "nan", "inf", -1, 1e300):
        with pytest.raises(ValueError):
            normalize_time(bad)


# --- cases ------------------------------------------------------------------------------------------

OLD = {"objects": 1, "bytes": 2, "damaged_objects": 3, "missing_chunks": 4}
NEW = {"objects": 5, "bytes": 6, "damaged_objects": 7, "missing_chunks": 8}


@pytest.mark.parametrize(
    ("stored", "received", "outcome"),
    [
        ({}, {"mtime": 10}, "updated"),
        ({}, {"mtime": 0}, "updated"),
        ({}, {"dtime": 10}, "deleted"),
        ({"mtime": 10}, {"mtime": 10}, "stale"),
        ({"mtime": 10}, {"mtime": 9}, "stale"),
        ({"mtime": 10}, {"mtime": 11}, "updated"),
        ({"mtime": 10}, {"dtime": 9}, "stale"),
        ({"mtime": 10}, {"dtime": 11}, "deleted"),
        ({"mtime": 10}, {}, "stale"),
        ({"mtime": 10, "dtime": 20}, {"mtime": 15}, "deleted"),
        ({"mtime": 10, "dtime": 20}, {"dtime": 20}, "stale"),
        ({"mtime": 10, "dtime": 20}, {"mtime": 21}, "updated"),
        ({"mtime": 10}, {"mtime": 11, "dtime": 11}, "updated"),
        ({"mtime": 10}, {"mtime": 11, "dtime": 12}, "deleted"),
        ({"mtime": 9999999999}, {"mtime": 10000000000}, "updated"),
        ({"mtime": 10000000000}, {"mtime": 9999999999}, "stale"),
    ],
)
def test_outcomes(update, backend, raw, stored, received, outcome):
    if stored:
        update(**stored, **OLD)
    if outcome == "stale":
        with pytest.raises(StaleUpdate):
            update(**received, **NEW)
    else:
        update(**received, **NEW)
    before = zeros() if "dtime" in stored else OLD
    expected = {"stale": before, "updated": NEW, "deleted": zeros()}[outcome]
    info = backend.show("acct")
    assert {counter: info[counter] for counter in COUNTERS} == expected
    shown = backend.show_container("acct", "c")
    assert {counter: shown[counter] for counter in COUNTERS} == expected
    dead = outcome == "deleted" or (outcome == "stale" and "dtime" in stored)
    assert raw.zrange("containers:acct", 0, -1) == ([] if dead else ["c"])
    assert info["containers"] == (not dead)
    ttl = raw.ttl("container:acct:c")
    assert 1 <= ttl <= 60 if dead else ttl == -1


def test_a_container_that_comes_back_does_not_expire(update, raw):
    update(mtime=10)
    update(dtime=20)
    assert raw.ttl("container:acct:c") >= 1
    update(mtime=21)
    assert raw.ttl("container:acct:c") == -1


def test_an_account_that_may_not_be_created(backend, raw):
    strict = AccountBackend(backend.connection, autocreate=False)
    told = ContainerUpdate("c", normalize_time(1))
    with pytest.raises(UnknownAccount):
        strict.update_container("nobody", told)
    with pytest.raises(UnknownAccount):
        strict.update_metadata("nobody", {"a": "b"}, [])
    assert [type(outcome) for outcome in strict.update_containers([("nobody", told)])] == [UnknownAccount]
    assert raw.keys("*") == []
    strict.create("nobody")
    strict.update_container("nobody", told)
    assert strict.show("nobody")["containers"] == 1


def test_counters_are_exact(update, backend, raw):
    for number in range(3):
        update(f"c{number}", mtime=1, bytes=COUNTER_MAX)
    assert raw.hget("account:acct", "bytes") == str(3 * COUNTER_MAX)
    backend.refresh("acct")
    assert backend.show("acct")["bytes"] == 3 * COUNTER_MAX
    for number in range(3):
        update(f"c{number}", dtime=2)
    assert raw.hget("account:acct", "bytes") == raw.hget("container:acct:c0", "bytes") == "0"


# --- buckets ------------------------------------------------------------------------------------------


def figures(backend, bucket="b"):
    shown = backend.show_bucket(bucket)
    return shown["objects"], shown["bytes"]


def test_the_parts_of_a_bucket_count_their_bytes(update, backend, raw):
    update("b", mtime=1, bucket="b", objects=1, bytes=10)
    update("b%2Fx", mtime=2, bucket="b", objects=2, bytes=20)
    update("b+segments", mtime=3, bucket="b", objects=4, bytes=40, missing_chunks=1)
    assert figures(backend) == (3, 70)
    assert backend.show_bucket("b") == {
        "account": "acct", "mtime": normalize_time(3), "objects": 3, "bytes": 70, "damaged_objects": 0,
        "missing_chunks": 1, "replication_enabled": False,
    }  # fmt: skip
    info = backend.show("acct")
    assert (info["objects"], info["bytes"], info["buckets"], info["containers"]) == (7, 70, 1, 3)
    assert raw.zrange("buckets:", 0, -1) == raw.zrange("buckets:acct", 0, -1) == ["b"]
    # The bucket is remembered; the deletion of a part leaves it as it is (contract).
    update("b%2Fx", mtime=4, objects=3, bytes=30)
    assert figures(backend) == (4, 80)
    update("b%2Fx", dtime=5)
    assert figures(backend) == (4, 80)
    update("b", dtime=6)
    assert raw.keys("bucket*") == []


def test_a_bucket_of_another_account_survives_a_late_deletion(update, backend, raw):
    update("b", mtime=1, bucket="b")
    update("b", mtime=5, bucket="b", account="other")
    update("b", dtime=3)
    assert backend.show_bucket("b")["account"] == "other"
    assert raw.zrange("buckets:", 0, -1) == ["b"]
    assert not raw.exists("buckets:acct")


def test_while_a_bucket_is_refreshed_only_what_it_has_seen_counts(update, backend, raw):
    for number in range(1, 4):
        update(f"cnt-{number}", mtime=1, bucket="b", bytes=1)
    raw.hset("bucketlock:b", mapping={"ctime": "1", "mtime": normalize_time(9e9), "marker": "cnt-2"})
    with pytest.raises(BucketLocked):
        backend.refresh_bucket("b")
    for number, expected in ((1, 13), (2, 23), (3, 23)):
        update(f"cnt-{number}", mtime=2, bucket="b", bytes=11)
        assert figures(backend) == (0, expected)
    # Remembered or named, the bucket is the same.
    update("cnt-3", mtime=3, bytes=50)
    assert figures(backend) == (0, 23)
    raw.hset("bucketlock:b", "mtime", normalize_time(1))
    backend.refresh_bucket("b")
    assert figures(backend) == (0, 72)
    assert not raw.exists("bucketlock:b")


@pytest.mark.parametrize("batch", [1, 2, 4, 100])
def test_a_refresh_repairs_a_bucket(update, backend, raw, batch):
    backend.refresh_batch = batch
    for number in range(4):
        update(f"c{number}", mtime=1, bucket="b" if number else "other", objects=number, bytes=1)
    raw.hset("bucket:b", mapping={"objects": 99, "bytes": -9, "damaged_objects": 5})
    backend.refresh_bucket("b")
    assert figures(backend) == (6, 3)
    assert backend.show_bucket("b")["damaged_objects"] == 0
    with pytest.raises(UnknownBucket):
        backend.refresh_bucket("nothing")
    assert raw.keys("bucketlock:*") == []


def test_replication_can_be_asked_for_before_the_first_container(update, backend):
    assert backend.update_bucket("b", {"replication_enabled": "True"}, [])["replication_enabled"] is True
    assert backend.show_container("acct", "b")["replication_enabled"] is False
    update("b", mtime=1, bucket="b")
    assert backend.show_bucket("b")["replication_enabled"] is True
    assert backend.show_container("acct", "b")["replication_enabled"] is True
    assert backend.update_bucket("b", {"x": "y"}, ["replication_enabled"])["x"] == "y"
    assert backend.show_bucket("b")["replication_enabled"] is False
    for reserved in ("account", "bytes", "mtime"):
        with pytest.raises(ValueError, match=reserved):
            backend.update_bucket("b", {reserved: "1"}, [])


def test_an_update_that_redis_cannot_take_does_not_hold_up_others(backend, raw):
    raw.set("container:acct:bad", "not a hash")
    updates = [("acct", ContainerUpdate(name, normalize_time(1), objects=1)) for name in ("a", "bad", "c")]
    outcomes = backend.update_containers(updates)
    # The first one had been applied before.
    assert [type(outcome).__name__ for outcome in outcomes] == ["StaleUpdate", "ResponseError", "NoneType"]
    assert backend.show("acct")["objects"] == backend.show("acct")["containers"] == 2
    with pytest.raises(ResponseError):
        backend.update_containers(updates[1:2])
    with pytest.raises(ResponseError):
        backend.update_containers(updates[1:2] * 2)
