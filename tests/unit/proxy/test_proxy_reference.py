# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Every route of ``reference/*`` on a real meta1."""

import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest
from proxy_backend import full_cluster
from proxy_cluster import NS, rawx

from oio.common.utils import cid_from_name

MIB = 1 << 20
POLICY = "rawx=KEEP|3|1;account=APPEND|1|1;rdir=REPLACE|1|1"
RAWX = [f"{NS}-rawx-{number}" for number in range(1, 7)]


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    with full_cluster(tmp_path_factory.mktemp("meta"), **{"ns.service_update_policy": POLICY}) as cluster:
        kinds = ("account", "rdir")
        for kind, number in itertools.product(kinds, (1, 2, 3)):
            one = rawx(number + 10 * kinds.index(kind) + 50)
            one.type, one.tags = kind, {**one.tags, "tag.service_id": f"{kind}-{number}"}
            cluster.conscience.put(one)
        cluster.reload()
        yield cluster


names = itertools.count()


class Reference:
    """A reference, and the requests about it."""

    def __init__(self, cluster):
        self.cluster = cluster
        self.name = f"ref{next(names)}"
        self.cid = cid_from_name("acct", self.name)
        self.query = f"acct=acct&ref={self.name}"

    def post(self, verb, body=None, **params):
        """A change."""
        extra = "".join(f"&{name}={value}" for name, value in params.items())
        return self.cluster.post(f"reference/{verb}?{self.query}{extra}", body)

    def show(self, kind=""):
        """What the directory says."""
        answer = self.cluster.get(f"reference/show?{self.query}&type={kind}")
        assert answer.status == 200, answer.data
        return answer.json

    def links(self, kind=""):
        """What is linked, as (seq, host)."""
        return [(one["seq"], one["host"]) for one in self.show(kind)["srv"]]

    def events(self, count):
        """The links told by events, once there are so many of them."""
        queue = self.cluster.backend.queue

        def mine(events):
            return [event for event in events if event["url"]["id"] == self.cid]

        return [
            [(link["type"], link["host"]) for link in event["data"]]
            for event in mine(queue.wait(lambda events: len(mine(events)) >= count))
            if event["event"] == "account.services"
        ]


@pytest.fixture
def absent(full):
    return Reference(full)


@pytest.fixture
def ref(full):
    reference = Reference(full)
    assert reference.post("create").status == 201
    return reference


def link(host, *, seq=1, kind="rawx", args=""):
    return {"seq": seq, "type": kind, "host": host, "args": args}


# --- create, destroy, has, show


def test_create_tells_whether_it_existed(absent):
    answer = absent.post("create", {"properties": {"a": "b"}})
    assert (answer.status, answer.data) == (201, b"")
    assert absent.post("create", {"properties": {"a": "c"}}).status == 202
    assert absent.post("get_properties").json == {"cid": absent.cid, "properties": {"a": "b"}}
    assert absent.events(1) == [[]]


@pytest.mark.parametrize("body", [[], 3, {"properties": []}, {"properties": {"a": 1}}, b"{"])
def test_create_refuses(absent, body):
    assert absent.post("create", body).code == (400, 400)
    assert absent.cluster.get(f"reference/has?{absent.query}").code == (404, 406)


def test_a_reference_is_created_by_its_names(full):
    assert full.post(f"reference/create?cid={'AB' * 32}").code == (400, 400)


@pytest.mark.parametrize(
    "query",
    ["", "acct=a", "ref=a", "cid=12345", "cid=x", "acct=" + "a" * 64 + "&ref=b", "acct=a&ref=" + "b" * 1024],
)  # fmt: skip
def test_every_route_wants_a_name(full, query):
    for verb in ("create", "destroy", "get_properties", "set_properties", "del_properties"):
        assert full.post(f"reference/{verb}?{query}").code == (400, 400)
    for verb in ("link", "unlink", "renew", "relink", "force"):
        assert full.post(f"reference/{verb}?type=rawx&{query}").code == (400, 400)
    for verb in ("show", "has"):
        assert full.get(f"reference/{verb}?{query}").code == (400, 400)


