# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""meta1 and meta0 on real bases: rules, codes, events, and what survives a restart."""

import hashlib
import threading

import pytest
from support import MemoryQueue

from oio.common.status import StatusError
from oio.meta.context import Context
from oio.meta.messages import (
    Meta0Get,
    Meta0Set,
    ReferenceCreate,
    ReferenceDelProperties,
    ReferenceDestroy,
    ReferenceForce,
    ReferenceLink,
    ReferenceSetProperties,
    ReferenceShow,
    ReferenceUnlink,
    ServiceLink,
)
from oio.meta.meta0.service import META0, Meta0Service
from oio.meta.meta1.prefixes import Prefixes
from oio.meta.meta1.service import META1, Meta1Service
from oio.meta.repository import Repository

CONTEXT = Context("NS", reqid="REQ", origin="tests")


class Meta1:
    """A service on a volume, called by request."""

    def __init__(self, volume, digits=2):
        self.queue = MemoryQueue()
        self.repository = Repository(str(volume), META1, queue=self.queue)
        self.owned = None  # all of them
        self.loads = 0
        self.prefixes = Prefixes(self._load)
        self.handlers = Meta1Service(self.repository, self.prefixes, digits).handlers()

    def _load(self):
        self.loads += 1
        if isinstance(self.owned, StatusError):
            raise self.owned
        return self.owned if self.owned is not None else [f"{n:02X}00" for n in range(256)]

    def __call__(self, request):
        return self.handlers[type(request)](request, CONTEXT)


@pytest.fixture
def meta1(tmp_path):
    service = Meta1(tmp_path)
    yield service
    service.repository.close()


def target(name, account="acme"):
    cid = hashlib.sha256(f"{account}\0{name}".encode()).hexdigest().upper()
    return {"cid": cid, "account": account, "name": name}


def link(name, *proposed, autocreate=True, **kwargs):
    return ReferenceLink(
        **target(name), type="meta2", proposed=list(proposed), autocreate=autocreate, **kwargs
    )


def hosts(reply):
    return [(one.seq, one.host) for one in reply.services]


def code(service, request):
    with pytest.raises(StatusError) as caught:
        service(request)
    return caught.value.code


def test_create_is_idempotent_and_keeps_properties(meta1):
    assert meta1(ReferenceCreate(**target("a"), properties={"k": "v"})).created
    assert not meta1(ReferenceCreate(**target("a"), properties={"k": "other"})).created
    shown = meta1(ReferenceShow(cid=target("a")["cid"]))
    assert (shown.account, shown.name, shown.properties, shown.services) == ("acme", "a", {"k": "v"}, [])


def test_absent_references_are_not_found(meta1):
    absent = target("absent")
    requests = [
        ReferenceShow(**absent),
        ReferenceDestroy(**absent),
        ReferenceUnlink(**absent, type="meta2"),
        ReferenceSetProperties(**absent, properties={"a": "b"}),
        ReferenceDelProperties(**absent),
        link("absent", "m1", autocreate=False),
        ReferenceForce(**absent, service=ServiceLink(type="meta2", host="m1")),
    ]
    assert [code(meta1, request) for request in requests] == [406] * 7  # no base
    assert not list(meta1.repository.names())
    meta1.repository.create(absent["cid"][:2] + "00", lambda tx: None)
    assert [code(meta1, request) for request in requests] == [406] * 7  # an empty base


def test_what_is_linked_wins(meta1):
    assert hosts(meta1(link("a", "m1"))) == [(1, "m1")]
    assert hosts(meta1(link("a", "m2"))) == [(1, "m1")]
    assert hosts(meta1(link("a"))) == [(1, "m1")]
    assert hosts(meta1(link("a", "m2", autocreate=False))) == [(1, "m1")]


