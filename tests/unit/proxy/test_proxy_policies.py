# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0
"""Which storage policy an upload gets that names none."""

from oio.common.status import StatusError
from oio.common.utils import cid_from_name
from oio.meta import messages

OBJECT = "acct=acct&ref=ref&path=obj"
POLICY = "x-oio-content-meta-policy"


def policy_of(cluster, **body):
    return cluster.post(f"content/prepare2?{OBJECT}", {"size": 10, **body}).headers[POLICY]


def container_has(cluster, policy):
    properties = {"sys.m2.policy.storage": policy} if policy else {}
    cluster.meta.answers["container_get_properties"] = messages.Properties(properties=properties)


def test_the_policy_of_the_container_is_the_default(cluster):
    container_has(cluster, "THREE")
    assert policy_of(cluster) == "THREE"


def test_the_policy_of_the_request_wins(cluster):
    container_has(cluster, "THREE")
    assert policy_of(cluster, policy="SINGLE") == "SINGLE"
    assert cluster.meta.calls == []


def test_the_policy_of_the_namespace_serves_containers_without_one(cluster):
    container_has(cluster, "")
    assert policy_of(cluster) == cluster.process.variables["ns.storage_policy"]


def test_containers_that_do_not_answer_have_no_policy(cluster):
    cluster.meta.answers["container_get_properties"] = StatusError(511, "corrupt")
    assert policy_of(cluster) == cluster.process.variables["ns.storage_policy"]


def test_the_container_is_asked_once_for_several_uploads(cluster):
    container_has(cluster, "THREE")
    for _ in range(5):
        policy_of(cluster)
    assert cluster.meta.names().count("container_get_properties") == 1


def test_a_change_through_the_proxy_is_seen_at_once(cluster):
    container_has(cluster, "THREE")
    policy_of(cluster)
    container_has(cluster, "SINGLE")
    body = {"system": {"sys.m2.policy.storage": "SINGLE"}}
    assert cluster.post("container/set_properties?acct=acct&ref=ref", body).status == 200
    assert policy_of(cluster) == "SINGLE"


def test_a_worker_forgets_what_another_one_changed(cluster):
    container_has(cluster, "THREE")
    policy_of(cluster)
    container_has(cluster, "SINGLE")
    cid = cid_from_name("acct", "ref")
    assert cluster.post(f"/v3.0/cache/flush/policy?cid={cid}", raw=True).status == 204
    assert policy_of(cluster) == "SINGLE"
