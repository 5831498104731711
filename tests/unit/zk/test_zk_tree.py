# Copyright The OIO-SDS authors
# SPDX-License-Identifier: Apache-2.0

"""Names of the nodes in ZooKeeper."""

import pytest

from oio.zk.tree import Member, Tree, ensembles_of

KEY = "0A1B" + "F" * 60


def test_elections_lie_in_hash_directories():
    assert Tree.election_directory("NS", "meta0", KEY) == "/hc/ns/NS/el/meta0"
    assert Tree.election_directory("NS", "meta1", KEY) == "/hc/ns/NS/el/meta1/0A1"
    assert Tree.election_directory("NS", "meta2", KEY) == "/hc/ns/NS/el/meta2/0A/1B"
    assert Tree.member_prefix(KEY) == KEY + "-"
    assert Tree.registration_directory("NS", "meta0") == "/hc/ns/NS/srv/meta0"


@pytest.mark.parametrize(("service_type", "key"), [("rawx", KEY), ("", KEY), ("meta1", "AB"), ("meta2", "ABC")])
def test_there_is_no_place_for_other_elections(service_type, key):
    with pytest.raises(ValueError):
        Tree.election_directory("NS", service_type, key)


def test_names_of_members_are_understood():
    assert Tree.parse_member(f"{KEY}-0000000012") == Member(KEY, 12)
    # The counter of a directory wraps after 2^31 creations.
    assert Tree.parse_member(f"{KEY}--2147483647") == Member(KEY, -2147483647)
    for name in ("", KEY, f"{KEY}-12", f"{KEY}-000000001x", "-0000000012", "0A"):
        assert Tree.parse_member(name) is None


def test_every_directory_comes_after_the_one_above():
    seen = {""}
    count = 0
    for path in Tree.directories("NS"):
        assert path.rpartition("/")[0] in seen
        seen.add(path)
        count += 1
    assert count == len(seen) - 1 == 4 + 2 + 1 + 3 + 4096 + 256 + 65536 - 1
    root = "/hc/ns/NS"
    assert {f"{root}/srv/meta0", f"{root}/el/meta0", f"{root}/el/meta1/FFF", f"{root}/el/meta2/00/FF"} <= seen
    for service_type in ("meta0", "meta1", "meta2"):
        assert Tree.election_directory("NS", service_type, KEY) in seen
    counts = {one: len(list(Tree.election_directories("NS", one))) for one in ("meta0", "meta1", "meta2")}
    assert counts == {"meta0": 1, "meta1": 4096, "meta2": 65536}


def test_clusters_are_those_of_the_type_else_of_the_namespace():
    conf = {"zookeeper": "a:1,b:1; c:1 ;", "zookeeper.meta2": "d:1"}
    assert ensembles_of(conf, "meta1") == ["a:1,b:1", "c:1"]
    assert ensembles_of(conf, "meta2") == ["d:1"]
    assert ensembles_of(conf) == ["a:1,b:1", "c:1"]
    assert ensembles_of({}, "meta2") == [] == ensembles_of({"zookeeper": " ; "}, "meta2")