def test_concurrent_links_agree(meta1):
    found = []
    threads = [
        threading.Thread(target=lambda n=n: found.append(hosts(meta1(link("a", f"m{n}")))))
        for n in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 16
    assert all(one == found[0] for one in found)


def test_a_replicated_link_has_one_entry_per_host(meta1):
    assert hosts(meta1(link("a", "m1", "m2", "m3"))) == [(1, "m1"), (1, "m2"), (1, "m3")]
    assert hosts(meta1(ReferenceShow(**target("a")))) == [(1, "m1"), (1, "m2"), (1, "m3")]


def test_renew_adds_the_next_set(meta1):
    meta1(link("a", "m1"))
    assert hosts(meta1(link("a", "m2", renew=True))) == [(1, "m1"), (2, "m2")]


def test_link_without_candidates(meta1):
    assert code(meta1, link("a")) == 454
    assert code(meta1, ReferenceShow(**target("a"))) == 406  # nothing was created
    assert code(meta1, ReferenceLink(**target("a"), type="", proposed=["x"], autocreate=True)) == 400


def test_dryrun_changes_nothing(meta1):
    assert hosts(meta1(link("a", "m1", dryrun=True))) == [(1, "m1")]
    assert code(meta1, ReferenceShow(**target("a"))) == 406


def test_show_filters_by_type(meta1):
    meta1(link("a", "m1"))
    meta1(ReferenceLink(**target("a"), type="rdir", proposed=["r1"]))
    assert [one.type for one in meta1(ReferenceShow(**target("a"))).services] == ["meta2", "rdir"]
    assert hosts(meta1(ReferenceShow(**target("a"), type="rdir"))) == [(1, "r1")]
    assert hosts(meta1(ReferenceShow(**target("a"), type="none"))) == []


def test_unlink(meta1):
    meta1(link("a", "m1"))
    meta1(link("a", "m2", renew=True))
    meta1(ReferenceUnlink(**target("a"), type="meta2", seq=1))
    assert hosts(meta1(ReferenceShow(**target("a")))) == [(2, "m2")]
    assert code(meta1, ReferenceUnlink(**target("a"), type="meta2", seq=1)) == 454
    meta1(ReferenceUnlink(**target("a"), type="meta2"))
    assert code(meta1, ReferenceUnlink(**target("a"), type="meta2")) == 454


def test_destroy(meta1):
    meta1(ReferenceCreate(**target("a"), properties={"k": "v"}))
    meta1(link("a", "m1"))
    assert code(meta1, ReferenceDestroy(**target("a"))) == 407
    meta1(ReferenceDestroy(**target("a"), force=True))
    assert code(meta1, ReferenceShow(**target("a"))) == 406
    meta1(ReferenceCreate(**target("a")))
    assert meta1(ReferenceShow(**target("a"))).properties == {}
    meta1(ReferenceDestroy(**target("a")))


def test_force(meta1):
    one = ServiceLink(seq=3, type="meta2", host="m1,m2", args="x")
    assert code(meta1, ReferenceForce(**target("a"), service=one)) == 406
    meta1(ReferenceForce(**target("a"), service=one, autocreate=True))
    assert code(meta1, ReferenceForce(**target("a"), service=one)) == 455
    other = ServiceLink(seq=3, type="meta2", host="m3")
    meta1(ReferenceForce(**target("a"), service=other, replace=True))
    assert hosts(meta1(ReferenceShow(**target("a")))) == [(3, "m3")]
    for bad in (
        ServiceLink(seq=0, type="meta2", host="m"),
        ServiceLink(type="", host="m"),
        ServiceLink(type="meta2", host=""),
    ):
        assert code(meta1, ReferenceForce(**target("a"), service=bad)) == 400


def test_properties(meta1):
    def properties():
        return meta1(ReferenceShow(**target("a"))).properties

    meta1(ReferenceCreate(**target("a"), properties={"a": "1", "b": "2"}))
    meta1(ReferenceSetProperties(**target("a"), properties={"b": "", "c": "é"}))
    assert properties() == {"a": "1", "c": "é"}
    meta1(ReferenceSetProperties(**target("a"), properties={"d": "4"}, clear=True))
    assert properties() == {"d": "4"}
    meta1(ReferenceSetProperties(**target("a"), properties={"e": "5"}))
    meta1(ReferenceDelProperties(**target("a"), names=["d", "unknown"]))
    assert properties() == {"e": "5"}
    meta1(ReferenceDelProperties(**target("a")))
    assert properties() == {}


def test_a_wrong_id_is_refused(meta1):
    wrong = {**target("a"), "name": "b"}
    assert code(meta1, ReferenceCreate(**wrong)) == 400
    assert code(meta1, ReferenceCreate(cid=target("a")["cid"])) == 400


def test_events_tell_the_links_after_each_change(meta1):
    meta1(ReferenceCreate(**target("a")))
    meta1(link("a", "m1"))
    meta1(link("a", "m2"))  # changes nothing, tells nothing
    meta1(ReferenceUnlink(cid=target("a")["cid"], type="meta2"))
    events = meta1.queue.wait(3)
    expected = [{"seq": 1, "type": "meta2", "host": "m1", "args": ""}]
    assert [event["data"] for event in events] == [[], expected, []]
    for event in events:
        assert event["event"] == "account.services"
        assert event["url"] == {
            "ns": "NS", "account": "acme", "user": "a", "id": target("a")["cid"]
        }  # fmt: skip
        assert (event["request_id"], event["origin"]) == ("REQ", "tests")
        assert event["when"] > 1e15


def test_linking_a_new_reference_is_one_event(meta1):
    meta1(link("a", "m1"))
    meta1(link("b", "m1"))
    assert [event["url"]["user"] for event in meta1.queue.wait(2)] == ["a", "b"]


def test_references_survive_a_restart(tmp_path):
    first = Meta1(tmp_path)
    first(link("a", "m1"))
    first.repository.close()
    second = Meta1(tmp_path)
    assert hosts(second(ReferenceShow(**target("a")))) == [(1, "m1")]
    cid = target("a")["cid"]
    assert (tmp_path / cid[:2] / f"{cid[:2]}00.meta1").exists()
    second.repository.close()


def test_prefixes_of_others_are_refused(meta1):
    meta1.owned = ["0000"]
    name = next(n for n in map(str, range(100)) if not target(n)["cid"].startswith("00"))
    assert code(meta1, ReferenceCreate(**target(name))) == 450
    assert meta1.loads == 1
    meta1.owned = None
    assert meta1(ReferenceCreate(**target(name))).created, "it was given to us after the last look at the table"
    assert meta1.loads == 2


def test_the_table_is_not_read_at_each_mistake(meta1):
    meta1.owned = ["0000"]
    barrier = threading.Barrier(12)
    codes = []

    def mistake():
        barrier.wait()
        with pytest.raises(StatusError) as caught:
            meta1.prefixes.check("AB00")
        codes.append(caught.value.code)

    threads = [threading.Thread(target=mistake) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [450] * 12
    # Those that came while the table was read wait for the next reading, which is for all of them.
    assert meta1.loads <= 3


def test_without_prefix_table_nothing_is_served_then_what_is_known(meta1):
    meta1.owned = StatusError(503, "meta0 is away")
    assert code(meta1, ReferenceCreate(**target("a"))) == 503
    meta1.owned = None
    meta1.prefixes.refresh()
    meta1.owned = StatusError(503, "meta0 is away")
    meta1.prefixes.refresh()
    assert meta1(ReferenceCreate(**target("a"))).created


# --- meta0 ------------------------------------------------------------------------------------------


@pytest.fixture
def meta0(tmp_path):
    repository = Repository(str(tmp_path / "meta0"), META0)
    handlers = Meta0Service(repository, "NS").handlers()
    yield lambda request: handlers[type(request)](request, CONTEXT)
    repository.close()


def test_meta0_keeps_the_table(meta0, tmp_path):
    assert meta0(Meta0Get()).mapping == {}
    table = {f"{n:04X}": ["z:1"] for n in range(65536)}
    meta0(Meta0Set(mapping=table | {"AB00": ["a:1", "b:1"], "AB01": ["a:1"]}))
    assert meta0(Meta0Get(prefix="ab00")).mapping == {"AB00": ["a:1", "b:1"]}
    meta0(Meta0Set(mapping={"AB00": ["c:1"]}))
    assert meta0(Meta0Get(prefix="AB0")).mapping == {
        "AB00": ["c:1"], "AB01": ["a:1"], **{f"AB0{n:X}": ["z:1"] for n in range(2, 16)}
    }  # fmt: skip
    assert meta0(Meta0Get()).mapping == table | {"AB00": ["c:1"], "AB01": ["a:1"]}
    assert (tmp_path / "meta0" / "NS.meta0").exists()


def test_the_first_mapping_of_meta0_is_whole(meta0):
    table = {f"{n:04X}": ["a:1"] for n in range(65535)}
    for first in ({"0000": ["a:1"]}, table):
        assert code(meta0, Meta0Set(mapping=first)) == 400
        assert meta0(Meta0Get()).mapping == {}
    meta0(Meta0Set(mapping={**table, "FFFF": ["a:1"]}))
    meta0(Meta0Set(mapping={"0000": ["b:1"]}))
    assert meta0(Meta0Get(prefix="0000")).mapping == {"0000": ["b:1"]}


@pytest.mark.parametrize(
    "mapping", [{"AB": ["a:1"]}, {"ab00": ["a:1"]}, {"AB00": []}, {"AB00": ["a:1", "a:1"]}, {"AB00": [""]}]
)
def test_meta0_refuses_bad_tables(meta0, mapping):
    assert code(meta0, Meta0Set(mapping={"0000": ["a:1"], **mapping})) == 400
    assert meta0(Meta0Get()).mapping == {}


def test_meta0_refuses_bad_prefixes(meta0):
    assert code(meta0, Meta0Get(prefix="XYZ")) == 400
    assert code(meta0, Meta0Get(prefix="00000")) == 400


def test_meta0_takes_the_whole_table(meta0):
    table = {f"{n:04X}": ["a:1"] for n in range(65536)}
    meta0(Meta0Set(mapping=table))
    assert meta0(Meta0Get()).mapping == table
