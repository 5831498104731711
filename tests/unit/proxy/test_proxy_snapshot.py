# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""``container/snapshot``: what is checked, what is done, what is undone."""

import pytest

from oio.common.status import StatusError
from oio.common.utils import cid_from_name
from oio.meta import messages
from oio.meta.messages import ServiceLink

REF = "acct=acct&ref=ref"
SOURCE, COPY = cid_from_name("acct", "ref"), cid_from_name("acct", "copy")
BODY = {"account": "acct", "container": "copy"}
LINK = ServiceLink(type="meta2", host="NSTEST-meta2-1")


@pytest.fixture
def copying(cluster):
    """A cluster where the source exists and the copy does not."""
    answers = cluster.meta.answers
    answers["reference_show"] = lambda call: (
        cluster.reference if call.cid == SOURCE else StatusError(406, "Reference not found")
    )
    answers["reference_create"] = messages.Created(created=True)
    return cluster


def test_snapshot_copies_the_base_of_the_source(copying):
    answer = copying.post(f"container/snapshot?{REF}", BODY)
    assert (answer.status, answer.data) == (204, b"")
    assert copying.meta.names()[-3:] == ["reference_create", "reference_force", "container_copy"]
    link = copying.meta.last("reference_force")
    assert (link.cid, link.service, link.replace) == (COPY, LINK, False)
    sent = copying.meta.last("container_copy")
    assert (sent.cid, sent.account, sent.name) == (COPY, "acct", "copy")
    assert (sent.source_cid, sent.source_address) == (SOURCE, copying.meta.addr)
    assert (sent.namespace, sent.peers) == ("NSTEST", ["NSTEST-meta2-1"])


def test_snapshot_by_container_id(copying):
    assert copying.post(f"container/snapshot?cid={SOURCE}", {**BODY, "seq_num": 1}).status == 204
    assert copying.meta.last("container_copy").source_cid == SOURCE


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (None, "body"),
        ([], "body"),
        ({}, "'account'"),
        ({"container": "copy"}, "'account'"),
        ({"account": "acct"}, "'container'"),
        ({**BODY, "account": ""}, "'account'"),
        ({**BODY, "account": 3}, "'account'"),
        ({**BODY, "container": None}, "'container'"),
        ({**BODY, "account": "a" * 64}, "'account'"),
        ({**BODY, "container": "é" * 512}, "'container'"),
        ({**BODY, "container": "a\0"}, "'container'"),
        ({**BODY, "seq_num": "1"}, "'seq_num'"),
        ({**BODY, "seq_num": True}, "'seq_num'"),
        ({"account": "acct", "container": "ref"}, "source"),
    ],
)
def test_snapshot_refuses(copying, body, word):
    answer = copying.post(f"container/snapshot?{REF}", body)
    assert answer.code == (400, 400) and word in answer.json["message"]
    assert copying.meta.calls == []


def test_snapshot_of_what_is_not_there(copying):
    copying.meta.answers["reference_show"] = StatusError(406, "Reference not found")
    assert copying.post(f"container/snapshot?{REF}", BODY).code == (404, 406)
    copying.meta.answers["reference_show"] = messages.ReferenceReply(cid=SOURCE, account="acct", name="ref")
    assert copying.post(f"container/snapshot?{REF}", BODY).code == (404, 431)
    assert copying.post(f"container/snapshot?{REF}", {**BODY, "seq_num": 2}).code == (404, 431)
    assert not {"reference_create", "reference_force"} & set(copying.meta.names())


def test_snapshot_onto_a_container_changes_nothing(copying):
    copying.meta.answers["reference_create"] = messages.Created(created=False)
    copying.meta.answers["reference_show"] = messages.ReferenceReply(
        cid=COPY, account="acct", name="copy", services=[LINK]
    )
    answer = copying.post(f"container/snapshot?{REF}", BODY)
    assert answer.code == (400, 400) and answer.json["message"] == "Container already exists"
    assert not {"reference_force", "reference_unlink", "reference_destroy"} & set(copying.meta.names())


def test_of_two_snapshots_onto_one_name_the_second_undoes_nothing(copying):
    copying.meta.answers["reference_force"] = StatusError(455, "taken")
    assert copying.post(f"container/snapshot?{REF}", BODY).code == (400, 400)
    assert not {"container_copy", "reference_unlink", "reference_destroy"} & set(copying.meta.names())


@pytest.mark.parametrize(("code", "http"), [(431, 404), (500, 500), (503, 503)])
@pytest.mark.parametrize("made", [False, True])
def test_a_failed_copy_leaves_nothing(copying, code, http, made):
    copying.meta.answers["container_copy"] = StatusError(code, "no")
    copying.meta.answers["container_get_properties"] = (
        messages.Properties(properties={"sys.status": "4294967295"}) if made else StatusError(431, "no base")
    )
    assert copying.post(f"container/snapshot?{REF}", BODY).code == (http, code)
    after = copying.meta.names()[copying.meta.names().index("container_copy") + 1 :]
    assert after == [
        "container_get_properties", *["container_destroy"] * made, "reference_unlink", "reference_destroy"
    ]  # fmt: skip
    assert {call.cid for call in copying.meta.calls[-len(after) :]} == {COPY}
    assert not copying.meta.last("reference_destroy").force
    # What was wrong must not be remembered.
    assert copying.app.resolver.links.get((COPY, "meta2")) is None


def test_a_container_created_meanwhile_keeps_its_link(copying):
    copying.meta.answers["container_copy"] = StatusError(433, "Container already exists")
    assert copying.post(f"container/snapshot?{REF}", BODY).code == (409, 433)
    assert copying.meta.names()[-1] == "container_copy"
    copying.meta.answers["container_copy"] = StatusError(504, "too late")
    copying.meta.answers["container_get_properties"] = messages.Properties(properties={"sys.status": "0"})
    assert copying.post(f"container/snapshot?{REF}", BODY).code == (503, 504)
    assert copying.meta.names()[-1] == "container_get_properties"


def test_a_failed_copy_leaves_the_reference_that_was_there(copying):
    copying.meta.answers["reference_create"] = messages.Created(created=False)
    copying.meta.answers["reference_show"] = lambda call: messages.ReferenceReply(
        cid=call.cid, account="acct", name="x", services=[LINK] if call.cid == SOURCE else []
    )
    copying.meta.answers["container_copy"] = StatusError(500, "no")
    copying.meta.answers["container_get_properties"] = StatusError(431, "no base")
    assert copying.post(f"container/snapshot?{REF}", BODY).code == (500, 500)
    assert copying.meta.names()[-1] == "reference_unlink"


def test_a_reference_created_in_vain_is_deleted(copying):
    copying.meta.answers["reference_force"] = StatusError(500, "disk")
    assert copying.post(f"container/snapshot?{REF}", BODY).code == (500, 500)
    assert copying.meta.names()[-1] == "reference_destroy"


def test_snapshot_without_any_service_to_choose(copying):
    copying.conscience.services["meta2"][0] = without_score(copying.conscience.services["meta2"][0])
    copying.conscience.generation += 1
    copying.reload()
    assert copying.post(f"container/snapshot?{REF}", BODY).code == (500, 481)
    assert "reference_create" not in copying.meta.names()


def without_score(service):
    return type(service)(type=service.type, addr=service.addr, score=0, tags=service.tags)
