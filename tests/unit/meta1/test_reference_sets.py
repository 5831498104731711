# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Sets of services linked to references: replaced as a whole or in part, in one transaction each."""

import hashlib
import threading

import pytest
from support import MemoryQueue

from oio.common.status import StatusError
from oio.meta.context import Context
from oio.meta.messages import (
    ReferenceCreate,
    ReferenceForce,
    ReferenceLink,
    ReferenceRelink,
    ReferenceSetProperties,
    ReferenceShow,
    ServiceLink,
)
from oio.meta.meta1.prefixes import Prefixes
from oio.meta.meta1.service import META1, Meta1Service
from oio.meta.repository import Repository

CONTEXT = Context("NS", reqid="REQ", origin="tests")
MIB = 1 << 20


@pytest.fixture
def queue():
    return MemoryQueue()


@pytest.fixture
def meta1(tmp_path, queue):
    repository = Repository(str(tmp_path), META1, queue=queue)
    handlers = Meta1Service(repository, Prefixes(lambda: ["0000"]), 0).handlers()
    yield lambda request: handlers[type(request)](request, CONTEXT)
    repository.close()


def target(name):
    return {"cid": hashlib.sha256(f"a\0{name}".encode()).hexdigest().upper(), "account": "a", "name": name}


def link(*proposed, **kwargs):
    return ReferenceLink(
        **target("r"), type="meta2", proposed=list(proposed), autocreate=True, **kwargs
    )


def relink(kept, replaced, chosen, seq=1, **kwargs):
    return ReferenceRelink(
        **target("r"), type="meta2", seq=seq, kept=kept, replaced=replaced, chosen=chosen, **kwargs
    )


def hosts(reply):
    return [(one.seq, one.host) for one in reply.services]


def shown(meta1):
    return hosts(meta1(ReferenceShow(**target("r"))))


def code(meta1, request):
    with pytest.raises(StatusError) as caught:
        meta1(request)
    return caught.value.code


def test_relink_keeps_and_replaces_under_the_same_seq(meta1, queue):
    one = ServiceLink(seq=4, type="meta2", host="m1,m2,m3", args="x")
    meta1(ReferenceForce(**target("r"), service=one, autocreate=True))
    reply = meta1(relink(["m3", "m1"], ["m2"], ["m9"], seq=4))
    assert hosts(reply) == shown(meta1) == [(4, "m3"), (4, "m1"), (4, "m9")]
    assert {one.args for one in reply.services} == {"x"}
    event = queue.wait(2)[-1]
    assert event["event"] == "account.services"
    assert [item["host"] for item in event["data"]] == ["m3", "m1", "m9"]


def test_relink_refuses_a_set_that_changed(meta1):
    assert code(meta1, relink(["m1"], [], ["m2"])) == 406
    meta1(link("m1", "m2"))
    for kept, replaced in (
        (["m1"], []), (["m1"], ["m3"]), (["m1", "m2"], ["m3"]), (["m1", "m1"], ["m2"]), ([], ["m1"]),
    ):  # fmt: skip
        assert code(meta1, relink(kept, replaced, ["m9"])) == 407
    assert code(meta1, relink(["m1"], ["m2"], ["m9"], seq=2)) == 407
    assert code(meta1, relink([], ["m1", "m2"], [])) == 400
    assert shown(meta1) == [(1, "m1"), (1, "m2")]


def test_a_dry_run_of_relink_tells_and_changes_nothing(meta1, queue):
    meta1(link("m1", "m2"))
    assert hosts(meta1(relink(["m1"], ["m2"], ["m3"], dryrun=True))) == [(1, "m1"), (1, "m3")]
    assert shown(meta1) == [(1, "m1"), (1, "m2")]
    meta1(ReferenceCreate(**target("other")))
    assert len(queue.wait(2)) == 2


def test_one_of_two_concurrent_relinks_wins(meta1):
    meta1(link("m1", "m2"))
    barrier, results = threading.Barrier(4), []

    def run(number):
        barrier.wait()
        try:
            meta1(relink(["m1"], ["m2"], [f"n{number}"]))
            results.append(number)
        except StatusError as exc:
            assert exc.code == 407

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 1
    assert shown(meta1) == [(1, "m1"), (1, f"n{results[0]}")]


def test_renewing_in_the_place_of_the_former_sets(meta1, queue):
    meta1(link("m1"))
    meta1(link("m2", renew=True))
    other = ReferenceLink(**target("r"), type="rdir", proposed=["r1"])
    meta1(other)
    assert hosts(meta1(link("m3", "m4", renew=True, replace=True, dryrun=True))) == [(3, "m3"), (3, "m4")]
    assert shown(meta1) == [(1, "m1"), (2, "m2"), (1, "r1")]
    assert hosts(meta1(link("m3", "m4", renew=True, replace=True))) == [(3, "m3"), (3, "m4")]
    assert shown(meta1) == [(3, "m3"), (3, "m4"), (1, "r1")]
    events = queue.wait(4)
    assert len(events) == 4, "the former sets and the new one change in one step"
    assert [item["host"] for item in events[-1]["data"]] == ["m3", "m4", "r1"]


def test_properties_can_be_large_and_many(meta1):
    large = {"k" * MIB: "v", "value": "é" * (MIB // 2)}
    many = {f"key-{number}": f"value-{number}" for number in range(2048)}
    meta1(ReferenceCreate(**target("r"), properties=large))
    meta1(ReferenceSetProperties(**target("r"), properties=many))
    assert meta1(ReferenceShow(**target("r"))).properties == {**large, **many}
    assert meta1(ReferenceShow(**target("r"), with_properties=False)).properties == {}