def test_has(ref, absent, full):
    answer = full.get(f"reference/has?{ref.query}")
    assert (answer.status, answer.data) == (204, b"")
    assert full.get(f"reference/has?cid={ref.cid.lower()}").status == 204
    assert full.get(f"reference/has?{absent.query}").code == (404, 406)
    assert full.post(f"reference/has?{ref.query}").code == (404, 404)


def test_missing_references(absent):
    for verb, body in (
        ("destroy", None), ("get_properties", None), ("set_properties", {"properties": {"a": "b"}}),
        ("del_properties", []), ("link", None), ("unlink", None), ("renew", None), ("force", link("x")),
        ("relink", {"kept": None, "replaced": link("x")}),
    ):  # fmt: skip
        assert absent.post(verb, body, type="rawx").code == (404, 406), verb
    assert absent.cluster.get(f"reference/show?{absent.query}").code == (404, 406)


def test_destroy_wants_force_while_something_is_linked(ref):
    ref.post("link", type="rawx")
    assert ref.post("destroy").code == (403, 407)
    answer = ref.post("destroy", force=1)
    assert (answer.status, answer.data) == (204, b"")
    assert ref.events(3)[-1] == [], "the links went with it"
    assert ref.post("destroy").code == (404, 406)


def test_show(ref, full):
    ref.post("link", type="rawx")
    ref.post("link", type="account")
    shown = full.get(f"reference/show?cid={ref.cid}").json
    assert set(shown) == {"dir", "srv", "cid", "account", "name"}
    assert (shown["account"], shown["name"], shown["cid"]) == ("acct", ref.name, ref.cid)
    services = full.conscience.services
    assert shown["dir"] == [link(services[kind][0].addr, kind=kind) for kind in ("meta0", "meta1")]
    assert [one["type"] for one in shown["srv"]] == ["account", "rawx", "rawx", "rawx"]
    assert [one["type"] for one in ref.show("account")["srv"]] == ["account"]
    assert ref.show("nothing")["srv"] == []


# --- properties


def test_properties(ref):
    body = {"properties": {"a": "1", "b": "2", "é ": "ü"}}
    assert ref.post("set_properties", body).status == 204
    assert ref.post("get_properties").json == {"cid": ref.cid, **body}
    assert ref.post("get_properties", []).json["properties"] == body["properties"]
    assert ref.post("get_properties", ["a", "unknown"]).json["properties"] == {"a": "1"}
    assert ref.post("set_properties", {"properties": {"a": "", "b": None, "c": "3"}}).status == 204
    assert ref.post("get_properties").json["properties"] == {"é ": "ü", "c": "3"}
    flush = f"reference/set_properties?{ref.query}&flush"
    assert ref.cluster.post(flush, {"properties": {"z": "9"}}).status == 204
    assert ref.post("get_properties").json["properties"] == {"z": "9"}
    assert ref.post("del_properties", ["z", "unknown"]).status == 204
    assert ref.post("get_properties").json["properties"] == {}
    ref.post("set_properties", body)
    assert ref.post("del_properties", []).status == 204
    assert ref.post("get_properties").json["properties"] == {}


@pytest.mark.parametrize(
    ("verb", "body"),
    [
        ("get_properties", {"a": "b"}), ("get_properties", [1]), ("set_properties", None),
        ("set_properties", {"properties": {"a": 1}}), ("set_properties", {"properties": {"": "x"}}),
        ("set_properties", ["a"]), ("del_properties", None), ("del_properties", {}), ("del_properties", [None]),
        ("set_properties", b'{"properties": {"a": "\xff"}}'), ("set_properties", b"nonsense"),
    ],
)  # fmt: skip
def test_bad_properties_change_nothing(ref, verb, body):
    ref.post("set_properties", {"properties": {"kept": "yes"}})
    assert ref.post(verb, body).code == (400, 400)
    assert ref.post("get_properties").json["properties"] == {"kept": "yes"}


def test_properties_can_be_large_and_many(ref):
    many = {f"key-{number}": f"value-{number}" for number in range(2048)}
    large = {"k" * MIB: "v" * MIB, "value": '"é\\\n\0' * (MIB // 8)}
    for properties in (many, large):
        assert ref.post("set_properties", {"properties": properties}).status == 204
    assert ref.post("get_properties").json["properties"] == {**many, **large}


# --- links


def test_link_is_idempotent(ref, full):
    answer = ref.post("link", type="rawx")
    assert answer.status == 200
    assert {one["seq"] for one in answer.json} == {1} and {one["type"] for one in answer.json} == {"rawx"}
    chosen = [one["host"] for one in answer.json]
    assert len(set(chosen)) == 3 and set(chosen) <= set(RAWX)
    saved = full.conscience.services["rawx"]
    full.conscience.put(*(rawx(number, score=0) for number in range(1, 7)))
    full.reload()
    assert ref.post("link", type="rawx").json == answer.json, "whatever the scores are now"
    full.conscience.services["rawx"] = saved
    full.conscience.generation += 1
    full.reload()
    assert ref.events(2) == [[], [("rawx", host) for host in chosen]]


def test_link_can_be_tried(ref, absent):
    assert len(ref.post("link", type="rawx", dryrun=1).json) == 3
    assert ref.links() == []
    assert len(absent.post("link", type="rawx", dryrun=1, autocreate=1).json) == 3
    assert absent.post("get_properties").code == (404, 406)


def test_links_are_to_services_with_the_tag(ref, full):
    for number in (2, 5):
        one = rawx(number)
        one.tags["tag.ssd"] = True
        full.conscience.put(one)
    full.process.variables.set("ns.service_update_policy", "rawx=KEEP|2|1|ssd=true")
    full.reload()
    try:
        assert {link["host"] for link in ref.post("link", type="rawx").json} == {RAWX[1], RAWX[4]}
        full.process.variables.set("ns.service_update_policy", "rawx=KEEP|3|1|ssd=true")
        full.reload()
        assert ref.post("link", type="rawx").status == 200, "what is linked stays"
        assert Reference(full).post("link", type="rawx", autocreate=1).code == (403, 481)
    finally:
        for number in (2, 5):
            full.conscience.put(rawx(number))
        full.process.variables.set("ns.service_update_policy", POLICY)
        full.reload()


def test_link_creates_when_asked(absent):
    assert absent.post("link", type="rdir").code == (404, 406)
    assert len(absent.post("link", type="rdir", autocreate=1).json) == 1
    assert len(absent.links()) == 1


def test_link_refuses(ref, full, make_cluster):
    assert ref.post("link").code == (400, 400)
    assert ref.post("link", type="unknown").code == (404, 453)
    full.process.variables.set("ns.service_update_policy", "rawx=KEEP|9|1")
    full.reload()
    answer = ref.post("link", type="rawx")
    full.process.variables.set("ns.service_update_policy", POLICY)
    full.reload()
    assert answer.code == (403, 481)
    assert ref.links() == []


def test_unlink(ref):
    ref.post("link", type="rdir")
    answer = ref.post("unlink", type="rdir")
    assert (answer.status, answer.data) == (204, b"")
    assert ref.post("unlink", type="rdir").code == (404, 454)
    assert ref.post("unlink").code == (400, 400)
    assert ref.events(3)[-1] == []


def test_force(ref, absent):
    one = link("here", seq=3, args="x")
    answer = ref.post("force", one, type="rawx")
    assert (answer.status, answer.data) == (204, b"")
    assert ref.show()["srv"] == [one]
    assert ref.post("force", link("there", seq=3), type="rawx").code == (403, 455)
    assert ref.post("force", link("there,too", seq=3), type="rawx", replace="yes").status == 204
    assert ref.links() == [(3, "there"), (3, "too")]
    assert ref.events(3)[-1] == [("rawx", "there"), ("rawx", "too")]
    assert absent.post("force", one, type="rawx", autocreate=1).status == 204
    assert absent.links() == [(3, "here")]


@pytest.mark.parametrize(
    "change",
    [{"seq": "x"}, {"seq": 0}, {"seq": -1}, {"seq": 1 << 70}, {"host": ""}, {"host": "a,,b"}, {"host": 3},
     {"type": "rdir"}, {"args": None}, None, "seq", "type", "host", "args"],
)  # fmt: skip
def test_force_refuses(ref, change):
    body = link("x")
    if isinstance(change, str):
        del body[change]
    else:
        body = None if change is None else {**body, **change}
    assert ref.post("force", body, type="rawx").code == (400, 400)
    assert ref.links() == []


def test_renew_follows_the_policy_of_the_type(ref):
    kept = ref.post("link", type="rawx").json
    assert ref.post("renew", type="rawx").json == kept, "KEEP"
    ref.post("unlink", type="rawx")
    assert [one["seq"] for one in ref.post("renew", type="account").json] == [1]
    assert [one["seq"] for one in ref.post("renew", type="account").json] == [1, 2], "APPEND"
    ref.post("link", type="rdir")
    before = len(ref.events(6))
    renewed = ref.post("renew", type="rdir").json
    assert [one["seq"] for one in renewed] == [2], "REPLACE"
    assert ref.show("rdir")["srv"] == renewed
    assert len(ref.events(before + 1)) == before + 1, "one change, one event"


def test_renew_can_be_tried_and_can_create(ref, absent):
    ref.post("link", type="rdir")
    linked = ref.links()
    assert [one["seq"] for one in ref.post("renew", type="rdir", dryrun=1).json] == [2]
    assert ref.links() == linked
    assert absent.post("renew", type="rdir", dryrun=1).code == (404, 406)
    assert absent.post("renew", type="rdir", autocreate=1).status == 200
    assert len(absent.links()) == 1
    assert ref.post("renew").code == (400, 400)
    assert ref.post("renew", type="unknown").code == (404, 453)


def test_renew_without_enough_services_keeps_what_is_linked(ref, full):
    ref.post("link", type="rdir")
    linked = ref.links()
    full.process.variables.set("ns.service_update_policy", "rdir=REPLACE|9|1")
    full.reload()
    answer = ref.post("renew", type="rdir")
    full.process.variables.set("ns.service_update_policy", POLICY)
    full.reload()
    assert answer.code == (403, 481)
    assert ref.links() == linked


# --- relink


@pytest.fixture
def linked(ref):
    assert ref.post("force", link(",".join(RAWX[:3]), seq=2, args="x"), type="rawx").status == 204
    return ref


def test_relink_keeps_the_kept_and_chooses_the_rest(linked):
    for dryrun in (1, 0):
        before = linked.links()
        answer = linked.post(
            "relink", {"kept": link(",".join(RAWX[:2]), seq=2), "replaced": link(RAWX[2], seq=2)},
            type="rawx", dryrun=dryrun,
        )  # fmt: skip
        assert answer.status == 200
        hosts = [one["host"] for one in answer.json]
        assert hosts[:2] == RAWX[:2] and len(hosts) == 3 and hosts[2] in RAWX[3:]
        assert all((one["seq"], one["type"], one["args"]) == (2, "rawx", "x") for one in answer.json)
        assert linked.links() == (before if dryrun else [(2, host) for host in hosts])
    assert linked.events(3)[-1] == [("rawx", host) for host in hosts]


def test_relink_can_replace_all(linked):
    answer = linked.post("relink", {"replaced": link(",".join(RAWX[:3]), seq=2)}, type="rawx")
    assert {one["host"] for one in answer.json} == set(RAWX[3:])


def test_relink_refuses_what_changed(linked):
    for kept, replaced in (
        (link(RAWX[0], seq=2), link(RAWX[1], seq=2)),
        (None, link(",".join(RAWX[:3]), seq=3)),
        (link(RAWX[0], seq=2), link(",".join(RAWX[1:4]), seq=2)),
    ):
        answer = linked.post("relink", {"kept": kept, "replaced": replaced}, type="rawx")
        assert answer.code == (500, 407)
        assert "services changed" in answer.json["message"].lower()
    answer = linked.post("relink", {"kept": link(",".join(RAWX[:3]), seq=2), "replaced": None}, type="rawx")
    assert answer.code == (500, 481)
    assert answer.json["message"] == "Too many services kept"
    assert linked.links() == [(2, host) for host in RAWX[:3]]


def test_relink_refuses_bad_bodies(linked):
    one, two, other = link(RAWX[0], seq=2), link(RAWX[1], seq=3), link("x", kind="rdir")
    for kept, replaced in ((None, None), (one, two), (other, None), ({"seq": 2}, None), ("x", None)):
        assert linked.post("relink", {"kept": kept, "replaced": replaced}, type="rawx").code == (400, 400)
    assert linked.post("relink", {"kept": one}).code == (400, 400)
    assert linked.post("relink", None, type="rawx").code == (400, 400)


def test_relink_counts_kept_services_that_nobody_knows_any_more(ref):
    ref.post("force", link(f"ghost,{RAWX[0]},{RAWX[1]}"), type="rawx")
    answer = ref.post("relink", {"kept": link(f"ghost,{RAWX[0]}"), "replaced": link(RAWX[1])}, type="rawx")
    hosts = [one["host"] for one in answer.json]
    assert hosts[:2] == ["ghost", RAWX[0]] and len(hosts) == 3 and hosts[2] in RAWX[2:]


def test_relink_puts_nothing_where_it_took_something_away(linked, full):
    saved = full.conscience.services["rawx"]
    full.conscience.put(*(rawx(number, score=0) for number in (4, 5, 6)))
    full.reload()
    answer = linked.post(
        "relink", {"kept": link(",".join(RAWX[:2]), seq=2), "replaced": link(RAWX[2], seq=2)}, type="rawx"
    )
    full.conscience.services["rawx"] = saved
    full.conscience.generation += 1
    full.reload()
    assert answer.code == (500, 481)
    assert linked.links() == [(2, host) for host in RAWX[:3]]


# --- together


def test_those_who_link_together_get_the_same_services(absent):
    with ThreadPoolExecutor(8) as threads:
        futures = [threads.submit(absent.post, "link", type="rawx", autocreate=1) for _ in range(24)]
        answers = [future.result() for future in futures]
    assert {answer.status for answer in answers} == {200}
    assert len({answer.data for answer in answers}) == 1
    assert len(absent.links()) == 3


def test_those_who_create_together_create_once(absent):
    with ThreadPoolExecutor(8) as threads:
        futures = [threads.submit(absent.post, "create", {"properties": {"a": str(n)}}) for n in range(24)]
        statuses = [future.result().status for future in futures]
    assert sorted(statuses) == [201] + [202] * 23
    assert absent.events(1) == [[]]


# --- services that are named


def test_meta1_can_be_named(ref, full):
    meta1 = full.conscience.services["meta1"][0].addr
    assert full.get(f"reference/has?{ref.query}&service_id={meta1}").status == 204
    assert full.get(f"reference/has?{ref.query}&service_id=127.0.0.1:9,{meta1}").status == 204
    answer = full.get(f"reference/has?{ref.query}&service_id=127.0.0.1:9")
    assert answer.code == (503, 503)
    assert answer.json["message"].startswith("No meta1 answered: No service replied (last error: (2) ")
    assert answer.headers["retry-after"] == "1"
    # The services named for a container are those of its base, not of its reference.
    created = full.post(f"container/create?acct=acct&ref={ref.name}-c&service_id={NS}-meta2-1")
    assert created.status == 201
