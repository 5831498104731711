# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""``container/*`` and ``reference/*``."""

import pytest

from oio.common.status import StatusError
from oio.common.utils import cid_from_name
from oio.http.messages import Request
from oio.meta import messages
from oio.meta.messages import ServiceLink
from oio.proxy.call import Call, Errand
from oio.proxy.linking import whole_sets

REF = "acct=acct&ref=ref"
CID = cid_from_name("acct", "ref")
LINK = ServiceLink(type="meta2", host="NSTEST-meta2-1")


# --- container


def test_create_says_whether_it_was_there(cluster):
    body = {"properties": {"k": "v"}, "system": {"sys.m2.quota": "3", "user.x": "y"}}
    assert cluster.post(f"container/create?{REF}", body).status == 201
    link, created = cluster.meta.last("reference_link"), cluster.meta.last("container_create")
    assert link.proposed == ["NSTEST-meta2-1"] and link.autocreate
    assert created.properties == {"user.k": "v", "sys.m2.quota": "3", "user.x": "y"}
    assert (created.cid, created.account, created.name) == (CID, "acct", "ref")
    cluster.meta.answers["container_create"] = messages.Created(created=False)
    answer = cluster.post(f"container/create?{REF}")
    assert (answer.status, answer.data) == (204, b"")


@pytest.mark.parametrize(
    ("query", "body", "code"),
    [
        ("acct=acct", None, (400, 400)),
        (f"cid={CID}", None, (400, 400)),
        (REF, b"[]", (400, 400)),
        (REF, b"{x", (400, 400)),
        (REF, {"system": {"color": "x"}}, (400, 400)),
        (REF, {"properties": ["x"]}, (400, 400)),
        (REF, {"properties": {"x": 3}}, (400, 400)),
        (REF, {"system": {"sys.m2.policy.storage": "NOPE"}}, (500, 480)),
    ],
)
def test_create_refuses(cluster, query, body, code):
    assert cluster.post(f"container/create?{query}", body).code == code
    assert cluster.meta.calls == []


def test_create_without_any_meta2_to_choose(cluster):
    cluster.conscience.services.pop("meta2")
    cluster.conscience.generation += 1
    cluster.reload()
    cluster.meta.answers["reference_link"] = StatusError(454, "nothing linked")
    answer = cluster.post(f"container/create?{REF}")
    assert answer.code == (403, 481)
    assert not cluster.meta.last("reference_link").autocreate


def test_create_when_the_directory_is_lost(cluster):
    cluster.meta.answers["reference_link"] = StatusError(406, "what?")
    assert cluster.post(f"container/create?{REF}").code == (403, 406)


def test_create_many(cluster):
    cluster.meta.answers["container_create"] = lambda call: messages.Created(created=call.name != "old")
    cluster.meta.answers["reference_link"] = lambda call: (
        messages.ServiceLinks(services=[LINK]) if call.name != "bad" else StatusError(503, "away")
    )
    names = ["new", "old", "bad", "ö 2"]
    answer = cluster.post("container/create_many?acct=acct", {"containers": [{"name": n} for n in names]})
    assert [(one["name"], one["status"]) for one in answer.json["containers"]] == [
        ("new", 201), ("old", 433), ("bad", 503), ("ö 2", 201),
    ]  # fmt: skip
    many = {"containers": [{"name": str(n)} for n in range(101)]}
    assert cluster.post("container/create_many?acct=acct", many).code == (413, 413)
    assert cluster.post("container/create_many", {"containers": [{"name": "a"}]}).code == (400, 400)
    for body in (None, {}, {"containers": []}, {"containers": [3]}, {"containers": [{"name": ""}]}):
        assert cluster.post("container/create_many?acct=acct", body).code == (400, 400)


def test_destroy_freezes_unlinks_and_deletes_in_this_order(cluster):
    assert cluster.post(f"container/destroy?{REF}").status == 204
    assert cluster.meta.names()[-3:] == ["container_set_status", "reference_unlink", "container_destroy"]
    frozen = cluster.meta.last("container_set_status")
    assert frozen.status == "frozen" and frozen.only_empty
    assert "reference_force" not in cluster.meta.names()


