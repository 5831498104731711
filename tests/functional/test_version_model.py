# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Random operations on versions of objects, compared with a model in memory after every step."""

import dataclasses
import itertools

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from support import ACCOUNT, CHUNK_SIZE

from oio.common.exceptions import BadRequest, ClientException, Conflict, NoSuchObject, NotFound, OioException

PREFIXES = st.sampled_from([None, "d", "dir/"])
DELIMITERS = st.sampled_from([None, "/"])
NAMES = st.sampled_from(["a", "dir/x", "dir/y", "é %/"])
LARGE = bytes(range(256)) * (CHUNK_SIZE // 256) + b"the beginning of a second metachunk"
DATA = st.sampled_from([b"", b"x", b"hello world", b"z" * 5000, LARGE])
POLICIES = st.sampled_from(["SINGLE", "TWOCOPIES", "EC21"])
PROPERTIES = st.dictionaries(st.sampled_from(["k1", "k2"]), st.sampled_from(["v", "é"]))

_serial = itertools.count()


@dataclasses.dataclass
class Version:
    """A version of an object, or a delete marker."""

    number: int
    data: bytes = b""
    policy: str | None = None
    properties: dict = dataclasses.field(default_factory=dict)
    deleted: bool = False
    drained: bool = False

    def listed(self, name):
        size = None if self.deleted else len(self.data)
        return name, self.number, self.deleted, size, self.policy, self.properties


class Versions(RuleBasedStateMachine):
    """One container; ``objects`` maps names to their versions, the newest first."""

    api = None

    @initialize()
    def start(self):
        self.container = f"versions-{next(_serial)}"
        self.objects = {}
        self.maximum = 1
        self.trims = False
        self.api.container_create(ACCOUNT, self.container)

    # --- what the model says -----------------------------------------------------------------------

    def latest(self, name):
        versions = self.objects.get(name)
        return versions[0] if versions else None

    def readable(self, name):
        version = self.latest(name)
        return version if version is not None and not version.deleted else None

    def put(self, name, version):
        versions = self.objects.setdefault(name, [])
        if self.maximum in (0, 1):
            del versions[:1]
        versions.insert(0, version)
        if self.maximum > 1 and self.trims:
            self.keep(name, self.maximum)

    def keep(self, name, count):
        kept = [v for v in self.objects[name] if not v.deleted][:count]
        self.objects[name] = [v for v in self.objects[name] if v.deleted or v in kept]

    def remove(self, name, version):
        self.objects[name].remove(version)
        if not self.objects[name]:
            del self.objects[name]

    def refused(self, error, call, *args, **kwargs):
        try:
            getattr(self.api, call)(ACCOUNT, self.container, *args, **kwargs)
        except error:
            return
        raise AssertionError(f"{call}{args} {kwargs} should have raised {error}")

    # --- rules ---------------------------------------------------------------------------------------

    @rule(maximum=st.sampled_from([-1, 0, 1, 2, 3]))
    def set_versioning(self, maximum):
        self.api.container_set_properties(
            ACCOUNT, self.container, system={"sys.m2.policy.version": str(maximum)}
        )
        self.maximum = maximum

    @rule(trims=st.booleans())
    def set_delete_exceeding(self, trims):
        system = {"sys.m2.policy.version.delete_exceeding": "1" if trims else "0"}
        self.api.container_set_properties(ACCOUNT, self.container, system=system)
        self.trims = trims

    @rule(name=NAMES, data=DATA, policy=POLICIES, properties=PROPERTIES)
    def create(self, name, data, policy, properties):
        *_, metadata = self.api.object_create_ext(
            ACCOUNT, self.container, obj_name=name, data=data, policy=policy, properties=properties
        )
        self.put(name, Version(int(metadata["version"]), data, policy, dict(properties)))

    @rule(name=NAMES, data=DATA, policy=POLICIES)
    def append(self, name, data, policy):
        version = self.readable(name)
        if version is not None and version.drained:
            self.refused(ClientException, "object_create", obj_name=name, data=data, append=True)
            return
        *_, metadata = self.api.object_create_ext(
            ACCOUNT, self.container, obj_name=name, data=data, policy=policy, append=True
        )
        if version is None:
            self.put(name, Version(int(metadata["version"]), data, policy))
        else:
            version.data += data

    @rule(name=NAMES)
    def delete(self, name):
        version = self.latest(name)
        if version is None:
            self.refused(NoSuchObject, "object_delete", name)
            return
        self.api.object_delete(ACCOUNT, self.container, name)
        if self.maximum in (0, 1) or version.deleted:
            self.remove(name, version)
        else:
            self.objects[name].insert(0, Version(version.number + 1, deleted=True))

    @rule(name=NAMES, index=st.integers(0, 3))
    def delete_version(self, name, index):
        versions = self.objects.get(name, [])
        if index >= len(versions):
            error = BadRequest if self.maximum == 0 else NoSuchObject
            self.refused(error, "object_delete", name, version=12345)
        elif self.maximum == 0:
            self.refused(BadRequest, "object_delete", name, version=versions[index].number)
        else:
            self.api.object_delete(ACCOUNT, self.container, name, version=versions[index].number)
            self.remove(name, versions[index])

    @rule(name=NAMES, size=st.sampled_from([0, 1, 4000, CHUNK_SIZE, CHUNK_SIZE + 3]))
    def truncate(self, name, size):
        version = self.readable(name)
        if version is None:
            self.refused(NoSuchObject, "object_truncate", name, size=size)
        elif version.drained:
            self.refused(ClientException, "object_truncate", name, size=size)
        elif size > len(version.data):
            self.refused(OioException, "object_truncate", name, size=size)
        else:
            self.api.object_truncate(ACCOUNT, self.container, name, size=size)
            version.data = version.data[:size]

    @rule(name=NAMES)
    def drain(self, name):
        version = self.readable(name)
        if version is None:
            self.refused(NotFound, "object_drain", name)
            return
        self.api.object_drain(ACCOUNT, self.container, name)
        version.drained = True

    @rule(name=NAMES, policy=POLICIES)
    def change_policy(self, name, policy):
        version = self.readable(name)
        if version is None:
            self.refused(NoSuchObject, "object_change_policy", name, policy)
        elif version.drained:
            self.refused(ClientException, "object_change_policy", name, policy)
        elif version.policy == policy:
            self.refused(Conflict, "object_change_policy", name, policy)
        else:
            self.api.object_change_policy(ACCOUNT, self.container, name, policy)
            version.policy = policy

    @rule(source=NAMES, copy=NAMES)
    def link(self, source, copy):
        origin = self.readable(source)
        if origin is None:
            self.refused(NoSuchObject, "object_link", source, ACCOUNT, self.container, copy)
        elif origin.drained:
            self.refused(ClientException, "object_link", source, ACCOUNT, self.container, copy)
        else:
            self.api.object_link(ACCOUNT, self.container, source, ACCOUNT, self.container, copy)
            number = int(self.api.object_get_properties(ACCOUNT, self.container, copy)["version"])
            self.put(copy, dataclasses.replace(origin, number=number, properties=dict(origin.properties)))

    @rule(name=NAMES, properties=PROPERTIES, clear=st.booleans())
    def set_properties(self, name, properties, clear):
        version = self.readable(name)
        if version is None:
            self.refused(NoSuchObject, "object_set_properties", name, {"k1": "v"})
        elif properties or clear:
            self.api.object_set_properties(ACCOUNT, self.container, name, properties, clear=clear)
            version.properties = {**({} if clear else version.properties), **properties}

    @rule(maximum=st.sampled_from([None, -1, 0, 1, 2]))
    def purge(self, maximum):
        self.api.container_purge(ACCOUNT, self.container, maxvers=maximum)
        applied = self.maximum if maximum is None else maximum
        if applied >= 0:
            for name in self.objects:
                self.keep(name, max(applied, 1))

    @rule(name=NAMES, index=st.integers(0, 3))
    def read(self, name, index):
        versions = self.objects.get(name, [])
        if index >= len(versions):
            self.refused(NoSuchObject, "object_fetch", name, version=12345)
            return
        version = versions[index]
        if version.deleted:
            self.refused(NoSuchObject, "object_fetch", name, version=version.number)
        elif version.drained:
            self.refused(ClientException, "object_fetch", name, version=version.number)
        else:
            _meta, stream = self.api.object_fetch(ACCOUNT, self.container, name, version=version.number)
            assert b"".join(stream) == version.data

    @rule(limit=st.integers(1, 4), prefix=PREFIXES, delimiter=DELIMITERS)
    def list_by_pages(self, limit, prefix, delimiter):
        names = sorted((n for n in self.objects if self.readable(n)), key=str.encode)
        names = [name for name in names if name.startswith(prefix or "")]
        start = len(prefix or "")
        cut = {n[: n.index("/", start) + 1] for n in names if delimiter and "/" in n[start:]}
        expected = [n for n in names if not delimiter or "/" not in n[start:]]
        found, prefixes, marker = [], [], None
        for _ in range(10):
            page = self.api.object_list(
                ACCOUNT, self.container, limit=limit, prefix=prefix, delimiter=delimiter, marker=marker
            )
            assert len(page["objects"]) + len(page["prefixes"]) <= limit
            found += [entry["name"] for entry in page["objects"]]
            prefixes += page["prefixes"]
            if not page["truncated"]:
                break
            marker = page["next_marker"]
        assert (found, prefixes) == (expected, sorted(cut))

    # --- after every step -----------------------------------------------------------------------------

    @invariant()
    def every_version_is_listed(self):
        page = self.api.object_list(ACCOUNT, self.container, versions=True, properties=True)
        listed = [
            (e["name"], e["version"], e["deleted"], e["size"], e["policy"], e.get("properties", {}))
            for e in page["objects"]
        ]
        names = sorted(self.objects, key=str.encode)
        assert listed == [version.listed(name) for name in names for version in self.objects[name]]
        stored = [v for versions in self.objects.values() for v in versions if not v.deleted]
        assert page["system"]["sys.m2.objects"] == str(len(stored))
        assert page["system"]["sys.m2.usage"] == str(sum(len(version.data) for version in stored))
        assert page["system"].get("sys.m2.objects.damaged", "0") == "0"

    @invariant()
    def the_latest_versions_are_listed(self):
        names = sorted(self.objects, key=str.encode)
        page = self.api.object_list(ACCOUNT, self.container)
        assert [entry["name"] for entry in page["objects"]] == [n for n in names if self.readable(n)]
        page = self.api.object_list(ACCOUNT, self.container, deleted=True)
        assert [entry["version"] for entry in page["objects"]] == [self.objects[n][0].number for n in names]


def test_versions_behave_like_their_model(api):
    class Bound(Versions):
        pass

    Bound.api = api
    run_state_machine_as_test(
        Bound,
        settings=settings(
            max_examples=25, stateful_step_count=40, deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )
