# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""``admin/*`` on bases of several copies, ``forward/balance-masters``, and the life of replicated containers."""

import contextlib
import threading
import time

import pytest
from proxy_cluster import NS, FakeMeta
from support import stop_for_good

from oio.common.status import StatusError
from oio.common.utils import cid_from_name
from oio.conscience.messages import Service
from oio.meta import base_messages, messages
from oio.meta.messages import ServiceLink

REF = "acct=acct&ref=ref"
CID = cid_from_name("acct", "ref")
META2 = f"type=meta2&{REF}"
NAMES = [f"{NS}-meta2-{number}" for number in (1, 2, 3)]
PEERS = ",".join(NAMES)
LESS = ",".join(NAMES[:2])


class Copies:
    """A cluster whose container has three copies, each on a service of its own."""

    def __init__(self, cluster):
        self.cluster = cluster
        self.extra = [FakeMeta(), FakeMeta()]
        self.services = dict(zip(NAMES, [cluster.meta, *self.extra], strict=True))
        for name, service in self.services.items():
            cluster.conscience.put(
                Service(type="meta2", addr=service.addr, score=90, tags={"tag.service_id": name})
            )
        cluster.reload()
        self.answer("reference_show", messages.ReferenceReply(
            cid=CID, account="acct", name="ref", services=[ServiceLink(type="meta2", host=PEERS)]
        ))  # fmt: skip

    def answer(self, operation, value):
        """The answer of all services."""
        for service in self.services.values():
            service.answers[operation] = value

    def lead(self, name, operation, value=None):
        """One service does an operation, the others send to it."""
        for other, service in self.services.items():
            service.answers[operation] = value if other == name else StatusError(303, name)

    def calls(self, operation):
        """Operations of a kind and their headers, by service."""
        found = {}
        for name, service in self.services.items():
            for call, headers in zip(service.calls, service.headers, strict=True):
                if call.operation() == operation:
                    found.setdefault(name, []).append((call, headers))
        return found


@pytest.fixture
def copies(cluster):
    made = Copies(cluster)
    cluster.app.resolver.masters.clear()
    yield made
    for service in made.extra:
        service.server.stop(0.2)


def statuses(answer):
    """Status of each peer."""
    assert answer.status == 200, answer.data
    return {name: entry["status"] for name, entry in answer.json.items()}


OK = {"status": 200, "message": "OK"}


# --- all


def test_each_peer_says_who_the_master_is(copies, cluster):
    copies.lead(NAMES[1], "base_status")
    expected = {name: {"status": 303, "message": NAMES[1]} for name in NAMES} | {NAMES[1]: OK}
    answer = cluster.post(f"admin/status?{META2}")
    assert statuses(answer) == expected and list(answer.json) == NAMES
    assert {entry["body"] for entry in answer.json.values()} == {""}
    for [(call, headers)] in copies.calls("base_status").values():
        assert call.base == f"{CID}.1" and headers["x-oio-peers"] == PEERS and headers["x-oio-admin"] == "1"
        assert "x-oio-local" not in headers and "x-oio-operation" not in headers
    copies.answer("base_status", StatusError(503, "no master"))
    told = statuses(cluster.post(f"admin/status?{META2}"))
    assert told == {name: {"status": 503, "message": "no master"} for name in NAMES}


@pytest.mark.parametrize(
    ("route", "operation"), [("ping", "base_ping"), ("leave", "base_leave"), ("sync", "base_sync")]
)
def test_each_peer_is_told(copies, cluster, route, operation):
    copies.services[NAMES[2]].answers[operation] = StatusError(301, "master")
    answer = cluster.post(f"admin/{route}?{META2}")
    assert statuses(answer) == {NAMES[0]: OK, NAMES[1]: OK, NAMES[2]: {"status": 301, "message": "master"}}
    told = copies.calls(operation)
    assert sorted(told) == NAMES
    assert all(headers["x-oio-admin"] == "1" for [(_, headers)] in told.values())
    cluster.post(f"admin/{route}?{META2}&service_id={NAMES[1]}")
    assert [len(copies.calls(operation)[name]) for name in NAMES] == [1, 2, 1]


def test_synchronisation_can_check(copies, cluster):
    cluster.post(f"admin/sync?{META2}")
    for asked in ("2", "-1", ""):
        cluster.post(f"admin/sync?{META2}&check_type={asked}")
    assert [call.check_type for call, _ in copies.calls("base_sync")[NAMES[0]]] == [-1, 2, -1, -1]
    for wrong in ("3", "-2", "x"):
        assert cluster.post(f"admin/sync?{META2}&check_type={wrong}").code == (400, 400)


def test_copies_are_found_where_they_are(copies, cluster):
    for name, service in copies.services.items():
        service.answers["base_find"] = base_messages.BaseFile(path=f"/{name}")
    copies.services[NAMES[1]].answers["base_find"] = StatusError(431, "no file")
    answer = cluster.post(f"admin/has?{META2}")
    assert statuses(answer) == {NAMES[0]: OK, NAMES[1]: {"status": 431, "message": "no file"}, NAMES[2]: OK}
    assert answer.json[NAMES[2]]["body"] == f"/{NAMES[2]}"
    assert all(headers["x-oio-local"] == "1" for [(_, headers)] in copies.calls("base_find").values())


def test_a_peer_that_is_dead_or_silent_delays_nobody(copies, cluster):
    release = threading.Event()
    silent = copies.services[NAMES[1]]
    silent.answers["base_ping"] = lambda _: release.wait(20) and None
    silent.orders["POST /v1/ping"] = lambda: release.wait(20) and (204, b"")
    stop_for_good(copies.services[NAMES[2]].server)
    begin = time.monotonic()
    answer = cluster.post(f"admin/ping?{META2}")
    took_s = time.monotonic() - begin
    release.set()
    told = statuses(answer)
    assert told[NAMES[0]] == OK and told[NAMES[1]]["status"] == told[NAMES[2]]["status"] == 503
    assert "refused" in told[NAMES[2]]["message"] and "no sign of life" in told[NAMES[1]]["message"]
    assert 1.4 < took_s < 10


def test_elections_are_described(copies, cluster):
    seen = {"local": {"id": NAMES[0], "state": "MASTER"}, "peers": NAMES[1:], "log": ["1:NONE:X:MASTER"]}
    copies.answer("base_debug", base_messages.BaseDescription())
    copies.services[NAMES[0]].answers["base_debug"] = base_messages.BaseDescription(election=seen)
    answer = cluster.post(f"admin/debug?{META2}")
    assert [answer.json[name]["body"] for name in NAMES] == [seen, None, None]
    # Without replication.
    cluster.meta.answers["base_debug"] = base_messages.BaseDescription(election={})
    for query in ("type=meta1&acct=nobody&ref=nothing", "type=meta0&acct=nobody&ref=nothing"):
        answer = cluster.post(f"admin/debug?{query}")
        assert answer.json == {cluster.meta.addr: {"status": OK, "body": {}}}


# --- copies


def test_copies_are_removed_where_it_is_said(copies, cluster):
    answer = cluster.post(f"admin/remove?{META2}")
    assert answer.code == (400, 400) and "service_id" in answer.json["message"]
    answer = cluster.post(f"admin/remove?{META2}&service_id={NAMES[2]},{NAMES[1]}")
    assert statuses(answer) == {NAMES[2]: OK, NAMES[1]: OK}
    assert sorted(copies.calls("base_remove")) == NAMES[1:]


def test_copies_are_removed_one_after_the_other(copies, cluster):
    """Each is kept when too few others are left: those that went together would count each other."""
    meeting = threading.Barrier(2)
    met = []

    def remove(_):
        with contextlib.suppress(threading.BrokenBarrierError):
            met.append(meeting.wait(0.2))

    for service in copies.services.values():
        service.answers["base_remove"] = remove
    answer = cluster.post(f"admin/remove?{META2}&service_id={NAMES[2]},{NAMES[0]}")
    assert statuses(answer) == {NAMES[2]: OK, NAMES[0]: OK} and not met


def test_a_copy_is_made(copies, cluster):
    copies.lead(NAMES[1], "base_status")
    other = FakeMeta()
    try:
        cluster.conscience.put(Service(type="meta2", addr=other.addr, score=90, tags={"tag.service_id": "new"}))
        cluster.reload()
        answer = cluster.post(f"admin/copy?{META2}", {"to": "new"})
        assert (answer.status, answer.json) == (200, {})
        answer = cluster.post(f"admin/copy?{META2}", {"to": other.addr, "from": NAMES[2]})
        assert (answer.status, answer.data) == (204, b"")
        assert [call.source for call in other.calls] == [copies.services[name].addr for name in NAMES[1:]]
        assert {headers["x-oio-peers"] for headers in other.headers} == {PEERS}
        other.answers["base_copy_from"] = StatusError(431, "nothing there")
        assert cluster.post(f"admin/copy?{META2}", {"to": "new", "from": NAMES[2]}).code == (404, 431)
    finally:
        other.server.stop(0.2)
    assert not copies.calls("base_copy_from")


@pytest.mark.parametrize(
    "body",
    [None, {}, [], {"to": ""}, {"to": 3}, {"to": "nobody"}, {"to": NAMES[0], "from": ""},
     {"to": NAMES[0], "from": 3}, {"to": NAMES[0], "from": "nobody"}, {"from": NAMES[0]}],
)  # fmt: skip
def test_a_copy_needs_known_services(copies, cluster, body):
    assert cluster.post(f"admin/copy?{META2}", body).code == (400, 400)
    assert not copies.calls("base_copy_from")


# --- master


def test_the_master_defragments(copies, cluster):
    copies.lead(NAMES[2], "base_vacuum")
    answer = cluster.post(f"admin/vacuum?{META2}")
    assert (answer.status, answer.json) == (200, {})
    [(call, headers)] = copies.calls("base_vacuum")[NAMES[2]]
    assert call.base == f"{CID}.1" and headers["x-oio-admin"] == "1" and headers["x-oio-operation"]
    answer = cluster.post(f"admin/vacuum?{META2}&service_id={NAMES[0]}")
    assert statuses(answer) == {NAMES[0]: {"status": 303, "message": NAMES[2]}}


@pytest.mark.parametrize("route", ["freeze", "enable", "disable"])
def test_the_master_changes_the_status(copies, cluster, route):
    copies.lead(NAMES[1], "container_set_status")
    answer = cluster.post(f"admin/{route}?{META2}")
    assert (answer.status, answer.json) == (200, {})
    assert len(copies.calls("container_set_status")[NAMES[1]]) == 1


def test_properties_of_the_master_or_of_a_copy(copies, cluster):
    def lead(name):
        def answer(_):
            if "x-oio-local" not in copies.services[name].headers[-1]:
                raise StatusError(303, NAMES[2])
            return messages.Properties(properties={"user.of": name})

        return answer

    for name, service in copies.services.items():
        service.answers["base_get_properties"] = lead(name)
    copies.services[NAMES[2]].answers["base_get_properties"] = messages.Properties(
        properties={"user.of": "master", "sys.type": "meta2"}
    )
    answer = cluster.post(f"admin/get_properties?{META2}")
    assert answer.json == {"properties": {"of": "master"}, "system": {"sys.type": "meta2"}}
    answer = cluster.post(f"admin/get_properties?{META2}&service_id={NAMES[0]}")
    assert answer.json["properties"] == {"of": NAMES[0]}


def test_properties_can_be_read_without_a_master(copies, cluster):
    def answer(service):
        def get(_):
            if "x-oio-local" in service.headers[-1]:
                return messages.Properties(properties={"user.a": "b"})
            raise StatusError(503, "no master")

        return get

    for service in copies.services.values():
        service.answers["base_get_properties"] = answer(service)
    answer = cluster.post(f"admin/get_properties?{META2}", headers={"x-oio-timeout": "1000000"})
    assert answer.json == {"properties": {"a": "b"}, "system": {}}


def test_peers_are_a_property_of_the_base(copies, cluster):
    resolver = cluster.app.resolver
    for route in ("admin", "container"):
        for service in copies.services.values():
            service.calls.clear()
            service.headers.clear()
        resolver.learn(CID, "meta2", NAMES)
        resolver.masters.put(("meta2", CID), NAMES[0])
        body = {"properties": {"a": "b"}, "system": {"sys.peers": LESS, "sys.m2.quota": "1"}}
        answer = cluster.post(f"{route}/set_properties?{META2}", body)
        assert (answer.status, answer.json) == (200, {})
        [(setting, _)] = copies.calls("container_set_properties")[NAMES[0]]
        assert setting.properties == {"user.a": "b", "sys.m2.quota": "1"}
        [(setting, headers)] = copies.calls("base_set_properties")[NAMES[0]]
        assert (setting.base, setting.properties) == (f"{CID}.1", {"sys.peers": LESS})
        assert headers["x-oio-peers"] == PEERS and not setting.clear
        assert resolver.links.get((CID, "meta2")) is None and resolver.masters.get(("meta2", CID)) is None
        cluster.post(f"{route}/set_properties?{META2}", {"system": {"sys.peers": NAMES[0]}})
        assert sum(map(len, copies.calls("container_set_properties").values())) == 1
        assert sum(map(len, copies.calls("base_set_properties").values())) == 2


@pytest.mark.parametrize("route", [f"admin/set_properties?{META2}", f"container/set_properties?{REF}"])
def test_peers_that_nobody_knows_are_refused(copies, cluster, route):
    """Nothing could be written to the base any more, not even the names of those that exist."""
    for peers in ("x", "x,y,z", f"{NAMES[0]},x", f"{NAMES[0]},x,y"):
        answer = cluster.post(route, {"system": {"sys.peers": peers}})
        assert answer.code == (400, 400) and "x" in answer.json["message"]
    assert not copies.calls("base_set_properties")
    # One that is lost, and not replaced yet.
    assert cluster.post(route, {"system": {"sys.peers": f"{LESS},x"}}).status == 200
    assert copies.calls("base_set_properties")


@pytest.mark.parametrize("kind", ["meta0", "meta1"])
def test_peers_of_the_directory_that_nobody_knows_are_refused(cluster, kind):
    answer = cluster.post(f"admin/set_properties?type={kind}&{REF}", {"system": {"sys.peers": "x"}})
    assert answer.code == (400, 400)


@pytest.mark.parametrize(("kind", "base"), [("meta0", NS), ("meta1", CID[:4])])
def test_properties_of_bases_of_the_directory(cluster, kind, base):
    peer = "127.0.0.1:6001"
    body = {"properties": {"a": "b"}, "system": {"sys.peers": peer}}
    answer = cluster.post(f"admin/set_properties?type={kind}&{REF}&flush=1", body)
    assert (answer.status, answer.json) == (200, {})
    sent = cluster.meta.last("base_set_properties")
    assert (sent.base, sent.clear) == (base, True)
    assert sent.properties == {"user.a": "b", "sys.peers": peer}
    answer = cluster.post(f"admin/del_properties?type={kind}&{REF}", ["a"])
    assert (answer.status, answer.json) == (200, {})
    sent = cluster.meta.last("base_del_properties")
    assert (sent.base, sent.names) == (base, ["user.a"])
    for body in (None, {}, {"properties": {}}, {"properties": {"a": 3}}):
        assert cluster.post(f"admin/set_properties?type={kind}&{REF}", body).code == (400, 400)
    for body in (None, {}, [3]):
        assert cluster.post(f"admin/del_properties?type={kind}&{REF}", body).code == (400, 400)


# --- meta0


def test_the_mapping_is_for_the_master_of_meta0(copies, cluster):
    names = [service.addr for service in copies.services.values()]
    for service in copies.extra:
        cluster.conscience.put(Service(type="meta0", addr=service.addr, score=90))
    cluster.reload()
    mapping = {"0000": ["127.0.0.1:6007"]}
    for service in copies.services.values():
        service.orders["GET /status"] = (200, b'{"replication":"QUORUM"}')
    master = names[1]
    for name, service in zip(names, copies.services.values(), strict=True):
        service.answers["meta0_set"] = None if name == master else StatusError(303, master)
        service.answers["meta0_get"] = (
            messages.PrefixMapping(mapping=mapping) if name == master else StatusError(303, master)
        )
    try:
        assert cluster.post("admin/meta0_force", mapping).status == 204
        [(_, headers)] = copies.calls("meta0_set")[NAMES[1]]
        assert headers["x-oio-peers"] == ",".join(sorted(names))
        assert cluster.get("admin/meta0_list").json == mapping
        # Without replication each has its own.
        for service in copies.services.values():
            service.orders["GET /status"] = (200, b'{"replication":"NONE"}')
            service.answers["meta0_set"] = None
            service.calls.clear()
            service.headers.clear()
        assert cluster.post("admin/meta0_force", mapping).status == 204
        assert sorted(copies.calls("meta0_set")) == NAMES
        assert cluster.get(f"admin/meta0_list?service_id={master}").json == mapping
    finally:
        for service in copies.services.values():
            service.orders.clear()


# --- elsewhere


def test_masters_are_balanced(cluster):
    cluster.meta.orders["POST /v1/balance_masters"] = (200, b"12")
    try:
        for query, sent in (
            ("", "max=100&inactivity=0"), ("&max=5&inactivity=60", "max=5&inactivity=60"),
            ("&max=0&inactivity=-1", "max=1&inactivity=0"),
            ("&max=100000&inactivity=100000", "max=9999&inactivity=86400"),
        ):  # fmt: skip
            url = f"/v3.0/forward/balance-masters?id={cluster.meta.addr}{query}"
            answer = cluster.post(url, raw=True)
            assert (answer.status, answer.data) == (200, b"12")
            assert cluster.meta.ordered[-1][0] == f"/v1/balance_masters?{sent}"
    finally:
        cluster.meta.orders.clear()
    assert cluster.post("/v3.0/forward/balance-masters", raw=True).code == (400, 400)


def test_a_container_is_made_on_all_the_services_that_are_linked(copies, cluster):
    shuffled = [NAMES[2], NAMES[0], NAMES[1]]
    cluster.meta.answers["reference_link"] = messages.ServiceLinks(
        services=[ServiceLink(type="meta2", host=",".join(shuffled))]
    )
    copies.lead(NAMES[1], "container_create", messages.Created(created=True))
    assert cluster.post(f"container/create?{REF}").status == 201
    [(call, headers)] = copies.calls("container_create")[NAMES[1]]
    assert call.peers == NAMES and headers["x-oio-peers"] == PEERS
    body = {"containers": [{"name": "ref"}]}
    answer = cluster.post("container/create_many?acct=acct", body)
    assert answer.json == {"containers": [{"name": "ref", "status": 201, "message": "ok"}]}


def test_a_container_is_destroyed_by_its_master(copies, cluster):
    copies.lead(NAMES[2], "container_set_status")
    copies.lead(NAMES[2], "container_destroy")
    assert cluster.post(f"container/destroy?{REF}").status == 204
    [(_, first)] = copies.calls("container_set_status")[NAMES[2]]
    [(_, second)] = copies.calls("container_destroy")[NAMES[2]]
    assert first["x-oio-peers"] == second["x-oio-peers"] == PEERS
    assert first["x-oio-operation"] != second["x-oio-operation"]


def test_a_destruction_whose_answer_was_lost_is_one(copies, cluster):
    copies.lead(NAMES[0], "container_set_status")
    lost, gone = StatusError(503, "no quorum"), StatusError(431, "destroyed already")
    another = StatusError(439, "somebody made it again")
    # Who has no base is asked once more: it may have become the master since.
    for found, times in ((another, 2), (gone, 3)):
        before = len(copies.calls("container_destroy").get(NAMES[0], ()))
        answers = iter([lost])
        copies.lead(NAMES[0], "container_destroy", lambda _request, a=answers, f=found: next(a, f))
        assert cluster.post(f"container/destroy?{REF}").status == 204
        sent = [call for call, _ in copies.calls("container_destroy")[NAMES[0]][before:]]
        assert len(sent) == times and all(call.sealed for call in sent)
    # By somebody else: this one was sent once.
    assert cluster.post(f"container/destroy?{REF}").code == (404, 431)
    # One that was never there.
    copies.answer("container_set_status", StatusError(431, "not here"))
    assert cluster.post(f"container/destroy?{REF}").code == (404, 431)


def test_a_snapshot_is_taken_from_the_master(copies, cluster):
    copies.lead(NAMES[2], "base_status")
    missing = StatusError(406, "none")
    known = cluster.meta.answers["reference_show"]
    cluster.meta.answers["reference_show"] = lambda call: known if call.cid == CID else _raise(missing)
    copies.answer("container_copy", None)
    cluster.meta.answers["reference_create"] = messages.Created(created=True)
    answer = cluster.post(f"container/snapshot?{REF}", {"account": "acct", "container": "copy"})
    assert answer.status == 204, answer.data
    [calls] = copies.calls("container_copy").values()
    call, _ = calls[-1]
    assert call.source_address == copies.services[NAMES[2]].addr


def _raise(exc):
    raise exc