def test_destroy_of_a_full_container_leaves_its_link(cluster):
    cluster.meta.answers["container_set_status"] = StatusError(438, "Container not empty")
    assert cluster.post(f"container/destroy?{REF}").code == (409, 438)
    assert "reference_unlink" not in cluster.meta.names()


def test_a_forced_destroy_does_not_ask_whether_there_is_something(cluster):
    assert cluster.post(f"container/destroy?{REF}&force=1").status == 204
    assert not cluster.meta.last("container_set_status").only_empty
    assert cluster.meta.last("container_destroy").force


@pytest.mark.parametrize("code", [436, 437])
def test_destroy_accepts_what_is_frozen_or_disabled_and_leaves_it_so_when_it_fails(cluster, code):
    cluster.meta.answers["container_set_status"] = StatusError(code, "is so already")
    cluster.meta.answers["container_get_properties"] = messages.Properties(properties={})
    assert cluster.post(f"container/destroy?{REF}").status == 204
    cluster.meta.answers["container_destroy"] = StatusError(500, "disk")
    assert cluster.post(f"container/destroy?{REF}").code == (500, 500)
    assert cluster.meta.names()[-2:] == ["reference_force", "container_touch"]


@pytest.mark.parametrize("failing", ["reference_unlink", "container_destroy"])
def test_destroy_links_again_and_thaws_when_it_fails(cluster, failing):
    cluster.meta.answers[failing] = StatusError(500, "disk")
    assert cluster.post(f"container/destroy?{REF}").code == (500, 500)
    assert cluster.meta.last("reference_force").service == LINK
    thawed = cluster.meta.last("container_set_status")
    assert thawed.status == "enabled" and thawed.tolerant
    # Its account must hear that it lives: the link that was removed told the contrary.
    assert cluster.meta.names()[-1] == "container_touch"


@pytest.mark.parametrize("code", [0, 436], ids=["frozen here", "frozen before"])
def test_what_others_destroyed_meanwhile_is_not_linked_again(cluster, code):
    """Its link would lead nowhere, and be in the index of a meta2."""
    replies = iter([StatusError(code, "frozen") if code else None])
    gone = StatusError(431, "destroyed")
    cluster.meta.answers["container_set_status"] = lambda _request: next(replies, gone)
    cluster.meta.answers["container_get_properties"] = gone
    cluster.meta.answers["reference_unlink"] = StatusError(500, "no answer")
    assert cluster.post(f"container/destroy?{REF}").code == (500, 500)
    assert "reference_force" not in cluster.meta.names()


def test_the_hosts_of_one_set_are_linked_again_together(cluster):
    others = [messages.ServiceLink(type="meta2", host=f"other-{number}") for number in (1, 2)]
    linked = messages.ReferenceReply(cid=CID, account="acct", name="ref", services=[LINK, *others])
    cluster.meta.answers["reference_show"] = linked
    cluster.meta.answers["reference_unlink"] = StatusError(500, "disk")
    assert cluster.post(f"container/destroy?{REF}").status >= 500
    (forced,) = [call for call in cluster.meta.calls if isinstance(call, messages.ReferenceForce)]
    assert (forced.service.seq, forced.service.host) == (1, f"{LINK.host},other-1,other-2")


def test_links_are_stored_by_sets():
    hosts = ((1, "a"), (1, "b"), (2, "c"))
    links = [messages.ServiceLink(seq=seq, type="meta2", host=host) for seq, host in hosts]
    assert [(link.seq, link.host) for link in whole_sets(links)] == [(1, "a,b"), (2, "c")]


def test_what_puts_things_back_has_a_deadline_of_its_own(cluster):
    call = Call(cluster.app, Request("POST", "/", {"x-oio-timeout": "0"}))
    with pytest.raises(StatusError) as caught:
        Errand(call).timeout_s(30)
    assert caught.value.code == 504
    assert 4 < Errand(call, grace_s=5).timeout_s(30) <= 5
    assert Errand(call, grace_s=5).timeout_s(1) == 1


