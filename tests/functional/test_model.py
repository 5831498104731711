# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Random operations on a real cluster, compared with a model in memory after every step."""

import hashlib
import itertools

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from support import ACCOUNT

from oio.common.exceptions import ContainerNotEmpty, NoSuchContainer, NoSuchObject

NAMES = st.sampled_from(["a", "b", "dir/x", "dir/y", "é %/"])
DATA = st.sampled_from([b"", b"x", b"hello world", b"z" * 5000])
POLICIES = st.sampled_from(["SINGLE", "THREECOPIES", "EC21"])
KEYS = st.sampled_from(["k1", "k2"])
VALUES = st.sampled_from(["", "v", "é"])

_serial = itertools.count()


def expecting(error, call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except error:
        return
    raise AssertionError(f"{call.__name__}{args} should have raised {error.__name__}")


class ObjectStore(RuleBasedStateMachine):
    """One container; ``objects`` is what it must hold, None when the container does not exist."""

    api = None

    @initialize()
    def start(self):
        self.container = f"model-{next(_serial)}"
        self.objects = None
        self.properties = {}

    @rule()
    def create_container(self):
        created = self.api.container_create(ACCOUNT, self.container)
        assert created is (self.objects is None)
        if created:
            self.objects, self.properties = {}, {}

    @rule()
    def delete_container(self):
        if self.objects is None:
            expecting(NoSuchContainer, self.api.container_delete, ACCOUNT, self.container)
        elif self.objects:
            expecting(ContainerNotEmpty, self.api.container_delete, ACCOUNT, self.container)
        else:
            self.api.container_delete(ACCOUNT, self.container)
            self.objects = None

    @rule(key=KEYS, value=VALUES, clear=st.booleans())
    def set_container_properties(self, key, value, clear):
        call = self.api.container_set_properties
        if self.objects is None:
            expecting(NoSuchContainer, call, ACCOUNT, self.container, {key: value})
            return
        call(ACCOUNT, self.container, {key: value}, clear=clear)
        self.properties = {} if clear else self.properties
        self.properties.pop(key, None)
        if value:
            self.properties[key] = value

    @rule(name=NAMES, data=DATA, policy=POLICIES, properties=st.dictionaries(KEYS, st.just("v")))
    def create_object(self, name, data, policy, properties):
        self.api.object_create(
            ACCOUNT, self.container, obj_name=name, data=data, policy=policy, properties=properties
        )
        if self.objects is None:
            self.objects, self.properties = {}, {}
        self.objects[name] = (data, policy, dict(properties))

    @rule(name=NAMES)
    def delete_object(self, name):
        if self.objects is None:
            expecting(NoSuchContainer, self.api.object_delete, ACCOUNT, self.container, name)
        elif name not in self.objects:
            expecting(NoSuchObject, self.api.object_delete, ACCOUNT, self.container, name)
        else:
            self.api.object_delete(ACCOUNT, self.container, name)
            del self.objects[name]

    @rule(name=NAMES, key=KEYS, value=VALUES)
    def set_object_properties(self, name, key, value):
        if not self.objects or name not in self.objects:
            return
        self.api.object_set_properties(ACCOUNT, self.container, name, {key: value})
        properties = self.objects[name][2]
        properties.pop(key, None)
        if value:
            properties[key] = value

    @rule(name=NAMES, start=st.integers(0, 20), length=st.integers(1, 6000))
    def read_object(self, name, start, length):
        if not self.objects or name not in self.objects:
            error = NoSuchContainer if self.objects is None else NoSuchObject
            expecting(error, self.api.object_fetch, ACCOUNT, self.container, name)
            return
        data, policy, properties = self.objects[name]
        metadata, stream = self.api.object_fetch(ACCOUNT, self.container, name)
        assert b"".join(stream) == data
        assert metadata["hash"] == hashlib.md5(data).hexdigest().upper()
        assert (metadata["policy"], metadata["properties"]) == (policy, properties)
        ranges = [(start, start + length - 1)]
        _metadata, stream = self.api.object_fetch(ACCOUNT, self.container, name, ranges=ranges)
        assert b"".join(stream) == data[start : start + length]

    @invariant()
    def the_container_holds_what_the_model_holds(self):
        if self.objects is None:
            expecting(NoSuchContainer, self.api.object_list, ACCOUNT, self.container)
            return
        page = self.api.object_list(ACCOUNT, self.container, properties=True)
        listed = {
            entry["name"]: (entry["size"], entry["policy"], entry.get("properties", {}))
            for entry in page["objects"]
        }
        assert listed == {
            name: (len(data), policy, properties)
            for name, (data, policy, properties) in self.objects.items()
        }
        assert list(listed) == sorted(listed, key=str.encode)
        assert page["properties"] == self.properties
        assert page["system"]["sys.m2.objects"] == str(len(self.objects))
        assert page["system"]["sys.m2.usage"] == str(sum(len(item[0]) for item in self.objects.values()))


def test_the_store_behaves_like_its_model(api):
    class Bound(ObjectStore):
        pass

    Bound.api = api
    run_state_machine_as_test(
        Bound,
        settings=settings(
            max_examples=25, stateful_step_count=30, deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )
