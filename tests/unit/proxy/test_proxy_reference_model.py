# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""References compared with a model in memory: any sequence of requests gives the answers, the state and the events
that the model foretells."""

import functools
import itertools

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from proxy_backend import full_cluster
from proxy_cluster import NS, rawx

from oio.common.utils import cid_from_name

RAWX = [f"{NS}-rawx-{number}" for number in range(1, 7)]
RDIR = [f"rdir-{number}" for number in range(1, 4)]
#: Replicas and mode of each type.
TYPES = {"rawx": ("KEEP", 2, RAWX), "rdir": ("REPLACE", 1, RDIR), "account": ("APPEND", 1, ["account-1"])}
POLICY = ";".join(f"{kind}={mode}|{replicas}|1" for kind, (mode, replicas, _) in TYPES.items())

REFERENCES = st.integers(0, 2)
KINDS = st.sampled_from(sorted(TYPES))
FLAGS = st.booleans()
PROPERTIES = st.dictionaries(st.sampled_from("abc"), st.sampled_from(["", "1", "é", "x" * 100]), max_size=3)
SEQS = st.integers(1, 3)

machines = itertools.count()


class Model:
    """What is expected of one reference."""

    def __init__(self, cid):
        self.cid = cid
        self.properties = {}
        #: (type, seq) -> hosts, args
        self.sets = {}

    def links(self, kind=""):
        """All the links as the routes show them."""
        return [
            {"seq": seq, "type": one, "host": host, "args": args}
            for (one, seq), (hosts, args) in sorted(self.sets.items())
            for host in hosts
            if kind in ("", one)
        ]


def links_told(events, cid):
    """What the events of one reference say."""
    return [event["data"] for event in events if event["url"]["id"] == cid]


def has_events(cid, count, events):
    """Are there that many?"""
    return len(links_told(events, cid)) >= count


class References(RuleBasedStateMachine):
    """Requests on three references of one account."""

    cluster = None

    def __init__(self):
        super().__init__()
        self.account = f"model{next(machines)}"
        self.models = {}
        self.events = {}

    # --- tools

    def name(self, number):
        return f"r{number}"

    def post(self, number, verb, body=None, **params):
        query = "".join(f"&{key}={value}" for key, value in params.items())
        path = f"reference/{verb}?acct={self.account}&ref={self.name(number)}{query}"
        return self.cluster.post(path, body)

    def create(self, number):
        self.models[number] = Model(cid_from_name(self.account, self.name(number)))
        return self.models[number]

    def told(self, number):
        """An event must tell the links as they are now."""
        model = self.models[number]
        self.events.setdefault(model.cid, []).append(model.links())

    # --- rules

    @rule(number=REFERENCES, properties=PROPERTIES)
    def create_reference(self, number, properties):
        answer = self.post(number, "create", {"properties": properties})
        if number in self.models:
            assert answer.status == 202
            return
        assert answer.status == 201
        self.create(number).properties = {key: value for key, value in properties.items() if value}
        self.told(number)

    @rule(number=REFERENCES, force=FLAGS)
    def destroy(self, number, force):
        answer = self.post(number, "destroy", force=int(force))
        if number not in self.models:
            assert answer.code == (404, 406)
        elif self.models[number].sets and not force:
            assert answer.code == (403, 407)
        else:
            assert answer.status == 204
            if self.models[number].sets:
                self.models[number].sets = {}
                self.told(number)
            del self.models[number]

    @rule(number=REFERENCES, properties=PROPERTIES, flush=FLAGS)
    def set_properties(self, number, properties, flush):
        extra = {"flush": ""} if flush else {}
        answer = self.post(number, "set_properties", {"properties": properties}, **extra)
        if number not in self.models:
            assert answer.code == (404, 406)
            return
        assert answer.status == 204
        kept = {} if flush else self.models[number].properties
        merged = {**kept, **properties}
        self.models[number].properties = {key: value for key, value in merged.items() if value}

    @rule(number=REFERENCES, keys=st.lists(st.sampled_from("abcd"), max_size=2))
    def del_properties(self, number, keys):
        answer = self.post(number, "del_properties", keys)
        if number not in self.models:
            assert answer.code == (404, 406)
            return
        assert answer.status == 204
        left = {} if not keys else self.models[number].properties
        self.models[number].properties = {key: value for key, value in left.items() if key not in keys}

    @rule(number=REFERENCES, kind=KINDS, renew=FLAGS, autocreate=FLAGS, dryrun=FLAGS)
    def link(self, number, kind, renew, autocreate, dryrun):
        verb = "renew" if renew else "link"
        answer = self.post(number, verb, type=kind, autocreate=int(autocreate), dryrun=int(dryrun))
        model = self.models.get(number)
        if model is None and not autocreate:
            assert answer.code == (404, 406)
            return
        assert answer.status == 200, answer.data
        mode, replicas, services = TYPES[kind]
        before = [] if model is None else model.links(kind)
        if before and (not renew or mode == "KEEP"):
            assert answer.json == before
            return
        kept = before if mode == "APPEND" else []
        assert answer.json[: len(kept)] == kept
        added = answer.json[len(kept) :]
        seq = before[-1]["seq"] + 1 if before else 1
        assert {(one["seq"], one["type"], one["args"]) for one in added} == {(seq, kind, "")}
        hosts = [one["host"] for one in added]
        assert len(set(hosts)) == len(hosts) == replicas and set(hosts) <= set(services)
        if dryrun:
            return
        model = model or self.create(number)
        if mode == "REPLACE":
            model.sets = {key: value for key, value in model.sets.items() if key[0] != kind}
        model.sets[kind, seq] = hosts, ""
        self.told(number)

    @rule(number=REFERENCES, kind=KINDS)
    def unlink(self, number, kind):
        answer = self.post(number, "unlink", type=kind)
        if number not in self.models:
            assert answer.code == (404, 406)
        elif not self.models[number].links(kind):
            assert answer.code == (404, 454)
        else:
            assert answer.status == 204
            sets = self.models[number].sets
            self.models[number].sets = {key: value for key, value in sets.items() if key[0] != kind}
            self.told(number)

    @rule(number=REFERENCES, kind=KINDS, seq=SEQS, autocreate=FLAGS, replace=FLAGS, data=st.data())
    def force(self, number, kind, seq, autocreate, replace, data):
        hosts = data.draw(st.lists(st.sampled_from(TYPES[kind][2]), min_size=1, max_size=3, unique=True))
        body = {"seq": seq, "type": kind, "host": ",".join(hosts), "args": "z"}
        answer = self.post(number, "force", body, type=kind, autocreate=int(autocreate), replace=int(replace))
        model = self.models.get(number)
        if model is None and not autocreate:
            assert answer.code == (404, 406)
        elif model is not None and (kind, seq) in model.sets and not replace:
            assert answer.code == (403, 455)
        else:
            assert answer.status == 204
            (model or self.create(number)).sets[kind, seq] = hosts, "z"
            self.told(number)

    @rule(number=REFERENCES, seq=SEQS, keep=st.integers(0, 1), wrong=FLAGS, dryrun=FLAGS)
    def relink(self, number, seq, keep, wrong, dryrun):
        model = self.models.get(number)
        hosts, args = ([], "") if model is None else model.sets.get(("rawx", seq), ([], ""))
        kept, replaced = hosts[:keep], hosts[keep:]
        if wrong or not replaced:
            replaced = [*replaced, "nobody"]

        def one(some):
            return {"seq": seq, "type": "rawx", "host": ",".join(some), "args": ""} if some else None

        body = {"kept": one(kept), "replaced": one(replaced)}
        answer = self.post(number, "relink", body, type="rawx", dryrun=int(dryrun))
        if model is None:
            assert answer.code == (404, 406)
        elif sorted(kept + replaced) != sorted(hosts):
            assert answer.code == (500, 407)
        else:
            assert answer.status == 200, answer.data
            new = [link["host"] for link in answer.json]
            assert new[: len(kept)] == kept and len(set(new)) == len(new) == TYPES["rawx"][1]
            assert not set(new[len(kept) :]) & set(hosts)
            assert all((link["seq"], link["args"]) == (seq, args) for link in answer.json)
            if not dryrun:
                model.sets["rawx", seq] = new, args
                self.told(number)

    # --- what holds

    @invariant()
    def the_state_is_that_of_the_model(self):
        for number in range(3):
            path = f"acct={self.account}&ref={self.name(number)}"
            model = self.models.get(number)
            has = self.cluster.get(f"reference/has?{path}").status
            assert has == (404 if model is None else 204)
            if model is not None:
                shown = self.cluster.get(f"reference/show?cid={model.cid}").json
                assert (shown["account"], shown["name"]) == (self.account, self.name(number))
                assert shown["srv"] == model.links()
                assert self.post(number, "get_properties").json["properties"] == model.properties

    def teardown(self):
        for cid, expected in self.events.items():
            found = self.cluster.backend.queue.wait(functools.partial(has_events, cid, len(expected)))
            assert links_told(found, cid) == expected


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    with full_cluster(tmp_path_factory.mktemp("meta"), **{"ns.service_update_policy": POLICY}) as cluster:
        for kind, services in (("rdir", RDIR), ("account", ["account-1"])):
            for number, service_id in enumerate(services):
                one = rawx(50 + number + 10 * len(kind))
                one.type, one.tags = kind, {**one.tags, "tag.service_id": service_id}
                cluster.conscience.put(one)
        cluster.reload()
        yield cluster


def test_references_behave_as_the_model(full):
    machine = type("Bound", (References,), {"cluster": full})
    run_state_machine_as_test(machine, settings=settings(max_examples=15, stateful_step_count=20, deadline=None))