def test_destroy_of_a_link_without_a_base_removes_the_link(cluster):
    for name in ("container_set_status", "container_destroy"):
        cluster.meta.answers[name] = StatusError(431, "no base")
    assert cluster.post(f"container/destroy?{REF}").code == (404, 431)
    assert "reference_unlink" in cluster.meta.names()
    assert "reference_force" not in cluster.meta.names()


@pytest.mark.parametrize(
    "route", ["container/create", "container/destroy", "container/snapshot"]
)
def test_changes_of_several_steps_do_not_begin_in_a_slave_namespace(cluster, route):
    cluster.process.variables.set("ns.master", "off")
    answer = cluster.post(f"{route}?{REF}", {"account": "a", "container": "b"})
    assert answer.code == (500, 500) and "NS slave!" in answer.json["message"]
    assert cluster.meta.calls == []
    assert cluster.post("container/create?" + REF, headers={"x-oio-admin": "1"}).status == 201


def test_destroy_of_what_is_not_there(cluster):
    cluster.reference = messages.ReferenceReply(cid=CID, account="a", name="b", services=[])
    try:
        assert cluster.post(f"container/destroy?{REF}").code == (404, 431)
    finally:
        cluster.reference = messages.ReferenceReply(cid=CID, account="acct", name="ref", services=[LINK])
    cluster.process.variables.set("ns.worm", "yes")
    answer = cluster.post(f"container/destroy?{REF}")
    assert answer.code == (405, 405) and answer.headers["allow"] == "GET, HEAD, PUT"


@pytest.mark.parametrize(
    ("count", "size", "shown"), [(64, 1, True), (65, 1, False), (1, 30000, True), (2, 30000, False)]
)
@pytest.mark.parametrize("route", ["show", "list"])
def test_more_properties_than_an_answer_can_have_headers(cluster, route, count, size, shown):
    """Clients give up on too many or too large headers: the listing of the container must stay in reach."""
    user = {f"user.k{number}": "v" * size for number in range(count)}
    properties = {"sys.m2.usage": "5", **user}
    cluster.meta.answers["container_get_properties"] = messages.Properties(properties=properties)
    cluster.meta.answers["content_list"] = messages.ListReply(
        objects=b"[]", prefixes=[], truncated=False, next_marker="", properties=properties
    )
    answer = cluster.get(f"container/{route}?{REF}")
    assert len(answer.json["properties"]) == count
    assert answer.headers["x-oio-container-meta-sys-m2-usage"] == "5"
    assert ("x-oio-container-meta-user-k0" in answer.headers) == shown


def test_show_and_properties(cluster):
    cluster.meta.answers["container_get_properties"] = messages.Properties(
        properties={"user.color": "dark blue", "sys.m2.usage": "12", "version:main.admin": "3:0"}
    )
    answer = cluster.get(f"container/show?{REF}")
    assert answer.json == {"properties": {"color": "dark blue"}}
    assert answer.headers["x-oio-container-meta-user-color"] == "dark%20blue"
    assert answer.headers["x-oio-container-meta-sys-m2-usage"] == "12"
    assert answer.headers["x-oio-container-meta-x-version-main-admin"] == "3%3A0"
    answer = cluster.post(f"container/get_properties?{REF}", headers={"x-oio-admin": "1"})
    assert answer.json == {
        "properties": {"color": "dark blue"},
        "system": {"sys.m2.usage": "12", "version:main.admin": "3:0"},
    }
    assert cluster.meta.last("container_get_properties").stats
    assert cluster.meta.headers[-1]["x-oio-admin"] == "1"


def test_set_and_del_properties(cluster):
    body = {"properties": {"a": None}, "system": {"sys.m2.quota": "1"}}
    answer = cluster.post(f"container/set_properties?{REF}&flush=1", body)
    assert (answer.status, answer.json) == (200, {})
    sent = cluster.meta.last("container_set_properties")
    assert sent.properties == {"user.a": "", "sys.m2.quota": "1"} and sent.clear
    for bad in (None, {}, {"properties": {}}, {"system": {"x": "y"}}):
        assert cluster.post(f"container/set_properties?{REF}&flush=1", bad).code == (400, 400)
    for flush, wanted in (("&flush", True), ("&flush=", True), ("&flush=0", False), ("", False)):
        assert cluster.post(f"container/set_properties?{REF}{flush}", body).status == 200
        assert cluster.meta.last("container_set_properties").clear is wanted
    answer = cluster.post(f"container/del_properties?{REF}", ["a", "b"])
    assert (answer.status, answer.json) == (200, {})
    assert cluster.meta.last("container_del_properties").names == ["user.a", "user.b"]
    assert cluster.post(f"container/del_properties?{REF}", {"a": 1}).code == (400, 400)


def test_list_copies_the_objects(cluster):
    objects = b'[{"name":"a/b"},  {"name":"c"}]'
    cluster.meta.answers["content_list"] = messages.ListReply(
        objects=objects, prefixes=["a/"], truncated=True, next_marker="c é",
        properties={"user.k": "v", "sys.account": "acct"},
    )  # fmt: skip
    answer = cluster.get(
        f"container/list?{REF}&prefix=a&marker=0&marker_end=z&delimiter=%2Fxx&max=20000&all&deleted=0&properties=on"
    )
    assert objects in answer.data
    assert answer.json["prefixes"] == ["a/"]
    assert answer.json["properties"] == {"k": "v"} and answer.json["system"] == {"sys.account": "acct"}
    assert answer.headers["x-oio-list-truncated"] == "true"
    assert answer.headers["x-oio-list-marker"] == "c%20%C3%A9"
    assert answer.headers["x-oio-container-meta-sys-account"] == "acct"
    sent = cluster.meta.last("content_list")
    assert (sent.prefix, sent.marker, sent.end_marker, sent.delimiter, sent.max) == ("a", "0", "z", "/", 10000)
    assert sent.all_versions and sent.deleted and sent.properties
    cluster.get(f"container/list?{REF}&max=-1&end_marker=y")
    assert cluster.meta.last("content_list").max == 1000
    assert cluster.get(f"container/list?{REF}&max=ten").code == (400, 400)


def test_list_continues_amid_the_versions_of_a_name(cluster):
    cluster.meta.answers["content_list"] = messages.ListReply(
        objects=b"[]", truncated=True, next_marker="b c", next_version_marker=12
    )
    answer = cluster.get(f"container/list?{REF}&all&marker=a&version_marker=34")
    assert answer.headers["x-oio-list-marker"] == "b%20c"
    assert answer.headers["x-oio-list-version-marker"] == "12"
    asked = cluster.meta.last("content_list")
    assert (asked.marker, asked.version_marker) == ("a", 34)
    assert cluster.get(f"container/list?{REF}&all&marker=a&version_marker=x").code == (400, 400)


def test_list_by_chunk_or_hash(cluster):
    cluster.meta.answers["content_list"] = messages.ListReply(objects=b"[]")
    answer = cluster.get(f"container/list?{REF}", headers={"x-oio-list-content-hash": "abcd"})
    assert answer.code == (404, 420)
    assert cluster.meta.last("content_list").content_hash == "ABCD"
    assert cluster.get(f"container/list?{REF}", headers={"x-oio-list-content-hash": "z"}).code == (400, 400)


def test_missing_containers(cluster):
    cluster.meta.answers["reference_show"] = StatusError(406, "no such reference")
    assert cluster.get(f"container/list?{REF}").code == (404, 406)
    assert cluster.post(f"container/get_properties?{REF}").code == (404, 406)
    assert cluster.post(f"content/touch?{REF}&path=a").code == (404, 406)
    assert cluster.post(f"container/touch?{REF}").code == (403, 406)
    cluster.meta.answers["reference_show"] = messages.ReferenceReply(cid=CID, account="a", name="b")
    assert cluster.get(f"container/list?{REF}").code == (404, 431)


def test_touch(cluster):
    assert cluster.post(f"container/touch?{REF}&recompute=True").status == 204
    sent = cluster.meta.last("container_touch")
    assert sent.recompute and not sent.damaged_objects and not sent.missing_chunks
    assert cluster.post(f"container/touch?{REF}&missing_chunks=1").status == 204
    sent = cluster.meta.last("container_touch")
    assert sent.recompute and sent.missing_chunks and not sent.damaged_objects


# --- reference


def test_reference_create_and_destroy(cluster):
    cluster.meta.answers["reference_create"] = [messages.Created(created=True), messages.Created(created=False)]
    assert cluster.post(f"reference/create?{REF}", {"properties": {"a": "b"}}).status == 201
    assert cluster.post(f"reference/create?{REF}").status == 202
    assert cluster.post("reference/create?acct=acct").code == (400, 400)
    assert cluster.post(f"reference/destroy?{REF}").status == 204
    cluster.meta.answers["reference_destroy"] = StatusError(407, "linked")
    assert cluster.post(f"reference/destroy?{REF}").code == (403, 407)
    cluster.meta.answers["reference_destroy"] = StatusError(406, "absent")
    assert cluster.post(f"reference/destroy?{REF}&force=yes").code == (404, 406)
    assert cluster.meta.last("reference_destroy").force


def test_reference_show_splits_sets(cluster):
    cluster.meta.answers["reference_show"] = messages.ReferenceReply(
        cid=CID, account="acct", name="ref", services=[ServiceLink(type="meta2", host="a,b", seq=2)]
    )
    shown = cluster.get(f"reference/show?cid={CID.lower()}").json
    assert shown["srv"] == [
        {"seq": 2, "type": "meta2", "host": "a", "args": ""},
        {"seq": 2, "type": "meta2", "host": "b", "args": ""},
    ]
    assert [one["type"] for one in shown["dir"]] == ["meta0", "meta1"]
    assert shown["dir"][1]["host"] == cluster.meta.addr
    assert (shown["cid"], shown["account"], shown["name"]) == (CID, "acct", "ref")


def test_reference_properties(cluster):
    cluster.meta.answers["reference_show"] = messages.ReferenceReply(
        cid=CID, account="a", name="b", properties={"x": "1", "y": "2"}
    )
    assert cluster.post(f"reference/get_properties?{REF}").json == {"cid": CID, "properties": {"x": "1", "y": "2"}}
    assert cluster.post(f"reference/get_properties?{REF}", ["y", "z"]).json["properties"] == {"y": "2"}
    assert cluster.post(f"reference/get_properties?{REF}", {"y": 1}).code == (400, 400)
    assert cluster.post(f"reference/set_properties?{REF}&flush", {"properties": {"a": "b"}}).status == 204
    assert cluster.meta.last("reference_set_properties").clear
    assert cluster.post(f"reference/set_properties?{REF}", []).code == (400, 400)
    assert cluster.post(f"reference/del_properties?{REF}", []).status == 204


def test_link(cluster):
    answer = cluster.post(f"reference/link?{REF}&type=meta2&autocreate=1&dryrun=1")
    assert answer.json == [{"seq": 1, "type": "meta2", "host": "NSTEST-meta2-1", "args": ""}]
    sent = cluster.meta.last("reference_link")
    assert sent.autocreate and sent.dryrun
    assert cluster.post(f"reference/link?{REF}").code == (400, 400)
    assert cluster.post(f"reference/link?{REF}&type=nothing").code == (404, 453)
    cluster.meta.answers["reference_link"] = StatusError(454, "none")
    assert cluster.post(f"reference/link?{REF}&type=rdir").code == (403, 481)
    cluster.meta.answers["reference_link"] = StatusError(406, "none")
    assert cluster.post(f"reference/link?{REF}&type=rdir").code == (404, 406)
    assert cluster.post(f"reference/link?{REF}&type=meta2").code == (404, 406)


def test_unlink_and_force(cluster):
    assert cluster.post(f"reference/unlink?{REF}&type=meta2").status == 204
    cluster.meta.answers["reference_unlink"] = StatusError(454, "nothing")
    assert cluster.post(f"reference/unlink?{REF}&type=meta2").code == (404, 454)
    link = {"seq": 1, "type": "meta2", "host": "a,b", "args": ""}
    assert cluster.post(f"reference/force?{REF}&type=meta2&replace=yes", link).status == 204
    sent = cluster.meta.last("reference_force")
    assert sent.replace and sent.service.host == "a,b"
    cluster.meta.answers["reference_force"] = StatusError(455, "taken")
    assert cluster.post(f"reference/force?{REF}&type=meta2", link).code == (403, 455)
    for key in link:
        partial = {name: value for name, value in link.items() if name != key}
        assert cluster.post(f"reference/force?{REF}&type=meta2", partial).code == (400, 400)


# --- resolution


def reference(*services):
    return messages.ReferenceReply(cid=CID, account="acct", name="ref", services=list(services))


def test_links_are_remembered_and_dropped_when_wrong(cluster):
    cluster.meta.answers["content_touch"] = None
    cluster.post(f"content/touch?{REF}&path=a")
    cluster.post(f"content/touch?{REF}&path=a")
    assert cluster.meta.names().count("reference_show") == 1
    cluster.meta.answers["content_touch"] = [StatusError(431, "not here"), None]
    assert cluster.post(f"content/touch?{REF}&path=a").status == 204
    assert cluster.meta.names().count("reference_show") == 2
    cluster.meta.answers["content_touch"] = StatusError(431, "not here")
    assert cluster.post(f"content/touch?{REF}&path=a").code == (404, 431)


def test_prefixes_are_remembered_and_dropped_when_wrong(cluster):
    cluster.post(f"reference/unlink?{REF}&type=meta2")
    cluster.meta.answers["reference_unlink"] = [StatusError(450, "not mine"), None]
    assert cluster.post(f"reference/unlink?{REF}&type=meta2").status == 204
    assert cluster.meta.names().count("meta0_get") == 2


def test_nothing_is_remembered_without_caches(cluster):
    cluster.process.variables.set("proxy.cache.enabled", "off")
    for _ in range(2):
        cluster.post(f"content/touch?{REF}&path=a")
    assert cluster.meta.names().count("meta0_get") == cluster.meta.names().count("reference_show") == 2


def test_a_dead_meta2_is_503(cluster):
    dead = ServiceLink(type="meta2", host="127.0.0.1:9")
    cluster.meta.answers["reference_show"] = reference(dead)
    answer = cluster.post(f"content/touch?{REF}&path=a")
    assert answer.code == (503, 503)
    assert answer.json["message"].startswith("No service replied (last error: (2) ")
    assert answer.headers["retry-after"] == "1"
    assert "127.0.0.1:9" in cluster.app.resolver.down


def test_another_replica_answers(cluster):
    both = ServiceLink(type="meta2", host="127.0.0.1:9,NSTEST-meta2-1")
    cluster.meta.answers["reference_show"] = reference(both)
    for _ in range(10):
        assert cluster.post(f"content/touch?{REF}&path=a").status == 204


def test_named_services_only(cluster):
    answer = cluster.post(f"content/touch?{REF}&path=a&service_id=NSTEST-meta2-1")
    assert answer.status == 204
    assert cluster.meta.names() == ["content_touch"]
    cluster.meta.answers["content_touch"] = StatusError(303, "NSTEST-meta2-1")
    assert cluster.post(f"content/touch?{REF}&path=a&service_id=NSTEST-meta2-1").code == (500, 303)


def test_redirections_are_followed(cluster):
    cluster.meta.answers["content_touch"] = [StatusError(303, "NSTEST-meta2-1"), None]
    assert cluster.post(f"content/touch?{REF}&path=a").status == 204


def test_deadline(cluster):
    answer = cluster.post(f"content/touch?{REF}&path=a", headers={"x-oio-timeout": "0"})
    assert answer.code == (503, 504)
    assert cluster.post(f"content/touch?{REF}&path=a", headers={"x-oio-timeout": "soon"}).code == (400, 400)
    cluster.post(f"content/touch?{REF}&path=a", headers={"x-oio-timeout": "2000000", "x-oio-req-id": "abc"})
    assert 0 < int(cluster.meta.headers[-1]["x-oio-timeout"]) <= 2000000
    assert cluster.meta.headers[-1]["x-oio-req-id"] == "abc"
